"""A DEL that was written down keeps its place between the ADDs before and after it."""

from __future__ import annotations

import asyncio
import json

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.sim.loop import run_virtual


def _del_of(pod: str) -> bytes:
    return json.dumps(
        {
            "command": "DEL",
            "containerId": pod,
            "netns": f"/run/netns/{pod}",
            "ifname": "eth0",
            "args": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=x",
            "path": "/opt/cni/bin",
            "config": {"cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni"},
        }
    ).encode()


def test_an_add_after_a_spooled_del_gets_a_lease_of_its_own():
    """Found by seed 8.

    1. The executable cannot reach the agent and spools the DEL of a sandbox. 2. Before the agent has looked at the
    spool, the runtime uses the key again. 3. The ADD must not be answered with the lease that the DEL ends.
    """

    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        first = await node.add("web-0")
        await node.spool.write(_del_of("web-0"), node.clock.now())
        second = await node.add("web-0")
        await asyncio.sleep(5)
        state = node.agent.writer.state
        assert [lease.bindings[0].address for lease in state.leases.values()] == [second]
        assert second != first
        assert not await node.spool.entries()
        await node.stop()

    run_virtual(scenario())


def test_a_spooled_del_gives_up_the_add_that_it_follows():
    """1. An ADD is being wired. 2. Its caller is gone and its DEL lands in the spool. 3. No lease is left."""

    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(10)
        node.kernel.latency_s = 1.0
        add = asyncio.get_running_loop().create_task(node.cni("ADD", "web-0"))
        await asyncio.sleep(0.5)
        await node.spool.write(_del_of("web-0"), node.clock.now())
        status, answer = await add
        assert (status, answer["reason"]) == (503, "cancelled")
        await asyncio.sleep(5)
        assert not node.agent.writer.state.leases
        await node.stop()

    run_virtual(scenario())


def test_a_spooled_del_that_is_older_than_the_lease_ends_nothing():
    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        before = node.clock.now()
        await asyncio.sleep(1)
        address = await node.add("web-0")
        await node.spool.write(_del_of("web-0"), before)
        await asyncio.sleep(5)
        assert not await node.spool.entries()
        assert await node.add("web-0") == address
        await node.stop()

    run_virtual(scenario())
