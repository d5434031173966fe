"""A few simulated machines for one scenario: no chance in it, and every promise checked as it goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from vpccni.lab.ec2 import REALISTIC_LATENCY_S, LinkPlugged, LinkUnplugged, Region, Timing
from vpccni.lab.sim.cloud import Cloud
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.injector import Injector
from vpccni.lab.sim.invariants import Checker
from vpccni.lab.sim.loop import VirtualLoop, run_virtual
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.lab.sim.trace import Trace
from vpccni.lab.sim.workload import Kubelet
from vpccni.loops.agent import Agent
from vpccni.projections.state import State
from vpccni.settings import read_settings


class Stage:
    """One region; ``broken`` is the first promise that did not hold."""

    def __init__(self, subnet: str = "10.0.0.0/24") -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.broken = ""
        self.region = Region(
            7,
            timing=Timing(attach_settle_s=0.8, detach_settle_s=3.0, link_delay_s=0.3),
            latency_s=REALISTIC_LATENCY_S,
        )
        vpc = self.region.add_vpc("10.0.0.0/16")
        self.subnet = self.region.add_subnet(vpc.id, "a", subnet)
        self.trace = Trace(loop)
        self.checker = Checker(self.region, 30.0, self.report)
        self.cloud = Cloud(self.region, loop, self.trace, self.checker)
        self.nodes: list[SimNode] = []
        self.kubelets: dict[str, Kubelet] = {}
        self.region.subscribe(self._on_link)

    # -- observers

    def report(self, text: str) -> None:
        self.broken = self.broken or text

    def on_commit(self, node, batch) -> None:
        self.checker.on_commit(node, batch)

    def on_start(self, node) -> None:
        self.checker.audit(node)

    def on_exit(self, node, error) -> None:
        self.report(f"{node.name} ended by itself: {error!r}")

    def _on_link(self, event) -> None:
        for node in self.nodes:
            if isinstance(event, LinkPlugged) and event.instance_id == node.instance.id:
                node.plugged(event)
            elif isinstance(event, LinkUnplugged) and event.instance_id == node.instance.id:
                node.unplugged(event.mac)

    # -- what a scenario does

    def machine(self, kind: str = "m5.large", environ: dict[str, str] | None = None) -> SimNode:
        node = SimNode(
            name=f"n{len(self.nodes)}",
            loop=self.loop,
            cloud=self.cloud,
            instance=self.region.launch_instance(self.subnet.id, kind, now=self.loop.time()),
            settings=read_settings(environ or {}),
            trace=self.trace,
            observer=self,
            seed=1,
        )
        self.nodes.append(node)
        self.kubelets[node.name] = Kubelet(node, self.checker, "stage", lambda: None)
        self.checker.follow(node)
        node.plug_all()
        return node

    async def started(self, kind: str = "m5.large", environ: dict[str, str] | None = None) -> SimNode:
        node = self.machine(kind, environ)
        node.start()
        await self.ready(node)
        await asyncio.sleep(10)
        return node

    async def ready(self, node: SimNode, within_s: float = 120.0) -> None:
        async with asyncio.timeout(within_s):
            while node.agent is None or node.agent.readiness.refusal() is not None:
                await asyncio.sleep(0.1)

    def strike(self, node: SimNode, **fault: Any) -> None:
        """Let one of the simulator's faults happen."""
        injector = Injector(
            region=self.region,
            nodes=self.nodes,
            loop=self.loop,
            trace=self.trace,
            on_reboot=self._on_reboot,
        )
        injector.strike(Fault(at=0.0, node=self.nodes.index(node), **fault))

    def _on_reboot(self, node: SimNode) -> None:
        self.kubelets[node.name].reboot()
        self.checker.on_boot(node)

    async def pods(self, node: SimNode, count: int) -> list[Sandbox]:
        """So many pods at once; each must get its address."""
        kubelet = self.kubelets[node.name]
        made = [kubelet._new_sandbox(f"{node.name}-{kubelet._sandboxes + 1}-{n}") for n in range(count)]
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(kubelet._add(sandbox)) for sandbox in made]
        assert all(add.result() for add in adds), kubelet._refusal
        return made

    async def delete(self, node: SimNode, *sandboxes: Sandbox, how: str = "plain") -> None:
        for sandbox in sandboxes:
            await self.kubelets[node.name]._delete(sandbox, how, random.Random(1))

    async def again(self, node: SimNode, *sandboxes: Sandbox) -> None:
        """Every ADD once more: the same address, or the promise is broken."""
        for sandbox in sandboxes:
            await self.kubelets[node.name]._repeat(sandbox, "ADD")

    def agent(self, node: SimNode) -> Agent:
        """The agent that runs."""
        assert node.agent is not None
        return node.agent

    def state(self, node: SimNode) -> State:
        """Its books."""
        return self.agent(node).writer.state

    def eni_of(self, sandbox: Sandbox) -> Any:
        """Where EC2 has a pod's address."""
        enis = self.region.world.enis.values()
        return next(eni for eni in enis if sandbox.address in eni.secondaries)

    def primary_of(self, node: SimNode) -> Any:
        return node.instance.primary_eni

    def owned(self, node: SimNode) -> set[str]:
        """What EC2 routes to the node's ENIs, their own addresses left out."""
        return {address for eni in node.instance.enis.values() for address in eni.secondaries}

    def calls(self, action: str) -> int:
        return self.region.journal.count_by_action[action]


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario; fails when a promise was broken on the way."""

    async def run() -> None:
        stage = Stage()
        await scenario(stage)
        assert not stage.broken, stage.broken

    run_virtual(run())
