"""Wiring one sandbox: an ordered list of steps, a journal of what they did, and the way back.

Theory of operation. Each step names itself, acts, and writes down how to undo it if it made something that
was not there before. When a step fails, the journal is undone from its end, so the node is as it was; the
error names the step and the errno. Steps that find their object in place go on, so wiring again converges.
No dump is made unless something is in the way.

Order, and why: the veth first, both ends in place by one message; then the host end's alias, which makes it
ours for whoever looks, with which it goes up; the pod's address and routes; the from-rule before the host
route, so that no answer of the pod leaves by the wrong ENI.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from vpccni.adapters import netlink_route as messages
from vpccni.adapters.kernel_netns import opened, socket_in
from vpccni.adapters.netlink import NetlinkError, NetlinkSocket
from vpccni.datapath.convert import host_route, is_sandbox_veth, is_standing_right, to_rule, told_rule
from vpccni.datapath.desired import from_rules
from vpccni.datapath.difference import DEFAULT_DST
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import LinkSeen, PodWiring, RemovedObject, Route, Rule, SandboxSeen
from vpccni.errors import PermanentError, Reason
from vpccni.model import MAIN_TABLE, Address, host_cidr

Fault = Callable[[str], None]
"""Called with the name of each step before it is done; raises ``OSError`` to make it fail (tests)."""
Undo = Callable[[], object]

STEPS: Final = (
    "open_netns",
    "enter_netns",
    "create_veth",
    "find_link",
    "host_link",
    "pod_address",
    "pod_gateway_route",
    "pod_default_route",
    "pod_neighbour",
    "purge_rules",
    "from_rule",
    "host_route",
    "done",
)
"""The steps of wiring a new sandbox on a secondary ENI, in order; ``done`` does nothing."""
STEPS_OF_ORIGINAL: Final = ("original_route", "original_rule")
"""Before ``done``, while the node is handed back: a host route in main, then the rule that leads to it."""
ALL_STEPS: Final = (*STEPS[:-1], *STEPS_OF_ORIGINAL, STEPS[-1])

_GONE: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT})
_STALE_RULES_MAX: Final = 16
"""More from-rules for one address than any history leaves; a bound for the loop that deletes them."""


class SandboxWirer:
    """Wires one sandbox on the calling thread. Used once.

    Attributes:
        journal: Undo actions of what was done so far, oldest first.
        removed: What of amazon-vpc-cni-k8s was in the way.
    """

    def __init__(self, pod: PodWiring, host: NetlinkSocket, home: int, fault: Fault | None) -> None:
        self._pod = pod
        self._host = host
        self._home = home
        self._fault = fault
        self.journal: list[tuple[str, Undo]] = []
        self.removed: list[RemovedObject] = []

    def wire(self) -> SandboxSeen:
        """Do all steps.

        Raises:
            PermanentError: ``netns_gone``, ``interface_exists`` or ``kernel_refused``; everything that was
                done is undone.
        """
        try:
            return self._wire()
        except PermanentError as error:
            failed = self.undo()
            if failed:
                raise PermanentError(error.reason, f"{error.detail}; {failed}") from error
            raise

    def undo(self) -> str:
        """Take back what the journal holds, from its end. Returns what could not be taken back."""
        failed = []
        while self.journal:
            name, action = self.journal.pop()
            try:
                action()
            except OSError as error:
                if error.errno not in _GONE:
                    failed.append(f"undo of {name}: {_errno_text(error)}")
        return "; ".join(failed)

    def undo_with(self, host: NetlinkSocket) -> str:
        """As :meth:`undo`, on another thread than that of :meth:`wire`: with that thread's socket."""
        self._host = host
        return self.undo()

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        try:
            if self._fault is not None:
                self._fault(name)
            yield
        except OSError as error:
            raise PermanentError(Reason.KERNEL_REFUSED, f"{name}: {_errno_text(error)}") from error

    def _wire(self) -> SandboxSeen:
        pod = self._pod
        with self._step("open_netns"):
            context = opened(pod.netns, home=self._home)
        with context as netns:
            with self._step("enter_netns"):
                inside = socket_in(netns, home=self._home)
            try:
                standing = self._veth(inside)
                with self._step("find_link"):
                    found = inside.get(messages.RTM_GETLINK, messages.one_link(ifname=pod.ifname))
                pod_index, host_index = messages.parse_ends(found)
                if standing is None:
                    # Both ends and everything on them go with one of them; known by index only from here.
                    self.journal[-1] = ("create_veth", partial(self._delete_host_link, host_index))
                else:
                    self._link_again(inside, pod_index)
                host_mac = standing.mac if standing is not None else pod.host_mac
                self._host_link(host_index)
                self._inside(inside, pod_index, host_mac)
            finally:
                inside.close()
            self._rules(is_new=standing is None)
            self._host_route(host_index)
            self._path_of_original(host_index)
            with self._step("done"):
                pass
            return SandboxSeen(
                host_ifname=pod.host_ifname,
                host_ifindex=host_index,
                host_mac=host_mac,
                pod_mac=messages.parse_link(found).mac if standing is not None else pod.pod_mac,
                alias=pod.alias,
                netns_inode=os.fstat(netns).st_ino,
            )

    # --- the veth -------------------------------------------------------------------------------------

    def _veth(self, inside: NetlinkSocket) -> LinkSeen | None:
        """Make the veth, or find the sandbox's own standing: then its host end, else ``None``."""
        pod = self._pod
        body = messages.new_veth(
            ifname=pod.ifname,
            mac=pod.pod_mac,
            mtu=pod.mtu,
            peer_ifname=pod.host_ifname,
            peer_mac=pod.host_mac,
            peer_mtu=pod.mtu,
            peer_netns=self._home,
        )
        with self._step("create_veth"):
            if not self._try_create(inside, body):
                standing = self._standing(inside)
                if standing is not None:
                    return standing
                if not self._try_create(inside, body):
                    raise NetlinkError(errno.EEXIST, f"{pod.host_ifname} came back while it was replaced")
        self.journal.append(("create_veth", self._delete_by_name))
        return None

    def _try_create(self, inside: NetlinkSocket, body: bytes) -> bool:
        try:
            inside.change(messages.RTM_NEWLINK, messages.ADD, body)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def _standing(self, inside: NetlinkSocket) -> LinkSeen | None:
        """Look at what is in the way: ours as it should be (its host end), ours to be replaced (deleted).

        Raises:
            PermanentError: It is not ours.
        """
        pod = self._pod
        within = _find(inside, ifname=pod.ifname)
        outside = _find(self._host, ifname=pod.host_ifname)
        peer = outside
        if within is not None and (outside is None or outside.ifindex != within.peer):
            peer = _find(self._host, ifindex=within.peer) if within.kind == "veth" and within.peer else None
        if within is not None:
            if peer is None or peer.peer != within.ifindex or not is_sandbox_veth(peer, pod):
                raise PermanentError(
                    Reason.INTERFACE_EXISTS, f"create_veth: {pod.ifname} ({within.kind}, {within.mac})"
                )
            if peer is outside and self._is_right(inside, within, peer):
                return peer
            self._delete_host_link(peer.ifindex)
            if peer is outside:
                return None
        if outside is not None:
            if not is_sandbox_veth(outside, pod) and not is_our_alias(outside.alias):
                raise PermanentError(
                    Reason.KERNEL_REFUSED,
                    f"create_veth: the node's {outside.ifname} is in the way and not ours "
                    f"(index {outside.ifindex}, alias {outside.alias!r})",
                )
            self._delete_host_link(outside.ifindex)
        return None

    def _is_right(self, inside: NetlinkSocket, link: LinkSeen, host_link: LinkSeen) -> bool:
        """Whether a standing interface is for the same address; another lease's is not worth mending."""
        found = inside.dump(messages.RTM_GETADDR, messages.all_addresses())
        addresses = [messages.parse_address(payload) for payload in found]
        held = {(seen.address, seen.prefix_length) for seen in addresses if seen.ifindex == link.ifindex}
        return is_standing_right(host_link, link.mac, self._pod) and held <= {(self._pod.address, 32)}

    def _delete_host_link(self, ifindex: int) -> None:
        self._host.change(messages.RTM_DELLINK, 0, messages.link_index(ifindex))

    def _delete_by_name(self) -> None:
        link = _find(self._host, ifname=self._pod.host_ifname)
        if link is not None and is_sandbox_veth(link, self._pod):
            self._delete_host_link(link.ifindex)

    # --- what is on it --------------------------------------------------------------------------------

    def _host_link(self, ifindex: int) -> None:
        pod = self._pod
        with self._step("host_link"):
            body = messages.link_settings(ifindex, up=True, alias=pod.alias, rp_filter=pod.rp_filter)
            self._host.change(messages.RTM_SETLINK, 0, body)

    def _link_again(self, inside: NetlinkSocket, ifindex: int) -> None:
        """What a new veth gets by the message that makes it. One that was found keeps its MTU."""
        with self._step("pod_link"):
            body = messages.link_settings(ifindex, up=True, mtu=0 if self._pod.is_found else self._pod.mtu)
            inside.change(messages.RTM_SETLINK, 0, body)

    def _inside(self, inside: NetlinkSocket, ifindex: int, host_mac: str) -> None:
        """Address, routes and neighbour of the pod; they die with the link and need no journal."""
        pod = self._pod
        with self._step("pod_address"):
            inside.change(messages.RTM_NEWADDR, messages.SET, messages.new_address(ifindex, pod.address, 32))
        gateway = Route(table=MAIN_TABLE, dst=host_cidr(pod.gateway), ifindex=ifindex)
        with self._step("pod_gateway_route"):
            inside.change(messages.RTM_NEWROUTE, messages.SET, messages.route(gateway))
        default = Route(table=MAIN_TABLE, dst=DEFAULT_DST, ifindex=ifindex, gateway=pod.gateway)
        with self._step("pod_default_route"):
            inside.change(messages.RTM_NEWROUTE, messages.SET, messages.route(default))
        with self._step("pod_neighbour"):
            body = messages.new_neighbour(ifindex, pod.gateway, host_mac)
            inside.change(messages.RTM_NEWNEIGH, messages.SET, body)

    def _rules(self, *, is_new: bool) -> None:
        """The from-rule, after the rules that a former holder of the address may have left behind.

        A left-over rule would win over ours, being older. Next to a veth that stood already the rules are
        this lease's own and live traffic follows them: they stay.
        """
        pod = self._pod
        if is_new:
            with self._step("purge_rules"):
                self.removed += purge_rules(self._host, pod.address, spares_to_rule=pod.as_original)
        for entry in from_rules(pod.address, pod.table):
            with self._step("from_rule"):
                self._add_rule("from_rule", entry)

    def _add_rule(self, step: str, entry: Rule) -> None:
        if add_rule(self._host, entry):
            self.journal.append((step, partial(delete_rule, self._host, entry)))

    def _host_route(self, ifindex: int) -> None:
        with self._step("host_route"):
            self._set_route(
                "host_route", Route(table=POD_TABLE, dst=host_cidr(self._pod.address), ifindex=ifindex)
            )

    def _path_of_original(self, ifindex: int) -> None:
        """While the node is handed back: what the original would have made, the route before the rule."""
        pod = self._pod
        if not pod.as_original:
            return
        with self._step("original_route"):
            self._set_route("original_route", host_route(pod.address, ifindex))
        with self._step("original_rule"):
            self._add_rule("original_rule", to_rule(pod.address))

    def _set_route(self, step: str, entry: Route) -> None:
        body = messages.route(entry)
        try:
            self._host.change(messages.RTM_NEWROUTE, messages.ADD, body)
            undo = partial(delete_route, self._host, entry.table, entry.dst, entry.ifindex)
            self.journal.append((step, undo))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            # The route of the address's last holder, or our own.
            self._host.change(messages.RTM_NEWROUTE, messages.SET, body)


def add_rule(host: NetlinkSocket, entry: Rule) -> bool:
    """Add a rule unless it is there. Returns whether it was added."""
    try:
        host.change(messages.RTM_NEWRULE, messages.ADD, messages.rule(entry))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def delete_rule(host: NetlinkSocket, entry: Rule) -> bool:
    """Delete a rule; absent is fine. Returns whether it was there."""
    return _is_deleted(host, messages.RTM_DELRULE, messages.rule(entry))


def delete_route(host: NetlinkSocket, table: int, dst: str, ifindex: int) -> bool:
    """Delete a route; absent is fine. Returns whether it was there."""
    return _is_deleted(host, messages.RTM_DELROUTE, messages.route_removal(table, dst, ifindex))


def _is_deleted(host: NetlinkSocket, kind: int, body: bytes) -> bool:
    try:
        host.change(kind, 0, body)
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise
        return False
    return True


def purge_rules(
    host: NetlinkSocket, address: Address, *, spares_to_rule: bool = False
) -> list[RemovedObject]:
    """Delete every from-rule of an address, whatever its table, and the original's rule that leads to it.

    Returns:
        The latter, as it is told, if it was there.
    """
    body = messages.rule(Rule(priority=PRIORITY_FROM_POD, table=0, src=host_cidr(address)))
    for _ in range(_STALE_RULES_MAX):
        if not _is_deleted(host, messages.RTM_DELRULE, body):
            break
    if spares_to_rule or not delete_rule(host, to_rule(address)):
        return []
    return [told_rule(to_rule(address))]


@contextlib.contextmanager
def ignoring_absent() -> Iterator[None]:
    """What is not there need not be deleted."""
    try:
        yield
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise


def _find(where: NetlinkSocket, *, ifname: str = "", ifindex: int = 0) -> LinkSeen | None:
    try:
        return messages.parse_link(
            where.get(messages.RTM_GETLINK, messages.one_link(ifname=ifname, ifindex=ifindex))
        )
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def _errno_text(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{error.strerror or error} [{name}]" if name else str(error)
