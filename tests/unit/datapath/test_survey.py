"""What counts as a trace of a living sandbox."""

from __future__ import annotations

import pytest

from vpccni.datapath.objects import LinkSeen, Route, Rule
from vpccni.datapath.survey import (
    from_tables,
    host_routes,
    host_veth,
    in_order,
    is_global,
    is_host_veth,
    ruled,
)
from vpccni.evidence import HostVeth
from vpccni.model import Address, Cidr, Mac

ONE, TWO = Address("10.0.1.9"), Address("10.0.1.10")


def link(ifname: str = "eni0123456789a", *, alias: str = "", kind: str = "veth") -> LinkSeen:
    return LinkSeen(
        ifindex=7, ifname=ifname, mac="02:00:00:00:00:07", alias=alias, kind=kind, mtu=9001, is_up=True
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (link(), True),
        (link("eni0123456789A"), False),
        (link("eni0123456789"), False),
        (link("eni0123456789ab"), False),
        (link("eni0123456789g"), False),
        (link("xeni0123456789a"), False),
        (link("vlan0123456789a"), False),
        (link(kind="vlan"), False),
        (link("anything", alias="vpccni:abc:eth0"), True),
        (link("anything", alias="vpccni"), False),
        (link("anything", alias="vpccni:abc:eth0", kind="dummy"), False),
        (link(alias="made by another"), True),
    ],
)
def test_a_host_veth_has_our_alias_or_the_originals_name(seen, expected):
    assert is_host_veth(seen, "eni") is expected


def test_the_prefix_is_a_text_and_no_pattern():
    assert is_host_veth(link("e.i0123456789a"), "e.i")
    assert not is_host_veth(link("eni0123456789a"), "e.i")


def test_a_host_veth_is_told_as_the_node_shows_it():
    seen = link(alias="vpccni:abc:eth0")
    assert host_veth(seen, (ONE,), has_peer=False) == HostVeth(
        ifindex=7,
        ifname="eni0123456789a",
        mac=Mac("02:00:00:00:00:07"),
        alias="vpccni:abc:eth0",
        has_peer=False,
        routed=(ONE,),
    )


def test_host_routes_are_those_of_main_and_of_the_pod_table_to_one_address():
    routes = [
        Route(table=254, dst=Cidr("10.0.1.10/32"), ifindex=7),
        Route(table=51200, dst=Cidr("10.0.1.10/32"), ifindex=7),
        Route(table=51200, dst=Cidr("10.0.1.9/32"), ifindex=7),
        Route(table=51200, dst=Cidr("10.0.1.9/32"), ifindex=8),
        Route(table=3, dst=Cidr("10.0.1.11/32"), ifindex=7),
        Route(table=254, dst=Cidr("10.0.1.0/28"), ifindex=7),
        Route(table=254, dst=Cidr("10.0.1.12/32"), ifindex=7, gateway=ONE),
        Route(table=254, dst=Cidr("fd00::9/128"), ifindex=7),
        Route(table=254, dst=Cidr("fd00::/32"), ifindex=7),
    ]
    assert host_routes(routes) == {7: (ONE, TWO, "fd00::9"), 8: (ONE,)}


def test_the_first_of_several_from_rules_is_the_one_that_the_kernel_takes():
    rules = [
        Rule(priority=1536, table=3, src=Cidr("10.0.1.10/32")),
        Rule(priority=1536, table=2, src=Cidr("10.0.1.10/32")),
        Rule(priority=1536, table=4, src=Cidr("10.0.1.9/32"), dst=Cidr("10.0.0.0/16")),
        Rule(priority=1536, table=4, src=Cidr("10.0.1.11/32"), iif="eth0"),
        Rule(priority=1536, table=4, src=Cidr("10.0.1.11/32"), mark=1, mask=1),
        Rule(priority=1536, table=4, src=Cidr("10.0.1.11/32"), exotic=True),
        Rule(priority=1536, table=4, src=Cidr("10.0.1.0/28")),
        Rule(priority=1535, table=4, src=Cidr("10.0.1.11/32")),
        Rule(priority=1536, table=4),
    ]
    assert list(from_tables(rules).items()) == [(ONE, 4), (TWO, 3)]


def test_a_rule_to_an_address_is_the_originals_only_when_it_leads_to_main():
    rules = [
        Rule(priority=512, table=254, dst=Cidr("10.0.1.10/32")),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.9/32")),
        Rule(priority=512, table=51200),
        Rule(priority=512, table=2, dst=Cidr("10.0.1.11/32")),
        Rule(priority=511, table=254, dst=Cidr("10.0.1.11/32")),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.0/28")),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.11/32"), src=Cidr("10.0.1.9/32")),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.11/32"), iif="eth0"),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.11/32"), exotic=True),
    ]
    assert ruled(rules) == (ONE, TWO)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.1.9", True),
        ("100.64.0.1", True),
        ("8.8.8.8", True),
        ("fd00::9", True),
        ("0.0.0.0", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("fe80::1", False),
        ("::1", False),
    ],
)
def test_an_address_that_is_good_on_one_link_only_is_no_pods(address, expected):
    assert is_global(address) is expected


def test_addresses_are_ordered_by_number_and_family():
    found = [TWO, ONE, Address("fd00::9"), Address("9.255.0.1"), ONE]
    assert in_order(found) == ("9.255.0.1", ONE, TWO, "fd00::9")
