"""What is done about what is there: only what is missing, and only to what is ours."""

import msgspec
import pytest

from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import (
    difference,
    find_link,
    is_our_rule,
    probe,
    setup_eni,
    sweep,
    sweep_links,
    teardown_eni,
    unwire,
    wire,
)
from vpccni.datapath.names import alias_of
from vpccni.datapath.nft import nft_table
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import (
    AddressSeen,
    DatapathSettings,
    LinkSeen,
    LinkSetting,
    Observed,
    Route,
    RouteRemoval,
    Rule,
    VethRemoval,
)
from vpccni.model import Cidr


def link(ifindex: int, ifname: str, mac: str, **fields) -> LinkSeen:
    given = {"alias": "", "kind": "", "mtu": 9001, "is_up": True, "rp_filter": 2, **fields}
    return LinkSeen(ifindex=ifindex, ifname=ifname, mac=mac, **given)


POD = lease(1)
PRIMARY = link(2, "eth0", eni(0).mac)
SECONDARY = link(3, "eth1", eni(1).mac)
VETH = link(4, "eni0", "02:00:00:00:09:01", alias=alias_of(POD.key), kind="veth", rp_filter=1)
DESIRED = desired([POD], [eni(0), eni(1)], SETTINGS, VPC)
assert DESIRED.nft is not None
CONVERGED = Observed(
    links=(PRIMARY, SECONDARY, VETH),
    addresses=(AddressSeen(ifindex=3, address=eni(1).primary, prefix_length=24),),
    routes=(
        Route(table=2, dst=Cidr("10.0.1.1/32"), ifindex=3),
        Route(table=2, dst=Cidr("0.0.0.0/0"), ifindex=3, gateway=DESIRED.enis[1].gateway),
        Route(table=POD_TABLE, dst=Cidr("10.0.1.21/32"), ifindex=4),
    ),
    rules=(Rule(priority=0, table=255), *DESIRED.rules, Rule(priority=32766, table=254)),
    nft=nft_table(DESIRED.nft, "eth0").seen,
    ip_forward=True,
)


def seen(**fields) -> Observed:
    return msgspec.structs.replace(CONVERGED, **fields)


def without(observed: Observed, rule: Rule) -> Observed:
    return msgspec.structs.replace(observed, rules=tuple(each for each in observed.rules if each != rule))


def test_nothing_is_done_to_a_kernel_that_is_as_desired():
    found = difference(DESIRED, CONVERGED)
    assert found.is_empty
    assert [(each.eni, each.ifname, each.ifindex) for each in found.enis_ready] == [
        ("eni-0", "eth0", 2),
        ("eni-1", "eth1", 3),
    ]


@pytest.mark.parametrize("rule", DESIRED.rules, ids=lambda rule: str(rule.priority))
def test_a_missing_rule_is_added_and_nothing_else_happens(rule):
    found = difference(DESIRED, without(CONVERGED, rule))
    assert found.rules_add == (rule,)
    assert msgspec.structs.replace(found, rules_add=()).is_empty


def test_forwarding_is_enabled_only_when_it_is_known_to_be_off():
    assert difference(DESIRED, seen(ip_forward=False)).ip_forward
    assert not difference(DESIRED, seen(ip_forward=None)).ip_forward


def test_a_lease_whose_veth_is_gone_is_told_and_not_rewired_unless_asked():
    observed = seen(links=(PRIMARY, SECONDARY))
    found = difference(DESIRED, observed)
    assert found.absent == (POD.lease,)
    assert found.is_empty
    assert difference(DESIRED, observed, rewire=True).wire == DESIRED.pods


def test_a_lost_pod_route_is_set_again():
    found = difference(DESIRED, seen(routes=CONVERGED.routes[:2]))
    assert found.routes_set == (CONVERGED.routes[2],)
    assert msgspec.structs.replace(found, routes_set=()).is_empty


def test_a_pod_route_to_another_veth_is_replaced_and_not_deleted():
    wrong = Route(table=POD_TABLE, dst=Cidr("10.0.1.21/32"), ifindex=99)
    found = difference(DESIRED, seen(routes=(*CONVERGED.routes[:2], wrong)))
    assert found.routes_set == (CONVERGED.routes[2],)
    assert found.routes_delete == ()


def test_a_pod_route_without_a_lease_is_deleted_by_its_own_link():
    stale = Route(table=POD_TABLE, dst=Cidr("10.0.1.99/32"), ifindex=4)
    found = difference(DESIRED, seen(routes=(*CONVERGED.routes, stale)))
    assert found.routes_delete == (RouteRemoval(table=POD_TABLE, dst=stale.dst, ifindex=4),)


def test_a_host_veth_that_is_down_or_lets_spoofing_through_is_set_right():
    for fields in ({"is_up": False}, {"rp_filter": 0}):
        spoilt = msgspec.structs.replace(VETH, **fields)
        found = difference(DESIRED, seen(links=(PRIMARY, SECONDARY, spoilt)))
        wanted = 1 if "rp_filter" in fields else -1
        assert found.links_set == (LinkSetting(ifindex=4, alias=VETH.alias, rp_filter=wanted),)


@pytest.mark.parametrize(
    "observed",
    [
        seen(links=(PRIMARY, msgspec.structs.replace(SECONDARY, mtu=1500), VETH)),
        seen(links=(PRIMARY, msgspec.structs.replace(SECONDARY, is_up=False), VETH)),
        seen(links=(PRIMARY, msgspec.structs.replace(SECONDARY, rp_filter=1), VETH)),
        seen(addresses=()),
        seen(routes=CONVERGED.routes[1:]),
        seen(routes=(CONVERGED.routes[0], CONVERGED.routes[2])),
    ],
    ids=["mtu", "down", "rp_filter", "address", "gateway route", "default route"],
)
def test_an_eni_that_lacks_anything_is_set_up_again(observed):
    found = difference(DESIRED, observed)
    assert found.enis == (DESIRED.enis[1],)
    assert msgspec.structs.replace(found, enis=()).is_empty


def test_the_connected_route_of_a_secondary_eni_leaves_main():
    connected = Route(table=254, dst=Cidr("10.0.1.0/24"), ifindex=3)
    primary = Route(table=254, dst=Cidr("10.0.0.0/24"), ifindex=2)
    found = difference(DESIRED, seen(routes=(*CONVERGED.routes, connected, primary)))
    assert found.routes_delete == (RouteRemoval(table=254, dst=connected.dst, ifindex=3),)


def test_an_eni_without_a_link_is_told():
    found = difference(DESIRED, seen(links=(PRIMARY, VETH)))
    assert found.enis_missing == ("eni-1",)
    assert found.enis == ()


def test_a_link_is_found_by_mac_and_not_by_whoever_borrowed_it():
    mac = eni(1).mac
    borrowed = [link(1, "br0", mac, kind="bridge"), link(2, "mac0", mac, kind="macvlan")]
    ours = link(3, "eni1", mac, kind="veth", alias=alias_of(POD.key))
    plugged = link(9, "plug", mac, kind="veth")
    device = link(12, "eth1", mac)
    assert find_link([*borrowed, ours], mac) is None
    assert find_link([*borrowed, ours, plugged], mac) == plugged
    assert find_link([*borrowed, ours, plugged, device], mac.upper()) == device


FOREIGN_RULES = [
    Rule(priority=100, table=50),
    Rule(priority=512, table=254, dst=Cidr("172.16.0.9/32")),
    Rule(priority=512, table=254, dst=Cidr("10.0.1.0/24")),
    Rule(priority=512, table=254, dst=Cidr("10.0.1.10/32")),
    Rule(priority=512, table=2, dst=Cidr("10.0.1.21/32")),
    Rule(priority=512, table=254, dst=Cidr("10.0.1.21/32"), src=Cidr("10.0.1.22/32")),
    Rule(priority=512, table=254, dst=Cidr("10.0.1.21/32"), exotic=True),
    Rule(priority=511, table=254, dst=Cidr("10.0.1.21/32")),
    Rule(priority=1535, table=254, dst=Cidr("10.0.1.21/32")),
    Rule(priority=1536, table=2, src=Cidr("172.16.0.9/32")),
    Rule(priority=1536, table=2, src=Cidr("10.0.1.0/24")),
    Rule(priority=1536, table=2, src=Cidr("10.0.1.99/32"), iif="eth1"),
    Rule(priority=1536, table=2, src=Cidr("10.0.1.99/32"), exotic=True),
    Rule(priority=1536, table=254, src=Cidr("10.0.1.99/32")),
    Rule(priority=1536, table=30400, src=Cidr("10.0.1.99/32")),
    Rule(priority=1024, table=254, mark=0x80, mask=0xFF),
    Rule(priority=1024, table=254, mark=0x80, mask=0x80, iif="eth3"),
    Rule(priority=32765, table=2, src=Cidr("192.168.0.1/32")),
]


@pytest.mark.parametrize("rule", FOREIGN_RULES, ids=str)
def test_a_foreign_rule_is_never_touched(rule):
    assert difference(DESIRED, seen(rules=(*CONVERGED.rules, rule))).is_empty


@pytest.mark.parametrize(
    "rule",
    [
        Rule(priority=1536, table=3, src=Cidr("10.0.1.21/32")),
        Rule(priority=1536, table=2, src=Cidr("10.0.1.77/32")),
        Rule(priority=32765, table=4, src=Cidr("10.0.1.9/32")),
        Rule(priority=1024, table=254, mark=0x40, mask=0x40),
    ],
    ids=["wrong table", "no lease", "eni that left", "former mark"],
)
def test_a_left_over_rule_of_ours_is_deleted(rule):
    assert is_our_rule(rule, DESIRED.subnets)
    found = difference(DESIRED, seen(rules=(*CONVERGED.rules, rule)))
    assert found.rules_delete == (rule,)
    assert msgspec.structs.replace(found, rules_delete=()).is_empty


def test_only_veths_of_leases_that_have_ended_are_deleted():
    """One with our alias that the log does not know may be a living sandbox's: it may be the log that lacks."""
    links = (
        link(20, "enix", "02:00:00:00:09:02", kind="veth", alias=alias_of(lease(9).key)),
        link(24, "enif", "02:00:00:00:09:06", kind="veth", alias="vpccni:unknown:eth0"),
        link(21, "eniy", "02:00:00:00:09:03", kind="veth"),
        link(22, "eniz", "02:00:00:00:09:04", kind="veth", alias="someone's"),
        link(23, "br1", "02:00:00:00:09:05", kind="bridge", alias=alias_of(lease(9).key)),
    )
    wanted = desired([POD], [eni(0), eni(1)], SETTINGS, VPC, ended=[lease(9, ifindex=20)])
    found = difference(wanted, seen(links=(*CONVERGED.links, *links)))
    assert found.veths_delete == (VethRemoval(ifindex=20, alias=alias_of(lease(9).key)),)
    assert msgspec.structs.replace(found, veths_delete=()).is_empty


def test_a_tampered_nft_table_is_loaded_again():
    for nft in (
        msgspec.structs.replace(CONVERGED.nft, rules=CONVERGED.nft.rules - 1),
        msgspec.structs.replace(CONVERGED.nft, elements=0),
        msgspec.structs.replace(CONVERGED.nft, digest=""),
    ):
        assert difference(DESIRED, seen(nft=nft)).nft is not None


def test_the_nft_table_goes_when_nothing_needs_it():
    settings = DatapathSettings(external_snat=True, node_port=False)
    found = difference(desired([POD], [eni(0), eni(1)], settings, VPC), CONVERGED)
    assert found.nft is not None
    assert found.nft.text == ""
    assert found.rules_delete == (Rule(priority=1024, table=254, mark=0x80, mask=0x80),)


def test_the_small_differences_are_as_small_as_they_sound():
    wired = lease(1, ifindex=4)
    assert wire(wired, [], SETTINGS).wire == probe(wired, SETTINGS).probe
    assert probe(wired, SETTINGS).is_empty
    gone = unwire(wired)
    assert gone.routes_delete == (
        RouteRemoval(table=POD_TABLE, dst=Cidr("10.0.1.21/32"), ifindex=4),
        RouteRemoval(table=254, dst=Cidr("10.0.1.21/32"), ifindex=4),
    )
    assert gone.purge == ("10.0.1.21",)
    assert gone.veths_delete == ()
    assert sweep([wired]).veths_delete == (VethRemoval(ifindex=4, alias=alias_of(wired.key)),)
    assert sweep_links([PRIMARY, VETH]).veths_delete == (VethRemoval(ifindex=4, alias=VETH.alias),)


def test_without_an_index_a_route_in_main_is_left_to_a_look_at_the_whole():
    """It may be the route of another sandbox, which the log does not know."""
    assert unwire(lease(1)).routes_delete == (RouteRemoval(table=POD_TABLE, dst=Cidr("10.0.1.21/32")),)


def test_an_eni_comes_and_goes_with_its_rule():
    rule = Rule(priority=32765, table=2, src=Cidr("10.0.1.10/32"))
    assert setup_eni(eni(1), SETTINGS).rules_add == (rule,)
    assert teardown_eni(eni(1)).rules_delete == (rule,)
    assert teardown_eni(eni(0)).is_empty
    assert setup_eni(eni(0), SETTINGS).rules_add == ()
