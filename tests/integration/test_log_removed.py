"""The log's files removed, replaced or hidden under a running agent: real files, real locks, real kills."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.event_samples import records
from tests.e2e.preload.build import preload
from tests.integration.crash_images import Disk, Op, choices, read_trace
from vpccni.adapters import log_files, log_place
from vpccni.adapters.log_files import RESERVE_BYTES, LogFiles
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.model import Seq
from vpccni.replay.reader import open_log

ROOT = Path(__file__).parents[2]
NAME = "events.sqlite"
ALL = ("", "-wal", "-shm", ".lock", ".head", ".exists", ".reserve")
DATA = ("", "-wal", "-shm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / NAME


@pytest.fixture
async def log(path):
    """Ten events in the file, ten more in the -wal."""
    opened = SqliteLog(path, volatile_ok=True)
    await opened.open()
    await opened.append(records(1, 10))
    await opened.write_snapshot(Seq(4), records(1, 4))
    await opened.checkpoint()
    await opened.append(records(11, 20))
    yield opened
    await opened.close()


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


async def head_after_a_kill(path: Path, scratch: Path) -> int:
    """What a start finds if the agent is killed just now: only what has a name. The whole chain is verified."""
    shutil.rmtree(scratch, ignore_errors=True)
    # Not by this process: closing a file here would drop SQLite's locks on it (fcntl(2)).
    subprocess.run(["cp", "-a", path.parent, scratch], check=True)
    with open_log(scratch / NAME) as file:
        report = file.verify_chain()
        assert report.ok, report
    again = SqliteLog(scratch / NAME, volatile_ok=True)
    start = await again.open()
    assert start.tail == tuple(records(start.head - len(start.tail) + 1, start.head))
    await again.close()
    return int(start.head)


@contextlib.contextmanager
def somebody_elses(path: Path) -> Iterator[sqlite3.Connection]:
    """A database of another program, with a -wal of its own, which has it open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE photo (name TEXT)")
        other.execute("INSERT INTO photo VALUES ('cat')")
        yield other


# --- what is noticed -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*DATA, ".lock", ".head", ".exists"], ids=lambda name: name or "database")
async def test_each_file_that_is_removed_is_noticed_and_put_back(path, log, tmp_path, suffix):
    assert await log.missing() == ()
    beside(path, suffix).unlink()
    assert await log.missing() == (f"{NAME}{suffix}",)
    restored = await log.restore()
    assert (restored.missing, restored.aside, restored.events) == ((f"{NAME}{suffix}",), (), 20)
    assert restored.start.snapshot == tuple(records(1, 4))
    assert restored.start.tail == tuple(records(5, 20))
    assert await log.missing() == ()
    assert {one.name.removeprefix(NAME) for one in path.parent.iterdir()} == set(ALL)
    await log.append(records(21, 22))
    assert await head_after_a_kill(path, tmp_path / "killed") == 22
    assert await log.read(Seq(0), 99) == records(1, 22)


@pytest.mark.parametrize("suffix", [*DATA, ".lock", ".head"], ids=lambda name: name or "database")
async def test_each_file_that_is_another_one_now_is_noticed_and_kept(path, log, tmp_path, suffix):
    """Another file of the same name, written in its place as an editor or a restore does: by a rename."""
    new = tmp_path / "new"
    new.write_bytes(b"of somebody else")
    new.rename(beside(path, suffix))
    assert await log.missing() == (f"{NAME}{suffix}",)
    restored = await log.restore()
    kept = list(path.parent.glob(f"{NAME}.replaced-*"))
    if suffix == ".lock":  # It is only locked: what is in it is nobody's business.
        assert (kept, restored.aside) == ([], ())
        assert beside(path, suffix).read_bytes() == b"of somebody else"
    else:
        assert [one.read_bytes() for one in kept] == [b"of somebody else"]
        assert restored.aside == (kept[0].name,)
        assert kept[0].name.endswith(f"Z{suffix}")
    await log.append(records(21, 22))
    assert await head_after_a_kill(path, tmp_path / "killed") == 22


async def test_a_directory_that_is_removed_is_made_again_as_the_log_makes_it(path, log, tmp_path):
    shutil.rmtree(path.parent)
    assert len(await log.missing()) == 6
    assert (await log.restore()).events == 20
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {one.name.removeprefix(NAME) for one in path.parent.iterdir()} == set(ALL)
    assert beside(path, ".reserve").stat().st_size == RESERVE_BYTES
    assert await head_after_a_kill(path, tmp_path / "killed") == 20


async def test_a_directory_that_is_moved_away_and_back_is_the_log_again(path, log, tmp_path):
    away = tmp_path / "away"
    path.parent.rename(away)
    path.parent.touch()
    with pytest.raises(TransientError):
        await log.restore()
    path.parent.unlink()
    away.rename(path.parent)
    assert await log.missing() == ()
    before = path.stat().st_ino
    assert (await log.restore()).missing == ()
    assert path.stat().st_ino == before
    await log.append(records(21, 21))
    assert await head_after_a_kill(path, tmp_path / "killed") == 21


async def test_a_database_of_somebody_else_is_moved_aside_whole_and_still_works(path, log, tmp_path):
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    with somebody_elses(path) as other:
        restored = await log.restore()
        assert len(restored.aside) == 3
        (kept,) = path.parent.glob(f"{NAME}.replaced-*Z")
        assert {one.name for one in path.parent.glob(f"{NAME}.replaced-*")} == set(restored.aside)
        await log.append(records(21, 22))
        assert await head_after_a_kill(path, tmp_path / "killed") == 22
        other.execute("INSERT INTO photo VALUES ('dog')")
    with contextlib.closing(sqlite3.connect(kept)) as found:
        assert found.execute("SELECT name FROM photo").fetchall() == [("cat",), ("dog",)]


async def test_an_older_copy_of_the_log_in_its_place_does_not_bring_back_the_past(path, log, tmp_path):
    """An operator restores yesterday's backup while the agent runs, with the number of its newest event."""
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", path.parent, backup], check=True)
    await log.append(records(21, 40))
    for suffix in ALL:
        (backup / f"{NAME}{suffix}").rename(beside(path, suffix))
    assert (await log.restore()).events == 40
    await log.append(records(41, 41))
    assert await head_after_a_kill(path, tmp_path / "killed") == 41
    kept = sorted(one.name.rpartition("Z")[2] for one in path.parent.glob(f"{NAME}.replaced-*"))
    assert kept == ["", "-shm", "-wal", ".head"]


async def test_a_name_that_leads_nowhere_is_moved_aside(path, log, tmp_path):
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert await log.missing() == (NAME,)
    (aside,) = (await log.restore()).aside
    assert (path.parent / aside).is_symlink()
    assert await head_after_a_kill(path, tmp_path / "killed") == 20


async def test_what_stands_in_the_place_of_a_log_that_is_closed_is_not_removed_by_sqlite(path, log, tmp_path):
    """Closing, SQLite removes the -wal and the -shm by their names."""
    for suffix in ("-wal", "-shm"):
        beside(path, suffix).unlink()
        beside(path, suffix).write_bytes(b"of somebody else")
    await log.close()
    kept = list(path.parent.glob(f"{NAME}.replaced-*"))
    assert [one.read_bytes() for one in kept] == [b"of somebody else"] * 2
    assert await head_after_a_kill(path, tmp_path / "killed") == 20


async def test_a_foreign_wal_is_not_lengthened(path, log):
    beside(path, "-wal").unlink()
    beside(path, "-wal").write_bytes(b"of somebody else")
    await log.checkpoint()
    assert beside(path, "-wal").read_bytes() == b"of somebody else"
    assert (await log.restore()).events == 20


# --- what stands in the way ------------------------------------------------------------------------


async def test_another_agent_that_has_taken_the_path_meanwhile_has_the_last_word(path, log, tmp_path):
    shutil.rmtree(path.parent)
    other = SqliteLog(path, volatile_ok=True)
    assert (await other.open()).head == 0
    with pytest.raises(PermanentError) as refused:
        await log.restore()
    assert refused.value.reason is Reason.LOG_IN_USE
    await other.append(records(1, 2))
    assert not list(path.parent.glob(f"{NAME}.replaced-*"))
    await other.close()
    assert await head_after_a_kill(path, tmp_path / "killed") == 2


async def test_what_another_agent_wrote_while_the_lock_was_gone_is_taken_over(path, log, tmp_path):
    """1. The lock is removed. 2. Another agent takes a new one, writes into the same files and ends."""
    beside(path, ".lock").unlink()
    other = SqliteLog(path, volatile_ok=True)
    await other.open()
    await other.append(records(21, 23))
    await other.close()
    restored = await log.restore()
    assert (restored.start.head, restored.events) == (23, 23)
    await log.append(records(24, 24))
    assert await head_after_a_kill(path, tmp_path / "killed") == 24


async def test_a_reader_from_before_keeps_the_wal_index_from_being_put_back_until_he_is_done(path, log):
    """What the -wal holds must go into the database before its index is made anew, and he reads the older state."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM event").fetchone() == (20,)
        await log.append(records(21, 22))
        beside(path, "-shm").unlink()
        with pytest.raises(TransientError, match="somebody reads"):
            await log.restore()
        assert reader.execute("SELECT count(*) FROM event").fetchone() == (20,)
    assert (await log.restore()).events == 22


async def test_a_disk_that_does_not_answer_proves_no_removal(path, log, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log_place, "identity_at", fails)
    assert await log.missing() == ()


async def test_a_copy_that_is_not_whole_is_not_put_in_place(path, log, monkeypatch, tmp_path):
    """What SQLite copied does not end where the log ends."""
    path.unlink()
    shorter = tmp_path / "shorter"
    async with contextlib.AsyncExitStack() as stack:
        small = SqliteLog(shorter, volatile_ok=True)
        stack.push_async_callback(small.close)
        await small.open()
        await small.append(records(1, 19))
    real = log_place.LogPlace._check_copy

    def swap(self, newest, schema):
        shutil.copyfile(shorter, self._files.new)
        real(self, newest, schema)

    monkeypatch.setattr(log_place.LogPlace, "_check_copy", swap)
    with pytest.raises(TransientError, match="ends with event 19"):
        await log.restore()
    assert not path.exists()
    assert not beside(path, ".new").exists()
    monkeypatch.undo()
    assert (await log.restore()).events == 20


async def test_a_copy_that_is_removed_before_it_is_open_is_made_again(path, log, monkeypatch, tmp_path):
    """1. The copy is put in place. 2. It is removed before it is open. 3. What was open before still is."""
    shutil.rmtree(path.parent)
    real = log_place.LogPlace._put_in_place

    def and_remove(self):
        real(self)
        shutil.rmtree(path.parent)
        return ()

    monkeypatch.setattr(log_place.LogPlace, "_put_in_place", and_remove)
    for _ in range(2):
        with pytest.raises(TransientError) as refused:
            await log.restore()
        assert refused.value.reason is Reason.LOG_REMOVED
    monkeypatch.undo()
    assert (await log.restore()).events == 20
    await log.append(records(21, 21))
    assert await head_after_a_kill(path, tmp_path / "killed") == 21


IN_THE_WAY = """
import asyncio, json, os, shutil, subprocess, sys, traceback
from pathlib import Path
from tests.data.event_samples import records
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import TransientError

def run(*command):
    subprocess.run(command, check=True)

async def refused(log):
    for _ in range(3):
        try:
            await log.restore()
        except TransientError as error:
            assert str(error.reason) == "log_removed", error
            said = error.detail
        else:
            raise AssertionError("it was put back")
    return said

async def main():
    base = Path(sys.argv[1])
    directory = base / "state"
    directory.mkdir()
    if sys.argv[2] == "removed under its mount":
        (base / "host").mkdir()
        run("mount", "--bind", base / "host", directory)
    log = SqliteLog(directory / "events.sqlite", volatile_ok=True)
    await log.open()
    head = 0
    while head < (30_000 if sys.argv[2] == "full" else 1_000):
        await log.append(records(head + 1, head + 500))
        head += 500
    await log.checkpoint()
    await log.append(records(head + 1, head + 9))
    head += 9
    said = {}
    match sys.argv[2]:
        case "full":
            filler = base / "filler"
            with filler.open("wb") as file:
                space = os.statvfs(base)
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 500_000)
            (directory / "events.sqlite").unlink()
            said["why"] = await refused(log)
            said["reserve"] = (directory / "events.sqlite.reserve").exists()
            filler.unlink()
        case "read-only":
            run("mount", "-t", "tmpfs", "-o", "ro", "over", directory)
            said["missing"] = len(await log.missing())
            said["why"] = await refused(log)
            run("umount", directory)
            said["back"] = len(await log.missing())
        case "removed under its mount":
            shutil.rmtree(base / "host")
            said["why"] = await refused(log)
            run("umount", "--lazy", directory)
    restored = await log.restore()
    await log.append(records(head + 1, head + 1))
    start = await log.reopen()
    said["whole"] = start.tail == tuple(records(1, head + 1)) and restored.events == head
    said["left"] = sorted(one.name for one in directory.glob("*.new*"))
    await log.close()
    print(json.dumps(said))

try:
    asyncio.run(main())
except BaseException:
    traceback.print_exc()
    os._exit(1)  # and do not wait for the thread of the log
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "why", "more"),
    [
        ("full", "full", {"reserve": False}),
        ("read-only", "Read-only file system", {"missing": 6, "back": 0}),
        ("removed under its mount", "the mount of a directory that was removed", {}),
    ],
    ids=["full", "read-only", "removed under its mount"],
)
def test_a_disk_that_takes_no_copy_is_told_and_tried_again(tmp_path, what, why, more):
    """On a small tmpfs in a mount namespace of its own, which dies with the process."""
    small = tmp_path / "small"
    small.mkdir()
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs a mount namespace (root, or unprivileged user namespaces)")
    command = 'mount -t tmpfs -o size=64m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    done = subprocess.run(
        [*unshare, "sh", "-c", command, "sh", str(small), sys.executable, IN_THE_WAY, what],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert why in said.pop("why")
    assert said == {**more, "whole": True, "left": []}


def test_a_lock_that_comes_back_while_it_is_taken_again_is_still_ours(path, monkeypatch):
    """1. The directory is moved away: the lock is gone. 2. It is moved back, and opened again."""
    path.parent.mkdir()
    ours, other = LogFiles(path), LogFiles(path)
    ours.acquire()
    monkeypatch.setattr(log_files, "identity_at", lambda path: None)
    ours.acquire()
    with pytest.raises(PermanentError):
        other.acquire()
    ours.release()
    other.acquire()
    other.release()


def test_a_directory_that_vanishes_while_damage_is_copied_aside_is_told(path, monkeypatch):
    path.parent.mkdir()
    path.write_bytes(b"damaged")

    def vanished(self, word):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(LogFiles, "free_name", vanished)
    assert "no copy could be made" in LogFiles(path).quarantine()


# --- at any moment ---------------------------------------------------------------------------------


class Vandal(threading.Thread):
    """Removes, replaces or moves files of a log, again and again, at moments drawn by chance."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(name="vandal")
        self._path = path
        self._chance = random.Random(seed)
        self._enough = threading.Event()
        self.done = 0

    def run(self) -> None:
        while not self._enough.wait(self._chance.uniform(0, 0.02)):
            with contextlib.suppress(OSError):
                self._strike()
                self.done += 1

    def _strike(self) -> None:
        what = self._chance.randrange(5)
        if what == 0:
            shutil.rmtree(self._path.parent)
        elif what == 4:
            self._move_and_bring_back()
        elif what == 1:
            other = self._path.with_name("other")
            other.write_bytes(b"of somebody else")
            other.rename(beside(self._path, self._chance.choice(ALL)))
        else:
            for suffix in self._chance.sample(ALL, k=self._chance.randint(1, len(ALL))):
                beside(self._path, suffix).unlink(missing_ok=True)

    def _move_and_bring_back(self) -> None:
        away = self._path.parent.with_name("away")
        self._path.parent.rename(away)
        self._enough.wait(self._chance.uniform(0, 0.01))
        try:
            away.rename(self._path.parent)
        except OSError:  # It was made again meanwhile.
            shutil.rmtree(away)

    def stop(self) -> None:
        self._enough.set()
        self.join()


async def append_and_restore(log: SqliteLog, head: int, count: int) -> int:
    """One batch, as the writer does it. The head when it is acknowledged."""
    while True:
        try:
            await log.append(records(head + 1, head + count))
            return head + count
        except OutcomeUnknownError:
            found = await put_back(log)
        # Whole: what was written went into the copy. Or nothing: the log was waiting to be put back.
        assert found in (head, head + count)
        if found > head:
            return found


async def put_back(log: SqliteLog) -> int:
    """As often as it takes; the head then."""
    while True:
        with contextlib.suppress(TransientError):
            return int((await log.restore()).start.head)
        await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("N", "0")), int(os.environ.get("N", "0")) + 4))
async def test_files_that_are_removed_all_the_time_lose_no_batch(path, tmp_path, seed):
    """Batches, looks and checkpoints go on, while files vanish at any moment."""
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    vandal, chance, head = Vandal(path, seed), random.Random(seed), 0
    vandal.start()
    try:
        async with asyncio.timeout(60):
            while vandal.done < 120:
                head = await append_and_restore(log, head, chance.randint(1, 9))
                if chance.random() < 0.1:
                    with contextlib.suppress(OutcomeUnknownError):
                        await log.checkpoint()
                if chance.random() < 0.3 and await log.missing():
                    with contextlib.suppress(TransientError):
                        await log.restore()
        vandal.stop()
        await put_back(log)
        assert await log.read(Seq(0), head + 9) == records(1, head)
        head = await append_and_restore(log, head, 1)
        assert await head_after_a_kill(path, tmp_path / "killed") == head
    finally:
        vandal.stop()
        await log.close()
    assert await head_after_a_kill(path, tmp_path / "killed") == head


# --- killed, or without power, in between ----------------------------------------------------------


async def live_with_a_vandal(directory: Path) -> None:
    """A log whose files are removed and replaced in every way, and put back each time.

    The file ``said`` gets ``ack N`` when everything up to N is at the path, and ``gone`` before files go.
    """
    said = os.open(directory / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    path = directory / NAME
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    head = 0
    try:
        for number, strike in enumerate((*itertools.product(DATA), DATA, ALL, ("foreign",), ("older",))):
            await log.append(records(head + 1, head + 2))
            if number % 2:
                await log.checkpoint()
            await log.append(records(head + 3, head + 5))
            head += 5
            os.write(said, f"ack {head}\ngone {head}\n".encode())
            remove_from(path, strike)
            if number % 3:
                with contextlib.suppress(OutcomeUnknownError):
                    await log.append(records(head + 1, head + 1))
                head += 1
            assert (await log.restore()).start.head == head
            os.write(said, f"ack {head}\n".encode())
    finally:
        await log.close()
        os.close(said)


def remove_from(path: Path, strike: tuple[str, ...]) -> None:
    """By the calls that the recorder knows: write, rename and unlink."""
    older = path.read_bytes()
    for suffix in DATA if strike[0] in ("foreign", "older") else strike:
        beside(path, suffix).unlink()
    if strike[0] == "foreign":
        path.write_bytes(b"of somebody else")
        beside(path, "-wal").write_bytes(b"of somebody else")
    if strike[0] == "older":
        path.write_bytes(older)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> tuple[str, list[Op]]:
    """The recorded run: its calls on files that had a name then, and the directory in which they were made."""
    base = tmp_path_factory.mktemp("recorded").resolve()
    directory, trace = base / "state", base / "trace"
    directory.mkdir()
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from tests.integration.test_log_removed import live_with_a_vandal\n"
        "asyncio.run(live_with_a_vandal(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": str(preload("record", base)),
            "VPCCNI_RECORD": str(trace),
            "VPCCNI_RECORD_DIR": str(directory),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ops = [op for op in read_trace(trace) if not op.path.endswith(" (deleted)")]
    disk = Disk(str(directory))
    for op in ops:
        disk.do(op)
    for name in (NAME, "said"):  # or the record is not of everything
        assert disk.file(name) == (directory / name).read_bytes(), name
    return str(directory), ops


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where images are opened: in memory, where a sync costs nothing."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as directory:
        yield Path(directory)


async def found_by_a_start(image: dict[str, bytes], directory: Path) -> int | None:
    """The head of a log that is a part of what was written; ``None`` for one that is damaged or lost and told."""
    for old in directory.iterdir():
        old.unlink()
    for name, content in image.items():
        if name != "said":
            (directory / name).write_bytes(content)
    log = SqliteLog(directory / NAME, volatile_ok=True)
    try:
        start = await log.open()
    except PermanentError as error:
        return None if error.reason is Reason.LOG_DAMAGED else pytest.fail(str(error))
    finally:
        await log.close()
    assert start.tail == tuple(records(1, start.head))
    return None if start.is_lost else int(start.head)


def told(said: bytes) -> tuple[int, bool]:
    """What was acknowledged, and whether files are gone just now."""
    lines = [line.split() for line in said.decode().splitlines()]
    return (int(lines[-1][1]), lines[-1][0] == "gone") if lines else (0, False)


@pytest.mark.slow
async def test_an_agent_that_is_killed_while_it_puts_a_log_back_leaves_all_or_nothing(trace, scratch):
    """After each call: everything that was called until then is on the disk, nothing else happens any more."""
    directory, ops = trace
    disk, seen = Disk(directory), set()
    whole: dict[int, int] = {}
    for number, op in enumerate(ops):
        if op.kind == "R" and op.data.endswith(f"/{NAME}".encode()):
            # A copy gets the log's name where no -wal may be found beside it, whatever the disk kept of the names.
            assert not any(f"{NAME}-wal" in names for names in disk.names())
        disk.do(op)
        names = disk.names()[-1]
        image = disk.image(names, 4096, lambda sectors: sectors, is_long=True, filler=b"\0")
        mark = hash(tuple(sorted(image.items())))
        if mark in seen:
            continue
        seen.add(mark)
        acknowledged, is_gone = told(image.get("said", b""))
        head = await found_by_a_start(image, scratch)
        where = f"after call {number}, {op.kind} of {op.path}"
        if not is_gone:
            assert head is not None, where
            assert head >= acknowledged, where
            continue
        whole[acknowledged] = max(whole.get(acknowledged, 0), head or 0)
        marker_is_gone = f"{NAME}.exists" not in image
        assert head is None or head >= acknowledged or (head == 0 and marker_is_gone), f"{where}: {head}"
    assert len(seen) > 200
    assert all(head >= acknowledged for acknowledged, head in whole.items())


@pytest.mark.slow
async def test_a_loss_of_power_while_a_log_is_put_back_leaves_no_half_of_it(trace, scratch):
    """Before each sync everything since the one before is in the balance: all of it, in parts and orders."""
    directory, ops = trace
    disk, chance, seen = Disk(directory), random.Random(1), set()
    for number, op in enumerate(ops):
        acknowledged, is_gone = told(disk.file("said"))
        for what, choose in choices(chance) if op.kind == "S" else ():
            size, names = chance.choice((512, 4096)), chance.choice(disk.names())
            image = disk.image(names, size, choose, is_long=chance.random() < 0.5, filler=b"\0")
            image.pop("said", None)
            mark = hash(tuple(sorted(image.items())))
            if mark in seen:
                continue
            seen.add(mark)
            head = await found_by_a_start(image, scratch)
            if not is_gone:
                where = f"before call {number} ({op.path} is synced), sectors of {size}, {what}"
                assert head is not None, where
                assert head >= acknowledged, where
        disk.do(op)
    assert len(seen) > 200
