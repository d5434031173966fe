"""Network policies that are really enforced, told from those that are not."""

from __future__ import annotations

import pytest

from vpccni.model import PodRef
from vpccni.takeover.policies import identifier_of, judge_policies

PINS, ENDPOINTS = ("web-5d4f@default_handle_ingress", "web-5d4f@default_handle_egress"), ("default/web-x2x",)
REFUSED, CAUTION, NOTHING = "refused", "caution", "nothing"


@pytest.mark.parametrize(
    ("pins", "policy_endpoints", "expected"),
    [
        (PINS, ENDPOINTS, REFUSED),
        (PINS, (), CAUTION),
        (PINS, None, REFUSED),
        ((), ENDPOINTS, CAUTION),
        ((), (), NOTHING),
        ((), None, NOTHING),
        (None, ENDPOINTS, REFUSED),
        (None, (), NOTHING),
        (None, None, CAUTION),
    ],
)
def test_the_table_of_pins_and_policies_holds(pins, policy_endpoints, expected):
    found = judge_policies(pins, policy_endpoints)
    if expected is NOTHING:
        assert found is None
    else:
        assert found is not None
        assert found.is_objection is (expected is REFUSED)
        assert found.next_action or not found.is_objection


def test_a_refusal_names_programs_and_policies():
    found = judge_policies(PINS, ENDPOINTS)
    assert found is not None
    assert PINS[0] in found.sentence
    assert ENDPOINTS[0] in found.sentence
    assert found.identifiers == {"web-5d4f@default"}


@pytest.mark.parametrize(
    ("pod", "identifier"),
    [
        (PodRef("default", "web-5d4f-abcde"), "web-5d4f@default"),
        (PodRef("prod", "db-0"), "db@prod"),
        (PodRef("prod", "my.app-0"), "my_app@prod"),
    ],
)
def test_programs_are_named_after_the_pods_controller(pod, identifier):
    assert identifier_of(pod) == identifier


def test_pins_are_told_by_name_or_by_path_and_maps_are_passed_over():
    found = judge_policies(
        ("/sys/fs/bpf/globals/aws/programs/db@prod_handle_egress", "global_aws_conntrack_map"), ()
    )
    assert found is not None
    assert found.identifiers == {"db@prod"}
