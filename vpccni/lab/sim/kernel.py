"""A node's network stack in memory: the same contract as the real adapter, no thread, no clock of its own.

``FakeKernel`` is stateful and deterministic. A test plays the outside: it makes and ends sandboxes'
namespaces, plugs and unplugs ENI links, and puts foreign objects in the way.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from vpccni.adapters.kernel_wiring import STEPS
from vpccni.datapath.desired import from_rules
from vpccni.datapath.difference import DEFAULT_DST, eni_routes, find_link, is_removable
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import (
    AddressSeen,
    Applied,
    Difference,
    EniSetup,
    LinkChange,
    LinkSeen,
    NftSeen,
    Observed,
    PodWiring,
    Probed,
    Route,
    Rule,
    SandboxSeen,
)
from vpccni.errors import PermanentError, Reason, VpccniError
from vpccni.model import MAIN_TABLE, Cidr, EniId, LeaseId, host_cidr

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
class _State:
    links: dict[int, LinkSeen] = field(default_factory=dict)
    addresses: set[AddressSeen] = field(default_factory=set)
    routes: set[Route] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=lambda: list(BUILTIN_RULES))
    nft: NftSeen = field(default_factory=NftSeen)
    nft_text: str = ""
    ip_forward: bool = False
    netns: dict[str, FakeNetns] = field(default_factory=dict)


class FakeKernel:
    """See :class:`vpccni.ports.Kernel`.

    Args:
        fault: Called with the name of each wiring step before it is done; raises ``OSError`` to make it fail.
        latency_s: How long each ``apply`` and ``observe`` takes on the loop's (virtual) time.
        netns_on_demand: Whether a sandbox's namespace appears when it is first named.
        proc_sys_is_read_only: ``ip_forward`` cannot be set.

    Attributes:
        is_blind: Looking at sandboxes finds none, as when their directory is not where it was mounted.
    """

    def __init__(
        self,
        *,
        fault: Callable[[str], None] | None = None,
        latency_s: float = 0.0,
        netns_on_demand: bool = False,
        proc_sys_is_read_only: bool = False,
    ) -> None:
        self.state = _State()
        self.fault = fault
        self.latency_s = latency_s
        self.netns_on_demand = netns_on_demand
        self.proc_sys_is_read_only = proc_sys_is_read_only
        self.is_blind = False
        self.applied_count = 0
        self._next_index = 1
        self._next_inode = 4026532000
        self._failures: dict[str, list[int]] = {}
        self._listeners: list[asyncio.Queue[LinkChange]] = []

    # --- the port -------------------------------------------------------------------------------------

    async def observe(self) -> Observed:
        """See ``Kernel.observe``."""
        await self._work()
        state = self.state
        return Observed(
            links=tuple(state.links[index] for index in sorted(state.links)),
            addresses=tuple(sorted(state.addresses, key=lambda seen: (seen.ifindex, seen.address))),
            routes=tuple(sorted(state.routes)),
            rules=tuple(sorted(state.rules, key=lambda rule: rule.priority)),
            nft=state.nft,
            ip_forward=state.ip_forward,
        )

    async def apply(self, difference: Difference) -> Applied:
        """See ``Kernel.apply``."""
        await self._work()
        self.applied_count += 1
        errors: list[VpccniError] = []
        notes: list[str] = []
        enis: dict[EniId, tuple[str, int]] = {
            link.eni: (link.ifname, link.ifindex) for link in difference.enis_ready
        }
        missing = list(difference.enis_missing)
        if difference.ip_forward:
            if self.proc_sys_is_read_only:
                notes.append("net.ipv4.ip_forward is 0 and cannot be set here: Read-only file system")
            else:
                self.state.ip_forward = True
        for setup in difference.enis:
            link = self._set_up_eni(setup)
            if link is None:
                missing.append(setup.eni)
            else:
                enis[setup.eni] = (link.ifname, link.ifindex)
        for setting in difference.links_set:
            seen = self.state.links.get(setting.ifindex)
            if seen is not None and seen.alias == setting.alias:
                rp_filter = setting.rp_filter if setting.rp_filter >= 0 else seen.rp_filter
                self._put_link(msgspec.structs.replace(seen, is_up=True, rp_filter=rp_filter))
        for rule in difference.rules_add:
            self._add_rule(rule)
        for route in difference.routes_set:
            if route.ifindex in self.state.links:
                self._set_route(route)
            else:  # It went since the kernel was looked at.
                errors.append(PermanentError(Reason.KERNEL_REFUSED, "host_route: No such device [ENODEV]"))
        sandboxes: dict[LeaseId, SandboxSeen] = {}
        for pod in difference.wire:
            try:
                sandboxes[pod.lease] = self._wire(pod)
            except VpccniError as error:
                errors.append(error)
        if difference.nft is not None:
            self.state.nft = difference.nft.seen
            self.state.nft_text = difference.nft.text
        for stale in difference.routes_delete:
            self._delete_route(stale.table, stale.dst, stale.ifindex)
        for rule in difference.rules_delete:
            if rule in self.state.rules:
                self.state.rules.remove(rule)
        for removal in difference.veths_delete:
            for seen in list(self.state.links.values()):
                is_meant = seen.ifindex == removal.ifindex or seen.ifname == removal.ifname
                if is_meant and is_removable(seen, removal):
                    self._drop_link(seen.ifindex)
        if errors:
            raise errors[0]
        return Applied(
            sandboxes=sandboxes,
            enis=enis,
            missing_links=tuple(missing),
            probed={pod.lease: self._probe(pod) for pod in difference.probe},
            removed_veths=tuple(each.ifindex for each in difference.veths_delete if each.ifindex),
            notes=tuple(notes),
        )

    async def link_changes(self) -> AsyncIterator[LinkChange]:
        """See ``Kernel.link_changes``."""
        queue: asyncio.Queue[LinkChange] = asyncio.Queue()
        for index in sorted(self.state.links):
            queue.put_nowait(LinkChange(kind="added", link=self.state.links[index]))
        self._listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    async def close(self) -> None:
        """Nothing to release."""

    # --- the outside, played by a test ----------------------------------------------------------------

    def fail(self, step: str, *, times: int = 1, code: int = errno.ENOMEM) -> None:
        """Let a wiring step fail, the next ``times`` times that it is reached."""
        if step not in STEPS:
            raise ValueError(f"no wiring step is called {step}")
        self._failures.setdefault(step, []).extend([code] * times)

    def add_netns(self, path: str) -> FakeNetns:
        """Make a sandbox's namespace."""
        self._next_inode += 1
        made = FakeNetns(inode=self._next_inode)
        self.state.netns[path] = made
        return made

    def remove_netns(self, path: str) -> None:
        """End a sandbox's namespace; its veths die with it."""
        gone = self.state.netns.pop(path, None)
        for interface in gone.interfaces.values() if gone is not None else ():
            if interface.host_ifindex:
                self._drop_link(interface.host_ifindex)

    def plug(self, mac: str, ifname: str, *, kind: str = "", alias: str = "", after_s: float = 0.0) -> int:
        """Make a link of the node (an ENI, or something foreign); its index.

        With ``after_s`` it appears that much later on the loop's time, and the index is 0.
        """
        if after_s:
            loop = asyncio.get_running_loop()
            loop.call_later(after_s, lambda: self.plug(mac, ifname, kind=kind, alias=alias))
            return 0
        link = LinkSeen(
            ifindex=self._index(),
            ifname=ifname,
            mac=mac,
            alias=alias,
            kind=kind,
            mtu=1500,
            is_up=False,
            rp_filter=0,
        )
        self._put_link(link)
        return link.ifindex

    def unplug(self, mac: str) -> None:
        """Take away the links with this MAC."""
        for index in [index for index, link in self.state.links.items() if link.mac == mac]:
            self._drop_link(index)

    def rename(self, mac: str, ifname: str) -> None:
        """Give the links with this MAC another name, as udev does."""
        for link in [link for link in self.state.links.values() if link.mac == mac]:
            self._put_link(msgspec.structs.replace(link, ifname=ifname))

    def stop_failing(self) -> None:
        """Forget the failures that were asked for."""
        self._failures.clear()

    def forget_listeners(self) -> None:
        """Whoever followed the links was killed."""
        self._listeners.clear()

    def dump(self) -> object:
        """Everything there is, in a form that can be compared."""
        return copy.deepcopy(self.state)

    # --- inside ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        # Nothing has happened when the caller is cancelled here, as the port promises.
        await asyncio.sleep(self.latency_s)

    def _index(self) -> int:
        self._next_index += 1
        return self._next_index

    def _tell(self, change: LinkChange) -> None:
        for queue in self._listeners:
            queue.put_nowait(change)

    def _put_link(self, link: LinkSeen) -> None:
        before = self.state.links.get(link.ifindex)
        self.state.links[link.ifindex] = link
        if link != before:
            self._tell(LinkChange(kind="added" if before is None else "changed", link=link))

    def _drop_link(self, ifindex: int) -> None:
        link = self.state.links.pop(ifindex)
        self.state.addresses = {seen for seen in self.state.addresses if seen.ifindex != ifindex}
        self.state.routes = {route for route in self.state.routes if route.ifindex != ifindex}
        for netns in self.state.netns.values():
            if any(each.host_ifindex == ifindex for each in netns.interfaces.values()):
                kept = {name: each for name, each in netns.interfaces.items() if each.host_ifindex != ifindex}
                netns.interfaces = kept
        self._tell(LinkChange(kind="removed", link=link))

    def _add_rule(self, rule: Rule) -> bool:
        if rule in self.state.rules:
            return False
        self.state.rules.append(rule)
        return True

    def _set_route(self, route: Route) -> None:
        same = [each for each in self.state.routes if (each.table, each.dst) == (route.table, route.dst)]
        self.state.routes.difference_update(same)
        self.state.routes.add(route)

    def _delete_route(self, table: int, dst: str, ifindex: int) -> None:
        self.state.routes = {
            each
            for each in self.state.routes
            if (each.table, each.dst) != (table, dst) or (ifindex and each.ifindex != ifindex)
        }

    def _set_up_eni(self, setup: EniSetup) -> LinkSeen | None:
        links = [self.state.links[index] for index in sorted(self.state.links)]
        link = find_link(links, setup.mac)
        if link is None:
            return None
        rp_filter = setup.rp_filter if setup.rp_filter >= 0 else link.rp_filter
        link = msgspec.structs.replace(link, mtu=setup.mtu, is_up=True, rp_filter=rp_filter)
        self._put_link(link)
        if setup.owns_address:
            self.state.addresses.add(
                AddressSeen(ifindex=link.ifindex, address=setup.primary, prefix_length=setup.prefix_length)
            )
            for route in eni_routes(setup, link.ifindex):
                self._set_route(route)
            self._delete_route(MAIN_TABLE, setup.subnet_cidr, link.ifindex)
        return link

    # --- sandboxes ------------------------------------------------------------------------------------

    def _step(self, name: str) -> None:
        try:
            if self.fault is not None:
                self.fault(name)
            self._fail_as_told(name)
        except OSError as error:
            code_name = errno.errorcode.get(error.errno or 0, "?")
            raise PermanentError(Reason.KERNEL_REFUSED, f"{name}: {error.strerror} [{code_name}]") from error

    def _fail_as_told(self, step: str) -> None:
        codes = self._failures.get(step)
        if codes:
            code = codes.pop(0)
            raise OSError(code, os.strerror(code))

    def _wire(self, pod: PodWiring) -> SandboxSeen:
        before = self._copy_for(pod.netns)
        made: list[int] = []
        try:
            return self._wire_steps(pod, made)
        except VpccniError:
            # A veth that was in the way and is gone does not come back; all else is as it was.
            gone = before.links.keys() - self.state.links.keys()
            for index in made:
                self._tell(LinkChange(kind="removed", link=self.state.links[index]))
            self.state = before
            for index in gone:
                self._drop_link(index)
            raise

    def _copy_for(self, netns: str) -> _State:
        """The state, as far as wiring a pod in this namespace may change it; the rest is shared."""
        state = self.state
        sandbox = state.netns.get(netns)
        kept = dict(state.netns)
        if sandbox is not None:
            kept[netns] = copy.deepcopy(sandbox)
        return _State(
            links=dict(state.links),
            addresses=set(state.addresses),
            routes=set(state.routes),
            rules=list(state.rules),
            nft=state.nft,
            nft_text=state.nft_text,
            ip_forward=state.ip_forward,
            netns=kept,
        )

    def _wire_steps(self, pod: PodWiring, made: list[int]) -> SandboxSeen:
        self._step("open_netns")
        netns = self.state.netns.get(pod.netns)
        if netns is None and self.netns_on_demand and pod.netns:
            netns = self.add_netns(pod.netns)
        if netns is None:
            raise PermanentError(Reason.NETNS_GONE, f"open_netns: {pod.netns}: No such file or directory")
        self._step("enter_netns")
        self._step("create_veth")
        link = self._standing(pod, netns)
        is_new = link is None
        if link is None:
            link = LinkSeen(
                ifindex=self._index(),
                ifname=pod.host_ifname,
                mac=pod.host_mac,
                alias="",
                kind="veth",
                mtu=pod.mtu,
                is_up=False,
                rp_filter=0,
                peer=2,
            )
            interface = FakeInterface(ifindex=2, mac=pod.pod_mac, mtu=pod.mtu, host_ifindex=link.ifindex)
            netns.interfaces[pod.ifname] = interface
            self._put_link(link)
            made.append(link.ifindex)
        inside = netns.interfaces[pod.ifname]
        self._step("find_link")
        self._step("host_link")
        rp_filter = pod.rp_filter if pod.rp_filter >= 0 else link.rp_filter
        self._put_link(msgspec.structs.replace(link, alias=pod.alias, is_up=True, rp_filter=rp_filter))
        self._step("pod_address")
        inside.addresses.add(host_cidr(pod.address))
        self._step("pod_gateway_route")
        inside.routes.add((host_cidr(pod.gateway), ""))
        self._step("pod_default_route")
        inside.routes.add((DEFAULT_DST, pod.gateway))
        self._step("pod_neighbour")
        inside.neighbours[pod.gateway] = pod.host_mac
        src = host_cidr(pod.address)
        if is_new:
            self._step("purge_rules")
            self.state.rules = [rule for rule in self.state.rules if not _is_from(rule, src)]
        for rule in from_rules(pod.address, pod.table):
            self._step("from_rule")
            self._add_rule(rule)
        self._step("host_route")
        self._set_route(Route(table=POD_TABLE, dst=src, ifindex=link.ifindex))
        self._step("done")
        return SandboxSeen(
            host_ifname=pod.host_ifname,
            host_ifindex=link.ifindex,
            host_mac=pod.host_mac,
            pod_mac=pod.pod_mac,
            alias=pod.alias,
            netns_inode=netns.inode,
        )

    def _standing(self, pod: PodWiring, netns: FakeNetns) -> LinkSeen | None:
        """Ours as it should be; what is ours and in the way is deleted; what is not is refused."""
        inside = netns.interfaces.get(pod.ifname)
        outside = next((each for each in self.state.links.values() if each.ifname == pod.host_ifname), None)
        if inside is not None:
            peer = self.state.links.get(inside.host_ifindex)
            if peer is None or peer.alias not in ("", pod.alias):
                raise PermanentError(Reason.INTERFACE_EXISTS, f"create_veth: {pod.ifname} ({inside.mac})")
            if peer is outside and inside.mac == pod.pod_mac and inside.addresses <= {host_cidr(pod.address)}:
                return peer
            self._drop_link(peer.ifindex)
            if peer is outside:
                return None
        if outside is not None:
            is_half_made = not outside.alias and outside.mac == pod.host_mac
            if not is_half_made and not is_our_alias(outside.alias):
                raise PermanentError(
                    Reason.KERNEL_REFUSED,
                    f"create_veth: the node's {outside.ifname} is in the way and not ours "
                    f"(index {outside.ifindex}, alias {outside.alias!r})",
                )
            self._drop_link(outside.ifindex)
        return None

    def _is_routed(self, pod: PodWiring, link: LinkSeen) -> bool:
        route = Route(table=POD_TABLE, dst=host_cidr(pod.address), ifindex=link.ifindex)
        return route in self.state.routes

    def _probe(self, pod: PodWiring) -> Probed:
        if self.is_blind:
            return Probed(netns_inode=0, host_ifindex=0, problems=("nothing is seen",))
        problems: list[str] = []
        link = next((each for each in self.state.links.values() if each.alias == pod.alias), None)
        if link is None:
            problems.append(f"the node has no interface {pod.host_ifname} of this sandbox")
        elif (
            Route(table=POD_TABLE, dst=host_cidr(pod.address), ifindex=link.ifindex) not in self.state.routes
        ):
            problems.append(f"packets to {pod.address} are not routed to {link.ifname} by table {POD_TABLE}")
        if any(rule not in self.state.rules for rule in from_rules(pod.address, pod.table)):
            problems.append(f"there is no rule from {pod.address} to table {pod.table}")
        netns = self.state.netns.get(pod.netns)
        if netns is None:
            problems.append(f"{pod.netns}: No such file or directory")
        else:
            inside = netns.interfaces.get(pod.ifname)
            if inside is None:
                problems.append(f"the sandbox has no interface {pod.ifname}")
            elif host_cidr(pod.address) not in inside.addresses:
                problems.append(f"{pod.ifname} does not have the address {pod.address}")
        return Probed(
            netns_inode=netns.inode if netns is not None else 0,
            host_ifindex=link.ifindex if link is not None else 0,
            problems=tuple(problems),
        )


def _is_from(rule: Rule, src: Cidr) -> bool:
    return rule.priority == PRIORITY_FROM_POD and rule.src == src
