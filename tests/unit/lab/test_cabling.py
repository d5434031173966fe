"""The region's link events, carried out in the fabric: here a fabric that writes down what it is told."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from vpccni.lab.cabling import Cabling
from vpccni.lab.ec2 import small_region
from vpccni.lab.fabric.namespaces import Namespace

NODE = Namespace("n", "/run/netns/n")


class NotingFabric:
    """Says what it was asked to do; ``gate`` holds it up."""

    def __init__(self):
        self.done = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def plug(self, node, plug):
        await self.gate.wait()
        self.done.append(("plug", node.name, plug.eni_id, plug.primary, plug.addresses))

    async def unplug(self, eni_id):
        self.done.append(("unplug", eni_id))

    async def set_addresses(self, eni_id, cidrs):
        self.done.append(("addresses", eni_id, tuple(cidrs)))


@pytest.fixture
def region():
    return small_region()


@pytest.fixture
def noting():
    return NotingFabric()


@asynccontextmanager
async def cabled(region, fabric, nodes):
    cabling = Cabling(region, fabric, nodes.get)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(cabling.run())
        yield cabling
        task.cancel()
    cabling.stop()


async def test_an_instance_is_plugged_and_later_addresses_follow_in_order(region, noting):
    nodes: dict[str, Namespace] = {}
    async with cabled(region, noting, nodes) as cabling:
        instance = region.launch_instance(next(iter(region.world.subnets)), "m5.large")
        nodes[instance.id] = NODE  # in the same turn as the launch: the event waits for it
        noting.gate.clear()
        eni = instance.primary_eni
        region.handle(
            "AssignPrivateIpAddresses",
            {"NetworkInterfaceId": eni.id, "SecondaryPrivateIpAddressCount": 2},
            1.0,
        )
        noting.gate.set()
        await cabling.wait_idle()
    assert noting.done == [
        ("plug", "n", eni.id, eni.primary, ()),
        ("addresses", eni.id, eni.addresses),
    ]


async def test_instances_of_others_and_enis_that_hang_nowhere_are_left_alone(region, noting):
    async with cabled(region, noting, {}) as cabling:
        region.launch_instance(next(iter(region.world.subnets)), "m5.large")
        made = region.handle("CreateNetworkInterface", {"SubnetId": next(iter(region.world.subnets))}, 1.0)
        region.handle(
            "AssignPrivateIpAddresses",
            {
                "NetworkInterfaceId": made["NetworkInterface"]["NetworkInterfaceId"],
                "SecondaryPrivateIpAddressCount": 1,
            },
            2.0,
        )
        await cabling.wait_idle()
    assert noting.done == []


async def test_an_eni_that_is_detached_is_unplugged_once(region, noting):
    nodes: dict[str, Namespace] = {}
    subnet = next(iter(region.world.subnets))
    async with cabled(region, noting, nodes) as cabling:
        instance = region.launch_instance(subnet, "m5.large")
        nodes[instance.id] = NODE
        eni = region.handle("CreateNetworkInterface", {"SubnetId": subnet}, 1.0)["NetworkInterface"]
        attached = region.handle(
            "AttachNetworkInterface",
            {"NetworkInterfaceId": eni["NetworkInterfaceId"], "InstanceId": instance.id, "DeviceIndex": 1},
            2.0,
        )
        region.handle("DetachNetworkInterface", {"AttachmentId": attached["AttachmentId"]}, 3.0)
        region.advance(100.0)
        await cabling.wait_idle()
    assert noting.done[-1] == ("unplug", eni["NetworkInterfaceId"])
    assert [what for what, *_ in noting.done].count("unplug") == 1


async def test_after_stop_the_region_is_followed_no_longer(region, noting):
    cabling = Cabling(region, noting, lambda _: None)
    cabling.stop()
    region.launch_instance(next(iter(region.world.subnets)), "m5.large")
    await cabling.wait_idle()
    assert noting.done == []
