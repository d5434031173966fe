"""What to do to get from what is to what should be.

The whole difference (:func:`difference`) is for the start and for repair; the small ones are for the paths
on which nobody looks at the kernel first. Ours to delete are: routes of the pod table, from-rules of
ours whose source is a single address in a subnet of ours, veths of leases that the log knows to have ended, the
nft table of our name, and what amazon-vpc-cni-k8s left of the same kind (:mod:`vpccni.datapath.convert`). What
may belong to a veth that the log does not explain stays. Everything else is foreign and never in a difference.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

import msgspec

from vpccni.datapath.convert import (
    Guard,
    Standing,
    foreign,
    guard_of,
    original_paths,
    single,
    standing,
)
from vpccni.datapath.desired import eni_rules, eni_setup, pod_wiring, veth_removals, why_left_alone
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.nft import nft_table
from vpccni.datapath.numbers import (
    POD_TABLE,
    PRIORITY_FROM_ENI,
    PRIORITY_FROM_POD,
    PRIORITY_MARK,
    is_eni_table,
)
from vpccni.datapath.objects import (
    AddressSeen,
    DatapathSettings,
    Desired,
    Difference,
    EniLink,
    EniSetup,
    EniWiring,
    LeaseWiring,
    LinkSeen,
    LinkSetting,
    NftTable,
    Observed,
    PodWiring,
    Route,
    RouteRemoval,
    Rule,
    VethRemoval,
)
from vpccni.model import MAIN_TABLE, Address, Cidr, EniId, host_cidr, is_inside

DEFAULT_DST: Final = Cidr("0.0.0.0/0")
STACKED_KINDS: Final = frozenset(
    {"bond", "bridge", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "team", "vlan", "vrf", "vxlan"}
)
"""Kinds of links that stand on others and take over their MAC."""


def difference(desired: Desired, observed: Observed, *, rewire: bool = False) -> Difference:
    """Everything that has to be done; empty when the kernel is as desired.

    Observe *first* and take the leases afterwards: a veth that was seen and has no lease among those is
    then one whose lease has ended, and not one that is being wired just now.

    Args:
        desired: What should be.
        observed: What is.
        rewire: Wire sandboxes whose veth is not there. Without it they are only told (``absent``).
    """
    veths = standing(desired, observed)
    guard = guard_of(desired, observed, veths)
    pods = _pods(desired, observed, veths, guard)
    enis, ready, missing = _enis(desired, observed)
    rules = {rule for rule in observed.rules if not rule.exotic}
    wanted = set(desired.rules)
    leased = {pod.address for pod in desired.pods}
    unlocated = {pod.address for pod in desired.pods if pod.is_unlocated}
    left = foreign(desired, observed, veths, guard)
    return Difference(
        ip_forward=desired.ip_forward and observed.ip_forward is False,
        enis=enis,
        links_set=pods.links,
        rules_add=tuple(sorted(wanted - rules)),
        routes_set=pods.routes,
        wire=pods.absent if rewire else (),
        nft=_nft(desired, observed),
        original_add=original_paths(desired, observed, veths.placed),
        routes_delete=pods.stale + _connected_routes(desired, observed, enis),
        rules_delete=tuple(
            sorted(
                rule
                for rule in rules - wanted
                if is_our_rule(rule, desired.subnets)
                and not _is_guarded(rule, leased, guard)
                and not (rule.priority == PRIORITY_FROM_POD and single(rule.src) in unlocated)
            )
        ),
        veths_delete=_stale_veths(observed, veths),
        foreign_rules=left.rules,
        foreign_routes=left.routes,
        firewall=left.firewall,
        absent=tuple(pod.lease for pod in pods.absent),
        enis_ready=ready,
        enis_missing=missing,
    )


def find_link(links: Sequence[LinkSeen], mac: str) -> LinkSeen | None:
    """The link of the ENI with this MAC.

    Stacked devices borrow the MAC of what they stand on, so they never count; a device with a driver is
    preferred to a virtual one, and a host veth of ours is never an ENI.
    """
    found = [
        link
        for link in links
        if link.mac == mac.lower() and link.kind not in STACKED_KINDS and not is_our_alias(link.alias)
    ]
    return min(found, key=lambda link: (link.kind != "", link.ifindex), default=None)


def is_our_rule(rule: Rule, subnets: Sequence[Cidr]) -> bool:
    """Whether a rule is of a form that only we (or the original, whose place we take) make.

    Args:
        rule: Any rule.
        subnets: The subnets of this node's ENIs: a from-rule is ours only for an address in them.
    """
    if rule.exotic or rule.iif or rule.dst:
        return False
    bare = Rule(priority=rule.priority, table=rule.table, mark=rule.mark, mask=rule.mask)
    if rule.priority == PRIORITY_MARK:
        return rule == bare and rule.table == MAIN_TABLE and rule.mark == rule.mask != 0
    if (
        rule.priority not in (PRIORITY_FROM_POD, PRIORITY_FROM_ENI)
        or rule.mark
        or not is_eni_table(rule.table)
    ):
        return False
    address, _, length = rule.src.partition("/")
    return length == "32" and any(is_inside(Address(address), subnet) for subnet in subnets)


def _is_guarded(rule: Rule, leased: Container[Address], guard: Guard) -> bool:
    """Whether a from-rule may be that of somebody who lives and whom the log does not explain."""
    address = single(rule.src)
    return rule.priority == PRIORITY_FROM_POD and guard.protects(address, is_leased=address in leased)


def missing_of_eni(setup: EniSetup, link: LinkSeen, observed: Observed) -> tuple[str, ...]:
    """What an ENI with this link still needs, one word each; empty when it can serve."""
    missing: list[str] = []
    if link.mtu != setup.mtu:
        missing.append("mtu")
    if not link.is_up:
        missing.append("up")
    if setup.rp_filter >= 0 and link.rp_filter not in (-1, setup.rp_filter):
        missing.append("rp_filter")
    if not setup.owns_address:
        return tuple(missing)
    address = AddressSeen(ifindex=link.ifindex, address=setup.primary, prefix_length=setup.prefix_length)
    if address not in observed.addresses:
        missing.append("address")
    missing.extend("route" for route in eni_routes(setup, link.ifindex) if route not in observed.routes)
    return tuple(missing)


def eni_routes(setup: EniSetup, ifindex: int) -> tuple[Route, ...]:
    """The routes of an ENI's table, in the order in which the kernel takes them."""
    return (
        Route(table=setup.table, dst=host_cidr(setup.gateway), ifindex=ifindex),
        Route(table=setup.table, dst=DEFAULT_DST, ifindex=ifindex, gateway=setup.gateway),
    )


class _Pods(msgspec.Struct, frozen=True, kw_only=True):
    links: tuple[LinkSetting, ...]
    routes: tuple[Route, ...]
    stale: tuple[RouteRemoval, ...]
    absent: tuple[PodWiring, ...]


def _pods(desired: Desired, observed: Observed, veths: Standing, guard: Guard) -> _Pods:
    links_of = {pod.lease: ifindex for ifindex, pod in veths.pods.items()}
    by_index = {link.ifindex: link for link in observed.links}
    by_dst = {route.dst: route for route in observed.routes if route.table == POD_TABLE}
    links: list[LinkSetting] = []
    routes: list[Route] = []
    absent: list[PodWiring] = []
    for pod in desired.pods:
        ifindex = links_of.get(pod.lease)
        if ifindex is None:
            absent.append(pod)
            continue
        setting = _setting(by_index[ifindex], pod)
        if setting is not None:
            links.append(setting)
        route = Route(table=POD_TABLE, dst=host_cidr(pod.address), ifindex=ifindex)
        if by_dst.get(route.dst) != route:
            routes.append(route)
    # A route to an address with a lease stays, wherever it points: better than none until it is replaced.
    kept = {pod.address for pod in desired.pods} | guard.addresses
    stale = tuple(
        RouteRemoval(table=POD_TABLE, dst=route.dst, ifindex=route.ifindex)
        for route in sorted(observed.routes)
        if route.table == POD_TABLE and single(route.dst) not in kept
    )
    return _Pods(links=tuple(links), routes=tuple(routes), stale=stale, absent=tuple(absent))


def _setting(link: LinkSeen, pod: PodWiring) -> LinkSetting | None:
    """What a host veth lacks; ``None`` when it is as it should be."""
    rp_filter = pod.rp_filter if link.rp_filter not in (-1, pod.rp_filter) else -1
    if link.alias and link.is_up and rp_filter < 0:
        return None
    if link.alias:
        return LinkSetting(ifindex=link.ifindex, alias=link.alias, rp_filter=rp_filter)
    return LinkSetting(
        ifindex=link.ifindex, alias="", ifname=link.ifname, new_alias=pod.alias, rp_filter=rp_filter
    )


def _enis(
    desired: Desired, observed: Observed
) -> tuple[tuple[EniSetup, ...], tuple[EniLink, ...], tuple[EniId, ...]]:
    """ENIs to set up, ready ones, and those without a link."""
    setups: list[EniSetup] = []
    ready: list[EniLink] = []
    missing: list[EniId] = []
    for setup in desired.enis:
        link = find_link(observed.links, setup.mac)
        if link is None:
            missing.append(setup.eni)
        elif missing_of_eni(setup, link, observed):
            setups.append(setup)
        else:
            ready.append(EniLink(eni=setup.eni, ifname=link.ifname, ifindex=link.ifindex))
    return tuple(setups), tuple(ready), tuple(missing)


def _connected_routes(
    desired: Desired, observed: Observed, in_setup: Sequence[EniSetup]
) -> tuple[RouteRemoval, ...]:
    """Routes by which main would send the primary's subnet out of a secondary ENI.

    Of ENIs that are set up in this difference the set-up takes them away itself.
    """
    removals: list[RouteRemoval] = []
    for setup in desired.enis:
        link = find_link(observed.links, setup.mac)
        if link is None or not setup.owns_address or setup in in_setup:
            continue
        route = Route(table=MAIN_TABLE, dst=setup.subnet_cidr, ifindex=link.ifindex)
        if route in observed.routes:
            removals.append(RouteRemoval(table=MAIN_TABLE, dst=route.dst, ifindex=route.ifindex))
    return tuple(removals)


def _stale_veths(observed: Observed, veths: Standing) -> tuple[VethRemoval, ...]:
    """Those of ended leases. A veth with our alias that the log does not know may be a living sandbox's."""
    return tuple(
        VethRemoval(ifindex=link.ifindex, alias=link.alias, ifname=link.ifname, mac=link.mac)
        if not link.alias
        else VethRemoval(ifindex=link.ifindex, alias=link.alias)
        for link in sorted(observed.links, key=lambda link: link.ifindex)
        if link.ifindex in veths.ended
    )


def _nft(desired: Desired, observed: Observed) -> NftTable | None:
    if desired.nft is None:
        return None
    primary = find_link(observed.links, desired.primary_mac)
    table = nft_table(desired.nft, primary.ifname if primary is not None else "")
    return None if table.seen == observed.nft else table


def wire(
    lease: LeaseWiring, enis: Sequence[EniWiring], settings: DatapathSettings, *, as_original: bool = False
) -> Difference:
    """Wire one sandbox; nothing else is looked at. Raises as ``pod_wiring``."""
    del enis  # where packets go is in the binding; other modes of routing will need the ENIs
    return Difference(wire=(pod_wiring(lease, settings, as_original=as_original),))


def unwire(lease: LeaseWiring) -> Difference:
    """Take away a lease's host routes and rules, also those of amazon-vpc-cni-k8s.

    The veth stays: it dies with its namespace. Where its index is not known, a route in main may be that of
    another sandbox, and is left to the next look at the whole.
    """
    addresses = [binding.address for binding in lease.bindings if binding.family == 4]
    tables = (POD_TABLE, MAIN_TABLE) if lease.host_ifindex else (POD_TABLE,)
    return Difference(
        routes_delete=tuple(
            RouteRemoval(table=table, dst=host_cidr(address), ifindex=lease.host_ifindex)
            for address in addresses
            for table in tables
        ),
        purge=tuple(addresses),
    )


def sweep(leases: Sequence[LeaseWiring], *, veth_prefix: str = "eni") -> Difference:
    """Delete the host veths that still stand, each by its index *and* alias.

    A lease without an index (its wiring was never written down) is looked for by name, and its veth deleted
    if it has its alias, or no alias yet and its MAC.
    """
    return Difference(veths_delete=veth_removals(leases, veth_prefix))


def sweep_links(links: Sequence[LinkSeen]) -> Difference:
    """Delete these links, as far as they are host veths of ours."""
    return Difference(
        veths_delete=tuple(
            VethRemoval(ifindex=link.ifindex, alias=link.alias)
            for link in links
            if link.kind == "veth" and is_our_alias(link.alias)
        )
    )


def probe(lease: LeaseWiring, settings: DatapathSettings, *, as_original: bool = False) -> Difference:
    """Look at one sandbox, in the node and inside its namespace; changes nothing.

    Empty for a lease that cannot be wired here: nothing can be said of it.
    """
    if why_left_alone(lease):
        return Difference()
    return Difference(probe=(pod_wiring(lease, settings, as_original=as_original),))


def setup_eni(eni: EniWiring, settings: DatapathSettings) -> Difference:
    """Set up one ENI; its link may not be there yet (then ``Applied.missing_links`` says so)."""
    setup = eni_setup(eni, settings)
    return Difference(enis=(setup,), rules_add=eni_rules(setup))


def teardown_eni(eni: EniWiring) -> Difference:
    """Take away the rule of an ENI that leaves the node. Its routes die with its link."""
    if eni.is_primary:
        return Difference()
    return Difference(rules_delete=eni_rules(eni_setup(eni, DatapathSettings())))
