"""One emulated node on virtual time: the real agent over an emulated EC2, IMDS, kernel, log and spool."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

from tests.fakes.checkpoint import FakeCheckpoints
from tests.fakes.ec2 import region_ec2
from tests.fakes.imds import region_imds
from tests.fakes.kernel import FakeKernel
from tests.fakes.predecessor import FakePredecessor
from tests.fakes.runtime import FakeRuntimeCache
from tests.fakes.spool import FakeSpool
from vpccni.adapters.log_memory import MemoryLog, MemoryStore
from vpccni.lab.ec2 import REALISTIC_LATENCY_S, LinkPlugged, LinkUnplugged, Region, Timing
from vpccni.loops.agent import Agent, Ports
from vpccni.model import Stamp
from vpccni.settings import read_settings


class VirtualClock:
    """Wall and boot time that follow the loop."""

    def __init__(self) -> None:
        self.boot_id = "boot-1"
        self.wall_offset_ns = 1_780_000_000 * 10**9
        self.boot_offset_ns = 10 * 10**9

    def now(self) -> Stamp:
        passed = int(asyncio.get_running_loop().time() * 1e9)
        return Stamp(self.wall_offset_ns + passed, self.boot_offset_ns + passed, self.boot_id)


class Node:
    """A node of an emulated region. ``start``, ``kill`` and ``start`` again; the log's store survives."""

    def __init__(
        self, instance_type: str = "m5.xlarge", environ: dict[str, str] | None = None, **region
    ) -> None:
        self.now: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        self.region = Region(7, timing=Timing(**region.pop("timing", {})), **region)
        vpc = self.region.add_vpc("10.0.0.0/16")
        self.subnet = self.region.add_subnet(vpc.id, "a", "10.0.0.0/20")
        self.kernel = FakeKernel()
        self.region.subscribe(self._on_link)
        self.instance = self.region.launch_instance(self.subnet.id, instance_type, now=0.0)
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.spool = FakeSpool()
        self.checkpoints = FakeCheckpoints(now_ns=lambda: self.clock.now().wall_ns)
        self.predecessor = FakePredecessor()
        self.is_marked = False
        self.settings = read_settings(environ or {})
        self.agent: Any = None  # an Agent from the first start on
        self._running: Any = None
        self._ec2 = None

    def mark_ready(self, is_ready: bool) -> None:
        """What STATUS would be answered by while no agent is there."""
        self.is_marked = is_ready

    def _on_link(self, event) -> None:
        if isinstance(event, LinkPlugged):
            self.kernel.plug(event.mac, f"ens{5 + event.device_index}")
        elif isinstance(event, LinkUnplugged):
            self.kernel.unplug(event.mac)

    async def start(self) -> Any:
        ec2 = region_ec2(self.region, self.now)

        async def get_ec2():
            return ec2

        async def get_kubernetes():
            return None

        ports = Ports(
            log=MemoryLog(self.store),
            clock=self.clock,
            ec2=get_ec2,
            imds=region_imds(self.region, self.instance.id, self.now),
            kubernetes=get_kubernetes,
            kernel=self.kernel,
            runtime=FakeRuntimeCache(),
            spool=self.spool,
            checkpoints=self.checkpoints,
            predecessor=self.predecessor,
            mark_ready=self.mark_ready,
        )
        self.agent = Agent(self.settings, ports, random.Random(1))
        await self.agent.start()
        self._running = asyncio.get_running_loop().create_task(self.agent.run())
        return self.agent

    async def kill(self) -> None:
        """As SIGKILL: nothing is finished, nothing is told."""
        self.store.crash()
        self._running.cancel()
        self.agent._writing.cancel()
        await asyncio.wait([self._running, self.agent._writing])

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        await self.agent.stop()

    async def ready(self, timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while self.agent.readiness.refusal() is not None:
                await asyncio.sleep(0.05)

    async def cni(self, command: str, pod: str, **more):
        netns = f"/run/netns/{pod}"
        if command == "ADD" and netns not in self.kernel.state.netns:
            self.kernel.add_netns(netns)
        body = {
            "command": command,
            "containerId": more.get("container_id", pod),
            "netns": netns,
            "ifname": "eth0",
            "args": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}",
            "path": "/opt/cni/bin",
            "config": {"cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni"},
        }
        reply = await self.agent.cni.handle(json.dumps(body).encode())
        return reply.status, json.loads(reply.body)

    async def add(self, pod: str, **more) -> str:
        status, answer = await self.cni("ADD", pod, **more)
        assert status == 200, answer
        return str(answer["ips"][0]["address"]).removesuffix("/32")


__all__ = ["REALISTIC_LATENCY_S", "Node"]
