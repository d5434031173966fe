"""A promise that the agent finds broken itself: written down, EC2 is left alone until a new start, pods go on."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.stage import Stage, play
from vpccni.adapters.log_format import opened
from vpccni.errors import Reason, VpccniError
from vpccni.events.eni import EniGone
from vpccni.events.node import InvariantBroken
from vpccni.planner import commands as c

CHANGES = ("CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses")


def test_a_broken_promise_stops_changes_of_ec2_and_no_pod():
    async def scenario(stage: Stage):
        node = await stage.started("m5.large", {"WARM_IP_TARGET": "6"})
        pods = await stage.pods(node, 2)
        await asyncio.sleep(30)
        contradiction = EniGone(eni=stage.eni_of(pods[0]).id, source="a bug")
        with pytest.raises(VpccniError) as caught:
            await stage.agent(node).writer.submit(c.Observe(contradiction))
        assert caught.value.reason is Reason.INVARIANT_BROKEN
        await asyncio.sleep(5)
        made = [stage.calls(action) for action in CHANGES]

        assert stage.agent(node).readiness.refusal() is None
        assert stage.agent(node).readiness.no_change() == "invariant_broken"
        assert stage.agent(node).status()["problems"]["broken"] == "fold"
        pods += await stage.pods(node, 5)  # out of the six at hand; nothing comes after them
        await stage.delete(node, pods.pop())
        await stage.again(node, *pods)
        await asyncio.sleep(120)
        assert [stage.calls(action) for action in CHANGES] == made

        node.stop(5.0)  # A new start folds and examines anew; here the books themselves are whole.
        await asyncio.sleep(60)
        await stage.ready(node)
        await stage.again(node, *pods)
        assert stage.calls("AssignPrivateIpAddresses") > made[-1]
        events = [opened(stored).event for stored in node.store.events]
        assert sum(isinstance(event, InvariantBroken) for event in events) == 1
        assert "reports InvariantBroken" in stage.broken
        stage.broken = ""  # The one that was asked for; the first is the one that is kept.

    play(scenario)
