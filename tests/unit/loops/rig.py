"""A whole node on virtual time with its outside in the test's hand: runtime cache, API server, log, kernel."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from tests.fakes.ec2 import region_ec2
from tests.fakes.imds import region_imds
from tests.fakes.kubernetes import FakeKubernetesNode
from tests.fakes.runtime import FakeRuntimeCache
from tests.sim.node import REALISTIC_LATENCY_S, Node
from vpccni.adapters.log_memory import MemoryLog
from vpccni.loops.agent import Agent, Ports
from vpccni.model import InstanceId, LeaseId, SandboxKey
from vpccni.projections.leases import Lease

NETWORK = "aws-cni"


class Rig(Node):
    """``Node`` whose second sources can be set.

    Attributes:
        runtime: What the runtime's cache knows; not readable until a test says so.
        kubernetes: The API server; ``None`` for none.
        imds_names: The instance that IMDS takes this machine for; empty for the right one.
    """

    def __init__(
        self, instance_type: str = "m5.large", environ: dict[str, str] | None = None, **region: Any
    ) -> None:
        region.setdefault("latency_s", REALISTIC_LATENCY_S)
        super().__init__(instance_type, environ, **region)
        self.runtime = FakeRuntimeCache()
        self.runtime.is_readable = False
        self.kubernetes: FakeKubernetesNode | None = None
        self.imds_names = InstanceId("")

    async def start(self) -> Any:
        ec2 = region_ec2(self.region, self.now)

        async def get_ec2():
            return ec2

        async def get_kubernetes():
            return self.kubernetes

        self.log = MemoryLog(self.store)
        ports = Ports(
            log=self.log,
            clock=self.clock,
            ec2=get_ec2,
            imds=region_imds(self.region, self.imds_names or self.instance.id, self.now),
            kubernetes=get_kubernetes,
            kernel=self.kernel,
            runtime=self.runtime,
            spool=self.spool,
            checkpoints=self.checkpoints,
            predecessor=self.predecessor,
            mark_ready=self.mark_ready,
        )
        self.agent = Agent(self.settings, ports, random.Random(1))
        await self.agent.start()
        self._running = asyncio.get_running_loop().create_task(self.agent.run())
        return self.agent

    async def stop(self) -> None:
        assert self._running is not None
        if self._running.done():
            self._running.result()  # A loop ended: the test fails with its error.
        await super().stop()
        await self.log.close()

    async def up(self, settle_s: float = 5.0) -> Rig:
        """Start, be ready, and let the pool fill."""
        await self.start()
        await self.ready()
        await asyncio.sleep(settle_s)
        return self

    @property
    def live(self) -> Any:
        """The agent that runs."""
        assert self.agent is not None
        return self.agent

    @property
    def state(self) -> Any:
        """The durable state."""
        return self.live.writer.state

    def lease(self, pod: str) -> Any:
        """The open lease of a pod."""
        return self.state.lease_of(SandboxKey(NETWORK, pod, "eth0"))

    def held(self, pod: str) -> Any:
        """The open lease of a pod, which must be there."""
        found = self.lease(pod)
        assert found is not None
        return found

    def kinds(self) -> list[str]:
        """Kinds of all durable events, in order."""
        return [stored.kind for stored in self.store.events]

    def calls(self) -> dict[str, int]:
        """EC2 calls that arrived, by action."""
        return dict(self.region.journal.count_by_action)

    async def send(self, body: Any) -> tuple[int, Any]:
        """Any request; the status and the answer."""
        reply = await self.live.cni.handle(json.dumps(body).encode())
        return reply.status, json.loads(reply.body)

    async def verb(self, command: str, pod: str = "", **config: Any) -> tuple[int, Any]:
        """A verb in version 1.1.0 with more in its configuration."""
        return await self.send(
            {
                "command": command,
                "containerId": pod,
                "netns": f"/run/netns/{pod}" if pod else "",
                "ifname": "eth0" if pod else "",
                "config": {"cniVersion": "1.1.0", "name": NETWORK, "type": "aws-cni"} | config,
            }
        )

    async def gc(self, *valid: str) -> tuple[int, Any]:
        """The runtime's GC: these pods it still has."""
        listed = [{"containerID": pod, "ifname": "eth0"} for pod in valid]
        config = {"cniVersion": "1.1.0", "name": NETWORK, "cni.dev/valid-attachments": listed}
        return await self.send({"command": "GC", "config": config})


def lease_id(lease: Lease | None) -> LeaseId:
    """Its id; 0 for none."""
    return lease.id if lease is not None else LeaseId(0)
