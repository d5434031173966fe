"""``MemoryLog``: the event log without a disk, for the simulator and for tests.

Theory of operation. A :class:`MemoryStore` is the disk: it outlives the logs that are opened over it
and holds sealed records, so that codec and chain are exercised. A :class:`MemoryLog` is one process's
grip on it. ``MemoryStore.crash`` is SIGKILL or power loss: every grip dies, and the batch that was
under way is either in the store whole or lost whole, as on a disk whose write was torn. ``MemoryStore.remove``
takes the files away under whoever has them open, who goes on with them unless it looks.

No thread, no clock, no real I/O: it runs on a virtual-time loop. The only awaits are
``asyncio.sleep(0)`` and, when asked for, ``asyncio.sleep(sync_s)`` in place of the disk's sync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from vpccni.adapters.log_format import (
    SNAPSHOTS_KEPT,
    LogDamageError,
    LogFault,
    LogFaults,
    Snapshot,
    chained,
    not_understood,
    opened,
    pack_snapshot,
    sealed,
    unpack_snapshot,
)
from vpccni.errors import InvariantBrokenError, OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.events.codec import Record
from vpccni.events.envelope import GENESIS, Stored
from vpccni.model import Seq
from vpccni.ports import LogStart, Restored

RESERVE_BYTES: Final = 4 * 1024 * 1024
"""As on a disk: let go when it is full, so that DELs still fit."""

STORE: Final = "store"
"""The name of the one file."""

ROW_BYTES: Final = 256
"""What a row costs beside its body, about as in SQLite with its subjects."""


class MemoryStore:
    """The disk under :class:`MemoryLog`.

    Attributes:
        events: Durable records, in order.
        snapshots: Durable snapshots, oldest first.
        faults: Failures that wait for their append.
        capacity_bytes: Size of the disk; ``None`` for no end.
        is_read_only: No file can be made, so nothing that was removed can be put back.
        aside: What somebody had put in the place of removed files, after it was moved away.
        sync_s: Seconds that a sync takes, on the running loop's clock.
        commits: How many batches became durable, for tests.
    """

    def __init__(self, *, capacity_bytes: int | None = None, sync_s: float = 0.0) -> None:
        self.events: list[Stored] = []
        self.snapshots: list[Snapshot] = []
        self.faults = LogFaults()
        self.capacity_bytes = capacity_bytes
        self.sync_s = sync_s
        self.commits = 0
        self.is_reserve_held = True
        self.is_read_only = False
        self.aside: list[list[Stored]] = []
        self._holder: MemoryLog | None = None
        self._under_way: list[Stored] = []

    @property
    def used_bytes(self) -> int:
        """What the events and snapshots take."""
        bodies = sum(len(one.body) + ROW_BYTES for one in self.events)
        return bodies + sum(len(one.records) for one in self.snapshots)

    def crash(self, *, keep_torn: bool = False) -> None:
        """Kill whoever holds the store, between two steps of its loop.

        Args:
            keep_torn: Whether a batch that was being written reached the disk (whole) or not (not at all).
        """
        if keep_torn and self._under_way:
            self._apply(self._under_way)
        self._under_way = []
        self._holder = None

    def remove(self, instead: Sequence[Stored] = ()) -> None:
        """Somebody removes the log's files, or puts others in their place."""
        self.events, self.snapshots = list(instead), []

    def _put_back(self, events: list[Stored], snapshots: list[Snapshot]) -> tuple[str, ...]:
        """The files that a log has open, or had, are at their place again."""
        names: tuple[str, ...] = ()
        if self.events:
            self.aside.append(self.events)
            names = (f"{STORE}.replaced-{len(self.aside)}",)
        self.events, self.snapshots = events, snapshots
        return names

    def _hold(self, log: MemoryLog) -> None:
        if self._holder is not None and self._holder is not log:
            raise PermanentError(Reason.LOG_IN_USE, "another log holds this store")
        self._holder = log
        self._under_way = []

    def _release(self, log: MemoryLog) -> None:
        if self._holder is log:
            self._holder = None

    def _is_held_by(self, log: MemoryLog) -> bool:
        return self._holder is log

    def _take_space(self, need: int) -> None:
        """Raise ``log_disk_full`` when ``need`` bytes do not fit; the first time the reserve is let go."""
        if self.capacity_bytes is None:
            return
        reserve = RESERVE_BYTES if self.is_reserve_held else 0
        if self.used_bytes + need + reserve > self.capacity_bytes:
            self.is_reserve_held = False
            raise TransientError(Reason.LOG_DISK_FULL, "the store is full")

    def _apply(self, batch: list[Stored]) -> None:
        (self.events if self._holder is None else self._holder.events).extend(batch)
        self.commits += 1

    async def _write(self, log: MemoryLog, batch: list[Stored]) -> None:
        """Make a batch durable, unless a fault, a crash or a cancellation comes first."""
        fault = self.faults.take()
        if fault is LogFault.DISK_FULL:
            self.is_reserve_held = False
            raise TransientError(Reason.LOG_DISK_FULL, "planned fault")
        self._take_space(sum(len(one.body) + ROW_BYTES for one in batch))
        self._under_way = batch
        await asyncio.sleep(self.sync_s)
        if not self._is_held_by(log):
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, "the process was killed in the middle")
        self._under_way = []
        if fault is not LogFault.LOST:
            self._apply(batch)
        if fault is not None:
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, "planned fault: the sync failed")
        if log.events is not self.events:
            raise OutcomeUnknownError(Reason.LOG_REMOVED, STORE)


class MemoryLog:
    """An ``EventLog`` over a :class:`MemoryStore`; same contract as the SQLite log.

    Attributes:
        events, snapshots: What it has open: the store's, unless they were removed.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.events = store.events
        self.snapshots = store.snapshots
        self._head = 0
        self._head_hash = GENESIS
        self._is_open = False
        self._failure = ""
        self._is_removed = False

    async def open(self) -> LogStart:
        """See ``EventLog.open``."""
        if self._is_open:
            raise InvariantBrokenError("the log is open already")
        self._store._hold(self)
        self.events, self.snapshots = self._store.events, self._store.snapshots
        try:
            start = self._read_start()
        except LogDamageError as error:
            self._store._release(self)
            raise PermanentError(Reason.LOG_DAMAGED, str(error)) from error
        await asyncio.sleep(0)
        self._is_open, self._failure, self._is_removed = True, "", False
        return start

    async def append(self, records: Sequence[Record]) -> None:
        """See ``EventLog.append``."""
        self._check_usable()
        if not records:
            return
        batch = sealed(records, self._head, self._head_hash)
        self._failure = "an append was given up in the middle"
        try:
            await self._store._write(self, batch)
        except TransientError:
            self._failure = ""
            raise
        except OutcomeUnknownError as error:
            self._failure = error.detail
            self._is_removed = error.reason is Reason.LOG_REMOVED
            raise
        self._failure = ""
        self._head, self._head_hash = batch[-1].seq, batch[-1].hash

    async def reopen(self) -> LogStart:
        """See ``EventLog.reopen``."""
        if self._is_open and self._is_gone():
            self._is_removed = True
            raise TransientError(Reason.LOG_REMOVED, STORE)
        await self.close()
        return await self.open()

    async def missing(self) -> tuple[str, ...]:
        """See ``EventLog.missing``."""
        return (STORE,) if self._is_open and self._is_gone() else ()

    async def restore(self) -> Restored:
        """See ``EventLog.restore``."""
        self._check_open()
        missing = await self.missing()
        aside: tuple[str, ...] = ()
        if missing:
            await asyncio.sleep(self._store.sync_s)
            if self._store.is_read_only:
                self._is_removed = True
                raise TransientError(
                    Reason.LOG_REMOVED, f"{STORE}, cannot be put back: the store is read-only"
                )
            aside = self._store._put_back(self.events, self.snapshots)
        start = await self.reopen()
        return Restored(start=start, missing=missing, aside=aside, events=len(self.events))

    def _is_gone(self) -> bool:
        return self.events is not self._store.events

    async def read(self, after: Seq, limit: int) -> list[Record]:
        """See ``EventLog.read``."""
        self._check_open()
        await asyncio.sleep(0)
        events = self.events
        if not events or limit <= 0:
            return []
        first = max(0, after - events[0].seq + 1)
        try:
            return [opened(one) for one in events[first : first + limit]]
        except LogDamageError as error:
            raise PermanentError(Reason.LOG_DAMAGED, str(error)) from error

    async def write_snapshot(self, seq: Seq, records: Sequence[Record]) -> None:
        """See ``EventLog.write_snapshot``."""
        self._check_usable()
        snapshots = self.snapshots
        head_hash = self._hash_at(seq)
        if head_hash is None:
            raise InvariantBrokenError(f"snapshot of event {seq}, which is not in the log")
        if snapshots and snapshots[-1].seq >= seq:
            return
        snapshot = pack_snapshot(seq, head_hash, records)
        self._store._take_space(len(snapshot.records))
        await asyncio.sleep(0)
        self._check_open()
        snapshots.append(snapshot)
        del snapshots[:-SNAPSHOTS_KEPT]

    async def checkpoint(self) -> None:
        """Nothing to move; takes the reserve back when there is space again."""
        self._check_usable()
        await asyncio.sleep(0)
        self.restore_reserve()

    def restore_reserve(self) -> bool:
        """Whether the reserve is held, after trying to take it back."""
        store = self._store
        if not store.is_reserve_held and (
            store.capacity_bytes is None or store.used_bytes + 2 * RESERVE_BYTES <= store.capacity_bytes
        ):
            store.is_reserve_held = True
        return store.is_reserve_held

    async def close(self) -> None:
        """See ``EventLog.close``."""
        self._is_open = False
        self._store._release(self)
        await asyncio.sleep(0)

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvariantBrokenError("the log is not open")
        if not self._store._is_held_by(self):
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, "the process that held the log was killed")

    def _check_usable(self) -> None:
        self._check_open()
        if self._is_removed:
            raise OutcomeUnknownError(Reason.LOG_REMOVED, "restore the log first")
        if self._failure:
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, f"reopen the log first: {self._failure}")

    def _hash_at(self, seq: int) -> bytes | None:
        events = self.events
        place = seq - events[0].seq if events else -1
        return events[place].hash if 0 <= place < len(events) else None

    def _read_start(self) -> LogStart:
        """Verify from the newest good snapshot on; an older one stands in for a damaged one."""
        events = self.events
        head = events[-1].seq if events else 0
        after, previous = 0, GENESIS
        base: tuple[Record, ...] = ()
        for snapshot in reversed(self.snapshots):
            if snapshot.seq > head:
                raise LogDamageError(
                    f"a snapshot stands for events up to {snapshot.seq}, which are gone", head + 1
                )
            try:
                base = unpack_snapshot(snapshot, self._hash_at(snapshot.seq))
            except LogDamageError:
                continue
            after, previous = snapshot.seq, snapshot.head_hash
            break
        rest = events[after - events[0].seq + 1 :] if events else []
        tail = tuple(opened(one) for one in chained(rest, after, previous))
        self._head, self._head_hash = (events[-1].seq, events[-1].hash) if events else (0, GENESIS)
        return LogStart(
            snapshot=base, tail=tail, head=Seq(self._head), must_not_change=not_understood((*base, *tail))
        )
