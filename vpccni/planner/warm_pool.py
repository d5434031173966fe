"""The plan: how the pool gets from what it is to what the policy wants, whole and at once.

Theory of operation. ADDs that wait count as pods, so that they are demand like any other. What is missing is
planned completely: first the room of ENIs that are there (the fullest first), then as many new ENIs as it
takes, side by side. Everything already under way is supply and is not asked for twice.

Growth ends at the instance's limits, and at max pods: once the pool owns as many addresses as the node may
run pods, the targets no longer count. ADDs that wait still do, as long as the addresses that a pod could use
(neither resting nor blocked) are fewer than max pods; otherwise short-lived pods on a small node would wait
for cooldowns that EC2 could spare them.

Shrinking counts only what is in hand, and removes an ENI only if the pool would not want it back after one
more ADD. Therefore no plan follows its inverse, and a plan is empty when nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

import msgspec

from vpccni.errors import Reason
from vpccni.model import EniId
from vpccni.planner.constraints import Constraints, HeldEni
from vpccni.planner.release import (
    ReleaseCidrs,
    RemoveEni,
    RestedCidr,
    releases,
    removal_step,
    removals,
)
from vpccni.planner.sizing import (
    EniView,
    PoolPolicy,
    Size,
    Tally,
    is_room_awaited,
    is_serving,
    places_left,
    room_of,
    size_of,
    sum_room,
    tally_of,
)

__all__ = [
    "Constraints",
    "CreateEni",
    "Demand",
    "EniView",
    "GrowEni",
    "Plan",
    "PoolPolicy",
    "Prospect",
    "ReleaseCidrs",
    "RemoveEni",
    "RestedCidr",
    "Step",
    "plan",
    "prospect",
    "step_text",
]

PODS_WAIT: Final = "Pods wait for an address."
BELOW_TARGET: Final = "The pool has fewer free addresses than its targets ask for."
ABOVE_TARGET: Final = "The pool has more free addresses than its targets ask for."
EXCLUDED_GOES: Final = "An ENI that is excluded from pod addresses is given back."
TARGETS_MET: Final = "The targets are met."
UNDER_WAY: Final = "What is under way will meet the targets."
MAX_PODS: Final = "The node owns as many addresses as it may run pods."
INSTANCE_FULL: Final = "Every ENI and every address slot of the instance is in use."
GROWTH_HELD: Final = "The pool should grow, and growth is held back."
SHRINK_HELD: Final = "The pool should shrink, and that is held back."
SURPLUS_IN_USE: Final = "The pool should shrink, and nothing of the surplus can be given back yet."
CHANGES_HELD: Final = "Nothing may be changed."


class Demand(msgspec.Struct, frozen=True):
    """What pods ask for: ADDs that wait for an address right now."""

    waiting: int = 0


class GrowEni(msgspec.Struct, frozen=True):
    """Assign ``count`` more addresses to an ENI (EC2 ``AssignPrivateIpAddresses``)."""

    eni: EniId
    count: int


class CreateEni(msgspec.Struct, frozen=True):
    """Create and attach one ENI with ``count`` addresses beside its own."""

    count: int


Step = GrowEni | CreateEni | ReleaseCidrs | RemoveEni


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, all of it independent and to be done side by side.

    Attributes:
        steps: The changes; empty when nothing is to be done.
        reason: Why these, or why none: one of a few sentences without figures, so that it changes only when
            the situation does.
        constraints: What held the plan back: ``field:code`` for each given constraint, and the limits that
            were met (``max_pods_reached``, ``instance_full``).
        short: Addresses missing to the targets, those for waiting ADDs included.
        over: Addresses beyond the targets.
    """

    steps: tuple[Step, ...]
    reason: str
    constraints: tuple[str, ...]
    short: int
    over: int


class Prospect(msgspec.Struct, frozen=True):
    """Whether waiting makes sense for an ADD, and if not, why.

    Attributes:
        possible: Something that exists or can be planned may satisfy it. The caller bounds the wait.
        reason: The refusal's code; ``no_address``, and of no meaning, where waiting makes sense.
        detail: More about the refusal, for people.
    """

    possible: bool
    reason: Reason = Reason.NO_ADDRESS
    detail: str = ""


def plan(enis: Sequence[EniView], policy: PoolPolicy, demand: Demand, constraints: Constraints) -> Plan:
    """What to change so that waiting ADDs are served and the targets are met.

    Args:
        enis: Every managed ENI of the card, coming and leaving ones included, in any order.
        policy: Targets and limits.
        demand: ADDs that wait.
        constraints: What must not be done now.

    Returns:
        The whole way there, as far as limits and constraints allow; the same for the same arguments.
    """
    tally = tally_of(enis, policy)
    size = size_of(tally, policy, demand.waiting)
    held = constraints.texts()
    if constraints.no_change:
        return Plan(steps=(), reason=CHANGES_HELD, constraints=held, short=size.short, over=size.over)
    enis = _with_held(enis, constraints)
    growth = _Growth(tally, size, policy, constraints)
    growth.fill(enis)
    growth.create(enis)
    shrink: list[ReleaseCidrs | RemoveEni] = []
    if not constraints.shrink_blocked:
        shrink = _shrink(enis, policy, tally, demand.waiting, constraints)
    if growth.steps or shrink:
        reason = _reason_to_act(size, growth, shrink, enis)
    else:
        reason = _reason_to_hold(tally, size, growth, policy, constraints, demand.waiting)
    return Plan(
        steps=(*growth.steps, *shrink),
        reason=reason,
        constraints=held + growth.limits,
        short=size.short,
        over=size.over,
    )


def prospect(
    enis: Sequence[EniView], policy: PoolPolicy, constraints: Constraints, ahead: int = 0
) -> Prospect:
    """Whether an ADD that finds no free address should wait.

    Args:
        enis: As for :func:`plan`.
        policy: Targets and limits.
        constraints: What must not be done now.
        ahead: ADDs that wait already and will be served before this one.

    Returns:
        Possible if enough addresses are free, resting, being assigned or coming, or enough can still be
        brought, also in place of those that are being given back. Refused with the first of: what forbids
        all changes, max pods, what blocks the room that there is, the full instance. An ADD beyond max pods
        is refused even if a whole ENI brings one for it.
    """
    tally = tally_of(enis, policy)
    stock = sum(
        max(eni.owned + eni.pending - eni.assigned - eni.blocked, 0) for eni in enis if is_serving(eni)
    )
    missing = ahead + 1 - stock
    if missing <= 0:
        return Prospect(possible=True)
    if constraints.no_change:
        return Prospect(possible=False, reason=_code(constraints.no_change))
    # What is under release leaves a slot, or stays ours: an ADD can have either.
    releasing = sum(eni.releasing for eni in enis if is_serving(eni))
    held, detail = _held_room(enis, constraints)
    on_enis = sum_room(enis) - sum(held.values()) + releasing
    staying = sum(not eni.is_leaving for eni in enis)
    on_new = places_left(policy, staying) * policy.slots_per_eni
    short = constraints.shortage("create", policy.subnet)
    create_blocked, create_detail = constraints.create_blocked, constraints.create_detail
    if not create_blocked and short is not None and short.left <= 0:
        create_blocked, create_detail = str(Reason.SUBNET_EXHAUSTED), short.detail
    brought = (0 if constraints.assign_blocked else on_enis) + (0 if create_blocked else on_new)
    pods_left = policy.max_pods - (tally.total - tally.unready + tally.pods_elsewhere)
    if missing <= min(brought, pods_left):
        return Prospect(possible=True)
    if missing > pods_left:
        return Prospect(possible=False, reason=Reason.MAX_PODS_REACHED)
    if constraints.assign_blocked and on_enis:
        return Prospect(
            possible=False, reason=_code(constraints.assign_blocked), detail=constraints.assign_detail
        )
    if held and not constraints.assign_blocked:
        return Prospect(possible=False, reason=_code(next(iter(held))), detail=detail)
    if create_blocked and on_new:
        return Prospect(possible=False, reason=_code(create_blocked), detail=create_detail)
    return Prospect(possible=False, reason=Reason.INSTANCE_FULL)


def step_text(step: Step) -> str:
    """One short text for a step, as ``PlanMade.steps`` keeps it."""
    match step:
        case GrowEni(eni=eni, count=count):
            return f"grow {eni} by {count}"
        case CreateEni(count=count):
            return f"create an ENI with {count}"
        case ReleaseCidrs(eni=eni, cidrs=cidrs):
            return f"release {len(cidrs)} of {eni}"
        case RemoveEni(eni=eni):
            return f"remove {eni}"
        case _:
            assert_never(step)


class _Growth:
    """Growth steps in the making. Counts what each step will bring, and notes each limit that it meets."""

    def __init__(self, tally: Tally, size: Size, policy: PoolPolicy, constraints: Constraints) -> None:
        self.steps: list[Step] = []
        self.limits: tuple[str, ...] = ()
        self._policy = policy
        self._constraints = constraints
        self._places = tally.eni_places
        self._total = tally.total + tally.pods_elsewhere
        self._total_ready = self._total - tally.unready
        self._short = size.short
        self._urgent = size.urgent
        self._left = {one.subnet: one.left for one in constraints.shortages if one.call == "assign"}

    def fill(self, enis: Sequence[EniView]) -> None:
        """Use the room of ENIs that are there, the fullest first."""
        if self._constraints.assign_blocked or self._wanted() <= 0:
            return
        able = [eni for eni in enis if eni.is_usable and eni.can_grow and room_of(eni) > 0]
        for eni in sorted(able, key=lambda eni: (-eni.owned - eni.pending, eni.device, eni.id)):
            wanted = self._wanted()
            if wanted <= 0:
                return
            count = self._chunk(wanted, room_of(eni))
            if eni.subnet in self._left:
                count = min(count, self._left[eni.subnet])
                self._left[eni.subnet] = 0  # One call at a time, until it is known what it brings.
            if count > 0:
                self._add(GrowEni(eni.id, count), count)
                if self._constraints.assign_once:
                    return

    def create(self, enis: Sequence[EniView]) -> None:
        """Plan new ENIs for what room that is there, or opens shortly, does not hold.

        Where assigning is blocked, the targets wait for it to be allowed again; ADDs that wait do not.
        """
        if self._wanted() <= 0:
            self._note_max_pods()
            return
        constraints, subnet = self._constraints, self._policy.subnet
        if self.steps and constraints.shortage("assign", subnet) is not None:
            return  # What that call brings tells what the subnet still has.
        awaited, held = self._waited_for(enis)
        short = constraints.shortage("create", subnet)
        most = self._policy.slots_per_eni if short is None else min(short.left, self._policy.slots_per_eni)
        while (wanted := self._wanted(awaited, held)) > 0:
            if self._places == 0:
                self.limits += (str(Reason.INSTANCE_FULL),)
                return
            if constraints.create_blocked or most <= 0:
                return
            self._places -= 1
            self._add(CreateEni(count := self._chunk(wanted, most)), count)
            if constraints.create_once or short is not None:
                break
        self._note_max_pods()

    def _waited_for(self, enis: Sequence[EniView]) -> tuple[int, int]:
        """Room for which ADDs and targets wait, and room for which only the targets wait."""
        if self._constraints.assign_blocked:
            return 0, sum_room(enis)
        awaited = sum_room(eni for eni in enis if is_room_awaited(eni))
        held = sum(_held_room(enis, self._constraints, is_short_held=True)[0].values())
        grown = sum(step.count for step in self.steps if isinstance(step, GrowEni))
        if self._constraints.assign_once and grown:
            # The trial tells whether the rest of the room can be had.
            awaited += max(sum_room(eni for eni in enis if eni.can_grow) - grown, 0)
        return awaited, held

    def _wanted(self, awaited: int = 0, held: int = 0) -> int:
        """Addresses still to be planned; 0 or less when there is nothing to do or max pods ends it."""
        if self._total_ready >= self._policy.max_pods:
            return 0
        short = self._short if self._total < self._policy.max_pods else self._urgent
        return max(short - awaited - held, self._urgent - awaited)

    def _chunk(self, wanted: int, room: int) -> int:
        """With ENI targets an ENI is always filled; with IP targets it gets what is missing."""
        return min(wanted, room) if self._policy.has_ip_targets else room

    def _add(self, step: Step, count: int) -> None:
        self.steps.append(step)
        self._total += count
        self._total_ready += count
        self._short -= count
        self._urgent -= count

    def _note_max_pods(self) -> None:
        if self._short > 0 and self._total >= self._policy.max_pods:
            self.limits += (str(Reason.MAX_PODS_REACHED),)


def _with_held(enis: Sequence[EniView], constraints: Constraints) -> Sequence[EniView]:
    """The views, without what EC2 has refused for single ENIs."""
    if not constraints.enis:
        return enis
    held = {one.eni: one for one in constraints.enis}
    return [_without(eni, held[eni.id]) if eni.id in held else eni for eni in enis]


def _without(eni: EniView, held: HeldEni) -> EniView:
    if held.growth:
        eni = msgspec.structs.replace(eni, can_grow=False)
    return msgspec.structs.replace(eni, can_shrink=False, rested=()) if held.shrink else eni


def _held_room(
    enis: Sequence[EniView], constraints: Constraints, *, is_short_held: bool = False
) -> tuple[dict[str, int], str]:
    """Room that is there and that EC2 does not fill now, by reason; and what is known of the first.

    With ``is_short_held`` also the room in a subnet that has few addresses left.
    """
    room: dict[str, int] = {}
    details: list[str] = []
    if not constraints.enis and not constraints.shortages:
        return room, ""
    refused = {one.eni: one for one in constraints.enis if one.growth}
    short = {
        one.subnet: one
        for one in constraints.shortages
        if one.call == "assign" and (is_short_held or one.left <= 0)
    }
    for eni in enis:
        here = room_of(eni)
        if not here or is_room_awaited(eni):
            continue
        if eni.id in refused:
            reason, detail = refused[eni.id].growth, refused[eni.id].detail
        elif eni.subnet in short:
            reason, detail = str(Reason.SUBNET_EXHAUSTED), short[eni.subnet].detail
        else:
            continue
        room[reason] = room.get(reason, 0) + here
        details.append(detail)
    return room, details[0] if details else ""


def _shrink(
    enis: Sequence[EniView], policy: PoolPolicy, tally: Tally, waiting: int, constraints: Constraints
) -> list[ReleaseCidrs | RemoveEni]:
    """Every step that gives something back."""
    gone: list[EniView] = []
    if not constraints.remove_blocked:
        gone = removals(enis, policy, tally, waiting, can_assign=not constraints.assign_blocked)
    kept = [] if constraints.release_blocked else releases(enis, policy, tally, waiting, gone)
    return [*map(removal_step, gone), *kept]


def _reason_to_act(
    size: Size, growth: _Growth, shrink: Sequence[ReleaseCidrs | RemoveEni], enis: Sequence[EniView]
) -> str:
    """The sentence for a plan with steps."""
    if growth.steps:
        return PODS_WAIT if size.urgent else BELOW_TARGET
    usable = {eni.id for eni in enis if eni.is_usable}
    if any(step.eni in usable for step in shrink):
        return ABOVE_TARGET
    return EXCLUDED_GOES


def _reason_to_hold(
    tally: Tally, size: Size, growth: _Growth, policy: PoolPolicy, constraints: Constraints, waiting: int
) -> str:
    """The sentence for a plan without steps."""
    if Reason.MAX_PODS_REACHED in growth.limits:
        return MAX_PODS
    if Reason.INSTANCE_FULL in growth.limits:
        return INSTANCE_FULL
    if size.short:
        return GROWTH_HELD if constraints.is_growth_held else UNDER_WAY
    if size.over:
        is_held = constraints.shrink_blocked or constraints.release_blocked or constraints.remove_blocked
        return SHRINK_HELD if is_held else SURPLUS_IN_USE
    in_hand = tally.free_now - waiting >= policy.free_target and (
        not policy.has_ip_targets or tally.total_now >= policy.minimum_ip_target
    )
    return TARGETS_MET if in_hand else UNDER_WAY


def _code(text: str) -> Reason:
    """The reason code of a constraint; ``no_address`` for one that is not a reason to refuse an ADD."""
    try:
        return Reason(text)
    except ValueError:
        return Reason.NO_ADDRESS
