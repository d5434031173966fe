"""The vectors of the original's secondary-IP mode: the same pool for the same settings and pods.

Where the original harms users (S28: an ENI that comes and goes for ever), the better rule is the vector.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.unit.planner.simulated_pool import SimulatedPool, eni
from vpccni.planner.release import removals
from vpccni.planner.sizing import size_of, tally_of
from vpccni.planner.warm_pool import PoolPolicy, RemoveEni


def policy(slots: int, enis: int, pods: int, **fields) -> PoolPolicy:
    return PoolPolicy(slots_per_eni=slots, enis_max=enis, max_pods=pods, **fields)


def t3_small(**fields) -> PoolPolicy:
    return policy(3, 3, 11, **fields)


def p3dn(**fields) -> PoolPolicy:
    return policy(49, 15, 737, **fields)


def m5_large(pods: int = 29, **fields) -> PoolPolicy:
    return policy(9, 3, pods, **fields)


def m5_xlarge(enis: int = 4, pods: int = 58, **fields) -> PoolPolicy:
    return policy(14, enis, pods, **fields)


def m4_4xlarge(**fields) -> PoolPolicy:
    return policy(29, 8, 234, **fields)


class Steady(NamedTuple):
    """One row: settings, pods, CIDRs per ENI, free addresses. Custom networking: a primary without slots."""

    id: str
    policy: PoolPolicy
    pods: int
    owned: list[int]
    free: int
    deleted: int = 0
    primary_slots: int | None = None


def ip(warm: int, minimum: int = 0) -> dict[str, int]:
    return {"warm_ip_target": warm, "minimum_ip_target": minimum}


def warm(enis: int) -> dict[str, int]:
    return {"warm_eni_target": enis}


STEADY = [
    Steady("S01", t3_small(**warm(1)), 0, [3], 3),
    Steady("S02", t3_small(**warm(1)), 5, [3, 3, 3], 4),
    Steady("S03", t3_small(**warm(1)), 9, [3, 3, 3], 0),
    Steady("S04", t3_small(**ip(1, 1)), 0, [1], 1),
    Steady("S05", t3_small(**ip(1, 1)), 5, [3, 3], 1),
    Steady("S06", t3_small(**ip(1, 1)), 9, [3, 3, 3], 0),
    Steady("S07", t3_small(**ip(2, 5)), 0, [3, 2], 5),
    Steady("S08", t3_small(**ip(2, 5)), 5, [3, 3, 1], 2),
    Steady("S09", t3_small(**ip(2, 5)), 9, [3, 3, 3], 0),
    Steady("S10", p3dn(**warm(1)), 0, [49], 49),
    Steady("S11", p3dn(**warm(1)), 3, [49] * 2, 95),
    Steady("S12", p3dn(**warm(1)), 95, [49] * 3, 52),
    Steady("S13", p3dn(**ip(5, 10)), 0, [10], 10),
    Steady("S14", p3dn(**ip(5, 10)), 7, [12], 5),
    Steady("S15", p3dn(**ip(5, 10)), 15, [20], 5),
    Steady("S16", p3dn(**ip(5, 10)), 45, [49, 1], 5),
    Steady("S17", m5_xlarge(**warm(1)), 0, [14], 14),
    Steady("S18", m5_xlarge(**warm(1)), 1, [14] * 2, 27),
    Steady("S19", m5_xlarge(**warm(1)), 14, [14] * 2, 14),
    Steady("S20", m5_xlarge(**warm(1)), 15, [14] * 3, 27),
    Steady("S21", m5_xlarge(**warm(1)), 29, [14] * 4, 27),
    Steady("S22", m5_xlarge(**warm(1)), 56, [14] * 4, 0),
    Steady("S23", m5_xlarge(**warm(2)), 0, [14] * 2, 28),
    Steady("S24", m5_xlarge(**warm(3)), 0, [14] * 3, 42),
    Steady("S25", m5_xlarge(enis=2, **warm(3)), 0, [14] * 2, 28),
    Steady("S26", m5_xlarge(enis=2, **warm(1)), 15, [14] * 2, 13),
    Steady("S27", m5_xlarge(**warm(0)), 13, [14], 1),
    Steady("S28-better-rule", m5_xlarge(**warm(0)), 14, [14] * 2, 14),
    Steady("S29", m5_xlarge(**ip(5)), 0, [5], 5),
    Steady("S30", m5_xlarge(**ip(5)), 10, [14, 1], 5),
    Steady("S31", m5_xlarge(**ip(5)), 40, [14, 14, 14, 3], 5),
    Steady("S32", m5_xlarge(**ip(2, 12)), 0, [12], 12),
    Steady("S33", m5_xlarge(**ip(2, 12)), 10, [12], 2),
    Steady("S34", m5_xlarge(**ip(2, 12)), 14, [14, 2], 2),
    Steady("S35", m5_xlarge(**ip(2, 12)), 40, [14] * 3, 2),
    Steady("S36", m5_xlarge(**ip(0, 10)), 10, [10], 0),
    Steady("S37", m5_xlarge(**ip(5, 30)), 0, [14, 14, 2], 30),
    Steady("S38", m4_4xlarge(**ip(2, 0)), 0, [2], 2),
    Steady("S38-small-enis", t3_small(**ip(2, 0)), 0, [2], 2),
    Steady("S39", m4_4xlarge(**ip(16, 0)), 0, [16], 16),
    Steady("S39-small-enis", m5_large(**ip(16, 0)), 0, [9, 7], 16),
    Steady("S40", m4_4xlarge(**ip(0, 16)), 0, [16], 16),
    Steady("S40-small-enis", m5_large(**ip(0, 16)), 0, [9, 7], 16),
    Steady("S41", m4_4xlarge(**ip(6, 10)), 0, [10], 10),
    Steady("S42", m5_large(pods=8, **warm(1)), 5, [9], 4),
    Steady("S43", m5_xlarge(reserved_slots=1, **warm(1)), 29, [14] * 3, 13),
    Steady("S44", m5_xlarge(pods=44, **warm(1)), 0, [0, 14], 14, primary_slots=0),
    Steady("S45", m5_xlarge(pods=44, **warm(1)), 1, [0, 14, 14], 27, primary_slots=0),
    Steady("S46", m5_xlarge(pods=44, **warm(1)), 29, [0, 14, 14, 14], 13, primary_slots=0),
    Steady("S47", m5_xlarge(**warm(1)), 40, [14] * 2, 27, deleted=39),
    Steady("S48", m5_xlarge(**ip(5)), 40, [6], 5, deleted=39),
]


@pytest.mark.parametrize("row", STEADY, ids=lambda row: row.id)
def test_the_pool_settles_as_the_vector_says(row):
    pool = SimulatedPool(row.policy, row.primary_slots)
    for _ in range(row.pods):
        pool.add()
    for _ in range(row.deleted):
        pool.delete()
    pool.settle()
    assert pool.refused == 0
    assert (pool.owned, pool.free) == (row.owned, row.free)


@pytest.mark.parametrize(
    ("slots", "enis_max", "warm_enis"), [(14, 4, 1), (14, 4, 2), (9, 3, 1), (3, 3, 1), (1, 2, 1)]
)
def test_the_number_of_enis_follows_the_closed_form(slots, enis_max, warm_enis):
    rule = policy(slots, enis_max, 500, **warm(warm_enis))
    pool = SimulatedPool(rule)
    for pods in range(slots * enis_max + 1):
        wanted = -(-(pods + warm_enis * slots) // slots)
        assert len(pool.enis) == min(enis_max, max(1, wanted)), pods
        pool.add()


class Decision(NamedTuple):
    """One row: slots, targets, max pods, owned, used, what the sizing says (None: does not matter)."""

    id: str
    slots: int
    warm_enis: int
    warm_ips: int
    minimum: int
    max_pods: int
    total: int
    used: int
    is_low: bool
    short: int | None = None
    over: int | None = None


DECISIONS = [
    Decision("D01", 14, 1, 0, 0, 500, 0, 0, True),
    Decision("D02", 14, 0, 0, 0, 500, 0, 0, True),
    Decision("D03", 14, 0, 3, 0, 500, 0, 0, True, 3, 0),
    Decision("D04", 3, 1, 1, 0, 500, 3, 0, False, 0, 2),
    Decision("D05", 3, 1, 0, 0, 500, 3, 1, True),
    Decision("D06", 3, 0, 0, 0, 500, 3, 1, False),
    Decision("D07", 3, 1, 0, 0, 500, 3, 3, True),
    Decision("D08", 3, 0, 0, 0, 500, 3, 3, True),
    Decision("D09", 3, 0, 5, 0, 3, 3, 3, False, 5, 0),
    Decision("D10", 14, 1, 5, 0, 500, 2, 0, True, 3, 0),
    Decision("D11", 14, 1, 5, 0, 500, 5, 0, False, 0, 0),
    Decision("D12", 14, 1, 1, 0, 500, 4, 2, False, 0, 1),
]


@pytest.mark.parametrize("row", DECISIONS, ids=lambda row: row.id)
def test_one_state_is_sized_as_the_vector_says(row):
    rule = policy(row.slots, 8, row.max_pods, **warm(row.warm_enis), **ip(row.warm_ips, row.minimum))
    size = size_of(tally_of([eni(0, row.total, row.used, slots=row.slots)], rule), rule, waiting=0)
    assert size.is_low is row.is_low
    assert row.short in (None, size.short)
    assert row.over in (None, size.over)


def test_excluded_enis_do_not_count_as_warm():
    rule = policy(10, 8, 100, **warm(2))
    excluded = eni(0, 10, slots=10, is_usable=False, is_excluded=True)
    second, third = eni(1, 10, slots=10), eni(2, 10, slots=10)
    lows = [
        size_of(tally_of(enis, rule), rule, waiting=0).is_low
        for enis in ([excluded], [excluded, second], [excluded, second, third])
    ]
    assert lows == [True, True, False]


def removable(enis, warm_ips: int, minimum: int) -> list[str]:
    rule = policy(10, 8, 500, **ip(warm_ips, minimum))
    gone = removals(enis, rule, tally_of(enis, rule), 0, can_assign=True)
    return [RemoveEni(view.id).eni for view in gone]


def test_enis_are_removed_in_the_sequence_of_the_original():
    first, second, third = eni(0, 2, 2, slots=10), eni(1, 2, slots=10), eni(2, 1, slots=10)
    assert removable([first, second, third], 3, 1) == []
    assert removable([first, second, third], 1, 5) == []
    assert removable([first, second, third], 2, 4) == ["eni-2"]
    assert removable([first, second], 0, 3) == []
    assert removable([first, second], 0, 2) == ["eni-1"]
    trunk, efa = eni(3, 1, slots=1, can_shrink=False), eni(4, 1, slots=10, can_shrink=False)
    assert removable([first, trunk, efa], 0, 2) == []
    assert removable([first, trunk, efa, eni(5, 0, slots=10)], 0, 2) == ["eni-5"]
