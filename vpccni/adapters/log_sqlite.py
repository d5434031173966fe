"""``SqliteLog``: the event log as one SQLite file.

Theory of operation. Opening has two halves. The first runs on a worker thread over a connection that
cannot write: it looks at the files, verifies the chain from the last snapshot on, and reads. Only a log
that passed is opened for writing, by one connection of aiosqlite that stays open. What is no batch
(reading, checkpoints, migrations) goes through SQLAlchemy on that same connection. SQLAlchemy is imported when
it is first needed, on a thread: 0.25 s of the processor that would stand between a restart and the first ADD.

A batch is one hop to aiosqlite's thread (see ``log_batch``). With ``synchronous=FULL`` its COMMIT returns
after the -wal was synced. The -wal is not truncated between checkpoints, and lengthened ahead of the
batches when nobody is at work: a sync that only writes over blocks waits for no journal of the filesystem's.

====================  ============================================  ==================================
state                 entered by                                    what is allowed
====================  ============================================  ==================================
closed                construction, ``close``, a failed ``open``    ``open``
open                  ``open``, ``reopen``                          everything
failed                a batch whose outcome is unknown              ``reopen``, ``close``, ``read``
====================  ============================================  ==================================
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiosqlite

from vpccni.adapters.finish import finish
from vpccni.adapters.log_batch import BatchConnection, Work
from vpccni.adapters.log_files import LogFiles, is_no_space, reading
from vpccni.adapters.log_format import (
    EVENT_COLUMNS,
    SCHEMA_VERSION,
    SNAPSHOTS_KEPT,
    LogDamageError,
    LogFault,
    LogFaults,
    opened,
    pack_snapshot,
    row_of,
    sealed,
    stored_of,
)
from vpccni.adapters.log_schema import (
    DELETE_OLD_SNAPSHOTS,
    INSERT_EVENT,
    INSERT_SNAPSHOT,
    INSERT_SUBJECT,
    migrate,
    migrations_dir,
)
from vpccni.adapters.log_verify import (
    Head,
    Start,
    check_integrity,
    check_schema,
    damage_translated,
    read_start,
)
from vpccni.errors import (
    InvariantBrokenError,
    OutcomeUnknownError,
    PermanentError,
    Reason,
    TransientError,
    VpccniError,
)
from vpccni.events.codec import Record
from vpccni.events.envelope import GENESIS
from vpccni.events.subjects import subjects_of
from vpccni.model import Seq
from vpccni.ports import LogStart

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncConnection

WAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Past this an append itself brings the -wal into the file: nobody was idle for some 10,000 batches."""

WAL_AHEAD: Final = 16
"""This part of it is there before it is needed: some hundred batches."""
WAL_SLICES: Final = 128
"""Made in slices of this part, each half a MiB: a batch waits for one at most."""

_TORN_NOTE: Final = (
    "the last transaction of the -wal was not whole and was given up: it was being written when power was lost, "
    "or its frames are damaged"
)

_SUSPECT_CODES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteLog:
    """An ``EventLog`` over one SQLite file.

    Attributes:
        notes: What the last opening found odd and yet harmless, for the text log.
    """

    def __init__(
        self,
        path: Path,
        *,
        volatile_ok: bool = False,
        faults: LogFaults | None = None,
        schema: int = SCHEMA_VERSION,
        migrations: Path | None = None,
        wal_bytes_max: int = WAL_BYTES_MAX,
    ) -> None:
        """Prepare; nothing is touched before ``open``.

        Args:
            path: The database; its directory is made when it is missing.
            volatile_ok: Accept a filesystem that loses the log at a reboot or with the container.
            faults: Failures for tests.
            schema: The newest schema revision that this code reads and writes.
            migrations: Where the revisions are, if not where :func:`migrations_dir` says.
            wal_bytes_max: Where an append checkpoints by itself.
        """
        self.notes: tuple[str, ...] = ()
        self._files = LogFiles(path)
        self._volatile_ok = volatile_ok
        self._faults = faults
        self._schema = schema
        self._migrations = migrations
        self._wal_bytes_max = self._wal_threshold = wal_bytes_max
        self._lock = asyncio.Lock()
        self._driver: aiosqlite.Connection | None = None
        self._batches: BatchConnection | None = None
        self._connection: AsyncConnection | None = None
        self._head = Head(Seq(0), GENESIS)
        self._failure = ""
        self._is_suspect = False

    # --- opening and closing -----------------------------------------------------------------------

    async def open(self) -> LogStart:
        """See ``EventLog.open``.

        Raises:
            TransientError: ``log_disk_full``: no room for a new log. Nothing was made.
        """
        async with self._lock:
            if self._driver is not None:
                raise InvariantBrokenError("the log is open already")
            return await self._open()

    async def reopen(self) -> LogStart:
        """See ``EventLog.reopen``."""
        async with self._lock:
            failed = self._failure
            await self._disconnect(is_writing=False)
            if failed:
                try:
                    await asyncio.to_thread(self._files.renew_wal)
                except OSError as error:
                    self._files.release()
                    raise PermanentError(
                        Reason.LOG_WRITE_FAILED, f"the -wal cannot be written anew: {error}"
                    ) from error
            return await self._open()

    async def close(self) -> None:
        """See ``EventLog.close``. A healthy log is checkpointed, so that the one file is whole."""
        async with self._lock:
            await self._disconnect(is_writing=not self._failure)
            self._files.release()

    async def _open(self) -> LogStart:
        try:
            found, is_torn = await asyncio.to_thread(self._examine)
            await self._connect()
            if found.schema < self._schema:
                await self._migrate()
            if is_torn:
                await self._sql("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException as error:
            await self._disconnect(is_writing=False)
            self._files.release()
            if isinstance(error, sqlite3.Error):
                raise PermanentError(
                    Reason.LOG_WRITE_FAILED, f"the log cannot be opened for writing: {error}"
                ) from error
            raise
        self._head, self._failure, self._is_suspect = found.head, "", False
        self._wal_threshold = self._wal_bytes_max
        self.notes = (*found.notes, _TORN_NOTE) if is_torn else found.notes
        return found.start

    def _examine(self) -> tuple[Start, bool]:
        """Look at everything without a writing connection; make a fresh log where none is missed."""
        files = self._files
        try:
            files.prepare_directory(volatile_ok=self._volatile_ok)
            files.acquire()
            if files.is_fresh():
                files.create()
            files.mark()
            with damage_translated(), contextlib.ExitStack() as last, reading(files.main) as connection:
                schema = check_schema(connection, self._schema)
                connection.execute("BEGIN")
                found = read_start(connection, schema)
                is_torn = files.check_wal(last)
                files.check_head(found.head.seq)
                if self._is_suspect:
                    check_integrity(connection)
            files.restore_reserve()
        except LogDamageError as error:
            copied = files.quarantine()
            raise PermanentError(Reason.LOG_DAMAGED, f"{files.main}: {error}; {copied}") from error
        except OSError as error:
            if is_no_space(error):
                raise TransientError(Reason.LOG_DISK_FULL, f"{files.main}: {error}") from error
            raise PermanentError(Reason.LOG_UNUSABLE, f"{files.main}: {error}") from error
        return found, is_torn

    async def _connect(self) -> None:
        def factory(*args: Any, **kwargs: Any) -> BatchConnection:
            self._batches = BatchConnection(*args, **kwargs)
            return self._batches

        # Autocommit: a transaction begins where we say so.
        self._driver = await aiosqlite.connect(
            self._files.main.absolute(), factory=factory, isolation_level=None
        )

    async def _alchemy(self) -> AsyncConnection:
        """SQLAlchemy's hold on the connection, made when first asked for."""
        driver = self._driver
        if driver is None:
            raise InvariantBrokenError("the log is not open")
        if self._connection is None:
            await _load_sqlalchemy()
            from sqlalchemy.ext.asyncio import create_async_engine
            from sqlalchemy.pool import NullPool

            async def ours() -> aiosqlite.Connection:
                return driver

            engine = create_async_engine(
                "sqlite+aiosqlite://", async_creator=ours, poolclass=NullPool, isolation_level="AUTOCOMMIT"
            )
            self._connection = await engine.connect()
        return self._connection

    async def _disconnect(self, *, is_writing: bool) -> None:
        """Close the connection; unless ``is_writing``, nothing of the -wal is brought into the file."""
        connection, driver = self._connection, self._driver
        self._connection = self._driver = self._batches = None
        if driver is None:
            return
        async with contextlib.AsyncExitStack() as stack:
            if not is_writing:
                # SQLite checkpoints when the last connection closes; one that cannot write closes last.
                guard = await asyncio.to_thread(_hold, self._files.main)
                stack.callback(guard.close)
            stack.push_async_callback(driver.close)
            if connection is not None:
                stack.push_async_callback(connection.engine.dispose)
                stack.push_async_callback(connection.close)

    async def _migrate(self) -> None:
        from sqlalchemy.exc import DBAPIError

        connection = await self._alchemy()
        try:
            await connection.run_sync(migrate, self._migrations or migrations_dir())
        except DBAPIError as error:
            raise _cause(error) from error
        (version,) = (await self._sql("PRAGMA user_version"))[0]
        if version != self._schema:
            raise InvariantBrokenError(f"the migrations lead to schema {version}, not to {self._schema}")

    # --- writing -----------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record]) -> None:
        """See ``EventLog.append``.

        Raises:
            InvariantBrokenError: The batch does not continue the log; nothing was appended.
        """
        async with self._lock:
            self._check_usable()
            if not records:
                return
            batch = sealed(records, self._head.seq, self._head.hash)
            rows = [row_of(one) for one in batch]
            subjects = [
                (*subject, record.seq)
                for record in records
                for subject in subjects_of(record.seq, record.event)
            ]

            def write(connection: sqlite3.Connection) -> None:
                connection.executemany(INSERT_EVENT, rows)
                connection.executemany(INSERT_SUBJECT, subjects)

            head = Head(batch[-1].seq, batch[-1].hash)
            note = functools.partial(self._files.note_head, head.seq)
            await self._commit(write, self._faults.take() if self._faults else None, note)
            self._head = head
            if self._files.wal_bytes() > self._wal_threshold:
                await self._checkpoint_in_need()

    async def write_snapshot(self, seq: Seq, records: Sequence[Record]) -> None:
        """See ``EventLog.write_snapshot``. One at or before the newest is left out: it adds nothing."""
        await _load_sqlalchemy()
        async with self._lock:
            self._check_usable()
            rows = await self._sql(
                "SELECT hash, (SELECT max(seq) FROM snapshot) FROM event WHERE seq = ?", (seq,)
            )
            if not rows:
                raise InvariantBrokenError(f"snapshot of event {seq}, which is not in the log")
            head_hash, newest = rows[0]
            if newest is not None and newest >= seq:
                return
            snapshot = pack_snapshot(seq, head_hash, records)
            row = (snapshot.seq, snapshot.head_hash, snapshot.records, snapshot.digest)

            def write(connection: sqlite3.Connection) -> None:
                connection.execute(INSERT_SNAPSHOT, row)
                connection.execute(DELETE_OLD_SNAPSHOTS, (SNAPSHOTS_KEPT,))

            await self._commit(write)

    async def _commit(
        self, work: Work, fault: LogFault | None = None, then: Callable[[], None] | None = None
    ) -> None:
        """Run one transaction on the connection's thread, and say what became of it."""
        if self._batches is None or self._driver is None:
            raise InvariantBrokenError("the log is not open")
        # Stays when the caller is cancelled while the thread is at work: then nobody knows.
        self._failure = "a batch was given up in the middle"
        self._batches.stage(work, fault, then)
        try:
            await self._driver.commit()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._failure = ""

    def _failed(self, error: sqlite3.Error) -> VpccniError:
        """Sort a failure; ``_failure`` stays set only when the outcome is unknown."""
        code = getattr(error, "sqlite_errorcode", 0)
        primary = code & 0xFF
        name = getattr(error, "sqlite_errorname", code)
        if is_no_space(error):
            # A frame that did not fit was not committed: SQLite writes the commit mark last.
            self._failure = ""
            released = self._files.release_reserve()
            detail = f"{self._files.main}: {error}" + ("; the reserve was let go" if released else "")
            return TransientError(Reason.LOG_DISK_FULL, detail)
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._failure = ""
            return TransientError(Reason.LOG_IN_USE, f"another program holds a lock on the log: {error}")
        if primary == sqlite3.SQLITE_CONSTRAINT:
            self._failure = ""
            return InvariantBrokenError(f"the log refused a batch: {error}")
        self._is_suspect = primary in _SUSPECT_CODES
        self._failure = f"{error} ({name})"
        return OutcomeUnknownError(Reason.LOG_WRITE_FAILED, f"{self._files.main}: {self._failure}")

    # --- reading and care --------------------------------------------------------------------------

    async def read(self, after: Seq, limit: int) -> list[Record]:
        """See ``EventLog.read``.

        Raises:
            PermanentError: ``log_damaged``.
        """
        await _load_sqlalchemy()
        async with self._lock:
            if limit <= 0:
                return []
            query = f"SELECT {EVENT_COLUMNS} FROM event WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - constants
            try:
                return [opened(stored_of(row)) for row in await self._sql(query, (after, limit))]
            except (LogDamageError, sqlite3.Error) as error:
                raise PermanentError(Reason.LOG_DAMAGED, f"{self._files.main}: {error}") from error

    async def checkpoint(self) -> None:
        """See ``EventLog.checkpoint``. Also takes the reserve back when there is space again.

        Raises:
            TransientError: ``log_disk_full``: the events stay in the -wal, nothing is lost.
            OutcomeUnknownError: ``log_write_failed``: nothing is lost, but the log must be reopened.
        """
        await _load_sqlalchemy()
        async with self._lock:
            self._check_usable()
            try:
                # PASSIVE waits for nobody and leaves the -wal's blocks for the next batches.
                await self._sql("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                raise self._failed(error) from error
            self.restore_reserve()
        await self._lengthen_wal()

    async def _lengthen_wal(self) -> None:
        """Make room for the next burst, slice by slice, so that no batch waits for long."""
        while self._files.wal_bytes() < self._wal_bytes_max // WAL_AHEAD:
            async with self._lock:
                if self._driver is None or self._failure:
                    return
                # To its end: the next batch may be longer than what is there now.
                lengthened = asyncio.to_thread(self._files.lengthen_wal, self._wal_bytes_max // WAL_SLICES)
                if not await finish(lengthened, "lengthen the -wal"):
                    return

    async def _checkpoint_in_need(self) -> None:
        """Empty a -wal that grew too long. The batch is durable already, so this never fails it."""
        try:
            await self._sql("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            self._failed(error)
        # A reader can hold it up: then the next try is a quarter further on.
        size = self._files.wal_bytes()
        self._wal_threshold = max(self._wal_bytes_max, size + self._wal_bytes_max // 4 if size else 0)

    def restore_reserve(self) -> bool:
        """Whether the reserve is there, after trying to take it back."""
        return self._files.restore_reserve()

    async def _sql(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement that is no batch, to its end, also when the caller is cancelled.

        SQLAlchemy closes a connection on which it was cancelled, and this one is the batches', too.

        Raises:
            sqlite3.Error: What SQLite said.
        """
        return await finish(self._statement(query, parameters), "statement")

    async def _statement(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = await self._alchemy()
        from sqlalchemy.exc import DBAPIError

        try:
            result = await connection.exec_driver_sql(query, parameters)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []
        except DBAPIError as error:
            raise _cause(error) from error

    def _check_usable(self) -> None:
        if self._driver is None:
            raise InvariantBrokenError("the log is not open")
        if self._failure:
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, f"reopen the log first: {self._failure}")


async def _load_sqlalchemy() -> None:
    """Import it on a thread; to be awaited before the lock is taken, so that no batch waits for it."""
    await asyncio.to_thread(importlib.import_module, "sqlalchemy.ext.asyncio")


def _cause(error: DBAPIError) -> sqlite3.Error:
    """SQLite's own error below SQLAlchemy's."""
    return error.orig if isinstance(error.orig, sqlite3.Error) else sqlite3.OperationalError(str(error))


def _hold(path: Path) -> sqlite3.Connection:
    """A connection that cannot write and yet keeps others from being the last."""
    guard = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    # A damaged file needs no guard: SQLite cannot checkpoint into what it cannot read.
    with contextlib.suppress(sqlite3.Error):
        guard.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return guard
