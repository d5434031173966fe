"""What stands in an event log, whoever stores it: rows, snapshots, and when they are damaged.

Pure. The SQLite log, its double in memory and the replay tool's reader share it, so that all three
agree on what a good log is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from vpccni.errors import InvariantBrokenError
from vpccni.events.codec import (
    Record,
    UndecodableError,
    UnknownEvent,
    decode_event,
    is_chained,
    open_stored,
    seal,
)
from vpccni.events.envelope import Stored
from vpccni.model import Seq, Stamp

APPLICATION_ID: Final = 0x76706363
"""``PRAGMA application_id`` of our files ("vpcc"): tells a log from any other SQLite file."""

SCHEMA_VERSION: Final = 1
"""``PRAGMA user_version``, and the number of the newest Alembic revision."""

SNAPSHOTS_KEPT: Final = 4
"""Older snapshots are dropped: the newest serves, the one before stands in when it is damaged, and two
more let ``replay verify`` check a longer stretch."""

EVENT_COLUMNS: Final = "seq, kind, version, must_understand, wall_ns, boottime_ns, boot_id, cause, body, hash"

Row = tuple[int, str, int, int, int, int, str, int, bytes, bytes]


class LogDamageError(Exception):
    """A stored thing is not what was written.

    Never leaves the log's modules: they turn it into ``PermanentError`` (``log_damaged``) or a report.

    Attributes:
        seq: The first sequence number that is wrong; 0 when it is not about one event.
        why: What is wrong, as the second half of a sentence.
    """

    def __init__(self, why: str, seq: int = 0) -> None:
        self.seq = seq
        self.why = why
        super().__init__(f"event {seq}: {why}" if seq else why)


class LogFault(StrEnum):
    """A failure that a test asks a log for; it strikes the next append."""

    DISK_FULL = "disk_full"
    """No space: nothing is written, the connection stays usable."""
    LOST = "lost"
    """The sync failed and the batch is not in the file: unknown to the caller."""
    APPLIED = "applied"
    """The sync failed and yet the batch is in the file: unknown to the caller."""


class LogFaults:
    """The faults that wait for their append, in order. Production has none."""

    def __init__(self) -> None:
        self._waiting: deque[LogFault] = deque()

    def plan(self, *faults: LogFault) -> None:
        """Let these strike, one append each."""
        self._waiting.extend(faults)

    def take(self) -> LogFault | None:
        """The fault of this append, if one waits."""
        return self._waiting.popleft() if self._waiting else None


def row_of(stored: Stored) -> Row:
    """The row of the ``event`` table."""
    stamp = stored.stamp
    return (
        stored.seq,
        stored.kind,
        stored.version,
        int(stored.must_understand),
        stamp.wall_ns,
        stamp.boottime_ns,
        stamp.boot_id,
        stored.cause,
        stored.body,
        stored.hash,
    )


_TYPES: Final = (int, str, int, int, int, int, str, int, bytes, bytes)


def stored_of(row: Sequence[Any]) -> Stored:
    """The record that a row of the ``event`` table stands for.

    Raises:
        LogDamageError: A column does not hold what it must; SQLite would not mind.
    """
    if tuple(map(type, row)) != _TYPES or row[3] not in (0, 1):
        seq = row[0] if row and isinstance(row[0], int) else 0
        raise LogDamageError("a column holds something of the wrong type", seq)
    seq, kind, version, must_understand, wall_ns, boottime_ns, boot_id, cause, body, digest = row
    return Stored(
        seq=Seq(seq),
        kind=kind,
        version=version,
        must_understand=bool(must_understand),
        stamp=Stamp(wall_ns, boottime_ns, boot_id),
        cause=cause,
        body=body,
        hash=digest,
    )


def chained(stored: Iterable[Stored], after: int, previous: bytes) -> Iterator[Stored]:
    """Pass records on as long as they continue the chain without a gap.

    Args:
        stored: Records in the order of the log.
        after: The sequence number before the first.
        previous: The hash of that one.

    Raises:
        LogDamageError: At the first gap or wrong hash.
    """
    for one in stored:
        if one.seq != after + 1:
            raise LogDamageError(f"is missing (event {one.seq} follows event {after})", after + 1)
        if not is_chained(one, previous):
            raise LogDamageError("its hash does not follow from the event before it", one.seq)
        yield one
        after, previous = one.seq, one.hash


def opened(stored: Stored) -> Record:
    """Decode a stored record.

    Raises:
        LogDamageError: The body is not what its kind and version say.
    """
    try:
        return open_stored(stored)
    except UndecodableError as error:
        raise LogDamageError(f"cannot be decoded: {error}", stored.seq) from error


def sealed(records: Sequence[Record], head: int, head_hash: bytes) -> list[Stored]:
    """Seal a batch that continues the log after ``head``.

    Raises:
        InvariantBrokenError: The batch does not continue the log; nothing was done.
    """
    batch = []
    for record in records:
        if record.seq != head + 1:
            raise InvariantBrokenError(f"append of event {record.seq} after event {head}: not the next one")
        one = seal(record, head_hash)
        batch.append(one)
        head, head_hash = one.seq, one.hash
    return batch


class _SnapshotItem(msgspec.Struct, frozen=True, array_like=True):
    """A record inside a snapshot: its envelope, and the event in the ordinary encoding."""

    seq: int
    kind: str
    version: int
    must_understand: bool
    stamp: Stamp
    cause: int
    body: msgspec.Raw


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A stored snapshot, still encoded.

    Attributes:
        seq: It stands for every event up to and including this one.
        head_hash: The hash of event ``seq``.
        records: A list of records in the ordinary codec, so that upcasters cover it.
        digest: SHA-256 over the three above.
    """

    seq: Seq
    head_hash: bytes
    records: bytes
    digest: bytes


_snapshot_decoder = msgspec.json.Decoder(list[_SnapshotItem])


def _digest(seq: int, head_hash: bytes, records: bytes) -> bytes:
    return hashlib.sha256(f"snapshot|{seq}|".encode() + head_hash + records).digest()


def pack_snapshot(seq: Seq, head_hash: bytes, records: Sequence[Record]) -> Snapshot:
    """Encode a snapshot."""
    items = []
    for record in records:
        one = seal(record, b"")
        items.append(
            _SnapshotItem(
                one.seq,
                one.kind,
                one.version,
                one.must_understand,
                one.stamp,
                one.cause,
                msgspec.Raw(one.body),
            )
        )
    blob = msgspec.json.encode(items)
    return Snapshot(seq=seq, head_hash=head_hash, records=blob, digest=_digest(seq, head_hash, blob))


def unpack_snapshot(snapshot: Snapshot, head_hash: bytes | None) -> tuple[Record, ...]:
    """Check and decode a snapshot.

    Args:
        snapshot: As it was stored.
        head_hash: The hash of event ``snapshot.seq`` in the log; ``None`` when the log has no such event.

    Raises:
        LogDamageError: It is damaged or of another log.
    """
    if _digest(snapshot.seq, snapshot.head_hash, snapshot.records) != snapshot.digest:
        raise LogDamageError(f"the snapshot at event {snapshot.seq} does not match its digest")
    if head_hash is None:
        raise LogDamageError(f"a snapshot stands for events up to {snapshot.seq}, which are gone")
    if head_hash != snapshot.head_hash:
        raise LogDamageError(f"the snapshot at event {snapshot.seq} is not of this chain")
    try:
        return tuple(
            Record(
                Seq(item.seq),
                item.stamp,
                decode_event(item.kind, item.version, item.must_understand, bytes(item.body)),
                item.cause,
            )
            for item in _snapshot_decoder.decode(snapshot.records)
        )
    except (msgspec.DecodeError, UndecodableError) as error:
        raise LogDamageError(f"the snapshot at event {snapshot.seq} cannot be decoded: {error}") from error


def not_understood(records: Iterable[Record]) -> tuple[str, ...]:
    """Kinds that must be understood and are not, sorted: a newer vpccni wrote them."""
    return tuple(
        sorted(
            {
                record.event.kind
                for record in records
                if isinstance(record.event, UnknownEvent) and record.event.must_understand
            }
        )
    )
