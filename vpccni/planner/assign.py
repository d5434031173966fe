"""Which address a sandbox gets: fullest ENI first, never-used then longest-rested address first."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from vpccni.model import (
    POOL_CARD,
    Address,
    Binding,
    Cidr,
    EniId,
    Stamp,
    address_at,
    address_number,
    cidr_span,
)
from vpccni.projections.enis import Eni
from vpccni.projections.state import State

_EXPANDED_MAX: Final = 16
"""A /28 is walked whole; a larger CIDR is walked from its start until a free address is found."""


def is_usable(held: Eni, under_removal: Container[EniId]) -> bool:
    """Whether new sandboxes may be put on an ENI.

    Args:
        held: Any ENI in the books.
        under_removal: What ``State.enis_under_removal`` tells: asked once for all ENIs.
    """
    return (
        held.managed
        and held.card == POOL_CARD
        and held.phase == "attached"
        and held.is_link_ready
        and held.facts.id not in under_removal
        and not held.suspected
        and held.facts.type in ("interface", "efa")
    )


def addresses_in(cidr: Cidr) -> Iterator[Address]:
    """The addresses of a CIDR in ascending order, lazily."""
    if cidr.endswith("/32"):
        yield Address(cidr[:-3])
        return
    first, last = cidr_span(cidr)
    family = 6 if ":" in cidr else 4
    for number in range(first, last + 1):
        yield address_at(number, family)


def choose_address(state: State, now: Stamp, cooldown_s: float) -> Binding | None:
    """The binding that the next sandbox gets, or ``None`` when no address can be assigned.

    Deterministic: the same state and clocks give the same address.
    """
    under_release = state.cidrs_under_release()
    under_removal = state.enis_under_removal()
    usable = [held for held in state.enis.values() if is_usable(held, under_removal)]
    usable.sort(key=lambda held: (-held.lease_count, held.card, held.device, held.facts.id))
    is_inheriting = state.inherited_s(now, cooldown_s) > 0
    for held in usable:
        address = _first_free(state, held, under_release, now, cooldown_s, is_inheriting)
        if address is not None:
            return Binding(
                family=6 if ":" in address else 4,
                address=address,
                eni=held.facts.id,
                card=held.card,
                device=held.device,
                table=held.table,
            )
    return None


def _first_free(
    state: State,
    held: Eni,
    under_release: set[Cidr],
    now: Stamp,
    cooldown_s: float,
    is_inheriting: bool,
) -> Address | None:
    best: tuple[int, int, Address] | None = None
    for cidr, owned in held.cidrs.items():
        if cidr.endswith("/32") and cidr[:-3] in state.by_address:
            continue  # the most of a busy node, told without further ado
        if owned.suspected or cidr in under_release:
            continue
        if is_inheriting and state.is_inherited(owned):
            continue
        for address in addresses_in(cidr):
            if address in state.by_address:
                continue
            rest = state.rests.get(address)
            if rest is None:
                rank = (0, address_number(address), address)
                is_certain = not cidr.endswith("/32")
            elif rest.is_standing or state.rest_left_s(rest, now, cooldown_s) > 0:
                continue
            else:
                rank = (rest.records["ended"].seq, address_number(address), address)
                is_certain = False
            if best is None or rank < best:
                best = rank
            if is_certain and cidr_span(cidr)[1] - cidr_span(cidr)[0] >= _EXPANDED_MAX:
                break
    return best[2] if best else None
