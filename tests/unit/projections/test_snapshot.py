"""A snapshot is a short list of real records whose fold is the state."""

from __future__ import annotations

import msgspec
import pytest

from tests.data.event_samples import EVENTS
from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts
from vpccni.events import address, eni
from vpccni.events import node as n
from vpccni.events.codec import Record
from vpccni.events.effect import EffectIntended
from vpccni.model import Cidr, EniId, Seq
from vpccni.planner import commands as c
from vpccni.projections.snapshot import digest, picture, restore, snapshot_of
from vpccni.projections.state import State


@pytest.fixture
def busy() -> Node:
    """A node in the middle of everything: two ENIs, leases in every state, rests, intents, suspicions."""
    node = Node().start(eni_facts(0, 10, 11, 12), eni_facts(1, 20, 21, 22))
    for name in ("wired", "doubted", "ended"):
        node.run_pod(name)
    node.add("unwired")
    node.ask(c.NoteEvidence(lease=node.lease("doubted").id, source="kernel", is_alive=False))
    node.end_pod("ended")
    node.wait(5)
    node.run_pod("standing")
    node.delete("standing")
    node.intend(kind="create", token="t", count=2)
    node.intend(kind="unassign", eni=EniId("eni-1"), cidrs=(Cidr("10.0.1.22/32"),))
    create, unassign = node.state.intents
    node.settle(create, c.Unknown(detail="no reply"))
    node.ask(c.Observe(EVENTS[7]))
    assert unassign
    return node


def test_it_rebuilds_the_state_and_is_short(busy):
    records = snapshot_of(busy.state)
    assert picture(restore(records)) == picture(busy.state)
    assert len(records) < len(busy.records)
    assert [record.seq for record in records] == sorted({record.seq for record in records})


def test_it_is_made_of_records_of_the_log_with_addresses_left_out_that_are_gone(busy):
    by_seq = {record.seq: record for record in busy.records}
    for record in snapshot_of(busy.state):
        original = by_seq[record.seq]
        if isinstance(record.event, address.CidrsOwned):
            assert isinstance(original.event, address.CidrsOwned)
            assert set(record.event.cidrs) <= set(original.event.cidrs)
            original = msgspec.structs.replace(original, event=record.event)
        assert record == original


def test_a_snapshot_of_a_restored_state_is_the_same_snapshot(busy):
    records = snapshot_of(busy.state)
    assert snapshot_of(restore(records)) == records


def test_the_restored_state_decides_like_the_live_one(busy):
    busy.wait(COOLDOWN_S + 1)
    restored = busy.restored()
    for name in ("next", "ended", "wired"):
        live = busy.add(name)
        busy_state, busy.state = busy.state, restored
        assert busy.add(name) == live
        restored, busy.state = busy.state, busy_state


def test_it_stays_short_however_long_the_node_lives():
    node = Node().start(eni_facts(0, 10, 11))
    sizes = []
    for _ in range(30):
        node.run_pod("web")
        node.end_pod("web")
        node.wait(COOLDOWN_S)
        sizes.append(len(snapshot_of(node.state)))
    assert sizes[-1] == sizes[4]


def test_an_eni_that_came_and_went_leaves_nothing():
    node = Node().start(eni_facts(0, 10))
    before = len(snapshot_of(node.state))
    node.read(eni_facts(0, 10), eni_facts(1, 20), previous=(eni_facts(1, 20),))
    node.append(eni.EniDetached(eni=EniId("eni-1")))
    node.append(eni.EniGone(eni=EniId("eni-1"), source="reply"))
    assert len(snapshot_of(node.state)) == before


def test_addresses_that_come_and_go_leave_nothing():
    """A suspicion about an address goes with it."""
    node = Node().start(eni_facts(0, 10))
    before = len(snapshot_of(node.state))
    for octet in range(50, 70):
        one = Cidr(f"10.0.0.{octet}/32")
        node.append(address.CidrsOwned(eni=EniId("eni-0"), cidrs=(one,), source="reply"))
        node.append(address.CidrSuspected(eni=EniId("eni-0"), cidr=one, source="ec2", readings=1))
        node.append(address.CidrsReleased(eni=EniId("eni-0"), cidrs=(one,), source="describe"))
    assert len(snapshot_of(node.state)) == before


def test_an_eni_that_was_adopted_again_and_again_is_restored_as_it_is():
    """What only the first of three adoptions said, stays said."""
    node = Node().start(eni_facts(0, 10))
    for keeps in (True, False):
        facts = eni_facts(0, delete_on_termination=keeps)
        node.append(eni.EniAdopted(facts=facts, managed=True, origin="found", table=254))
    assert node.state.enis[EniId("eni-0")].is_kept_safe
    assert picture(node.restored()) == picture(node.state)


@pytest.mark.parametrize(
    "event",
    [
        eni.EniLinkLost(eni=EniId("eni-0")),
        address.CidrsOwned(eni=EniId("eni-0"), cidrs=(Cidr("10.0.0.99/32"),), source="reply"),
        EffectIntended(kind="create", count=1),
        EVENTS[-1],
        n.SchedulingObserved(schedulable=True),
    ],
    ids=lambda event: type(event).__name__,
)
def test_states_that_differ_have_pictures_that_differ(busy, event):
    before, state = digest(busy.state), busy.folded()
    assert digest(state) == before
    state.evolve(Record(Seq(busy.state.head + 1), busy.now, event))
    if isinstance(event, n.SchedulingObserved):
        assert digest(state) == before, "schedulable it was already"
    else:
        assert digest(state) != before


def test_an_empty_state_has_an_empty_snapshot():
    assert snapshot_of(State()) == ()
    assert picture(restore(())) == picture(State())
