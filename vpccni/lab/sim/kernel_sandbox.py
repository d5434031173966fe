"""Wiring, unwiring and looking at sandboxes on the node in memory, step by step as the real adapter does it."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable

import msgspec

from vpccni.adapters.kernel_wiring import ALL_STEPS
from vpccni.datapath.convert import (
    host_route,
    is_sandbox_veth,
    is_standing_right,
    rule_problems,
    rules_by_address,
    to_rule,
    told_rule,
)
from vpccni.datapath.desired import from_rules
from vpccni.datapath.difference import DEFAULT_DST
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import LinkChange, LinkSeen, PodWiring, Probed, RemovedObject, Route, SandboxSeen
from vpccni.errors import PermanentError, Reason, VpccniError
from vpccni.lab.sim.kernel_node import FakeInterface, FakeNetns, FakeNode, NodeState
from vpccni.model import MAIN_TABLE, Address, host_cidr


class FakeSandboxes(FakeNode):
    """The node, with the agent's hand on its sandboxes.

    Args:
        fault: Called with the name of each wiring step before it is done; raises ``OSError`` to make it fail.
        netns_on_demand: Whether a sandbox's namespace appears when it is first named.
    """

    def __init__(self, *, fault: Callable[[str], None] | None, netns_on_demand: bool) -> None:
        super().__init__()
        self.fault = fault
        self.netns_on_demand = netns_on_demand
        self._failures: dict[str, list[int]] = {}

    def fail(self, step: str, *, times: int = 1, code: int = errno.ENOMEM) -> None:
        """Let a wiring step fail, the next ``times`` times that it is reached."""
        if step not in ALL_STEPS:
            raise ValueError(f"no wiring step is called {step}")
        self._failures.setdefault(step, []).extend([code] * times)

    def stop_failing(self) -> None:
        """Forget the failures that were asked for."""
        self._failures.clear()

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

    def wire_sandbox(self, pod: PodWiring) -> tuple[SandboxSeen, list[RemovedObject]]:
        """Wire a sandbox, or raise and leave everything as it was. Also: what of the original's was in the way."""
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
            firewall=state.firewall,
        )

    def _wire_steps(self, pod: PodWiring, made: list[int]) -> tuple[SandboxSeen, list[RemovedObject]]:
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
            link = self._make_veth(pod, netns)
            made.append(link.ifindex)
        inside = netns.interfaces[pod.ifname]
        self._step("find_link")
        self._step("host_link")
        rp_filter = pod.rp_filter if pod.rp_filter >= 0 else link.rp_filter
        link = msgspec.structs.replace(link, alias=pod.alias, is_up=True, rp_filter=rp_filter)
        self.put_link(link)
        self._step("pod_address")
        inside.addresses.add(host_cidr(pod.address))
        self._step("pod_gateway_route")
        inside.routes.add((host_cidr(pod.gateway), ""))
        self._step("pod_default_route")
        inside.routes.add((DEFAULT_DST, pod.gateway))
        self._step("pod_neighbour")
        inside.neighbours[pod.gateway] = link.mac
        removed = self._lead_to(pod, link, is_new=is_new)
        seen = SandboxSeen(
            host_ifname=link.ifname,
            host_ifindex=link.ifindex,
            host_mac=link.mac,
            pod_mac=inside.mac,
            alias=pod.alias,
            netns_inode=netns.inode,
        )
        return seen, removed

    def _make_veth(self, pod: PodWiring, netns: FakeNetns) -> LinkSeen:
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
        return link

    def _lead_to(self, pod: PodWiring, link: LinkSeen, *, is_new: bool) -> list[RemovedObject]:
        removed: list[RemovedObject] = []
        if is_new:
            self._step("purge_rules")
            removed = self.purge_rules(pod.address, spares_to_rule=pod.as_original)
        for rule in from_rules(pod.address, pod.table):
            self._step("from_rule")
            self.add_rule(rule)
        self._step("host_route")
        self.set_route(Route(table=POD_TABLE, dst=host_cidr(pod.address), ifindex=link.ifindex))
        if pod.as_original:
            self._step("original_route")
            self.set_route(host_route(pod.address, link.ifindex))
            self._step("original_rule")
            self.add_rule(to_rule(pod.address))
        self._step("done")
        return removed

    def purge_rules(self, address: Address, *, spares_to_rule: bool = False) -> list[RemovedObject]:
        """Delete the from-rules of an address, and the original's rule that leads to it, which is told."""
        src = host_cidr(address)
        self.delete_rules(lambda rule: rule.priority == PRIORITY_FROM_POD and rule.src == src)
        if spares_to_rule:
            return []
        return [told_rule(rule) for rule in self.delete_rules(lambda rule: rule == to_rule(address))]

    def _standing(self, pod: PodWiring, netns: FakeNetns) -> LinkSeen | None:
        """The sandbox's own as it should be; what is in the way is deleted; what is another's is refused."""
        inside = netns.interfaces.get(pod.ifname)
        outside = next((each for each in self.state.links.values() if each.ifname == pod.host_ifname), None)
        if inside is not None:
            peer = self.state.links.get(inside.host_ifindex)
            if peer is None or not is_sandbox_veth(peer, pod):
                raise PermanentError(Reason.INTERFACE_EXISTS, f"create_veth: {pod.ifname} ({inside.mac})")
            is_right = is_standing_right(peer, inside.mac, pod)
            if peer is outside and is_right and inside.addresses <= {host_cidr(pod.address)}:
                return peer
            self.drop_link(peer.ifindex)
            if peer is outside:
                return None
        if outside is not None:
            if not is_sandbox_veth(outside, pod) and not is_our_alias(outside.alias):
                raise PermanentError(
                    Reason.KERNEL_REFUSED,
                    f"create_veth: the node's {outside.ifname} is in the way and not ours "
                    f"(index {outside.ifindex}, alias {outside.alias!r})",
                )
            self.drop_link(outside.ifindex)
        return None

    def look_at(self, pod: PodWiring) -> Probed:
        """What there is of a sandbox."""
        if self.is_blind:
            return Probed(netns_inode=0, host_ifindex=0, problems=("nothing is seen",))
        problems: list[str] = []
        link = next((each for each in self.state.links.values() if is_sandbox_veth(each, pod)), None)
        if link is None:
            problems.append(f"the node has no interface {pod.host_ifname} of this sandbox")
        elif not self._is_led_to(pod, link):
            problems.append(f"packets to {pod.address} are not routed to {link.ifname} by table {POD_TABLE}")
        problems += rule_problems(pod, rules_by_address(self.state.rules).get(pod.address, set()))
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

    def _is_led_to(self, pod: PodWiring, link: LinkSeen) -> bool:
        tables = (POD_TABLE, MAIN_TABLE) if pod.as_original else (POD_TABLE,)
        wanted = [Route(table=table, dst=host_cidr(pod.address), ifindex=link.ifindex) for table in tables]
        return all(route in self.state.routes for route in wanted)
