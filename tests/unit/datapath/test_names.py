"""Names that other programs compute too, and marks by which we know our own."""

import pytest

from vpccni.datapath.names import (
    alias_of,
    alias_of_hold,
    host_mac_of,
    host_veth_name,
    is_our_alias,
    pod_mac_of,
    sandbox_of_alias,
    veth_name_of,
)
from vpccni.datapath.numbers import IFALIAS_BYTES_MAX, IFNAME_BYTES_MAX, POD_TABLE, is_eni_table
from vpccni.model import Address, PodRef, SandboxKey, route_table_of


@pytest.mark.parametrize(
    ("prefix", "namespace", "name", "expected"),
    [
        ("eni", "kube-system", "coredns-57ff979f67-qqbdh", "enib5faff8a083"),
        ("vlan", "kube-system", "coredns-57ff979f67-qqbdh", "vlanb5faff8a083"),
        ("eni", "default", "sample-pod", "enicc21c2d7785"),
        ("eni", "default", "web-0", "eni0d7763386da"),
        ("eni", "default", "web-0.1", "enib813f772d20"),
    ],
)
def test_a_host_veth_is_named_as_the_original_names_it(prefix, namespace, name, expected):
    assert host_veth_name(prefix, namespace, name) == expected
    assert len(expected) <= IFNAME_BYTES_MAX


def key(container: str, ifname: str = "eth0") -> SandboxKey:
    return SandboxKey("aws-cni", container, ifname)


def test_eth0_of_a_named_pod_gets_the_well_known_name():
    assert veth_name_of("eni", key("c1"), PodRef("default", "web-0")) == "eni0d7763386da"


def test_sandboxes_without_a_pod_name_do_not_share_a_veth():
    names = {veth_name_of("eni", key(container), PodRef()) for container in ("c1", "c2")}
    assert len(names) == 2


def test_a_second_interface_of_a_pod_does_not_share_its_veth():
    names = {
        veth_name_of("eni", key("c1", ifname), PodRef("default", "web-0")) for ifname in ("eth0", "net1")
    }
    assert len(names) == 2


def test_the_alias_holds_the_container_id_and_fits_the_kernel():
    container = "f" * 64
    assert alias_of(key(container)) == f"vpccni:{container}:eth0"
    longest = alias_of(key("x" * 1000, "i" * 15))
    assert len(longest.encode()) <= IFALIAS_BYTES_MAX
    assert longest != alias_of(key("y" * 1000, "i" * 15))
    assert is_our_alias(longest)
    assert not is_our_alias("")
    assert not is_our_alias("another: vpccni:")


def test_macs_are_local_unicast_and_differ_at_the_two_ends():
    macs = [host_mac_of(key("c1")), pod_mac_of(key("c1"), Address("10.0.0.5")), host_mac_of(key("c2"))]
    assert len(set(macs)) == 3
    for mac in macs:
        assert int(mac[:2], 16) & 0x03 == 0x02, mac


def test_the_pod_table_is_no_enis_table():
    tables = {route_table_of(card, device) for card in range(33) for device in range(1, 16)}
    assert all(is_eni_table(table) for table in tables)
    for table in (POD_TABLE, 0, 1, 253, 254, 255):
        assert not is_eni_table(table)


def test_an_alias_tells_its_sandbox_unless_it_holds_a_digest_or_an_address():
    assert sandbox_of_alias(alias_of(key("c1", "net1"))) == ("c1", "net1")
    assert sandbox_of_alias(alias_of(key("c" * 300))) is None
    assert sandbox_of_alias(alias_of_hold(Address("10.0.0.7"), "eth0")) is None
