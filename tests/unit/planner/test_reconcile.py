"""Comparing the books with EC2 by the order of belief: silence frees nothing, news counts when said twice."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts
from vpccni.events import address, eni, sandbox
from vpccni.events.codec import Event
from vpccni.model import Address, Binding, Cidr, EniFacts, EniId, PodRef, SandboxKey, Stamp
from vpccni.planner import commands as c
from vpccni.planner.reconcile import (
    NO_MANAGE_TAG,
    READINGS_APART_S_MAX,
    READINGS_APART_S_MIN,
    SETTLING_S,
    is_managed,
)

ZERO, ONE = EniId("eni-0"), EniId("eni-1")
TEN, ELEVEN = Cidr("10.0.0.10/32"), Cidr("10.0.0.11/32")
BOTH = (eni_facts(0, 10, 11), eni_facts(1, 20))


def read(node: Node, *enis: EniFacts, previous: tuple[EniFacts, ...] | None = None) -> list[Event]:
    """One reading; its previous one said the same, if not told otherwise."""
    answer = node.read(*enis, previous=previous)
    assert isinstance(answer, c.Decision)
    return [event for event, _ in answer.events]


@pytest.fixture
def node() -> Node:
    """Two ENIs, long in the books."""
    made = Node().start(*BOTH)
    made.wait(SETTLING_S)
    return made


# -- what is ours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "manages_untagged", "managed"),
    [
        (eni_facts(0, tags={NO_MANAGE_TAG: "true"}), False, True),
        (eni_facts(1), False, True),
        (eni_facts(1, tags={}), True, True),
        (eni_facts(1, tags={}), False, False),
        (eni_facts(1, tags={NO_MANAGE_TAG: "true"}), True, False),
        (eni_facts(1, tags={NO_MANAGE_TAG: "false"}), False, True),
        (eni_facts(1, type="efa-only"), True, False),
        (eni_facts(1, type="trunk"), True, True),
        (eni_facts(1, card=1), True, False),
        (eni_facts(1, card=1, tags={NO_MANAGE_TAG: "false"}), True, False),
        (eni_facts(0, card=1, type="efa"), True, False),
    ],
    ids=[
        "primary",
        "ours",
        "untagged",
        "untagged, not wanted",
        "no_manage",
        "no_manage false",
        "efa-only",
        "trunk",
        "another card",
        "another card, no_manage false",
        "first device of another card",
    ],
)
def test_which_enis_are_ours_to_manage(facts, manages_untagged, managed):
    assert is_managed(facts, "i-1", manages_untagged) is managed


def test_an_eni_of_another_card_that_an_older_release_managed_serves_no_new_pod_and_then_leaves_the_pool():
    """1. The log has a managed ENI on card 1.  2. A pod lives on it.  3. The pod goes, its address rests."""
    node = Node().start(eni_facts(0))
    there = eni_facts(1, 20, 21, card=1, device=0)
    node.append(eni.EniAdopted(facts=msgspec.structs.replace(there, cidrs=()), managed=True, origin="found"))
    node.append(address.CidrsOwned(eni=ONE, cidrs=there.cidrs, source="describe"))
    node.ready(ONE)
    pod, binding = SandboxKey("aws-cni", "old", "eth0"), Binding(
        family=4, address=Address("10.0.1.20"), eni=ONE, card=1, device=0, table=10100
    )  # fmt: skip
    node.append(sandbox.AddressAssigned(key=pod, pod=PodRef(), bindings=(binding,), netns="/netns/old"))
    assert not isinstance(node.add("new"), c.Decision)
    assert read(node, eni_facts(0), there) == [], "the kernel serves it for as long as the pod lives"
    node.ask(c.EndLease(key=pod, cause="del"))
    node.unwire_all()
    assert read(node, eni_facts(0), there) == []
    node.wait(COOLDOWN_S)
    released, adopted = read(node, eni_facts(0), there)
    assert released == address.CidrsReleased(eni=ONE, cidrs=there.cidrs, source="describe")
    assert isinstance(adopted, eni.EniAdopted)
    assert not adopted.managed
    assert read(node, eni_facts(0), there) == []


def test_nothing_is_compared_before_the_machine_is_known():
    assert read(Node(), *BOTH) == []


# -- what is new ------------------------------------------------------------------------------------


def test_the_first_reading_of_an_empty_log_is_believed():
    node = Node().start(*BOTH)
    assert sorted(node.state.enis) == [ZERO, ONE]
    assert sorted(node.state.enis[ZERO].cidrs) == [TEN, ELEVEN]
    assert node.state.enis[ONE].table == 2


def test_later_a_new_eni_is_believed_when_two_readings_agree(node):
    new = eni_facts(2, 30)
    assert read(node, *BOTH, new, previous=BOTH) == []
    events = read(node, *BOTH, new, previous=(*BOTH, new))
    assert [type(event) for event in events] == [eni.EniAdopted, address.CidrsOwned]


def test_an_unmanaged_eni_is_in_the_books_without_its_addresses(node):
    foreign = eni_facts(2, 30, tags={NO_MANAGE_TAG: "true"})
    (event,) = read(node, *BOTH, foreign)
    assert isinstance(event, eni.EniAdopted)
    assert not event.managed
    assert node.state.enis[foreign.id].cidrs == {}
    assert read(node, *BOTH, eni_facts(2, 30, 31, tags={NO_MANAGE_TAG: "true"})) == []


def test_a_new_address_is_believed_when_two_readings_agree(node):
    more = eni_facts(1, 20, 21)
    assert read(node, BOTH[0], more, previous=BOTH) == []
    assert read(node, BOTH[0], more) == [
        address.CidrsOwned(eni=ONE, cidrs=(Cidr("10.0.1.21/32"),), source="describe")
    ]


def test_an_eni_with_an_open_intent_is_not_compared(node):
    node.intend(kind="assign", eni=ONE, count=1)
    assert read(node, BOTH[0], eni_facts(1, 20, 21)) == []
    assert read(node, BOTH[0]) == []


def test_an_attach_whose_reply_was_lost_is_learned(node):
    loose = eni_facts(2, device=-1, attachment="", instance="")
    node.append(eni.EniAdopted(facts=loose, managed=True, origin="created"))
    assert read(node, *BOTH, eni_facts(2), previous=BOTH) == []
    (event,) = read(node, *BOTH, eni_facts(2))
    assert event == eni.EniAttached(eni=EniId("eni-2"), attachment="attach-2", device=2, card=0, table=3)


# -- what is missing --------------------------------------------------------------------------------


def test_a_missing_address_is_suspected_then_released_when_it_is_free(node):
    less = (eni_facts(0, 11), BOTH[1])
    assert read(node, *less) == [address.CidrSuspected(eni=ZERO, cidr=TEN, source="ec2", readings=1)]
    assert node.run_pod("a") == "10.0.0.11", "nothing new is assigned out of it"
    assert read(node, *less) == [address.CidrsReleased(eni=ZERO, cidrs=(TEN,), source="describe")]
    assert read(node, *less) == []


def test_a_missing_address_with_a_lease_is_kept_for_as_long_as_the_lease_lasts(node):
    node.run_pod("a")
    less = (eni_facts(0, 11), BOTH[1])
    readings = []
    for _ in range(5):
        readings += read(node, *less)
    assert [type(event) for event in readings] == [address.CidrSuspected] * 2
    assert node.lease("a").bindings[0].address == "10.0.0.10"
    node.end_pod("a")
    assert read(node, *less) == [], "it rests"
    node.wait(COOLDOWN_S)
    assert read(node, *less) == [address.CidrsReleased(eni=ZERO, cidrs=(TEN,), source="describe")]


def test_an_address_that_is_listed_again_is_in_order(node):
    read(node, eni_facts(0, 11), BOTH[1])
    assert read(node, *BOTH) == [address.CidrCleared(eni=ZERO, cidr=TEN, source="ec2")]
    assert node.run_pod("a") == "10.0.0.10"


def test_the_result_of_our_own_call_may_lag(node):
    intent = node.intend(kind="assign", eni=ONE, count=1).intent
    node.settle(intent, c.Confirmed(cidrs=(Cidr("10.0.1.21/32"),)))
    assert read(node, *BOTH) == []
    node.wait(SETTLING_S)
    assert [type(event) for event in read(node, *BOTH)] == [address.CidrSuspected]


def test_an_eni_that_was_attached_just_now_is_not_missed_however_old_it_is(node):
    """A bug: an ENI whose attach EC2 throttled for minutes was suspected at the first reading that lagged."""
    late = eni_facts(2, device=-1, attachment="", instance="")
    node.settle(node.intend(kind="create", count=1).intent, c.Confirmed(facts=late))
    node.wait(10 * SETTLING_S)
    node.settle(node.intend(kind="attach", eni=late.id, device=2).intent, c.Confirmed(attachment="a"))
    assert read(node, *BOTH) == []
    node.wait(SETTLING_S)
    assert [type(event) for event in read(node, *BOTH)] == [eni.EniSuspected]


def test_a_missing_eni_is_suspected_twice_then_gone_when_it_is_free(node):
    kinds = [[type(event) for event in read(node, BOTH[0])] for _ in range(4)]
    assert kinds == [[eni.EniSuspected], [eni.EniSuspected], [eni.EniGone], []]
    assert ONE not in node.state.enis


def test_a_missing_eni_with_a_lease_or_a_resting_address_stays(node):
    for name in "abc":
        node.run_pod(name)
    assert node.address("c") == "10.0.1.20"
    for _ in range(5):
        read(node, BOTH[0])
    assert ONE in node.state.enis
    node.end_pod("c")
    assert read(node, BOTH[0]) == []
    node.wait(COOLDOWN_S)
    assert [type(event) for event in read(node, BOTH[0])] == [eni.EniGone]


def test_a_missing_eni_gets_no_pod_until_it_is_listed_again(node):
    for name in "ab":
        node.run_pod(name)
    read(node, BOTH[0])
    assert isinstance(node.add("c"), c.Park)
    assert read(node, *BOTH) == [eni.EniCleared(eni=ONE, source="ec2")]
    assert isinstance(node.add("c"), c.Decision)


def test_the_primary_eni_is_never_gone(node):
    for _ in range(5):
        read(node)
    assert ZERO in node.state.enis


def test_a_detached_eni_is_not_missed(node):
    node.append(eni.EniDetached(eni=ONE))
    assert read(node, BOTH[0]) == []


# -- when a reading was begun -----------------------------------------------------------------------


def read_begun(node: Node, begun: Stamp, *enis: EniFacts, previous: c.Reading | None = None) -> list[Event]:
    answer = node.ask(c.ReadEc2(c.Reading(enis, begun), previous))
    assert isinstance(answer, c.Decision)
    return [event for event, _ in answer.events]


def test_a_reading_that_is_older_than_our_last_call_says_nothing_of_that_eni(node):
    """1. EC2 is asked.  2. A call of ours changes eni-1.  3. The answer comes, and lacks an address of both ENIs."""
    begun = node.now
    node.wait(10)
    intent = node.intend(kind="assign", eni=ONE, count=1).intent
    node.settle(intent, c.Confirmed(cidrs=(Cidr("10.0.1.21/32"),)))
    node.wait(2 * SETTLING_S)
    found = read_begun(node, begun, eni_facts(0, 11), eni_facts(1))
    assert found == [address.CidrSuspected(eni=ZERO, cidr=TEN, source="ec2", readings=1)]


def test_a_call_of_another_boot_makes_no_reading_old(node):
    intent = node.intend(kind="assign", eni=ONE, count=1).intent
    node.settle(intent, c.Confirmed(cidrs=(Cidr("10.0.1.21/32"),)))
    node.boot("boot-2")
    node.wait(2 * SETTLING_S)
    assert [type(event) for event in read(node, eni_facts(0, 10, 11), eni_facts(1, 20))] == [
        address.CidrSuspected
    ]


def test_of_two_readings_that_agree_none_is_older_than_our_last_call(node):
    """1. eni-1 is listed with an address.  2. We give it back.  3. An EC2 that lags for minutes lists it again."""
    more = eni_facts(1, 20, 21)
    node.append(address.CidrsOwned(eni=ONE, cidrs=(Cidr("10.0.1.21/32"),), source="reply"))
    before = c.Reading((BOTH[0], more), node.now)
    intent = node.intend(kind="unassign", eni=ONE, cidrs=(Cidr("10.0.1.21/32"),)).intent
    node.settle(intent, c.Confirmed())
    node.wait(SETTLING_S + 1)
    assert read_begun(node, node.now, BOTH[0], more, previous=before) == []
    before = c.Reading((BOTH[0], more), node.now)
    node.wait(READINGS_APART_S_MIN)
    (event,) = read_begun(node, node.now, BOTH[0], more, previous=before)
    assert isinstance(event, address.CidrsOwned), "somebody has given it to us again"


@pytest.mark.parametrize("apart_s", [READINGS_APART_S_MIN - 0.1, READINGS_APART_S_MAX + 0.1])
def test_two_readings_that_are_too_near_or_half_an_hour_apart_do_not_make_news(node, apart_s):
    new = (*BOTH, eni_facts(2, 30))
    before = c.Reading(new, node.now)
    node.wait(apart_s)
    assert read_begun(node, node.now, *new, previous=before) == []


@pytest.mark.parametrize("what", ["address", "eni"])
def test_two_readings_that_are_half_an_hour_apart_are_not_two_in_a_row(node, what):
    lacking = (eni_facts(0, 11), BOTH[1]) if what == "address" else (BOTH[0],)

    def readings() -> list[int]:
        events = read_begun(node, node.now, *lacking)
        return [
            event.readings for event in events if isinstance(event, address.CidrSuspected | eni.EniSuspected)
        ]

    assert readings() == [1]
    node.wait(READINGS_APART_S_MIN / 2)
    assert readings() == [], "hardly another reading"
    node.wait(1800)
    assert readings() == [1]
    node.wait(READINGS_APART_S_MIN)
    last = read_begun(node, node.now, *lacking)
    assert [type(event) for event in last] == [
        address.CidrsReleased if what == "address" else eni.EniSuspected
    ]


def test_an_eni_that_we_deleted_is_not_found_again_by_readings_that_are_older(node):
    """1. EC2 is asked twice.  2. eni-1 is detached and deleted.  3. The second answer comes, as old as it is."""
    before = c.Reading(BOTH, node.now)
    node.wait(READINGS_APART_S_MIN)
    begun = node.now
    node.wait(5)
    node.settle(node.intend(kind="detach", eni=ONE).intent, c.Confirmed())
    assert read_begun(node, begun, *BOTH, previous=before) == [], "nor is it attached again"
    node.settle(node.intend(kind="delete", eni=ONE).intent, c.Confirmed())
    assert ONE not in node.state.enis
    assert read_begun(node, begun, *BOTH, previous=before) == []
    for state in (node.folded(), node.restored()):
        assert state.deleted == node.state.deleted
    answer = node.ask(c.AdoptLeftBehind((loose(1),)))
    assert answer == c.Decision()
    node.wait(SETTLING_S)
    assert [type(event) for event in read(node, *BOTH)] == [eni.EniAdopted, address.CidrsOwned]


# -- what an earlier agent left behind --------------------------------------------------------------


def loose(number: int, **fields) -> EniFacts:
    return msgspec.structs.replace(eni_facts(number), device=-1, attachment="", instance="", **fields)


def left_behind(node: Node, *enis: EniFacts) -> list[EniId]:
    answer = node.ask(c.AdoptLeftBehind(enis))
    assert isinstance(answer, c.Decision)
    return [event.facts.id for event, _ in answer.events if isinstance(event, eni.EniAdopted)]


def test_what_was_left_behind_is_taken_in_once(node):
    assert left_behind(node, loose(5), eni_facts(6), loose(1)) == ["eni-5"]
    assert left_behind(node, loose(5)) == []
    assert node.state.enis[EniId("eni-5")].origin == "left_behind"


def test_while_a_create_is_open_nothing_counts_as_left_behind(node):
    """It may be the very ENI whose create was never answered."""
    intent = node.intend(kind="create", count=1).intent
    assert left_behind(node, loose(5)) == []
    node.settle(intent, c.Confirmed(facts=loose(5)))
    assert left_behind(node, loose(5)) == []
    assert node.state.enis[EniId("eni-5")].origin == "created"
