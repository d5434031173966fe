"""What may be left when everything works again: a lease that no source can end, and why."""

from __future__ import annotations

from vpccni.checkpoint import is_made_up
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.sandbox import NETWORK
from vpccni.projections.leases import Lease


def why_it_stays(node: SimNode, lease: Lease) -> str:
    """Why nothing can end a lease of a dead sandbox before the next boot; empty when something should have.

    Two independent sources must have been able to say that the sandbox lives, and say that it does not.
    """
    if lease.origin == "add":
        return ""
    address = lease.bindings[0].address
    if not (lease.netns or lease.wired is not None or lease.pod.name):
        return f"{node.name} keeps {address}: neither its namespace, its interface nor its pod is known"
    if lease.pod.uid:
        return ""
    if is_made_up(lease.key):
        return f"{node.name} keeps {address}: nobody knows its sandbox or its pod's UID"
    if (lease.key.network, lease.key.container_id, lease.key.ifname) in node.cache.known:
        return f"{node.name} keeps {address}: the runtime has never finished the DEL of its sandbox"
    if not node.cache.has_shown(NETWORK):
        return f"{node.name} keeps {address}: the runtime's cache has shown no entry that could be missing"
    return ""
