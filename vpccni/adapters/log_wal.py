"""SQLite's -wal, read without SQLite: what it passes over silently is what we must know of.

The format is that of "WAL-mode file format", https://sqlite.org/walformat.html, and of section 4 of
https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO, Final

from vpccni.adapters.log_format import LogDamageError

WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24


def lost_transactions(file: BinaryIO, size: int, frames_taken: Callable[[], int]) -> int:
    """How many transactions are in a -wal behind the frames that SQLite takes from it.

    Args:
        file: The -wal, at its beginning.
        size: Its length, more than a header.
        frames_taken: Asked when the header is good.

    Raises:
        LogDamageError: The header is gone or damaged: everything is lost.
    """
    header = file.read(WAL_HEADER_BYTES)
    if not any(header):
        # It is synced before the first frame. Without one its very first write was torn.
        while chunk := file.read(1 << 20):
            if chunk.strip(b"\0"):
                raise LogDamageError("the header of the -wal is gone: what it holds cannot be read")
        return 0
    if not _is_wal_header(header):
        raise LogDamageError("the header of the -wal is damaged: what it holds cannot be read")
    (page,) = struct.unpack_from(">I", header, 8)
    frame = _FRAME_HEADER_BYTES + page
    at = WAL_HEADER_BYTES + frames_taken() * frame
    return _transactions(file.fileno(), header[16:24], range(at, size - _FRAME_HEADER_BYTES, frame))


def _transactions(fd: int, salts: bytes, places: range) -> int:
    """How many transactions of the -wal's present generation end there.

    The mark of an end may be what was damaged. But a transaction writes each page once, so a page that comes
    again is the next one's.
    """
    ends, pages = 0, set[bytes]()
    for at in places:
        head = os.pread(fd, _FRAME_HEADER_BYTES, at)
        if head[8:16] != salts:
            continue
        page, is_end = head[:4], any(head[4:8])
        if page in pages:
            ends += 1
            pages.clear()
        pages.add(page)
        if is_end:
            ends += 1
            pages.clear()
    return ends


def _is_wal_header(header: bytes) -> bool:
    """Magic and checksum of a -wal header (SQLite file format, section 4.1)."""
    magic, *_ = struct.unpack_from(">I", header)
    if magic not in (0x377F0682, 0x377F0683):
        return False
    words = struct.unpack_from(">6I" if magic & 1 else "<6I", header)
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return struct.unpack_from(">2I", header, 24) == (first, second)
