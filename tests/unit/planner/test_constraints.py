"""What EC2 would not do lately, in the plan: less, elsewhere, one call at a time; and what ADDs are told."""

from __future__ import annotations

from tests.unit.planner.simulated_pool import eni
from vpccni.errors import Reason
from vpccni.model import EniId, SubnetId
from vpccni.planner.constraints import NO_LIMIT, Constraints, HeldEni, Shortage
from vpccni.planner.warm_pool import (
    GROWTH_HELD,
    SHRINK_HELD,
    CreateEni,
    Demand,
    GrowEni,
    PoolPolicy,
    Prospect,
    plan,
    prospect,
)

HERE = SubnetId("")
ENIS = PoolPolicy(slots_per_eni=14, enis_max=4, max_pods=500)
IPS = PoolPolicy(slots_per_eni=14, enis_max=4, max_pods=500, warm_ip_target=6)


def short(call: str, left: int, detail: str = "") -> Shortage:
    return Shortage(call=call, subnet=HERE, left=left, detail=detail)


def steps(views, rule, waiting=0, **held):
    return plan(views, rule, Demand(waiting), Constraints(**held)).steps


def test_a_short_subnet_is_asked_for_what_it_has_by_one_call():
    enis = [eni(0, 10, 10), eni(1, 10, 10)]
    assert steps(enis, IPS) == (GrowEni(EniId("eni-0"), 4), GrowEni(EniId("eni-1"), 2))
    assert steps(enis, IPS, shortages=(short("assign", 3),)) == (GrowEni(EniId("eni-0"), 3),)


def test_no_eni_is_created_before_it_is_known_what_a_short_subnet_gives():
    enis = [eni(0, 14, 14), eni(1, 10, 10)]
    held = (short("assign", 2), short("create", 1))
    assert steps(enis, ENIS, 8, shortages=held) == (GrowEni(EniId("eni-1"), 2),)


def test_the_room_of_a_short_subnet_is_kept_for_the_targets_and_not_for_pods_that_wait():
    enis = [eni(0, 10, 10)]
    nothing = (short("assign", 0),)
    assert steps(enis, IPS, shortages=nothing) == (CreateEni(2),)
    assert steps([eni(0, 7, 7)], IPS, shortages=nothing) == ()
    assert steps([eni(0, 7, 7)], IPS, 3, shortages=nothing) == (CreateEni(3),)


def test_a_new_eni_in_a_short_subnet_has_as_many_addresses_as_there_are():
    full = [eni(0, 14, 14)]
    assert steps(full, ENIS, shortages=(short("create", 4),)) == (CreateEni(4),)
    assert steps(full, ENIS, 30, shortages=(short("create", 4),)) == (CreateEni(4),)
    made = plan(full, ENIS, Demand(), Constraints(shortages=(short("create", 0),)))
    assert (made.steps, made.reason) == ((), GROWTH_HELD)


def test_another_subnet_is_not_concerned():
    held = (Shortage(call="assign", subnet=SubnetId("subnet-2"), left=0),)
    assert steps([eni(0, 10, 10)], IPS, shortages=held) == steps([eni(0, 10, 10)], IPS)


def test_after_a_pause_one_call_tries():
    enis = [eni(0, 10, 10), eni(1, 10, 10)]
    assert steps(enis, IPS, 16, assign_once=True) == (GrowEni(EniId("eni-0"), 4), CreateEni(14))
    assert steps(enis, IPS, assign_once=True) == (GrowEni(EniId("eni-0"), 4),)
    assert steps([eni(0, 14, 14)], ENIS, 40, create_once=True) == (CreateEni(14),)


def test_an_eni_that_ec2_refuses_to_fill_is_left_and_another_is_filled():
    enis = [eni(0, 12, 12), eni(1, 10, 10)]
    held = (HeldEni(eni=EniId("eni-0"), growth="instance_full"),)
    assert steps(enis, IPS, enis=held) == (GrowEni(EniId("eni-1"), 4),)


def test_an_eni_that_ec2_does_not_let_go_is_left_and_another_is_given_back():
    enis = [eni(0, 14, 14), eni(1, 14), eni(2, 14), eni(3, 14)]
    gone = [step.eni for step in steps(enis, ENIS) if not isinstance(step, CreateEni)]
    assert gone == ["eni-3"]
    held = (HeldEni(eni=EniId("eni-3"), shrink="ec2_refused"),)
    assert [step.eni for step in steps(enis, ENIS, enis=held) if not isinstance(step, CreateEni)] == ["eni-2"]


def test_what_may_not_be_removed_stays_and_what_may_be_released_goes():
    enis = [eni(0, 14, 6), eni(1, 14)]
    made = plan(enis, IPS, Demand(), Constraints(remove_blocked="ec2_unauthorized"))
    assert {type(step).__name__ for step in made.steps} == {"ReleaseCidrs"}
    held = Constraints(remove_blocked="ec2_unauthorized", release_blocked="ec2_unauthorized")
    made = plan(enis, IPS, Demand(), held)
    assert (made.steps, made.reason) == ((), SHRINK_HELD)


def test_a_refusal_says_what_is_known_of_the_subnet():
    rule = PoolPolicy(slots_per_eni=14, enis_max=1)
    told = "subnet-1 has 0 free addresses"
    held = Constraints(shortages=(short("assign", 0, told), short("create", 0, told)))
    expected = Prospect(possible=False, reason=Reason.SUBNET_EXHAUSTED, detail=told)
    assert prospect([eni(0, 10, 10)], rule, held) == expected
    assert prospect([eni(0, 14, 14)], ENIS, held) == expected
    assert prospect([eni(0, 14, 14)], rule, held).reason is Reason.INSTANCE_FULL
    some = Constraints(shortages=(short("assign", 2), short("create", 1)))
    assert prospect([eni(0, 10, 10)], rule, some, ahead=3).possible


def test_an_add_waits_for_the_room_of_other_enis():
    held = Constraints(enis=(HeldEni(eni=EniId("eni-0"), growth="ec2_refused", detail="NotFound"),))
    rule = PoolPolicy(slots_per_eni=14, enis_max=2)
    assert prospect([eni(0, 10, 10), eni(1, 13, 13)], rule, held).possible
    expected = Prospect(possible=False, reason=Reason.EC2_REFUSED, detail="NotFound")
    assert prospect([eni(0, 10, 10), eni(1, 13, 13)], rule, held, ahead=1) == expected


def test_every_constraint_is_told_in_the_plan():
    held = Constraints(
        create_blocked="ec2_throttled",
        assign_once=True,
        shortages=(short("assign", 3), short("create", NO_LIMIT)),
        enis=(HeldEni(eni=EniId("eni-0"), growth="instance_full"),),
    )
    assert plan([eni(0, 14)], ENIS, Demand(), held).constraints == (
        "create_blocked:ec2_throttled",
        "assign_once",
        "assign in : at most 3",
        "create in : one call at a time",
        "eni-0: instance_full",
    )
