"""The node's own part: reading the whole of it, setting up ENIs, looking at one sandbox.

All functions block and run on worker threads, in the node's namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from vpccni.adapters import netlink_route as messages
from vpccni.adapters.kernel_netns import opened, socket_in
from vpccni.adapters.kernel_wiring import add_rule, delete_route, ignoring_absent
from vpccni.adapters.netlink import NetlinkError, NetlinkSocket
from vpccni.datapath.convert import (
    host_route,
    is_meant,
    is_removable,
    is_sandbox_veth,
    rule_problems,
    to_rule,
)
from vpccni.datapath.difference import DEFAULT_DST, eni_routes, find_link
from vpccni.datapath.numbers import POD_TABLE, is_eni_table
from vpccni.datapath.objects import (
    EniSetup,
    FirewallSeen,
    LinkSeen,
    LinkSetting,
    NftSeen,
    Observed,
    OriginalPath,
    PodWiring,
    Probed,
    Route,
    Rule,
    VethRemoval,
)
from vpccni.errors import PermanentError, Reason
from vpccni.model import MAIN_TABLE, Address, host_cidr

IP_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
"""Of the namespace of the thread that opens it."""

_GROUP_FIRST: Final = 1 << 30
"""Link groups are numbered by people, from 0; ours is random, above what people choose."""


def observe(host: NetlinkSocket, nft: NftSeen, firewall: FirewallSeen) -> Observed:
    """Dump rules, routes, addresses and links, and put them beside what is known of the firewall.

    In this order: a pod's rule is made after its route, and its route after its link. So what belongs to a rule
    that is seen is seen, too, unless it has gone.
    """
    rules = rules_of(host)
    routes = [
        messages.parse_route(payload) for payload in host.dump(messages.RTM_GETROUTE, messages.all_routes())
    ]
    addresses = host.dump(messages.RTM_GETADDR, messages.all_addresses())
    return Observed(
        links=tuple(links(host)),
        addresses=tuple(messages.parse_address(payload) for payload in addresses),
        routes=tuple(route for route in routes if route is not None and _concerns_us(route)),
        rules=tuple(rules),
        nft=nft,
        ip_forward=_ip_forward(),
        firewall=firewall,
    )


def rules_of(host: NetlinkSocket) -> list[Rule]:
    """All rules, in the order in which the kernel asks them."""
    return [messages.parse_rule(payload) for payload in host.dump(messages.RTM_GETRULE, messages.all_rules())]


def links(host: NetlinkSocket) -> list[LinkSeen]:
    """All links."""
    found = host.dump(messages.RTM_GETLINK, messages.all_links())
    return [messages.parse_link(payload) for payload in found]


def _concerns_us(route: Route) -> bool:
    return route.table in (POD_TABLE, MAIN_TABLE) or is_eni_table(route.table)


def _ip_forward() -> bool | None:
    try:
        return IP_FORWARD.read_text().strip() != "0"
    except OSError:
        return None


def enable_forwarding() -> str:
    """Let the node route. Returns a note when it cannot be set (``/proc/sys`` is read-only in some pods)."""
    try:
        IP_FORWARD.write_text("1\n")
    except OSError as error:
        return f"net.ipv4.ip_forward is 0 and cannot be set here: {error.strerror}"
    return ""


# --- ENIs ---------------------------------------------------------------------------------------------


def set_up_eni(host: NetlinkSocket, setup: EniSetup) -> tuple[LinkSeen | None, str]:
    """Give an ENI's link what it needs; add before delete, and never delete an address.

    Deleting the only address of a link would make the kernel drop every route of it, in all tables.

    Returns:
        The link, ``None`` when there is none (yet), and a note when its MTU could not be set.

    Raises:
        NetlinkError: A step was refused; what was done before it stays and is right.
    """
    link = find_link(links(host), setup.mac)
    if link is None:
        return None, ""
    note = ""
    if link.mtu != setup.mtu:
        try:
            host.change(messages.RTM_SETLINK, 0, messages.link_settings(link.ifindex, mtu=setup.mtu))
        except NetlinkError as error:
            note = f"{link.ifname} does not take an MTU of {setup.mtu}: {error.strerror}"
    body = messages.link_settings(link.ifindex, up=True, rp_filter=setup.rp_filter)
    host.change(messages.RTM_SETLINK, 0, body)
    if setup.owns_address:
        _address_eni(host, setup, link.ifindex)
    return link, note


def _address_eni(host: NetlinkSocket, setup: EniSetup, ifindex: int) -> None:
    with contextlib.suppress(FileExistsError):
        body = messages.new_address(ifindex, setup.primary, setup.prefix_length, is_routed=False)
        try:
            host.change(messages.RTM_NEWADDR, messages.ADD, body)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
    for route in eni_routes(setup, ifindex):
        host.change(messages.RTM_NEWROUTE, messages.SET, messages.route(route))
    delete_route(host, MAIN_TABLE, setup.subnet_cidr, ifindex)


# --- host veths ---------------------------------------------------------------------------------------


def set_link(host: NetlinkSocket, setting: LinkSetting) -> None:
    """Bring a host veth into shape; one that is gone or another's by now is left alone."""
    link = link_of(host, setting.ifindex)
    if link is not None and is_meant(link, setting):
        body = messages.link_settings(
            setting.ifindex, up=True, alias=setting.new_alias, rp_filter=setting.rp_filter
        )
        host.change(messages.RTM_SETLINK, 0, body)


def add_path_of_original(host: NetlinkSocket, path: OriginalPath) -> None:
    """The original's host route and then the rule that leads to it: the rule alone would lead elsewhere."""
    body = messages.route(host_route(path.address, path.ifindex))
    host.change(messages.RTM_NEWROUTE, messages.SET, body)
    add_rule(host, to_rule(path.address))


def remove_veths(host: NetlinkSocket, removals: Sequence[VethRemoval]) -> None:
    """Delete those host veths whose index still is their alias's; others are left alone.

    Deleting a veth waits 10 to 20 ms for every reader in the kernel, under a lock that all namespaces share.
    The kernel deletes the links of a group with one such wait for all, so they are put into a group first.

    Raises:
        NetlinkError: They stand as before, as far as they are not gone by themselves.
    """
    group = secrets.randbits(30) | _GROUP_FIRST
    is_any = False
    for removal in removals:
        link = link_of(host, removal.ifindex, removal.ifname)
        if link is None or not is_removable(link, removal):
            continue
        with ignoring_absent():  # its namespace may die in between
            body = messages.link_into_group(link.ifindex, group)
            host.change(messages.RTM_SETLINK, 0, body)
            is_any = True
    if is_any:
        with ignoring_absent():
            host.change(messages.RTM_DELLINK, 0, messages.link_group(group))


def link_of(host: NetlinkSocket, ifindex: int = 0, ifname: str = "") -> LinkSeen | None:
    """One link by index or name; ``None`` when there is none."""
    try:
        body = messages.one_link(ifindex=ifindex, ifname=ifname)
        return messages.parse_link(host.get(messages.RTM_GETLINK, body))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


# --- looking at one sandbox ---------------------------------------------------------------------------


def probe(host: NetlinkSocket, home: int, pod: PodWiring, rules: Mapping[Address, Set[Rule]]) -> Probed:
    """What is there of a sandbox, and what is missing; nothing is changed.

    What other plugins of the chain may change (MTU, further addresses and routes) is not looked at. ``rules`` are
    the node's, by :func:`vpccni.datapath.convert.rules_by_address`.
    """
    problems: list[str] = []
    link = _host_link_of(host, pod)
    if link is None:
        problems.append(f"the node has no interface {pod.host_ifname} of this sandbox")
    else:
        problems.extend(_host_problems(host, pod, link))
        problems.extend(rule_problems(pod, rules.get(pod.address, set())))
    inode = 0
    try:
        with opened(pod.netns, home=home) as netns:
            inode = os.fstat(netns).st_ino
            inside = socket_in(netns, home=home)
            try:
                problems.extend(_pod_problems(inside, pod, link))
            finally:
                inside.close()
    except PermanentError as error:
        problems.append(error.detail.removeprefix("open_netns: "))
    return Probed(
        netns_inode=inode, host_ifindex=link.ifindex if link is not None else 0, problems=tuple(problems)
    )


def _host_link_of(host: NetlinkSocket, pod: PodWiring) -> LinkSeen | None:
    link = link_of(host, ifname=pod.host_ifname)
    return link if link is not None and is_sandbox_veth(link, pod) else None


def _host_problems(host: NetlinkSocket, pod: PodWiring, link: LinkSeen) -> list[str]:
    problems = []
    if not link.is_up:
        problems.append(f"{link.ifname} is down")
    try:
        found = host.get(messages.RTM_GETROUTE, messages.matching_route(pod.address))
        route = messages.parse_route(found)
    except NetlinkError:
        route = None
    wanted = [Route(table=POD_TABLE, dst=host_cidr(pod.address), ifindex=link.ifindex)]
    # While the node is handed back, whichever of both rules is older leads.
    wanted += [host_route(pod.address, link.ifindex)] if pod.as_original else []
    if route not in wanted:
        problems.append(f"packets to {pod.address} are not routed to {link.ifname} by table {POD_TABLE}")
    return problems


def _pod_problems(inside: NetlinkSocket, pod: PodWiring, host_link: LinkSeen | None) -> list[str]:
    link = link_of(inside, ifname=pod.ifname)
    if link is None:
        return [f"the sandbox has no interface {pod.ifname}"]
    problems = []
    if host_link is not None and link.peer != host_link.ifindex:
        problems.append(f"{pod.ifname} is not the other end of {host_link.ifname}")
    if not link.is_up:
        problems.append(f"{pod.ifname} is down")
    addresses = [
        messages.parse_address(item) for item in inside.dump(messages.RTM_GETADDR, messages.all_addresses())
    ]
    if not any(seen.ifindex == link.ifindex and seen.address == pod.address for seen in addresses):
        problems.append(f"{pod.ifname} does not have the address {pod.address}")
    routes = [
        messages.parse_route(item) for item in inside.dump(messages.RTM_GETROUTE, messages.all_routes())
    ]
    wanted = Route(table=MAIN_TABLE, dst=DEFAULT_DST, ifindex=link.ifindex, gateway=pod.gateway)
    if wanted not in routes:
        problems.append(f"there is no default route by {pod.gateway}")
    neighbours = [
        messages.parse_neighbour(item)
        for item in inside.dump(messages.RTM_GETNEIGH, messages.all_neighbours())
    ]
    if not any(ifindex == link.ifindex and ip == pod.gateway and mac for ifindex, ip, mac in neighbours):
        problems.append(f"there is no neighbour entry for {pod.gateway}")
    return problems


def as_error(step: str, error: OSError) -> PermanentError:
    """The error of a step of the node's own part."""
    return PermanentError(
        Reason.KERNEL_REFUSED,
        f"{step}: {error.strerror or error} [{errno.errorcode.get(error.errno or 0, '?')}]",
    )
