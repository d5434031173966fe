"""Values of a later release in a log: none of them is damage, and each has a safe meaning."""

from __future__ import annotations

import pytest

from tests.unit.projections.node import Node, eni_facts, key_of, pod_of
from vpccni.errors import Reason, Refused
from vpccni.events import address, adoption, eni, sandbox
from vpccni.events import node as n
from vpccni.events.codec import decode_event, encode_event, kind_of
from vpccni.events.effect import EffectConfirmed, EffectIntended
from vpccni.model import Address, Binding, Cidr, EniId, InstanceLimits, IntentId, LeaseId
from vpccni.planner import commands as c
from vpccni.planner.doctor import ODD, examine
from vpccni.projections.snapshot import picture


@pytest.fixture
def node() -> Node:
    return Node().start(eni_facts(0, 10, 11, 12))


VALUES = {
    "an effect": EffectIntended(kind="associate_trunk", eni=EniId("eni-0"), unit="slot", family=10),
    "a modified attribute": EffectConfirmed(intent=IntentId(1), kind="modify", attribute="ena_queues"),
    "an end": sandbox.LeaseEnded(
        lease=LeaseId(1),
        cause="evicted_by_policy",
        key=key_of("a"),
        pod=pod_of("a"),
        bindings=(),
    ),
    "an origin": sandbox.AddressAssigned(
        key=key_of("z"), pod=pod_of("z"), bindings=(), netns="", origin="migrated", evidence=("x-ray",)
    ),
    "a demand": sandbox.AddRequested(key=key_of("z"), pod=pod_of("z"), demand="branch", family=6),
    "a source of ownership": address.CidrsOwned(eni=EniId("eni-0"), cidrs=(), source="controller"),
    "an ENI's origin": eni.EniAdopted(facts=eni_facts(1), managed=True, origin="donated"),
    "a mode": adoption.ModeChanged(mode="drain"),
    "a reason for a survey": adoption.NodeSurveyed(why="asked"),
}


@pytest.mark.parametrize("event", VALUES.values(), ids=VALUES.keys())
def test_a_value_of_a_later_release_can_be_read(event):
    kind = kind_of(event)
    assert decode_event(kind, 1, True, encode_event(event)) == event


def test_an_open_effect_of_a_later_release_freezes_ec2_and_nothing_else(node):
    node.append(EffectIntended(kind="associate_trunk", eni=EniId("eni-0")))
    refused = node.intend(kind="assign", eni=EniId("eni-0"), count=1)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.LOG_NEWER
    assert node.run_pod("a")
    node.delete("a")
    assert node.state.unknown_effects() == ["associate_trunk"]
    assert picture(node.restored()) == picture(node.state)


def test_a_settled_effect_of_a_later_release_freezes_nothing(node):
    intended = node.append(EffectIntended(kind="associate_trunk", eni=EniId("eni-0")))
    node.append(EffectConfirmed(intent=IntentId(intended.seq), kind="associate_trunk", eni=EniId("eni-0")))
    assert node.state.unknown_effects() == []
    assert isinstance(node.intend(kind="assign", eni=EniId("eni-0"), count=1), c.Decision)


def test_an_end_for_an_unknown_cause_is_an_end_with_its_cooldown(node):
    node.run_pod("a")
    held = node.lease("a")
    node.append(
        sandbox.LeaseEnded(
            lease=held.id, cause="evicted_by_policy", key=held.key, pod=held.pod, bindings=held.bindings
        )
    )
    assert node.state.lease_of(key_of("a")) is None
    assert held.bindings[0].address in node.state.rests
    assert held.id in node.state.standing
    assert examine(node.state) == []


def test_only_the_change_of_delete_on_termination_keeps_an_eni_safe(node):
    one = EniId("eni-1")
    node.append(eni.EniAdopted(facts=eni_facts(1), managed=True, origin="created", table=2))
    node.append(EffectConfirmed(intent=IntentId(0), kind="modify", eni=one, attribute="groups"))
    assert not node.state.enis[one].is_kept_safe
    node.append(
        EffectConfirmed(intent=IntentId(0), kind="modify", eni=one, attribute="delete_on_termination")
    )
    assert node.state.enis[one].is_kept_safe


def test_a_lease_that_is_folded_before_its_eni_is_counted_once(node):
    """1. A lease names an ENI that is not in the books.  2. The ENI is adopted.  3. Its addresses are listed."""
    binding = Binding(family=4, address=Address("10.0.1.10"), eni=EniId("eni-1"), card=0, device=1, table=2)
    found = sandbox.AddressAssigned(
        key=key_of("a"), pod=pod_of("a"), bindings=(binding,), netns="/n", origin="recovered"
    )
    node.append(found)
    assert [(one.severity, one.name) for one in examine(node.state)] == [(ODD, "lease_without_eni")]
    node.append(eni.EniAdopted(facts=eni_facts(1), managed=True, origin="found", table=2))
    node.append(address.CidrsOwned(eni=EniId("eni-1"), cidrs=(Cidr("10.0.1.10/32"),), source="describe"))
    assert node.state.enis[EniId("eni-1")].lease_count == 1
    assert examine(node.state) == []
    node.append(
        sandbox.LeaseEnded(
            lease=node.lease("a").id, cause="del", key=key_of("a"), pod=pod_of("a"), bindings=(binding,)
        )
    )
    assert node.state.enis[EniId("eni-1")].lease_count == 0


def test_a_refused_add_leaves_its_demand_in_the_log_once(node):
    refuse = c.RefuseAdd(key=key_of("x"), pod=pod_of("x"), reason=Reason.INSTANCE_FULL, request=0)
    node.ask(refuse)
    kinds = [type(record.event) for record in node.records[-2:]]
    assert kinds == [sandbox.AddRequested, sandbox.AddFailed]
    assert node.records[-1].cause == node.records[-2].seq
    asked = node.append(sandbox.AddRequested(key=key_of("y"), pod=pod_of("y")))
    node.ask(c.RefuseAdd(key=key_of("y"), pod=pod_of("y"), reason=Reason.WAIT_TIMED_OUT, request=asked.seq))
    assert isinstance(node.records[-1].event, sandbox.AddFailed)
    assert node.records[-1].cause == asked.seq
    assert sum(isinstance(record.event, sandbox.AddRequested) for record in node.records) == 2


def test_a_log_is_known_by_an_id_that_its_first_event_fixes():
    node = Node()
    node.ask(c.StartAgent(boot_id="boot-1", version="1", log_id="a" * 32))
    assert isinstance(node.records[0].event, n.LogCreated)
    node.ask(c.StartAgent(boot_id="boot-1", version="1", log_id="b" * 32))
    assert node.state.log_id == "a" * 32
    assert sum(isinstance(record.event, n.LogCreated) for record in node.records) == 1
    assert node.restored().log_id == "a" * 32


def test_limits_that_an_older_program_read_say_which_it_knew(node):
    old = n.LimitsObserved(type="m5.large", limits=InstanceLimits(enis_max=3, ipv4_per_eni=10))
    assert old.revision < n.LIMITS_REVISION
