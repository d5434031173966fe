"""A long history for a node's log, made by the real core: pods come and go until the log is long enough."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from vpccni.adapters.clock import SystemClock
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.events.codec import Record
from vpccni.events.sandbox import SandboxLink, SandboxWired
from vpccni.loops.housekeeping import SNAPSHOT_AFTER
from vpccni.model import PodRef, SandboxKey, Seq, Stamp
from vpccni.planner import commands as c
from vpccni.planner.decide import PREVIOUS, decide
from vpccni.planner.warm_pool import Constraints
from vpccni.projections.snapshot import snapshot_of
from vpccni.projections.state import State

_BATCH: Final = 2000
_CONTEXT: Final = c.Context(cooldown_s=0.0, add_wait_s=0.0, policy=None, constraints=Constraints())


async def lengthen(log_path: Path, boot_id: Path, events: int) -> int:
    """Append lives of pods until the log holds about ``events`` events, while no agent runs on it.

    The newest snapshot is left as far back as an agent's own would be: just less than ``SNAPSHOT_AFTER``.

    Args:
        log_path: An agent's log, with at least one free address and none resting.
        boot_id: The node's boot id.
        events: The wanted length.

    Returns:
        How many events it holds now.
    """
    log = SqliteLog(log_path)
    start = await log.open()
    try:
        history = _History(SystemClock(boot_id), State())
        history.state.evolve_all((*start.snapshot, *start.tail))
        history.state.head = start.head
        is_snapshot_due = True
        while history.state.head < events:
            while len(history.records) < _BATCH and history.state.head < events:
                history.live()
            await log.append(history.take())
            if is_snapshot_due and history.state.head > events - SNAPSHOT_AFTER:
                is_snapshot_due = False
                await log.write_snapshot(history.state.head, snapshot_of(history.state))
        await log.checkpoint()
        return int(history.state.head)
    finally:
        await log.close()


class _History:
    """Decides and folds, as the writer does, without waiting for anybody."""

    def __init__(self, clock: SystemClock, state: State) -> None:
        self._clock = clock
        self.state = state
        self.records: list[Record] = []

    def take(self) -> list[Record]:
        """What was recorded since the last time."""
        taken, self.records = self.records, []
        return taken

    def live(self) -> None:
        """One pod: ADD, wired, DEL, unwired."""
        container_id = uuid.uuid4().hex + uuid.uuid4().hex
        key = SandboxKey("aws-cni", container_id, "eth0")
        pod = PodRef("bench", f"past-{container_id[:10]}", str(uuid.uuid4()))
        netns = f"/var/run/netns/cni-{container_id[:12]}"
        lease = self._do(c.Add(key=key, pod=pod, netns=netns)).lease
        wired = SandboxWired(
            lease=lease,
            links=(
                SandboxLink(
                    ifname="eth0",
                    host_ifname=f"eni{container_id[:11]}",
                    host_ifindex=1000 + int(lease) % 100_000,
                    alias=f"vpccni:{container_id}:eth0",
                    host_mac="0a:00:00:00:00:01",
                    pod_mac="0a:00:00:00:00:02",
                ),
            ),
            netns=netns,
            netns_inode=4_026_532_000,
        )
        self._do(c.NoteWired(wired))
        self._do(c.EndLease(key=key, cause="del", sources=("runtime",)))
        self._do(c.NoteUnwired((lease,)))

    def _do(self, command: c.Command) -> c.Decision:
        stamp: Stamp = self._clock.now()
        answer = decide(self.state, command, stamp, _CONTEXT)
        if not isinstance(answer, c.Decision):
            raise RuntimeError(f"no history can be made here: {answer}")
        for event, cause in answer.events:
            seq = Seq(self.state.head + 1)
            record = Record(seq, stamp, event, seq - 1 if cause == PREVIOUS else cause)
            self.state.evolve(record)
            self.records.append(record)
        return answer
