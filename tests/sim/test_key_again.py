"""A runtime that uses a key again: what is swept of the old sandbox must not be the new one's."""

from __future__ import annotations

import asyncio
import random

from tests.sim.stage import Stage, play
from vpccni.lab.sim.kernel_checks import check_wired


def test_sweeping_a_sandbox_spares_the_next_one_with_its_key():
    """Found by seed 5.

    1. A sandbox is wired, and that record is lost with the agent. 2. Its DEL is spooled. 3. The runtime uses the key
    again, for another namespace: same name, same alias. 4. The sweep of the old veth finds the new one by name.
    """

    async def scenario(stage: Stage):
        node = await stage.started()
        kubelet = stage.kubelets[node.name]
        (first,) = await stage.pods(node, 1)
        node.kill(restart_s=0.1)  # The wiring's record rides along with the next batch: it is lost.
        await asyncio.sleep(1)
        await stage.ready(node)
        kubelet._give_up(first)
        await kubelet._spool(first)
        await asyncio.sleep(0.2)
        second = kubelet._new_sandbox(first.pod, first.container_id)
        assert await kubelet._add(second)
        await asyncio.sleep(30)
        check_wired(node, second)
        assert not stage.state(node).standing
        await stage.delete(node, second)
        kubelet._end_netns(first)

    play(scenario)


def test_a_key_that_is_used_again_and_again_stays_wired():
    async def scenario(stage: Stage):
        node = await stage.started()
        kubelet, rng = stage.kubelets[node.name], random.Random(3)
        (sandbox,) = await stage.pods(node, 1)
        for _ in range(20):
            await asyncio.sleep(rng.choice((0.0, 0.5, 2.5)))
            if rng.random() < 0.3:
                node.kill(restart_s=0.1)
            assert await kubelet._delete(sandbox, rng.choice(("plain", "spooled", "netns first")), rng)
            again = await kubelet._again(sandbox, rng)
            if again is None:
                (again,) = await stage.pods(node, 1)
            sandbox = again
        await asyncio.sleep(30)
        check_wired(node, sandbox)

    play(scenario)
