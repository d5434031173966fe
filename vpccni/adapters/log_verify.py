"""Reading and checking a log through an open ``sqlite3`` connection.

Only reads. The agent uses it at its start, on a read-only connection: SQLite would bring the -wal into a
damaged file when a writing connection closes, and a damaged log must stay as it was found. The replay
tool's reader uses it too. Everything that SQLite says against a file comes out as ``LogDamageError``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from vpccni.adapters.log_format import (
    APPLICATION_ID,
    EVENT_COLUMNS,
    LogDamageError,
    Snapshot,
    chained,
    not_understood,
    opened,
    stored_of,
    unpack_snapshot,
)
from vpccni.errors import PermanentError, Reason
from vpccni.events.codec import Record
from vpccni.events.envelope import GENESIS, Stored
from vpccni.model import Seq
from vpccni.ports import LogStart

_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Head(msgspec.Struct, frozen=True):
    """The end of the log, or of a part of it: the position, and the hash that the next event follows."""

    seq: Seq
    hash: bytes


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A verified log.

    Attributes:
        start: What ``EventLog.open`` gives.
        head: Where the next batch goes on.
        schema: Its ``user_version``.
        events: How many events it holds.
        notes: What was odd and yet harmless (a damaged snapshot that another stood in for).
    """

    start: LogStart
    head: Head
    schema: int
    events: int
    notes: tuple[str, ...]


@contextmanager
def damage_translated() -> Iterator[None]:
    """Turn what SQLite says against the file into ``LogDamageError``.

    Raises:
        LogDamageError: The file cannot be read as what it should be.
        PermanentError: ``log_in_use`` when another program holds it locked.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise PermanentError(
                Reason.LOG_IN_USE, f"another program holds a lock on the log: {error}"
            ) from error
        raise LogDamageError(f"SQLite cannot read it: {error}") from error
    except (UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise LogDamageError(f"a row cannot be read: {error}") from error


def schema_of(connection: sqlite3.Connection) -> int:
    """The log's schema revision, 1 or more.

    Raises:
        LogDamageError: Not a database, or not a log of ours.
    """
    with damage_translated():
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID or version < 1:
        raise LogDamageError(f"an SQLite file, but not a log of vpccni (application id {application:#x})")
    return int(version)


def check_schema(connection: sqlite3.Connection, ours: int) -> int:
    """The log's schema revision, when we can read it.

    Raises:
        PermanentError: ``log_newer``.
        LogDamageError: As :func:`schema_of`.
    """
    version = schema_of(connection)
    if version > ours:
        raise PermanentError(
            Reason.LOG_NEWER, f"the log has schema {version}, this version of vpccni knows up to {ours}"
        )
    return version


def events_after(
    connection: sqlite3.Connection, after: int, upto: int | None = None, limit: int = -1
) -> Iterator[Stored]:
    """Stored records that follow ``after``, in order, up to and including ``upto``."""
    last = 2**63 - 1 if upto is None else upto
    query = f"SELECT {EVENT_COLUMNS} FROM event WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"  # noqa: S608 - constants
    with damage_translated():
        for row in connection.execute(query, (after, last, limit)):
            yield stored_of(row)


def events_of_subject(connection: sqlite3.Connection, kind: str, subject: str) -> Iterator[Stored]:
    """Stored records about one subject, in order."""
    columns = ", ".join(f"event.{name}" for name in EVENT_COLUMNS.split(", "))
    query = (
        f"SELECT {columns} FROM event_subject AS s JOIN event ON event.seq = s.seq "  # noqa: S608 - constants
        "WHERE s.kind = ? AND s.id = ? ORDER BY s.seq"
    )
    with damage_translated():
        for row in connection.execute(query, (kind, subject)):
            yield stored_of(row)


def hash_at(connection: sqlite3.Connection, seq: int) -> bytes | None:
    """The hash of an event, or ``None`` when the log does not hold it (any more)."""
    with damage_translated():
        row = connection.execute("SELECT hash FROM event WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            row = connection.execute("SELECT head_hash FROM segment WHERE last_seq = ?", (seq,)).fetchone()
    if row is None:
        return None
    if not isinstance(row[0], bytes):
        raise LogDamageError("its hash is not bytes", seq)
    return row[0]


def floor_of(connection: sqlite3.Connection) -> Head:
    """Where the kept events begin: after the newest segment whose events were deleted, or at zero."""
    with damage_translated():
        (first,) = connection.execute("SELECT min(seq) FROM event").fetchone()
        row = connection.execute(
            "SELECT last_seq, head_hash FROM segment WHERE last_seq < ? ORDER BY last_seq DESC LIMIT 1",
            (2**63 - 1 if first is None else first,),
        ).fetchone()
    if row is None:
        return Head(Seq(0), GENESIS)
    if not isinstance(row[1], bytes):
        raise LogDamageError("the hash of a segment is not bytes", row[0])
    return Head(Seq(row[0]), row[1])


def head_of(connection: sqlite3.Connection) -> Head:
    """The last event, or where the log begins when it has none."""
    with damage_translated():
        (last,) = connection.execute("SELECT max(seq) FROM event").fetchone()
    if last is None:
        return floor_of(connection)
    return Head(Seq(last), hash_at(connection, last) or b"")


def snapshots_of(connection: sqlite3.Connection) -> Iterator[Snapshot]:
    """Stored snapshots, the newest first, unchecked."""
    query = "SELECT seq, head_hash, records, digest FROM snapshot ORDER BY seq DESC"
    with damage_translated():
        for row in connection.execute(query):
            # What is not bytes cannot match its digest: the snapshot is bad, the log may be good.
            head_hash, records, digest = (one if isinstance(one, bytes) else b"" for one in row[1:])
            yield Snapshot(seq=Seq(row[0]), head_hash=head_hash, records=records, digest=digest)


def check_integrity(connection: sqlite3.Connection) -> None:
    """Let SQLite read every page of the file.

    Raises:
        LogDamageError: With SQLite's own words.
    """
    with damage_translated():
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise LogDamageError(f"SQLite finds it corrupt: {verdict}")


def _base_of(connection: sqlite3.Connection, last: int, notes: list[str]) -> tuple[tuple[Record, ...], Head]:
    """The newest snapshot that is good, and the point where its tail begins."""
    for snapshot in snapshots_of(connection):
        if snapshot.seq > last:
            why = f"is missing: a snapshot stands for events up to {snapshot.seq}, the log ends at {last}"
            raise LogDamageError(why, last + 1)
        try:
            records = unpack_snapshot(snapshot, hash_at(connection, snapshot.seq))
        except LogDamageError as error:
            notes.append(error.why)
            continue
        return records, Head(snapshot.seq, snapshot.head_hash)
    floor = floor_of(connection)
    if floor.seq:
        raise LogDamageError(f"no snapshot is good, and the events up to {floor.seq} were deleted")
    return (), floor


def read_start(connection: sqlite3.Connection, schema: int) -> Start:
    """Verify the log from its newest good snapshot on, and read it.

    A damaged snapshot is passed over in favour of an older one, or of all events.

    Raises:
        LogDamageError: The chain is broken, an event is missing or cannot be decoded, or SQLite
            finds the file corrupt.
    """
    notes: list[str] = []
    last = head_of(connection).seq
    if not last:
        # An empty log is small, so that it costs nothing to see that no page of a fuller one lies around.
        check_integrity(connection)
    base, at = _base_of(connection, last, notes)
    tail = []
    for stored in chained(events_after(connection, at.seq), at.seq, at.hash):
        tail.append(opened(stored))
        at = Head(stored.seq, stored.hash)
    if at.seq != last:
        raise LogDamageError(f"is missing (the log claims to end at {last})", at.seq + 1)
    start = LogStart(
        snapshot=base, tail=tuple(tail), head=at.seq, must_not_change=not_understood((*base, *tail))
    )
    events = last - floor_of(connection).seq
    return Start(start=start, head=at, schema=schema, events=events, notes=tuple(notes))
