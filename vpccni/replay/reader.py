"""A log file, read from outside: the agent's own, while it runs, or a copy of it from anywhere.

Nothing is ever written to a log here, and the directory of a copied log stays as it is. With the agent
running, SQLite's own ``-wal`` and ``-shm`` are shared with it. A copy that has its -wal but no wal-index is
read from a private copy in the temporary directory; a copy without a -wal is read in place.

Imports only the standard library, msgspec and pure modules: a replay starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from vpccni.adapters.log_files import LogFiles
from vpccni.adapters.log_format import (
    SCHEMA_VERSION,
    LogDamageError,
    Snapshot,
    chained,
    opened,
    unpack_snapshot,
)
from vpccni.adapters.log_verify import (
    check_integrity,
    check_schema,
    damage_translated,
    events_after,
    events_of_subject,
    floor_of,
    hash_at,
    head_of,
    snapshots_of,
)
from vpccni.errors import PermanentError, Reason
from vpccni.events.codec import Record
from vpccni.events.envelope import Stored
from vpccni.model import Seq

PROGRESS_EVERY: Final = 10_000
"""Events between two calls of a progress callback: some thirty a second."""

Progress = Callable[[int, int], None]
"""Called with (events checked, last event)."""


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a full verification of a log found.

    Attributes:
        ok: Chain whole, every event decodable, every snapshot sound, SQLite content with the file.
        first_bad_seq: The first event that is wrong; 0 when ``ok`` or when it is not about one event.
        why: What is wrong, one sentence; empty when ``ok``.
        events: How many events were found good, counted from the first kept one.
        head_seq, head_hash: The last good event, and its hash in hexadecimal.
        snapshots: How many snapshots were found good.
        ends_without_wal: There is no -wal beside the file.
        notes: What a reader of the report should know and is no damage.
    """

    ok: bool
    first_bad_seq: Seq = Seq(0)
    why: str = ""
    events: int
    head_seq: Seq
    head_hash: str
    snapshots: int
    ends_without_wal: bool
    notes: tuple[str, ...] = ()


class LogFile:
    """An open log. A context manager; iterators end with it.

    Every method may raise ``PermanentError`` (``log_damaged``), also in the middle of an iteration. While
    an iterator is under way, all methods see the log as it was at its beginning.

    Attributes:
        path: The file as it was named.
        ends_without_wal: There is no -wal beside it: the log was closed properly, or the copy lacks it.
        wal_damage: Why the log ends before its end, in a copy whose -wal is damaged; empty otherwise. SQLite passes
            over everything that follows a damaged frame.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        on_close: contextlib.ExitStack,
        ends_without_wal: bool,
        wal_damage: str = "",
    ) -> None:
        self.path = path
        self.wal_damage = wal_damage
        self.ends_without_wal = ends_without_wal
        self._connection = connection
        self._on_close = on_close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and whatever copy was made. Idempotent."""
        self._on_close.close()

    def records(self, after: int = 0, upto: int | None = None) -> Iterator[Stored]:
        """Records that follow ``after``, in order, up to and including ``upto``; as they are stored."""
        with self._damage_named():
            yield from events_after(self._connection, after, upto)

    def by_subject(self, kind: str, subject: str) -> Iterator[Stored]:
        """Records about one subject (``vpccni.events.subjects``), in order."""
        with self._damage_named():
            yield from events_of_subject(self._connection, kind, subject)

    def decoded(self, stored: Stored) -> Record:
        """The record with its event."""
        with self._damage_named():
            return opened(stored)

    def snapshots(self) -> list[Snapshot]:
        """The stored snapshots, oldest first, unchecked."""
        with self._damage_named():
            return sorted(snapshots_of(self._connection), key=lambda one: one.seq)

    def snapshot_records(self, snapshot: Snapshot) -> tuple[Record, ...]:
        """The records of a snapshot, after checking its digest and its place in the chain."""
        with self._damage_named():
            return unpack_snapshot(snapshot, hash_at(self._connection, snapshot.seq))

    def head(self) -> tuple[Seq, bytes]:
        """The last event's sequence number and hash; 0 and the genesis hash for an empty log."""
        with self._damage_named():
            head = head_of(self._connection)
        return head.seq, head.hash

    def verify_chain(self, progress: Progress | None = None) -> ChainReport:
        """Check everything: pages, chain, every event's decoding, every snapshot. Never raises on damage.

        Events that an agent appends meanwhile are left out.
        """
        good, at_seq, at_hash, good_snapshots = 0, 0, b"", 0
        notes = []
        why, bad = "", 0
        try:
            last = head_of(self._connection).seq
            floor = floor_of(self._connection)
            at_seq, at_hash = floor.seq, floor.hash
            if floor.seq:
                notes.append(f"events up to {floor.seq} were moved into a closed segment")
            for stored in chained(events_after(self._connection, floor.seq, last), floor.seq, floor.hash):
                opened(stored)
                good, at_seq, at_hash = good + 1, stored.seq, stored.hash
                if progress is not None and good % PROGRESS_EVERY == 0:
                    progress(stored.seq, last)
            self._check_rest(at_seq, last)
            for snapshot in snapshots_of(self._connection):
                unpack_snapshot(snapshot, hash_at(self._connection, snapshot.seq))
                good_snapshots += 1
        except (LogDamageError, PermanentError) as error:
            why = str(error)
            bad = error.seq if isinstance(error, LogDamageError) else 0
        if self.ends_without_wal:
            notes.append(
                f"there is no -wal: the log ends at event {at_seq}; a copy of a running agent's log that was"
                " made without its -wal lacks what came after"
            )
        return ChainReport(
            ok=not why,
            first_bad_seq=Seq(bad),
            why=why,
            events=good,
            head_seq=Seq(at_seq),
            head_hash=at_hash.hex(),
            snapshots=good_snapshots,
            ends_without_wal=self.ends_without_wal,
            notes=tuple(notes),
        )

    def _check_rest(self, at: int, last: int) -> None:
        """What is no event: that the log is as long as it says, its index, its pages."""
        if at != last:
            raise LogDamageError(f"is missing (the log claims to end at {last})", at + 1)
        if self.wal_damage:
            raise LogDamageError(self.wal_damage)
        check_integrity(self._connection)
        with damage_translated():
            # One statement, hence one view: an agent may append between two.
            stray = self._connection.execute(
                "SELECT seq FROM event_subject WHERE seq > max("
                "coalesce((SELECT max(seq) FROM event), 0), coalesce((SELECT max(last_seq) FROM segment), 0)"
                ") LIMIT 1"
            ).fetchone()
        if stray is not None:
            raise LogDamageError("is missing, the subject index names it", stray[0])

    @contextlib.contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except LogDamageError as error:
            raise PermanentError(Reason.LOG_DAMAGED, f"{self.path}: {error}") from error


def open_log(path: Path) -> LogFile:
    """Open a log for reading, also while an agent writes it.

    Raises:
        PermanentError: ``log_damaged`` when it is no readable log, ``log_newer``, ``log_in_use`` when
            somebody else than an agent holds it locked.
    """
    stack = contextlib.ExitStack()
    try:
        return _open(path, stack)
    except LogDamageError as error:
        stack.close()
        raise PermanentError(Reason.LOG_DAMAGED, f"{path}: {error}") from error
    except OSError as error:
        stack.close()
        raise PermanentError(Reason.LOG_DAMAGED, f"{path} cannot be read: {error}") from error
    except BaseException:
        stack.close()
        raise


def _open(path: Path, stack: contextlib.ExitStack) -> LogFile:
    wal = path.with_name(path.name + "-wal")
    shm = path.with_name(path.name + "-shm")
    if not path.is_file():
        raise LogDamageError("there is no such file")
    if path.stat().st_size == 0:
        raise LogDamageError("the file is empty")
    has_wal = wal.exists()
    place = path
    last = stack.enter_context(contextlib.ExitStack())
    if has_wal and not (shm.exists() and os.access(shm, os.W_OK)):
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vpccni-replay-")))
        place = private / "log"
        shutil.copyfile(path, place)
        shutil.copyfile(wal, place.with_name("log-wal"))
    # Without a -wal nobody is writing, and SQLite would leave files beside a copy that is evidence.
    mode = "mode=ro" if has_wal else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"{place.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise LogDamageError(f"SQLite cannot open it: {error}") from error
    # Closed in reverse: the connection first, then what must outlive it, then the private copy.
    stack.callback(connection.close)
    connection.execute("PRAGMA busy_timeout = 2000")
    check_schema(connection, SCHEMA_VERSION)
    wal_damage = ""
    if place != path:  # Beside an agent that writes, the -wal is ahead of what was looked at.
        try:
            LogFiles(place).check_wal(last)
        except LogDamageError as error:
            wal_damage = str(error)
    return LogFile(path, connection, on_close=stack, ends_without_wal=not has_wal, wal_damage=wal_damage)
