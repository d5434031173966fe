"""Looking for living sandboxes: host veths, and which namespace holds the other end of each.

Theory of operation. Only the node's side of a veth is believed about where its other end is: the kernel gives
the peer's index (``IFLA_LINK``) and the number that the node's namespace knows the peer's namespace by
(``IFLA_LINK_NETNSID``). Namespaces have no names in the kernel, so candidates are collected from paths, asked
for that number (``RTM_GETNSID``), and entered only when a host veth ends in them. There, the link of the
peer's index is read, whatever its name is by now, and must lead back to the host veth.

What is read inside is the sandbox's own word: it may have any names and any number of addresses. Nothing of
it makes a survey fail. All functions block and run on a worker thread, in the node's namespace.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from vpccni.adapters import netlink_route as messages
from vpccni.adapters.kernel_netns import opened, socket_in
from vpccni.adapters.netlink import NetlinkError, NetlinkSocket
from vpccni.datapath.objects import LinkSeen
from vpccni.datapath.survey import (
    from_tables,
    host_routes,
    host_veth,
    in_order,
    is_global,
    is_host_veth,
    ruled,
)
from vpccni.errors import PermanentError, Reason
from vpccni.evidence import HostVeth, KernelEvidence
from vpccni.model import Mac

_ADDRESSES_MAX: Final = 64
"""As many addresses of one interface are read; a sandbox may give itself millions."""
_SENTENCES_MAX: Final = 20
"""A directory that was mounted without its mounts has a file for every pod."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where namespaces are looked for, besides the paths that other sources name.

    Attributes:
        directories: Where runtimes keep them. ``/var/run`` is ``/run`` on most nodes; then it is read once.
        proc: Where processes are, asked last: it costs the most, and shows more than ourselves only to who
            shares the node's PID namespace. Empty for not at all.
    """

    directories: tuple[str, ...] = ("/var/run/netns", "/run/netns")
    proc: str = "/proc"


def survey(
    host: NetlinkSocket, home: int, veth_prefix: str, netns_paths: Sequence[str], places: Places
) -> KernelEvidence:
    """Look for living sandboxes; see ``Kernel.survey``.

    Raises:
        OSError: The node's own links, routes or rules could not be read.
    """
    veths: list[LinkSeen] = []
    search = Search(host, home)
    for payload in host.dump(messages.RTM_GETLINK, messages.all_links()):
        link = messages.parse_link(payload)
        if is_host_veth(link, veth_prefix):
            veths.append(link)
            search.want(payload)
    routes = host_routes(
        route
        for payload in host.dump(messages.RTM_GETROUTE, messages.all_routes())
        if (route := messages.parse_route(payload)) is not None
    )
    rules = [
        messages.parse_rule(payload) for payload in host.dump(messages.RTM_GETRULE, messages.all_rules())
    ]
    search.run(netns_paths, places)
    return KernelEvidence(
        veths=tuple(
            search.completed(host_veth(link, routes.get(link.ifindex, ()), has_peer=search.has_peer(link)))
            for link in sorted(veths, key=lambda link: link.ifindex)
        ),
        from_tables=from_tables(rules),
        ruled=ruled(rules),
        unreadable=search.unreadable(),
    )


class _End(msgspec.Struct, frozen=True):
    """The namespace of a host veth's other end, and what it shows of it."""

    netns: str
    inode: int
    ifname: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()


class Search:
    """The search for the namespaces in which host veths end. Used once, on one thread."""

    def __init__(self, host: NetlinkSocket, home: int) -> None:
        self._host = host
        self._home = home
        own = os.fstat(home)
        self._device = own.st_dev
        self._seen = {own.st_ino}
        self._wanted: dict[int, list[tuple[int, int]]] = {}
        self._has_peer: set[int] = set()
        self._ends: dict[int, _End] = {}
        self._not_opened: list[str] = []
        self._not_entered: list[str] = []

    def want(self, payload: bytes) -> None:
        """Search for the other end of the veth that this RTM_NEWLINK message tells of."""
        ifindex, peer = messages.parse_ends(payload)
        number = messages.parse_peer_netns(payload)
        if number >= 0:
            self._has_peer.add(ifindex)
            self._wanted.setdefault(number, []).append((ifindex, peer))

    def has_peer(self, link: LinkSeen) -> bool:
        """Whether the other end is in another namespace that still exists."""
        return link.ifindex in self._has_peer

    def run(self, netns_paths: Sequence[str], places: Places) -> None:
        """Look into namespaces until every veth's is found, or none is left."""
        for path in self._candidates(netns_paths, places):
            if not self._wanted:
                return
            try:
                with opened(path, home=self._home) as netns:
                    self._look_into(path, netns)
            except PermanentError as error:
                if error.reason != Reason.NETNS_GONE:
                    self._not_opened.append(error.detail.removeprefix("open_netns: "))

    def completed(self, veth: HostVeth) -> HostVeth:
        """A host veth with what was found of its other end."""
        end = self._ends.get(veth.ifindex)
        if end is None:
            return veth
        return msgspec.structs.replace(
            veth,
            netns=end.netns,
            netns_inode=end.inode,
            pod_ifname=end.ifname,
            pod_mac=Mac(end.mac),
            inside=end.addresses,
        )

    def unreadable(self) -> tuple[str, ...]:
        """What could not be looked into.

        What could not be opened is told only when a namespace was not found, as any of it may be the one.
        """
        told = self._not_entered + (self._not_opened if self._wanted else [])
        more = len(told) - _SENTENCES_MAX
        return (*told[:_SENTENCES_MAX], f"and {more} more") if more > 0 else tuple(told)

    # --- which namespaces -----------------------------------------------------------------------------

    def _candidates(self, netns_paths: Sequence[str], places: Places) -> Iterator[str]:
        """Paths of namespaces that were not looked into yet, those with the most telling names first."""
        yield from self._new(netns_paths)
        listed: set[tuple[int, int]] = set()
        for directory in places.directories:
            try:
                status = os.stat(directory)
                if (status.st_dev, status.st_ino) in listed:
                    continue
                listed.add((status.st_dev, status.st_ino))
                names = sorted(os.listdir(directory))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._not_opened.append(f"{directory}: {error.strerror}")
                continue
            yield from self._new(f"{directory}/{name}" for name in names)
        if places.proc and self._wanted:
            yield from self._of_processes(places.proc)

    def _new(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                yield path  # Opening it says what is wrong.
                continue
            if status.st_dev != self._device or status.st_ino not in self._seen:
                yield path

    def _of_processes(self, proc: str) -> Iterator[str]:
        refused_count = 0
        try:
            pids = sorted((name for name in os.listdir(proc) if name.isdigit()), key=int)
        except OSError as error:
            self._not_opened.append(f"{proc}: {error.strerror}")
            return
        for pid in pids:
            path = f"{proc}/{pid}/ns/net"
            try:
                status = os.stat(path)
            except PermissionError:
                refused_count += 1
                continue
            except OSError:  # It has ended.
                continue
            if status.st_ino not in self._seen:
                yield path
        if refused_count:
            self._not_opened.append(f"{proc}: the namespaces of {refused_count} processes: Permission denied")

    # --- one namespace --------------------------------------------------------------------------------

    def _look_into(self, path: str, netns: int) -> None:
        inode = os.fstat(netns).st_ino
        self._seen.add(inode)
        try:
            number = messages.parse_netns_number(
                self._host.get(messages.RTM_GETNSID, messages.netns_number_of(netns))
            )
        except NetlinkError as error:
            self._not_opened.append(f"{path}: {error.strerror}")
            return
        veths = self._wanted.get(number, [])
        missed = []
        for ifindex, peer in veths:
            end = self._end(path, netns, inode, ifindex, peer)
            if end is None:
                missed.append((ifindex, peer))
            else:
                self._ends[ifindex] = end
        if missed:
            self._wanted[number] = missed
        else:
            self._wanted.pop(number, None)

    def _end(self, path: str, netns: int, inode: int, ifindex: int, peer: int) -> _End | None:
        """The other end of a host veth; ``None`` when it is not there (any more).

        A namespace that cannot be entered, or gives no sense, is still the one.
        """
        try:
            inside = socket_in(netns, home=self._home)
        except OSError as error:
            self._not_entered.append(f"{path} cannot be entered: {error.strerror}")
            return _End(path, inode)
        try:
            found = inside.get(messages.RTM_GETLINK, messages.one_link(ifindex=peer))
            link = messages.parse_link(found)
            if link.kind != "veth" or messages.parse_ends(found) != (peer, ifindex):
                return None
            return _End(path, inode, link.ifname, link.mac, _addresses(inside, peer))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            self._not_entered.append(f"{path} cannot be read: {error.strerror}")
        except (OSError, ValueError, KeyError, struct.error) as error:
            self._not_entered.append(f"{path} cannot be read: {error}")
        finally:
            inside.close()
        return _End(path, inode)


def _addresses(inside: NetlinkSocket, ifindex: int) -> tuple[str, ...]:
    inside.filter_dumps()
    found = inside.first(messages.RTM_GETADDR, messages.all_addresses(ifindex), _ADDRESSES_MAX)
    seen = [messages.parse_address(payload) for payload in found if messages.is_of_global_scope(payload)]
    return in_order(each.address for each in seen if each.ifindex == ifindex and is_global(each.address))
