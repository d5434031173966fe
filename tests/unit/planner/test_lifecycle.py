"""What an ENI needs next, from created to serving and from retired to deleted."""

from __future__ import annotations

import pytest

from tests.unit.projections.node import Node, eni_facts
from vpccni.events import eni
from vpccni.events.effect import EffectConfirmed, EffectIntended
from vpccni.model import EniFacts, EniId, IntentId
from vpccni.planner import commands as c
from vpccni.planner.lifecycle import next_effects

ONE = EniId("eni-1")


def loose(number: int) -> EniFacts:
    return eni_facts(number, device=-1, attachment="", instance="")


def adopt(node: Node, number: int, origin: str = "created", managed: bool = True) -> None:
    node.append(eni.EniAdopted(facts=loose(number), managed=managed, origin=origin))


def wanted(node: Node, *refused: str) -> list[tuple[str, str, int]]:
    effects = next_effects(node.state, frozenset(EniId(one) for one in refused))
    return [(one.kind, one.eni, one.device) for one in effects]


@pytest.fixture
def node() -> Node:
    return Node(enis_max=8).start(eni_facts(0, 10))


def test_a_node_in_order_needs_nothing(node):
    assert wanted(node) == []


def test_created_enis_are_attached_side_by_side_at_the_lowest_free_indexes(node):
    safe = eni_facts(2, 30, delete_on_termination=True)
    node.append(eni.EniAdopted(facts=safe, managed=True, origin="found", table=3))
    for number in (7, 5, 6):
        adopt(node, number)
    assert wanted(node) == [("attach", "eni-5", 1), ("attach", "eni-6", 3), ("attach", "eni-7", 4)]


def test_an_index_that_an_open_attach_reserves_is_not_given_twice(node):
    adopt(node, 5)
    node.intend(kind="attach", eni=EniId("eni-5"), device=1)
    adopt(node, 6)
    assert wanted(node) == [("attach", "eni-6", 2)]


def test_an_attached_eni_of_ours_is_made_to_die_with_the_instance_once(node):
    adopt(node, 1)
    node.settle(node.intend(kind="attach", eni=ONE, device=1).intent, c.Confirmed(attachment="attach-1"))
    assert wanted(node) == [("modify", ONE, -1)]
    (modify,) = next_effects(node.state, frozenset())
    assert modify.attachment == "attach-1"
    node.append(
        EffectConfirmed(intent=IntentId(0), kind="modify", eni=ONE, attribute="delete_on_termination")
    )
    assert wanted(node) == []


def test_an_eni_that_cannot_be_attached_is_deleted(node):
    adopt(node, 1)
    assert wanted(node, "eni-1") == [("delete", ONE, -1)]


def test_what_was_left_behind_is_deleted(node):
    adopt(node, 1, origin="left_behind")
    assert wanted(node) == [("delete", ONE, -1)]


def test_what_was_detached_to_go_is_deleted(node):
    node.append(eni.EniAdopted(facts=eni_facts(1, 20), managed=True, origin="found", table=2))
    node.settle(node.intend(kind="detach", eni=ONE).intent, c.Confirmed())
    assert wanted(node) == [("delete", ONE, -1)]


def test_one_thing_at_a_time_for_each_eni(node):
    adopt(node, 1, origin="left_behind")
    node.ask(c.Intend(EffectIntended(kind="delete", eni=ONE)))
    assert wanted(node) == []


def test_what_is_not_ours_is_left_alone(node):
    adopt(node, 1, origin="found", managed=False)
    assert wanted(node) == []


def test_the_whole_life_of_an_eni_from_create_to_gone(node):
    """The executor does only what it is told; every step is accepted by the door."""
    node.settle(node.intend(kind="create", count=1, token="t").intent, c.Confirmed(facts=loose(1)))
    done = ["create"]
    for _ in range(6):
        for effect in next_effects(node.state, frozenset()):
            answer = node.ask(c.Intend(effect))
            assert isinstance(answer, c.Decision), effect
            node.settle(answer.intent, c.Confirmed(attachment="attach-1" if effect.kind == "attach" else ""))
            done.append(effect.kind)
            if effect.kind == "modify":
                node.settle(node.intend(kind="detach", eni=ONE).intent, c.Confirmed())
                done.append("detach")
    assert done == ["create", "attach", "modify", "detach", "delete"]
    assert ONE not in node.state.enis
