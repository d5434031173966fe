"""Comparing the books with what EC2 says, by the order of belief.

An acknowledged ADD without DEL is believed over EC2's reply to our own call, that over Describe, and that
over IMDS. So Describe can teach us ENIs and addresses and can raise a suspicion; it never ends a lease.
What is new to the books, or missing from Describe, counts only when two readings agree: Describe may lag. They are
begun some seconds apart and no more than two minutes, and both after our own last call that changed the ENI.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.events import address, eni
from vpccni.events.codec import Record
from vpccni.model import POOL_CARD, Cidr, EniFacts, EniId, Stamp, route_table_of
from vpccni.planner.commands import Caused, ReadEc2
from vpccni.planner.view import SIDE_KINDS, is_cidr_rested, is_leased
from vpccni.projections.enis import Eni, OwnedCidr
from vpccni.projections.state import State

INSTANCE_TAG: Final = "node.k8s.amazonaws.com/instance_id"
NO_MANAGE_TAG: Final = "node.k8s.amazonaws.com/no_manage"

SETTLING_S: Final = 60.0
"""For this long after our own call, Describe's silence about its result is lag, not news; nor is it news that
Describe still lists what we gave back: it may be another node's by now."""

READINGS_TO_BELIEVE: Final = 2
READINGS_APART_S_MIN: Final = 3.0
"""Describe has been seen to lag a second or two: what is asked sooner may be the same old answer."""
READINGS_APART_S_MAX: Final = 120.0
"""Two readings that are half an hour apart are two single ones: anything may have been listed between them."""


def is_managed(facts: EniFacts, instance: str, manages_untagged: bool) -> bool:
    """Whether an attached ENI is ours to use (the original's rules; the primary always is).

    One on another network card never is: the original ignores those without ``ENABLE_MULTI_NIC``, which is refused.
    """
    if facts.card != POOL_CARD:
        return False
    if facts.device == 0:
        return True
    if facts.type not in ("interface", "efa", "trunk"):
        return False
    if NO_MANAGE_TAG in facts.tags:
        return facts.tags[NO_MANAGE_TAG] != "true"
    if facts.tags.get(INSTANCE_TAG) == instance:
        return True
    return manages_untagged


def compare_with_ec2(
    state: State, command: ReadEc2, now: Stamp, cooldown_s: float, manages_untagged: bool
) -> tuple[Caused, ...]:
    """Events that a reading of EC2 justifies."""
    if state.instance is None:
        return ()
    events: list[Caused] = []
    begun = command.reading.begun
    described = {facts.id: facts for facts in command.reading.enis}
    before = _agreeing(state, command)
    is_first = not state.enis
    for facts in command.reading.enis:
        held = state.enis.get(facts.id)
        if is_outdated(state, facts.id, begun):
            continue
        if held is not None:
            events += _facts_again(held, facts)
        if {intent.intended.kind for intent in state.intents_on(facts.id)} - SIDE_KINDS:
            continue
        if held is None:
            if is_first or facts.id in before:
                events += _adopt(facts, is_managed(facts, state.instance.id, manages_untagged))
        else:
            events += _compare_known(state, held, facts, before.get(facts.id), begun, now, cooldown_s)
    for held in list(state.enis.values()):
        is_missing = held.facts.id not in described and held.phase == "attached"
        if is_missing and not is_outdated(state, held.facts.id, begun):
            events += _missing_eni(state, held, begun, now, cooldown_s)
    return tuple(events)


def is_outdated(state: State, eni_id: EniId, begun: Stamp) -> bool:
    """Whether a reading says nothing of an ENI: it was begun before our own last call about it had its outcome."""
    held, deleted = state.enis.get(eni_id), state.deleted.get(eni_id)
    if held is None:
        # Describe lags: what we have deleted is listed for a while.
        return deleted is not None and state.elapsed_s(deleted, begun) < SETTLING_S
    changed = held.records.get("effect")
    return changed is not None and _is_before(begun, changed.stamp)


def _is_before(begun: Stamp, said: Stamp) -> bool:
    return begun.boot_id == said.boot_id and begun.boottime_ns <= said.boottime_ns


def _agreeing(state: State, command: ReadEc2) -> dict[EniId, EniFacts]:
    """What the reading before this one listed, as far as it counts as another one."""
    previous = command.previous
    if previous is None:
        return {}
    apart_s = state.elapsed_s(previous.begun, command.reading.begun)
    if not READINGS_APART_S_MIN <= apart_s <= READINGS_APART_S_MAX:
        return {}
    return {facts.id: facts for facts in previous.enis if not is_outdated(state, facts.id, previous.begun)}


def _readings(state: State, so_far: int, said: Record | None, begun: Stamp) -> int:
    """How many readings in a row lack something, this one included; 0 if it comes too soon to be another one.

    A search of the node counts as a reading, whenever it was.
    """
    if said is None or getattr(said.event, "source", "") != "ec2":
        return so_far + 1
    apart_s = state.elapsed_s(said.stamp, begun)
    if apart_s < READINGS_APART_S_MIN:
        return 0
    return 1 if so_far < READINGS_TO_BELIEVE and apart_s > READINGS_APART_S_MAX else so_far + 1


def _bare(facts: EniFacts) -> EniFacts:
    return msgspec.structs.replace(facts, cidrs=())


def _adopt(facts: EniFacts, managed: bool) -> list[Caused]:
    adopted = eni.EniAdopted(
        facts=_bare(facts),
        managed=managed,
        origin="found",
        table=route_table_of(facts.card, facts.device),
    )
    events: list[Caused] = [(adopted, 0)]
    if managed and facts.cidrs:
        events.append((address.CidrsOwned(eni=facts.id, cidrs=facts.cidrs, source="describe"), -1))
    return events


def _facts_again(held: Eni, facts: EniFacts) -> list[Caused]:
    """What EC2 did not tell at the adoption, or what somebody has changed since.

    Without its subnet's CIDR an ENI's link cannot be set up: it would serve nobody for as long as it lives. New
    ENIs get the primary's security groups.
    """
    is_told_at_last = bool(facts.subnet_cidr) and not held.facts.subnet_cidr
    has_other_groups = held.is_primary and facts.groups != held.facts.groups
    if held.phase != "attached" or not (is_told_at_last or has_other_groups):
        return []
    adopted = eni.EniAdopted(facts=_bare(facts), managed=held.managed, origin=held.origin, table=held.table)
    return [(adopted, 0)]


def _compare_known(
    state: State,
    held: Eni,
    facts: EniFacts,
    before: EniFacts | None,
    begun: Stamp,
    now: Stamp,
    cooldown_s: float,
) -> list[Caused]:
    events: list[Caused] = []
    if held.phase == "detached":
        if before is not None and facts.device >= 0:
            attached = eni.EniAttached(
                eni=facts.id,
                attachment=facts.attachment,
                device=facts.device,
                card=facts.card,
                table=route_table_of(facts.card, facts.device),
            )
            events.append((attached, 0))
        return events
    if held.suspected:
        events.append((eni.EniCleared(eni=facts.id, source="ec2"), 0))
    if not held.managed:
        return events
    if held.card != POOL_CARD:
        return events + _leave_pool(state, held, facts, now, cooldown_s)
    believed = set(before.cidrs) if before is not None else set()
    fresh = tuple(
        cidr
        for cidr in facts.cidrs
        if cidr not in held.cidrs and cidr in believed and not _left_lately(state, held, cidr, begun)
    )
    if fresh:
        events.append((address.CidrsOwned(eni=facts.id, cidrs=fresh, source="describe"), 0))
    released: list[Cidr] = []
    for cidr, owned in held.cidrs.items():
        if cidr in facts.cidrs:
            if owned.suspected:
                events.append((address.CidrCleared(eni=facts.id, cidr=cidr, source="ec2"), 0))
        elif _is_described(owned) or state.elapsed_s(owned.record.stamp, begun) >= SETTLING_S:
            readings = _readings(state, owned.suspected, held.records.get(f"suspected:{cidr}"), begun)
            if readings >= READINGS_TO_BELIEVE and is_cidr_rested(state, cidr, now, cooldown_s):
                released.append(cidr)
            elif 0 < readings <= READINGS_TO_BELIEVE:
                events.append(
                    (address.CidrSuspected(eni=facts.id, cidr=cidr, source="ec2", readings=readings), 0)
                )
    if released:
        events.append((address.CidrsReleased(eni=facts.id, cidrs=tuple(released), source="describe"), 0))
    return events


def _leave_pool(state: State, held: Eni, facts: EniFacts, now: Stamp, cooldown_s: float) -> list[Caused]:
    """An ENI on another card, which an older release managed: it goes when nobody uses it any more."""
    if held.lease_count or not all(is_cidr_rested(state, cidr, now, cooldown_s) for cidr in held.cidrs):
        return []
    adopted = eni.EniAdopted(facts=_bare(facts), managed=False, origin=held.origin, table=held.table)
    if not held.cidrs:
        return [(adopted, 0)]
    released = address.CidrsReleased(eni=facts.id, cidrs=tuple(held.cidrs), source="describe")
    return [(released, 0), (adopted, 0)]


def _is_described(owned: OwnedCidr) -> bool:
    """Whether Describe itself has listed a CIDR before: that it does not any more is no lag."""
    event = owned.record.event
    return isinstance(event, address.CidrsOwned) and event.source == "describe"


def _left_lately(state: State, held: Eni, cidr: Cidr, begun: Stamp) -> bool:
    """Whether EC2 took a CIDR away so shortly ago that a reading which lists it is old."""
    said = held.released.get(cidr)
    return said is not None and state.elapsed_s(said.stamp, begun) < SETTLING_S


def _missing_eni(state: State, held: Eni, begun: Stamp, now: Stamp, cooldown_s: float) -> list[Caused]:
    eni_id: EniId = held.facts.id
    # An ENI may wait long for its attach: only from then on can EC2 list it.
    attached = held.records.get("attached")
    since = held.adopted if attached is None else attached.stamp
    if state.intents_on(eni_id) or state.elapsed_s(since, begun) < SETTLING_S:
        return []
    readings = _readings(state, held.suspected, held.records.get("suspected"), begun)
    is_free = not held.lease_count and all(
        is_cidr_rested(state, cidr, now, cooldown_s) for cidr in held.cidrs
    )
    if readings > READINGS_TO_BELIEVE and is_free and not held.is_primary:
        return [(eni.EniGone(eni=eni_id, source="ec2"), 0)]
    if 0 < readings <= READINGS_TO_BELIEVE:
        return [(eni.EniSuspected(eni=eni_id, source="ec2", readings=readings), 0)]
    return []


def adopt_left_behind(state: State, enis: tuple[EniFacts, ...], now: Stamp) -> tuple[Caused, ...]:
    """Unattached ENIs of ours that the books do not hold: taken in only to be deleted.

    None while a create is open: it may be the very one that the create made. Nor one with an address that was found
    in use: whoever told of it may be wrong, but the address stays with us as long as its lease. Such a lease may
    also be found later: so the books keep the ENI's addresses, among its facts.
    """
    if any(intent.intended.kind == "create" for intent in state.intents.values()):
        return ()
    return tuple(
        (eni.EniAdopted(facts=facts, managed=True, origin="left_behind"), 0)
        for facts in enis
        if facts.id not in state.enis
        and not is_outdated(state, facts.id, now)
        and not facts.attachment
        and not any(is_leased(state, cidr) for cidr in facts.cidrs)
    )
