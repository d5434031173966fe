"""A rehearsed node: the real planner and the real books, and an EC2 that always says yes."""

from types import SimpleNamespace
from typing import cast

import pytest

from tests.unit.projections.node import Node, eni_facts
from vpccni.errors import InvariantBrokenError
from vpccni.instance_types import instance_types
from vpccni.loops.agent import Agent
from vpccni.planner import rehearsal
from vpccni.planner.capacity import capacity_of
from vpccni.planner.policy import policy_of
from vpccni.planner.rehearsal import ACTIONS, rehearse
from vpccni.planner.warm_pool import BELOW_TARGET, INSTANCE_FULL, PODS_WAIT, TARGETS_MET
from vpccni.settings import read_settings


def run(instance_type, pods, *, one_by_one=False, **environ):
    kind = instance_types()[instance_type]
    most = capacity_of(kind.limits).max_pods
    return rehearse(read_settings(environ), kind.limits, pods=pods, max_pods=most, one_by_one=one_by_one)


def sizes(outcome):
    return len(outcome.enis), sum(eni.addresses for eni in outcome.enis)


DEFAULTS: dict[str, str] = {}
ONE = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1"}
TWO = {"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "5"}
FIVE = {"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "10"}


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("instance_type", "environ", "pods", "enis", "addresses"),
    [
        ("t3.small", DEFAULTS, 0, 1, 3),
        ("t3.small", DEFAULTS, 5, 3, 9),
        ("t3.small", DEFAULTS, 9, 3, 9),
        ("t3.small", ONE, 0, 1, 1),
        ("t3.small", ONE, 5, 2, 6),
        ("t3.small", ONE, 9, 3, 9),
        ("t3.small", TWO, 0, 2, 5),
        ("t3.small", TWO, 5, 3, 7),
        ("t3.small", TWO, 9, 3, 9),
        ("p3dn.24xlarge", DEFAULTS, 0, 1, 49),
        ("p3dn.24xlarge", DEFAULTS, 3, 2, 98),
        ("p3dn.24xlarge", DEFAULTS, 95, 3, 147),
        ("p3dn.24xlarge", FIVE, 0, 1, 10),
        ("p3dn.24xlarge", FIVE, 7, 1, 12),
        ("p3dn.24xlarge", FIVE, 15, 1, 20),
        ("p3dn.24xlarge", FIVE, 45, 2, 50),
    ],
)
def test_the_documented_tables_come_out(instance_type, environ, pods, enis, addresses, one_by_one):
    outcome = run(instance_type, pods, one_by_one=one_by_one, **environ)
    assert sizes(outcome) == (enis, addresses)
    assert sum(eni.pods for eni in outcome.enis) == pods
    assert outcome.refused == {}


def test_every_turn_tells_the_calls_and_why_they_are_made():
    outcome = run("m5.xlarge", 20, WARM_IP_TARGET="5")
    told = [(turn.pods, turn.waiting, turn.reason, [c.action for c in turn.calls]) for turn in outcome.turns]
    assert told == [
        (0, 0, BELOW_TARGET, [ACTIONS["assign"]]),
        (5, 15, PODS_WAIT, [ACTIONS["assign"], ACTIONS["create"]]),
        (14, 6, "", [ACTIONS["attach"]]),
        (20, 0, "", [ACTIONS["modify"]]),
    ]
    assert [call.count for call in outcome.turns[1].calls] == [9, 11]
    assert [call.eni for call in outcome.turns[1].calls] == ["eni-00", "eni-01"]
    assert outcome.calls == {
        "AssignPrivateIpAddresses": 2,
        "AttachNetworkInterface": 1,
        "CreateNetworkInterface": 1,
        "ModifyNetworkInterfaceAttribute": 1,
    }
    assert (outcome.reason, outcome.constraints) == (TARGETS_MET, ())


def test_one_by_one_each_pod_costs_a_call_with_a_target_of_one():
    together, singly = (run("m5.large", 9, one_by_one=how, WARM_IP_TARGET="1") for how in (False, True))
    assert together.calls["AssignPrivateIpAddresses"] == 2
    assert singly.calls["AssignPrivateIpAddresses"] == 9
    assert sizes(together) == sizes(singly)


def test_a_full_instance_is_said_to_be_full():
    outcome = run("t3.small", 9)
    assert (outcome.reason, outcome.constraints) == (INSTANCE_FULL, ("instance_full",))


def test_a_pod_too_many_is_refused_with_its_reason_and_the_others_run():
    outcome = run("t3.small", 9, MAX_ENI="2")
    assert sum(eni.pods for eni in outcome.enis) == 6
    assert outcome.refused == {"instance_full": 3}


def test_max_pods_ends_growth_in_a_rehearsal_too():
    outcome = run("m5.xlarge", 4, WARM_ENI_TARGET="3", VPCCNI_MAX_PODS="10")
    assert sizes(outcome) == (1, 14)
    assert outcome.constraints == ("max_pods_reached",)


def test_the_same_question_has_the_same_answer():
    assert run("m5.xlarge", 30) == run("m5.xlarge", 30)


@pytest.mark.parametrize("instance_type", ["t3.nano", "m4.large", "p5.48xlarge", "i7ie.48xlarge"])
@pytest.mark.parametrize("environ", [DEFAULTS, ONE, FIVE])
def test_every_pod_that_fits_gets_its_address_and_nothing_is_given_back(instance_type, environ):
    room = capacity_of(instance_types()[instance_type].limits)
    assert room.addresses is not None
    pods = min(room.addresses, 120)
    outcome = run(instance_type, pods, **environ)
    assert sum(eni.pods for eni in outcome.enis) == pods
    assert len(outcome.enis) <= room.enis
    assert not {"DeleteNetworkInterface", "UnassignPrivateIpAddresses"} & set(outcome.calls)


def test_a_planner_that_never_rests_is_told_of(monkeypatch):
    monkeypatch.setattr(rehearsal, "_TURNS_MAX", 1)
    with pytest.raises(InvariantBrokenError, match="does not settle"):
        run("m5.large", 0)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"MAX_ENI": "2"},
        {"MAX_ENI": "99", "VPCCNI_MAX_PODS": "7"},
        {"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "9", "WARM_ENI_TARGET": "0"},
    ],
)
def test_the_policy_is_the_one_that_the_agent_would_have(environ):
    """The agent itself is asked; it is given nothing but what its policy looks at."""
    node = Node().start(eni_facts(0), eni_facts(1, tags={"node.k8s.amazonaws.com/no_manage": "true"}))
    settings, state = read_settings(environ), node.state
    assert state.limits is not None
    assert state.max_pods is not None
    agent = SimpleNamespace(settings=settings, writer=SimpleNamespace(state=state))
    policy = Agent.policy(cast(Agent, agent))
    ours = policy_of(settings, state.limits, max_pods=state.max_pods, unmanaged_enis=1)
    counted = (
        "warm_eni_target",
        "warm_ip_target",
        "minimum_ip_target",
        "enis_max",
        "slots_per_eni",
        "max_pods",
    )
    for field in (*counted, "unmanaged_enis"):
        assert getattr(policy, field) == getattr(ours, field), field
