"""What EC2 says late is not news: our own calls are believed over Describe."""

from __future__ import annotations

import asyncio

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.ec2 import Fault
from vpccni.lab.sim.loop import run_virtual


def test_a_describe_that_lags_does_not_bring_back_what_was_given_back():
    """Found by seed 31.

    1. Describe lists an address. 2. The agent gives it back, EC2 confirms. 3. Two readings are begun after that, and
    both tell what was before. 4. The address, another node's by now, must not be assigned to a pod.
    """

    async def scenario():
        node = Node(environ={"WARM_IP_TARGET": "2"}, latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        for number in range(10):
            await node.add(f"pod-{number}")
        await asyncio.sleep(5)
        node.agent.reconcile.compare_soon()
        await asyncio.sleep(10)
        for number in range(10):
            await node.cni("DEL", f"pod-{number}")
            node.kernel.remove_netns(f"/run/netns/pod-{number}")
        node.region.world.describe_lag_s = 8.0
        journal = node.region.journal
        while not journal.count_by_action["UnassignPrivateIpAddresses"]:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        node.agent.reconcile.compare_soon()
        await asyncio.sleep(20)
        owned = {address for eni in node.region.world.enis.values() for address in eni.secondaries}
        books = {
            cidr.removesuffix("/32") for held in node.agent.writer.state.enis.values() for cidr in held.cidrs
        }
        assert books == owned
        await node.stop()

    run_virtual(scenario())


def test_what_describe_lists_long_after_is_news():
    """Somebody else gave the address to the ENI: after a minute it is believed."""

    async def scenario():
        node = Node(environ={"WARM_IP_TARGET": "2"}, latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(5)
        eni = next(iter(node.region.world.enis.values()))
        node.region.perform(
            "AssignPrivateIpAddresses",
            {"NetworkInterfaceId": eni.id, "SecondaryPrivateIpAddressCount": 1},
            node.now(),
        )
        node.agent.reconcile.compare_soon()
        await asyncio.sleep(30)
        books = {
            cidr.removesuffix("/32") for held in node.agent.writer.state.enis.values() for cidr in held.cidrs
        }
        assert set(eni.secondaries) == books
        await node.stop()

    run_virtual(scenario())


def test_a_second_unassign_that_is_throttled_does_not_bring_back_what_the_first_gave_back():
    """Found by seeds 120, 138 and 142.

    1. Unassign is applied, its reply is lost. 2. Describe lags and still lists the address, twice. 3. The agent
    asks once more and is throttled. 4. That says nothing about the first call: the address must stay out of the
    pool until Describe shows what became of it.
    """

    async def scenario():
        node = Node(environ={"WARM_IP_TARGET": "2"}, latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        for number in range(10):
            await node.add(f"pod-{number}")
        await asyncio.sleep(5)
        action = "UnassignPrivateIpAddresses"
        node.region.faults.inject(Fault(action=action, kind="lost_reply"))
        node.region.faults.inject(Fault(action=action, kind="throttle", times=3))
        node.region.world.describe_lag_s = 6.0
        for number in range(10):
            await node.cni("DEL", f"pod-{number}")
            node.kernel.remove_netns(f"/run/netns/pod-{number}")
        while node.region.journal.count_by_action[action] < 2:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        owned = {address for eni in node.region.world.enis.values() for address in eni.secondaries}
        for number in range(8):
            assert await node.add(f"new-{number}") in owned | {
                address for eni in node.region.world.enis.values() for address in eni.secondaries
            }
        await asyncio.sleep(120)
        assert not node.agent.writer.state.intents
        await node.stop()

    run_virtual(scenario())
