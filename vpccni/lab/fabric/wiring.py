"""What is plugged where: the blocking half of the fabric, on a thread that lives in the VPC namespace."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import Any

import msgspec
from pyroute2 import IPRoute

from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.fabric.plugs import ENI_MTU, Drops, EniPlug, FabricError, address_of, network_of
from vpccni.lab.fabric.router import NEXT_HOP, ROUTER_MAC, UPLINK, Router, ignoring

IMDS_ADDRESS = "169.254.169.254"
"""Instance metadata, and in the lab every AWS endpoint: on each node's loopback."""

EC2_ENDPOINT_ADDRESS = "169.254.169.253"
"""Where a node of the lab reaches the EC2 API: on its loopback too."""

_INTERNET_LINK, _INTERNET_MAC = "vpc", "0a:00:00:00:00:02"

_NODE_SYSCTLS = {
    "ipv4/ip_forward": "1",  # as every Kubernetes node image sets it
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "2",  # systemd's default, so what Amazon Linux and Ubuntu nodes have
}

_INTERNET_SYSCTLS = {
    "ipv4/ip_forward": "1",  # an instance that calls another one's public address is sent back into the VPC
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
}


class _Plugged(msgspec.Struct):
    """A plugged ENI: mutable, known to this module alone."""

    plug: EniPlug
    node: Namespace
    port: str
    index: int
    ifname: str
    routed: set[str]


class Wiring:
    """Every namespace, port, route and mapping of one fabric.

    Invariants: a CIDR is routed to at most one ENI; a public address maps to at most one private one.
    All methods block, and all are called on the one thread on which ``open`` was.
    """

    def __init__(
        self, *, prefix: str, vpc_cidrs: Sequence[str], internet_addresses: Sequence[str], public_cidr: str
    ) -> None:
        self._prefix = prefix
        self._vpc_cidrs = [network_of(cidr) for cidr in vpc_cidrs]
        self._internet_addresses = [address_of(address) for address in internet_addresses]
        self._spare_public: Iterator[str] = (str(a) for a in IPv4Network(public_cidr).hosts())
        self._namespaces: dict[str, Namespace] = {}
        self._handles: dict[str, Any] = {}
        self._router: Router | None = None
        self._enis: dict[str, _Plugged] = {}
        self._owners: dict[str, str] = {}
        self._public: dict[str, str] = {}
        self._ports_made = 0

    def open(self) -> tuple[Namespace, Namespace]:
        """Make the VPC and the internet, and move this thread into the former; return both namespaces."""
        vpc, internet = self.add_namespace("vpc"), self.add_namespace("internet")
        # The kernel makes the local table with the first local address, and knows no gateway without it.
        namespaces.set_lo_up(vpc)
        namespaces.set_lo_up(internet)
        namespaces.write_sysctls(internet, _INTERNET_SYSCTLS)
        namespaces.move_thread(vpc.path)
        self._router = Router(self._vpc_cidrs)
        with _descriptor(internet) as target:
            uplink = self._router.add_port(
                UPLINK, peer=_INTERNET_LINK, peer_mac=_INTERNET_MAC, peer_netns=target, mtu=ENI_MTU
            )
        links = self._handle(internet)
        index = links.link_lookup(ifname=_INTERNET_LINK)[0]
        for address in self._internet_addresses:
            links.addr("add", index=index, address=address, prefixlen=32)
        links.link("set", index=index, state="up")
        links.neigh("replace", dst=NEXT_HOP, lladdr=ROUTER_MAC, ifindex=index, state=0x80)
        links.route("add", dst="default", gateway=NEXT_HOP, oif=index, flags=["onlink"])
        self._router.route("default", uplink)
        return vpc, internet

    def close(self) -> None:
        """Remove every namespace, killing what runs inside. Can be called again, or if ``open`` failed."""
        if self._router is not None:
            self._router.close()
            self._router = None
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        self._enis.clear()
        self._owners.clear()
        while self._namespaces:
            _, namespace = self._namespaces.popitem()
            namespaces.remove(namespace)

    def add_namespace(self, name: str) -> Namespace:
        """Make a bare namespace, its loopback down, that goes with the fabric."""
        namespace = namespaces.create(f"{self._prefix}-{name}")
        self._namespaces[namespace.name] = namespace
        return namespace

    def remove_namespace(self, namespace: Namespace) -> None:
        """Kill what runs inside, unplug its ENIs, remove it."""
        for eni_id in [eni_id for eni_id, eni in self._enis.items() if eni.node == namespace]:
            self.unplug(eni_id)
        handle = self._handles.pop(namespace.name, None)
        if handle is not None:
            handle.close()
        namespaces.remove(namespace)
        self._namespaces.pop(namespace.name, None)

    def add_node(self, name: str) -> Namespace:
        """Make a namespace that is set up as an instance is before its first interface appears."""
        node = self.add_namespace(name)
        namespaces.set_lo_up(node)
        namespaces.write_sysctls(node, _NODE_SYSCTLS)
        links = self._handle(node)
        for address in (IMDS_ADDRESS, EC2_ENDPOINT_ADDRESS):
            links.addr("add", index=1, address=address, prefixlen=32)
        return node

    def plug(self, node: Namespace, eni: EniPlug, ifname: str | None, configure: bool | None) -> str:
        """Attach an ENI; return its link's name. See `Fabric.plug`."""
        if eni.eni_id in self._enis:
            raise FabricError(f"{eni.eni_id} is plugged into {self._enis[eni.eni_id].node.name} already")
        if node.name not in self._namespaces:
            raise FabricError(f"{node.name} is not a namespace of this fabric")
        router, link = self._the_router(), ifname or eni.link_name
        wanted = {network_of(cidr) for cidr in (eni.primary, *eni.addresses)}
        self._ports_made += 1
        port = f"p{self._ports_made}-{eni.eni_id[-8:]}"  # unique, and readable in a packet trace
        with _descriptor(node) as target:
            index = router.add_port(port, peer=link, peer_mac=eni.mac, peer_netns=target, mtu=eni.mtu)
        self._enis[eni.eni_id] = _Plugged(
            plug=eni, node=node, port=port, index=index, ifname=link, routed=set()
        )
        try:
            if eni.is_first if configure is None else configure:
                self._configure(node, eni, link)
            self._route(eni.eni_id, wanted)
            public = eni.public_ip or (next(self._spare_public) if eni.is_first else None)
            if public is not None:
                self.set_public(eni.primary, public)
        except BaseException:
            self.unplug(eni.eni_id)
            raise
        return link

    def unplug(self, eni_id: str) -> None:
        """Detach an ENI: its link leaves the node, its addresses the VPC, its mapping the internet."""
        eni = self._enis.pop(eni_id, None)
        if eni is None:
            raise FabricError(f"{eni_id} is not plugged")
        self._the_router().remove_port(eni.index)
        for cidr in eni.routed:
            del self._owners[cidr]
            if cidr.endswith("/32"):
                self.set_public(cidr.removesuffix("/32"), None)

    def rename(self, eni_id: str, ifname: str) -> None:
        """Rename an ENI's link in its node, keeping it up if it is up."""
        eni = self._the_eni(eni_id)
        links = self._handle(eni.node)
        index = links.link_lookup(ifname=eni.ifname)[0]
        links.link("set", index=index, ifname=ifname)
        eni.ifname = ifname

    def set_addresses(self, eni_id: str, cidrs: Sequence[str]) -> None:
        """Make ``cidrs`` and its primary address what goes to this ENI; only differences are written."""
        wanted = {network_of(cidr) for cidr in cidrs}
        wanted.add(network_of(self._the_eni(eni_id).plug.primary))
        self._route(eni_id, wanted)

    def set_public(self, private: str, public: str | None) -> None:
        """Map a private address to a public one and back, or, for None, forget its mapping."""
        private = address_of(private)
        taken = {held: by for by, held in self._public.items()}.get(public or "")
        if taken is not None and taken != private:
            raise FabricError(f"{public} maps to {taken} already")
        before = self._public.pop(private, None)
        self._the_router().map_public(
            forget=[] if before is None else [(private, before)],
            add=[] if public is None else [(private, address_of(public))],
        )
        if public is not None:
            self._public[private] = public

    def public_of(self, private: str) -> str | None:
        """The public address that a private one is mapped to."""
        return self._public.get(private)

    def drops(self, eni_id: str) -> Drops:
        """What the VPC dropped of what this ENI sent."""
        return self._the_router().drops_by_port().get(self._the_eni(eni_id).port, Drops())

    def addresses(self, eni_id: str) -> frozenset[str]:
        """The CIDRs that the VPC routes to this ENI."""
        return frozenset(self._the_eni(eni_id).routed)

    def _route(self, eni_id: str, wanted: set[str]) -> None:
        eni, router = self._the_eni(eni_id), self._the_router()
        for cidr in sorted(eni.routed - wanted):
            router.unroute(cidr, eni.index)
            eni.routed.discard(cidr)
            del self._owners[cidr]
        for cidr in sorted(wanted - eni.routed):
            before = self._owners.get(cidr)
            router.route(cidr, eni.index)
            if before is not None:  # EC2's AllowReassignment: the last one to ask gets it
                self._enis[before].routed.discard(cidr)
            self._owners[cidr] = eni_id
            eni.routed.add(cidr)

    def _configure(self, node: Namespace, eni: EniPlug, link: str) -> None:
        """Do what DHCP does on an instance: address, default route, up."""
        links = self._handle(node)
        index = links.link_lookup(ifname=link)[0]
        links.addr("add", index=index, address=eni.primary, prefixlen=IPv4Network(eni.subnet_cidr).prefixlen)
        links.link("set", index=index, state="up")
        with ignoring(errno.EEXIST):  # a second configured interface: the first one keeps the default route
            links.route("add", dst="default", gateway=eni.gateway, oif=index)

    def _handle(self, namespace: Namespace) -> Any:
        """A netlink socket inside a namespace; opened once, closed with it."""
        if namespace.name not in self._handles:
            with namespaces.entered(namespace.path):
                self._handles[namespace.name] = IPRoute()
        return self._handles[namespace.name]

    def _the_router(self) -> Router:
        if self._router is None:
            raise FabricError("the fabric is not open")
        return self._router

    def _the_eni(self, eni_id: str) -> _Plugged:
        try:
            return self._enis[eni_id]
        except KeyError:
            raise FabricError(f"{eni_id} is not plugged") from None


@contextlib.contextmanager
def _descriptor(namespace: Namespace) -> Iterator[int]:
    handle = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)
