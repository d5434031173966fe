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
from vpccni.datapath.desired import from_rules
from vpccni.datapath.difference import DEFAULT_DST
from vpccni.datapath.names import is_our_alias
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.datapath.objects import LinkSeen, PodWiring, Route, Rule, SandboxSeen
from vpccni.errors import PermanentError, Reason
from vpccni.model import MAIN_TABLE, host_cidr

Fault = Callable[[str], None]
"""Called with the name of each step before it is done; raises ``OSError`` to make it fail (tests)."""
Undo = Callable[[], None]

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

_GONE: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT})
_STALE_RULES_MAX: Final = 16
"""More from-rules for one address than any history leaves; a bound for the loop that deletes them."""


class SandboxWirer:
    """Wires one sandbox on the calling thread. Used once.

    Attributes:
        journal: Undo actions of what was done so far, oldest first.
    """

    def __init__(self, pod: PodWiring, host: NetlinkSocket, home: int, fault: Fault | None) -> None:
        self._pod = pod
        self._host = host
        self._home = home
        self._fault = fault
        self.journal: list[tuple[str, Undo]] = []

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
                is_new = self._veth(inside)
                with self._step("find_link"):
                    found = inside.get(messages.RTM_GETLINK, messages.one_link(ifname=pod.ifname))
                pod_index, host_index = messages.parse_ends(found)
                if is_new:
                    # Both ends and everything on them go with one of them; known by index only from here.
                    self.journal[-1] = ("create_veth", partial(self._delete_host_link, host_index))
                else:
                    self._link_again(inside, pod_index)
                self._host_link(host_index)
                self._inside(inside, pod_index)
            finally:
                inside.close()
            self._from_rule(is_new=is_new)
            self._host_route(host_index)
            return SandboxSeen(
                host_ifname=pod.host_ifname,
                host_ifindex=host_index,
                host_mac=pod.host_mac,
                pod_mac=pod.pod_mac,
                alias=pod.alias,
                netns_inode=os.fstat(netns).st_ino,
            )

    # --- the veth -------------------------------------------------------------------------------------

    def _veth(self, inside: NetlinkSocket) -> bool:
        """Make the veth, or find ours standing. Returns whether it is new."""
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
                if self._is_standing(inside):
                    return False
                if not self._try_create(inside, body):
                    raise NetlinkError(errno.EEXIST, f"{pod.host_ifname} came back while it was replaced")
        self.journal.append(("create_veth", self._delete_by_name))
        return True

    def _try_create(self, inside: NetlinkSocket, body: bytes) -> bool:
        try:
            inside.change(messages.RTM_NEWLINK, messages.ADD, body)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def _is_standing(self, inside: NetlinkSocket) -> bool:
        """Look at what is in the way: ours as it should be (true), ours to be replaced (deleted, false).

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
            if peer is None or peer.peer != within.ifindex or not self._is_ours(peer):
                raise PermanentError(
                    Reason.INTERFACE_EXISTS, f"create_veth: {pod.ifname} ({within.kind}, {within.mac})"
                )
            if peer is outside and self._is_right(inside, within):
                return True
            self._delete_host_link(peer.ifindex)
            if peer is outside:
                return False
        if outside is not None:
            if not self._is_ours(outside) and not is_our_alias(outside.alias):
                raise PermanentError(
                    Reason.KERNEL_REFUSED,
                    f"create_veth: the node's {outside.ifname} is in the way and not ours "
                    f"(index {outside.ifindex}, alias {outside.alias!r})",
                )
            self._delete_host_link(outside.ifindex)
        return False

    def _is_ours(self, link: LinkSeen) -> bool:
        """Whether it is this sandbox's: by its alias, or, when we died before setting that, by its MAC."""
        return link.alias == self._pod.alias or (not link.alias and link.mac == self._pod.host_mac)

    def _is_right(self, inside: NetlinkSocket, link: LinkSeen) -> bool:
        """Whether a standing interface is for the same address; another lease's is not worth mending."""
        found = inside.dump(messages.RTM_GETADDR, messages.all_addresses())
        addresses = [messages.parse_address(payload) for payload in found]
        held = {(seen.address, seen.prefix_length) for seen in addresses if seen.ifindex == link.ifindex}
        return link.mac == self._pod.pod_mac and held <= {(self._pod.address, 32)}

    def _delete_host_link(self, ifindex: int) -> None:
        self._host.change(messages.RTM_DELLINK, 0, messages.link_index(ifindex))

    def _delete_by_name(self) -> None:
        link = _find(self._host, ifname=self._pod.host_ifname)
        if link is not None and self._is_ours(link):
            self._delete_host_link(link.ifindex)

    # --- what is on it --------------------------------------------------------------------------------

    def _host_link(self, ifindex: int) -> None:
        pod = self._pod
        with self._step("host_link"):
            body = messages.link_settings(ifindex, up=True, alias=pod.alias, rp_filter=pod.rp_filter)
            self._host.change(messages.RTM_SETLINK, 0, body)

    def _link_again(self, inside: NetlinkSocket, ifindex: int) -> None:
        """What a new veth gets by the message that makes it."""
        with self._step("pod_link"):
            body = messages.link_settings(ifindex, up=True, mtu=self._pod.mtu)
            inside.change(messages.RTM_SETLINK, 0, body)

    def _inside(self, inside: NetlinkSocket, ifindex: int) -> None:
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
            body = messages.new_neighbour(ifindex, pod.gateway, pod.host_mac)
            inside.change(messages.RTM_NEWNEIGH, messages.SET, body)

    def _from_rule(self, *, is_new: bool) -> None:
        """The from-rule, after those that a former holder of the address may have left behind.

        A left-over rule would win over ours, being older. Next to a veth that stood already the rules are
        this lease's own and live traffic follows them: they stay.
        """
        pod = self._pod
        if is_new:
            with self._step("purge_rules"):
                purge_from_rules(self._host, host_cidr(pod.address))
        for entry in from_rules(pod.address, pod.table):
            with self._step("from_rule"):
                if add_rule(self._host, entry):
                    self.journal.append(("from_rule", partial(delete_rule, self._host, entry)))

    def _host_route(self, ifindex: int) -> None:
        dst = host_cidr(self._pod.address)
        body = messages.route(Route(table=POD_TABLE, dst=dst, ifindex=ifindex))
        with self._step("host_route"):
            try:
                self._host.change(messages.RTM_NEWROUTE, messages.ADD, body)
                undo = partial(delete_route, self._host, POD_TABLE, dst, ifindex)
                self.journal.append(("host_route", undo))
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise
                # The route of the address's last holder, or our own.
                self._host.change(messages.RTM_NEWROUTE, messages.SET, body)
        with self._step("done"):
            pass


def add_rule(host: NetlinkSocket, entry: Rule) -> bool:
    """Add a rule unless it is there. Returns whether it was added."""
    try:
        host.change(messages.RTM_NEWRULE, messages.ADD, messages.rule(entry))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def delete_rule(host: NetlinkSocket, entry: Rule) -> None:
    """Delete a rule; absent is fine."""
    with ignoring_absent():
        host.change(messages.RTM_DELRULE, 0, messages.rule(entry))


def delete_route(host: NetlinkSocket, table: int, dst: str, ifindex: int) -> None:
    """Delete a route; absent is fine."""
    with ignoring_absent():
        host.change(messages.RTM_DELROUTE, 0, messages.route_removal(table, dst, ifindex))


def purge_from_rules(host: NetlinkSocket, src: str) -> None:
    """Delete every from-rule of this source, whatever its table."""
    body = messages.rule(Rule(priority=PRIORITY_FROM_POD, table=0, src=host_cidr(src.partition("/")[0])))
    with ignoring_absent():
        for _ in range(_STALE_RULES_MAX):
            host.change(messages.RTM_DELRULE, 0, body)


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
