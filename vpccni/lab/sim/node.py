"""One simulated machine: kernel, disk, clock, spool and runtime cache; and one agent after another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from vpccni.adapters.imds import ImdsV2
from vpccni.adapters.log_memory import MemoryLog, MemoryStore
from vpccni.errors import VpccniError
from vpccni.events.envelope import Stored
from vpccni.lab.ec2 import LinkPlugged, Region
from vpccni.lab.ec2.entities import Instance
from vpccni.lab.sim.checkpoint import FakeCheckpoints
from vpccni.lab.sim.cloud import Cloud
from vpccni.lab.sim.ec2 import adapter_over
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.kernel import FakeKernel
from vpccni.lab.sim.kubernetes import FakeKubernetesNode
from vpccni.lab.sim.loop import Life, VirtualLoop
from vpccni.lab.sim.predecessor import FakePredecessor
from vpccni.lab.sim.runtime import FakeRuntimeCache
from vpccni.lab.sim.spool import FakeSpool
from vpccni.lab.sim.trace import Trace
from vpccni.loops.agent import Agent, Ports
from vpccni.loops.serve_cni import Reply
from vpccni.model import Stamp
from vpccni.ports import Ec2, KubernetesNode
from vpccni.settings import Settings

EPOCH_NS: Final = 1_780_000_000 * 10**9
IMDS_TIMEOUT_S: Final = 2.0
STOP_DEADLINE_S: Final = 5.0
LINK_DELAY_S: Final = 0.05
KERNEL_LATENCY_S: Final = 0.002
SYNC_S: Final = 0.001


class Killed(BaseException):
    """The process died in the middle of a step of the kernel's."""


class AwayError(Exception):
    """Nobody answered in time."""


class Observer(Protocol):
    """Who is told what happens on a node."""

    def on_commit(self, node: SimNode, batch: Sequence[Stored]) -> None:
        """A batch reached the disk."""

    def on_start(self, node: SimNode) -> None:
        """An agent has read its log and accepts requests."""

    def on_exit(self, node: SimNode, error: BaseException | None) -> None:
        """An agent ended by itself."""


class VirtualClock:
    """Wall and boot time that follow the loop."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self.boots = 0
        self.wall_offset_ns = EPOCH_NS
        self._forward: list[int] = []
        self._booted_at_ns = -10 * 10**9
        self.boot_id = ""
        self.boot()

    def boot(self) -> None:
        """The machine starts anew."""
        self.boots += 1
        self.boot_id = f"{self._name}-boot-{self.boots}"
        if self.boots > 1:
            self._booted_at_ns = int(self._loop.time() * 1e9) - 5 * 10**9

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall_offset_ns += int(seconds * 1e9)
        if seconds > 0:
            self._forward.append(self.boots)

    def was_set_forward_over(self, boot_id: str) -> bool:
        """Whether time since that boot can only be measured by a wall clock that was set forward meanwhile."""
        boots = int(boot_id.rpartition("-")[2])
        return self.boots > boots and any(step >= boots for step in self._forward)

    def now(self) -> Stamp:
        """See ``Clock.now``."""
        passed = int(self._loop.time() * 1e9)
        return Stamp(self.wall_offset_ns + passed, passed - self._booted_at_ns, self.boot_id)


class Disk(MemoryStore):
    """The log's disk; tells of every batch that it keeps."""

    def __init__(self, told: Callable[[Sequence[Stored]], None], wrote: Callable[[], None]) -> None:
        super().__init__(sync_s=SYNC_S)
        self._told = told
        self._wrote = wrote

    def _apply(self, batch: list[Stored]) -> None:
        super()._apply(batch)
        self._told(batch)

    async def _write(self, log: MemoryLog, batch: list[Stored]) -> None:
        self._wrote()
        await super()._write(log, batch)


class SimNode:
    """A machine of the simulated region.

    Attributes:
        agent: The agent that answers now; ``None`` while none does.
        kernel, spool, store, kube, cache, clock: What outlives it.
        lost_links: NICs that vanished although they are attached, by MAC, and when.
        starts: How many agents were started.
        is_dormant: The machine has not been started yet.
    """

    def __init__(
        self,
        *,
        name: str,
        loop: VirtualLoop,
        cloud: Cloud,
        instance: Instance,
        settings: Settings,
        trace: Trace,
        observer: Observer,
        seed: int,
    ) -> None:
        self.name = name
        self.loop = loop
        self.cloud = cloud
        self.region: Region = cloud.region
        self.instance = instance
        self.settings = settings
        self.trace = trace
        self.observer = observer
        self._seed = seed
        self.clock = VirtualClock(loop, name)
        self.store = Disk(self._on_batch, self._on_write)
        self.kernel = self._new_kernel()
        self.spool = FakeSpool(sync_s=SYNC_S)
        self.kube = FakeKubernetesNode()
        self.cache = FakeRuntimeCache()
        self.checkpoints = FakeCheckpoints(now_ns=lambda: self.clock.now().wall_ns, sync_s=SYNC_S)
        self.predecessor = FakePredecessor()
        self.is_marked = False
        self.life: Life | None = None
        self.agent: Agent | None = None
        self.starts = 0
        self.is_dormant = False
        self.link_faults: list[Fault] = []
        self.crash_wanted: Fault | None = None
        self.lost_links: dict[str, float] = {}
        self._plugging: dict[str, asyncio.TimerHandle] = {}
        self._exchanges: dict[asyncio.Future[Reply], None] = {}
        self._wait_accept: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None

    # -- the machine ------------------------------------------------------------------------------

    def _new_kernel(self) -> FakeKernel:
        return FakeKernel(latency_s=KERNEL_LATENCY_S, fault=self._on_wiring)

    def _on_wiring(self, step: str) -> None:
        self.pass_point("wiring")
        if self.life is not None and self.life.is_over:
            raise Killed

    def _on_batch(self, batch: Sequence[Stored]) -> None:
        self.trace(f"{self.name} commit {batch[0].seq}-{batch[-1].seq} {','.join(one.kind for one in batch)}")
        self.observer.on_commit(self, batch)
        self.pass_point("committed")

    def _on_write(self) -> None:
        self.pass_point("commit")

    def bake(self, of: SimNode) -> None:
        """The disk becomes a copy of another machine's, as one that was started from an image of that has."""
        self.trace(f"{self.name} disk of {of.name}")
        self.store.events[:] = of.store.events
        self.store.snapshots[:] = of.store.snapshots

    def plugged(self, event: LinkPlugged) -> None:
        """EC2 gives the machine a NIC; the kernel sees it a little later."""
        delay, name = LINK_DELAY_S, f"ens{5 + event.device_index}"
        if event.device_index and self.link_faults:
            fault = self.link_faults.pop(0)
            if fault.how in ("late", "missing"):
                delay = fault.seconds * (5 if fault.how == "missing" else 1)
            elif fault.how == "renamed":
                self.loop.call_outside(1.0, self._rename, event.mac, f"enp{event.device_index}s0")
                name = f"eth{event.device_index}"
        self._plugging[event.mac] = self.loop.call_outside(delay, self._plug, event.mac, name)

    def _plug(self, mac: str, name: str) -> None:
        self._plugging.pop(mac, None)
        self.lost_links.pop(mac, None)
        self.trace(f"{self.name} link {name} {mac}")
        self.kernel.plug(mac, name)

    def _rename(self, mac: str, name: str) -> None:
        self.kernel.rename(mac, name)

    def unplugged(self, mac: str) -> None:
        """EC2 takes a NIC away."""
        pending = self._plugging.pop(mac, None)
        if pending is not None:
            pending.cancel()
        self.trace(f"{self.name} link gone {mac}")
        self.kernel.unplug(mac)

    def flap(self, seconds: float) -> None:
        """The driver loses the NIC of the last ENI and finds it again."""
        link = self.region.links(self.instance.id)[-1]
        if link.device_index and link.mac not in self._plugging:
            self.kernel.unplug(link.mac)
            self.lost_links[link.mac] = self.loop.time()
            again = self.loop.call_outside(seconds, self._plug, link.mac, f"ens{5 + link.device_index}")
            self._plugging[link.mac] = again

    def plug_all(self) -> None:
        """Every NIC that EC2 gave is there at once: boot, or the end of faults."""
        self.link_faults.clear()
        for link in self.region.links(self.instance.id):
            pending = self._plugging.pop(link.mac, None)
            if pending is not None:
                pending.cancel()
            if not any(seen.mac == link.mac for seen in self.kernel.state.links.values()):
                self._plug(link.mac, f"ens{5 + link.device_index}")

    # -- the agent's process ----------------------------------------------------------------------

    def start(self) -> None:
        """Start an agent."""
        self._restart = None
        self.is_dormant = False
        self.starts += 1
        life = Life(f"{self.name}#{self.starts}")
        self.life = life
        self.trace(f"{self.name} start {self.starts}")
        self.pass_point("starting")
        self.loop.create_task(self._live(life), name=life.name, context=life.context())

    async def _live(self, life: Life) -> None:
        rng = random.Random(f"{self._seed} {life.name}")
        agent = Agent(self.settings, self._ports(life), rng)
        try:
            await agent.start()
        except VpccniError as error:
            # A log that cannot be written ends the process, loudly; the next one tries again.
            self.trace(f"{self.name} could not start: {error}")
            if not life.is_over:
                self.kill(restart_s=1.0)
            return
        self.agent = agent
        self.observer.on_start(self)
        if self._wait_accept is not None:
            self._wait_accept.set_result(None)
            self._wait_accept = None
        running = self._running = self.loop.create_task(agent.run(), name="agent")
        await asyncio.wait([running])
        if not running.cancelled():
            self._exited(life, running.exception())

    def _ports(self, life: Life) -> Ports:
        self.cache.reopen()
        self.checkpoints.reopen()
        ec2 = adapter_over(self.cloud.line(self, lambda: not life.is_over), self.region.name)

        async def get_ec2() -> Ec2:
            return ec2

        async def get_kubernetes() -> KubernetesNode | None:
            return self.kube

        return Ports(
            log=MemoryLog(self.store),
            clock=self.clock,
            ec2=get_ec2,
            imds=ImdsV2(exchange=self._imds),
            kubernetes=get_kubernetes,
            kernel=self.kernel,
            runtime=self.cache,
            spool=self.spool,
            checkpoints=self.checkpoints,
            predecessor=self.predecessor,
            mark_ready=self.mark_ready,
        )

    def mark_ready(self, is_ready: bool) -> None:
        """What STATUS would be answered by while no agent is there."""
        self.is_marked = is_ready

    async def _imds(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        lower = {name.lower(): value for name, value in headers.items()}
        reply = self.region.imds.request(self.instance.id, method, "/" + path, lower, self.loop.time())
        self.trace(f"{self.name} imds {path} {0 if reply.hangs else reply.status}")
        if reply.hangs or reply.delay_s > IMDS_TIMEOUT_S:
            await asyncio.sleep(IMDS_TIMEOUT_S)
            raise TimeoutError
        await asyncio.sleep(reply.delay_s)
        return reply.status, reply.body

    def _exited(self, life: Life, error: BaseException | None) -> None:
        self.trace(f"{self.name} exit {type(error).__name__}")
        self.observer.on_exit(self, error)
        if not life.is_over:
            self.kill(restart_s=1.0)

    def kill(self, *, restart_s: float, is_torn: bool = False, is_sent: bool = True) -> None:
        """SIGKILL, and a new agent after a while.

        Args:
            restart_s: Until the next agent starts; below 0 for never.
            is_torn: The batch that was being written reached the disk.
            is_sent: EC2 requests that were under way arrive there.
        """
        life = self.life
        self.crash_wanted = None
        if life is not None and not life.is_over:
            self.trace(f"{self.name} killed after {life.steps}")
            self.loop.end(life)
            self._forget_agent()
            self.store.crash(keep_torn=is_torn)
            if not is_sent:
                self.cloud.lose_requests(self)
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if restart_s >= 0:
            self._restart = self.loop.call_outside(restart_s, self.start)

    def _forget_agent(self) -> None:
        self.agent = self._running = None
        self.kernel.forget_listeners()
        for exchange in self._exchanges:
            if not exchange.done():
                exchange.set_exception(ConnectionResetError())
        self._exchanges.clear()

    def stop(self, restart_s: float) -> None:
        """SIGTERM, and a new agent a while after its end."""
        if self.agent is None or self.life is None or self.life.is_over:
            return
        self.trace(f"{self.name} sigterm")
        work = self._stop(self.agent, self.life, restart_s)
        self.loop.create_task(work, name="stop", context=self.life.context())

    async def _stop(self, agent: Agent, life: Life, restart_s: float) -> None:
        agent.readiness.is_stopping = agent.cni.is_stopping = True
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await agent.cni.wait_idle()
        except TimeoutError:
            self.trace(f"{self.name} stopped with requests under way")
        if self._running is not None:
            self._running.cancel()
        await agent.stop()
        if not life.is_over:
            self.kill(restart_s=restart_s)

    def write_snapshot(self) -> None:
        """The agent writes a snapshot now: it does so by itself only after thousands of records."""
        if self.agent is not None and self.life is not None and not self.life.is_over:
            work = self._write_snapshot(self.agent)
            self.loop.create_task(work, name="snapshot", context=self.life.context())

    async def _write_snapshot(self, agent: Agent) -> None:
        try:
            records = await agent.writer.write_snapshot()
        except VpccniError as error:
            self.trace(f"{self.name} no snapshot: {error.reason}")
        else:
            self.trace(f"{self.name} snapshot of {records}")

    def reboot(self, down_s: float, *, is_sent: bool = True) -> None:
        """Power off and on: kernel, sandboxes and ``/var/run`` are gone, the log stays."""
        self.kill(restart_s=-1, is_sent=is_sent)
        self.clock.boot()
        self.kernel = self._new_kernel()
        self.spool = FakeSpool(sync_s=SYNC_S)
        self.cache = FakeRuntimeCache()
        self.checkpoints = FakeCheckpoints(now_ns=lambda: self.clock.now().wall_ns, sync_s=SYNC_S)
        self.kube.uids.clear()
        self.trace(f"{self.name} reboot {self.clock.boot_id}")
        self.plug_all()
        self._restart = self.loop.call_outside(down_s, self.start)

    # -- crashes ----------------------------------------------------------------------------------

    def want_crash(self, fault: Fault) -> None:
        """Die at the point that the fault names."""
        life = self.life
        if life is None or life.is_over:
            return
        if fault.action == "starting":
            # Twice: now, and then in the middle of its next start.
            self._die(fault)
            self.crash_wanted = msgspec.structs.replace(fault, seconds=0.5)
        elif fault.action == "step":
            life.dies_at = life.steps + fault.count
            life.on_death = lambda: self._die(fault)
        else:
            self.crash_wanted = fault

    def pass_point(self, point: str) -> None:
        """A point at which a crash may be wanted."""
        fault, life = self.crash_wanted, self.life
        if fault is None or fault.action != point or life is None or life.is_over:
            return
        self.crash_wanted = None
        if point == "wiring":
            # In the middle of the kernel's work: what is done stays half done.
            if fault.count % 12:
                self.crash_wanted = msgspec.structs.replace(fault, count=fault.count - 1)
                return
            self._die(fault)
            return
        steps = fault.count if fault.count < 20 or point == "starting" else 1
        life.dies_at = life.steps + steps
        life.on_death = lambda: self._die(fault)

    def _die(self, fault: Fault) -> None:
        self.kill(restart_s=fault.seconds, is_torn="torn" in fault.flag, is_sent="sent" in fault.flag)

    # -- the socket -------------------------------------------------------------------------------

    async def exchange(self, body: bytes, connect_s: float, answer_s: float) -> tuple[int, dict[str, Any]]:
        """What the CNI executable does: connect, ask, and ask again when the agent dies meanwhile.

        Returns:
            HTTP status and decoded answer.

        Raises:
            AwayError: no agent took a connection for ``connect_s``, or none answered within ``answer_s``.
        """
        try:
            async with asyncio.timeout(answer_s):
                while True:
                    await self._connected(connect_s)
                    try:
                        reply = await self._ask(body)
                    except ConnectionResetError:
                        continue
                    if reply.status:
                        return reply.status, msgspec.json.decode(reply.body)
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise AwayError from error

    async def _connected(self, connect_s: float) -> None:
        if self.agent is not None:
            return
        async with asyncio.timeout(connect_s):
            while self.agent is None:
                if self._wait_accept is None:
                    self._wait_accept = self.loop.create_future()
                await asyncio.shield(self._wait_accept)

    async def _ask(self, body: bytes) -> Reply:
        agent, life = self.agent, self.life
        if agent is None or life is None or life.is_over:
            raise ConnectionResetError
        answer: asyncio.Future[Reply] = self.loop.create_future()
        self._exchanges[answer] = None

        async def serve() -> None:
            reply = await agent.cni.handle(body)
            if not answer.done():
                answer.set_result(reply)

        serving = self.loop.create_task(serve(), name="request", context=life.context())
        try:
            return await answer
        except asyncio.CancelledError:
            serving.cancel()  # As the server does when the caller hangs up.
            raise
        finally:
            self._exchanges.pop(answer, None)
