"""What amazon-vpc-cni-k8s left in the kernel: which of it is in our way, and how it goes, or comes back.

Its objects are told by their form and by their address: a rule, or a host route by a host veth, for one address
inside a subnet of this node's ENIs. Whatever is not of such a form belongs to somebody else.

========================================  ====================================================================
an address of such an object that         its objects
========================================  ====================================================================
has a lease whose veth is here            go, once ours are in place
has a lease without a veth                stay, but a rule that leads to no route: with it, packets leave by eth0
has a lease without a known ENI           its from-rules stay: they tell by which ENI its packets leave
is shown by a veth that the log does not  stay: absence in the log frees nothing
know
has neither                               go, unless a veth stands whose address nothing shows: it may be this
========================================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Set

import msgspec

from vpccni.datapath.desired import from_rules
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.nft import ABSENT
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD, PRIORITY_TO_POD, is_eni_table
from vpccni.datapath.objects import (
    Desired,
    Difference,
    FirewallPart,
    LinkSeen,
    LinkSetting,
    Observed,
    OriginalPath,
    PodWiring,
    RemovedObject,
    Route,
    RouteRemoval,
    Rule,
    VethRemoval,
)
from vpccni.datapath.survey import is_host_veth
from vpccni.model import MAIN_TABLE, Address, Cidr, Mac, host_cidr, is_inside

# --- forms ------------------------------------------------------------------------------------------------


def to_rule(address: Address) -> Rule:
    """The rule by which amazon-vpc-cni-k8s leads packets to a pod."""
    return Rule(priority=PRIORITY_TO_POD, table=MAIN_TABLE, dst=host_cidr(address))


def host_route(address: Address, ifindex: int) -> Route:
    """The route to which that rule leads."""
    return Route(table=MAIN_TABLE, dst=host_cidr(address), ifindex=ifindex)


def single(cidr: str) -> Address:
    """The address of an IPv4 CIDR that holds just one; empty for any other."""
    address, _, length = cidr.partition("/")
    return Address(address if length == "32" else "")


def is_to_rule(rule: Rule) -> bool:
    """Whether a rule is ``512 to <address> lookup main``, and nothing more."""
    return bool(single(rule.dst)) and rule == to_rule(single(rule.dst))


def is_from_rule(rule: Rule) -> bool:
    """Whether a rule is ``1536 from <address> lookup <ENI table>``, and nothing more."""
    bare = Rule(priority=PRIORITY_FROM_POD, table=rule.table, src=rule.src)
    return bool(single(rule.src)) and is_eni_table(rule.table) and rule == bare


def is_narrow_from_rule(rule: Rule) -> bool:
    """Whether a rule is ``1536 from <address> to <CIDR> lookup <ENI table>``, as its old versions made them."""
    bare = Rule(priority=PRIORITY_FROM_POD, table=rule.table, src=rule.src, dst=rule.dst)
    return bool(single(rule.src)) and bool(rule.dst) and is_eni_table(rule.table) and rule == bare


def is_of_pod(link: LinkSeen, pod: PodWiring) -> bool:
    """Whether a link is the host veth of a lease: by our alias, or as the log has it while it has none yet."""
    if link.kind != "veth":
        return False
    is_here = link.ifindex == pod.host_ifindex and bool(pod.host_ifindex)
    if link.alias:
        return link.alias == pod.alias and (is_our_alias(link.alias) or is_here)
    return is_here and link.ifname == pod.host_ifname


def is_sandbox_veth(link: LinkSeen, pod: PodWiring) -> bool:
    """As :func:`is_of_pod`, or half made: the agent died before it set the alias, and the MAC tells."""
    if is_of_pod(link, pod):
        return True
    return link.kind == "veth" and not link.alias and link.mac == pod.host_mac


def is_standing_right(host_link: LinkSeen, pod_mac: str, pod: PodWiring) -> bool:
    """Whether a sandbox's standing interface is the one of this lease, as far as both ends tell.

    One that we made has the MAC that follows from key and address; one that was found has whatever it has.
    """
    return pod_mac == pod.pod_mac or (pod.is_found and host_link.ifindex == pod.host_ifindex)


def is_meant(link: LinkSeen, setting: LinkSetting) -> bool:
    """Whether the link that was found for a setting still is the veth that is meant."""
    if link.alias != setting.alias:
        return False
    return bool(link.alias) or (link.kind, link.ifname) == ("veth", setting.ifname)


def is_removable(link: LinkSeen, removal: VethRemoval) -> bool:
    """Whether the link that was found for a removal is the veth that is meant."""
    if link.kind != "veth" or (removal.ifindex and link.ifindex != removal.ifindex):
        return False
    if link.alias:
        return link.alias == removal.alias
    return bool(removal.mac) and (link.ifname, link.mac) == (removal.ifname, removal.mac)


# --- who is who ---------------------------------------------------------------------------------------------


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The host veths that stand, by index, and whose they are.

    Attributes:
        pods: Of open leases.
        half_made: Of an open lease that is being wired just now: it has neither our alias nor a record yet.
        ended: Of leases that have ended.
        strangers: Host veths that no lease explains.
    """

    pods: dict[int, PodWiring]
    half_made: frozenset[int]
    ended: frozenset[int]
    strangers: frozenset[int]

    @property
    def placed(self) -> dict[Address, int]:
        """The index of the host veth of each pod that has one."""
        return {pod.address: ifindex for ifindex, pod in self.pods.items()}


def standing(desired: Desired, observed: Observed) -> Standing:
    """Compare the veths that stand with the leases, open and ended."""
    by_alias = {pod.alias: pod for pod in desired.pods}
    by_index = {pod.host_ifindex: pod for pod in desired.pods if pod.host_ifindex}
    by_mac = {pod.host_mac: pod for pod in desired.pods}
    gone_by_alias = {removal.alias: removal for removal in desired.ended}
    gone_by_name = {removal.ifname: removal for removal in desired.ended if removal.ifname}
    pods: dict[int, PodWiring] = {}
    half_made, ended, strangers = set[int](), set[int](), set[int]()
    for link in observed.links:
        if link.kind != "veth":
            continue
        pod = by_alias.get(link.alias) if link.alias else by_index.get(link.ifindex)
        removal = gone_by_alias.get(link.alias) if link.alias else gone_by_name.get(link.ifname)
        maker = None if link.alias else by_mac.get(Mac(link.mac))
        if pod is not None and is_of_pod(link, pod):
            pods[link.ifindex] = pod
        elif removal is not None and is_removable(link, removal):
            ended.add(link.ifindex)
        elif maker is not None and maker.host_ifname == link.ifname:
            half_made.add(link.ifindex)
        elif is_host_veth(link, desired.veth_prefix):
            strangers.add(link.ifindex)
    return Standing(
        pods=pods, half_made=frozenset(half_made), ended=frozenset(ended), strangers=frozenset(strangers)
    )


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """Which addresses are nobody's to clean up.

    Attributes:
        addresses: Of leases that are left alone, and those to which a route by a stranger leads.
        is_blind: A stranger stands to which no route leads: any address without a lease may be its own.
    """

    addresses: frozenset[Address]
    is_blind: bool

    def protects(self, address: Address, *, is_leased: bool) -> bool:
        """Whether the objects of an address must be left as they are."""
        return address in self.addresses or (self.is_blind and not is_leased)


def guard_of(desired: Desired, observed: Observed, veths: Standing) -> Guard:
    """Whom nobody may touch."""
    shown = [(route.ifindex, single(route.dst)) for route in observed.routes if is_host_route(route)]
    with_route = {ifindex for ifindex, _ in shown}
    theirs = {address for ifindex, address in shown if ifindex in veths.strangers}
    return Guard(
        addresses=frozenset(theirs | set(desired.left_alone)),
        is_blind=bool(veths.strangers - with_route),
    )


def is_host_route(route: Route) -> bool:
    """Whether a route leads to one address by a link alone, in a table in which pods' routes may be."""
    is_here = route.table in (POD_TABLE, MAIN_TABLE) or is_eni_table(route.table)
    return is_here and bool(single(route.dst)) and not route.gateway


# --- what goes ----------------------------------------------------------------------------------------------


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """What of amazon-vpc-cni-k8s is to go, each rule before the route to which it leads."""

    rules: tuple[Rule, ...] = ()
    routes: tuple[Route, ...] = ()
    firewall: tuple[FirewallPart, ...] = ()


def foreign(desired: Desired, observed: Observed, veths: Standing, guard: Guard) -> Foreign:
    """What is in our way, once the rest of the difference is applied and ours leads to each pod.

    Its firewall stays as long as ours cannot be made: no VPC CIDR or no primary ENI is known.
    """
    if desired.as_original:
        return Foreign()
    judge = _Judge(desired, observed, veths, guard)
    return Foreign(
        rules=tuple(sorted(rule for rule in observed.rules if judge.is_rule_to_go(rule))),
        routes=tuple(sorted(route for route in observed.routes if judge.is_route_to_go(route))),
        firewall=observed.firewall.parts if desired.nft is not None else (),
    )


class _Judge:
    """Which objects of which addresses go; see the table above."""

    def __init__(self, desired: Desired, observed: Observed, veths: Standing, guard: Guard) -> None:
        self._subnets = desired.subnets
        self._placed = veths.placed
        self._ended = veths.ended
        self._guard = guard
        self._leased = {pod.address for pod in desired.pods}
        self._unlocated = {pod.address for pod in desired.pods if pod.is_unlocated}
        self._enis = {setup.primary for setup in desired.enis}
        self._links_to: dict[Address, set[int]] = {}
        for route in observed.routes:
            if is_host_route(route) and route.table != POD_TABLE:
                self._links_to.setdefault(single(route.dst), set()).add(route.ifindex)

    def _is_ours_to_judge(self, address: Address) -> bool:
        return (
            address not in self._enis
            and any(is_inside(address, subnet) for subnet in self._subnets)
            and not self._guard.protects(address, is_leased=address in self._leased)
        )

    def is_rule_to_go(self, rule: Rule) -> bool:
        if is_to_rule(rule):
            address = single(rule.dst)
        elif is_narrow_from_rule(rule) and single(rule.src) not in self._unlocated:
            address = single(rule.src)
        else:
            return False
        if not self._is_ours_to_judge(address):
            return False
        if address in self._placed:
            return True
        leads_to = self._links_to.get(address, set())
        if address in self._leased:
            return is_to_rule(rule) and not leads_to
        return leads_to <= self._ended

    def is_route_to_go(self, route: Route) -> bool:
        if not is_host_route(route) or route.table == POD_TABLE:
            return False
        address = single(route.dst)
        if not self._is_ours_to_judge(address):
            return False
        # By a pod's veth: only to the address that we lead there. It may have another one, which we do not know.
        return route.ifindex in self._ended or self._placed.get(address) == route.ifindex


def rules_by_address(rules: Iterable[Rule]) -> dict[Address, set[Rule]]:
    """The rules that lead packets to or from one address, at the priorities of pods."""
    found: dict[Address, set[Rule]] = {}
    for rule in rules:
        if rule.priority in (PRIORITY_TO_POD, PRIORITY_FROM_POD):
            address = single(rule.dst if rule.priority == PRIORITY_TO_POD else rule.src)
            found.setdefault(address, set()).add(rule)
    return found


def rule_problems(pod: PodWiring, found: Set[Rule]) -> list[str]:
    """What is wrong with the rules of a pod's address, one sentence each."""
    wanted = set(from_rules(pod.address, pod.table))
    problems = [
        f"there is no rule from {pod.address} to table {rule.table}" for rule in sorted(wanted - found)
    ]
    problems += [
        f"a rule sends packets from {pod.address} to table {rule.table}"
        for rule in sorted(found - wanted)
        if not pod.is_unlocated and (is_from_rule(rule) or is_narrow_from_rule(rule))
    ]
    if (to_rule(pod.address) in found) != pod.as_original:
        problems.append(
            f"there is no rule {PRIORITY_TO_POD} that leads {pod.address} to main"
            if pod.as_original
            else f"a rule of amazon-vpc-cni-k8s leads packets to {pod.address} to main"
        )
    return problems


# --- how it is told -----------------------------------------------------------------------------------------


def told_rule(rule: Rule) -> RemovedObject:
    """A rule as ``ip rule`` prints it."""
    words = [f"{rule.priority}:\tfrom {_bare(rule.src) or 'all'}"]
    words += [f"to {_bare(rule.dst)}"] if rule.dst else []
    table = "main" if rule.table == MAIN_TABLE else str(rule.table)
    return RemovedObject(kind="rule", text=" ".join([*words, f"lookup {table}"]))


def told_route(route: Route, ifname: str) -> RemovedObject:
    """A host route as ``ip route show table all`` prints it."""
    table = f" table {route.table}" if route.table != MAIN_TABLE else ""
    return RemovedObject(kind="route", text=f"{_bare(route.dst)} dev {ifname}{table} scope link")


def told_firewall(part: FirewallPart) -> tuple[RemovedObject, ...]:
    """Each chain and rule as its own tool takes it."""
    if part.tool == "nft":
        return tuple(RemovedObject(kind="nftables", text=text) for text in part.lines)
    return tuple(RemovedObject(kind="iptables", text=f"{part.tool} {line}") for line in part.lines)


def _bare(cidr: Cidr) -> str:
    return cidr.removesuffix("/32")


# --- handing back -------------------------------------------------------------------------------------------


class Farewell(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a hand-back.

    Attributes:
        difference: What takes away what only we need.
        objections: Why it must not be applied yet, one sentence each; empty when it may.
    """

    difference: Difference
    objections: tuple[str, ...] = ()


def original_paths(
    desired: Desired, observed: Observed, placed: Mapping[Address, int]
) -> tuple[OriginalPath, ...]:
    """Pods to which its route or its rule is still missing; none while the node is not being handed back."""
    if not desired.as_original:
        return ()
    routes, rules = set(observed.routes), set(observed.rules)
    paths = [
        OriginalPath(address=pod.address, ifindex=placed[pod.address])
        for pod in desired.pods
        if pod.address in placed
    ]
    return tuple(path for path in paths if lacking(path, rules, routes))


def lacking(path: OriginalPath, rules: Container[Rule], routes: Container[Route]) -> tuple[str, ...]:
    """What of a path is not there, one sentence each."""
    missing: list[str] = []
    if host_route(path.address, path.ifindex) not in routes:
        missing.append(f"{path.address}: main has no route to its interface")
    if to_rule(path.address) not in rules:
        missing.append(f"{path.address}: no rule {PRIORITY_TO_POD} leads to main")
    return tuple(missing)


def farewell(desired: Desired, observed: Observed) -> Farewell:
    """Take away our table, its rule, our nft table and our aliases: amazon-vpc-cni-k8s serves from here on.

    Args:
        desired: What should be, ``as_original``.
        observed: What is.
    """
    routes, rules = set(observed.routes), set(observed.rules)
    ways = {(single(route.dst), route.ifindex) for route in routes if route.table == POD_TABLE}
    ways |= set(standing(desired, observed).placed.items())
    objections = [
        missing
        for address, ifindex in sorted(ways)
        for missing in lacking(OriginalPath(address=address, ifindex=ifindex), rules, routes)
    ]
    seen = observed.firewall
    is_translating = desired.nft is not None and bool(desired.nft.snat_to)
    if is_translating and not seen.parts and not seen.problems:
        objections.append("its firewall, which translates addresses that leave the VPC, is not there yet")
    return Farewell(
        difference=Difference(
            links_set=tuple(
                LinkSetting(ifindex=link.ifindex, alias=link.alias, new_alias="")
                for link in observed.links
                if link.kind == "veth" and is_our_alias(link.alias)
            ),
            nft=ABSENT if observed.nft.digest else None,
            rules_delete=tuple(
                sorted(rule for rule in rules if rule == Rule(priority=PRIORITY_TO_POD, table=POD_TABLE))
            ),
            routes_delete=tuple(
                RouteRemoval(table=POD_TABLE, dst=route.dst, ifindex=route.ifindex)
                for route in sorted(routes)
                if route.table == POD_TABLE
            ),
        ),
        objections=tuple(objections),
    )
