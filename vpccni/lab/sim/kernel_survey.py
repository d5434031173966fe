"""Looking for living sandboxes on the node in memory."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

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
from vpccni.lab.sim.kernel_node import FakeInterface, FakeNode
from vpccni.model import Address, Mac


def survey(node: FakeNode, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
    """See ``Kernel.survey``."""
    if node.survey_refusal:
        raise PermanentError(Reason.KERNEL_REFUSED, f"survey: {node.survey_refusal}")
    state = node.state
    visible = [] if node.is_blind else [path for path in state.netns if _is_found(node, path, netns_paths)]
    routed = host_routes(state.routes)
    links = [state.links[index] for index in sorted(state.links)]
    rules = sorted(state.rules, key=lambda rule: rule.priority)
    return KernelEvidence(
        veths=tuple(
            _veth(node, link, visible, routed.get(link.ifindex, ()))
            for link in links
            if is_host_veth(link, veth_prefix)
        ),
        from_tables=from_tables(rules),
        ruled=ruled(rules),
        unreadable=tuple(
            f"{path} cannot be entered: Operation not permitted" for path in _sealed(node, visible)
        ),
    )


def _is_found(node: FakeNode, path: str, named: Sequence[str]) -> bool:
    return path not in node.hidden or path in named


def _sealed(node: FakeNode, visible: Sequence[str]) -> list[str]:
    """Those that would have to be entered: the real kernel tells beforehand whose a namespace is."""
    return [path for path in visible if path in node.sealed and _ends(node, path)]


def _ends(node: FakeNode, path: str) -> list[tuple[str, FakeInterface]]:
    interfaces = node.state.netns[path].interfaces
    return [(name, each) for name, each in sorted(interfaces.items()) if each.host_ifindex]


def _veth(node: FakeNode, link: LinkSeen, visible: Sequence[str], routed: tuple[Address, ...]) -> HostVeth:
    veth = host_veth(link, routed, has_peer=link.ifindex not in node.state.peerless)
    for path in visible:
        for name, inside in _ends(node, path):
            if inside.host_ifindex != link.ifindex:
                continue
            inode = node.state.netns[path].inode
            veth = msgspec.structs.replace(veth, netns=path, netns_inode=inode)
            if path in node.sealed:
                return veth
            return msgspec.structs.replace(
                veth, pod_ifname=name, pod_mac=Mac(inside.mac), inside=_global_of(inside)
            )
    return veth


def _global_of(inside: FakeInterface) -> tuple[Address, ...]:
    addresses = (Address(cidr.partition("/")[0]) for cidr in inside.addresses)
    return in_order(address for address in addresses if is_global(address))
