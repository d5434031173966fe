"""How many pods a node can run: the published numbers, and what each setting makes of them."""

import pytest

from tests.data.published_max_pods import CUSTOM_NETWORKING, MAX_PODS
from vpccni.instance_types import instance_types
from vpccni.model import InstanceLimits
from vpccni.planner.capacity import capacity_of

M5_LARGE = InstanceLimits(enis_max=3, ipv4_per_eni=10)


@pytest.mark.parametrize(("name", "pods"), MAX_PODS.items())
def test_single_addresses_give_the_published_number(name, pods):
    kind = instance_types()[name]
    assert capacity_of(kind.limits).max_pods == pods
    assert capacity_of(kind.limits, vcpus=kind.vcpus).max_pods == pods


@pytest.mark.parametrize(("name", "pods"), CUSTOM_NETWORKING.items())
def test_custom_networking_gives_the_published_number(name, pods):
    assert capacity_of(instance_types()[name].limits, custom_networking=True).max_pods == pods


@pytest.mark.parametrize(
    ("vcpus", "ceiling"),
    [(1, 110), (2, 110), (30, 110), (31, 250), (32, 250), (192, 250)],
)
def test_prefixes_are_bound_by_what_kubernetes_is_tested_with(vcpus, ceiling):
    found = capacity_of(M5_LARGE, vcpus=vcpus, prefixes=True)
    assert (found.addresses, found.addressable) == (432, 434)
    assert (found.ceiling, found.recommended, found.max_pods) == (ceiling, ceiling, ceiling)


def test_a_small_type_stays_below_the_ceiling_with_prefixes_too():
    nano = instance_types()["t3.nano"]
    found = capacity_of(nano.limits, vcpus=nano.vcpus, prefixes=True)
    assert found.max_pods == found.recommended == 2 * 1 * 16 + 2


def test_without_vcpus_nothing_is_cut():
    assert capacity_of(M5_LARGE, prefixes=True).max_pods == 434


def test_single_addresses_are_recommended_no_more_than_that_either_and_may_be_all_used():
    found = capacity_of(InstanceLimits(enis_max=15, ipv4_per_eni=50), vcpus=96)
    assert (found.max_pods, found.recommended) == (737, 250)


def test_xen_cannot_have_prefixes_and_bare_metal_can():
    xen, metal = instance_types()["m4.large"], instance_types()["m5.metal"]
    assert capacity_of(xen.limits, vcpus=xen.vcpus, prefixes=True).max_pods == 20
    assert capacity_of(metal.limits, vcpus=metal.vcpus, prefixes=True).addresses == 15 * 49 * 16


@pytest.mark.parametrize(("max_eni", "enis"), [(0, 3), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_max_eni_lowers_and_never_raises(max_eni, enis):
    assert capacity_of(M5_LARGE, max_eni=max_eni).addresses == enis * 9


def test_max_eni_of_one_with_custom_networking_leaves_the_hosts_pods():
    found = capacity_of(M5_LARGE, max_eni=1, custom_networking=True)
    assert (found.enis, found.addresses, found.max_pods) == (0, 0, 2)


def test_only_the_default_card_counts():
    assert capacity_of(instance_types()["p4d.24xlarge"].limits).enis == 15


def test_ipv6_does_not_run_out_of_addresses():
    found = capacity_of(M5_LARGE, vcpus=2, prefixes=True, ipv6=True)
    assert (found.addresses, found.addressable, found.max_pods) == (None, None, 110)
    assert capacity_of(M5_LARGE, prefixes=True, ipv6=True).max_pods == 250


def test_no_type_gives_a_senseless_number():
    for kind in instance_types().values():
        for prefixes in (False, True):
            found = capacity_of(kind.limits, vcpus=kind.vcpus, prefixes=prefixes)
            assert found.addressable is not None
            assert 2 < found.recommended <= found.max_pods <= found.addressable, kind.name
