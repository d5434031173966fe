"""What a disk may hold after its power went away at any point of a recorded run.

The rules, those of POSIX and of a disk that keeps a sector whole: what was synced is there. Of what was written
after the last sync of a file, each sector may be there or not, in any order; so may the file's new length. Names
made, changed and removed since the last sync of their directory may be there up to any point.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_HEAD = struct.Struct("=B3xIQQ")


class Op(NamedTuple):
    """One call, as ``tests/e2e/preload/record.c`` notes it."""

    kind: str
    path: str
    offset: int
    data: bytes


def read_trace(trace: Path) -> Iterator[Op]:
    content, at = trace.read_bytes(), 0
    while at < len(content):
        kind, path_bytes, offset, data_bytes = _HEAD.unpack_from(content, at)
        path_at = at + _HEAD.size
        data_at = path_at + path_bytes
        at = data_at + data_bytes
        yield Op(chr(kind), content[path_at:data_at].decode(), offset, content[data_at:at])


class Sector(NamedTuple):
    """A part of a file that was written since the last sync: place and content."""

    at: int
    content: bytes


class _File:
    def __init__(self) -> None:
        self.durable = b""
        self.now = bytearray()
        self.written: list[tuple[int, int]] = []  # since the last sync: from, to

    def write(self, at: int, data: bytes) -> None:
        if len(self.now) < at:
            self.now += bytes(at - len(self.now))
        self.now[at : at + len(data)] = data
        self.written.append((at, at + len(data)))

    def truncate(self, length: int) -> None:
        """Taken for durable at once: SQLite never truncates what is still needed before it has synced."""
        self.now = self.now[:length].ljust(length, b"\0")
        self.durable = self.durable[:length]
        self.written = [(start, min(end, length)) for start, end in self.written if start < length]

    def sync(self) -> None:
        self.durable, self.written = bytes(self.now), []

    def sectors(self, size: int) -> list[Sector]:
        """What was written since the last sync, in sectors, in their order in the file."""
        places = {
            at for start, end in self.written for at in range(start // size * size, end, size) if start < end
        }
        return [Sector(at, bytes(self.now[at : at + size])) for at in sorted(places)]


Choice = Callable[[list[Sector]], Iterable[Sector]]


class Disk:
    """The files of one directory, as far as they are durable, and what was done to them since."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._durable: dict[str, _File] = {}
        self._names: dict[str, _File] = {}
        self._renames: list[dict[str, _File]] = []  # how the names were after each change since the last sync

    def file(self, name: str) -> bytes:
        """As the running program sees it; empty when it is not there."""
        return bytes(self._names[name].now) if name in self._names else b""

    def pending(self) -> int:
        """How many bytes are written and not synced."""
        return sum(end - start for file in self._names.values() for start, end in file.written)

    def do(self, op: Op) -> None:
        """Carry out one more call."""
        if op.kind == "S" and op.path == self._directory:
            self._durable, self._renames = dict(self._names), []
            return
        name = op.path.removeprefix(self._directory + "/")
        if op.kind == "R":
            self._names[op.data.decode().removeprefix(self._directory + "/")] = self._names.pop(name)
        elif op.kind == "U":
            self._names.pop(name, None)
        elif name not in self._names:
            self._names[name] = _File()
        if op.kind in "RU" or name not in self._names:
            self._renames.append(dict(self._names))
            return
        file = self._names[name]
        if all(file is not known for known in self._durable.values()) and not file.now:
            self._renames.append(dict(self._names))
        match op.kind:
            case "W":
                file.write(op.offset, op.data)
            case "T":
                file.truncate(op.offset)
            case "S":
                file.sync()

    def names(self) -> list[dict[str, _File]]:
        """Every state of the directory that a crash may leave."""
        return [self._durable, *self._renames]

    def image(
        self, names: dict[str, _File], size: int, choose: Choice, *, is_long: bool, filler: bytes
    ) -> dict[str, bytes]:
        """The files after a crash.

        Args:
            names: One of ``names()``.
            size: Of a sector.
            choose: The sectors that arrived, of all that were written since the last sync.
            is_long: Whether the file's new length arrived, also where its last sectors did not.
            filler: A byte that stands where a new sector did not arrive.
        """
        return {name: self._content(file, size, choose, is_long, filler) for name, file in names.items()}

    @staticmethod
    def _content(file: _File, size: int, choose: Choice, is_long: bool, filler: bytes) -> bytes:
        kept = list(choose(file.sectors(size)))
        length = max([len(file.durable), *(sector.at + len(sector.content) for sector in kept)])
        if is_long:
            length = max(length, len(file.now))
        content = bytearray(file.durable)
        content += filler * (length - len(content))
        for sector in kept:
            content[sector.at : sector.at + len(sector.content)] = sector.content
        return bytes(content)


def choices(chance: random.Random) -> list[tuple[str, Choice]]:
    """Which of the unsynced sectors arrive: none, all, the first or last of them, and draws."""

    def drawn(share: float) -> Choice:
        seed = chance.random()

        def choose(sectors: list[Sector]) -> list[Sector]:
            draw = random.Random(seed)
            return [sector for sector in sectors if draw.random() < share]

        return choose

    return [
        ("nothing", lambda sectors: []),
        ("everything", lambda sectors: sectors),
        ("the last sector", lambda sectors: sectors[-1:]),
        ("all but the first", lambda sectors: sectors[1:]),
        ("all but the last", lambda sectors: sectors[:-1]),
        ("the later half", lambda sectors: sectors[len(sectors) // 2 :]),
        ("the earlier half", lambda sectors: sectors[: len(sectors) // 2]),
        ("half of them", drawn(0.5)),
        ("most of them", drawn(0.85)),
    ]
