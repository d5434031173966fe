"""An ADD that is repeated takes nothing back that the first one gave."""

from __future__ import annotations

import asyncio

from tests.sim.stage import Stage, play


def test_a_repeated_add_whose_caller_goes_away_ends_no_lease():
    """1. A pod has its address. 2. The runtime asks again, and goes away in the middle. 3. It asks once more."""

    async def scenario(stage: Stage):
        node = await stage.started()
        (pod,) = await stage.pods(node, 1)
        node.kernel.latency_s = 2.0
        try:
            async with asyncio.timeout(1.0):
                await stage.again(node, pod)
        except TimeoutError:
            pass
        await asyncio.sleep(30)
        node.kernel.latency_s = 0.0
        await stage.again(node, pod)
        assert not stage.broken, stage.broken

    play(scenario)
