"""The one connection through which a log is written, read and cared for.

It belongs to aiosqlite's thread. A batch is one hop there: it is staged by the loop's thread, and ``commit`` runs
``BEGIN IMMEDIATE``, all inserts and ``COMMIT``. (One hop costs 0.1 ms, each statement through SQLAlchemy's async
layer 0.5 ms.) What is no batch goes through SQLAlchemy on the same connection. That is imported when it is first
needed, on a thread: 0.25 s of the processor that would stand between a restart and the first ADD.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiosqlite

from vpccni.adapters.finish import finish
from vpccni.adapters.log_format import LogFault

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

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


class _BatchConnection(sqlite3.Connection):
    """A connection on which ``commit`` is a whole transaction: begin, the staged work, commit.

    Work is staged by the loop's thread and done by aiosqlite's, in the same order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._staged: deque[tuple[Work, LogFault | None, Callable[[], None] | None]] = deque()
        try:
            for pragma in _PRAGMAS:
                self.execute(pragma)
        except BaseException:
            self.close()  # Whoever asked for it never gets it.
            raise

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


class LogConnection:
    """An open database. Everything raises ``sqlite3.Error`` with what SQLite said."""

    def __init__(self, path: Path, driver: aiosqlite.Connection, batches: _BatchConnection) -> None:
        self._path = path
        self._driver = driver
        self._batches = batches
        self._alchemy: AsyncConnection | None = None

    @classmethod
    async def open(cls, path: Path, then: Callable[[], None]) -> LogConnection:
        """Open a database that exists, for writing.

        Args:
            path: Where it is.
            then: Called on the connection's thread as soon as its files are open.
        """
        made: list[_BatchConnection] = []

        def factory(*args: Any, **kwargs: Any) -> _BatchConnection:
            made.append(_BatchConnection(*args, **kwargs))
            try:
                then()
            except BaseException:
                made[0].close()  # Nobody else knows of it.
                raise
            return made[0]

        # ``rw``: SQLite would make an empty database where there is none. Autocommit: a transaction begins where
        # we say so.
        driver = await aiosqlite.connect(_uri(path, "rw"), uri=True, factory=factory, isolation_level=None)
        return cls(path, driver, made[0])

    async def commit(
        self, work: Work, fault: LogFault | None = None, then: Callable[[], None] | None = None
    ) -> None:
        """Do this work in one transaction on the connection's thread, and then, when it is durable, that."""
        self._batches.stage(work, fault, then)
        await self._driver.commit()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read in one transaction on the connection's thread."""
        found: list[T] = []
        await self.commit(lambda connection: found.append(work(connection)))
        return found[0]

    async def copy_to(self, target: sqlite3.Connection) -> None:
        """Copy all that the connection sees into another database, page by page, also what is in its -wal."""
        await self._driver.backup(target)

    async def sql(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement that is no batch, to its end, also when the caller is cancelled.

        SQLAlchemy closes a connection on which it was cancelled, and this one is the batches', too.
        """
        return await finish(self._statement(query, parameters), "statement")

    async def _statement(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = await self._through_sqlalchemy()
        from sqlalchemy.exc import DBAPIError

        try:
            result = await connection.exec_driver_sql(query, parameters)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []
        except DBAPIError as error:
            raise _cause(error) from error

    async def run(self, work: Callable[[Connection, T], None], argument: T) -> None:
        """Have a function work with SQLAlchemy's synchronous connection."""
        connection = await self._through_sqlalchemy()
        from sqlalchemy.exc import DBAPIError

        try:
            await connection.run_sync(work, argument)
        except DBAPIError as error:
            raise _cause(error) from error

    async def _through_sqlalchemy(self) -> AsyncConnection:
        """SQLAlchemy's hold on the connection, made when first asked for."""
        if self._alchemy is None:
            await load_sqlalchemy()
            from sqlalchemy.ext.asyncio import create_async_engine
            from sqlalchemy.pool import NullPool

            async def ours() -> aiosqlite.Connection:
                return self._driver

            engine = create_async_engine(
                "sqlite+aiosqlite://", async_creator=ours, poolclass=NullPool, isolation_level="AUTOCOMMIT"
            )
            self._alchemy = await engine.connect()
        return self._alchemy

    async def close(self, *, is_writing: bool) -> None:
        """Close it; unless ``is_writing``, nothing of the -wal is brought into the file.

        A database whose file is not at its path any more is left as it is in any case: SQLite sees that.
        """
        async with contextlib.AsyncExitStack() as stack:
            if not is_writing:
                # SQLite checkpoints when the last connection closes; one that cannot write closes last.
                guard = await asyncio.to_thread(_hold, self._path)
                if guard is not None:
                    stack.callback(guard.close)
            stack.push_async_callback(self._driver.close)
            if self._alchemy is not None:
                stack.push_async_callback(self._alchemy.engine.dispose)
                stack.push_async_callback(self._alchemy.close)


async def load_sqlalchemy() -> None:
    """Import it on a thread; to be awaited before the lock is taken, so that no batch waits for it."""
    await asyncio.to_thread(importlib.import_module, "sqlalchemy.ext.asyncio")


def _cause(error: DBAPIError) -> sqlite3.Error:
    """SQLite's own error below SQLAlchemy's."""
    return error.orig if isinstance(error.orig, sqlite3.Error) else sqlite3.OperationalError(str(error))


def _hold(path: Path) -> sqlite3.Connection | None:
    """A connection that cannot write and yet keeps others from being the last; ``None`` without a file."""
    try:
        guard = sqlite3.connect(_uri(path, "ro"), uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error:
        return None
    # A damaged file needs no guard: SQLite cannot checkpoint into what it cannot read.
    with contextlib.suppress(sqlite3.Error):
        guard.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return guard


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"
