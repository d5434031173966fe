"""A Describe that leaves things out, for minutes: what is not listed is not gone."""

from __future__ import annotations

import asyncio

from tests.sim.stage import Stage, play
from vpccni.lab.sim.node import SimNode


async def _look_again_and_again(node: SimNode, seconds: float) -> None:
    for _ in range(int(seconds // 20)):
        assert node.agent is not None
        node.agent.reconcile.compare_soon()
        await asyncio.sleep(20)


def test_what_describe_leaves_out_for_ten_minutes_is_taken_from_no_pod():
    """1. Describe drops the last ENI, and the last address of each other one. 2. Pods come and go meanwhile.

    3. Describe is whole again: so are the books.
    """

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        pods = await stage.pods(node, 14)
        second = stage.eni_of(pods[-1])
        assert second is not stage.primary_of(node)
        await asyncio.sleep(90)  # What EC2 has just told us itself is believed over any Describe.
        stage.strike(node, kind="describe_short", seconds=600.0)
        await _look_again_and_again(node, 300)
        await stage.again(node, *pods)
        await stage.delete(node, *pods[:4])
        more = await stage.pods(node, 2)
        await _look_again_and_again(node, 280)
        assert second.attachment is not None
        await stage.again(node, *pods[4:], *more)
        await asyncio.sleep(60)
        await _look_again_and_again(node, 300)
        await stage.again(node, *pods[4:], *more)
        assert {
            cidr.removesuffix("/32") for held in stage.state(node).enis.values() for cidr in held.cidrs
        } == (stage.owned(node))

    play(scenario)
