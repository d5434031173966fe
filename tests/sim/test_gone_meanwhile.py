"""An ENI that leaves the books while the links of others are being set up."""

from __future__ import annotations

import asyncio

import msgspec

from tests.sim.stage import Stage, play
from vpccni.model import InstanceId
from vpccni.planner import commands as c


def test_an_eni_that_is_gone_before_its_link_is_set_up_ends_no_agent():
    """1. Two links are missing. 2. The first is being set up, slowly. 3. The second's ENI leaves the books.

    Found by an agent on another machine's log: it learns who it is while it looks for the other one's links.
    """

    async def scenario(stage: Stage):
        node = await stage.started("m5.large", {"WARM_ENI_TARGET": "3"})
        secondary = [eni for eni in node.instance.enis.values() if eni is not stage.primary_of(node)]
        assert len(secondary) == 2
        for eni in secondary:
            node.kernel.unplug(eni.mac)
        await asyncio.sleep(1)
        assert node.agent is not None
        node.kernel.latency_s = 5.0
        node.agent.links.wake()
        await asyncio.sleep(3)
        instance = stage.state(node).instance
        assert instance is not None
        other = msgspec.structs.replace(instance, id=InstanceId("i-other"))
        await node.agent.writer.submit(c.ObserveInstance(other))
        await asyncio.sleep(20)
        assert node.starts == 1

    play(scenario)
