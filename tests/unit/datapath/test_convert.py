"""What amazon-vpc-cni-k8s left: what goes, what stays, and how a node is handed back."""

import msgspec
import pytest

from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.datapath.convert import (
    farewell,
    is_sandbox_veth,
    rule_problems,
    rules_by_address,
    told_firewall,
    told_route,
    told_rule,
)
from vpccni.datapath.desired import desired, pod_wiring
from vpccni.datapath.difference import difference
from vpccni.datapath.names import alias_of
from vpccni.datapath.nft import nft_table
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import (
    AddressSeen,
    Desired,
    Difference,
    FirewallPart,
    FirewallSeen,
    LeaseWiring,
    LinkSeen,
    LinkSetting,
    Observed,
    OriginalPath,
    Route,
    RouteRemoval,
    Rule,
    VethRemoval,
)
from vpccni.model import Cidr, EniId, Mac

NAME = "eni0d7763386da"
OTHER_NAME = "enicc21c2d7785"
HOST_MAC = Mac("0a:00:00:00:00:01")
SNAT = FirewallPart(tool="iptables-nft", lines=("-t nat -N AWS-SNAT-CHAIN-0",))


def link(ifindex: int, ifname: str, mac: str, **fields) -> LinkSeen:
    given = {"alias": "", "kind": "", "mtu": 9001, "is_up": True, "rp_filter": 2, **fields}
    return LinkSeen(ifindex=ifindex, ifname=ifname, mac=mac, **given)


def veth(ifindex: int = 4, ifname: str = NAME, **fields) -> LinkSeen:
    return link(ifindex, ifname, fields.pop("mac", HOST_MAC), kind="veth", **{"rp_filter": 0, **fields})


def found(number: int = 1, *, ifindex: int = 4, ifname: str = NAME, device: int = 1) -> LeaseWiring:
    """A pod of the original, as a search of the node brings it into the log."""
    return msgspec.structs.replace(
        lease(number, device=device, ifindex=ifindex),
        host_ifname=ifname,
        alias=alias_of(lease(number).key),
        host_mac=HOST_MAC,
        is_found=True,
    )


POD = found()
ADDRESS = POD.bindings[0].address
TO = Rule(priority=512, table=254, dst=Cidr(f"{ADDRESS}/32"))
FROM = Rule(priority=1536, table=2, src=Cidr(f"{ADDRESS}/32"))
MAIN_ROUTE = Route(table=254, dst=Cidr(f"{ADDRESS}/32"), ifindex=4)
OUR_ROUTE = Route(table=POD_TABLE, dst=Cidr(f"{ADDRESS}/32"), ifindex=4)


def wanted(*leases: LeaseWiring, ended: tuple[LeaseWiring, ...] = (), as_original: bool = False) -> Desired:
    return desired(leases, [eni(0), eni(1)], SETTINGS, VPC, ended=ended, as_original=as_original)


def node(
    *veths: LinkSeen, rules: tuple[Rule, ...] = (), routes: tuple[Route, ...] = (), **fields
) -> Observed:
    """A node whose ENIs, own rules and nft table are as they should be."""
    base = wanted()
    assert base.nft is not None
    given = {"nft": nft_table(base.nft, "eth0").seen, **fields}
    return Observed(
        links=(link(2, "eth0", eni(0).mac), link(3, "eth1", eni(1).mac), *veths),
        addresses=(AddressSeen(ifindex=3, address=eni(1).primary, prefix_length=24),),
        routes=(
            Route(table=2, dst=Cidr("10.0.1.1/32"), ifindex=3),
            Route(table=2, dst=Cidr("0.0.0.0/0"), ifindex=3, gateway=base.enis[1].gateway),
            *routes,
        ),
        rules=(*base.rules, *rules),
        ip_forward=True,
        **given,
    )


def only(made: Difference, **parts: object) -> bool:
    """Whether a difference consists of these parts."""
    rest = msgspec.structs.replace(made, **dict.fromkeys(parts, ()))
    return rest.is_empty and all(getattr(made, name) == part for name, part in parts.items())


# --- a living pod of the original -----------------------------------------------------------------------------


def test_a_pod_of_the_original_gets_our_alias_and_our_route_and_its_own_objects_go():
    made = difference(wanted(POD), node(veth(), rules=(TO, FROM), routes=(MAIN_ROUTE,)))
    assert only(
        made,
        links_set=(LinkSetting(ifindex=4, alias="", ifname=NAME, new_alias=POD.alias),),
        routes_set=(OUR_ROUTE,),
        foreign_rules=(TO,),
        foreign_routes=(MAIN_ROUTE,),
    )


def test_once_converted_nothing_is_left_to_do():
    observed = node(veth(alias=POD.alias), rules=(FROM,), routes=(OUR_ROUTE,))
    assert difference(wanted(POD), observed).is_empty


def test_a_rule_that_tells_the_eni_of_a_pod_stays_as_long_as_nothing_else_tells_it():
    """1. A node is searched while a plugin is at work.  2. That adds its rule.  3. EC2 does not list the ENI."""
    binding = msgspec.structs.replace(POD.bindings[0], eni=EniId(""), device=0, table=254)
    pod = msgspec.structs.replace(POD, bindings=(binding,), alias="")
    narrow = Rule(priority=1536, table=2, src=FROM.src, dst=VPC[0])
    observed = node(veth(), rules=(TO, FROM, narrow), routes=(MAIN_ROUTE,))
    made = difference(wanted(pod), observed)
    assert (made.rules_delete, made.foreign_rules) == ((), (TO,))
    assert rule_problems(pod_wiring(pod, SETTINGS), {FROM, narrow}) == []
    known = msgspec.structs.replace(pod, bindings=(msgspec.structs.replace(binding, eni=EniId("eni-0")),))
    made = difference(wanted(known), observed)
    assert (made.rules_delete, made.foreign_rules) == ((FROM,), (TO, narrow))


@pytest.mark.parametrize(
    "other",
    [
        veth(ifindex=5),
        veth(ifname=OTHER_NAME),
        veth(alias="made by another"),
        link(4, NAME, HOST_MAC, kind="macvlan"),
    ],
    ids=["other index", "other name", "other alias", "other kind"],
)
def test_a_veth_without_our_alias_must_have_index_and_name_and_kind_of_the_log(other):
    made = difference(wanted(POD), node(other))
    assert made.links_set == ()
    assert made.routes_set == ()
    assert made.absent == (POD.lease,)


def test_an_alias_of_somebody_else_counts_with_its_index_only():
    """Whoever gives aliases may give many veths the same one."""
    one = msgspec.structs.replace(POD, alias="pods")
    made = difference(wanted(one), node(veth(alias="pods"), veth(9, OTHER_NAME, alias="pods")))
    assert [route.ifindex for route in made.routes_set] == [4]
    assert difference(wanted(one), node(veth(9, OTHER_NAME, alias="pods"))).absent == (one.lease,)


def test_a_from_rule_with_the_wrong_table_is_replaced_new_before_old():
    wrong = Rule(priority=1536, table=3, src=FROM.src)
    made = difference(wanted(POD), node(veth(alias=POD.alias), rules=(wrong,), routes=(OUR_ROUTE,)))
    assert only(made, rules_add=(FROM,), rules_delete=(wrong,))


def test_from_rules_for_each_cidr_of_the_vpc_go():
    """Versions before 1.6 made one for each."""
    narrow = tuple(
        Rule(priority=1536, table=2, src=FROM.src, dst=Cidr(cidr))
        for cidr in ("10.0.0.0/16", "100.64.0.0/16")
    )
    observed = node(veth(alias=POD.alias), rules=(FROM, *narrow), routes=(OUR_ROUTE,))
    assert only(difference(wanted(POD), observed), foreign_rules=narrow)


def test_a_stale_rule_of_a_leased_address_goes():
    """The rule is older than ours, so it wins; main has no route to the pod any more, but a default route."""
    observed = node(veth(alias=POD.alias), rules=(FROM, TO), routes=(OUR_ROUTE,))
    assert only(difference(wanted(POD), observed), foreign_rules=(TO,))


def test_its_host_route_in_the_table_of_an_eni_goes_too():
    there = msgspec.structs.replace(MAIN_ROUTE, table=2)
    observed = node(veth(alias=POD.alias), rules=(FROM,), routes=(OUR_ROUTE, there))
    assert only(difference(wanted(POD), observed), foreign_routes=(there,))


@pytest.mark.parametrize(
    ("candidate", "is_its_own"),
    [
        (veth(), True),
        (veth(alias=POD.alias), True),
        (veth(9, alias=POD.alias), True),
        (veth(9, OTHER_NAME), True),
        (veth(9, mac="0a:00:00:00:00:09"), False),
        (veth(mac="0a:00:00:00:00:09"), True),
        (veth(alias="vpccni:other:eth0"), False),
        (link(9, NAME, HOST_MAC, kind="macvlan"), False),
    ],
    ids=[
        "as logged",
        "alias",
        "alias elsewhere",
        "MAC",
        "only its name",
        "index and name",
        "another's",
        "no veth",
    ],
)
def test_what_is_in_the_way_of_a_sandbox_is_its_own_by_alias_by_mac_or_by_index_and_name(
    candidate, is_its_own
):
    """A pod that was made again has the same veth name: the name alone proves nothing."""
    assert is_sandbox_veth(candidate, pod_wiring(POD, SETTINGS)) == is_its_own


# --- what nobody lives behind ---------------------------------------------------------------------------------


def test_what_dead_pods_left_goes():
    """20 old pods that were deleted left 20 rules and routes."""
    observed = node(rules=(TO, FROM))
    assert only(difference(wanted(), observed), foreign_rules=(TO,), rules_delete=(FROM,))


def test_what_leads_to_the_veth_of_an_ended_lease_goes_with_it():
    made = difference(wanted(ended=(POD,)), node(veth(), rules=(TO, FROM), routes=(MAIN_ROUTE,)))
    assert only(
        made,
        veths_delete=(VethRemoval(ifindex=4, alias="", ifname=NAME, mac=HOST_MAC),),
        rules_delete=(FROM,),
        foreign_rules=(TO,),
        foreign_routes=(MAIN_ROUTE,),
    )


def test_a_lease_without_a_veth_keeps_what_may_serve_it_and_loses_a_rule_that_leads_nowhere():
    assert only(difference(wanted(POD), node(rules=(TO, FROM))), foreign_rules=(TO,))
    # Its address is the second one of a veth that another lease has.
    other = found(2)
    mine = msgspec.structs.replace(MAIN_ROUTE, dst=Cidr("10.0.1.22/32"))
    observed = node(
        veth(alias=other.alias),
        rules=(TO, FROM, Rule(priority=1536, table=2, src=Cidr("10.0.1.22/32"))),
        routes=(MAIN_ROUTE, mine, msgspec.structs.replace(OUR_ROUTE, dst=mine.dst)),
    )
    bare = msgspec.structs.replace(POD, host_ifindex=0, host_ifname="", alias="")
    assert only(difference(wanted(bare, other), observed), foreign_routes=(mine,))


# --- whom nobody may touch ------------------------------------------------------------------------------------


def test_a_living_pod_that_the_log_does_not_know_keeps_everything():
    """A plugin process of the original was still under way when the node was searched."""
    observed = node(veth(), rules=(TO, FROM), routes=(MAIN_ROUTE,))
    assert difference(wanted(), observed).is_empty


def test_our_own_veth_that_the_log_does_not_know_keeps_everything():
    observed = node(veth(alias=POD.alias), rules=(FROM,), routes=(OUR_ROUTE,))
    assert difference(wanted(), observed).is_empty


def test_while_a_veth_stands_whose_address_nothing_shows_no_address_without_a_lease_is_cleaned_up():
    """It may be the one that this rule is for: its plugin has not made the route yet."""
    other = found(2, ifindex=9, ifname=OTHER_NAME)
    observed = node(
        veth(),
        veth(9, OTHER_NAME, alias=other.alias),
        rules=(TO, FROM, Rule(priority=512, table=254, dst=Cidr("10.0.1.22/32"))),
    )
    made = difference(wanted(other), observed)
    assert made.rules_delete == ()
    assert made.foreign_rules == (Rule(priority=512, table=254, dst=Cidr("10.0.1.22/32")),)


def test_an_address_that_a_stranger_uses_is_not_touched_even_with_a_lease():
    """A contradiction is for a search of the node to settle."""
    observed = node(
        veth(alias=POD.alias), veth(9, OTHER_NAME), rules=(TO, FROM), routes=(MAIN_ROUTE, OUR_ROUTE)
    )
    theirs = msgspec.structs.replace(MAIN_ROUTE, ifindex=9)
    observed = msgspec.structs.replace(observed, routes=(*observed.routes[:2], theirs, OUR_ROUTE))
    assert difference(wanted(POD), observed).is_empty


@pytest.mark.parametrize("is_blind", [False, True])
def test_a_veth_that_is_being_wired_is_no_stranger(is_blind):
    """It has no alias yet and no record, but a lease whose name and MAC it has."""
    pod = pod_wiring(lease(3), SETTINGS)
    half_made = veth(8, pod.host_ifname, mac=pod.host_mac if not is_blind else "0a:00:00:00:00:99")
    made = difference(wanted(lease(3)), node(half_made, rules=(TO,), routes=()))
    assert made.foreign_rules == (() if is_blind else (TO,))


def test_the_addresses_of_a_lease_that_cannot_be_wired_keep_everything():
    odd = msgspec.structs.replace(
        POD,
        bindings=(*POD.bindings, msgspec.structs.replace(POD.bindings[0], family=6, address="2001:db8::5")),
    )
    observed = node(veth(alias=POD.alias), rules=(TO, FROM), routes=(MAIN_ROUTE, OUR_ROUTE))
    assert difference(wanted(odd), observed).is_empty


@pytest.mark.parametrize(
    "route",
    [
        Route(table=254, dst=Cidr("172.16.0.9/32"), ifindex=4),
        Route(table=254, dst=Cidr("10.0.1.77/32"), ifindex=4),
        Route(table=254, dst=Cidr("10.0.1.21/32"), ifindex=3),
        Route(table=254, dst=Cidr("10.0.1.21/32"), ifindex=4, gateway=eni(1).primary),
        Route(table=254, dst=Cidr("10.0.1.0/24"), ifindex=4),
        Route(table=30400, dst=Cidr("10.0.1.21/32"), ifindex=4),
    ],
    ids=["outside", "second address of a pod", "by an ENI", "by a gateway", "a subnet", "another table"],
)
def test_a_foreign_route_is_never_touched(route):
    observed = node(veth(alias=POD.alias), rules=(FROM,), routes=(OUR_ROUTE, route))
    assert difference(wanted(POD), observed).is_empty


def test_a_rule_that_leads_to_a_route_of_somebody_else_stays():
    by_bridge = Route(table=254, dst=Cidr("10.0.1.77/32"), ifindex=30)
    rule = Rule(priority=512, table=254, dst=Cidr("10.0.1.77/32"))
    observed = node(link(30, "br0", "02:00:00:00:ee:01", kind="bridge"), rules=(rule,), routes=(by_bridge,))
    assert difference(wanted(), observed).is_empty


# --- its firewall ---------------------------------------------------------------------------------------------


def test_its_firewall_goes_together_with_the_loading_of_ours():
    seen = FirewallSeen(parts=(SNAT,))
    assert only(difference(wanted(), node(firewall=seen)), firewall=(SNAT,))
    made = difference(wanted(), node(firewall=seen, nft=msgspec.structs.replace(node().nft, digest="")))
    assert made.nft is not None
    assert made.firewall == (SNAT,)


def test_its_firewall_stays_while_ours_cannot_be_made():
    unknown = desired([], [eni(0), eni(1)], SETTINGS, ())
    assert difference(unknown, node(firewall=FirewallSeen(parts=(SNAT,)))).is_empty


# --- how it is told -------------------------------------------------------------------------------------------


def test_what_was_removed_is_told_as_its_own_tool_prints_it():
    narrow = Rule(priority=1536, table=2, src=FROM.src, dst=Cidr("10.0.0.0/16"))
    assert [told_rule(rule).text for rule in (TO, FROM, narrow)] == [
        "512:\tfrom all to 10.0.1.21 lookup main",
        "1536:\tfrom 10.0.1.21 lookup 2",
        "1536:\tfrom 10.0.1.21 to 10.0.0.0/16 lookup 2",
    ]
    assert told_route(MAIN_ROUTE, NAME).text == f"10.0.1.21 dev {NAME} scope link"
    in_table = msgspec.structs.replace(MAIN_ROUTE, table=2)
    assert told_route(in_table, NAME).text == f"10.0.1.21 dev {NAME} table 2 scope link"
    (chain,) = told_firewall(SNAT)
    assert (chain.kind, chain.text) == ("iptables", "iptables-nft -t nat -N AWS-SNAT-CHAIN-0")
    (table,) = told_firewall(FirewallPart(tool="nft", lines=("table ip aws-cni {\n}",)))
    assert (table.kind, table.text) == ("nftables", "table ip aws-cni {\n}")


# --- CHECK ----------------------------------------------------------------------------------------------------


def problems_with(*rules: Rule, as_original: bool = False) -> list[str]:
    pod = pod_wiring(POD, SETTINGS, as_original=as_original)
    return rule_problems(pod, rules_by_address(rules).get(ADDRESS, set()))


def test_check_tells_what_is_wrong_with_the_rules_of_a_pod():
    assert problems_with(FROM) == []
    assert problems_with() == [f"there is no rule from {ADDRESS} to table 2"]
    assert problems_with(FROM, TO) == [f"a rule of amazon-vpc-cni-k8s leads packets to {ADDRESS} to main"]
    wrong = Rule(priority=1536, table=3, src=FROM.src)
    assert problems_with(FROM, wrong) == [f"a rule sends packets from {ADDRESS} to table 3"]
    assert problems_with(FROM, as_original=True) == [
        f"there is no rule 512 that leads {ADDRESS} to main",
    ]
    assert problems_with(FROM, TO, as_original=True) == []


# --- handing back ---------------------------------------------------------------------------------------------


def test_while_handing_back_each_pod_gets_the_originals_path_and_nothing_of_it_goes():
    observed = node(
        veth(alias=POD.alias), rules=(FROM,), routes=(OUR_ROUTE,), firewall=FirewallSeen(parts=(SNAT,))
    )
    made = difference(wanted(POD, as_original=True), observed)
    assert only(made, original_add=(OriginalPath(address=ADDRESS, ifindex=4),))
    dead = Rule(priority=512, table=254, dst=Cidr("10.0.1.77/32"))
    done = node(
        veth(alias=POD.alias),
        rules=(FROM, TO, dead),
        routes=(OUR_ROUTE, MAIN_ROUTE),
        firewall=FirewallSeen(parts=(SNAT,)),
    )
    assert difference(wanted(POD, as_original=True), done).is_empty


@pytest.mark.parametrize("lost", ["route", "rule"])
def test_half_of_the_originals_path_is_made_whole(lost):
    observed = node(
        veth(alias=POD.alias),
        rules=(FROM, TO) if lost == "route" else (FROM,),
        routes=(OUR_ROUTE, MAIN_ROUTE) if lost == "rule" else (OUR_ROUTE,),
    )
    assert difference(wanted(POD, as_original=True), observed).original_add == (
        OriginalPath(address=ADDRESS, ifindex=4),
    )


def test_a_veth_that_is_not_there_gets_no_path():
    assert difference(wanted(POD, as_original=True), node(rules=(FROM,))).original_add == ()


def handed_back(**fields) -> Observed:
    given = {
        "rules": (FROM, TO),
        "routes": (OUR_ROUTE, MAIN_ROUTE),
        "firewall": FirewallSeen(parts=(SNAT,)),
        **fields,
    }
    return node(veth(alias=POD.alias), **given)


def test_the_farewell_takes_away_what_only_we_need():
    bye = farewell(wanted(POD, as_original=True), handed_back())
    assert bye.objections == ()
    assert bye.difference.nft is not None
    assert bye.difference.nft.text == ""
    assert only(
        msgspec.structs.replace(bye.difference, nft=None),
        links_set=(LinkSetting(ifindex=4, alias=POD.alias, new_alias=""),),
        routes_delete=(RouteRemoval(table=POD_TABLE, dst=OUR_ROUTE.dst, ifindex=4),),
        rules_delete=(Rule(priority=512, table=POD_TABLE),),
    )


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"routes": (OUR_ROUTE,)}, f"{ADDRESS}: main has no route to its interface"),
        (
            {"routes": (OUR_ROUTE, msgspec.structs.replace(MAIN_ROUTE, ifindex=9))},
            f"{ADDRESS}: main has no route to its interface",
        ),
        ({"rules": (FROM,)}, f"{ADDRESS}: no rule 512 leads to main"),
        (
            {"firewall": FirewallSeen()},
            "its firewall, which translates addresses that leave the VPC, is not there yet",
        ),
    ],
    ids=["no route", "route elsewhere", "no rule", "no firewall"],
)
def test_there_is_no_farewell_while_a_pod_would_be_cut_off(lacks, said):
    assert farewell(wanted(POD, as_original=True), handed_back(**lacks)).objections == (said,)


def test_a_pod_of_our_table_that_no_lease_explains_stands_in_the_way_of_a_farewell_too():
    stranger = Route(table=POD_TABLE, dst=Cidr("10.0.1.99/32"), ifindex=8)
    bye = farewell(wanted(POD, as_original=True), handed_back(routes=(OUR_ROUTE, MAIN_ROUTE, stranger)))
    assert [said.partition(":")[0] for said in bye.objections] == ["10.0.1.99", "10.0.1.99"]
