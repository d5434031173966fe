"""The outside view: who had which address, by the runtimes' own eyes."""

import pytest

from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.ledger import Failure, Ledger, Sandbox


def sandbox(container_id, address="10.0.0.5", node="a"):
    return Sandbox(
        node=node, pod=f"pod-{container_id}", namespace="default", uid=f"uid-{container_id}",
        container_id=container_id, netns=Namespace("n", "/run/netns/n"), address=address, result={},
        added_at=1.0, latency_ms=2.0,
    )  # fmt: skip


@pytest.fixture
def ledger():
    return Ledger()


def test_an_address_of_two_live_sandboxes_is_a_duplicate_even_on_two_nodes(ledger):
    first, second = sandbox("1", node="a"), sandbox("2", node="b")
    ledger.record_add(first)
    ledger.record_add(second)
    assert [(double.address, double.before, double.after) for double in ledger.duplicates] == [
        ("10.0.0.5", first, second)
    ]


def test_an_address_may_be_given_again_after_its_del_was_answered(ledger):
    first, second = sandbox("1"), sandbox("2")
    ledger.record_add(first)
    ledger.record_del(first, asked_at=5.0)
    ledger.record_add(second)
    assert ledger.duplicates == []
    assert list(ledger.live) == ["2"]
    assert [(lease.sandbox, lease.ended_at) for lease in ledger.past] == [(first, 5.0)]


def test_the_first_holders_del_does_not_free_the_address_of_the_second(ledger):
    first, second, third = sandbox("1"), sandbox("2"), sandbox("3")
    ledger.record_add(first)
    ledger.record_add(second)
    ledger.record_del(first, asked_at=5.0)
    ledger.record_add(third)
    assert len(ledger.duplicates) == 2


def test_a_del_that_is_repeated_counts_once(ledger):
    one = sandbox("1")
    ledger.record_add(one)
    ledger.record_del(one, asked_at=5.0)
    ledger.record_del(one, asked_at=6.0)
    assert len(ledger.past) == 1


def test_failures_and_latencies_are_kept_apart(ledger):
    ledger.record_add(sandbox("1"))
    ledger.record_failure(Failure(node="a", verb="ADD", pod="x", message="no", latency_ms=9.0))
    assert ledger.latencies_ms == [2.0]
    assert ledger.on_node("a") == list(ledger.live.values())
    assert ledger.on_node("b") == []
