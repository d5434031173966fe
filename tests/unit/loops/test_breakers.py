"""Pauses after failures: how long, for whom, and what waiting ADDs are told."""

from __future__ import annotations

import random

import pytest

from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.loops.breakers import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    PERMANENT_PAUSE_S,
    SUBNET_PAUSE_S,
    UNREACHABLE_AFTER,
    Breakers,
)

THROTTLED = TransientError(Reason.EC2_THROTTLED)
FORBIDDEN = PermanentError(Reason.EC2_UNAUTHORIZED)
EXHAUSTED = PermanentError(Reason.SUBNET_EXHAUSTED)
LOST = OutcomeUnknownError(Reason.EC2_UNREACHABLE)


def breakers(seed: int = 1) -> Breakers:
    return Breakers(random.Random(seed))


def test_pauses_double_up_to_a_bound_and_never_by_more_than_the_jitter():
    made, now, pauses = breakers(), 0.0, []
    for _ in range(40):
        made.fail("create", THROTTLED, now)
        pauses.append(made.create.until - now)
        now = made.create.until
    for number, pause in enumerate(pauses):
        base = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**number)
        assert base <= pause <= 1.15 * base
    assert len(set(pauses)) == len(pauses)


def test_two_nodes_do_not_come_back_at_the_same_instant():
    one, other = breakers(1), breakers(2)
    for made in (one, other):
        made.fail("create", EXHAUSTED, 0.0)
    assert one.create.until != other.create.until


@pytest.mark.parametrize(("error", "pause_s"), [(FORBIDDEN, PERMANENT_PAUSE_S), (EXHAUSTED, SUBNET_PAUSE_S)])
def test_what_trying_again_will_not_change_pauses_long_and_refuses_waiting_adds_at_once(error, pause_s):
    made = breakers()
    made.fail("assign", error, 100.0)
    assert pause_s <= made.assign.until - 100.0 <= 1.15 * pause_s
    assert made.for_waiting(100.0).assign_blocked == error.reason
    assert made.for_plan(100.0).assign_blocked == error.reason
    assert made.for_plan(100.0).create_blocked == ""


@pytest.mark.parametrize("error", [THROTTLED, LOST])
def test_what_passes_keeps_adds_waiting_until_it_has_lasted(error):
    made = breakers()
    for _ in range(UNREACHABLE_AFTER - 1):
        made.fail("create", error, 0.0)
        assert made.for_waiting(0.0).create_blocked == ""
        assert made.for_plan(0.0).create_blocked == error.reason
    made.fail("create", error, 0.0)
    assert made.for_waiting(0.0).create_blocked == error.reason


def test_a_pause_that_ec2_asks_for_is_kept():
    made = breakers()
    made.fail("create", TransientError(Reason.EC2_THROTTLED, retry_after_s=17.0), 0.0)
    assert made.create.until >= 17.0


def test_a_success_closes_it_and_the_next_failure_pauses_shortly_again():
    made = breakers()
    for _ in range(10):
        made.fail("attach", THROTTLED, 0.0)
    made.of("attach").succeed()
    assert made.for_plan(0.0).create_blocked == made.for_waiting(0.0).create_blocked == ""
    assert made.next_change(0.0) is None
    made.fail("create", THROTTLED, 0.0)
    assert made.create.until <= 1.15 * BACKOFF_FIRST_S


def test_each_kind_of_call_has_the_breaker_that_its_failure_says_something_about():
    made = breakers()
    assert made.of("create") is made.of("attach") is made.create
    assert made.of("assign") is made.assign
    assert made.of("unassign") is made.of("detach") is made.of("delete") is made.of("modify") is made.shrink
    assert made.of("ask") is made.ask
    made.fail("detach", FORBIDDEN, 0.0)
    constraints = made.for_plan(0.0)
    assert (constraints.create_blocked, constraints.assign_blocked) == ("", "")
    assert constraints.shrink_blocked == "ec2_unauthorized"


def test_the_next_change_is_the_first_pause_that_ends():
    made = breakers()
    made.fail("create", EXHAUSTED, 0.0)
    made.fail("assign", THROTTLED, 0.0)
    assert made.next_change(0.0) == made.assign.until
    assert made.next_change(made.assign.until) == made.create.until
