"""What the region says of links, done in the fabric: in order, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn, assert_never

from vpccni.lab.ec2 import AddressesChanged, LinkEvent, LinkPlugged, LinkUnplugged, Region
from vpccni.lab.fabric.fabric import Fabric
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.fabric.plugs import EniPlug


class Cabling:
    """Follows a region's link events and plugs, unplugs and readdresses ENIs.

    The region tells of an event while it applies the call, and must not be called back then: events are
    queued, and ``run`` carries them out. So the VPC may route a new address some milliseconds after EC2's
    answer, as the real one does.

    Args:
        region: Whose events are followed, from now on.
        fabric: Where they are carried out.
        node_of: The node's namespace by instance id, or None for an instance that is none of the lab's nodes.
    """

    def __init__(self, region: Region, fabric: Fabric, node_of: Callable[[str], Namespace | None]) -> None:
        self._fabric = fabric
        self._node_of = node_of
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._plugged: set[str] = set()
        self._stop_listening = region.subscribe(self._events.put_nowait)

    async def run(self) -> NoReturn:
        """Carry out events until cancelled. An error of the fabric is a bug, and ends the lab."""
        while True:
            event = await self._events.get()
            try:
                await self._carry_out(event)
            finally:
                self._events.task_done()

    async def wait_idle(self) -> None:
        """Wait until everything that the region told so far is carried out."""
        await self._events.join()

    def stop(self) -> None:
        """Follow the region no longer."""
        self._stop_listening()

    async def _carry_out(self, event: LinkEvent) -> None:
        match event:
            case LinkPlugged():
                await self._plug(event)
            case LinkUnplugged(eni_id=eni_id):
                if eni_id in self._plugged:
                    self._plugged.discard(eni_id)
                    await self._fabric.unplug(eni_id)
            case AddressesChanged(eni_id=eni_id, addresses=addresses, prefixes=prefixes):
                if eni_id in self._plugged:  # otherwise the plug event will say it all
                    await self._fabric.set_addresses(eni_id, (*addresses, *prefixes))
            case _:
                assert_never(event)

    async def _plug(self, event: LinkPlugged) -> None:
        node = self._node_of(event.instance_id)
        if node is None:
            return
        plug = EniPlug(
            eni_id=event.eni_id,
            mac=event.mac,
            device_index=event.device_index,
            card=event.card,
            subnet_cidr=event.subnet_cidr,
            primary=event.primary,
            addresses=(*event.secondaries, *event.prefixes),
            public_ip=event.public_ip,
        )
        await self._fabric.plug(node, plug)
        self._plugged.add(event.eni_id)
