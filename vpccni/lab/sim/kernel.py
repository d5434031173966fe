"""A node's network stack in memory: the same contract as the real adapter, no thread, no clock of its own.

``FakeKernel`` is stateful and deterministic. A test plays the outside: it makes and ends sandboxes'
namespaces, plugs and unplugs ENI links, puts foreign objects in the way, and plays amazon-vpc-cni-k8s.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

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
    Observed,
    PodWiring,
    Probed,
    Route,
    Rule,
    SandboxSeen,
)
from vpccni.errors import PermanentError, Reason, VpccniError
from vpccni.evidence import KernelEvidence
from vpccni.lab.sim import kernel_original, kernel_survey
from vpccni.lab.sim.kernel_node import FakeInterface, FakeNetns, FakeNode, NodeState
from vpccni.model import MAIN_TABLE, Cidr, EniId, LeaseId, PodRef, host_cidr

__all__ = ["FakeInterface", "FakeKernel", "FakeNetns"]


class FakeKernel(FakeNode):
    """See :class:`vpccni.ports.Kernel`.

    Args:
        fault: Called with the name of each wiring step before it is done; raises ``OSError`` to make it fail.
        latency_s: How long each ``apply``, ``observe`` and ``survey`` takes on the loop's (virtual) time.
        netns_on_demand: Whether a sandbox's namespace appears when it is first named.
        proc_sys_is_read_only: ``ip_forward`` cannot be set.
    """

    def __init__(
        self,
        *,
        fault: Callable[[str], None] | None = None,
        latency_s: float = 0.0,
        netns_on_demand: bool = False,
        proc_sys_is_read_only: bool = False,
    ) -> None:
        super().__init__()
        self.fault = fault
        self.latency_s = latency_s
        self.netns_on_demand = netns_on_demand
        self.proc_sys_is_read_only = proc_sys_is_read_only
        self.applied_count = 0
        self._failures: dict[str, list[int]] = {}

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

    async def survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        """See ``Kernel.survey``."""
        await self._work()
        return kernel_survey.survey(self, veth_prefix, netns_paths)

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
                self.put_link(msgspec.structs.replace(seen, is_up=True, rp_filter=rp_filter))
        for rule in difference.rules_add:
            self.add_rule(rule)
        for route in difference.routes_set:
            if route.ifindex in self.state.links:
                self.set_route(route)
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
            self.delete_route(stale.table, stale.dst, stale.ifindex)
        for rule in difference.rules_delete:
            if rule in self.state.rules:
                self.state.rules.remove(rule)
        for removal in difference.veths_delete:
            for seen in list(self.state.links.values()):
                is_meant = seen.ifindex == removal.ifindex or seen.ifname == removal.ifname
                if is_meant and is_removable(seen, removal):
                    self.drop_link(seen.ifindex)
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
        self.listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.listeners.remove(queue)

    async def close(self) -> None:
        """Nothing to release."""

    # --- the outside, played by a test ----------------------------------------------------------------

    def fail(self, step: str, *, times: int = 1, code: int = errno.ENOMEM) -> None:
        """Let a wiring step fail, the next ``times`` times that it is reached."""
        if step not in STEPS:
            raise ValueError(f"no wiring step is called {step}")
        self._failures.setdefault(step, []).extend([code] * times)

    def wire_as_original(
        self,
        pod: PodRef,
        *,
        netns: str,
        address: str,
        table: int = MAIN_TABLE,
        ifname: str = "eth0",
        veth_prefix: str = "eni",
        until: str = "done",
    ) -> int:
        """Wire a pod as amazon-vpc-cni-k8s does; a namespace that is not there is made.

        Args:
            pod: Its host veth is named after it; one of that name is deleted first.
            netns: Path of its namespace.
            address: The pod's.
            table: Of the ENI that the address is on.
            ifname: The interface inside.
            veth_prefix: How the host veth's name begins.
            until: A step of ``kernel_original.WIRING``: everything before it is done.

        Returns:
            The host veth's index; 0 when none was made yet.
        """
        return kernel_original.wire(
            self,
            pod,
            netns=netns,
            address=address,
            table=table,
            ifname=ifname,
            veth_prefix=veth_prefix,
            until=until,
        )

    def unwire_as_original(self, *, address: str, table: int = MAIN_TABLE, until: str = "done") -> None:
        """Unwire a pod as amazon-vpc-cni-k8s does; ``until`` is a step of ``kernel_original.UNWIRING``."""
        kernel_original.unwire(self, address=address, table=table, until=until)

    def start_as_original(self, enis: Sequence[EniSetup], addresses: Iterable[str]) -> None:
        """What the start of amazon-vpc-cni-k8s does to the node: its ENIs set up anew, pods' from-rules replaced.

        Args:
            enis: Those that it sets up.
            addresses: Of the pods that it restores from its checkpoint.
        """
        kernel_original.start(self, enis, addresses)

    def lose_routes(self, address: str) -> None:
        """Somebody flushed the host routes to an address."""
        for table in (MAIN_TABLE, POD_TABLE):
            self.delete_route(table, host_cidr(address), 0)

    def lose_inside(self, address: str) -> None:
        """A sandbox lost an address of its interface."""
        for netns in self.state.netns.values():
            for interface in netns.interfaces.values():
                interface.addresses.discard(host_cidr(address))

    def stop_failing(self) -> None:
        """Forget the failures that were asked for."""
        self._failures.clear()

    def forget_listeners(self) -> None:
        """Whoever followed the links was killed."""
        self.listeners.clear()

    def dump(self) -> object:
        """Everything there is, in a form that can be compared."""
        return copy.deepcopy(self.state)

    # --- inside ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        # Nothing has happened when the caller is cancelled here, as the port promises.
        await asyncio.sleep(self.latency_s)

    def _set_up_eni(self, setup: EniSetup) -> LinkSeen | None:
        links = [self.state.links[index] for index in sorted(self.state.links)]
        link = find_link(links, setup.mac)
        if link is None:
            return None
        rp_filter = setup.rp_filter if setup.rp_filter >= 0 else link.rp_filter
        link = msgspec.structs.replace(link, mtu=setup.mtu, is_up=True, rp_filter=rp_filter)
        self.put_link(link)
        if setup.owns_address:
            self.state.addresses.add(
                AddressSeen(ifindex=link.ifindex, address=setup.primary, prefix_length=setup.prefix_length)
            )
            for route in eni_routes(setup, link.ifindex):
                self.set_route(route)
            self.delete_route(MAIN_TABLE, setup.subnet_cidr, link.ifindex)
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
                self.tell(LinkChange(kind="removed", link=self.state.links[index]))
            self.state = before
            for index in gone:
                self.drop_link(index)
            raise

    def _copy_for(self, netns: str) -> NodeState:
        """The state, as far as wiring a pod in this namespace may change it; the rest is shared."""
        state = self.state
        sandbox = state.netns.get(netns)
        kept = dict(state.netns)
        if sandbox is not None:
            kept[netns] = copy.deepcopy(sandbox)
        return NodeState(
            links=dict(state.links),
            addresses=set(state.addresses),
            routes=set(state.routes),
            rules=list(state.rules),
            nft=state.nft,
            nft_text=state.nft_text,
            ip_forward=state.ip_forward,
            netns=kept,
            peerless=set(state.peerless),
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
                ifindex=self.next_index(),
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
            self.put_link(link)
            made.append(link.ifindex)
        inside = netns.interfaces[pod.ifname]
        self._step("find_link")
        self._step("host_link")
        rp_filter = pod.rp_filter if pod.rp_filter >= 0 else link.rp_filter
        self.put_link(msgspec.structs.replace(link, alias=pod.alias, is_up=True, rp_filter=rp_filter))
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
            self.add_rule(rule)
        self._step("host_route")
        self.set_route(Route(table=POD_TABLE, dst=src, ifindex=link.ifindex))
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
            if peer is None or not _is_of_sandbox(peer, pod):
                raise PermanentError(Reason.INTERFACE_EXISTS, f"create_veth: {pod.ifname} ({inside.mac})")
            if peer is outside and inside.mac == pod.pod_mac and inside.addresses <= {host_cidr(pod.address)}:
                return peer
            self.drop_link(peer.ifindex)
            if peer is outside:
                return None
        if outside is not None:
            if not _is_of_sandbox(outside, pod) and not is_our_alias(outside.alias):
                raise PermanentError(
                    Reason.KERNEL_REFUSED,
                    f"create_veth: the node's {outside.ifname} is in the way and not ours "
                    f"(index {outside.ifindex}, alias {outside.alias!r})",
                )
            self.drop_link(outside.ifindex)
        return None

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


def _is_of_sandbox(link: LinkSeen, pod: PodWiring) -> bool:
    """By its alias, or, when the agent died before setting that, by its MAC."""
    return link.alias == pod.alias or (not link.alias and link.mac == pod.host_mac)
