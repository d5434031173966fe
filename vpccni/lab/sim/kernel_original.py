"""The original's hand on the node in memory: how amazon-vpc-cni-k8s wires and unwires a pod, and how it starts.

Its processes may die between any two steps, so wiring and unwiring can stop before a step that is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from vpccni.datapath.desired import eni_rules
from vpccni.datapath.difference import DEFAULT_DST, eni_routes, find_link
from vpccni.datapath.names import host_veth_name
from vpccni.datapath.numbers import CONNMARK, POD_GATEWAY, PRIORITY_FROM_POD, PRIORITY_MARK, PRIORITY_TO_POD
from vpccni.datapath.objects import AddressSeen, EniSetup, LinkSeen, Route, Rule
from vpccni.lab.sim.kernel_node import FakeInterface, FakeNode
from vpccni.model import MAIN_TABLE, Cidr, PodRef, host_cidr

WIRING: Final = (
    "create_veth",
    "host_up",
    "pod_gateway_route",
    "pod_default_route",
    "pod_address",
    "pod_neighbour",
    "host_route",
    "to_rule",
    "from_rule",
    "done",
)
"""The steps of its ADD, in order. ``from_rule`` does nothing for a pod of the primary ENI."""

UNWIRING: Final = ("to_rule", "from_rule", "host_route", "done")
"""The steps of its DEL, in order. The veth is left to whoever ends the namespace."""


def wire(
    node: FakeNode,
    pod: PodRef,
    *,
    netns: str,
    address: str,
    table: int,
    ifname: str,
    veth_prefix: str,
    until: str,
) -> int:
    """Wire a pod; see ``FakeKernel.wire_as_original``."""
    done = _steps_before(until, WIRING)
    steps = wiring_of(
        node, pod, netns=netns, address=address, table=table, ifname=ifname, veth_prefix=veth_prefix
    )
    if not done:
        _drop_named(node, host_veth_name(veth_prefix, pod.namespace, pod.name))
        return 0
    for step, action in steps:
        if step in done:
            action()
    state = node.state
    return next(each.host_ifindex for name, each in state.netns[netns].interfaces.items() if name == ifname)


def wiring_of(
    node: FakeNode,
    pod: PodRef,
    *,
    netns: str,
    address: str,
    table: int,
    ifname: str,
    veth_prefix: str,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The steps of wiring a pod, one after the other: the name of each, and what does it."""
    made: list[tuple[LinkSeen, FakeInterface]] = []
    name = host_veth_name(veth_prefix, pod.namespace, pod.name)

    def make_veth() -> None:
        _drop_named(node, name)
        made.append(_make_veth(node, name, netns, ifname))

    yield "create_veth", make_veth
    link, inside = made[0]

    def set_up() -> None:
        if link.ifindex in node.state.links:
            node.put_link(msgspec.structs.replace(link, is_up=True))

    def add_neighbour() -> None:
        inside.neighbours[POD_GATEWAY] = link.mac

    def add_route() -> None:
        if link.ifindex in node.state.links:
            node.set_route(Route(table=MAIN_TABLE, dst=host_cidr(address), ifindex=link.ifindex))

    def add_from_rule() -> None:
        if table != MAIN_TABLE:
            node.add_rule(_from_rule(address, table))

    yield "host_up", set_up
    yield "pod_gateway_route", lambda: inside.routes.add((host_cidr(POD_GATEWAY), ""))
    yield "pod_default_route", lambda: inside.routes.add((DEFAULT_DST, POD_GATEWAY))
    yield "pod_address", lambda: inside.addresses.add(host_cidr(address))
    yield "pod_neighbour", add_neighbour
    yield "host_route", add_route
    yield "to_rule", lambda: node.add_rule(_to_rule(address))
    yield "from_rule", add_from_rule


def _drop_named(node: FakeNode, name: str) -> None:
    for link in [each for each in node.state.links.values() if each.ifname == name]:
        node.drop_link(link.ifindex)


def unwire(node: FakeNode, *, address: str, table: int, until: str) -> None:
    """Unwire a pod; see ``FakeKernel.unwire_as_original``."""
    done = _steps_before(until, UNWIRING)
    rules = [_to_rule(address)] if "to_rule" in done else []
    rules += [_from_rule(address, table)] if "from_rule" in done and table != MAIN_TABLE else []
    node.delete_rules(lambda rule: rule in rules)
    if "host_route" in done:
        node.delete_route(MAIN_TABLE, host_cidr(address), 0)


def start(node: FakeNode, enis: Sequence[EniSetup], addresses: Iterable[str]) -> None:
    """Start its daemon; see ``FakeKernel.start_as_original``."""
    mark = Rule(priority=PRIORITY_MARK, table=MAIN_TABLE, mark=CONNMARK, mask=CONNMARK)
    node.delete_rules(lambda rule: rule == mark)
    node.add_rule(mark)
    for setup in enis:
        _set_up_eni(node, setup)
    for address in addresses:
        _refresh_rules(node, address)


def _steps_before(until: str, steps: Sequence[str]) -> Sequence[str]:
    if until not in steps:
        raise ValueError(f"no step of the original is called {until}")
    return steps[: steps.index(until)]


def _make_veth(node: FakeNode, name: str, netns: str, ifname: str) -> tuple[LinkSeen, FakeInterface]:
    ifindex = node.next_index()
    # At random in the original; here the same in each run. Only that nobody can compute it from the pod counts.
    digest = hashlib.sha1(f"{name} {ifindex}".encode(), usedforsecurity=False).digest()
    host_mac, pod_mac = (bytes([0x0A, *digest[first : first + 5]]).hex(":") for first in (0, 5))
    link = LinkSeen(
        ifindex=ifindex,
        ifname=name,
        mac=host_mac,
        alias="",
        kind="veth",
        mtu=9001,
        is_up=False,
        rp_filter=0,
        peer=2,
    )
    sandbox = node.state.netns.get(netns) or node.add_netns(netns)
    inside = FakeInterface(ifindex=2, mac=pod_mac, mtu=9001, host_ifindex=ifindex)
    sandbox.interfaces[ifname] = inside
    node.put_link(link)
    return link, inside


def _to_rule(address: str) -> Rule:
    return Rule(priority=PRIORITY_TO_POD, table=MAIN_TABLE, dst=host_cidr(address))


def _from_rule(address: str, table: int) -> Rule:
    return Rule(priority=PRIORITY_FROM_POD, table=table, src=host_cidr(address))


def _set_up_eni(node: FakeNode, setup: EniSetup) -> None:
    links = [node.state.links[index] for index in sorted(node.state.links)]
    link = find_link(links, setup.mac)
    if link is None:
        return
    node.put_link(msgspec.structs.replace(link, mtu=setup.mtu, is_up=True))
    if not setup.owns_address:
        return
    state = node.state
    # With its last address a link loses all its routes, in whichever table.
    state.addresses = {seen for seen in state.addresses if seen.ifindex != link.ifindex}
    state.routes = {route for route in state.routes if route.ifindex != link.ifindex}
    state.addresses.add(
        AddressSeen(ifindex=link.ifindex, address=setup.primary, prefix_length=setup.prefix_length)
    )
    for route in eni_routes(setup, link.ifindex):
        node.set_route(route)
    for rule in eni_rules(setup):
        node.add_rule(rule)


def _refresh_rules(node: FakeNode, address: str) -> None:
    """Each rule whose source begins with the address makes way for one for the address alone."""
    stale = [rule for rule in node.state.rules if Cidr(rule.src).partition("/")[0] == address]
    if stale:
        node.delete_rules(lambda rule: rule in stale)
        node.add_rule(_from_rule(address, stale[-1].table))
