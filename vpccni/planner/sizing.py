"""Counting the pool and comparing it with its targets: integer arithmetic, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from vpccni.model import Cidr, EniId, SubnetId


class EniView(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner sees of one ENI that is, or soon will be, attached.

    ENIs that are not ours to manage are left out; they only count in ``PoolPolicy.unmanaged_enis``. All counts are of
    addresses, but for slots: ``owned`` is the sum of ``assigned``, ``resting``, ``blocked`` and what is free.

    Attributes:
        id: The ENI; a name of the caller's choice while EC2 has not yet given one.
        device: Device index; orders ENIs that are otherwise alike.
        is_primary: Never removed; its CIDRs are given back like those of any other.
        is_usable: Its free addresses can be assigned to pods: link ready, not suspected, not excluded, not
            being detached.
        is_coming: Being created or attached, or its link is awaited: ``owned`` counts as supply, as it will
            be.
        is_excluded: Not for pod addresses any more (and so not usable): given back as soon as it is empty,
            whatever the targets say.
        is_busy: ``can_grow`` is false only because a change of its addresses is under way; its room is waited
            for instead of creating another ENI. Implied by ``pending`` and by ``is_coming``.
        is_leaving: Being detached or deleted: its place will be free soon.
        can_grow: An assign may be intended now (no open intent on it, no trunk, breaker closed).
        can_shrink: The ENI itself may be removed now (no open intent on it, no trunk, no EFA). What of its
            CIDRs may be given back says ``rested``.
        slots: CIDRs that it may hold beside its own address; 0 for a trunk and an unusable primary.
        owned: Addresses that it holds, suspected ones included.
        slots_saved: Addresses of ``owned`` that need no slot of their own: 15 for each /28, which takes one slot.
        pending: Addresses that an open intent is assigning to it, each with a slot.
        assigned: Addresses under an open lease, quarantined ones included.
        resting: Addresses whose cooldown is not over.
        resting_soon: Of these, the ones whose cooldown ends before EC2 could deliver another address.
        blocked: Addresses that are neither assignable nor resting: suspected, veth still standing, under
            release.
        releasing: Of these, the ones under release: their slots hold others soon, or they are free again.
        rested: Free, past their cooldown and not blocked, in the order in which to give them back; empty
            while an open intent on the ENI forbids releases.
        age_s: Seconds since it was attached.
        subnet: Where its addresses come from.
    """

    id: EniId
    device: int
    is_primary: bool
    is_usable: bool
    is_coming: bool = False
    is_excluded: bool = False
    is_busy: bool = False
    is_leaving: bool = False
    can_grow: bool = True
    can_shrink: bool = True
    slots: int
    owned: int
    slots_saved: int = 0
    pending: int = 0
    assigned: int = 0
    resting: int = 0
    resting_soon: int = 0
    blocked: int = 0
    releasing: int = 0
    rested: tuple[Cidr, ...] = ()
    age_s: float = 1e9
    subnet: SubnetId = SubnetId("")


class PoolPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the pool should look like, and what it must not exceed.

    ``warm_ip_target`` or ``minimum_ip_target`` other than 0 switch ``warm_eni_target`` off.

    Attributes:
        warm_eni_target: Whole ENIs' worth of free addresses to keep; 0 keeps one free address.
        warm_ip_target: Free addresses to keep.
        minimum_ip_target: Addresses to own at least, free or not.
        enis_max: ENIs that the instance may have on this card, after ``MAX_ENI``.
        slots_per_eni: Addresses that a new ENI holds beside its own.
        max_pods: Pods that the node may run; ends growth, never shrinks.
        reserved_slots: ENI places kept free for a trunk.
        unmanaged_enis: ENI places that others use.
        min_eni_age_s: A younger ENI is not removed.
        release_interval_s: Least time between two releases of CIDRs. The caller keeps it, by
            ``Constraints.shrink_blocked``: the planner has no clock.
        subnet: Where new ENIs are created.
    """

    warm_eni_target: int = 1
    warm_ip_target: int = 0
    minimum_ip_target: int = 0
    enis_max: int
    slots_per_eni: int
    max_pods: int = 110
    reserved_slots: int = 0
    unmanaged_enis: int = 0
    min_eni_age_s: float = 60.0
    release_interval_s: float = 30.0
    subnet: SubnetId = SubnetId("")

    @property
    def has_ip_targets(self) -> bool:
        """Whether targets count addresses; otherwise they count ENIs."""
        return self.warm_ip_target != 0 or self.minimum_ip_target != 0

    @property
    def free_target(self) -> int:
        """Free addresses to keep beside those in use."""
        if self.has_ip_targets:
            return self.warm_ip_target
        return max(self.slots_per_eni * self.warm_eni_target, 1)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The pool, counted once.

    Attributes:
        total: Addresses owned or on their way, on ENIs that serve pods now or soon.
        supply: Of ``total``, what a pod can have by the time EC2 could bring another address.
        unready: Of ``total``, what is resting for longer or blocked.
        total_now: Addresses owned on ENIs that serve pods now.
        free_now: Of ``total_now``, what can be assigned at once.
        pods_elsewhere: Leases on ENIs that serve no new pod.
        eni_places: ENIs that may still be created.
    """

    total: int
    supply: int
    unready: int
    total_now: int
    free_now: int
    pods_elsewhere: int
    eni_places: int


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The pool compared with its targets. ADDs that wait count as pods.

    Attributes:
        short: Addresses missing to the targets, before any limit.
        urgent: Of ``short``, those missing for ADDs that wait.
        over: Addresses beyond the targets that could be given back if they all were rested; with ENI
            targets in whole ENIs.
        is_low: The pool should grow: something is missing and max pods does not end growth.
    """

    short: int
    urgent: int
    over: int
    is_low: bool


def is_serving(eni: EniView) -> bool:
    """Whether its addresses are for pods, now or soon."""
    return eni.is_usable or eni.is_coming


def room_of(eni: EniView) -> int:
    """Addresses that may still be assigned to it singly, now or when what is under way on it has ended."""
    return max(eni.slots - cidrs_of(eni) - eni.pending, 0) if is_serving(eni) else 0


def cidrs_of(eni: EniView) -> int:
    """How many CIDRs it holds: the slots that they take."""
    return eni.owned - eni.slots_saved


def free_now_of(eni: EniView) -> int:
    """Its addresses that can be assigned to a pod at once."""
    return max(eni.owned - eni.assigned - eni.resting - eni.blocked, 0) if eni.is_usable else 0


def sum_room(enis: Iterable[EniView]) -> int:
    """The room of several ENIs."""
    return sum(room_of(eni) for eni in enis)


def is_room_awaited(eni: EniView) -> bool:
    """Whether its room opens by itself shortly, so that no other ENI should be created for it."""
    return not eni.can_grow and (eni.is_coming or eni.pending > 0 or eni.is_busy)


def places_left(policy: PoolPolicy, present: int) -> int:
    """How many ENIs may still be created beside those present; none where they could hold no pod address."""
    if policy.slots_per_eni <= 0:
        return 0
    return max(policy.enis_max - policy.unmanaged_enis - policy.reserved_slots - present, 0)


def tally_of(enis: Sequence[EniView], policy: PoolPolicy) -> Tally:
    """Count the pool. The order of ``enis`` does not matter."""
    total = supply = unready = total_now = free_now = pods_elsewhere = 0
    for eni in enis:
        if not is_serving(eni):
            pods_elsewhere += eni.assigned
            continue
        count = eni.owned + eni.pending
        late = max(eni.resting - eni.resting_soon, 0) + eni.blocked
        total += count
        unready += late
        supply += max(count - eni.assigned - late, 0)
        if eni.is_usable:
            total_now += eni.owned
            free_now += free_now_of(eni)
    return Tally(
        total=total,
        supply=supply,
        unready=unready,
        total_now=total_now,
        free_now=free_now,
        pods_elsewhere=pods_elsewhere,
        eni_places=places_left(policy, len(enis)),
    )


def size_of(tally: Tally, policy: PoolPolicy, waiting: int) -> Size:
    """Compare the pool with its targets.

    What is missing counts everything under way; what is too much counts only what is in hand, so that an
    address is never given back for one that may not come. Hence one of the two is always 0.
    """
    ahead = tally.supply - waiting
    spare = tally.free_now - waiting - policy.free_target
    if policy.has_ip_targets:
        short = max(policy.free_target - ahead, policy.minimum_ip_target - tally.total, 0)
        over = max(min(spare, tally.total_now - policy.minimum_ip_target), 0)
    else:
        short = max(policy.free_target - ahead, 0)
        over = whole_enis(spare - 1, policy.slots_per_eni)
    urgent = max(-ahead, 0)
    pods_stop = tally.total + tally.pods_elsewhere
    is_low = short > 0 and (
        pods_stop < policy.max_pods or (urgent > 0 and pods_stop - tally.unready < policy.max_pods)
    )
    return Size(short=short, urgent=urgent, over=over, is_low=is_low)


def whole_enis(count: int, slots_per_eni: int) -> int:
    """``count`` rounded down to whole ENIs, in addresses; 0 for a count below one ENI."""
    return max(count, 0) // max(slots_per_eni, 1) * slots_per_eni


def stays_warm(*, free_now: int, total_now: int, room: int, policy: PoolPolicy) -> bool:
    """Whether the pool is content with this much, and one more ADD would not need an ENI back.

    The dead band that keeps a removal from being followed by a creation. ``room`` is what could be assigned
    to the ENIs that stay: with IP targets each ADD lets the pool grow by one address, which is cheap there.
    """
    if not policy.has_ip_targets:
        return free_now - 1 >= policy.free_target
    if free_now < policy.free_target or total_now < policy.minimum_ip_target:
        return False
    return free_now - 1 >= policy.free_target or room >= 1
