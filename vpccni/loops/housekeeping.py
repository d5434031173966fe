"""Nothing piles up: leases of dead sandboxes, spooled DELs, the write-ahead log, old snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, NoReturn

import structlog

from vpccni.adapters.beat import until_beat
from vpccni.datapath.difference import probe
from vpccni.datapath.objects import DatapathSettings, Difference, Probed
from vpccni.errors import Reason, TransientError, VpccniError
from vpccni.evidence import API_SERVER, CHECKPOINT, GC_LIST, KERNEL, RUNTIME_CACHE
from vpccni.loops.wiring import lease_wiring
from vpccni.loops.write import Writer
from vpccni.model import LeaseId, SandboxKey, Stamp
from vpccni.planner import commands as c
from vpccni.planner.doctor import BROKEN, examine
from vpccni.ports import Clock, EventLog, Kernel, KubernetesNode, RuntimeCache, Spool, SpooledDel
from vpccni.projections.leases import Lease

_log = structlog.get_logger("housekeeping")

SWEEP_PERIOD_S: Final = 300.0
"""containerd sends no GC, so we look ourselves."""
SECOND_SIGHT_S: Final = 60.0
"""Witness A must say so twice, this far apart: a namespace may be between two lives."""
TICK_S: Final = 5.0
IDLE_TURNS: Final = 2
"""Idle means: no commit during so many ticks."""
LOG_LOOK_S: Final = 2.0
"""Between two looks for the log's files, three calls each: as long as a kill may cost what was acknowledged."""
SNAPSHOT_AFTER: Final = 2000
"""Records behind a snapshot: 2,000 are folded in some 20 ms at the next start."""
YOUNG_LEASE_S: Final = 60.0
"""A lease may be older than its veth by as long as its wiring takes; nobody doubts a young one."""


class LeaseSweep:
    """Finds leases whose sandbox is gone without a DEL. Two independent sources end one; one makes it suspect.

    The first source is the kernel: no veth with the lease's alias, and no namespace. The second is another one:
    the pod's UID is absent from a fresh list of the API server, or the runtime's cache has no result for the
    key, or the runtime's own GC list leaves it out, or the checkpoint of an agent that served here meanwhile.
    A source counts only if it could have said the opposite.

    Attributes:
        unlisted: The leases that the runtime's latest GC list left out.
        unlisted_by_checkpoint: The leases that the checkpoint of an agent that was here meanwhile left out.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        kernel: Kernel,
        clock: Clock,
        kubernetes: Callable[[], Awaitable[KubernetesNode | None]],
        runtime: RuntimeCache,
        settings: DatapathSettings,
        turn_of: Callable[[SandboxKey], AbstractAsyncContextManager[object]],
    ) -> None:
        self._writer = writer
        self._kernel = kernel
        self._clock = clock
        self._kubernetes = kubernetes
        self._runtime = runtime
        self._settings = settings
        self._turn_of = turn_of
        self._gone_since: dict[LeaseId, Stamp] = {}
        self.unlisted: frozenset[LeaseId] = frozenset()
        self.unlisted_by_checkpoint: frozenset[LeaseId] = frozenset()

    async def look(self) -> None:
        """One look at every open lease that is not young."""
        state, now = self._writer.state, self._clock.now()
        old = [
            lease for lease in state.leases.values() if state.elapsed_s(lease.opened, now) >= YOUNG_LEASE_S
        ]
        if not old:
            return
        found = await self._probe(old)
        gone = [lease for lease in old if can_be_seen(lease) and _is_gone(found.get(lease.id))]
        # Only uninterrupted absence counts: seen alive once, a sandbox has to be missed twice again.
        self._gone_since = {lease.id: self._gone_since.get(lease.id, now) for lease in gone}
        for lease in old:
            if lease.suspected is not None and lease not in gone and lease.source != GC_LIST:
                await self._writer.submit(c.NoteEvidence(lease=lease.id, source=KERNEL, is_alive=True))
        uids = await self._fresh_uids() if gone else None
        for lease in gone:
            await self._judge(lease, uids, now)

    async def _probe(self, leases: list[Lease]) -> dict[LeaseId, Probed]:
        pods = tuple(pod for lease in leases for pod in probe(lease_wiring(lease), self._settings).probe)
        return (await self._kernel.apply(Difference(probe=pods))).probed

    async def _fresh_uids(self) -> frozenset[str] | None:
        try:
            node = await self._kubernetes()
            return await node.pod_uids() if node is not None else None
        except VpccniError as error:
            _log.info("no_second_witness", reason=error.reason, detail=error.detail[:200])
            return None

    async def _judge(self, lease: Lease, uids: frozenset[str] | None, now: Stamp) -> None:
        state = self._writer.state
        if lease.suspected is None:
            note = c.NoteEvidence(lease=lease.id, source=KERNEL, is_alive=False, detail="no veth, no netns")
            await self._writer.submit(note)
            return
        # The kernel's own first sight: the runtime's word, however old, is not one. A quarantine by the
        # kernel was its first sight, also when an agent before this one had it.
        first_sight = self._gone_since[lease.id]
        if lease.source == KERNEL:
            first_sight = lease.suspected
        if state.elapsed_s(first_sight, now) < SECOND_SIGHT_S:
            return
        second = GC_LIST if lease.source == GC_LIST or lease.id in self.unlisted else ""
        if not second and lease.id in self.unlisted_by_checkpoint:
            second = CHECKPOINT
        if not second and uids is not None and lease.pod.uid and lease.pod.uid not in uids:
            second = API_SERVER
        if not second and not lease.is_hold:
            key = lease.key
            if await self._runtime.is_known(key.network, key.container_id, key.ifname) is False:
                second = RUNTIME_CACHE
        if second:
            await self._end(lease, second)

    async def _end(self, lease: Lease, second: str) -> None:
        """End it, unless an ADD for the same sandbox was served while the witnesses were asked."""
        async with self._turn_of(lease.key):
            if lease.id not in self._writer.state.leases:
                return
            found = await self._probe([lease])
            if not _is_gone(found.get(lease.id)):
                return
            _log.warning("lease_swept", lease=lease.id, container_id=lease.key.container_id, source=second)
            await self._writer.submit(c.EndBySources(lease=lease.id, sources=(KERNEL, second)))


def can_be_seen(lease: Lease) -> bool:
    """Whether the kernel could show the sandbox if it lived: its namespace or its host interface is known.

    A source that cannot say "it is there" says nothing by its silence.
    """
    return bool(lease.netns) or lease.wired is not None or bool(lease.pod.name)


def _is_gone(probed: Probed | None) -> bool:
    return probed is not None and probed.netns_inode == 0 and probed.host_ifindex == 0


class Housekeeping:
    """The loop."""

    def __init__(
        self,
        *,
        writer: Writer,
        log: EventLog,
        spool: Spool,
        sweep: LeaseSweep,
        del_spooled: Callable[[SpooledDel], Awaitable[bool]],
        may_drain: Callable[[], bool],
    ) -> None:
        self._writer = writer
        self._log_port = log
        self._spool = spool
        self._sweep = sweep
        self._del_spooled = del_spooled
        self._may_drain = may_drain
        self._sweep_wake = asyncio.Event()
        self._snapshot_at = 0
        self._checkpointed = 0

    def sweep_soon(self, unlisted: frozenset[LeaseId]) -> None:
        """The runtime's GC came; these leases were not on its list."""
        self._sweep.unlisted = unlisted
        self._sweep_wake.set()

    def sweep_unlisted(self, leases: frozenset[LeaseId]) -> None:
        """An agent that served here meanwhile does not list these leases."""
        self._sweep.unlisted_by_checkpoint = leases
        self._sweep_wake.set()

    async def run(self) -> NoReturn:
        """Tidy while nobody asks for anything."""
        commits, idle, examined = self._writer.commits, 0, 0
        while True:
            await asyncio.sleep(TICK_S)
            idle = idle + 1 if self._writer.commits == commits else 0
            commits = self._writer.commits
            if self._writer.state.head != examined:
                examined = self._writer.state.head
                await self._guarded("doctor", self._examine)
            if idle >= IDLE_TURNS:
                await self._guarded("log", self._tidy_log)

    async def run_log_watch(self) -> NoReturn:
        """See that the log's files are where the next start looks for them; have them put back otherwise."""
        while True:
            await asyncio.sleep(until_beat(LOG_LOOK_S))
            await self._guarded("log files", self._writer.look_after_log)

    async def run_spool(self) -> NoReturn:
        """DELs that were spooled although we run: the executable could not reach us, or the log took nothing."""
        is_drained = False  # At the start it may not have been readable.
        while True:
            await (self._spool.wait_changed() if is_drained else asyncio.sleep(TICK_S))
            is_drained = await self._guarded("spool", self._drain_whole_spool)

    async def run_sweep(self) -> NoReturn:
        """The lease sweep, every five minutes or when the runtime's GC asks; again soon while one is doubted."""
        while True:
            doubted = any(lease.suspected for lease in self._writer.state.leases.values())
            try:
                async with asyncio.timeout(SECOND_SIGHT_S + 1 if doubted else SWEEP_PERIOD_S):
                    await self._sweep_wake.wait()
            except TimeoutError:
                pass
            self._sweep_wake.clear()
            await self._guarded("sweep", self._sweep.look)

    async def _guarded(self, what: str, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except VpccniError as error:
            _log.warning("housekeeping_failed", what=what, reason=error.reason, detail=error.detail)
            return False
        return True

    async def _drain_whole_spool(self) -> None:
        if not self._may_drain():
            # A DEL may be about a pod that has not been found yet.
            raise TransientError(Reason.RECOVERING, "spooled DELs wait until it is known who lives here")
        seen: set[str] = set()
        while (left := {entry.name for entry in await self._spool.entries()}) - seen:
            seen |= left
            await self.drain_spool()
        if left:
            raise TransientError(
                Reason.LOG_WRITE_FAILED, f"{len(left)} spooled DELs wait for the log, or for an ADD"
            )

    async def drain_at_start(self) -> None:
        """As ``drain_spool``; what cannot be read now is read later and does not keep ADDs from being served."""
        await self._guarded("spool", self.drain_spool)

    async def drain_spool(self) -> None:
        """Carry out spooled DELs; each entry is forgotten only when its end of lease is durable."""
        for entry in await self._spool.entries():
            if await self._del_spooled(entry):
                await self._spool.remove(entry.name)

    async def _examine(self) -> None:
        """What must always be true is looked at in production, too: a broken promise stops changes to EC2."""
        for finding in examine(self._writer.state):
            if finding.severity == BROKEN:
                _log.error("invariant_broken", name=finding.name, detail=finding.detail)
                await self._writer.submit(c.ReportBroken(name=finding.name, detail=finding.detail))
                return
            _log.warning("odd_state", name=finding.name, detail=finding.detail)

    async def _tidy_log(self) -> None:
        head = int(self._writer.state.head)
        if head - self._snapshot_at >= SNAPSHOT_AFTER:
            records = await self._writer.write_snapshot()
            self._snapshot_at = head
            _log.info("snapshot_written", seq=head, records=records)
        if head != self._checkpointed:
            await self._log_port.checkpoint()
            self._checkpointed = head

    def begin_at(self, snapshot: int) -> None:
        """The sequence number up to which the newest snapshot reaches, as the log was opened."""
        self._snapshot_at = snapshot
