"""What a simulated machine has on its disk: the log, and the files that others read and write, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vpccni.adapters.log_format import Snapshot
from vpccni.adapters.log_memory import MemoryLog, MemoryStore
from vpccni.events.envelope import Stored
from vpccni.lab.sim.checkpoint import FakeCheckpoints
from vpccni.ports import LogStart

SYNC_S: Final = 0.001


class Disk(MemoryStore):
    """The log's disk; tells of every batch that it keeps.

    Attributes:
        is_marked: A file beside the log says that there was one.
        foreign_count: So many of the first events are another machine's.
    """

    def __init__(self, told: Callable[[Sequence[Stored]], None], wrote: Callable[[], None]) -> None:
        super().__init__(sync_s=SYNC_S)
        self._told = told
        self._wrote = wrote
        self._batches: list[tuple[float, int]] = []
        self.is_marked = False
        self.foreign_count = 0
        self.now: Callable[[], float] = lambda: 0.0

    def _apply(self, batch: list[Stored]) -> None:
        super()._apply(batch)
        self.is_marked = True
        self._batches.append((self.now(), len(self.events)))
        self._told(batch)

    async def _write(self, log: MemoryLog, batch: list[Stored]) -> None:
        self._wrote()
        await super()._write(log, batch)

    def lose(self, *, is_marker_left: bool) -> None:
        """The state directory is gone, or all of it but the marker. Nobody has it open."""
        self._put([], [])
        self.is_marked = is_marker_left

    def rewind(self, at_s: float, exported: int) -> int:
        """The log of then is put back, as it was copied: how many events that takes away. Nobody has it open.

        A copy has the log's side files, too, so that nothing in them tells how far it once was. Only our export
        does: the copy lacks the event that ``exported`` is the number of.
        """
        before = len(self.events)
        older = [
            length
            for at, length in self._batches
            if at <= at_s and (length == 0 or self.events[length - 1].seq < exported)
        ]
        kept = max(older, default=0)
        events = self.events[:kept]
        head = events[-1].seq if events else 0
        self._put(events, [one for one in self.snapshots if one.seq <= head])
        self._batches = [(at, length) for at, length in self._batches if length <= kept]
        self.is_marked = bool(events)
        self.foreign_count = min(self.foreign_count, kept)
        return before - kept

    def become(self, other: Disk) -> None:
        """The log becomes another machine's. Nobody has it open."""
        self._put(list(other.events), list(other.snapshots))
        self._batches = [(self.now(), len(self.events))]
        self.is_marked = bool(self.events)
        self.foreign_count = len(self.events)

    def _put(self, events: list[Stored], snapshots: list[Snapshot]) -> None:
        self.events, self.snapshots = events, snapshots
        if not events:
            self._batches, self.foreign_count = [], 0


class DiskLog(MemoryLog):
    """One process's grip on the disk; tells a lost log from one that never was."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._disk = disk

    async def open(self) -> LogStart:
        """See ``EventLog.open``."""
        was_marked = self._disk.is_marked
        start = await super().open()
        return msgspec.structs.replace(start, is_lost=was_marked and not start.head)


class NodeCheckpoints(FakeCheckpoints):
    """Checkpoint files; tells of every export, and of the instants at which a process may die."""

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        point: Callable[[], None],
        may_write: Callable[[], bool],
        written: Callable[[bytes, bool], None],
    ) -> None:
        super().__init__(now_ns=now_ns, sync_s=SYNC_S)
        self._point = point
        self._may_write = may_write
        self._exported = written

    async def write(self, content: bytes) -> str:
        """See ``Checkpoints.write``."""
        self._point()
        is_allowed = self._may_write()
        try:
            return await super().write(content)
        finally:
            if self.files.get(0, (b"", 0))[0] is content:
                self._exported(content, is_allowed)
            self._point()
