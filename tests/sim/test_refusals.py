"""An ADD that is refused says why: the reason code is what kubelet's event shows."""

from __future__ import annotations

import asyncio

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.sim.loop import run_virtual


def test_a_kernel_refusal_is_told_with_its_reason():
    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        node.kernel.fail("host_route")
        status, answer = await node.cni("ADD", "web-0")
        assert (status, answer["reason"]) == (503, "kernel_refused")
        await node.stop()

    run_virtual(scenario())


def test_an_add_that_its_del_overtook_is_told_so_and_leaves_no_lease():
    """1. ADD is being wired. 2. DEL for the same sandbox comes. 3. The ADD is undone, then the DEL succeeds."""

    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        node.kernel.latency_s = 1.0
        add = asyncio.get_running_loop().create_task(node.cni("ADD", "web-0"))
        await asyncio.sleep(0.5)
        status, _ = await node.cni("DEL", "web-0")
        assert status == 200
        status, answer = await add
        assert (status, answer["reason"]) == (503, "cancelled")
        assert not node.agent.writer.state.leases
        await node.stop()

    run_virtual(scenario())
