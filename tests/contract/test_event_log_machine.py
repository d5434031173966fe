"""The event log against a list: whatever is appended, fails, dies, is removed and is opened again."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.contract.test_event_log import MemoryPlace, Place, SqlitePlace
from tests.data.event_samples import records
from vpccni.adapters.log_format import LogFault
from vpccni.errors import OutcomeUnknownError, Reason, TransientError
from vpccni.events.codec import Record
from vpccni.model import Seq
from vpccni.ports import LogStart

COUNTS = st.integers(1, 7)


class LogMachine(RuleBasedStateMachine):
    """``head`` and ``snapshot`` are the model: records are numbered from 1 and made by their number.

    While ``is_removed`` the files are not at their path: they hold everything, and die with the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.place = self.new_place(Path(self.directory.name))
        self.head = self.snapshot = 0
        self.is_removed = False

    def new_place(self, directory: Path) -> Place:
        raise NotImplementedError

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def next(self, count: int) -> list[Record]:
        return records(self.head + 1, self.head + count)

    def found(self, start: LogStart) -> None:
        """What a start says: the newest snapshot and everything after it."""
        assert start.head == self.head
        assert start.snapshot == tuple(records(1, self.snapshot))
        assert start.tail == tuple(records(self.snapshot + 1, self.head))

    @initialize()
    def begin(self) -> None:
        self.log = self.place.log()
        if self.is_removed:
            self.head = self.snapshot = 0
            self.is_removed = False
        self.found(self.run(self.log.open()))

    @precondition(lambda self: not self.is_removed)
    @rule(count=COUNTS)
    def append(self, count: int) -> None:
        self.run(self.log.append(self.next(count)))
        self.head += count

    @precondition(lambda self: not self.is_removed)
    @rule(count=COUNTS)
    def append_to_a_full_disk(self, count: int) -> None:
        self.place.faults.plan(LogFault.DISK_FULL)
        with pytest.raises(TransientError) as caught:
            self.run(self.log.append(self.next(count)))
        assert caught.value.reason is Reason.LOG_DISK_FULL

    @precondition(lambda self: not self.is_removed)
    @rule(count=COUNTS, fault=st.sampled_from([LogFault.LOST, LogFault.APPLIED]), dies=st.booleans())
    def append_with_unknown_outcome(self, count: int, fault: LogFault, dies: bool) -> None:
        self.place.faults.plan(fault)
        with pytest.raises(OutcomeUnknownError):
            self.run(self.log.append(self.next(count)))
        with pytest.raises(OutcomeUnknownError):  # Nothing goes on before it is known.
            self.run(self.log.append(self.next(count)))
        if fault is LogFault.APPLIED:
            self.head += count
        if dies:
            self.kill()
        else:
            self.reopen()

    @precondition(lambda self: self.head > self.snapshot and not self.is_removed)
    @rule()
    def take_snapshot(self) -> None:
        self.run(self.log.write_snapshot(Seq(self.head), records(1, self.head)))
        self.snapshot = self.head

    @precondition(lambda self: not self.is_removed)
    @rule()
    def checkpoint(self) -> None:
        self.run(self.log.checkpoint())

    @rule(replaces=st.booleans())
    def remove(self, replaces: bool) -> None:
        if self.is_removed:
            return
        if replaces and self.head >= 2:
            self.place.replace()
            assert self.run(self.log.missing())
            self.restore()
        else:
            self.place.remove()
            self.is_removed = True

    @precondition(lambda self: self.is_removed)
    @rule(count=COUNTS)
    def append_to_removed_files(self, count: int) -> None:
        with pytest.raises(OutcomeUnknownError) as caught:
            self.run(self.log.append(self.next(count)))
        assert caught.value.reason is Reason.LOG_REMOVED
        self.head += count
        with pytest.raises(TransientError):
            self.run(self.log.reopen())
        self.restore()

    @rule()
    def restore(self) -> None:
        was_removed, self.is_removed = bool(self.run(self.log.missing())), False
        restored = self.run(self.log.restore())
        assert bool(restored.missing) == was_removed
        assert restored.events == self.head
        self.found(restored.start)

    @precondition(lambda self: not self.is_removed)
    @rule()
    def reopen(self) -> None:
        self.found(self.run(self.log.reopen()))

    @rule()
    def restart(self) -> None:
        self.run(self.log.close())
        self.begin()

    @rule()
    def kill(self) -> None:
        self.run(self.place.die(self.log))
        self.begin()

    @invariant()
    def everything_can_be_read(self) -> None:
        if hasattr(self, "log"):
            assert self.run(self.log.read(Seq(0), self.head + 10)) == records(1, self.head)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.run(self.log.close())
        self.runner.close()
        self.directory.cleanup()


class MemoryLogMachine(LogMachine):
    def new_place(self, directory: Path) -> Place:
        return MemoryPlace()


class SqliteLogMachine(LogMachine):
    def new_place(self, directory: Path) -> Place:
        return SqlitePlace(directory)


TestMemoryLog = MemoryLogMachine.TestCase
TestMemoryLog.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSqliteLog = SqliteLogMachine.TestCase
TestSqliteLog.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
