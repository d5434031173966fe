"""A node's network stack in memory: the same contract as the real adapter, no thread, no clock of its own.

``FakeKernel`` is stateful and deterministic. A test plays the outside: it makes and ends sandboxes'
namespaces, plugs and unplugs ENI links, puts foreign objects in the way, and plays amazon-vpc-cni-k8s.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from vpccni.datapath.convert import (
    host_route,
    is_host_route,
    is_meant,
    is_removable,
    to_rule,
    told_firewall,
    told_route,
    told_rule,
)
from vpccni.datapath.difference import eni_routes, find_link
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import (
    AddressSeen,
    Applied,
    Difference,
    EniSetup,
    LinkChange,
    LinkSeen,
    LinkSetting,
    Observed,
    PathChange,
    RemovedObject,
    SandboxSeen,
)
from vpccni.errors import PermanentError, Reason, VpccniError
from vpccni.evidence import KernelEvidence
from vpccni.lab.sim import kernel_original, kernel_survey
from vpccni.lab.sim.kernel_node import FakeInterface, FakeNetns
from vpccni.lab.sim.kernel_sandbox import FakeSandboxes
from vpccni.model import MAIN_TABLE, EniId, LeaseId, PodRef, host_cidr

__all__ = ["FakeInterface", "FakeKernel", "FakeNetns"]


@dataclass
class _Done:
    """What came of a difference so far."""

    enis: dict[EniId, tuple[str, int]]
    missing: list[EniId]
    sandboxes: dict[LeaseId, SandboxSeen] = field(default_factory=dict)
    removed: list[RemovedObject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[VpccniError] = field(default_factory=list)


class FakeKernel(FakeSandboxes):
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
        super().__init__(fault=fault, netns_on_demand=netns_on_demand)
        self.latency_s = latency_s
        self.proc_sys_is_read_only = proc_sys_is_read_only
        self.applied_count = 0
        self.observed_count = 0

    # --- the port -------------------------------------------------------------------------------------

    async def observe(self) -> Observed:
        """See ``Kernel.observe``."""
        await self._work()
        self.observed_count += 1
        state = self.state
        return Observed(
            links=tuple(state.links[index] for index in sorted(state.links)),
            addresses=tuple(sorted(state.addresses, key=lambda seen: (seen.ifindex, seen.address))),
            routes=tuple(sorted(state.routes)),
            rules=tuple(sorted(state.rules, key=lambda rule: rule.priority)),
            nft=state.nft,
            ip_forward=state.ip_forward,
            firewall=state.firewall,
        )

    async def survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        """See ``Kernel.survey``."""
        await self._work()
        return kernel_survey.survey(self, veth_prefix, netns_paths)

    async def apply(self, difference: Difference) -> Applied:
        """See ``Kernel.apply``."""
        await self._work()
        self.applied_count += 1
        done = _Done(
            enis={link.eni: (link.ifname, link.ifindex) for link in difference.enis_ready},
            missing=list(difference.enis_missing),
        )
        self._apply_node(difference, done)
        for pod in difference.wire:
            try:
                done.sandboxes[pod.lease], removed = self.wire_sandbox(pod)
                done.removed += removed
            except VpccniError as error:
                done.errors.append(error)
        if difference.nft is not None:
            self.state.nft = difference.nft.seen
            self.state.nft_text = difference.nft.text
        self._apply_original(difference, done)
        self._apply_deletions(difference, done)
        if not done.errors:
            self._apply_foreign(difference, done)
        if done.errors:
            raise done.errors[0]
        return Applied(
            sandboxes=done.sandboxes,
            enis=done.enis,
            missing_links=tuple(done.missing),
            probed={pod.lease: self.look_at(pod) for pod in difference.probe},
            removed_veths=tuple(each.ifindex for each in difference.veths_delete if each.ifindex),
            removed=tuple(done.removed),
            notes=tuple(done.notes),
        )

    def _apply_node(self, difference: Difference, done: _Done) -> None:
        if difference.ip_forward:
            if self.proc_sys_is_read_only:
                done.notes.append("net.ipv4.ip_forward is 0 and cannot be set here: Read-only file system")
            else:
                self.state.ip_forward = True
        for setup in difference.enis:
            link = self._set_up_eni(setup)
            if link is None:
                done.missing.append(setup.eni)
            else:
                done.enis[setup.eni] = (link.ifname, link.ifindex)
        for setting in difference.links_set:
            self._set_link(setting)
        for rule in difference.rules_add:
            self.add_rule(rule)
        for route in difference.routes_set:
            if route.ifindex in self.state.links:
                self.set_route(route)
            else:  # It went since the kernel was looked at.
                done.errors.append(
                    PermanentError(Reason.KERNEL_REFUSED, "host_route: No such device [ENODEV]")
                )

    def _set_link(self, setting: LinkSetting) -> None:
        seen = self.state.links.get(setting.ifindex)
        if seen is None or not is_meant(seen, setting):
            return
        rp_filter = setting.rp_filter if setting.rp_filter >= 0 else seen.rp_filter
        alias = seen.alias if setting.new_alias is None else setting.new_alias
        self.put_link(msgspec.structs.replace(seen, is_up=True, rp_filter=rp_filter, alias=alias))

    def _apply_original(self, difference: Difference, done: _Done) -> None:
        for path in difference.original_add:
            if path.ifindex in self.state.links:
                self.set_route(host_route(path.address, path.ifindex))
                self.add_rule(to_rule(path.address))
            else:
                done.errors.append(
                    PermanentError(Reason.KERNEL_REFUSED, "original_path: No such device [ENODEV]")
                )

    def _apply_deletions(self, difference: Difference, done: _Done) -> None:
        for stale in difference.routes_delete:
            for route in self.delete_route(stale.table, stale.dst, stale.ifindex):
                if is_host_route(route) and route.table != POD_TABLE:
                    done.removed.append(told_route(route, self.state.links[route.ifindex].ifname))
        for rule in difference.rules_delete:
            for gone in self.delete_rules(lambda each, rule=rule: each == rule):  # type: ignore[misc]
                if gone.priority == PRIORITY_FROM_POD:
                    done.removed.append(told_rule(gone))
        for address in difference.purge:
            done.removed += self.purge_rules(address)
        for removal in difference.veths_delete:
            for seen in list(self.state.links.values()):
                if is_removable(seen, removal) and (removal.ifindex or seen.ifname == removal.ifname):
                    self.drop_link(seen.ifindex)

    def _apply_foreign(self, difference: Difference, done: _Done) -> None:
        for rule in difference.foreign_rules:
            done.removed += map(told_rule, self.delete_rules(lambda each, rule=rule: each == rule))  # type: ignore[misc]
        for route in difference.foreign_routes:
            ifname = self.state.links[route.ifindex].ifname if route.ifindex in self.state.links else ""
            for gone in self.delete_route(route.table, route.dst, route.ifindex):
                done.removed.append(told_route(gone, ifname))
        for part in difference.firewall:
            if part in self.state.firewall.parts:
                kept = tuple(each for each in self.state.firewall.parts if each != part)
                self.state.firewall = msgspec.structs.replace(self.state.firewall, parts=kept)
                done.removed += told_firewall(part)

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

    async def path_changes(self) -> AsyncIterator[PathChange]:
        """See ``Kernel.path_changes``."""
        queue: asyncio.Queue[PathChange] = asyncio.Queue()
        self.path_listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.path_listeners.remove(queue)

    async def close(self) -> None:
        """Nothing to release."""

    # --- the outside, played by a test ----------------------------------------------------------------

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

    def forget_listeners(self) -> None:
        """Whoever followed links, rules and routes was killed."""
        self.listeners.clear()
        self.path_listeners.clear()

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
