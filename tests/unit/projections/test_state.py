"""The folds: what each event leaves behind, and which contradictions are refused."""

from __future__ import annotations

import pytest

from tests.data.event_samples import EVENTS
from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts, key_of, pod_of
from vpccni.errors import InvariantBrokenError, Reason
from vpccni.events import address, effect, eni, sandbox
from vpccni.events.codec import KINDS, UnknownEvent
from vpccni.model import Address, Binding, Cidr, EniId, IntentId, LeaseId
from vpccni.planner import commands as c
from vpccni.projections.snapshot import picture
from vpccni.projections.state import _FOLDS, State

ENI = EniId("eni-0")
TEN = Cidr("10.0.0.10/32")


@pytest.fixture
def node() -> Node:
    return Node().start(eni_facts(0, 10, 11))


def refused(node: Node, event) -> str:
    """The state refuses the event and is as before."""
    before = picture(node.state)
    with pytest.raises(InvariantBrokenError) as error:
        node.append(event)
    assert picture(node.state) == before
    return error.value.detail


def test_every_kind_of_event_has_a_fold():
    assert {type(event) for event in EVENTS} | {UnknownEvent} == set(_FOLDS)
    assert {shape.type for shape in KINDS.values()} | {UnknownEvent} == set(_FOLDS)


# -- leases -----------------------------------------------------------------------------------------


def assigned(name: str, *addresses: str) -> sandbox.AddressAssigned:
    bindings = tuple(
        Binding(family=4, address=Address(one), eni=ENI, card=0, device=0, table=254) for one in addresses
    )
    return sandbox.AddressAssigned(key=key_of(name), pod=pod_of(name), bindings=bindings, netns="/netns")


def test_an_address_with_a_lease_cannot_be_assigned_again(node):
    node.append(assigned("web", "10.0.0.10"))
    assert "held by lease" in refused(node, assigned("other", "10.0.0.10"))


def test_a_sandbox_with_a_lease_cannot_get_another(node):
    node.append(assigned("web", "10.0.0.10"))
    assert "already has lease" in refused(node, assigned("web", "10.0.0.11"))


def test_a_lease_of_two_addresses_is_refused_whole_when_one_is_held(node):
    node.append(assigned("web", "10.0.0.11"))
    refused(node, assigned("both", "10.0.0.10", "10.0.0.11"))
    assert Address("10.0.0.10") not in node.state.by_address


def test_only_an_open_lease_ends(node):
    lease = node.append(assigned("web", "10.0.0.10"))
    node.delete("web")
    ended = node.records[-1].event
    assert "not open" in refused(node, ended)
    assert isinstance(ended, sandbox.LeaseEnded)
    assert ended.lease == lease.seq


def test_the_same_sandbox_may_come_again_after_its_end(node):
    first = node.run_pod("web")
    node.end_pod("web")
    second = node.run_pod("web")
    assert first != second
    assert node.lease("web").id > 0


def test_an_ended_lease_rests_and_stands_until_its_veth_is_gone(node):
    node.run_pod("web")
    lease = node.delete("web")
    rest = node.state.rests[Address("10.0.0.10")]
    assert (rest.lease, rest.is_standing, rest.pod.name) == (lease, True, "web")
    node.unwire_all()
    assert not rest.is_standing
    assert not node.state.standing


@pytest.mark.parametrize(
    ("cause", "stands"),
    [
        ("del", True),
        ("sandbox_gone", True),
        ("reboot", False),
        ("machine_changed", False),
        ("superseded", False),
    ],
)
def test_no_veth_outlives_a_boot_or_a_machine(node, cause, stands):
    node.run_pod("web")
    lease = node.lease("web")
    node.append(
        sandbox.LeaseEnded(lease=lease.id, cause=cause, key=lease.key, pod=lease.pod, bindings=lease.bindings)
    )
    assert bool(node.state.standing) == stands


def test_an_add_that_was_undone_before_it_was_wired_needs_no_rest(node):
    node.add("web")
    node.ask(c.RefuseAdd(key=key_of("web"), pod=pod_of("web"), reason=Reason.NETNS_GONE))
    assert not node.state.rests
    assert not node.state.standing


def test_what_is_late_about_an_ended_lease_is_ignored(node):
    """Wiring, doubts and their ends ride along: the DEL may overtake them."""
    node.run_pod("web")
    lease = node.delete("web")
    before = picture(node.state)
    for event in (
        sandbox.SandboxWired(
            lease=lease,
            links=(sandbox.SandboxLink(ifname="eth0", host_ifname="x", host_ifindex=1, alias="x"),),
        ),
        sandbox.LeaseSuspected(lease=lease, source="kernel"),
        sandbox.LeaseCleared(lease=lease, source="kernel"),
        sandbox.SandboxUnwired(lease=LeaseId(999)),
    ):
        node.append(event)
    assert picture(node.state) == before


def test_forgetting_one_address_of_a_lease_does_not_forget_that_its_veth_stands(node):
    """A bug: the other address waited for ever for a veth of which nobody was asked any more."""
    node.append(assigned("both", "10.0.0.10", "10.0.0.11"))
    lease = node.delete("both")
    node.append(address.CidrsReleased(eni=ENI, cidrs=(TEN,), source="reply"))
    assert lease in node.state.standing
    node.unwire_all()
    assert not node.state.rests[Address("10.0.0.11")].is_standing


# -- ENIs and addresses -----------------------------------------------------------------------------


def test_an_eni_with_leases_cannot_be_gone_and_its_addresses_not_released(node):
    node.run_pod("web")
    assert "open leases" in refused(node, eni.EniGone(eni=ENI, source="ec2"))
    assert "open lease" in refused(
        node, address.CidrsReleased(eni=ENI, cidrs=(Cidr("10.0.0.11/32"), TEN), source="reply")
    )


def test_a_prefix_is_not_released_under_a_lease_inside_it(node):
    node.append(address.CidrsOwned(eni=ENI, cidrs=(Cidr("10.0.1.16/28"),), source="reply"))
    node.append(assigned("web", "10.0.1.20"))
    refused(node, address.CidrsReleased(eni=ENI, cidrs=(Cidr("10.0.1.16/28"),), source="reply"))


def test_what_is_about_an_unknown_eni_is_refused(node):
    nobody = EniId("eni-9")
    for event in (
        eni.EniDetached(eni=nobody),
        eni.EniLinkReady(eni=nobody, ifname="x", ifindex=1),
        address.CidrsOwned(eni=nobody, cidrs=(TEN,), source="reply"),
        eni.EniGone(eni=nobody, source="ec2"),
    ):
        assert "not in the books" in refused(node, event)


def test_an_address_that_ec2_gave_to_another_eni_is_there_and_nowhere_else(node):
    """A bug: the address was on two ENIs, and the end of the first forgot the rest of the second's.

    1. eni-1 is deleted, the reply is lost. 2. EC2 gives its address to eni-0. 3. A pod has it there, and ends.
    4. The delete is settled: eni-1 is gone. 5. The address must still rest.
    """
    node.read(eni_facts(0, 10, 11), eni_facts(1, 20), previous=(eni_facts(1, 20),))
    node.append(eni.EniDetached(eni=EniId("eni-1")))
    moved = Cidr("10.0.1.20/32")
    node.append(address.CidrsOwned(eni=ENI, cidrs=(moved,), source="reply"))
    assert moved in node.state.enis[ENI].cidrs
    assert moved not in node.state.enis[EniId("eni-1")].cidrs
    node.append(assigned("web", "10.0.1.20"))
    node.delete("web")
    node.append(eni.EniGone(eni=EniId("eni-1"), source="reply"))
    assert Address("10.0.1.20") in node.state.rests
    assert picture(node.restored()) == picture(node.state) == picture(node.folded())


def test_a_released_address_forgets_its_rest(node):
    node.run_pod("web")
    node.end_pod("web")
    node.append(address.CidrsReleased(eni=ENI, cidrs=(TEN,), source="reply"))
    assert not node.state.rests


def test_a_link_that_is_lost_or_detached_has_no_name(node):
    held = node.state.enis[ENI]
    for event in (eni.EniLinkLost(eni=ENI), eni.EniDetached(eni=ENI)):
        node.ready(ENI)
        assert held.is_link_ready
        node.append(event)
        assert (held.is_link_ready, held.ifname, held.ifindex) == (False, "", 0)
        node.append(eni.EniAttached(eni=ENI, attachment="again", device=0, card=0, table=254))


def test_a_suspicion_stays_until_it_is_cleared(node):
    node.append(eni.EniSuspected(eni=ENI, source="ec2", readings=1))
    node.append(address.CidrSuspected(eni=ENI, cidr=TEN, source="ec2", readings=2))
    held = node.state.enis[ENI]
    assert (held.suspected, held.cidrs[TEN].suspected) == (1, 2)
    assert picture(node.restored()) == picture(node.state)
    node.append(eni.EniCleared(eni=ENI, source="ec2"))
    node.append(address.CidrCleared(eni=ENI, cidr=TEN, source="ec2"))
    assert (held.suspected, held.cidrs[TEN].suspected) == (0, 0)


# -- effects ----------------------------------------------------------------------------------------


def intended(node: Node, kind, **fields) -> IntentId:
    return IntentId(node.append(effect.EffectIntended(kind=kind, eni=ENI, **fields)).seq)


@pytest.mark.parametrize("closing", [effect.EffectFailed, effect.EffectAbandoned])
def test_a_detach_that_did_not_happen_lets_the_eni_serve_again(node, closing):
    intent = intended(node, "detach")
    assert node.state.enis[ENI].is_retiring
    node.append(closing(intent=intent, kind="detach", reason="ec2_throttled", eni=ENI))
    assert not node.state.enis[ENI].is_retiring
    assert not node.state.intents


def test_an_unknown_outcome_keeps_the_intent_open(node):
    intent = intended(node, "assign", count=2)
    node.append(effect.EffectUnknown(intent=intent, kind="assign", eni=ENI))
    assert node.state.intents[intent].unknown is not None
    node.append(effect.EffectConfirmed(intent=intent, kind="assign", eni=ENI))
    assert not node.state.intents


def test_addresses_under_an_open_unassign_are_known(node):
    intent = intended(node, "unassign", cidrs=(TEN,))
    assert node.state.cidrs_under_release() == {TEN}
    node.append(effect.EffectFailed(intent=intent, kind="unassign", reason="ec2_throttled", eni=ENI))
    assert node.state.cidrs_under_release() == set()


# -- the machine ------------------------------------------------------------------------------------


def test_an_unknown_kind_is_noted_when_it_must_be_understood():
    state = Node().state
    node = Node()
    for must in (False, True):
        node.append(UnknownEvent(kind=f"new-{must}", version=1, must_understand=must, body=b"{}"))
    assert node.state.unknown_kinds == {"new-True"}
    assert state.unknown_kinds == set()


def test_a_start_ends_what_a_broken_check_began(node):
    node.ask(c.ReportBroken(name="fold", detail="x"))
    assert node.state.broken is not None
    node.ask(c.StartAgent(boot_id=node.now.boot_id, version="2"))
    assert node.state.broken is None


def test_rests_are_measured_by_the_clock_of_the_question(node):
    node.run_pod("web")
    node.end_pod("web")
    (rest,) = node.state.rests.values()
    node.wait(10)
    assert node.state.rest_left_s(rest, node.now, COOLDOWN_S) == COOLDOWN_S - 10
    assert isinstance(node.state, State)
