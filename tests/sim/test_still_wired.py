"""No pod gets an address while the last one's veth still stands: that every assignment is made so, is checked."""

from __future__ import annotations

import asyncio

from tests.sim.stage import Stage, play


def test_an_address_whose_rest_is_over_waits_for_its_veth_to_go():
    """1. A full node. 2. A pod is deleted, and its veth stands for longer than an address rests. 3. A pod comes."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        pods = await stage.pods(node, 9)
        node.kernel.latency_s = 40.0
        began = stage.loop.time()
        deleted = stage.loop.create_task(stage.delete(node, pods[0]))
        await asyncio.sleep(1)
        added = stage.loop.create_task(stage.pods(node, 1))
        await asyncio.sleep(33)
        node.kernel.latency_s = 0.0
        assert not stage.broken, stage.broken
        await added
        assert stage.loop.time() - began > 35
        await deleted

    play(scenario)


def test_an_add_that_was_wired_and_undone_leaves_an_address_that_rests():
    """1. One address is left. 2. Its ADD is being wired, and a DEL overtakes it. 3. A pod comes."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        await stage.pods(node, 8)
        kubelet = stage.kubelets[node.name]
        sandbox = kubelet._new_sandbox("overtaken")
        node.kernel.latency_s = 1.0
        async with asyncio.TaskGroup() as group:
            group.create_task(kubelet._add(sandbox))
            await asyncio.sleep(0.5)
            kubelet._give_up(sandbox)
            assert await kubelet._del(sandbox)
        began = stage.loop.time()
        await stage.pods(node, 1)
        assert not stage.broken, stage.broken
        assert stage.loop.time() - began > 20

    play(scenario)
