"""By which ids an event is found again."""

from __future__ import annotations

import pytest

from tests.data.event_samples import BINDING, CIDRS, ENI, EVENTS, KEY, POD
from vpccni.events import effect, sandbox
from vpccni.events.codec import UnknownEvent, kind_of
from vpccni.events.subjects import subjects_of
from vpccni.model import Address, Binding, EniId, IntentId, LeaseId, PodRef

OF_SANDBOX = [
    ("container", KEY.container_id),
    ("pod", "shop/cart-7d4b9"),
    ("uid", POD.uid),
]
OF_BINDING = [("address", "10.0.3.7"), ("eni", ENI)]
OF_CIDRS = [("cidr", cidr) for cidr in CIDRS]

EXPECTED = {
    "effect_intended": [("intent", "99")],
    "effect_confirmed": [("intent", "11"), ("eni", ENI)],
    "effect_failed": [("intent", "11")],
    "effect_unknown": [("intent", "11"), ("eni", ENI)],
    "effect_abandoned": [("intent", "11"), ("eni", ENI)],
    **{
        f"eni_{what}": [("eni", ENI)]
        for what in (
            "adopted",
            "attached",
            "link_ready",
            "link_lost",
            "suspected",
            "cleared",
            "detached",
            "gone",
        )
    },
    "cidrs_owned": [("eni", ENI), *OF_CIDRS],
    "cidrs_released": [("eni", ENI), OF_CIDRS[1]],
    "cidr_suspected": [("eni", ENI), OF_CIDRS[0]],
    "cidr_cleared": [("eni", ENI), OF_CIDRS[0]],
    "add_requested": OF_SANDBOX,
    "address_assigned": [("lease", "99"), *OF_SANDBOX, *OF_BINDING],
    "address_held": [("lease", "99"), *OF_BINDING],
    "lease_located": [("lease", "29"), *OF_BINDING],
    "lease_identified": [("lease", "29"), *OF_SANDBOX],
    "sandbox_wired": [("lease", "29")],
    "add_failed": [*OF_SANDBOX, ("lease", "29")],
    "lease_ended": [("lease", "29"), *OF_SANDBOX, *OF_BINDING],
    "sandbox_unwired": [("lease", "29")],
    "lease_suspected": [("lease", "29")],
    "lease_cleared": [("lease", "29")],
}


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_an_event_is_found_by(event):
    assert subjects_of(99, event) == EXPECTED.get(kind_of(event), [])


def test_every_binding_of_a_lease_is_a_subject_and_none_comes_twice():
    bindings = (
        BINDING,
        Binding(family=6, address=Address("2600::7"), eni=ENI, card=0, device=1, table=2),
        Binding(
            family=4,
            address=Address("169.254.172.9"),
            eni=EniId(""),
            card=0,
            device=0,
            table=254,
            kind="egress",
        ),
    )
    event = sandbox.AddressAssigned(key=KEY, pod=PodRef(), bindings=bindings, netns="/n")
    assert subjects_of(5, event) == [
        ("lease", "5"),
        ("container", KEY.container_id),
        ("address", "10.0.3.7"),
        ("eni", ENI),
        ("address", "2600::7"),
        ("address", "169.254.172.9"),
    ]


def test_an_add_that_failed_before_it_had_a_lease_names_none():
    event = sandbox.AddFailed(key=KEY, pod=PodRef(), reason="no_address")
    assert subjects_of(5, event) == [("container", KEY.container_id)]


def test_an_intent_on_an_eni_is_found_by_it():
    event = effect.EffectIntended(kind="assign", eni=ENI, count=2)
    assert subjects_of(5, event) == [("intent", "5"), ("eni", ENI)]


def test_outcomes_without_an_eni_are_found_by_their_intent():
    event = effect.EffectConfirmed(intent=IntentId(4), kind="delete")
    assert subjects_of(5, event) == [("intent", "4")]


def test_a_lease_that_ended_without_bindings_is_found_by_its_sandbox():
    event = sandbox.LeaseEnded(lease=LeaseId(3), cause="add_failed", key=KEY, pod=PodRef(), bindings=())
    assert subjects_of(5, event) == [("lease", "3"), ("container", KEY.container_id)]


def test_an_event_from_the_future_has_no_subjects():
    assert subjects_of(5, UnknownEvent(kind="x", version=1, must_understand=True, body=b"{}")) == []
