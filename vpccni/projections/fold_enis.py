"""How events about ENIs and their CIDRs change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vpccni.errors import InvariantBrokenError
from vpccni.events import address, eni
from vpccni.events.codec import Record
from vpccni.model import Address, Cidr, EniId, is_inside, route_table_of
from vpccni.projections.enis import Eni, OwnedCidr
from vpccni.projections.rest import is_recent

if TYPE_CHECKING:
    from vpccni.projections.state import State


def _eni_adopted(state: State, record: Record, event: eni.EniAdopted) -> None:
    facts = event.facts
    before = state.enis.get(facts.id)
    is_attached = facts.device >= 0 and bool(facts.instance)
    state.enis[facts.id] = Eni(
        facts=facts,
        managed=event.managed,
        origin=event.origin,
        phase="attached" if is_attached else "detached",
        attachment=facts.attachment,
        device=facts.device if is_attached else -1,
        card=facts.card,
        table=event.table or (route_table_of(facts.card, facts.device) if is_attached else 0),
        is_link_ready=before.is_link_ready if before else False,
        ifname=before.ifname if before else "",
        ifindex=before.ifindex if before else 0,
        is_retiring=before.is_retiring if before else False,
        is_kept_safe=bool(facts.delete_on_termination) or (before is not None and before.is_kept_safe),
        eni_config=event.eni_config,
        lease_count=before.lease_count if before else _leases_on(state, facts.id),
        adopted=before.adopted if before else record.stamp,
        cidrs=before.cidrs if before else {},
        released=before.released if before else {},
        # The first adoption stays: in a snapshot everything else about the ENI follows it.
        records={**before.records, "adopted again": record} if before else {"adopted": record},
    )
    state.enis[facts.id].records.pop("suspected", None)
    if facts.delete_on_termination:
        state.enis[facts.id].records["modify"] = record


def _eni_attached(state: State, record: Record, event: eni.EniAttached) -> None:
    held = _eni(state, event.eni, record)
    held.phase, held.attachment = "attached", event.attachment
    held.device, held.card, held.table = event.device, event.card, event.table
    held.is_retiring = False
    held.records["attached"] = record


def _eni_link_ready(state: State, record: Record, event: eni.EniLinkReady) -> None:
    held = _eni(state, event.eni, record)
    held.is_link_ready, held.ifname, held.ifindex = True, event.ifname, event.ifindex
    held.records["link"] = record


def _eni_link_lost(state: State, record: Record, event: eni.EniLinkLost) -> None:
    held = _eni(state, event.eni, record)
    # Its name goes with it: a snapshot keeps the newest word about the link only.
    held.is_link_ready, held.ifname, held.ifindex = False, "", 0
    held.records["link"] = record


def _eni_suspected(state: State, record: Record, event: eni.EniSuspected) -> None:
    held = _eni(state, event.eni, record)
    held.suspected = event.readings
    held.records["suspected"] = record


def _eni_cleared(state: State, record: Record, event: eni.EniCleared) -> None:
    held = _eni(state, event.eni, record)
    held.suspected = 0
    held.records.pop("suspected", None)


def _eni_detached(state: State, record: Record, event: eni.EniDetached) -> None:
    held = _eni(state, event.eni, record)
    held.phase, held.attachment, held.device, held.table = "detached", "", -1, 0
    held.is_link_ready, held.ifname, held.ifindex = False, "", 0
    held.is_retiring = True
    held.records.pop("link", None)
    held.records["detached"] = record


def _eni_gone(state: State, record: Record, event: eni.EniGone) -> None:
    held = _eni(state, event.eni, record)
    if held.lease_count:
        raise InvariantBrokenError(f"{event.eni} is said to be gone and has {held.lease_count} open leases")
    for cidr in held.cidrs:
        _forget_rests(state, cidr)
    del state.enis[event.eni]


def _cidrs_owned(state: State, record: Record, event: address.CidrsOwned) -> None:
    held = _eni(state, event.eni, record)
    for cidr in event.cidrs:
        held.cidrs.setdefault(cidr, OwnedCidr(record))
        held.released.pop(cidr, None)
        # EC2 may give an address again before we learned that another ENI of ours lost it: whatever ends
        # there later must not forget that it rests here.
        for other in state.enis.values():
            if other is not held:
                _disown(state, other, cidr)


def _cidrs_released(state: State, record: Record, event: address.CidrsReleased) -> None:
    held = _eni(state, event.eni, record)
    for cidr in event.cidrs:
        if _leased_in(state, cidr):
            raise InvariantBrokenError(f"{cidr} is released and has an open lease")
    for cidr in event.cidrs:
        if cidr in held.cidrs:
            _disown(state, held, cidr)
            _forget_rests(state, cidr)
        if event.source != "describe":
            held.released[cidr] = record
    held.released = {
        cidr: said for cidr, said in held.released.items() if is_recent(said.stamp, record.stamp)
    }


def _cidr_suspected(state: State, record: Record, event: address.CidrSuspected) -> None:
    held = _eni(state, event.eni, record)
    if event.cidr in held.cidrs:
        held.cidrs[event.cidr].suspected = event.readings
        held.records[f"suspected:{event.cidr}"] = record


def _cidr_cleared(state: State, record: Record, event: address.CidrCleared) -> None:
    held = _eni(state, event.eni, record)
    if event.cidr in held.cidrs:
        held.cidrs[event.cidr].suspected = 0
    held.records.pop(f"suspected:{event.cidr}", None)


def _eni(state: State, eni_id: EniId, record: Record) -> Eni:
    held = state.enis.get(eni_id)
    if held is None:
        raise InvariantBrokenError(f"event {record.seq} is about {eni_id}, which is not in the books")
    return held


def _leases_on(state: State, eni_id: EniId) -> int:
    """Leases that were folded before their ENI."""
    return sum(binding.eni == eni_id for lease in state.leases.values() for binding in lease.bindings)


def _leased_in(state: State, cidr: Cidr) -> list[Address]:
    if cidr.endswith("/32"):
        single = Address(cidr[:-3])
        return [single] if single in state.by_address else []
    return [leased for leased in state.by_address if is_inside(leased, cidr)]


def _disown(state: State, held: Eni, cidr: Cidr) -> None:
    if held.cidrs.pop(cidr, None) is not None:
        held.records.pop(f"suspected:{cidr}", None)


def _forget_rests(state: State, cidr: Cidr) -> None:
    if cidr.endswith("/32"):
        single = Address(cidr[:-3])
        inside = [single] if single in state.rests else []
    else:
        inside = [held for held in state.rests if is_inside(held, cidr)]
    for rested in inside:
        rest = state.rests.pop(rested)
        if not any(state.rests.get(binding.address) is rest for binding in rest.bindings):
            state.standing.pop(rest.lease, None)


FOLDS: Final[dict[type, Callable[[State, Record, Any], None]]] = {
    eni.EniAdopted: _eni_adopted,
    eni.EniAttached: _eni_attached,
    eni.EniLinkReady: _eni_link_ready,
    eni.EniLinkLost: _eni_link_lost,
    eni.EniSuspected: _eni_suspected,
    eni.EniCleared: _eni_cleared,
    eni.EniDetached: _eni_detached,
    eni.EniGone: _eni_gone,
    address.CidrsOwned: _cidrs_owned,
    address.CidrsReleased: _cidrs_released,
    address.CidrSuspected: _cidr_suspected,
    address.CidrCleared: _cidr_cleared,
}
