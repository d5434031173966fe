"""The whole agent on virtual time: what a node's day looks like."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.sim.loop import StuckError, run_virtual


def test_a_fresh_node_learns_its_enis_and_serves():
    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        assert await node.add("web-0") == await node.add("web-0")
        await asyncio.sleep(30)
        state = node.agent.writer.state
        assert len(state.enis) == 2
        assert sum(len(held.cidrs) for held in state.enis.values()) == 28
        await node.stop()

    run_virtual(scenario())


def test_a_loop_on_which_nothing_can_happen_is_reported():
    async def scenario():
        await asyncio.Event().wait()

    with pytest.raises(StuckError):
        run_virtual(scenario())


def test_a_cold_burst_waits_for_the_growth_that_it_causes_and_nothing_fails():
    async def scenario():
        node = Node("m5.4xlarge", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(5)
        before = sum(node.region.journal.count_by_action.values())
        began = node.now()
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(node.add(f"pod-{number}")) for number in range(110)]
        took = node.now() - began
        addresses = [add.result() for add in adds]
        assert len(set(addresses)) == 110
        assert took <= 1.5 * 2.1, took
        await asyncio.sleep(1)
        calls = sum(node.region.journal.count_by_action.values()) - before
        assert calls <= 18, node.region.journal.count_by_action
        await node.stop()

    run_virtual(scenario())


def test_churn_never_meets_an_empty_pool():
    """Four short-lived pods a second, each address resting 30 s, on a node that starts with one ENI."""

    async def scenario():
        node = Node("m5.4xlarge", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(5)
        last_use: dict[str, float] = {}
        for number in range(240):
            address = await node.add(f"pod-{number}")
            if address in last_use:
                assert node.now() - last_use[address] >= 30
            status, _ = await node.cni("DEL", f"pod-{number}")
            assert status == 200
            last_use[address] = node.now()
            node.kernel.remove_netns(f"/run/netns/pod-{number}")
            await asyncio.sleep(0.25)
        await node.stop()

    run_virtual(scenario())


def test_a_killed_agent_forgets_no_lease_and_leaves_no_orphan():
    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        held = {f"pod-{number}": await node.add(f"pod-{number}") for number in range(8)}
        loop = asyncio.get_running_loop()
        burst = [loop.create_task(node.cni("ADD", f"late-{number}")) for number in range(15)]
        await asyncio.sleep(0.7)
        await node.kill()
        assert not all(task.done() for task in burst)  # They hang with the agent; nobody answers them.
        await node.start()
        await node.ready()
        for pod, address in held.items():
            assert await node.add(pod) == address
        async with asyncio.TaskGroup() as group:
            late = [group.create_task(node.add(f"late-{number}")) for number in range(15)]
        assert len({task.result() for task in late} | set(held.values())) == 23
        await asyncio.sleep(60)
        assert not node.agent.writer.state.intents
        books = set(node.agent.writer.state.enis)
        assert set(node.region.world.enis) == books
        await node.stop()

    run_virtual(scenario())


def test_deleted_pods_let_the_pool_shrink_but_not_before_their_rest():
    async def scenario():
        node = Node("m5.xlarge", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        for number in range(40):
            await node.add(f"pod-{number}")
        await asyncio.sleep(20)
        assert len(node.region.world.enis) == 4
        for number in range(40):
            await node.cni("DEL", f"pod-{number}")
            node.kernel.remove_netns(f"/run/netns/pod-{number}")
        await asyncio.sleep(10)
        assert len(node.region.world.enis) == 4
        await asyncio.sleep(200)
        assert len(node.region.world.enis) == 2
        assert not node.agent.writer.state.intents
        await node.stop()

    run_virtual(scenario())


def test_an_address_whose_veth_is_gone_is_free_at_once_when_nothing_has_to_rest():
    """A full node without cooldown: the next pod gets the address of the one whose namespace just ended."""

    async def scenario():
        node = Node("t3.small", environ={"IP_COOLDOWN_PERIOD": "0"})
        await node.start()
        await node.ready()
        await asyncio.sleep(5)
        for number in range(9):
            await node.add(f"pod-{number}")
        began = node.now()
        status, _ = await node.cni("DEL", "pod-3")
        assert status == 200
        node.kernel.remove_netns("/run/netns/pod-3")
        await node.add("next")
        assert node.now() - began < 0.5
        await node.stop()

    run_virtual(scenario())
