"""A disk that fails ends no agent: what must be noted is noted when the log takes it."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.adapters.log_format import LogFault
from vpccni.lab.sim.loop import run_virtual


@pytest.mark.parametrize("fault", [LogFault.LOST, LogFault.APPLIED, LogFault.DISK_FULL])
def test_a_link_that_vanishes_while_the_log_fails_serves_no_pod(fault):
    """Found by seeds 32, 33, 36 and 50: the loop that follows links ended, and the agent with it."""

    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await node.add("first")
        await asyncio.sleep(10)
        second = next(
            eni
            for eni in node.region.world.enis.values()
            if eni.attachment and eni.attachment.device_index == 1
        )
        node.store.faults.plan(fault, fault)
        node.kernel.unplug(second.mac)
        await asyncio.sleep(5)
        assert not node._running.done()
        held = node.agent.writer.state.enis[second.id]
        assert not held.is_link_ready
        addresses = {await node.add(f"pod-{number}") for number in range(8)}
        assert not addresses & set(second.secondaries)
        await node.stop()

    run_virtual(scenario())
