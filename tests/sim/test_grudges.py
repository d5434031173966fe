"""What the agent must not hold against the world for ever."""

from __future__ import annotations

import asyncio

from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.lab.ec2 import Fault
from vpccni.lab.sim.loop import run_virtual


def test_a_subnet_that_was_full_once_is_asked_again_when_a_pod_waits():
    """1. EC2 has no address. 2. Pods are refused. 3. The pause ends: the next pod waits, so EC2 is asked."""

    async def scenario():
        node = Node("m5.large", environ={"MINIMUM_IP_TARGET": "3"}, latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await asyncio.sleep(5)
        for number in range(3):
            await node.add(f"pod-{number}")
        for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
            node.region.faults.inject(
                Fault(action=action, kind="error", code="InsufficientFreeAddressesInSubnet")
            )
        refused = [await node.cni("ADD", f"early-{number}") for number in range(2)]
        assert [answer["reason"] for _, answer in refused] == ["subnet_exhausted"] * 2
        await asyncio.sleep(150)
        await node.add("late")
        await node.stop()

    run_virtual(scenario())


def test_a_subnet_that_ec2_may_not_tell_is_asked_of_imds():
    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        node.region.faults.inject(
            Fault(action="DescribeSubnets", kind="error", code="UnauthorizedOperation", times=10_000)
        )
        await node.start()
        await node.ready()
        await asyncio.sleep(10)
        for number in range(15):
            await node.add(f"pod-{number}")
        await node.stop()

    run_virtual(scenario())


def test_new_enis_get_the_security_groups_that_the_primary_has_now():
    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        await node.kill()
        group = node.region.add_security_group(node.subnet.vpc.id, "new")
        node.region.perform(
            "ModifyNetworkInterfaceAttribute",
            {"NetworkInterfaceId": node.instance.primary_eni.id, "Groups": [group.id]},
            node.now(),
        )
        await node.start()
        await asyncio.sleep(10)
        for number in range(15):
            await node.add(f"pod-{number}")
        later = [eni for eni in node.region.world.enis.values() if eni.id != node.instance.primary_eni.id]
        newest = max(later, key=lambda eni: eni.attachment.device_index if eni.attachment else 0)
        assert [each.id for each in newest.groups] == [group.id]
        await node.stop()

    run_virtual(scenario())


def test_an_eni_whose_link_never_comes_is_named_and_given_back():
    async def scenario():
        node = Node("m5.large", latency_s=REALISTIC_LATENCY_S)
        await node.start()
        await node.ready()
        plug, node.kernel.plug = node.kernel.plug, lambda *_, **__: 0  # type: ignore[method-assign]
        await node.add("first")
        await asyncio.sleep(70)
        stuck = [held.facts.id for held in node.agent.writer.state.enis.values() if not held.is_link_ready]
        assert len(stuck) >= 1
        said = node.agent.status()["problems"]["links"]
        assert stuck[0] in "".join(said)
        node.kernel.plug = plug  # type: ignore[method-assign]
        await asyncio.sleep(500)
        assert stuck[0] not in node.region.world.enis
        assert not node.agent.status()["problems"]["links"]
        await node.stop()

    run_virtual(scenario())
