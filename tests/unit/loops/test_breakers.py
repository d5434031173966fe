"""Pauses after failures: of what, how long, and what ADDs that wait are told."""

from __future__ import annotations

import random

import pytest

from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.events.effect import EffectIntended
from vpccni.loops.breakers import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    PERMANENT_FIRST_S,
    PERMANENT_MAX_S,
    RESTART_JITTER_S,
    SMALLER_S,
    SUBNET_PAUSE_S,
    UNREACHABLE_REFUSES_S,
    Breakers,
)
from vpccni.model import EniId, SubnetId

THROTTLED = TransientError(Reason.EC2_THROTTLED)
FORBIDDEN = PermanentError(Reason.EC2_UNAUTHORIZED, "UnauthorizedOperation")
LIMIT = PermanentError(Reason.INSTANCE_FULL, "PrivateIpAddressLimitExceeded")
REFUSED = PermanentError(Reason.EC2_REFUSED, "InvalidParameterValue")
LOST = OutcomeUnknownError(Reason.EC2_UNREACHABLE)
NO_ROUTE = TransientError(Reason.EC2_UNREACHABLE)

ONE, TWO = EniId("eni-1"), EniId("eni-2")
SUBNET, OTHER = SubnetId("subnet-1"), SubnetId("subnet-2")


def call(kind: str, eni: str = "", count: int = 0, subnet: SubnetId = SUBNET) -> EffectIntended:
    return EffectIntended(kind=kind, eni=EniId(eni), count=count, subnet=subnet)


CREATE, ATTACH = call("create", count=14), call("attach", ONE)
ASSIGN, ASSIGN_TWO = call("assign", ONE, 14), call("assign", TWO, 14)


def breakers(seed: int = 1) -> Breakers:
    return Breakers(random.Random(seed))


def pause_of(made: Breakers, wanted: EffectIntended, now: float) -> float:
    return made.until(wanted, now) - now


# -- how long -----------------------------------------------------------------------------------------


def test_pauses_are_drawn_from_nothing_to_a_bound_that_doubles():
    sums = [0.0] * 8
    for seed in range(200):
        made, now = breakers(seed), 0.0
        for number in range(8):
            made.fail(CREATE, THROTTLED, now, now)
            pause = pause_of(made, CREATE, now)
            assert 0 <= pause <= min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**number)
            sums[number] += pause / 200
            now += pause
    bounds = [min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**number) for number in range(8)]
    assert all(0.4 * bound < mean < 0.6 * bound for mean, bound in zip(sums, bounds, strict=True))


def test_calls_of_one_burst_that_fail_side_by_side_are_one_failure():
    """1. Six calls leave together. 2. All of them are throttled. 3. The pause is that of a first failure."""
    made = breakers()
    for number in range(6):
        made.fail(CREATE, THROTTLED, 10.0, 10.1 + number / 100)
    assert pause_of(made, CREATE, 10.1) <= BACKOFF_FIRST_S
    assert made.for_plan(10.15).create_blocked in ("", "ec2_throttled")
    assert made.for_waiting(10.15).create_blocked == ""


def test_throttling_keeps_adds_waiting_however_long_it_lasts():
    made, now = breakers(), 0.0
    for _ in range(40):
        made.fail(CREATE, THROTTLED, now, now)
        assert made.for_waiting(now).create_blocked == ""
        now = made.until(CREATE, now)


@pytest.mark.parametrize("error", [LOST, NO_ROUTE])
def test_no_answer_keeps_adds_waiting_until_it_has_lasted(error):
    made, now = breakers(), 0.0
    while now < UNREACHABLE_REFUSES_S:
        made.fail(CREATE, error, now, now)
        assert made.for_waiting(now).create_blocked == ""
        now = max(made.until(CREATE, now), now + 0.1)
    made.fail(CREATE, error, now, now)
    assert made.for_waiting(now).create_blocked == "ec2_unreachable"
    assert made.for_waiting(now).assign_blocked == "ec2_unreachable"
    # When the pause is over somebody must wait, or nobody would ever ask again.
    assert made.for_waiting(made.until(CREATE, now)).create_blocked == ""


def test_a_pause_that_ec2_asks_for_is_kept_also_when_another_call_of_the_burst_says_it():
    made = breakers()
    made.fail(CREATE, THROTTLED, 0.0, 0.1)
    made.fail(CREATE, TransientError(Reason.EC2_THROTTLED, retry_after_s=17.0), 0.0, 0.2)
    assert made.until(CREATE, 0.2) >= 17.2


def test_what_a_person_must_mend_pauses_ever_longer_and_refuses_at_once():
    made, now = breakers(), 0.0
    for number in range(8):
        made.fail(ATTACH, FORBIDDEN, now, now)
        bound = min(PERMANENT_MAX_S, PERMANENT_FIRST_S * 2**number)
        assert bound / 2 <= pause_of(made, ATTACH, now) <= bound
        assert made.for_waiting(now).create_blocked == "ec2_unauthorized"
        now = made.until(ATTACH, now)


def test_two_nodes_do_not_come_back_at_the_same_instant():
    one, other = breakers(1), breakers(2)
    for made in (one, other):
        made.fail(CREATE, FORBIDDEN, 0.0, 0.0)
        made.shorten(ASSIGN, 0.0, free=0, needed=1)
    assert one.until(CREATE, 0.0) != other.until(CREATE, 0.0)
    assert one.next_change(0.0) != other.next_change(0.0)


def test_after_a_restart_only_what_no_add_waits_for_begins_later():
    made = breakers()
    made.note_restart(100.0)
    assert made.for_plan(100.0, is_urgent=False).create_blocked == "restarted"
    assert made.for_plan(100.0, is_urgent=True).create_blocked == ""
    assert made.for_waiting(100.0).create_blocked == ""
    assert made.for_plan(100.0 + RESTART_JITTER_S, is_urgent=False).create_blocked == ""
    due = made.next_change(100.0)
    assert due is not None
    assert 100.0 < due <= 100.0 + RESTART_JITTER_S


# -- of what ------------------------------------------------------------------------------------------


def test_throttling_concerns_one_action():
    made = breakers(3)
    made.fail(CREATE, THROTTLED, 0.0, 0.0)
    held = made.for_plan(0.0)
    assert (held.create_blocked, held.assign_blocked) == ("ec2_throttled", "")
    made.fail(ASSIGN, THROTTLED, 0.0, 0.0)
    assert made.holding(ASSIGN_TWO, 0.0) is not None
    assert made.holding(call("unassign", ONE), 0.0) is None


def test_a_missing_permission_concerns_one_action_and_names_it():
    made = breakers()
    made.fail(call("delete", ONE), FORBIDDEN, 0.0, 0.0)
    held = made.for_plan(0.0)
    assert (held.create_blocked, held.assign_blocked, held.release_blocked) == ("", "", "")
    assert held.remove_blocked == "ec2_unauthorized"
    made.fail(CREATE, FORBIDDEN, 0.0, 0.0)
    assert "CreateNetworkInterface" in made.for_waiting(0.0).create_detail


@pytest.mark.parametrize("error", [LIMIT, REFUSED])
def test_a_limit_of_an_eni_concerns_that_eni(error):
    made = breakers()
    made.fail(ASSIGN, error, 0.0, 0.0)
    held = made.for_plan(0.0)
    assert held.assign_blocked == ""
    assert [(one.eni, one.growth) for one in held.enis] == [(ONE, error.reason)]
    assert made.holding(ASSIGN, 0.0) is not None
    assert made.holding(ASSIGN_TWO, 0.0) is None
    made.fail(call("detach", TWO), error, 0.0, 0.0)
    assert [(one.eni, one.shrink) for one in made.for_plan(0.0).enis if one.shrink] == [(TWO, error.reason)]


def test_an_attach_that_is_refused_pauses_creating_for_longer_each_time():
    """1. Create. 2. Attach is refused. 3. The ENI is deleted. Not again a minute later, for ever."""
    made, now, pauses = breakers(), 0.0, []
    for number in range(5):
        made.succeed(CREATE, now, now)
        made.fail(call("attach", f"eni-{number}"), REFUSED, now, now)
        assert made.for_plan(now).create_blocked == "ec2_refused"
        pauses.append(pause_of(made, ATTACH, now))
        now += pauses[-1]
    assert pauses[-1] > 4 * pauses[0]


def test_nothing_reaches_ec2_concerns_every_call():
    made = breakers()
    made.fail(CREATE, NO_ROUTE, 0.0, 0.0)
    held = made.for_plan(0.0)
    blocked = {held.create_blocked, held.assign_blocked, held.release_blocked, held.remove_blocked}
    assert blocked == {"ec2_unreachable"}


def test_what_is_asked_in_vain_holds_back_asking_alone():
    made = breakers()
    made.fail(call("ask"), FORBIDDEN, 0.0, 0.0)
    assert made.until(call("ask"), 0.0) > 0
    assert made.for_plan(0.0) == breakers().for_plan(0.0)


# -- trials and successes -----------------------------------------------------------------------------


def test_a_success_of_a_call_that_left_before_the_failure_says_nothing():
    made = breakers()
    made.fail(CREATE, THROTTLED, 1.0, 2.0)
    made.succeed(CREATE, 1.0, 2.0)
    assert made.for_plan(2.0).create_once
    made.succeed(CREATE, 3.0, 3.5)
    assert not made.for_plan(3.5).create_once


def test_a_success_of_one_action_does_not_let_another_go_on():
    made = breakers()
    made.fail(CREATE, LOST, 0.0, 0.0)
    made.succeed(ASSIGN, 0.1, 0.2)
    assert made.for_plan(0.0).create_blocked
    assert not made.for_plan(0.0).assign_blocked


def test_after_the_pause_one_call_is_the_trial_and_the_others_wait_for_it():
    made = breakers()
    made.fail(CREATE, THROTTLED, 0.0, 0.0)
    now = made.until(CREATE, 0.0)
    assert made.for_plan(now).create_blocked == ""
    assert made.for_plan(now).create_once
    assert made.admit([CREATE, CREATE, ASSIGN], now) == [CREATE, ASSIGN]
    made.begin(CREATE, 7, now)
    made.begin(CREATE, 8, now)
    assert made.holding(CREATE, now, 7) is None
    assert made.holding(CREATE, now, 8) is not None
    assert made.for_plan(now).create_blocked == "ec2_throttled"
    assert made.for_waiting(now).create_blocked == ""
    made.end(7)
    assert made.holding(CREATE, now) is None
    made.begin(CREATE, 9, now)
    made.succeed(CREATE, now, now + 1)
    made.end(9)
    assert made.for_plan(now + 1) == breakers().for_plan(now + 1)


def test_while_the_enis_of_a_refused_attach_come_back_one_is_made():
    made = breakers()
    made.fail(ATTACH, LIMIT, 0.0, 0.0)
    now = made.until(ATTACH, 0.0)
    assert made.for_plan(now, is_attaching=True).create_blocked == "instance_full"
    assert made.for_plan(now, is_attaching=False).create_blocked == ""
    assert made.for_plan(now, is_attaching=False).create_once


def test_the_next_change_is_the_first_pause_that_ends():
    made = breakers()
    assert made.next_change(0.0) is None
    made.fail(CREATE, FORBIDDEN, 0.0, 0.0)
    made.fail(ASSIGN, THROTTLED, 0.0, 0.0)
    assert made.next_change(0.0) == made.until(ASSIGN, 0.0)
    assert made.next_change(made.until(ASSIGN, 0.0)) == made.until(CREATE, 0.0)


# -- shortages ----------------------------------------------------------------------------------------


def left(made: Breakers, kind: str, now: float, subnet: SubnetId = SUBNET) -> int | None:
    short = made.for_plan(now).shortage(kind, subnet)
    return None if short is None else short.left


def test_a_shortage_is_of_one_subnet_and_the_next_call_asks_for_what_is_there():
    made = breakers()
    made.shorten(ASSIGN, 0.0, free=5, needed=9)
    soon = SMALLER_S
    assert (left(made, "assign", soon), left(made, "create", soon)) == (5, 4)
    assert left(made, "assign", soon, OTHER) is None
    assert made.for_plan(soon).assign_blocked == ""
    assert made.for_waiting(soon).shortages == ()


@pytest.mark.parametrize("free", [-1, 100], ids=["not told", "a count that lags"])
def test_without_a_count_it_is_halved_down_to_what_pods_wait_for_and_then_on_to_one(free):
    made, now, asked = breakers(), 0.0, []
    count = 14
    while count:
        asked.append(count)
        made.shorten(call("assign", ONE, count), now, free=free, needed=5)
        now += SMALLER_S
        count = left(made, "assign", now) or 0
    assert asked == [14, 7, 5, 2, 1]
    assert now < 10
    (short,) = made.for_waiting(now).shortages
    assert SUBNET in short.detail


def test_an_empty_subnet_refuses_until_the_pause_is_over_and_says_how_many_are_free():
    made = breakers()
    made.shorten(call("assign", ONE, 1), 0.0, free=0, needed=1)
    details = {one.detail for one in made.for_waiting(0.0).shortages}
    assert details == {"subnet-1 has 0 free addresses"}
    assert made.for_waiting(SUBNET_PAUSE_S).shortages == ()
    assert left(made, "assign", SUBNET_PAUSE_S / 2 - 1) == 0
    assert left(made, "assign", SUBNET_PAUSE_S) == 1  # a trial
    made.succeed(call("assign", ONE, 1), SUBNET_PAUSE_S, SUBNET_PAUSE_S + 1)
    assert left(made, "assign", SUBNET_PAUSE_S + 1) is None


def test_what_was_taken_is_subtracted_from_the_count():
    made = breakers()
    made.shorten(ASSIGN, 0.0, free=5, needed=1)
    made.succeed(call("create", count=2), 1.0, 2.0)
    assert (left(made, "assign", 3.0), left(made, "create", 3.0)) == (2, 1)
    made.succeed(call("assign", ONE, 2), 3.0, 4.0)
    assert {one.call for one in made.for_waiting(4.0).shortages} == {"assign", "create"}


def test_in_a_short_subnet_one_call_is_under_way_at_a_time():
    made = breakers()
    made.shorten(ASSIGN, 0.0, free=5, needed=1)
    made.begin(call("assign", ONE, 5), 7, 1.0)
    assert left(made, "assign", 1.0) == 0
    assert made.holding(ASSIGN_TWO, 1.0, 8) is not None
    assert made.holding(ASSIGN, 1.0, 7) is None
    made.end(7)
    assert left(made, "assign", 1.0) == 5
