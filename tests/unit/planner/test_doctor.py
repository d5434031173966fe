"""Each finding, on a state that was bent by hand."""

from __future__ import annotations

import pytest

from vpccni.events.address import CidrsOwned
from vpccni.events.codec import Event, Record
from vpccni.events.effect import EffectIntended
from vpccni.events.eni import EniAdopted
from vpccni.events.sandbox import AddressAssigned
from vpccni.model import (
    Address,
    Binding,
    Cidr,
    EniFacts,
    EniId,
    InstanceId,
    LeaseId,
    Mac,
    PodRef,
    SandboxKey,
    Seq,
    Stamp,
)
from vpccni.planner.doctor import BROKEN, ODD, examine
from vpccni.projections.state import State

STAMP = Stamp(1, 1, "boot")
ENI = EniId("eni-1")


def a_node() -> State:
    """One ENI with three addresses, the first of them leased."""
    state = State()
    facts = EniFacts(
        id=ENI, mac=Mac("02:00:00:00:00:01"), instance=InstanceId("i-1"), device=1, attachment="a"
    )
    binding = Binding(family=4, address=Address("10.0.0.5"), eni=ENI, card=0, device=1, table=2)
    events: list[Event] = [
        EniAdopted(facts=facts, managed=True, origin="found"),
        CidrsOwned(eni=ENI, cidrs=tuple(Cidr(f"10.0.0.{n}/32") for n in (5, 6, 7)), source="describe"),
        AddressAssigned(
            key=SandboxKey("aws-cni", "c1", "eth0"), pod=PodRef(), bindings=(binding,), netns="/run/netns/a"
        ),
    ]
    for number, event in enumerate(events, 1):
        state.evolve(Record(Seq(number), STAMP, event))
    return state


def names(state: State, severity: str = BROKEN) -> set[str]:
    return {finding.name for finding in examine(state) if finding.severity == severity}


def test_a_good_state_has_no_findings():
    assert examine(a_node()) == []


def test_an_address_with_two_leases_is_found():
    state = a_node()
    lease = state.leases[LeaseId(3)]
    state.leases[LeaseId(9)] = lease
    assert "address_held_twice" in names(state)
    assert "lease_count_differs" in names(state)


def test_a_stale_index_is_found():
    state = a_node()
    state.by_key.clear()
    assert names(state) == {"key_index_differs"}
    state = a_node()
    state.by_address[Address("10.0.0.9")] = LeaseId(3)
    assert names(state) == {"address_index_differs"}


def test_a_lease_on_an_eni_or_an_address_that_is_not_owned_is_found():
    state = a_node()
    del state.enis[ENI].cidrs[Cidr("10.0.0.5/32")]
    assert names(state) == {"lease_without_cidr"}
    state = a_node()
    state.enis.clear()
    assert "lease_without_eni" in names(state)


@pytest.mark.parametrize("kind", ["detach", "delete", "unassign"])
def test_a_release_that_covers_a_lease_is_found(kind):
    state = a_node()
    wanted = EffectIntended(kind=kind, eni=ENI, cidrs=(Cidr("10.0.0.5/32"),))
    state.evolve(Record(Seq(4), STAMP, wanted))
    assert names(state) == {"release_covers_lease"}


def test_an_unassign_of_a_free_address_is_in_order():
    state = a_node()
    state.evolve(
        Record(Seq(4), STAMP, EffectIntended(kind="unassign", eni=ENI, cidrs=(Cidr("10.0.0.7/32"),)))
    )
    assert examine(state) == []


def test_two_address_changes_on_one_eni_at_once_are_found():
    state = a_node()
    for seq in (4, 5):
        state.evolve(Record(Seq(seq), STAMP, EffectIntended(kind="assign", eni=ENI, count=1)))
    assert names(state) == {"two_changes_at_once"}


def test_one_address_on_two_enis_is_odd():
    state = a_node()
    facts = EniFacts(
        id=EniId("eni-2"), mac=Mac("02:00:00:00:00:02"), instance=InstanceId("i-1"), device=1, attachment="b"
    )
    state.evolve(Record(Seq(4), STAMP, EniAdopted(facts=facts, managed=True, origin="found")))
    state.enis[EniId("eni-2")].cidrs[Cidr("10.0.0.6/32")] = state.enis[ENI].cidrs[Cidr("10.0.0.6/32")]
    assert names(state) == set()
    assert names(state, ODD) == {"cidr_on_two_enis", "device_used_twice"}
