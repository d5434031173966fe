"""What the kernel must look like for an acknowledged sandbox, and when nothing is going on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vpccni.datapath.numbers import POD_TABLE, PRIORITY_FROM_POD
from vpccni.lab.sim.kernel import FakeKernel
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.model import MAIN_TABLE, Address, host_cidr, is_inside


def check_wired(node: SimNode, sandbox: Sandbox) -> None:
    """An ADD that succeeds has wired its sandbox.

    Raises:
        BrokenPromiseError: something is missing, or in the way.
    """
    state, address = node.kernel.state, host_cidr(sandbox.address)
    netns = state.netns.get(sandbox.netns)
    inside = netns.interfaces.get("eth0") if netns is not None else None
    if inside is None:
        raise BrokenPromiseError(f"{sandbox.told} was acknowledged and has no eth0")
    if inside.addresses != {address}:
        raise BrokenPromiseError(f"{sandbox.told} was acknowledged with {address} and has {inside.addresses}")
    routes = [route for route in state.routes if (route.table, route.dst) == (POD_TABLE, address)]
    if [route.ifindex for route in routes] != [inside.host_ifindex]:
        raise BrokenPromiseError(f"{sandbox.told} was acknowledged and {address} is routed by {routes}")
    tables = _tables_from(node.kernel, address)
    wanted = _table_of(node, sandbox)
    if tables != ([wanted] if wanted != MAIN_TABLE else []):
        raise BrokenPromiseError(f"packets from {sandbox.told} go by the tables {tables}, not by {wanted}")


def check_reachable(node: SimNode, sandbox: Sandbox) -> None:
    """Packets to a living sandbox reach it, and its own leave by the ENI that has its address.

    Whoever wired it, by whichever rules and tables.

    Raises:
        BrokenPromiseError: they do not.
    """
    state, address = node.kernel.state, host_cidr(sandbox.address)
    netns = state.netns.get(sandbox.netns)
    inside = netns.interfaces.get("eth0") if netns is not None else None
    if inside is None or address not in inside.addresses:
        raise BrokenPromiseError(f"{sandbox.told} is alive and has no eth0 with {sandbox.address}")
    led_to = _link_to(node.kernel, sandbox.address)
    if led_to != inside.host_ifindex:
        raise BrokenPromiseError(
            f"packets to {sandbox.told} ({sandbox.address}) go to link {led_to}, its own is {inside.host_ifindex}"
        )
    tables, wanted = _tables_from(node.kernel, address)[:1], _table_of(node, sandbox)
    if tables != ([wanted] if wanted != MAIN_TABLE else []):
        raise BrokenPromiseError(f"packets from {sandbox.told} go by the tables {tables}, not by {wanted}")


def _link_to(kernel: FakeKernel, address: str) -> int:
    """The link by which the node sends a packet of its own to an address; 0 for none of those that there are."""
    for rule in sorted(kernel.state.rules, key=lambda rule: rule.priority):
        if rule.src or rule.iif or rule.mark or (rule.dst and not is_inside(Address(address), rule.dst)):
            continue
        routes = [
            route
            for route in kernel.state.routes
            if route.table == rule.table and is_inside(Address(address), route.dst)
        ]
        if routes:
            return max(routes, key=lambda route: int(route.dst.partition("/")[2])).ifindex
    return 0


def check_kernel(node: SimNode, sandboxes: Sequence[Sandbox], leased: Collection[Address]) -> None:
    """The kernel holds what the acknowledged sandboxes need, and nothing of others.

    Args:
        node: With our agent at rest.
        sandboxes: The living ones.
        leased: Addresses with a lease or a hold, which may have rules without a sandbox.

    Raises:
        BrokenPromiseError: something is missing or left over.
    """
    state = node.kernel.state
    alive = {host_cidr(sandbox.address): sandbox for sandbox in sandboxes}
    held = {host_cidr(address) for address in leased}
    for sandbox in sandboxes:
        check_wired(node, sandbox)
    stale = sorted(
        str(route.dst) for route in state.routes if route.table == POD_TABLE and route.dst not in alive
    )
    stale += sorted(
        str(rule.src) for rule in state.rules if rule.priority == PRIORITY_FROM_POD and rule.src not in held
    )
    if stale:
        raise BrokenPromiseError(f"{node.name} has routes or rules of nobody: {stale}")
    veths = [link for link in state.links.values() if link.kind == "veth"]
    if len(veths) != len(alive):
        raise BrokenPromiseError(f"{node.name} has {len(veths)} veths for {len(alive)} sandboxes")


def _tables_from(kernel: FakeKernel, address: str) -> list[int]:
    return [
        rule.table
        for rule in kernel.state.rules
        if rule.priority == PRIORITY_FROM_POD and rule.src == address
    ]


def _table_of(node: SimNode, sandbox: Sandbox) -> int:
    """The routing table of the ENI that owns the address, by EC2's word."""
    holder = node.instance.subnet.addresses.holder_of(sandbox.address)
    for eni in node.instance.enis.values():
        if eni.id == holder and eni.attachment is not None:
            device = eni.attachment.device_index
            return MAIN_TABLE if device == 0 else device + 1
    raise BrokenPromiseError(f"no ENI of {node.name} has {sandbox.address}")
