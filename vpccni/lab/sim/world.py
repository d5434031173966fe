"""A whole simulated region: nodes with real agents, pods that come and go, and everything that goes wrong."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

import msgspec
import structlog

from vpccni.lab.ec2 import REALISTIC_LATENCY_S, LinkEvent, LinkPlugged, LinkUnplugged, Region, Timing
from vpccni.lab.sim.cloud import Cloud
from vpccni.lab.sim.faults import WAYS, Fault, draw_faults
from vpccni.lab.sim.injector import Injector
from vpccni.lab.sim.invariants import Checker
from vpccni.lab.sim.loop import VirtualLoop, run_virtual
from vpccni.lab.sim.misleading import HIDES_LIVING
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.rollout import Birth
from vpccni.lab.sim.trace import Trace
from vpccni.lab.sim.workload import Kubelet
from vpccni.settings import read_settings

REST_S: Final = 3900.0
"""From the last fault to the last look: the hourly look for ENIs left behind, and some."""
FAULT_EVERY_S: Final = (15.0, 5.0, 10.0, 30.0)
"""Mean distance of faults; a seed has one of these."""
SETTLED_S: Final = 600.0
"""After so long every open intent has been settled."""
BEGIN_S: Final = 20.0
BAKED_AT_S: Final = 240.0
"""When a machine is started whose disk is an image of another one's."""
BORN_UNDER_ORIGINAL: Final = 0.2
"""The share of nodes that begin their life under the original."""
WAITING_EVERY_S: Final = 5.0
AUDIT_EVERY: Final = 250
"""Operations between two audits of all nodes."""

KINDS_OF_NODE: Final[tuple[tuple[str, int, dict[str, str]], ...]] = (
    ("m5.large", 22, {}),
    ("m5.xlarge", 45, {"WARM_IP_TARGET": "3", "MINIMUM_IP_TARGET": "6"}),
    ("t3.medium", 12, {"WARM_ENI_TARGET": "1"}),
    ("m5.large", 24, {"WARM_IP_TARGET": "2"}),
    ("c5.xlarge", 40, {"WARM_ENI_TARGET": "0"}),
)
"""Instance type, most pods at once, environment: nodes are made of these in turn."""


class Outcome(msgspec.Struct, kw_only=True):
    """What a simulation came to.

    Attributes:
        broken: The first promise that did not hold; empty when all did.
        node: The node that it was about, as far as that is known.
        digest: SHA-256 of the trace.
        stays: Leases of dead sandboxes that nothing can end before a boot: no two sources could tell.
    """

    seed: int
    operations: int
    nodes: int
    broken: str
    broken_at_s: float
    node: str
    digest: str
    lines: int
    virtual_s: float
    faults: int
    checks: int
    events: int
    starts: int
    ec2_calls: int
    stays: int = 0


class World:
    """One simulation."""

    def __init__(
        self, *, seed: int, operations: int, nodes: int, faults: Sequence[Fault] | None, file: TextIO | None
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise TypeError("a world lives on a virtual loop")
        self.loop = loop
        self.seed = seed
        self.wanted = operations
        self.operations = 0
        self.progress: Callable[[int], None] | None = None
        self.broken = ""
        self.broken_at_s = 0.0
        self.trace = Trace(loop, file)
        self._ended = asyncio.Event()
        loop.set_exception_handler(self._on_unhandled)
        self.region = self._new_region(nodes)
        self.checker = Checker(self.region, 30.0, self.report)
        self.cloud = Cloud(self.region, loop, self.trace, self.checker)
        self.nodes = [self._new_node(number) for number in range(nodes)]
        self.region.subscribe(self._on_link)
        self.kubelets = [
            Kubelet(node, self.checker, str(seed), self._count, gc_forgets=is_gc_forgetful(seed))
            for node in self.nodes
        ]
        self.injector = Injector(
            region=self.region, nodes=self.nodes, loop=loop, trace=self.trace, on_reboot=self._on_reboot
        )
        if faults is None:
            faults = plan_of(seed, operations=operations, nodes=nodes)
        self._faults = faults

    def _new_region(self, nodes: int) -> Region:
        region = Region(
            self.seed,
            timing=Timing(
                attach_settle_s=0.8, detach_settle_s=3.0, link_delay_s=(0.3, 2.0)[self.seed % 5 == 0]
            ),
            latency_s=REALISTIC_LATENCY_S,
        )
        vpc = region.add_vpc("10.0.0.0/16")
        # Tight, every third time too tight: what one node gives back, another one soon gets.
        size = (25 if nodes <= 3 else 24 if nodes <= 6 else 22) + (self.seed % 3 == 0)
        self._subnet = region.add_subnet(vpc.id, "a", f"10.0.0.0/{size}")
        return region

    def _new_node(self, number: int) -> SimNode:
        kind, _, environ = KINDS_OF_NODE[number % len(KINDS_OF_NODE)]
        name = f"n{number}"
        instance = self.region.launch_instance(self._subnet.id, kind, now=self.loop.time())
        node = SimNode(
            name=name,
            loop=self.loop,
            cloud=self.cloud,
            instance=instance,
            settings=read_settings(environ),
            trace=self.trace,
            observer=self,
            watcher=self.checker,
            seed=self.seed,
        )
        self.checker.follow(node)
        node.plug_all()
        return node

    # -- what is told -----------------------------------------------------------------------------

    def report(self, text: str) -> None:
        """A promise is broken: the first one ends the simulation."""
        self.trace(f"BROKEN {text}")
        if not self.broken:
            self.broken, self.broken_at_s = text, self.loop.time()
            self._ended.set()

    def on_commit(self, node: SimNode, batch: Sequence[Any]) -> None:
        """See :class:`vpccni.lab.sim.node.Observer`."""
        self.checker.on_commit(node, batch)

    def on_start(self, node: SimNode) -> None:
        """See :class:`vpccni.lab.sim.node.Observer`."""
        self.checker.audit(node)
        self.checker.after_boot(node)

    def on_exit(self, node: SimNode, error: BaseException | None) -> None:
        """See :class:`vpccni.lab.sim.node.Observer`."""
        self.report(f"{node.name}: the agent ended by itself: {_leaves(error)}")

    def _on_link(self, event: LinkEvent) -> None:
        if not isinstance(event, LinkPlugged | LinkUnplugged):
            return
        node = next((node for node in self.nodes if node.instance.id == event.instance_id), None)
        if node is None:
            return
        if isinstance(event, LinkPlugged):
            node.plugged(event)
        else:
            node.unplugged(event.mac)

    def _on_reboot(self, node: SimNode) -> None:
        self.kubelets[self.nodes.index(node)].reboot()
        self.checker.on_boot(node)

    def _on_unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.trace(f"unhandled {type(context.get('exception')).__name__}")
        if "handle" in context:  # A callback of the world's: whatever it was to do is not done.
            self.report(f"the simulator itself failed: {context.get('exception')!r}")

    def _count(self) -> None:
        self.operations += 1
        if self.operations % AUDIT_EVERY == 0:
            for node in self.nodes:
                self.checker.audit(node)
            if self.progress is not None:
                self.progress(self.operations)
        if self.operations >= self.wanted:
            self._ended.set()

    def _look_at_waiting(self) -> None:
        for node in self.nodes:
            self.checker.look_at_waiting(node)
        self.loop.call_outside(WAITING_EVERY_S, self._look_at_waiting)

    # -- the run ----------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Everything, from the first start to the last look."""
        self.nodes[-1].is_dormant = self.seed % 3 == 1 and len(self.nodes) > 1
        self.loop.call_outside(WAITING_EVERY_S, self._look_at_waiting)
        self.injector.arm(self._faults)
        running = [
            self.loop.create_task(self._live(number), name="kubelet") for number in range(len(self.nodes))
        ]
        for task in running:
            task.add_done_callback(self._on_kubelet_done)
        await self._ended.wait()
        if not self.broken:
            await self._rest(running)
        digest = self.trace.digest()
        return Outcome(
            seed=self.seed,
            operations=self.operations,
            nodes=len(self.nodes),
            broken=self.broken,
            broken_at_s=self.broken_at_s,
            node=next((node.name for node in self.nodes if node.name in self.broken), ""),
            digest=digest,
            lines=self.trace.lines,
            virtual_s=self.loop.time(),
            faults=self.injector.struck,
            checks=self.checker.checks,
            events=sum(len(node.store.events) for node in self.nodes),
            starts=sum(node.starts for node in self.nodes),
            ec2_calls=len(self.region.journal),
            stays=len(self.checker.stays),
        )

    async def _live(self, number: int) -> None:
        node = self.nodes[number]
        if node.is_dormant:
            await asyncio.sleep(BAKED_AT_S)
            node.bake(self.nodes[0])
            self.checker.on_disk_changed(node)
        birth = birth_of(self.seed, number)
        if birth is None or node.is_dormant:
            node.start()
        else:
            self.injector.rollout.begin_with_original(
                node, birth, random.Random(f"{self.seed} {number} born")
            )
        await self.kubelets[number].run(KINDS_OF_NODE[number % len(KINDS_OF_NODE)][1])

    def _on_kubelet_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.report(f"the workload itself failed: {task.exception()!r}")

    async def _rest(self, running: Sequence[asyncio.Task[None]]) -> None:
        """No more faults; everything comes to an end; then a long rest and the last look."""
        self.injector.heal()
        self._ended.clear()
        for kubelet in self.kubelets:
            await self._unless_broken(kubelet.close())
        for task in running:
            await self._unless_broken(_wait(task))
        await self._unless_broken(asyncio.sleep(SETTLED_S))
        if not is_ec2_denying(self.seed):
            self.checker.no_orphans()
        await self._unless_broken(asyncio.sleep(REST_S - SETTLED_S))
        if not self.broken:
            self.checker.finish()
        for kubelet in self.kubelets:
            await self._unless_broken(kubelet.probe())

    async def _unless_broken(self, work: Any) -> None:
        task = self.loop.create_task(work, name="rest")
        ended = self.loop.create_task(self._ended.wait(), name="ended")
        while not task.done() and not self.broken:
            await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
            self._ended.clear()
            if ended.done():
                ended = self.loop.create_task(self._ended.wait(), name="ended")


async def _wait(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


def _leaves(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def plan_of(seed: int, *, operations: int, nodes: int) -> tuple[Fault, ...]:
    """The faults of a seed: for longer than the operations can take."""
    faults = draw_faults(
        seed,
        nodes=nodes,
        begin_s=BEGIN_S,
        end_s=BEGIN_S + 60.0 + operations * 60.0 / nodes,
        every_s=FAULT_EVERY_S[seed % len(FAULT_EVERY_S)],
    )
    truthful = "blind" if is_gc_forgetful(seed) else "api_stale"
    return tuple(
        msgspec.structs.replace(fault, flag=tuple(one for one in fault.flag if is_way_fair(seed, one)))
        for fault in faults
        if fault.how != truthful
        and is_way_fair(seed, fault.how)
        and (is_ec2_denying(seed) or not _is_denial(fault))
    )


def _is_denial(fault: Fault) -> bool:
    return fault.kind == "describe_short" or fault.code.endswith("NotFound")


def birth_of(seed: int, number: int) -> Birth | None:
    """How a node begins under the original; ``None`` for most, which are new."""
    rng = random.Random(f"birth {seed} {number}")
    if rng.random() >= BORN_UNDER_ORIGINAL:
        return None
    ways = tuple(way for way in rng.sample(WAYS, rng.choice((0, 0, 1, 2))) if is_way_fair(seed, way))
    return Birth(rng.choice((20.0, 60.0, 180.0)) * rng.uniform(0.7, 1.3), rng.choice((0.1, 2.0, 40.0)), ways)


def is_way_fair(seed: int, way: str) -> bool:
    """Whether a source may be wrong in that way: two that lie about one sandbox at the same time are believed."""
    return is_gc_forgetful(seed) or way not in HIDES_LIVING


def is_ec2_denying(seed: int) -> bool:
    """Whether EC2 leaves out, for minutes, what there is, or calls it unknown.

    An ENI that it denies is made anew, and the first one found by the hourly look alone.
    """
    return seed % 11 < 4


def is_gc_forgetful(seed: int) -> bool:
    """Whether the runtime's GC and the API server lie, or else the kernel: two witnesses at once are believed."""
    return seed % 2 == 1


def simulate(
    *,
    seed: int,
    operations: int,
    nodes: int,
    faults: Sequence[Fault] | None = None,
    file: TextIO | None = None,
    look: Callable[[World], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Run one simulation to its end, or to the first broken promise.

    Args:
        seed: Same seed, same arguments: same trace.
        operations: ADDs and DELs to send.
        nodes: How many machines.
        faults: Instead of those that the seed gives.
        file: Gets the trace.
        look: Is shown the world when everything is over.
        progress: Called now and then with the operations so far.
    """
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

    async def run() -> Outcome:
        world = World(seed=seed, operations=operations, nodes=nodes, faults=faults, file=file)
        world.progress = progress
        outcome = await world.run()
        if look is not None:
            look(world)
        return outcome

    try:
        return run_virtual(run())
    finally:
        structlog.configure(**before)
