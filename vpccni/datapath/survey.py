"""What of the node's network stack tells of living sandboxes: which links, routes, rules and addresses.

The readers of the kernel (the real one and the one in memory) share these, so that both mean the same by a
host veth. Wiring of ours and of amazon-vpc-cni-k8s counts; IPv4 only, as far as the objects go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from vpccni.datapath.names import is_our_alias
from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD, PRIORITY_TO_POD
from vpccni.datapath.objects import LinkSeen, Route, Rule
from vpccni.evidence import HostVeth
from vpccni.model import MAIN_TABLE, Address, Mac, address_number

_HASH: Final = re.compile(r"[0-9a-f]{11}")
"""The original ends the name of a host veth with so many digits of the pod's SHA-1."""


def is_host_veth(link: LinkSeen, veth_prefix: str) -> bool:
    """Whether a link of the node is the host end of a pod's interface: ours, or perhaps the original's."""
    if link.kind != "veth":
        return False
    if is_our_alias(link.alias):
        return True
    return link.ifname.startswith(veth_prefix) and bool(_HASH.fullmatch(link.ifname[len(veth_prefix) :]))


def host_veth(link: LinkSeen, routed: tuple[Address, ...], *, has_peer: bool) -> HostVeth:
    """What the node's side alone tells of a host veth."""
    return HostVeth(
        ifindex=link.ifindex,
        ifname=link.ifname,
        mac=Mac(link.mac),
        alias=link.alias,
        routed=routed,
        has_peer=has_peer,
    )


def host_routes(routes: Iterable[Route]) -> dict[int, tuple[Address, ...]]:
    """For each link: the addresses whose host route in main or in the pod table leads to it, in order."""
    found: dict[int, set[Address]] = {}
    for route in routes:
        address = _single(route.dst)
        if address and route.table in (MAIN_TABLE, POD_TABLE) and not route.gateway:
            found.setdefault(route.ifindex, set()).add(address)
    return {ifindex: in_order(addresses) for ifindex, addresses in found.items()}


def from_tables(rules: Iterable[Rule]) -> dict[Address, int]:
    """For each address with a rule at priority 1536: its table. Of several rules the kernel takes the first."""
    found: dict[Address, int] = {}
    for rule in rules:
        address = _single(rule.src)
        if rule.priority == PRIORITY_FROM_POD and address and _is_plain(rule):
            found.setdefault(address, rule.table)
    return {address: found[address] for address in in_order(found)}


def ruled(rules: Iterable[Rule]) -> tuple[Address, ...]:
    """The addresses with the original's rule ``512 to A lookup main``, in order."""
    return in_order(
        _single(rule.dst)
        for rule in rules
        if rule.priority == PRIORITY_TO_POD
        and rule.table == MAIN_TABLE
        and not rule.src
        and _is_plain(rule)
        and _single(rule.dst)
    )


def is_global(address: str) -> bool:
    """Whether an address can be a pod's: unicast, and not bound to one link or one machine."""
    parsed = ipaddress.ip_address(address)
    return not (
        parsed.is_unspecified
        or parsed.is_loopback
        or parsed.is_link_local
        or parsed.is_multicast
        or parsed.is_reserved
    )


def in_order(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Without repetition, by number."""
    return tuple(sorted(set(addresses), key=lambda address: (":" in address, address_number(address))))


def _single(cidr: str) -> Address:
    """The address of a CIDR that holds just one; empty for any other."""
    address, _, length = cidr.partition("/")
    return Address(address if length == ("128" if ":" in address else "32") else "")


def _is_plain(rule: Rule) -> bool:
    return not (rule.exotic or rule.iif or rule.mark or rule.mask)
