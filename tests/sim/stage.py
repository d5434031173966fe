"""A few simulated machines for one scenario: no chance in it, and every promise checked as it goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from vpccni.events.adoption import NodeSurveyed
from vpccni.lab.ec2 import REALISTIC_LATENCY_S, LinkPlugged, LinkUnplugged, Region, Timing
from vpccni.lab.sim.cloud import Cloud
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.injector import Injector
from vpccni.lab.sim.invariants import Checker
from vpccni.lab.sim.loop import VirtualLoop, run_virtual
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.lab.sim.trace import Trace
from vpccni.lab.sim.workload import Kubelet
from vpccni.loops.agent import Agent
from vpccni.model import SandboxKey
from vpccni.projections.leases import Lease
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
            watcher=self.checker,
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

    # -- who serves

    async def provide(self, node: SimNode, count: int) -> None:
        """ENIs and so many addresses, as somebody who served here before has made them."""
        per_eni = node.instance.type.ipv4_per_eni - 1
        primary = self.primary_of(node)
        missing = min(count, per_eni) - len(primary.secondaries)
        if missing:
            self.perform(
                "AssignPrivateIpAddresses",
                NetworkInterfaceId=primary.id,
                SecondaryPrivateIpAddressCount=missing,
            )
        tags = [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": node.instance.id}]
        for device in range(1, -(-count // per_eni)):
            made = self.perform(
                "CreateNetworkInterface",
                SubnetId=self.subnet.id,
                SecondaryPrivateIpAddressCount=min(count - device * per_eni, per_eni),
                TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
            )
            eni = made["NetworkInterface"]["NetworkInterfaceId"]
            self.perform(
                "AttachNetworkInterface",
                NetworkInterfaceId=eni,
                InstanceId=node.instance.id,
                DeviceIndex=device,
            )
        await asyncio.sleep(5)
        assert len(self.owned(node)) == count

    async def with_original(self, node: SimNode) -> None:
        """amazon-vpc-cni-k8s starts on the node, and serves."""
        node.original.start()
        async with asyncio.timeout(60):
            while not node.original.is_serving:
                await asyncio.sleep(0.1)

    async def end_original(self, node: SimNode, grace_s: float = 10.0) -> None:
        """It is told to end, and is gone after its grace period."""
        node.original.terminate()
        await asyncio.sleep(grace_s)
        node.original.stop()

    async def replace_original(self, node: SimNode, grace_s: float = 10.0) -> None:
        """It ends, and we start, and put our executable in the place of its own."""
        await self.end_original(node, grace_s)
        node.start()
        async with asyncio.timeout(60):
            while node.plugin != "ours":
                await asyncio.sleep(0.05)

    async def end_ours(self, node: SimNode) -> None:
        """Our agent is told to end, and has."""
        node.stop(-1)
        async with asyncio.timeout(10):
            while not node.is_idle:
                await asyncio.sleep(0.05)

    async def handed_back(self, node: SimNode, within_s: float = 300.0) -> None:
        """An operator asks for it, and waits until it is said to be ready."""
        await self.agent(node).set_mode(b'{"mode": "hand_back"}')
        async with asyncio.timeout(within_s):
            while not (self.agent(node).hand_back.progress() or {}).get("is_ready"):
                await asyncio.sleep(0.5)
        node.handed_back_at = self.loop.time()

    def lose_log(self, node: SimNode, *, is_marker_left: bool = False) -> None:
        """The state directory is lost while no agent runs."""
        assert node.is_idle
        node.store.lose(is_marker_left=is_marker_left)
        self.checker.on_disk_changed(node)

    def lose_files(self, node: SimNode) -> None:
        """With it, the checkpoint file and the runtime's cache."""
        self.lose_log(node)
        node.checkpoints.files.clear()
        for key in sorted(node.cache.known):
            node.cache.drop(SandboxKey(*key))
        node.cache.modified_ns = 0

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

    def survey(self, node: SimNode) -> NodeSurveyed:
        """What its last search found."""
        found = self.state(node).survey
        assert found is not None
        return found

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

    def perform(self, action: str, **params: Any) -> dict[str, Any]:
        """Somebody else changes EC2."""
        answer = self.region.perform(action, params, self.loop.time())
        self.region.advance(self.loop.time())
        assert isinstance(answer, dict), answer
        return answer

    def refusal(self, node: SimNode) -> str:
        """Why the node does not serve; empty when it does."""
        refused = self.agent(node).readiness.refusal()
        return str(refused.reason) if refused is not None else ""

    def leased(self, node: SimNode) -> dict[str, Lease]:
        """Its leases and holds, by address."""
        return {
            binding.address: lease for lease in self.state(node).leases.values() for binding in lease.bindings
        }

    def living(self, node: SimNode) -> dict[str, Sandbox]:
        """The living pods by address, whoever wired them."""
        acked = self.checker._acked_at
        return {address: sandbox for address, sandbox in acked.items() if sandbox.node == node.name}


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]], subnet: str = "10.0.0.0/24") -> None:
    """Run a scenario; fails when a promise was broken on the way."""

    async def run() -> None:
        stage = Stage(subnet)
        try:
            await scenario(stage)
        except BrokenPromiseError as error:
            raise AssertionError(stage.broken or str(error)) from error
        except Exception as error:
            if stage.broken:  # What came after it may well come of it.
                raise AssertionError(stage.broken) from error
            raise
        assert not stage.broken, stage.broken

    run_virtual(run())
