"""An ENI whose subnet's CIDR EC2 would not tell at first is set up as soon as it does (W1)."""

from __future__ import annotations

import asyncio

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.ec2 import Fault
from vpccni.lab.sim.loop import run_virtual


def test_a_new_node_that_cannot_ask_for_its_subnet_serves_when_it_can():
    async def scenario():
        node = Node(latency_s=REALISTIC_LATENCY_S)
        node.region.faults.inject(Fault(action="DescribeSubnets", kind="error", code="InternalError"))
        await node.start()
        await node.ready(120.0)
        assert await node.add("web-0")
        await node.stop()

    run_virtual(scenario())


def test_an_eni_that_is_made_while_the_subnet_cannot_be_asked_serves():
    """Found by seed 112: the agent was restarted, knew the subnet no more, and made an ENI of no use to anybody.

    1. The agent restarts. 2. DescribeSubnets fails. 3. An ENI is created and attached. 4. It serves at once: its
    subnet is the primary ENI's.
    """

    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(10)
        await node.kill()
        node.region.faults.inject(Fault(action="DescribeSubnets", kind="error", times=50))
        await node.start()
        await node.ready()
        for number in range(12):
            await node.add(f"pod-{number}")
        await asyncio.sleep(30)
        assert all(held.is_link_ready for held in node.agent.writer.state.enis.values())
        await node.stop()

    run_virtual(scenario())


def test_an_eni_that_was_adopted_without_its_subnet_is_set_up_when_ec2_tells_it():
    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        primary = node.region.world.enis[node.agent.writer.state.primary_eni().facts.id]
        other = node.region.add_subnet(primary.subnet.vpc.id, "a", "10.0.16.0/20")
        made = node.region.perform(  # type: ignore[index]
            "CreateNetworkInterface", {"SubnetId": other.id, "SecondaryPrivateIpAddressCount": 2}, node.now()
        )["NetworkInterface"]["NetworkInterfaceId"]
        node.region.faults.inject(Fault(action="DescribeSubnets", kind="error"))
        node.region.perform(
            "AttachNetworkInterface",
            {"NetworkInterfaceId": made, "InstanceId": node.instance.id, "DeviceIndex": 2},
            node.now(),
        )
        await asyncio.sleep(240)
        held = node.agent.writer.state.enis[made]
        assert held.facts.subnet_cidr == "10.0.16.0/20"
        assert held.is_link_ready
        await node.stop()

    run_virtual(scenario())
