"""The log is written when something changes, and not because nothing can be done about it."""

from __future__ import annotations

import asyncio

from tests.sim.stage import Stage, play
from vpccni.lab.ec2 import Fault


def test_a_plan_that_cannot_be_carried_out_is_told_once():
    """Found by seed 609.

    1. Keeping an ENI safe (DeleteOnTermination) gets no reply, for long. 2. Pods come, the ENI should grow. 3. The
    planner wanted what the writer refused, and wrote 48 plans a second; now the ENI grows.
    """

    async def scenario(stage: Stage):
        node = await stage.started("m5.xlarge", {"WARM_IP_TARGET": "2"})
        action = "ModifyNetworkInterfaceAttribute"
        stage.region.faults.inject(Fault(action=action, kind="lost_reply", times=200))
        await stage.pods(node, 16)
        await asyncio.sleep(5)
        head = stage.state(node).head
        assert any(intent.intended.kind == "modify" for intent in stage.state(node).intents.values())
        await stage.pods(node, 8)
        await asyncio.sleep(60)
        assert len(stage.owned(node)) == 26
        assert stage.state(node).head - head < 100

    play(scenario)
