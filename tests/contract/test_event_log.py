"""One suite for ``EventLog``, run against the SQLite log and against ``MemoryLog``."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Protocol

import pytest

from tests.data.event_samples import record, records
from vpccni.adapters.log_format import LogFault, LogFaults
from vpccni.adapters.log_memory import MemoryLog, MemoryStore
from vpccni.adapters.log_schema import INSERT_EVENT, create_schema
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import (
    InvariantBrokenError,
    OutcomeUnknownError,
    PermanentError,
    Reason,
    TransientError,
)
from vpccni.events.codec import Record, UnknownEvent
from vpccni.model import Seq
from vpccni.ports import EventLog


class Place(Protocol):
    """Where logs are opened, one after the other, over the same durable state."""

    faults: LogFaults

    def log(self) -> EventLog: ...

    async def die(self, log: EventLog) -> None:
        """The process that held the log is gone, without a word."""

    def remove(self) -> None:
        """Somebody removes the log's files."""

    def replace(self) -> None:
        """Somebody puts an older state of the log, with two events, in the place of the files."""

    def kept_aside(self) -> int:
        """How many events are in what was moved aside."""

    def forbid(self) -> None:
        """No file can be made from now on."""

    def allow(self) -> None:
        """Files can be made again."""


class MemoryPlace:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.faults = self.store.faults

    def log(self) -> EventLog:
        return MemoryLog(self.store)

    async def die(self, log: EventLog) -> None:
        self.store.crash()

    def remove(self) -> None:
        self.store.remove()

    def replace(self) -> None:
        self.store.remove(instead=self.store.events[:2])

    def kept_aside(self) -> int:
        (kept,) = self.store.aside
        return len(kept)

    def forbid(self) -> None:
        self.store.is_read_only = True

    def allow(self) -> None:
        self.store.is_read_only = False


class SqlitePlace:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "log" / "events.db"
        self.faults = LogFaults()

    def log(self) -> EventLog:
        return SqliteLog(self.path, volatile_ok=True, faults=self.faults)

    async def die(self, log: EventLog) -> None:
        assert isinstance(log, SqliteLog)
        await log._disconnect(is_writing=False)
        log._files.release()

    def remove(self) -> None:
        shutil.rmtree(self.path.parent)

    def replace(self) -> None:
        older = self.path.with_name("older")
        with contextlib.closing(sqlite3.connect(older, isolation_level=None)) as target:
            create_schema(target)
            with contextlib.closing(sqlite3.connect(self.path)) as source:
                first = source.execute("SELECT * FROM event WHERE seq <= 2").fetchall()
            target.executemany(INSERT_EVENT, first)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink()
        older.rename(self.path)

    def kept_aside(self) -> int:
        (kept,) = self.path.parent.glob("*.replaced-*Z")
        with contextlib.closing(sqlite3.connect(kept)) as found:
            (count,) = found.execute("SELECT count(*) FROM event").fetchone()
        return int(count)

    def forbid(self) -> None:
        """A file stands where the directory was."""
        assert not self.path.parent.exists()
        self.path.parent.touch()

    def allow(self) -> None:
        self.path.parent.unlink()


@pytest.fixture(params=["memory", "sqlite"])
def place(request, tmp_path) -> Place:
    return MemoryPlace() if request.param == "memory" else SqlitePlace(tmp_path)


@pytest.fixture
async def log(place):
    opened = place.log()
    await opened.open()
    yield opened
    await opened.close()


async def start_of(place):
    """What a new process finds."""
    log = place.log()
    try:
        return await log.open()
    finally:
        await log.close()


async def test_a_fresh_log_is_empty(place):
    start = await start_of(place)
    assert (start.snapshot, start.tail, start.head, start.must_not_change) == ((), (), 0, ())


async def test_what_was_appended_is_found_by_the_next_process(place, log):
    await log.append(records(1, 3))
    await log.append(records(4, 40))
    await log.close()
    start = await start_of(place)
    assert start.tail == tuple(records(1, 40))
    assert start.head == 40


async def test_what_was_appended_is_found_after_a_process_that_was_killed(place, log):
    await log.append(records(1, 3))
    await place.die(log)
    assert (await start_of(place)).tail == tuple(records(1, 3))


@pytest.mark.parametrize("first", [0, 1, 3, 5, 99], ids=lambda n: f"event {n}")
async def test_a_batch_that_does_not_continue_the_log_is_refused_whole(place, log, first):
    await log.append(records(1, 3))
    with pytest.raises(InvariantBrokenError):
        await log.append([record(first)])
    await log.append([record(4)])
    await log.close()
    assert (await start_of(place)).head == 4


@pytest.mark.parametrize("second", [1, 2, 4], ids=lambda n: f"event {n}")
async def test_a_gap_within_a_batch_appends_nothing_of_it(place, log, second):
    await log.append([record(1)])
    with pytest.raises(InvariantBrokenError):
        await log.append([record(2), record(second), record(3)])
    assert await log.read(Seq(0), 10) == [record(1)]
    await log.append(records(2, 3))
    assert (await log.reopen()).head == 3


async def test_an_empty_batch_is_nothing(place, log):
    await log.append([])
    assert await log.read(Seq(0), 10) == []


async def test_reading_goes_page_by_page(log):
    assert await log.read(Seq(0), 10) == []
    await log.append(records(1, 25))
    seen: list[Record] = []
    while page := await log.read(Seq(len(seen)), 10):
        assert len(page) == min(10, 25 - len(seen))
        seen += page
    assert seen == records(1, 25)
    assert await log.read(Seq(24), 10) == [record(25)]
    assert await log.read(Seq(25), 10) == []
    assert await log.read(Seq(1000), 10) == []
    assert await log.read(Seq(3), 0) == []


async def test_a_start_is_the_newest_snapshot_and_what_follows(place, log):
    await log.append(records(1, 10))
    await log.write_snapshot(Seq(10), [record(2), record(7)])
    await log.append(records(11, 12))
    assert (await log.reopen()).snapshot == (record(2), record(7))
    await log.write_snapshot(Seq(11), [record(7), record(11)])
    await log.close()
    start = await start_of(place)
    assert start.snapshot == (record(7), record(11))
    assert start.tail == (record(12),)
    assert start.head == 12


async def test_a_snapshot_at_the_very_end_leaves_an_empty_tail(place, log):
    await log.append(records(1, 5))
    await log.write_snapshot(Seq(5), records(1, 5))
    start = await log.reopen()
    assert (start.snapshot, start.tail, start.head) == (tuple(records(1, 5)), (), 5)
    await log.append([record(6)])
    assert (await log.reopen()).tail == (record(6),)


async def test_many_snapshots_later_the_newest_serves(place, log):
    for seq in range(1, 12):
        await log.append([record(seq)])
        await log.write_snapshot(Seq(seq), [record(seq)])
    start = await log.reopen()
    assert (start.snapshot, start.tail) == ((record(11),), ())


async def test_a_snapshot_older_than_the_newest_adds_nothing(log):
    await log.append(records(1, 5))
    await log.write_snapshot(Seq(4), [record(4)])
    await log.write_snapshot(Seq(4), [record(1)])
    await log.write_snapshot(Seq(3), [record(1)])
    assert (await log.reopen()).snapshot == (record(4),)


async def test_a_snapshot_of_events_that_are_not_there_is_refused(log):
    await log.append(records(1, 5))
    with pytest.raises(InvariantBrokenError):
        await log.write_snapshot(Seq(6), [record(1)])
    assert (await log.reopen()).snapshot == ()


@pytest.mark.parametrize(
    ("fault", "head"), [(LogFault.LOST, 2), (LogFault.APPLIED, 5)], ids=["lost", "applied"]
)
async def test_an_unknown_outcome_stops_everything_until_the_log_is_reopened(place, log, fault, head):
    await log.append(records(1, 2))
    place.faults.plan(fault)
    with pytest.raises(OutcomeUnknownError) as unknown:
        await log.append(records(3, 5))
    assert unknown.value.reason is Reason.LOG_WRITE_FAILED
    for refused in (
        log.append(records(3, 3)),
        log.append(records(6, 6)),
        log.write_snapshot(Seq(1), []),
        log.checkpoint(),
    ):
        with pytest.raises(OutcomeUnknownError):
            await refused
    start = await log.reopen()
    assert start.head == head
    assert start.tail == tuple(records(1, head))
    await log.append(records(head + 1, head + 2))
    await log.close()
    assert (await start_of(place)).tail == tuple(records(1, head + 2))


async def test_a_full_disk_appends_nothing_and_leaves_the_log_usable(place, log):
    await log.append(records(1, 2))
    place.faults.plan(LogFault.DISK_FULL)
    with pytest.raises(TransientError) as full:
        await log.append(records(3, 5))
    assert full.value.reason is Reason.LOG_DISK_FULL
    assert await log.read(Seq(0), 10) == records(1, 2)
    await log.append(records(3, 3))
    assert (await log.reopen()).head == 3


async def test_faults_strike_in_the_order_in_which_they_were_planned(place, log):
    place.faults.plan(LogFault.DISK_FULL, LogFault.APPLIED)
    with pytest.raises(TransientError):
        await log.append([record(1)])
    with pytest.raises(OutcomeUnknownError):
        await log.append([record(1)])
    assert (await log.reopen()).head == 1


async def test_a_batch_cut_by_death_is_there_whole_or_not_at_all(place):
    """1. An append is under way. 2. Its process is killed. 3. The next one finds 2 or 22 events."""
    log = place.log()
    await log.open()
    await log.append(records(1, 2))
    async with asyncio.TaskGroup() as group:
        torn = group.create_task(log.append(records(3, 22)))
        await asyncio.sleep(0)
        torn.cancel()
    await place.die(log)
    log = place.log()
    start = await log.open()
    assert start.head in (2, 22)
    await log.append([record(start.head + 1)])
    await log.close()
    assert (await start_of(place)).tail == tuple(records(1, start.head + 1))


async def test_an_append_given_up_in_the_middle_has_an_unknown_outcome(log):
    async with asyncio.TaskGroup() as group:
        cut = group.create_task(log.append(records(1, 2)))
        await asyncio.sleep(0)
        cut.cancel()
    with pytest.raises(OutcomeUnknownError):
        await log.append(records(1, 2))
    head = (await log.reopen()).head
    assert head in (0, 2)
    await log.append([record(head + 1)])


async def test_a_second_agent_is_kept_out(place, log):
    other = place.log()
    with pytest.raises(PermanentError) as refused:
        await other.open()
    assert refused.value.reason is Reason.LOG_IN_USE
    await log.append([record(1)])
    await log.close()
    assert (await other.open()).head == 1
    await other.close()


async def test_an_event_from_the_future_that_must_be_understood_is_named(place, log):
    needed = UnknownEvent(kind="branch_assigned", version=1, must_understand=True, body=b'{"vlan":3}')
    optional = UnknownEvent(kind="weather_observed", version=2, must_understand=False, body=b'{"sun":true}')
    newer = UnknownEvent(kind="lease_ended", version=9, must_understand=True, body=b"[1]")
    await log.append([record(1, needed), record(2, optional), record(3, newer), record(4, needed)])
    await log.close()
    start = await start_of(place)
    assert start.must_not_change == ("branch_assigned", "lease_ended")
    assert [one.event for one in start.tail] == [needed, optional, newer, needed]


async def test_an_event_from_the_future_inside_a_snapshot_is_named_too(place, log):
    needed = UnknownEvent(kind="branch_assigned", version=1, must_understand=True, body=b'{"vlan":3}')
    await log.append([record(1, needed)])
    await log.write_snapshot(Seq(1), [record(1, needed)])
    assert (await log.reopen()).must_not_change == ("branch_assigned",)


async def test_a_checkpoint_changes_nothing_that_can_be_read(place, log):
    await log.append(records(1, 30))
    await log.checkpoint()
    await log.append([record(31)])
    await log.checkpoint()
    assert await log.read(Seq(0), 100) == records(1, 31)
    await place.die(log)
    assert (await start_of(place)).head == 31


async def test_a_log_that_is_closed_refuses_everything_but_open(place):
    log = place.log()
    for refused in (
        log.append([record(1)]),
        log.read(Seq(0), 1),
        log.checkpoint(),
        log.write_snapshot(Seq(1), []),
        log.restore(),
    ):
        with pytest.raises(InvariantBrokenError):
            await refused
    assert await log.missing() == ()
    await log.close()
    await log.open()
    with pytest.raises(InvariantBrokenError):
        await log.open()
    await log.close()
    await log.close()
    assert (await log.open()).head == 0
    await log.close()


# --- files that are removed under a running agent -----------------------------------------------------


async def append_removed(log: EventLog, first: int, last: int) -> None:
    """Append to a log whose files are gone: written, and not acknowledged."""
    with pytest.raises(OutcomeUnknownError) as unknown:
        await log.append(records(first, last))
    assert unknown.value.reason is Reason.LOG_REMOVED


async def test_of_a_log_at_its_path_nothing_is_missing_and_restoring_it_changes_nothing(place, log):
    assert await log.missing() == ()
    await log.append(records(1, 3))
    assert await log.missing() == ()
    await log.write_snapshot(Seq(2), [record(2)])
    restored = await log.restore()
    assert (restored.missing, restored.aside, restored.events) == ((), (), 3)
    assert (restored.start.snapshot, restored.start.tail) == ((record(2),), (record(3),))
    await log.append([record(4)])
    assert (await log.reopen()).head == 4


async def test_files_that_were_removed_are_missing_and_put_back_with_everything_in_them(place, log):
    await log.append(records(1, 30))
    await log.write_snapshot(Seq(20), [record(2), record(7)])
    place.remove()
    assert await log.missing()
    restored = await log.restore()
    assert restored.missing
    assert (restored.aside, restored.events) == ((), 30)
    assert restored.start.snapshot == (record(2), record(7))
    assert restored.start.tail == tuple(records(21, 30))
    assert await log.missing() == ()
    await log.append(records(31, 32))
    assert await log.read(Seq(0), 99) == records(1, 32)
    await place.die(log)
    start = await start_of(place)
    assert (start.snapshot, start.tail) == (restored.start.snapshot, tuple(records(21, 32)))


async def test_a_batch_that_went_into_removed_files_is_not_acknowledged_and_not_lost(place, log):
    await log.append(records(1, 3))
    place.remove()
    await append_removed(log, 4, 6)
    for refused in (log.append(records(7, 7)), log.write_snapshot(Seq(1), []), log.checkpoint()):
        with pytest.raises(OutcomeUnknownError) as unknown:
            await refused
        assert unknown.value.reason is Reason.LOG_REMOVED
    assert await log.read(Seq(0), 99) == records(1, 6)
    assert (await log.restore()).start.tail == tuple(records(1, 6))
    await log.append(records(7, 7))
    await place.die(log)
    assert (await start_of(place)).head == 7


async def test_a_removed_log_is_not_closed_by_opening_it_again(place, log):
    await log.append(records(1, 3))
    place.remove()
    for _ in range(2):
        with pytest.raises(TransientError) as refused:
            await log.reopen()
        assert refused.value.reason is Reason.LOG_REMOVED
    assert (await log.restore()).start.head == 3


@pytest.mark.parametrize(
    ("fault", "head"), [(LogFault.LOST, 2), (LogFault.APPLIED, 5)], ids=["lost", "applied"]
)
async def test_a_sync_that_fails_while_the_files_are_gone_loses_nothing_that_was_acknowledged(
    place, log, fault, head
):
    await log.append(records(1, 2))
    place.faults.plan(fault)
    place.remove()
    with pytest.raises(OutcomeUnknownError) as unknown:
        await log.append(records(3, 5))
    assert unknown.value.reason is Reason.LOG_WRITE_FAILED
    with pytest.raises(TransientError):
        await log.reopen()
    assert (await log.restore()).start.tail == tuple(records(1, head))
    await log.append(records(head + 1, head + 1))
    await place.die(log)
    assert (await start_of(place)).head == head + 1


async def test_what_stands_in_the_place_of_the_log_is_moved_aside(place, log):
    await log.append(records(1, 9))
    place.replace()
    assert await log.missing()
    restored = await log.restore()
    assert (restored.events, len(restored.aside)) == (9, 1)
    assert "replaced" in restored.aside[0]
    assert place.kept_aside() == 2
    await place.die(log)
    assert (await start_of(place)).tail == tuple(records(1, 9))


async def test_a_log_that_cannot_be_put_back_takes_nothing_and_is_put_back_later(place, log):
    await log.append(records(1, 3))
    place.remove()
    place.forbid()
    for _ in range(2):
        with pytest.raises(TransientError) as refused:
            await log.restore()
        assert refused.value.reason is Reason.LOG_REMOVED
        assert "cannot be put back" in refused.value.detail
        with pytest.raises(OutcomeUnknownError):
            await log.append(records(4, 4))
    assert await log.missing()
    assert await log.read(Seq(0), 9) == records(1, 3)
    place.allow()
    assert (await log.restore()).start.tail == tuple(records(1, 3))
    await log.append(records(4, 4))
    await place.die(log)
    assert (await start_of(place)).head == 4


async def test_a_log_is_put_back_as_often_as_it_is_removed(place, log):
    for number in range(1, 5):
        await log.append([record(number)])
        place.remove()
        assert (await log.restore()).events == number
    await place.die(log)
    assert (await start_of(place)).head == 4


async def test_a_process_that_dies_before_a_removed_log_is_put_back_leaves_no_log(place, log):
    await log.append(records(1, 3))
    place.remove()
    await place.die(log)
    assert (await start_of(place)).head == 0
