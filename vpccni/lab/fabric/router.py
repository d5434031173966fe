"""The VPC router: one namespace that answers, routes and drops as a VPC does.

How it works. Each ENI's far end is a port of this namespace. The namespace owns no address at all:

* *ARP.* Everything in the VPC that is not this ENI's own routes to some other port (in the end to the
  uplink), so proxy ARP answers for every neighbour and for the gateway, on every port, at once.
* *Routing.* Each address or prefix is a route to its owner's port, through a next hop that is known by a
  permanent neighbour entry with the ENI's MAC: the VPC finds ENIs by mapping, it never asks a node by ARP.
* *Source check.* nftables looks the source up in the same routes: a packet from a port to which its source is
  not routed is spoofed. So an address moves in one step, by one route.
* *Internet.* What no ENI owns goes to the uplink, where the table lets pass only mapped sources for
  destinations outside the VPC, and rewrites them one to one, without state, as EC2's internet gateway does.

Everything here blocks and runs on the one thread of `wiring.Wiring`, which lives inside this namespace.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.namespaces import write_sysctls_here
from vpccni.lab.fabric.plugs import Drops, FabricError

UPLINK = "uplink"
"""The port to the internet."""

ROUTER_MAC = "0a:00:00:00:00:01"
"""Of every port: nodes see one router, and no ENI may have it."""

NEXT_HOP = "169.254.0.1"
"""The next hop behind every port: an address that never leaves this namespace's neighbour table."""

# Drop counters are sets that the packets themselves fill: a port needs no rule of its own.
_DROP_SETS = ("spoofed", "unowned", "unmapped")

_RULES = """
table ip vpc {{
  set spoofed {{ type ifname; size 65535; flags dynamic; counter; }}
  set unowned {{ type ifname; size 65535; flags dynamic; counter; }}
  set unmapped {{ type ifname; size 65535; flags dynamic; counter; }}
  set inside {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {inside} }}; }}
  map public {{ type ipv4_addr : ipv4_addr; }}
  map private {{ type ipv4_addr : ipv4_addr; }}
  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
    iifname "uplink" ip daddr != @private drop
    iifname "uplink" ip daddr set ip daddr map @private
    iifname != "uplink" fib saddr . iif oif 0 update @spoofed {{ iifname counter }} drop
  }}
  chain crossing {{
    type filter hook forward priority filter; policy drop;
    oifname != "uplink" accept
    ip daddr @inside update @unowned {{ iifname counter }} drop
    ip saddr != @public update @unmapped {{ iifname counter }} drop
    accept
  }}
  chain leaving {{
    type filter hook postrouting priority srcnat; policy accept;
    oifname "uplink" ip saddr set ip saddr map @public
  }}
}}
"""

_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",  # a new namespace inherits the machine's; the source check is ours
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",  # a VPC never tells a node to go another way
    "ipv4/conf/default/send_redirects": "0",
}
_PERMANENT = 0x80  # NUD_PERMANENT


@contextlib.contextmanager
def ignoring(code: int) -> Iterator[None]:
    """Let the kernel's refusal with this errno pass: what is to be gone is gone, or to be there is there."""
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise


class Router:
    """Ports, routes and tables of the VPC namespace. For a thread that is inside it, and for no other."""

    def __init__(self, vpc_cidrs: Sequence[str]) -> None:
        write_sysctls_here(_SYSCTLS)
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            write_sysctls_here({"ipv6/conf/default/disable_ipv6": "1", "ipv6/conf/all/disable_ipv6": "1"})
        _nft(_RULES.format(inside=", ".join([*vpc_cidrs, "169.254.0.0/16"])))
        self._links: Any = IPRoute()

    def close(self) -> None:
        """Close the netlink socket. The namespace and what is in it remain."""
        self._links.close()

    def add_port(self, name: str, *, peer: str, peer_mac: str, peer_netns: int, mtu: int) -> int:
        """Add a port whose other end is the link ``peer``, still down, in the namespace of that descriptor.

        Returns:
            The port's ifindex.

        Raises:
            FabricError: the peer's name is taken there; nothing was made.
        """
        far_end = {"ifname": peer, "address": peer_mac, "mtu": mtu, "net_ns_fd": peer_netns}
        try:
            self._links.link("add", ifname=name, kind="veth", address=ROUTER_MAC, mtu=mtu, peer=far_end)
        except NetlinkError as error:
            raise FabricError(f"cannot plug {peer} into its namespace: {error}") from error
        index: int = self._links.link_lookup(ifname=name)[0]
        try:
            # proxy_delay is up to 0.8 s of random waiting, meant for several proxies on one wire.
            write_sysctls_here({f"ipv4/conf/{name}/proxy_arp": "1", f"ipv4/neigh/{name}/proxy_delay": "0"})
            self._links.link("set", index=index, state="up")
            self._links.neigh("replace", dst=NEXT_HOP, lladdr=peer_mac, ifindex=index, state=_PERMANENT)
        except BaseException:
            self.remove_port(index)
            raise
        return index

    def remove_port(self, index: int) -> None:
        """Remove a port, its peer and every route to it. Nothing happens if the node took it along."""
        with ignoring(errno.ENODEV):
            self._links.link("del", index=index)

    def route(self, cidr: str, index: int) -> None:
        """Route ``cidr`` to a port, in place of where it went before."""
        self._links.route("replace", dst=cidr, gateway=NEXT_HOP, oif=index, flags=["onlink"])

    def unroute(self, cidr: str, index: int) -> None:
        """Stop routing ``cidr`` to that port. Nothing happens if it goes elsewhere or nowhere."""
        with ignoring(errno.ESRCH):
            self._links.route("del", dst=cidr, gateway=NEXT_HOP, oif=index)

    def map_public(
        self, *, forget: Iterable[tuple[str, str]] = (), add: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Change 1:1 mappings, given as (private, public) pairs, in one transaction."""
        lines = [line for pair in forget for line in _mapping("delete", pair)]
        lines += [line for pair in add for line in _mapping("add", pair)]
        if lines:
            _nft("\n".join(lines))

    def drops_by_port(self) -> dict[str, Drops]:
        """What was dropped, by the name of the port that it came in by."""
        listing = json.loads(_nft(None, "-j", "list", "table", "ip", "vpc"))
        counted: dict[str, dict[str, int]] = {}
        for item in listing["nftables"]:
            declared = item.get("set")
            if declared is None or declared["name"] not in _DROP_SETS:
                continue
            for element in declared.get("elem", ()):
                port, packets = element["elem"]["val"], element["elem"]["counter"]["packets"]
                counted.setdefault(port, {})[declared["name"]] = packets
        return {port: Drops(**counts) for port, counts in counted.items()}


def _mapping(verb: str, pair: tuple[str, str]) -> tuple[str, str]:
    private, public = pair
    if verb == "delete":
        return (
            f"delete element ip vpc public {{ {private} }}",
            f"delete element ip vpc private {{ {public} }}",
        )
    return (
        f"add element ip vpc public {{ {private} : {public} }}",
        f"add element ip vpc private {{ {public} : {private} }}",
    )


def _nft(script: str | None, *arguments: str) -> str:
    program = find_program("nft") or "nft"
    ended = subprocess.run(
        [program, *(arguments or ("-f", "-"))], input=script, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"nft refused: {ended.stderr.strip()}\n{script or ''}")
    return ended.stdout
