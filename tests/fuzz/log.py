"""Damage an event log in every way that comes to mind, and see that nobody is fooled.

    python -m tests.fuzz.log --seed 7 --damages 1000

Two logs are damaged, one that was closed and one whose newest events are in its -wal: bytes are flipped, dropped and
doubled, files cut, pages zeroed, swapped, and put back to what they were some events earlier, rows edited, swapped
and deleted. Then the replay tool's reader and the agent's log each open a copy.

Each of them must refuse by name, or have the whole history. A shorter one is right only where it is told (a copy
without its -wal), or where the damage of the -wal looks like a power cut: one transaction at most, which
was never acknowledged, may be missing then. A damaged log stays as it is, byte for byte.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from tests.data.event_samples import records
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import PermanentError, Reason
from vpccni.events.codec import Record
from vpccni.model import Seq
from vpccni.replay.reader import open_log

PAGE: Final = 4096
CLOSED: Final = 120
"""Events of the log that was closed, in transactions of ten, with snapshots of 40 and 80."""
IN_FILE: Final = 30
RUNNING: Final = 70
"""Events of the other log; those after IN_FILE are in its -wal, one to a transaction."""
HEADER: Final = 32
FRAME: Final = PAGE + 24
"""SQLite, "WAL-mode file format"."""
_REFUSALS: Final = frozenset({Reason.LOG_DAMAGED, Reason.LOG_NEWER})


class Tally(msgspec.Struct, kw_only=True):
    """What a run did and found; ``outcomes`` by kind of damage and what came of it."""

    seed: int
    damages: int
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: list[str] = msgspec.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{count:6} {name}" for name, count in sorted(self.outcomes.items())]
        if self.wrong:
            lines.append(f"again: python -m tests.fuzz.log --seed {self.seed} --damages {self.damages}")
        return "\n".join([*lines, *(f"WRONG: {each}" for each in self.wrong)])


class Place:
    """The logs, as they are when nothing is wrong, and a directory for damaged copies of them."""

    def __init__(self, root: Path) -> None:
        self.closed = root / "closed" / "events.db"
        self.running = root / "running" / "events.db"
        self.earlier = root / "earlier" / "events.db"
        self._copy = root / "copy"

    async def make(self) -> None:
        """Write them."""
        log = SqliteLog(self.closed, volatile_ok=True)
        await log.open()
        for first in range(1, CLOSED, 10):
            await log.append(records(first, first + 9))
            if first in (31, 71):
                await log.write_snapshot(Seq(first + 9), records(1, first + 9))
            if first == 91:
                await log.close()
                self._take(self.closed, self.earlier)
                await log.open()
        await log.close()
        live = self.running.parent.with_name("live") / "events.db"
        log = SqliteLog(live, volatile_ok=True)
        await log.open()
        await log.append(records(1, IN_FILE))
        await log.close()
        await log.open()
        for seq in range(IN_FILE + 1, RUNNING + 1):
            await log.append(records(seq, seq))
        self._take(live, self.running)
        await log.close()

    def copy(self, source: Path) -> Path:
        """A fresh copy to damage."""
        shutil.rmtree(self._copy, ignore_errors=True)
        self._take(source, self._copy / source.name)
        return self._copy / source.name

    @staticmethod
    def _take(source: Path, target: Path) -> None:
        target.parent.mkdir()
        for suffix in ("", "-wal"):
            if Path(f"{source}{suffix}").exists():
                shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


class Damage:
    """Draws what is damaged, and how."""

    def __init__(self, chance: random.Random, place: Place) -> None:
        self._chance = chance
        self._place = place
        self._bytes: tuple[Callable[[bytearray], None], ...] = (
            self.flip, self.drop, self.double, self.cut, self.zero_page, self.swap_pages, self.noise,
        )  # fmt: skip

    def to_file(self, path: Path) -> str:
        """Damage the bytes of a file; return how."""
        content, unused = bytearray(path.read_bytes()), b""
        if path.name.endswith("-wal"):  # zeros lie behind its end, where nothing can be damaged
            end = HEADER + -(-(len(content.rstrip(b"\0")) - HEADER) // FRAME) * FRAME
            unused = bytes(len(content) - end)
            del content[end:]
        done = []
        for _ in range(self._chance.choice([1, 1, 1, 2, 5])):
            how = self._chance.choice(self._bytes)
            how(content)
            done.append(how.__name__)
        path.write_bytes(content + unused)
        return done[0] if len(done) == 1 else "several"

    def flip(self, content: bytearray) -> None:
        """Flip one bit."""
        if content:
            content[self._chance.randrange(len(content))] ^= 1 << self._chance.randrange(8)

    def _range(self, content: bytearray) -> tuple[int, int]:
        start = self._chance.randrange(len(content) + 1)
        return start, start + self._chance.choice([1, 8, 100, PAGE, 3 * PAGE])

    def drop(self, content: bytearray) -> None:
        """Leave out some bytes."""
        start, end = self._range(content)
        del content[start:end]

    def double(self, content: bytearray) -> None:
        """Say some bytes twice."""
        start, end = self._range(content)
        content[start:start] = content[start:end]

    def cut(self, content: bytearray) -> None:
        """Leave out the end, often on a page's border."""
        at = self._chance.randrange(1, len(content) + 1) if content else 0
        del content[at - at % PAGE if self._chance.random() < 0.5 else at :]

    def noise(self, content: bytearray) -> None:
        """Write something else over some bytes."""
        start, end = self._range(content)
        content[start:end] = self._chance.randbytes(len(content[start:end]))

    def zero_page(self, content: bytearray) -> None:
        """A page is not there."""
        start = self._page(content)
        content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))

    def swap_pages(self, content: bytearray) -> None:
        """Two pages change places."""
        first, second = sorted((self._page(content), self._page(content)))
        if second + PAGE <= len(content) and first + PAGE <= second:
            kept = content[first : first + PAGE]
            content[first : first + PAGE] = content[second : second + PAGE]
            content[second : second + PAGE] = kept

    def _page(self, content: bytearray) -> int:
        return self._chance.randrange(max(1, len(content) // PAGE)) * PAGE

    def put_back(self, path: Path) -> str:
        """One page is what it was twenty events earlier: a write that the disk lost."""
        content, earlier = bytearray(path.read_bytes()), self._place.earlier.read_bytes()
        start = self._chance.randrange(1, len(earlier) // PAGE) * PAGE
        content[start : start + PAGE] = earlier[start : start + PAGE]
        path.write_bytes(content)
        return "put_back"

    def to_rows(self, path: Path) -> str:
        """Edit rows, as somebody with a shell who first drops the triggers."""
        chance = self._chance
        one, other = chance.sample(range(1, CLOSED + 1), 2)
        column = chance.choice(
            ["kind", "version", "must_understand", "wall_ns", "boottime_ns", "boot_id", "cause"]
        )
        value = chance.choice(
            ["'x'", "-1", "NULL", "x'ff'", "1.5", "9223372036854775807", f"{column} + 1", "''"]
        )
        edits = {
            "edit a column": f"UPDATE OR IGNORE event SET {column} = {value} WHERE seq = {one}",
            "edit a body": f"UPDATE event SET body = replace(body, '{chance.randrange(10)}', '7') WHERE seq = {one}",
            "swap bodies": f"UPDATE event SET body = (SELECT body FROM event AS e WHERE e.seq = {one + other}"
            f" - event.seq) WHERE seq IN ({one}, {other})",
            "delete rows": f"DELETE FROM event WHERE seq BETWEEN {one} AND {one + chance.randrange(30)}",
            "edit a hash": f"UPDATE event SET hash = (SELECT hash FROM event WHERE seq = {other}) WHERE seq = {one}",
            "edit a snapshot": f"UPDATE snapshot SET records = replace(records, '10', '{other}')",
            "move a snapshot": f"UPDATE snapshot SET seq = seq + {chance.choice([-7, 7, 70])}",
        }
        name = chance.choice(sorted(edits))
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            for (trigger,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall():
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute("PRAGMA ignore_check_constraints = 1")
            try:
                connection.execute(edits[name])
            except sqlite3.IntegrityError:
                return "refused by SQLite"
        finally:
            connection.close()
        return name


class Fuzz:
    """One run."""

    def __init__(self, place: Place, tally: Tally) -> None:
        self._place, self._tally = place, tally

    async def run(self) -> None:
        """Damage so many times. Each damage is a seed of its own, so that one can be repeated alone."""
        for number in range(self._tally.damages):
            damage = Damage(chance := random.Random(f"{self._tally.seed}-{number}"), self._place)
            kind = chance.choice(
                ["file", "file", "rows", "put back", "file with -wal", "-wal", "-wal", "no -wal"]
            )
            is_closed = kind in ("file", "rows", "put back")
            copy = self._place.copy(self._place.closed if is_closed else self._place.running)
            if kind == "rows":
                name = damage.to_rows(copy)
            elif kind == "put back":
                name = damage.put_back(copy)
            elif kind == "no -wal":
                Path(f"{copy}-wal").unlink()
                name = ""
            else:
                name = damage.to_file(Path(f"{copy}-wal") if kind == "-wal" else copy)
            await self._judge(copy, kind, name, number, CLOSED if is_closed else RUNNING)

    async def _judge(self, copy: Path, kind: str, name: str, number: int, count: int) -> None:
        shortest = self._shortest(copy, kind, count)
        for who, ask in (("replay", self._replay), ("agent", self._agent)):
            # The index tells of an end that is gone, and a start does not read it; nothing tells of a -wal that is.
            least = (
                1
                if who == "agent" and (name == "delete rows" or kind in ("put back", "no -wal"))
                else shortest
            )
            before = {
                path: path.read_bytes() for path in copy.parent.iterdir() if path.suffix.startswith(".db")
            }
            try:
                found, told = await ask(copy)
            except PermanentError as refused:
                outcome = "refused"
                if refused.reason not in _REFUSALS:
                    self._blame(f"refuses with {refused}", who, kind, name, number)
                if any(not path.exists() or path.read_bytes() != content for path, content in before.items()):
                    self._blame("a damaged log was changed", who, kind, name, number)
            except Exception as error:  # whatever else it is, it is wrong
                self._blame(f"{error!r}", who, kind, name, number)
                continue
            else:
                outcome = "whole" if len(found) == count else "shorter"
                if found != records(1, len(found)):
                    self._blame("the history is another one", who, kind, name, number)
                elif len(found) < least and not told:
                    self._blame(
                        f"ends at event {len(found)} of {count} and does not say so", who, kind, name, number
                    )
            self._tally.outcomes[f"{kind:15} {who:7} {outcome}"] += 1

    def _shortest(self, copy: Path, kind: str, count: int) -> int:
        """How short a history may be of which nothing is said: what looks like a power cut is none to complain of."""
        if not kind.endswith("-wal") or not Path(f"{copy}-wal").exists():
            return count
        was, now = (Path(f"{each}-wal").read_bytes() for each in (self._place.running, copy))
        places = range(HEADER, len(was), FRAME)
        bad = next((at for at in places if now[at : at + FRAME] != was[at : at + FRAME]), len(was))
        if was[:HEADER] != now[:HEADER] and not any(now[:HEADER]):
            bad = HEADER
        salts = was[16:24]
        left = [now[at + 4 : at + 8] for at in range(bad, len(now), FRAME) if now[at + 8 : at + 16] == salts]
        return 0 if sum(any(commit) for commit in left) <= 1 else count

    def _blame(self, what: str, who: str, kind: str, name: str, number: int) -> None:
        self._tally.wrong.append(f"damage {number} ({kind}, {name}): {who}: {what}")

    @staticmethod
    async def _replay(copy: Path) -> tuple[list[Record], bool]:
        """The history and whether the reader says that it may be shorter."""
        with open_log(copy) as log:
            report = log.verify_chain()
            if not report.ok:
                if not report.why:
                    raise ValueError("damage without a reason")
                raise PermanentError(Reason.LOG_DAMAGED, report.why)
            return [log.decoded(one) for one in log.records()], report.ends_without_wal

    @staticmethod
    async def _agent(copy: Path) -> tuple[list[Record], bool]:
        log = SqliteLog(copy, volatile_ok=True)
        try:
            start = await log.open()
            return [*start.snapshot, *start.tail], False
        finally:
            await log.close()


async def fuzz(seed: int, damages: int) -> Tally:
    """Run one seed."""
    tally = Tally(seed=seed, damages=damages)
    with tempfile.TemporaryDirectory(prefix="vpccni-fuzz-") as root:
        place = Place(Path(root))
        await place.make()
        await Fuzz(place, tally).run()
    return tally


def main() -> int:
    """Run one seed; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--damages", type=int, default=1000)
    options = parser.parse_args()
    tally = asyncio.run(fuzz(options.seed, options.damages))
    print(tally)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
