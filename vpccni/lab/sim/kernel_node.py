"""The node that the kernel in memory is about: links, routes, rules, namespaces, and who made them so.

``FakeNode`` is what tests and the simulator change from outside; :class:`vpccni.lab.sim.kernel.FakeKernel`
adds the port. Nothing here checks whether a change makes sense, as the kernel does not either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from vpccni.datapath.objects import (
    AddressSeen,
    FirewallSeen,
    LinkChange,
    LinkSeen,
    NftSeen,
    PathChange,
    Route,
    Rule,
)

BUILTIN_RULES = (
    Rule(priority=0, table=255),
    Rule(priority=32766, table=254),
    Rule(priority=32767, table=253),
)


@dataclass
class FakeInterface:
    """An interface inside a sandbox. ``host_ifindex`` is 0 when it is nothing of ours."""

    ifindex: int
    mac: str
    mtu: int
    host_ifindex: int = 0
    addresses: set[str] = field(default_factory=set)
    routes: set[tuple[str, str]] = field(default_factory=set)
    neighbours: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeNetns:
    """A sandbox's namespace: its inode and its interfaces by name."""

    inode: int
    interfaces: dict[str, FakeInterface] = field(default_factory=dict)


@dataclass
class NodeState:
    """Everything that the kernel holds.

    Attributes:
        peerless: Veths whose other end is in no other namespace: both ends on the node, or a namespace that
            has died a moment ago.
        firewall: What amazon-vpc-cni-k8s has in iptables and nftables.
    """

    links: dict[int, LinkSeen] = field(default_factory=dict)
    addresses: set[AddressSeen] = field(default_factory=set)
    routes: set[Route] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=lambda: list(BUILTIN_RULES))
    nft: NftSeen = field(default_factory=NftSeen)
    nft_text: str = ""
    ip_forward: bool = False
    netns: dict[str, FakeNetns] = field(default_factory=dict)
    peerless: set[int] = field(default_factory=set)
    firewall: FirewallSeen = field(default_factory=FirewallSeen)


class FakeNode:
    """The node's network stack and its sandboxes' namespaces, without the port.

    Attributes:
        state: Everything there is; a test may read and change it.
        is_blind: Looking at sandboxes finds none, as when their directory is not where it was mounted.
        hidden: Namespaces that are found only by who knows their path.
        sealed: Namespaces that can be found and not be entered.
        survey_refusal: Why the kernel refuses to be surveyed; empty when it does not.
    """

    def __init__(self) -> None:
        self.state = NodeState()
        self.listeners: list[asyncio.Queue[LinkChange]] = []
        self.path_listeners: list[asyncio.Queue[PathChange]] = []
        self._next_index = 1
        self._next_inode = 4026532000
        self.is_blind = False
        self.hidden: set[str] = set()
        self.sealed: set[str] = set()
        self.survey_refusal = ""

    # --- the outside, played by a test ----------------------------------------------------------------

    def add_netns(self, path: str) -> FakeNetns:
        """Make a sandbox's namespace."""
        self._next_inode += 1
        made = FakeNetns(inode=self._next_inode)
        self.state.netns[path] = made
        return made

    def remove_netns(self, path: str, *, leaves_veths: bool = False) -> None:
        """End a sandbox's namespace; its veths die with it.

        With ``leaves_veths`` they still stand, without a peer, as they do for a moment while the kernel tears
        a namespace down; ``unplug`` ends them.
        """
        gone = self.state.netns.pop(path, None)
        for interface in gone.interfaces.values() if gone is not None else ():
            if interface.host_ifindex and leaves_veths:
                self.state.peerless.add(interface.host_ifindex)
            elif interface.host_ifindex:
                self.drop_link(interface.host_ifindex)

    def plug(
        self,
        mac: str,
        ifname: str,
        *,
        kind: str = "",
        alias: str = "",
        after_s: float = 0.0,
        is_peerless: bool = False,
    ) -> int:
        """Make a link of the node (an ENI, or something foreign); its index.

        With ``after_s`` it appears that much later on the loop's time, and the index is 0. The other end of a
        veth is in a namespace that nobody finds, or, with ``is_peerless``, in no other one.
        """
        if after_s:
            loop = asyncio.get_running_loop()
            loop.call_later(after_s, lambda: self.plug(mac, ifname, kind=kind, alias=alias))
            return 0
        link = LinkSeen(
            ifindex=self.next_index(),
            ifname=ifname,
            mac=mac,
            alias=alias,
            kind=kind,
            mtu=1500,
            is_up=False,
            rp_filter=0,
        )
        if is_peerless:
            self.state.peerless.add(link.ifindex)
        self.put_link(link)
        return link.ifindex

    def unplug(self, mac: str) -> None:
        """Take away the links with this MAC."""
        for index in [index for index, link in self.state.links.items() if link.mac == mac]:
            self.drop_link(index)

    def rename(self, mac: str, ifname: str) -> None:
        """Give the links with this MAC another name, as udev does."""
        for link in [link for link in self.state.links.values() if link.mac == mac]:
            self.put_link(msgspec.structs.replace(link, ifname=ifname))

    # --- what every change is made of -----------------------------------------------------------------

    def next_index(self) -> int:
        """The index of the next link."""
        self._next_index += 1
        return self._next_index

    def tell(self, change: LinkChange) -> None:
        """Let everybody who follows the links know."""
        for queue in self.listeners:
            queue.put_nowait(change)

    def tell_path(self, change: PathChange) -> None:
        """Let everybody who follows rules and routes know."""
        for queue in self.path_listeners:
            queue.put_nowait(change)

    def put_link(self, link: LinkSeen) -> None:
        """Make or change a link."""
        before = self.state.links.get(link.ifindex)
        self.state.links[link.ifindex] = link
        if link != before:
            self.tell(LinkChange(kind="added" if before is None else "changed", link=link))

    def drop_link(self, ifindex: int) -> None:
        """Take a link away, with its addresses, its routes and its other end."""
        link = self.state.links.pop(ifindex)
        self.state.peerless.discard(ifindex)
        self.state.addresses = {seen for seen in self.state.addresses if seen.ifindex != ifindex}
        self.state.routes = {route for route in self.state.routes if route.ifindex != ifindex}
        for netns in self.state.netns.values():
            if any(each.host_ifindex == ifindex for each in netns.interfaces.values()):
                kept = {name: each for name, each in netns.interfaces.items() if each.host_ifindex != ifindex}
                netns.interfaces = kept
        self.tell(LinkChange(kind="removed", link=link))

    def add_rule(self, rule: Rule) -> bool:
        """Add a rule, unless the very same is there. Returns whether it is new."""
        if rule in self.state.rules:
            return False
        self.state.rules.append(rule)
        self.tell_path(PathChange(rule=rule))
        return True

    def delete_rules(self, is_meant: Callable[[Rule], bool]) -> list[Rule]:
        """Take rules away; those that were there."""
        gone = [rule for rule in self.state.rules if is_meant(rule)]
        self.state.rules = [rule for rule in self.state.rules if rule not in gone]
        for rule in gone:
            self.tell_path(PathChange(is_removed=True, rule=rule))
        return gone

    def set_route(self, route: Route) -> None:
        """Add a route, or replace that to the same destination in the same table."""
        if route in self.state.routes:
            return
        same = [each for each in self.state.routes if (each.table, each.dst) == (route.table, route.dst)]
        self.state.routes.difference_update(same)
        self.state.routes.add(route)
        self.tell_path(PathChange(route=route))

    def delete_route(self, table: int, dst: str, ifindex: int) -> list[Route]:
        """Take a route away; ``ifindex`` 0 means whichever link it leads to. Those that were there."""
        gone = [
            each
            for each in self.state.routes
            if (each.table, each.dst) == (table, dst) and (not ifindex or each.ifindex == ifindex)
        ]
        self.state.routes.difference_update(gone)
        for route in gone:
            self.tell_path(PathChange(is_removed=True, route=route))
        return gone
