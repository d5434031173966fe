"""Choosing what is given back: whole ENIs first, then single CIDRs.

Nothing here can name an address under a lease: a release takes a :class:`RestedCidr`, only this module makes
one, and only out of what a view lists as rested. The writer checks it again when it intends the release.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from vpccni.errors import InvariantBrokenError
from vpccni.model import Cidr, EniId, cidr_size
from vpccni.planner.sizing import (
    EniView,
    PoolPolicy,
    Tally,
    cidrs_of,
    free_now_of,
    room_of,
    stays_warm,
    sum_room,
)


class RestedCidr(msgspec.Struct, frozen=True):
    """A CIDR without a lease and past its cooldown, at the time of the plan. Made by :func:`rested` alone."""

    eni: EniId
    cidr: Cidr


class ReleaseCidrs(msgspec.Struct, frozen=True):
    """Unassign these CIDRs from the ENI (EC2 ``UnassignPrivateIpAddresses``)."""

    eni: EniId
    cidrs: tuple[RestedCidr, ...]


class RemoveEni(msgspec.Struct, frozen=True):
    """Detach and delete the ENI; ``cidrs`` go with it and are all that it holds."""

    eni: EniId
    cidrs: tuple[RestedCidr, ...] = ()


def rested(eni: EniView, cidr: Cidr) -> RestedCidr:
    """The proof that a CIDR may be given back.

    Raises:
        InvariantBrokenError: the view does not list it as rested. Nothing was changed.
    """
    if cidr not in eni.rested:
        raise InvariantBrokenError(f"{cidr} of {eni.id} is not rested and cannot be released")
    return RestedCidr(eni.id, cidr)


def _all_rested(eni: EniView) -> tuple[RestedCidr, ...]:
    """Every CIDR that may be given back."""
    return tuple(RestedCidr(eni.id, cidr) for cidr in eni.rested)


def _first_rested(eni: EniView, count: int) -> tuple[RestedCidr, ...]:
    """The CIDRs to give back first, of at most ``count`` addresses; a prefix goes whole or not at all."""
    found: list[RestedCidr] = []
    for cidr in eni.rested:
        if count <= 0:
            break
        if cidr_size(cidr) <= count:
            count -= cidr_size(cidr)
            found.append(RestedCidr(eni.id, cidr))
    return tuple(found)


def is_removable(eni: EniView, policy: PoolPolicy) -> bool:
    """Whether the ENI itself could go: ours to remove, old enough, and all that it holds has rested."""
    return (
        eni.can_shrink
        and not eni.is_primary
        and not eni.is_coming
        and not eni.is_leaving
        and (eni.is_usable or eni.is_excluded)
        and eni.age_s >= policy.min_eni_age_s
        and eni.assigned == eni.resting == eni.blocked == eni.pending == 0
        and len(eni.rested) == cidrs_of(eni)
    )


def removals(
    enis: Sequence[EniView], policy: PoolPolicy, tally: Tally, waiting: int, *, can_assign: bool
) -> list[EniView]:
    """Every ENI that can go at once without the pool missing it.

    The emptiest first, of equals the one with the highest device index. ``can_assign`` tells whether the ENIs
    that stay may grow.
    """
    free_now, total_now = tally.free_now - waiting, tally.total_now
    growing = [eni for eni in enis if can_assign and eni.is_usable and eni.can_grow]
    room = sum_room(growing)
    gone: list[EniView] = []
    candidates = [eni for eni in enis if is_removable(eni, policy)]
    for eni in sorted(candidates, key=lambda eni: (eni.owned, -eni.device, eni.id)):
        if not eni.is_usable:
            gone.append(eni)
            continue
        free_after = free_now - free_now_of(eni)
        total_after = total_now - eni.owned
        room_after = room - (room_of(eni) if eni.can_grow and can_assign else 0)
        if stays_warm(free_now=free_after, total_now=total_after, room=room_after, policy=policy):
            free_now, total_now, room = free_after, total_after, room_after
            gone.append(eni)
    return gone


def releases(
    enis: Sequence[EniView], policy: PoolPolicy, tally: Tally, waiting: int, gone: Collection[EniView]
) -> list[ReleaseCidrs]:
    """Which CIDRs to give back beside the ENIs that go.

    With IP targets whatever is beyond them, from the ENI that is nearest to being empty; ENI targets are
    met in whole ENIs only. Of an excluded ENI everything that has rested.
    """
    over = 0
    if policy.has_ip_targets:
        free_now = tally.free_now - waiting - sum(free_now_of(eni) for eni in gone)
        total_now = tally.total_now - sum(eni.owned for eni in gone if eni.is_usable)
        over = max(min(free_now - policy.free_target, total_now - policy.minimum_ip_target), 0)
    gone_ids = {eni.id for eni in gone}
    steps: list[ReleaseCidrs] = []
    for eni in sorted(enis, key=_emptiest_first):
        if eni.id in gone_ids or eni.is_leaving or eni.pending:
            continue
        if eni.is_usable:
            cidrs = _first_rested(eni, over)
            over -= sum(cidr_size(rested.cidr) for rested in cidrs)
        elif eni.is_excluded:
            cidrs = _all_rested(eni)
        else:
            continue
        if cidrs:
            steps.append(ReleaseCidrs(eni.id, cidrs))
    return steps


def removal_step(eni: EniView) -> RemoveEni:
    """The step that removes an ENI, with the proof that what it holds has rested."""
    return RemoveEni(eni.id, _all_rested(eni))


def _emptiest_first(eni: EniView) -> tuple[int, bool, int, EniId]:
    return (eni.assigned + eni.resting + eni.blocked, eni.is_primary, -eni.device, eni.id)
