"""The envelope of an event, and the hash chain over envelopes."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from vpccni.model import Seq, Stamp

GENESIS: Final = b"\x00" * 32
"""The hash before the first record."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A record as the log keeps it: the event still encoded.

    Attributes:
        seq: Position, from 1 without gaps.
        kind, version: Which event type, and which shape of it.
        must_understand: A reader that does not know ``kind`` must not change anything.
        cause: The sequence number that this follows from; 0 for none.
        body: The event as JSON.
        hash: SHA-256 over the previous hash and everything above.
    """

    seq: Seq
    kind: str
    version: int
    must_understand: bool
    stamp: Stamp
    cause: int
    body: bytes
    hash: bytes


def chain_hash(
    previous: bytes,
    *,
    seq: int,
    kind: str,
    version: int,
    must_understand: bool,
    stamp: Stamp,
    cause: int,
    body: bytes,
) -> bytes:
    """SHA-256 of a record, chained to the one before. For ever: old logs are checked with it."""
    header = (
        f"{seq}|{kind}|{version}|{int(must_understand)}|{stamp.wall_ns}|{stamp.boottime_ns}"
        f"|{stamp.boot_id}|{cause}|{len(body)}|"
    )
    return hashlib.sha256(previous + header.encode() + body).digest()
