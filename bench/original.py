"""A node on which amazon-vpc-cni-k8s has wired pods, played by the script of the tests, and its daemon is gone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bench.stage import BenchError
from tests.libcni import cache_entry, write_entry
from tests.original import wiring
from tests.original.checkpoint import Row
from tests.original.host import Eni, Settings
from tests.original.node import OriginalNode, Pod
from vpccni.lab.ec2 import Ec2Fault
from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.lab import Lab, LabNode

ADDRESSES_EACH: Final = 29
_WIRERS: Final = 4
NAMESPACE: Final = "bench"


def in_namespace(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of libcni's cache, for a pod in the namespace of the pods here."""
    arguments = [[key, NAMESPACE if key == "K8S_POD_NAMESPACE" else value] for key, value in entry["cniArgs"]]
    return {**entry, "cniArgs": arguments}


class Predecessor:
    """The original's node: as many ENIs as its type takes, all full of addresses, and pods on them.

    Attributes:
        addresses: Of the pods, by name.
        sandboxes: Their namespaces, by name.
    """

    def __init__(self, lab: Lab, node: LabNode) -> None:
        self.lab = lab
        self.node = node
        self.addresses: dict[str, str] = {}
        self.sandboxes: dict[str, Namespace] = {}
        self._enis: list[str] = []

    async def attach(self, enis: int) -> None:
        """Make and attach ENIs, and give each its addresses; EC2 is called directly, and takes no time."""
        primary = self.lab.region.world.instances[self.node.instance_id].primary_eni
        self._enis = [primary.id]
        for device in range(1, enis):
            made = self._ec2("CreateNetworkInterface", SubnetId=primary.subnet.id)
            self._enis.append(made["NetworkInterface"]["NetworkInterfaceId"])
            self._ec2(
                "AttachNetworkInterface",
                NetworkInterfaceId=self._enis[-1],
                InstanceId=self.node.instance_id,
                DeviceIndex=device,
            )
        for eni in self._enis:
            self._ec2(
                "AssignPrivateIpAddresses",
                NetworkInterfaceId=eni,
                SecondaryPrivateIpAddressCount=ADDRESSES_EACH,
            )
        self.lab.region.advance(time.time() + 1)
        await self.lab.settle()

    def live(self, names: list[str]) -> None:
        """Start the original, let it wire the pods, and end it. Blocks for some ten seconds.

        Files are written as it and the runtime write them: ``ipam.json`` and a cached result for each pod.
        """
        enis = [self._eni(device) for device in range(len(self._enis))]
        original = OriginalNode(
            self.node.namespace.path,
            enis=enis,
            run_directory=self.node.places.run,
            settings=Settings(vpc_cidrs=("10.0.0.0/16",), iptables=""),
        )
        free = self._spread(enis)
        with original.running(), ThreadPoolExecutor(_WIRERS) as threads:
            for name in names:
                self.sandboxes[name] = namespaces.create(f"{self.node.name}-{name}")
                namespaces.set_lo_up(self.sandboxes[name])
                self.addresses[name] = next(free)
            list(threads.map(lambda name: self._wire(enis, name), names))
            for name in names:
                # Nothing is left to wire: this gives the pod its row.
                self._remember(original.add(NAMESPACE, name, until="create_veth", **self._call(name)))

    def remove(self) -> None:
        """Remove the pods' namespaces."""
        for sandbox in self.sandboxes.values():
            namespaces.remove(sandbox)

    def _spread(self, enis: list[Eni]) -> Iterator[str]:
        """Addresses of all ENIs in turns."""
        return (
            address for several in zip(*(eni.addresses for eni in enis), strict=True) for address in several
        )

    def _wire(self, enis: list[Eni], name: str) -> None:
        address = self.addresses[name]
        table = next(eni.table for eni in enis if eni.holds(address))
        netns = self.sandboxes[name].path
        wiring.wire(self.node.namespace.path, NAMESPACE, name, netns=netns, address=address, table=table)

    def _call(self, name: str) -> dict[str, Any]:
        container_id = hashlib.sha256(name.encode()).hexdigest()
        return {
            "netns": self.sandboxes[name].path,
            "container_id": container_id,
            "address": self.addresses[name],
        }

    def _remember(self, pod: Pod) -> None:
        row: Row = pod.row
        entry = cache_entry(row.container_id, result=pod.result, netns=pod.netns, pod=row.name)
        write_entry(self.node.places.results, in_namespace(entry))

    def _ec2(self, action: str, **params: Any) -> Any:
        answer = self.lab.region.perform(action, params, time.time())
        if isinstance(answer, Ec2Fault):
            raise BenchError(f"{action}: {answer}")
        return answer

    def _eni(self, device: int) -> Eni:
        eni = self.lab.region.world.enis[self._enis[device]]
        return Eni(
            mac=eni.mac,
            device=device,
            primary=eni.primary,
            subnet=str(eni.subnet.cidr),
            addresses=tuple(eni.secondaries),
        )
