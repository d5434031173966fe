"""Which address a sandbox gets."""

from __future__ import annotations

import pytest

from tests.unit.projections.node import COOLDOWN_S, Node, eni_facts
from vpccni.errors import Reason
from vpccni.events import address, eni
from vpccni.events.effect import EffectIntended
from vpccni.model import Cidr, EniId
from vpccni.planner import commands as c
from vpccni.planner.assign import addresses_in, choose_address

ONE, ZERO = EniId("eni-1"), EniId("eni-0")


def node_with(*enis) -> Node:
    return Node().start(*enis)


def chosen(node: Node) -> str | None:
    binding = choose_address(node.state, node.now, COOLDOWN_S)
    return None if binding is None else binding.address


def test_the_binding_says_where_the_packets_leave():
    node = node_with(eni_facts(0), eni_facts(1, 20))
    binding = choose_address(node.state, node.now, COOLDOWN_S)
    assert binding is not None
    assert (binding.family, binding.address, binding.eni) == (4, "10.0.1.20", ONE)
    assert (binding.card, binding.device, binding.table, binding.kind) == (0, 1, 2, "pool")


def test_the_fullest_eni_is_filled_first_so_that_another_may_become_empty():
    node = node_with(eni_facts(0, 10, 11), eni_facts(1, 20, 21, 22))
    assert chosen(node) == "10.0.0.10", "equals: the lowest device"
    node.run_pod("a")
    node.run_pod("b")
    node.run_pod("c")
    node.end_pod("a")
    node.end_pod("b")
    assert chosen(node) == "10.0.1.21"


def test_no_pod_is_put_on_an_eni_that_is_being_detached_also_when_ec2_tells_of_it_again():
    """A bug: a reading that told the subnet's CIDR at last, or other groups, made an ENI under detach usable."""
    node = node_with(eni_facts(0), eni_facts(1, 20))
    detach = node.intend(kind="detach", eni=ONE)
    assert isinstance(detach, c.Decision)
    assert chosen(node) is None
    node.append(eni.EniAdopted(facts=eni_facts(1), managed=True, origin="found", table=2))
    assert chosen(node) is None
    assert node.state.enis[ONE].is_retiring
    assert choose_address(node.restored(), node.now, COOLDOWN_S) is None
    node.settle(detach.intent, c.Failed(reason=Reason.EC2_REFUSED))
    assert chosen(node) == "10.0.1.20"


def test_an_address_that_was_never_used_comes_before_one_that_rested():
    node = node_with(eni_facts(0, 10, 11))
    node.run_pod("a")
    node.end_pod("a")
    node.wait(COOLDOWN_S)
    assert chosen(node) == "10.0.0.11"


def test_of_the_rested_the_longest_rested_comes_first():
    node = node_with(eni_facts(0, 10, 11, 12))
    for name in "abc":
        node.run_pod(name)
    for name in "bca":
        node.end_pod(name)
        node.wait(1)
    node.wait(COOLDOWN_S)
    assert [node.run_pod(name) for name in "xyz"] == ["10.0.0.11", "10.0.0.12", "10.0.0.10"]


def test_addresses_are_ordered_as_numbers_and_not_as_text():
    assert chosen(node_with(eni_facts(0, 100, 20, 9))) == "10.0.0.9"


def test_a_resting_address_is_assigned_when_its_cooldown_ends_and_not_before():
    node = node_with(eni_facts(0, 10))
    node.run_pod("a")
    node.end_pod("a")
    node.wait(COOLDOWN_S - 0.001)
    assert chosen(node) is None
    node.wait(0.001)
    assert chosen(node) == "10.0.0.10"


def test_an_address_whose_veth_still_stands_is_not_assigned_however_long_it_rested():
    node = node_with(eni_facts(0, 10))
    node.run_pod("a")
    node.delete("a")
    node.wait(10 * COOLDOWN_S)
    assert chosen(node) is None
    node.unwire_all()
    assert chosen(node) == "10.0.0.10"


@pytest.mark.parametrize(
    "event",
    [
        eni.EniLinkLost(eni=ZERO),
        eni.EniSuspected(eni=ZERO, source="ec2", readings=1),
        eni.EniDetached(eni=ZERO),
        EffectIntended(kind="detach", eni=ZERO),
        EffectIntended(kind="unassign", eni=ZERO, cidrs=(Cidr("10.0.0.10/32"),)),
        address.CidrSuspected(eni=ZERO, cidr=Cidr("10.0.0.10/32"), source="ec2", readings=1),
    ],
    ids=["no link", "suspected", "detached", "being detached", "being released", "suspected address"],
)
def test_what_is_not_in_order_gets_no_pod(event):
    node = node_with(eni_facts(0, 10))
    assert chosen(node) == "10.0.0.10"
    node.append(event)
    assert chosen(node) is None


def test_an_eni_that_is_not_ours_or_is_a_trunk_gets_no_pod():
    no_manage = {"node.k8s.amazonaws.com/no_manage": "true"}
    assert chosen(node_with(eni_facts(0), eni_facts(1, 20, tags=no_manage))) is None
    assert chosen(node_with(eni_facts(0), eni_facts(1, 20, type="trunk"))) is None
    assert chosen(node_with(eni_facts(0), eni_facts(1, 20, type="efa"))) == "10.0.1.20"


def test_a_prefix_is_used_from_its_first_to_its_last_address():
    node = node_with(eni_facts(0, cidrs=(Cidr("10.0.0.32/28"),)))
    got = [node.run_pod(f"pod{number}") for number in range(16)]
    assert got == [f"10.0.0.{32 + number}" for number in range(16)]
    assert chosen(node) is None
    node.end_pod("pod3")
    node.wait(COOLDOWN_S)
    assert chosen(node) == "10.0.0.35"


def test_an_ipv6_prefix_is_not_expanded():
    node = node_with(eni_facts(0, cidrs=(Cidr("2001:db8::/80"),)))
    binding = choose_address(node.state, node.now, COOLDOWN_S)
    assert binding is not None
    assert (binding.family, binding.address) == (6, "2001:db8::")
    assert node.run_pod("a") == "2001:db8::"
    assert chosen(node) == "2001:db8::1"


def test_the_addresses_of_a_cidr_come_in_order():
    assert list(addresses_in(Cidr("10.0.0.252/30"))) == [f"10.0.0.{octet}" for octet in (252, 253, 254, 255)]
    assert list(addresses_in(Cidr("10.0.0.7/32"))) == ["10.0.0.7"]
