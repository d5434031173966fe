"""The connection through which a log is written: a batch is one hop to its thread.

A batch is staged by the loop's thread and committed by aiosqlite's: ``BEGIN IMMEDIATE``, all inserts and
``COMMIT`` there. (One hop costs 0.1 ms, each statement through SQLAlchemy's async layer 0.5 ms.)
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from vpccni.adapters.log_format import LogFault

BUSY_TIMEOUT_MS: Final = 250
"""How long a foreign lock (somebody's ``sqlite3`` shell) may hold up a batch. Readers never do."""

_PRAGMAS: Final = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL would lose acknowledged leases at power loss
    "PRAGMA wal_autocheckpoint = 0",  # a checkpoint is several syncs: never inside an ADD
)

Work = Callable[[sqlite3.Connection], None]
"""The statements of a batch, inside its transaction."""


class BatchConnection(sqlite3.Connection):
    """A connection on which ``commit`` is a whole transaction: begin, the staged work, commit.

    Work is staged by the loop's thread and done by aiosqlite's, in the same order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staged: deque[tuple[Work, LogFault | None, Callable[[], None] | None]] = deque()
        for pragma in _PRAGMAS:
            self.execute(pragma)

    def stage(self, work: Work, fault: LogFault | None, then: Callable[[], None] | None) -> None:
        """Have the next ``commit`` do this work in one transaction, and ``then`` this."""
        self._staged.append((work, fault, then))

    def commit(self) -> None:
        """Do the staged work, all or nothing; without staged work an ordinary commit.

        Raises:
            sqlite3.Error: Nothing is pending on the connection afterwards; what became of the batch
                depends on the error.
        """
        if not self._staged:
            super().commit()
            return
        work, fault, then = self._staged.popleft()
        try:
            self.execute("BEGIN IMMEDIATE")
            work(self)
            _strike(fault, LogFault.DISK_FULL, LogFault.LOST)
            self.execute("COMMIT")
        except BaseException:
            if self.in_transaction:
                self.execute("ROLLBACK")
            raise
        _strike(fault, LogFault.APPLIED)
        if then is not None:
            then()


def _strike(fault: LogFault | None, *here: LogFault) -> None:
    """Raise what SQLite would, when a test asked for a failure at this point."""
    if fault not in here:
        return
    is_full = fault is LogFault.DISK_FULL
    error = sqlite3.OperationalError("database or disk is full" if is_full else "disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if is_full else sqlite3.SQLITE_IOERR_FSYNC
    raise error
