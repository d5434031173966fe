"""One simulated machine: kernel, disk, clock, spool and runtime cache; and one agent after another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from vpccni.adapters.imds import ImdsV2
from vpccni.errors import VpccniError
from vpccni.events.envelope import Stored
from vpccni.lab.ec2 import LinkPlugged, Region
from vpccni.lab.ec2.entities import Eni, Instance
from vpccni.lab.sim.clock import VirtualClock
from vpccni.lab.sim.cloud import Cloud
from vpccni.lab.sim.disk import SYNC_S, Disk, DiskLog, NodeCheckpoints
from vpccni.lab.sim.ec2 import adapter_over
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.kernel import FakeKernel
from vpccni.lab.sim.kernel_watched import SimKernel
from vpccni.lab.sim.kubernetes import FakeKubernetesNode
from vpccni.lab.sim.loop import Life, VirtualLoop
from vpccni.lab.sim.original import Original
from vpccni.lab.sim.predecessor import FakePredecessor
from vpccni.lab.sim.runtime import FakeRuntimeCache
from vpccni.lab.sim.spool import FakeSpool
from vpccni.lab.sim.trace import Trace
from vpccni.lab.sim.watchers import NodeWatcher, Observer
from vpccni.loops.agent import Agent, Ports
from vpccni.loops.serve_cni import Reply
from vpccni.planner.reconcile import NO_MANAGE_TAG
from vpccni.ports import Ec2, KubernetesNode
from vpccni.settings import Settings

IMDS_TIMEOUT_S: Final = 2.0
STOP_DEADLINE_S: Final = 5.0
LINK_DELAY_S: Final = 0.05
INSTALL_S: Final = 0.05
"""Between two looks whether it is time to put our executable in place."""
YESTERDAY_S: Final = 60.0
"""After a reboot the API server goes on listing the pods of before for so long."""


class Killed(BaseException):
    """The process died in the middle of a step of the kernel's."""


class AwayError(Exception):
    """Nobody answered in time."""


class SimNode:
    """A machine of the simulated region.

    Attributes:
        agent: The agent that answers now; ``None`` while none does.
        kernel, spool, store, kube, cache, clock: What outlives it.
        lost_links: NICs that vanished although they are attached, by MAC, and when.
        starts: How many agents were started.
        is_dormant: The machine has not been started yet.
        plugin: Whose executable the runtime calls: ``ours`` or ``original``.
        original: amazon-vpc-cni-k8s, which may live here before or in between.
        started_at: When our latest agent was started.
        last_export_at: When our agent last replaced the checkpoint file.
        misled_at: When a source last went wrong.
        imds_broken_at: When IMDS last began to say what is not so.
        handed_back_at: When an operator was told that the original may be started; ``None`` when he was not.
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
        watcher: NodeWatcher,
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
        self.watcher = watcher
        self._seed = seed
        self.clock = VirtualClock(loop, name)
        self.store = Disk(self._on_batch, self._on_write)
        self.store.now = loop.time
        self.kernel = self._new_kernel()
        self.spool = FakeSpool(sync_s=SYNC_S)
        self.kube = FakeKubernetesNode()
        self.cache = FakeRuntimeCache()
        self.checkpoints = self._new_checkpoints()
        self.predecessor = FakePredecessor()
        self.is_marked = False
        self.plugin = "ours"
        self.original = Original(self, watcher, seed)
        self.handed_back_at: float | None = None
        self.misled_at = self.imds_broken_at = float("-inf")
        self.started_at = self.last_export_at = float("-inf")
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
        return SimKernel(self)

    def _new_checkpoints(self) -> NodeCheckpoints:
        return NodeCheckpoints(
            now_ns=lambda: self.clock.now().wall_ns,
            point=lambda: self.pass_point("exporting"),
            may_write=lambda: self.agent is not None and self.agent.recovery.is_done,
            written=self._on_exported,
        )

    def _on_exported(self, content: bytes, is_allowed: bool) -> None:
        self.last_export_at = self.loop.time()
        self.watcher.on_exported(self, content, is_allowed=is_allowed)

    def is_managed(self, eni: Eni) -> bool:
        """Whether an ENI of the machine is there for pods."""
        return eni.tags.get(NO_MANAGE_TAG) != "true"

    def on_wiring(self, step: str) -> None:
        """A step of the kernel's on a sandbox."""
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
        self.store.become(of.store)

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

    @property
    def is_idle(self) -> bool:
        """Whether no agent of ours runs, and none is about to be started by itself."""
        is_over = self.life is None or self.life.is_over
        return is_over and self._restart is None and not self.is_dormant

    def start(self) -> None:
        """Start an agent."""
        self._restart = None
        self.is_dormant = False
        self.starts += 1
        self.started_at = self.loop.time()
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
        except Exception as error:
            self._exited(life, error)
            raise
        self.agent = agent
        self.observer.on_start(self)
        if self._wait_accept is not None:
            self._wait_accept.set_result(None)
            self._wait_accept = None
        running = self._running = self.loop.create_task(agent.run(), name="agent")
        if self.plugin != "ours":
            self.loop.create_task(self._install(agent), name="install")
        await asyncio.wait([running])
        if not running.cancelled():
            self._exited(life, running.exception())

    def on_original_end(self) -> None:
        """The original is gone: an agent that has waited beside it serves again, by its own executable."""
        if self.agent is not None and self.life is not None and not self.life.is_over:
            self.loop.create_task(self._install(self.agent), name="install", context=self.life.context())

    async def _install(self, agent: Agent) -> None:
        """Our executable takes the other's place as soon as it is known who lives here."""
        while not agent.recovery.is_done:  # noqa: ASYNC110 - as the agent's own entry does
            await asyncio.sleep(INSTALL_S)
        self.trace(f"{self.name} installs")
        self.plugin = "ours"

    def _ports(self, life: Life) -> Ports:
        self.cache.reopen()
        self.checkpoints.reopen()
        ec2 = adapter_over(self.cloud.line(self, lambda: not life.is_over), self.region.name)

        async def get_ec2() -> Ec2:
            return ec2

        async def get_kubernetes() -> KubernetesNode | None:
            return self.kube

        return Ports(
            log=DiskLog(self.store),
            clock=self.clock,
            ec2=get_ec2,
            imds=ImdsV2(exchange=self.imds),
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

    async def imds(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """The metadata service, asked from this machine."""
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

    def kill(
        self, *, restart_s: float, is_torn: bool = False, is_sent: bool = True, is_clean: bool = False
    ) -> None:
        """SIGKILL, and a new agent after a while.

        Args:
            restart_s: Until the next agent starts; below 0 for never.
            is_torn: The batch that was being written reached the disk.
            is_sent: EC2 requests that were under way arrive there.
            is_clean: It has come to its end by itself, after SIGTERM.
        """
        life = self.life
        self.crash_wanted = None
        if life is not None and not life.is_over:
            self.trace(f"{self.name} killed after {life.steps}")
            self.watcher.on_end(self, is_clean=is_clean)
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
        """SIGTERM, and a new agent a while after its end; below 0 for never."""
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
            self.kill(restart_s=restart_s, is_clean=True)

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
        """Power off and on: kernel, sandboxes and ``/var/run`` are gone; log and runtime's cache stay."""
        self.kill(restart_s=-1, is_sent=is_sent)
        is_original = self.original.is_running
        self.original.stop()
        self.handed_back_at = None
        self.clock.boot()
        self.kernel = self._new_kernel()
        self.spool = FakeSpool(sync_s=SYNC_S)
        self.checkpoints = self._new_checkpoints()
        self.loop.call_outside(YESTERDAY_S, self.kube.uids.difference_update, frozenset(self.kube.uids))
        self.trace(f"{self.name} reboot {self.clock.boot_id}")
        self.plug_all()
        if is_original:
            self.original.start_later(down_s)
        else:
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
