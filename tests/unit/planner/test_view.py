"""From the books to the counts that the sizing planner looks at."""

from __future__ import annotations

import pytest

from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts
from vpccni.errors import Refused
from vpccni.events import address, eni
from vpccni.model import Cidr, EniId
from vpccni.planner import commands as c
from vpccni.planner.sizing import EniView, free_now_of, room_of
from vpccni.planner.view import (
    EC2_DELIVERY_S,
    LINK_PATIENCE_S,
    is_cidr_rested,
    rested_cidrs,
    unmanaged_enis,
    views_of,
)

ZERO, ONE = EniId("eni-0"), EniId("eni-1")


def views(node: Node) -> dict[str, EniView]:
    return {view.id: view for view in views_of(node.state, node.now, COOLDOWN_S, 4)}


@pytest.fixture
def node() -> Node:
    return Node().start(eni_facts(0, 10, 11, 12), eni_facts(1, 20))


def counts(view: EniView) -> tuple[int, int, int, int]:
    return view.owned, view.assigned, view.resting, view.blocked


def test_every_address_is_counted_once(node):
    node.run_pod("leased")
    node.run_pod("resting")
    node.end_pod("resting")
    assert counts(views(node)[ZERO]) == (3, 1, 1, 0)
    assert views(node)[ZERO].rested == (Cidr("10.0.0.12/32"),)


def test_a_rest_is_soon_over_when_ec2_could_not_be_faster(node):
    node.run_pod("a")
    node.end_pod("a")
    node.wait(COOLDOWN_S - EC2_DELIVERY_S - 0.001)
    assert (views(node)[ZERO].resting, views(node)[ZERO].resting_soon) == (1, 0)
    node.wait(0.001)
    assert (views(node)[ZERO].resting, views(node)[ZERO].resting_soon) == (1, 1)
    node.wait(EC2_DELIVERY_S)
    assert (views(node)[ZERO].resting, views(node)[ZERO].resting_soon) == (0, 0)


def test_an_address_whose_veth_stands_is_resting_and_then_blocked(node):
    node.run_pod("a")
    node.delete("a")
    assert counts(views(node)[ZERO]) == (3, 0, 1, 0)
    node.wait(COOLDOWN_S)
    assert counts(views(node)[ZERO]) == (3, 0, 0, 1)
    node.unwire_all()
    assert counts(views(node)[ZERO]) == (3, 0, 0, 0)


@pytest.mark.parametrize("how", ["suspected", "under release"])
def test_what_is_suspected_or_under_release_is_blocked(node, how):
    cidr = Cidr("10.0.0.12/32")
    if how == "suspected":
        node.append(address.CidrSuspected(eni=ZERO, cidr=cidr, source="ec2", readings=1))
    else:
        node.intend(kind="unassign", eni=ZERO, cidrs=(cidr,))
    assert counts(views(node)[ZERO]) == (3, 0, 0, 1)
    assert views(node)[ZERO].releasing == (how == "under release")
    assert cidr not in views(node)[ZERO].rested


def test_what_may_be_given_back_begins_with_the_highest_address(node):
    held = node.state.enis[ZERO]
    assert [cidr[:-3] for cidr in rested_cidrs(node.state, held, node.now, COOLDOWN_S)] == [
        "10.0.0.12",
        "10.0.0.11",
        "10.0.0.10",
    ]


def test_an_eni_with_an_open_change_of_addresses_is_busy(node):
    node.intend(kind="assign", eni=ONE, count=2)
    view = views(node)[ONE]
    assert (view.is_busy, view.pending, view.can_grow, view.can_shrink, view.rested) == (
        True,
        2,
        False,
        False,
        (),
    )
    assert (view.is_usable, view.owned) == (True, 1)


def test_the_primary_may_grow_and_never_goes(node):
    primary, other = views(node)[ZERO], views(node)[ONE]
    assert (primary.is_primary, primary.can_grow, primary.can_shrink) == (True, True, False)
    assert (other.is_primary, other.can_grow, other.can_shrink) == (False, True, True)


def test_an_eni_that_is_being_created_is_coming_with_what_was_asked_for(node):
    intent = node.intend(kind="create", count=3).intent
    view = views(node)[f"creating-{intent}"]
    assert (view.is_coming, view.is_usable, view.pending, view.owned) == (True, False, 3, 0)


def test_an_eni_is_coming_until_its_link_is_there_and_not_for_ever(node):
    facts = eni_facts(2, 30, device=-1, attachment="", instance="")
    node.settle(node.intend(kind="create", count=1).intent, c.Confirmed(facts=facts))
    assert views(node)["eni-2"].is_coming
    node.settle(node.intend(kind="attach", eni=facts.id, device=2).intent, c.Confirmed(attachment="a"))
    view = views(node)["eni-2"]
    assert (view.is_coming, view.is_usable, view.device) == (True, False, 2)
    node.wait(LINK_PATIENCE_S)
    assert not views(node)["eni-2"].is_coming
    node.ready("eni-2")
    assert views(node)["eni-2"].is_usable


def test_an_eni_that_goes_is_leaving_and_serves_nobody(node):
    intent = node.intend(kind="detach", eni=ONE).intent
    view = views(node)[ONE]
    assert (view.is_leaving, view.is_usable, view.is_coming, view.can_grow) == (True, False, False, False)
    node.settle(intent, c.Confirmed())
    assert views(node)[ONE].is_leaving
    node.intend(kind="delete", eni=ONE)
    assert views(node)[ONE].is_leaving


def test_what_is_suspected_serves_nobody_and_is_not_coming(node):
    node.append(eni.EniSuspected(eni=ONE, source="ec2", readings=1))
    view = views(node)[ONE]
    assert (view.is_usable, view.is_coming, view.can_grow) == (False, False, False)


def test_what_is_not_ours_or_only_to_be_deleted_is_not_shown(node):
    node.append(eni.EniAdopted(facts=eni_facts(5), managed=False, origin="found"))
    node.append(
        eni.EniAdopted(
            facts=eni_facts(6, device=-1, attachment="", instance=""), managed=True, origin="left_behind"
        )
    )
    assert sorted(views(node)) == [ZERO, ONE]


def test_enis_of_other_cards_are_not_in_the_pool_and_take_no_place_of_card_0():
    """A p4d: 4 cards of 15 ENIs each, and EFA ENIs on three of them."""
    node = Node(enis_max=2).start(eni_facts(0, 10), eni_facts(1, card=1), eni_facts(2, card=2))
    assert sorted(views(node)) == [ZERO]
    assert unmanaged_enis(node.state) == 0
    assert isinstance(node.intend(kind="create", count=1), c.Decision)
    assert isinstance(node.intend(kind="create", count=1), Refused), "card 0 is full now"


def test_a_trunk_has_no_room_for_pods():
    node = Node().start(eni_facts(0, 10), eni_facts(1, type="trunk"))
    assert (views(node)[ONE].slots, views(node)[ONE].is_usable) == (0, False)


def test_a_prefix_is_rested_when_all_its_addresses_are():
    prefix = Cidr("10.0.0.32/28")
    node = Node().start(eni_facts(0, cidrs=(prefix,)))

    def is_rested() -> bool:
        return is_cidr_rested(node.state, prefix, node.now, COOLDOWN_S)

    assert is_rested()
    node.run_pod("a")
    assert not is_rested()
    node.delete("a")
    node.wait(COOLDOWN_S)
    assert not is_rested(), "its veth stands"
    node.unwire_all()
    assert is_rested()


def test_addresses_are_counted_whether_they_came_singly_or_in_a_prefix():
    """A bug (W9 again): a /28 counted as one address, and the pods in it as many."""
    prefix = Cidr("10.0.0.32/28")
    node = Node().start(eni_facts(0, cidrs=(Cidr("10.0.0.10/32"), prefix)))
    for name in "abc":
        node.run_pod(name)
    node.end_pod("c")
    view = views(node)[ZERO]
    assert counts(view) == (17, 2, 1, 0)
    assert free_now_of(view) == 14
    assert (view.slots_saved, room_of(view)) == (15, 2), "it takes one of the four slots"


@pytest.mark.parametrize("how", ["suspected", "under release"])
def test_a_prefix_that_is_suspected_or_under_release_is_blocked_with_all_its_addresses(how):
    prefix = Cidr("10.0.0.32/28")
    node = Node().start(eni_facts(0, cidrs=(prefix,)))
    if how == "suspected":
        node.append(address.CidrSuspected(eni=ZERO, cidr=prefix, source="ec2", readings=1))
    else:
        node.intend(kind="unassign", eni=ZERO, cidrs=(prefix,))
    assert counts(views(node)[ZERO]) == (16, 0, 0, 16)


def test_a_large_prefix_is_judged_by_its_own_addresses_only():
    """An IPv6 /80 beside an IPv4 lease."""
    prefix = Cidr("2001:db8::/80")
    node = Node().start(eni_facts(0, cidrs=(Cidr("10.0.0.10/32"), prefix)))
    node.run_pod("v4")
    assert node.address("v4") == "10.0.0.10"
    assert is_cidr_rested(node.state, prefix, node.now, COOLDOWN_S)
    assert counts(views(node)[ZERO]) == (2**48 + 1, 1, 0, 0), "and not walked through: it holds 2**48"
    node.run_pod("v6")
    assert not is_cidr_rested(node.state, prefix, node.now, COOLDOWN_S)
