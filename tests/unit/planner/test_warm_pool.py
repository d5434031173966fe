"""The plan: what it does, what holds it back, and what it says of both."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vpccni
from tests.unit.planner.simulated_pool import applied, cidrs_of, eni, rest_all
from vpccni.errors import InvariantBrokenError, Reason
from vpccni.model import Cidr, EniId
from vpccni.planner import warm_pool
from vpccni.planner.release import rested
from vpccni.planner.warm_pool import (
    Constraints,
    CreateEni,
    Demand,
    EniView,
    GrowEni,
    Plan,
    PoolPolicy,
    Prospect,
    ReleaseCidrs,
    RemoveEni,
    RestedCidr,
    plan,
    prospect,
    step_text,
)


def policy(**fields) -> PoolPolicy:
    given = {"slots_per_eni": 14, "enis_max": 4, "max_pods": 500, **fields}
    return msgspec.convert(given, PoolPolicy)


def ips(warm: int, minimum: int = 0, **fields) -> PoolPolicy:
    return policy(warm_ip_target=warm, minimum_ip_target=minimum, **fields)


def planned(enis, rule: PoolPolicy, waiting: int = 0, **held) -> Plan:
    return plan(enis, rule, Demand(waiting), Constraints(**held))


def steps(enis, rule: PoolPolicy, waiting: int = 0, **held):
    return planned(enis, rule, waiting, **held).steps


def coming(device: int, owned: int = 0, **fields) -> EniView:
    flags = {"is_usable": False, "is_coming": True, "can_grow": False, "can_shrink": False, "age_s": 0.0}
    return eni(device, owned, **{**flags, **fields})


def texts(enis, rule: PoolPolicy, waiting: int = 0, **held) -> list[str]:
    return [step_text(step) for step in steps(enis, rule, waiting, **held)]


GROW = EniId("eni-0")


# Prefixes on a node that keeps single addresses: one that was taken over, or whose mode was changed

SINGLE, PREFIX = Cidr("10.0.0.9/32"), Cidr("10.0.0.32/28")


def with_prefix(device: int = 0, assigned: int = 0, singles: int = 0, **fields: Any) -> EniView:
    """An ENI that holds one /28 and some single addresses."""
    given: dict[str, Any] = {"slots_saved": 15, "rested": (PREFIX,), **fields}
    return eni(device, 16 + singles, assigned, **given)


def test_the_free_addresses_of_a_prefix_meet_the_targets():
    assert steps([with_prefix()], ips(5, 10)) == ()
    assert steps([with_prefix(assigned=14, rested=())], ips(5)) == (GrowEni(GROW, 3),)


def test_a_prefix_takes_one_slot():
    full = with_prefix(assigned=16, rested=(), slots=4)
    assert steps([full], policy(slots_per_eni=4), waiting=3) == (GrowEni(GROW, 3), CreateEni(4))


def test_a_prefix_is_given_back_only_when_all_of_it_is_too_much():
    one = with_prefix(assigned=1, singles=2, rested=(PREFIX, SINGLE))
    assert steps([one], ips(16)) == (ReleaseCidrs(GROW, (RestedCidr(GROW, SINGLE),)),)
    two = with_prefix(assigned=1, singles=17, slots=20, rested=(PREFIX, SINGLE))
    assert steps([two], ips(16)) == (ReleaseCidrs(GROW, (RestedCidr(GROW, PREFIX),)),)


def test_an_eni_with_a_prefix_goes_when_all_that_it_holds_has_rested():
    enis = [eni(0, 14, slots=14), eni(1, 14), with_prefix(2)]
    assert texts(enis, policy(warm_eni_target=1)) == ["remove eni-1"]
    enis = [eni(0, 15, slots=15), with_prefix(1)]
    assert texts(enis, policy(warm_eni_target=1)) == ["remove eni-1"]


# Growing


def test_the_whole_deficit_is_planned_at_once():
    made = planned([eni(0, 29, 29, slots=29)], policy(slots_per_eni=29, enis_max=8), waiting=81)
    assert made.steps == (CreateEni(29),) * 4
    assert made.reason == warm_pool.PODS_WAIT
    assert made.short == 110


def test_a_cold_burst_on_a_node_of_110_pods_takes_three_enis_side_by_side():
    rule = policy(slots_per_eni=29, enis_max=8, max_pods=110)
    made = planned([eni(0, 29, 29, slots=29)], rule, waiting=81)
    assert made.steps == (CreateEni(29),) * 3
    assert made.constraints == ("max_pods_reached",)


def test_room_on_present_enis_is_used_first_and_of_the_fullest_first():
    enis = [eni(0, 5, 5), eni(1, 12, 12), eni(2, 5, 5)]
    assert steps(enis, ips(25, enis_max=4)) == (
        GrowEni(EniId("eni-1"), 2),
        GrowEni(EniId("eni-0"), 9),
        GrowEni(EniId("eni-2"), 9),
        CreateEni(5),
    )


def test_no_other_eni_grows_when_the_fullest_has_room_enough():
    assert steps([eni(0, 5, 5), eni(1, 8, 8)], ips(3)) == (GrowEni(EniId("eni-1"), 3),)


def test_with_eni_targets_an_eni_is_always_filled():
    assert steps([eni(0, 13, 13)], policy(warm_eni_target=0), waiting=2) == (
        GrowEni(GROW, 1),
        CreateEni(14),
    )


def test_with_ip_targets_an_eni_gets_what_is_missing():
    assert steps([eni(0, 6, 4)], ips(5)) == (GrowEni(GROW, 3),)


def test_minimum_target_wins_over_a_satisfied_warm_target():
    assert steps([eni(0, 5, 0)], ips(2, 12)) == (GrowEni(GROW, 7),)


def test_a_minimum_target_alone_still_grows_for_an_add_that_waits():
    full = [eni(0, 10, 10)]
    assert steps(full, ips(0, 10)) == ()
    assert steps(full, ips(0, 10), waiting=3) == (GrowEni(GROW, 3),)


def test_an_eni_of_which_ec2_gave_fewer_addresses_is_filled_next():
    rule = policy()
    short_by_five = applied(
        [eni(0, 14, 14)], Plan(steps=(CreateEni(9),), reason="", constraints=(), short=0, over=0)
    )
    enis = [msgspec.structs.replace(view, slots=14) for view in short_by_five]
    assert steps(enis, rule) == (GrowEni(EniId("eni-1"), 5),)


@pytest.mark.parametrize("slots", [0, -1])
def test_no_eni_is_created_that_could_hold_no_address(slots):
    made = planned([eni(0, 0, slots=0)], policy(slots_per_eni=slots), waiting=1)
    assert made.steps == ()
    assert made.reason == warm_pool.INSTANCE_FULL


def test_a_trunk_takes_a_place_and_gets_no_address():
    trunk = eni(1, 0, slots=0, can_grow=False, can_shrink=False)
    assert steps([eni(0, 14, 14), trunk], policy(enis_max=3, warm_eni_target=2)) == (CreateEni(14),)


# Counting supply once


@pytest.mark.parametrize(
    "on_the_way",
    [
        pytest.param([eni(0, 14, 14), coming(1, 14)], id="coming with an ENI"),
        pytest.param([eni(0, 14, 14), coming(1, pending=14)], id="being created"),
        pytest.param([eni(0, 14, 14), eni(1, 0, pending=14, can_grow=False)], id="being assigned"),
        pytest.param([eni(0, 14, 14), eni(1, 14, resting=14, resting_soon=14)], id="soon rested"),
    ],
)
def test_what_is_on_its_way_is_not_asked_for_again(on_the_way):
    made = planned(on_the_way, policy())
    assert made.steps == ()
    assert made.reason == warm_pool.UNDER_WAY
    assert made.short == 0


def test_addresses_that_rest_for_longer_are_no_supply():
    assert steps([eni(0, 14, 0, resting=14)], policy()) == (CreateEni(14),)


def test_blocked_addresses_are_no_supply():
    assert steps([eni(0, 14, 0, blocked=3)], ips(14)) == (CreateEni(3),)


def test_the_room_of_a_coming_eni_is_waited_for_instead_of_creating_another():
    made = planned([eni(0, 14, 14), coming(1, 5)], ips(8))
    assert made.steps == ()
    assert made.reason == warm_pool.UNDER_WAY
    assert made.short == 3
    assert steps([eni(0, 14, 14), coming(1, 5)], ips(16)) == (CreateEni(2),)


@pytest.mark.parametrize("busy", [{"pending": 1}, {"is_busy": True}])
def test_the_room_of_a_busy_eni_is_waited_for_too(busy):
    assert steps([eni(0, 6, 6, can_grow=False, **busy)], ips(5)) == ()


def test_an_eni_that_may_not_grow_for_another_reason_is_not_waited_for():
    assert steps([eni(0, 6, 6, can_grow=False)], ips(5)) == (CreateEni(5),)


def test_a_suspected_eni_is_neither_supply_nor_given_back():
    suspected = eni(1, 14, is_usable=False)
    assert steps([eni(0, 14, 0), suspected], ips(14)) == ()
    assert steps([eni(0, 14, 0), suspected], ips(15)) == (CreateEni(1),)


# Limits


@pytest.mark.parametrize(
    "limit",
    [{"enis_max": 2}, {"enis_max": 4, "reserved_slots": 2}, {"enis_max": 4, "unmanaged_enis": 2}],
    ids=["enis_max", "reserved", "unmanaged"],
)
def test_no_more_enis_than_the_instance_allows(limit):
    made = planned([eni(0, 14, 14)], policy(**limit), waiting=30)
    assert made.steps == (CreateEni(14),)
    assert made.constraints == ("instance_full",)
    full = planned([eni(0, 14, 14), eni(1, 14, 14)], policy(**limit), waiting=16)
    assert (full.steps, full.reason, full.short) == ((), warm_pool.INSTANCE_FULL, 30)


def test_enis_that_come_or_leave_take_a_place():
    enis = [eni(0, 14, 14), coming(1, 14), eni(2, 0, is_usable=False, is_leaving=True)]
    assert steps(enis, policy(enis_max=4), waiting=60) == (CreateEni(14),)


def test_max_pods_ends_growth_for_the_targets():
    made = planned([eni(0, 14, 10)], policy(max_pods=14))
    assert made.steps == ()
    assert made.reason == warm_pool.MAX_PODS
    assert made.constraints == ("max_pods_reached",)


def test_pods_on_enis_that_serve_no_new_pod_count_for_max_pods():
    old = eni(1, 14, 10, is_usable=False, is_excluded=True, rested=())
    assert steps([eni(0, 14, 14), old], policy(max_pods=24)) == ()
    assert steps([eni(0, 14, 14), old], policy(max_pods=25)) == (CreateEni(14),)


def test_resting_addresses_do_not_keep_a_waiting_add_from_an_address():
    """On a small node short-lived pods make every address rest; they are no reason to leave a pod waiting."""
    resting = [eni(0, 14, 2, resting=12)]
    rule = policy(max_pods=14)
    assert steps(resting, rule) == ()
    assert steps(resting, rule, waiting=1) == (CreateEni(14),)
    assert steps(resting, ips(5, max_pods=14), waiting=2) == (CreateEni(2),)


def test_max_pods_in_use_ends_growth_for_waiting_adds_too():
    made = planned([eni(0, 14, 14)], policy(max_pods=14), waiting=3)
    assert (made.steps, made.reason) == ((), warm_pool.MAX_PODS)


def test_churn_makes_the_pool_grow_ahead():
    """Four short pods a second, each address resting for 30 s, on a node with 29 addresses of 232.

    An ENI takes 2 s to come. Nobody may meet an empty pool. In the end 120 addresses rest, of which eight
    come back before EC2 could bring others, and 29 are to be free: that takes five ENIs.
    """
    rule = policy(slots_per_eni=29, enis_max=8, max_pods=234)
    enis, empty = 1, 0
    arrivals: list[float] = []
    rests: list[float] = []
    for now in (tick / 4 for tick in range(240)):
        rests = [end for end in rests if end > now]
        enis += sum(at <= now for at in arrivals)
        arrivals = [at for at in arrivals if at > now]
        if len(rests) < enis * 29:
            rests.append(now + 30)
        else:
            empty += 1
        soon = sum(end <= now + 2 for end in rests)
        views = [
            eni(
                device,
                29,
                slots=29,
                resting=min(max(len(rests) - 29 * device, 0), 29),
                resting_soon=min(max(soon - 29 * device, 0), 29),
            )
            for device in range(enis)
        ]
        views += [coming(enis + number, pending=29, slots=29) for number in range(len(arrivals))]
        arrivals += [now + 2.0 for step in steps(views, rule) if isinstance(step, CreateEni)]
    assert (empty, enis) == (0, 5)


# Growth held back


def test_nothing_is_planned_while_nothing_may_be_changed():
    made = planned([eni(0, 0)], policy(), waiting=2, no_change="invariant_broken")
    assert made == Plan(
        steps=(),
        reason=warm_pool.CHANGES_HELD,
        constraints=("no_change:invariant_broken",),
        short=16,
        over=0,
    )


def test_while_creating_is_blocked_present_enis_still_grow():
    made = planned([eni(0, 10, 10)], policy(), waiting=1, create_blocked="ec2_throttled")
    assert made.steps == (GrowEni(GROW, 4),)
    assert made.constraints == ("create_blocked:ec2_throttled",)


def test_blocked_growth_is_named_as_the_reason_to_hold():
    made = planned([eni(0, 14, 14)], policy(), waiting=1, create_blocked="subnet_exhausted")
    assert (made.steps, made.reason) == ((), warm_pool.GROWTH_HELD)


def test_a_full_instance_is_named_before_a_blocked_creation():
    made = planned([eni(0, 14, 14)], policy(enis_max=1), waiting=1, create_blocked="subnet_exhausted")
    assert made.reason == warm_pool.INSTANCE_FULL


def test_while_assigning_is_blocked_targets_wait_and_waiting_adds_get_an_eni():
    enis = [eni(0, 10, 10)]
    held = planned(enis, ips(3), assign_blocked="ec2_throttled")
    assert (held.steps, held.reason) == ((), warm_pool.GROWTH_HELD)
    assert steps(enis, ips(3), waiting=2, assign_blocked="ec2_throttled") == (CreateEni(2),)


# Shrinking


def test_addresses_beyond_ip_targets_are_given_back_in_the_order_of_the_view():
    order = cidrs_of(0, [7, 9, 8])
    made = planned([eni(0, 10, 3, rested=order)], ips(5))
    assert made.steps == (ReleaseCidrs(GROW, (RestedCidr(GROW, order[0]), RestedCidr(GROW, order[1]))),)
    assert (made.reason, made.over) == (warm_pool.ABOVE_TARGET, 2)


def test_addresses_are_given_back_from_the_eni_that_is_nearest_to_empty():
    enis = [eni(0, 6, 5), eni(1, 6, 3), eni(2, 6, 1)]
    assert texts(enis, ips(2)) == ["release 5 of eni-2", "release 2 of eni-1"]


def test_an_address_that_rests_is_never_given_back():
    """Eight more than wanted, of which two have rested."""
    made = planned([eni(0, 13, 0, resting=6, rested=cidrs_of(0, [1, 2]))], ips(1))
    assert made.over == 6
    assert made.steps == (ReleaseCidrs(GROW, tuple(RestedCidr(GROW, cidr) for cidr in cidrs_of(0, [1, 2]))),)


def test_a_surplus_that_still_rests_is_named():
    made = planned([eni(0, 13, 0, rested=())], ips(1))
    assert (made.steps, made.reason, made.over) == ((), warm_pool.SURPLUS_IN_USE, 12)


def test_nothing_is_given_back_for_addresses_that_have_not_come():
    made = planned([eni(0, 14, 9), coming(1, 14)], ips(5))
    assert (made.steps, made.reason, made.over) == ((), warm_pool.TARGETS_MET, 0)


def test_nothing_is_released_from_an_eni_with_an_open_assign():
    assert steps([eni(0, 10, 0, pending=1, can_grow=False)], ips(2)) == ()


def test_a_waiting_add_is_no_time_to_shrink():
    assert texts([eni(0, 14, 4)], ips(5)) == ["release 5 of eni-0"]
    assert texts([eni(0, 14, 4)], ips(5), waiting=3) == ["release 2 of eni-0"]


def test_several_enis_go_at_once_the_emptiest_first_then_the_highest_device():
    enis = [eni(0, 14, 1), eni(1, 14), eni(2, 14), eni(3, 9)]
    made = steps(enis, policy())
    assert [(step.eni, len(step.cidrs)) for step in made if isinstance(step, RemoveEni)] == [
        ("eni-3", 9),
        ("eni-2", 14),
    ]


def test_an_eni_is_kept_that_one_more_add_would_bring_back():
    """The original removes it at exactly 28 free, and creates it again with the next pod."""
    at_the_edge = planned([eni(0, 14, 14), eni(1, 14), eni(2, 14)], policy())
    assert (at_the_edge.steps, at_the_edge.reason, at_the_edge.over) == ((), warm_pool.TARGETS_MET, 0)
    assert len(steps([eni(0, 14, 13), eni(1, 14), eni(2, 14)], policy())) == 1


def test_without_warm_enis_a_full_node_keeps_its_empty_eni():
    rule = policy(warm_eni_target=0)
    assert steps([eni(0, 14, 14), eni(1, 14)], rule) == ()
    assert steps([eni(0, 14, 13), eni(1, 14)], rule) == ()
    assert texts([eni(0, 14, 12), eni(1, 14)], rule) == ["remove eni-1"]


def test_with_ip_targets_an_empty_eni_is_kept_while_the_others_have_no_room():
    assert steps([eni(0, 14, 9), eni(1, 0)], ips(5)) == ()
    assert steps([eni(0, 13, 8), eni(1, 0)], ips(5)) == (RemoveEni(EniId("eni-1")),)
    assert steps([eni(0, 13, 8), eni(1, 0)], ips(5), assign_blocked="ec2_throttled") == ()
    no_growth_there = eni(0, 13, 8, can_grow=False)
    assert steps([no_growth_there, eni(1, 0)], ips(5)) == ()


def test_with_ip_targets_an_eni_is_kept_whose_addresses_the_targets_need():
    assert steps([eni(0, 8, 4), eni(1, 2)], ips(6)) == ()
    assert steps([eni(0, 8, 4), eni(1, 2)], ips(1, 10)) == ()


def test_an_eni_goes_whole_instead_of_address_by_address():
    assert steps([eni(0, 14, 3), eni(1, 4)], ips(5)) == (
        RemoveEni(
            EniId("eni-1"), tuple(RestedCidr(EniId("eni-1"), cidr) for cidr in cidrs_of(1, [3, 2, 1, 0]))
        ),
        ReleaseCidrs(GROW, tuple(RestedCidr(GROW, cidr) for cidr in cidrs_of(0, range(13, 7, -1)))),
    )


@pytest.mark.parametrize(
    "kept",
    [
        {"is_primary": True},
        {"can_shrink": False},
        {"age_s": 59.9},
        {"is_coming": True, "is_usable": False},
        {"is_leaving": True},
        {"is_usable": False},
        {"pending": 1},
        {"rested": cidrs_of(1, range(13))},
        {"assigned": 1},
        {"resting": 1},
        {"blocked": 1},
    ],
    ids=lambda kept: next(iter(kept)),
)
def test_an_eni_is_not_removed_that_is(kept):
    spare = [eni(0, 14), eni(2, 14, can_shrink=False), eni(3, 14, can_shrink=False)]
    assert steps([*spare, eni(1, 14)], policy()) != ()
    assert steps([*spare, eni(1, 14, **kept)], policy()) == ()


@pytest.mark.parametrize("enis", [[eni(0, 14, 4)], [eni(0, 14, 4), eni(1, 9)]])
def test_shrinking_waits_while_it_is_held_back(enis):
    made = planned(enis, ips(5), shrink_blocked="unschedulable")
    assert (made.steps, made.reason) == ((), warm_pool.SHRINK_HELD)
    assert made.constraints == ("shrink_blocked:unschedulable",)


def test_an_excluded_eni_goes_when_empty_whatever_the_targets_say():
    excluded = eni(1, 14, is_usable=False, is_excluded=True, can_grow=False)
    made = planned([eni(0, 14, 14), excluded], policy(enis_max=2))
    assert [step_text(step) for step in made.steps] == ["remove eni-1"]
    assert made.reason == warm_pool.EXCLUDED_GOES


def test_an_excluded_eni_with_pods_gives_back_the_rest():
    excluded = eni(0, 14, 5, is_usable=False, is_excluded=True, can_grow=False)
    made = planned([excluded, eni(1, 14, 0)], policy())
    assert [step_text(step) for step in made.steps] == ["release 9 of eni-0"]


def test_an_excluded_eni_makes_place_while_the_pool_grows():
    excluded = eni(1, 0, is_usable=False, is_excluded=True)
    made = planned([eni(0, 14, 14), excluded], policy(), waiting=1)
    assert [step_text(step) for step in made.steps] == [
        "create an ENI with 14",
        "create an ENI with 14",
        "remove eni-1",
    ]
    assert made.reason == warm_pool.PODS_WAIT


# What it says


def test_the_reason_of_a_satisfied_pool_does_not_change_with_its_pods():
    reasons = {planned([eni(0, 14, pods), eni(1, 14)], policy()).reason for pods in range(1, 14)}
    assert reasons == {warm_pool.TARGETS_MET}


def test_growth_for_a_target_is_told_from_growth_for_pods():
    assert planned([eni(0, 14, 14)], policy()).reason == warm_pool.BELOW_TARGET
    assert planned([eni(0, 14, 14)], policy(), waiting=1).reason == warm_pool.PODS_WAIT


def test_a_minimum_that_is_still_coming_is_under_way():
    made = planned([eni(0, 4, 0), coming(1, 8)], ips(2, 12))
    assert (made.steps, made.reason) == ((), warm_pool.UNDER_WAY)


def test_every_step_has_a_text():
    assert step_text(GrowEni(GROW, 3)) == "grow eni-0 by 3"
    assert step_text(RemoveEni(GROW)) == "remove eni-0"


def test_no_reason_carries_a_figure():
    sentences = [text for name, text in vars(warm_pool).items() if name.isupper() and isinstance(text, str)]
    assert len(sentences) == 12
    assert not [text for text in sentences if any(letter.isdigit() for letter in text)]


# Rested CIDRs


def test_only_a_cidr_that_the_view_lists_as_rested_can_be_released():
    view = eni(0, 3, 1)
    assert rested(view, view.rested[0]) == RestedCidr(view.id, view.rested[0])
    with pytest.raises(InvariantBrokenError, match=r"10\.0\.0\.0/32 of eni-0"):
        rested(view, cidrs_of(0, [0])[0])


def test_rested_cidrs_are_made_in_one_module_alone():
    makers = set()
    for path in Path(vpccni.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "RestedCidr":
                makers.add(path.name)
    assert makers == {"release.py"}


# Prospects of an ADD


def expected(enis, rule: PoolPolicy, ahead: int = 0, **held) -> Prospect:
    return prospect(enis, rule, Constraints(**held), ahead)


POSSIBLE = Prospect(possible=True)
FULL = [eni(0, 14, 14), eni(1, 14, 14)]


@pytest.mark.parametrize(
    "enis",
    [
        pytest.param([eni(0, 14, 13), eni(1, 14, 14)], id="free"),
        pytest.param([eni(0, 14, 13, resting=1), eni(1, 14, 14)], id="resting"),
        pytest.param([eni(0, 13, 13, pending=1), eni(1, 14, 14)], id="pending"),
        pytest.param([eni(0, 14, 14), coming(1, 14)], id="coming"),
        pytest.param([eni(0, 14, 14), coming(1, pending=2)], id="creating"),
    ],
)
@pytest.mark.parametrize("held", [{}, {"no_change": "stopping"}], ids=["unheld", "held"])
def test_an_add_waits_for_what_exists_whatever_holds_growth_back(enis, held):
    assert expected(enis, policy(enis_max=2), **held) == POSSIBLE


@pytest.mark.parametrize(
    ("enis", "rule", "held"),
    [
        pytest.param([eni(0, 13, 13)], policy(enis_max=1), {"create_blocked": "ec2_throttled"}, id="room"),
        pytest.param(
            [eni(0, 13, 13, can_grow=False)], policy(enis_max=1), {}, id="room on an ENI that is busy"
        ),
        pytest.param(FULL, policy(enis_max=3), {"assign_blocked": "ec2_throttled"}, id="place"),
        pytest.param(
            [*FULL, eni(2, 0, is_usable=False, is_leaving=True)], policy(enis_max=3), {}, id="place soon"
        ),
        pytest.param(
            [eni(0, 14, 13, blocked=1, releasing=1, can_grow=False)],
            policy(enis_max=1),
            {},
            id="what is being given back",
        ),
    ],
)
def test_an_add_waits_for_what_can_be_planned(enis, rule, held):
    assert expected(enis, rule, **held) == POSSIBLE


@pytest.mark.parametrize(
    ("enis", "rule", "held", "reason"),
    [
        (FULL, policy(enis_max=2), {}, Reason.INSTANCE_FULL),
        (FULL, policy(enis_max=2), {"create_blocked": "subnet_exhausted"}, Reason.INSTANCE_FULL),
        (FULL, policy(enis_max=3, max_pods=28), {}, Reason.MAX_PODS_REACHED),
        (FULL, policy(enis_max=3), {"create_blocked": "subnet_exhausted"}, Reason.SUBNET_EXHAUSTED),
        ([eni(0, 13, 13)], policy(enis_max=1), {"assign_blocked": "ec2_throttled"}, Reason.EC2_THROTTLED),
        (
            [eni(0, 13, 13)],
            policy(),
            {"assign_blocked": "ec2_throttled", "create_blocked": "ec2_unauthorized"},
            Reason.EC2_THROTTLED,
        ),
        (FULL, policy(), {"no_change": "invariant_broken"}, Reason.INVARIANT_BROKEN),
        (FULL, policy(), {"create_blocked": "unschedulable"}, Reason.NO_ADDRESS),
        ([eni(0, 14, 13, blocked=1)], policy(enis_max=1), {}, Reason.INSTANCE_FULL),
    ],
)
def test_an_add_that_nothing_can_serve_is_refused_with_the_reason(enis, rule, held, reason):
    assert expected(enis, rule, **held) == Prospect(possible=False, reason=reason)


def test_those_ahead_of_an_add_count():
    enis = [eni(0, 12, 12)]
    rule = policy(enis_max=1)
    assert [expected(enis, rule, ahead).possible for ahead in range(4)] == [True, True, False, False]
    assert expected(enis, rule, 2).reason == Reason.INSTANCE_FULL
    assert expected(enis, policy(max_pods=13), 1).reason == Reason.MAX_PODS_REACHED


def test_the_simulated_pool_lists_nothing_of_a_coming_eni_as_rested():
    assert rest_all(coming(1, 3)).rested == ()
