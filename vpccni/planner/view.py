"""From the state to what the sizing planner looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vpccni.events.address import CidrSuspected
from vpccni.model import POOL_CARD, Address, Cidr, EniId, Stamp, cidr_size, cidr_span, is_inside
from vpccni.planner.assign import addresses_in, is_usable
from vpccni.planner.warm_pool import EniView
from vpccni.projections.enis import Eni
from vpccni.projections.state import State

EC2_DELIVERY_S: Final = 3.0
"""How long EC2 takes to deliver new addresses (create 0.6 s + attach 1.2 s, measured, and some): an address
whose rest ends sooner is supply, since asking EC2 instead would bring it later and cost calls."""

LINK_HOPELESS_S: Final = 300.0
"""After this long it is given back: a slot that serves nobody is worth more with a new ENI on it."""

LINK_PATIENCE_S: Final = 60.0
"""An attached ENI whose link has not come after this long is no longer counted as supply."""

_LOOKED_AT_MAX: Final = 16
"""A /28 is looked at address by address, a larger CIDR by what is known of it."""

ADDRESS_KINDS: Final = ("assign", "unassign")
"""Calls that change addresses: EC2 has no token for them, so there is one at a time per ENI."""
SIDE_KINDS: Final = frozenset({"modify", "tag"})
"""Calls that change neither addresses nor attachment: they stand in nobody's way."""


def busy_with(state: State, held: Eni) -> set[str]:
    """Kinds of the open intents on an ENI."""
    return {intent.intended.kind for intent in state.intents_on(held.facts.id)}


def rested_cidrs(state: State, held: Eni, now: Stamp, cooldown_s: float) -> tuple[Cidr, ...]:
    """CIDRs of an ENI without lease and past their rest: the only ones that may be given back.

    Highest address first, so that the low ones, which are assigned first, stay.
    """
    under_release = state.cidrs_under_release()
    is_inheriting = state.inherited_s(now, cooldown_s) > 0
    found = [
        cidr
        for cidr, owned in held.cidrs.items()
        if not owned.suspected
        and cidr not in under_release
        and not (is_inheriting and state.is_inherited(owned))
        and is_cidr_rested(state, cidr, now, cooldown_s)
    ]
    found.sort(key=cidr_span, reverse=True)
    return tuple(found)


def is_cidr_free(state: State, held: Eni, cidr: Cidr, now: Stamp, cooldown_s: float) -> bool:
    """Whether nobody uses the CIDR and nobody may have used it lately, before the log knew of it."""
    if state.inherited_s(now, cooldown_s) > 0 and state.is_inherited(held.cidrs[cidr]):
        return False
    return is_cidr_rested(state, cidr, now, cooldown_s)


def is_unread(held: Eni, cidr: Cidr) -> bool:
    """Whether a CIDR is doubted only because EC2 was not asked since somebody else was here."""
    if not held.cidrs[cidr].suspected:
        return False
    said = held.records.get(f"suspected:{cidr}")
    return said is not None and isinstance(said.event, CidrSuspected) and said.event.source == "survey"


def is_leased(state: State, cidr: Cidr) -> bool:
    """Whether an address of the CIDR has an open lease."""
    return any(address in state.by_address for address in _used_in(state, cidr))


def unleased(state: State, cidr: Cidr) -> int:
    """How many addresses of the CIDR have no open lease."""
    return cidr_size(cidr) - sum(address in state.by_address for address in _used_in(state, cidr))


def is_cidr_rested(state: State, cidr: Cidr, now: Stamp, cooldown_s: float) -> bool:
    """Whether no address of the CIDR is leased, resting, or still wired."""
    for address in _used_in(state, cidr):
        if address in state.by_address:
            return False
        rest = state.rests.get(address)
        if rest is not None and (rest.is_standing or state.rest_left_s(rest, now, cooldown_s) > 0):
            return False
    return True


def _used_in(state: State, cidr: Cidr) -> Sequence[Address]:
    """The addresses of a CIDR that have or had a lease. An IPv6 prefix holds too many to look at each."""
    if cidr.endswith("/32"):  # Nearly all are, and every plan asks for each.
        address = Address(cidr[:-3])
        return (address,) if address in state.by_address or address in state.rests else ()
    if cidr_size(cidr) <= _LOOKED_AT_MAX:
        return [one for one in addresses_in(cidr) if one in state.by_address or one in state.rests]
    return [one for one in (*state.by_address, *state.rests) if is_inside(one, cidr)]


def views_of(state: State, now: Stamp, cooldown_s: float, slots: int) -> list[EniView]:
    """One view a managed ENI of the pool's card in the books; and one for each ENI being created."""
    under_release, under_removal = state.cidrs_under_release(), state.enis_under_removal()
    views = [
        _view(state, held, under_release, under_removal, now, cooldown_s, slots)
        for held in state.enis.values()
        if held.managed and held.card == POOL_CARD and held.origin != "left_behind"
    ]
    views.extend(
        EniView(
            id=EniId(f"creating-{intent.id}"),
            device=10_000 + intent.id,
            is_primary=False,
            is_usable=False,
            is_coming=True,
            can_grow=False,
            can_shrink=False,
            slots=slots,
            owned=0,
            pending=intent.intended.count,
            age_s=0.0,
            subnet=intent.intended.subnet,
        )
        for intent in state.intents.values()
        if intent.intended.kind == "create"
    )
    return views


def unmanaged_enis(state: State) -> int:
    """ENIs of others on the pool's card: each takes a place there. What other cards hold takes none."""
    return sum(not held.managed and held.card == POOL_CARD for held in state.enis.values())


def without_link_s(state: State, held: Eni, now: Stamp) -> float:
    """Seconds for which an attached ENI has had no link in the kernel; 0 when it has one."""
    if held.is_link_ready or held.phase != "attached":
        return 0.0
    since = held.records.get("link") or held.records.get("attached")
    return state.elapsed_s(since.stamp if since is not None else held.adopted, now)


def _view(
    state: State,
    held: Eni,
    under_release: set[Cidr],
    under_removal: set[EniId],
    now: Stamp,
    cooldown_s: float,
    slots: int,
) -> EniView:
    resting = soon = blocked = releasing = 0
    inherited_s = state.inherited_s(now, cooldown_s)
    slots_saved = sum(cidr_size(cidr) - 1 for cidr in held.cidrs if not cidr.endswith("/32"))
    for cidr, owned in held.cidrs.items():
        if owned.suspected or cidr in under_release:
            free = unleased(state, cidr)
            blocked += free
            releasing += free if cidr in under_release else 0
            continue
        if inherited_s > 0 and state.is_inherited(owned):
            free = unleased(state, cidr)
            resting += free
            soon += free * (inherited_s <= EC2_DELIVERY_S)
            continue
        for address in _used_in(state, cidr):
            rest = state.rests.get(address)
            if rest is None or address in state.by_address:
                continue
            left_s = state.rest_left_s(rest, now, cooldown_s)
            if left_s > 0:
                resting += 1
                soon += left_s <= EC2_DELIVERY_S
            elif rest.is_standing:
                blocked += 1
    busy = busy_with(state, held)
    usable = is_usable(held, under_removal)
    is_coming = (
        not usable
        and not held.is_retiring
        and not held.suspected
        and held.facts.type == "interface"
        and (
            held.phase == "detached"
            or (not held.is_link_ready and without_link_s(state, held, now) < LINK_PATIENCE_S)
        )
    )
    is_hopeless = (
        held.origin == "created"
        and held.phase == "attached"
        and without_link_s(state, held, now) >= LINK_HOPELESS_S
    )
    pending = sum(
        intent.intended.count
        for intent in state.intents_on(held.facts.id)
        if intent.intended.kind == "assign"
    )
    in_order = not busy - SIDE_KINDS
    return EniView(
        id=held.facts.id,
        device=held.card * 1000 + held.device,
        is_primary=held.is_primary,
        is_usable=usable,
        is_coming=is_coming,
        is_excluded=is_hopeless,
        is_busy=bool(busy & set(ADDRESS_KINDS)),
        is_leaving=held.is_retiring or "detach" in busy or "delete" in busy,
        can_grow=in_order and usable,
        can_shrink=in_order
        and (usable or is_hopeless)
        and held.facts.type == "interface"
        and not held.is_primary,
        slots=0 if held.facts.type == "trunk" else slots,
        owned=len(held.cidrs) + slots_saved,
        slots_saved=slots_saved,
        pending=pending,
        assigned=held.lease_count,
        resting=resting,
        resting_soon=soon,
        blocked=blocked,
        releasing=releasing,
        rested=rested_cidrs(state, held, now, cooldown_s) if in_order else (),
        age_s=state.elapsed_s(held.adopted, now),
        subnet=held.facts.subnet,
    )
