"""``SqliteLog``: the event log as one SQLite file.

Theory of operation. Opening has two halves. The first runs on a worker thread over a connection that
cannot write: it looks at the files, verifies the chain from the last snapshot on, and reads. Only a log
that passed is opened for writing, by one connection that stays open (see ``log_connection``).

With ``synchronous=FULL`` the COMMIT of a batch returns after the -wal was synced. The -wal is not truncated
between checkpoints, and lengthened ahead of the batches when nobody is at work: a sync that only writes over blocks
waits for no journal of the filesystem's.

====================  ============================================  ==================================
state                 entered by                                    what is allowed
====================  ============================================  ==================================
closed                construction, ``close``, a failed ``open``    ``open``
open                  ``open``, ``reopen``                          everything
failed                a batch whose outcome is unknown              ``reopen``, ``close``, ``read``
removed               a batch, or a ``restore`` in vain, that       ``restore``, ``close``, ``read``
                      found the files gone from the path
====================  ============================================  ==================================

Files that are removed while they are open keep what is in them (see ``log_place``). Each batch looks, when it is
committed and before it is told, whether the two files with events are still at the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vpccni.adapters.finish import finish
from vpccni.adapters.log_connection import LogConnection, Work, load_sqlalchemy
from vpccni.adapters.log_files import LogFiles, Missing, is_no_space, reading
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
from vpccni.adapters.log_place import LogPlace
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
from vpccni.ports import LogStart, Restored

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
        self._place = LogPlace(self._files)
        self._volatile_ok = volatile_ok
        self._faults = faults
        self._schema = schema
        self._migrations = migrations
        self._wal_bytes_max = self._wal_threshold = wal_bytes_max
        self._lock = asyncio.Lock()
        self._connection: LogConnection | None = None
        self._head = Head(Seq(0), GENESIS)
        self._failure = ""
        self._removed = ""
        self._is_suspect = False

    # --- opening and closing -----------------------------------------------------------------------

    async def open(self) -> LogStart:
        """See ``EventLog.open``.

        Raises:
            TransientError: ``log_disk_full``: no room for a new log. Nothing was made.
        """
        async with self._lock:
            if self._connection is not None:
                raise InvariantBrokenError("the log is open already")
            return (await self._open()).start

    async def reopen(self) -> LogStart:
        """See ``EventLog.reopen``."""
        async with self._lock:
            if self._connection is not None:
                gone = await asyncio.to_thread(self._place.missing_data)
                if gone:
                    raise self._not_at_its_path(gone, TransientError)
            return (await self._reopen()).start

    async def _reopen(self) -> Start:
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
            if self._connection is not None:
                await asyncio.to_thread(self._place.make_way_for_closing)
            await self._disconnect(is_writing=not self._failure)
            self._place.forget_copy()
            self._files.release()

    async def _open(self) -> Start:
        try:
            found, is_torn = await asyncio.to_thread(self._examine)
            self._connection = await LogConnection.open(self._files.main, self._place.note_opened)
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
        self._head, self._failure, self._removed, self._is_suspect = found.head, "", "", False
        self._wal_threshold = self._wal_bytes_max
        self.notes = (*found.notes, _TORN_NOTE) if is_torn else found.notes
        return found

    def _examine(self) -> tuple[Start, bool]:
        """Look at everything without a writing connection; make a fresh log where none is missed."""
        files, lost = self._files, ""
        try:
            files.prepare_directory(volatile_ok=self._volatile_ok)
            files.acquire()
            files.remove_new()
            missing = files.missing()
            if missing is Missing.LOST:
                lost = f"the log that was at {files.main} is gone, a new one is made{files.set_aside()}"
            if missing is not Missing.NOTHING:
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
        if lost:
            start = msgspec.structs.replace(found.start, is_lost=True)
            found = msgspec.structs.replace(found, start=start, notes=(*found.notes, lost))
        return found, is_torn

    async def _disconnect(self, *, is_writing: bool) -> None:
        """Close the connection; unless ``is_writing``, nothing of the -wal is brought into the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(is_writing=is_writing)

    async def _migrate(self) -> None:
        await self._opened().run(migrate, self._migrations or migrations_dir())
        (version,) = (await self._sql("PRAGMA user_version"))[0]
        if version != self._schema:
            raise InvariantBrokenError(f"the migrations lead to schema {version}, not to {self._schema}")

    def _opened(self) -> LogConnection:
        if self._connection is None:
            raise InvariantBrokenError("the log is not open")
        return self._connection

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
            gone: tuple[str, ...] = ()

            def note() -> None:
                nonlocal gone
                self._files.note_head(head.seq)
                gone = self._place.missing_data()

            await self._commit(write, self._faults.take() if self._faults else None, note)
            self._head = head
            if gone:
                raise self._not_at_its_path(gone, OutcomeUnknownError)
            if self._files.wal_bytes() > self._wal_threshold:
                await self._checkpoint_in_need()

    async def write_snapshot(self, seq: Seq, records: Sequence[Record]) -> None:
        """See ``EventLog.write_snapshot``. One at or before the newest is left out: it adds nothing."""
        await load_sqlalchemy()
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
        connection = self._opened()
        # Stays when the caller is cancelled while the thread is at work: then nobody knows.
        self._failure = "a batch was given up in the middle"
        try:
            await connection.commit(work, fault, then)
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

    # --- when its files are gone from the path ------------------------------------------------------

    async def missing(self) -> tuple[str, ...]:
        """See ``EventLog.missing``."""
        async with self._lock:
            if self._connection is None:
                return ()
            # On the loop: what is looked at every other second is in memory, whatever the disk does.
            return self._place.missing()

    async def restore(self) -> Restored:
        """See ``EventLog.restore``."""
        await load_sqlalchemy()
        async with self._lock:
            return await finish(self._restore(self._opened()), "restore the log")

    async def _restore(self, connection: LogConnection) -> Restored:
        place, missing = self._place, await asyncio.to_thread(self._place.missing)
        try:
            aside = await asyncio.to_thread(place.retake, self._head.seq, volatile_ok=self._volatile_ok)
            is_copied = bool(await asyncio.to_thread(place.missing_data))
            if is_copied:
                newest = Head(self._head.seq, b"") if self._failure else self._head
                aside += await place.copy_from(connection, newest, self._schema)
        except (VpccniError, LogDamageError, OSError, sqlite3.Error) as error:
            raise self._not_restored(missing, error) from error
        if is_copied:
            found = await self._open_copy(connection, missing)
        elif self._failure:
            found = await self._reopen()
        else:
            found = await self._look_again(connection)
            self._head, self._removed = found.head, ""
        return Restored(start=found.start, missing=missing, aside=aside, events=found.events)

    async def _open_copy(self, connection: LogConnection, missing: tuple[str, ...]) -> Start:
        """Open what was put in place. Only when that is done, what was open before is let go of."""
        before, opened = (self._head, self._failure), self._place.opened()
        self._connection = None
        why: Exception = OSError("what was put there was removed, too")
        try:
            found = await self._open()
            if self._place.is_copy_open():
                self._place.forget_copy()
                with contextlib.suppress(sqlite3.Error):
                    await connection.close(is_writing=True)
                return found
        except VpccniError as error:
            why = error
        await self._disconnect(is_writing=False)
        self._connection, (self._head, self._failure) = connection, before
        self._place.go_back_to(opened)
        raise self._not_restored(missing, why) from why

    async def _look_again(self, connection: LogConnection) -> Start:
        """What is in the log now: while the lock was gone, another agent may have written to it."""
        try:
            with damage_translated():
                return await connection.read(lambda reader: read_start(reader, self._schema))
        except LogDamageError as error:
            raise PermanentError(Reason.LOG_DAMAGED, f"{self._files.main}: {error}") from error

    def _not_restored(self, missing: tuple[str, ...], error: Exception) -> VpccniError:
        if isinstance(error, PermanentError) and error.reason is Reason.LOG_IN_USE:
            return error
        with contextlib.suppress(OSError):
            self._files.remove_new()
        if is_no_space(error):
            self._files.release_reserve()
        return self._not_at_its_path(missing, TransientError, f", cannot be put back: {error}")

    def _not_at_its_path(self, gone: tuple[str, ...], kind: type[VpccniError], why: str = "") -> VpccniError:
        """Nothing more is taken until ``restore``. The error that says so."""
        self._removed = ", ".join(gone) or "files of the log"
        return kind(
            Reason.LOG_REMOVED, f"removed or replaced in {self._files.main.parent}: {self._removed}{why}"
        )

    # --- reading and care --------------------------------------------------------------------------

    async def read(self, after: Seq, limit: int) -> list[Record]:
        """See ``EventLog.read``.

        Raises:
            PermanentError: ``log_damaged``.
        """
        await load_sqlalchemy()
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
        await load_sqlalchemy()
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
                if self._connection is None or self._failure:
                    return
                # To its end: the next batch may be longer than what is there now.
                step, ours = self._wal_bytes_max // WAL_SLICES, self._place.wal()
                lengthened = asyncio.to_thread(self._files.lengthen_wal, step, ours)
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
        return await self._opened().sql(query, parameters)

    def _check_usable(self) -> None:
        if self._connection is None:
            raise InvariantBrokenError("the log is not open")
        if self._removed:
            raise OutcomeUnknownError(Reason.LOG_REMOVED, f"restore the log first: {self._removed}")
        if self._failure:
            raise OutcomeUnknownError(Reason.LOG_WRITE_FAILED, f"reopen the log first: {self._failure}")
