"""What only the log on a disk can do wrong: locks, kills, full disks, places that forget, old schemas."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.event_samples import records
from vpccni.adapters import log_files
from vpccni.adapters.log_files import RESERVE_BYTES, LogFiles
from vpccni.adapters.log_format import LogFault, LogFaults
from vpccni.adapters.log_sqlite import WAL_AHEAD, WAL_BYTES_MAX, SqliteLog
from vpccni.errors import InvariantBrokenError, OutcomeUnknownError, PermanentError, Reason, TransientError
from vpccni.model import Seq

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.db"


@pytest.fixture
async def log(path):
    opened = SqliteLog(path, volatile_ok=True)
    await opened.open()
    yield opened
    await opened.close()


def beside(path, suffix):
    return path.with_name(path.name + suffix)


async def test_the_file_is_as_durable_as_promised(path, log):
    pragmas = {}
    for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "application_id", "user_version"):
        ((pragmas[name],),) = await log._sql(f"PRAGMA {name}")
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "wal_autocheckpoint": 0,
        "application_id": 0x76706363,
        "user_version": 1,
    }


@pytest.mark.slow
async def test_a_reader_who_goes_away_in_the_middle_leaves_the_log_usable(log):
    """1. Somebody reads the log. 2. He hangs up. 3. SQLAlchemy must not close the batches' connection."""
    await log.append(records(1, 400))
    await log.read(Seq(0), 1)
    chance = random.Random(1)
    cancelled = 0
    for number in range(200):
        work = log.checkpoint() if number % 5 == 0 else log.read(Seq(0), 400)
        task = asyncio.get_running_loop().create_task(work)
        await asyncio.sleep(chance.uniform(0, 0.004))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
    assert cancelled > 10
    await log.append(records(401, 402))
    assert await log.read(Seq(0), 1000) == records(1, 402)


async def test_a_closed_log_is_one_file_with_its_marker_and_its_reserve(path, log):
    await log.append(records(1, 9))
    await log.close()
    names = sorted(one.name.removeprefix("events.db") for one in path.parent.iterdir())
    assert names == ["", ".exists", ".head", ".lock", ".reserve"]


async def test_a_second_agent_in_another_process_is_kept_out(path, log):
    script = (
        "import asyncio, sys; from pathlib import Path; from vpccni.adapters.log_sqlite import SqliteLog\n"
        "from vpccni.errors import PermanentError\n"
        "try: asyncio.run(SqliteLog(Path(sys.argv[1]), volatile_ok=True).open())\n"
        "except PermanentError as error: print(error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "log_in_use"


async def test_a_foreign_lock_holds_up_one_batch_and_no_more(path, log):
    shell = sqlite3.connect(path, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError) as refused:
        await log.append(records(1, 2))
    assert refused.value.reason is Reason.LOG_IN_USE
    shell.execute("ROLLBACK")
    shell.close()
    await log.append(records(1, 2))
    assert await log.read(Seq(0), 9) == records(1, 2)


async def test_an_event_that_somebody_else_wrote_stops_the_batch(path, log):
    await log.append(records(1, 1))
    shell = sqlite3.connect(path)
    shell.execute("INSERT INTO event SELECT 2, kind, version, 0, 1, 1, boot_id, 0, body, hash FROM event")
    shell.commit()
    shell.close()
    with pytest.raises(InvariantBrokenError):
        await log.append(records(2, 2))


@pytest.mark.parametrize("magic", [0x01021994, 0x858458F6, 0x794C7630], ids=["tmpfs", "ramfs", "overlay"])
async def test_a_place_that_forgets_is_refused_unless_that_is_accepted(path, monkeypatch, magic):
    monkeypatch.setattr(log_files, "_filesystem_magic", lambda directory: magic)
    with pytest.raises(PermanentError) as refused:
        await SqliteLog(path).open()
    assert refused.value.reason is Reason.LOG_VOLATILE
    assert list(path.parent.iterdir()) == []
    accepting = SqliteLog(path, volatile_ok=True)
    await accepting.open()
    await accepting.close()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a tmpfs at /dev/shm")
def test_a_real_tmpfs_is_known_by_its_magic():
    assert log_files._filesystem_magic(Path("/dev/shm")) == 0x01021994
    assert log_files._filesystem_magic(Path("/proc")) == 0x9FA0


async def test_a_log_of_a_newer_schema_is_left_alone(path, log):
    await log.append(records(1, 3))
    await log.close()
    shell = sqlite3.connect(path)
    shell.execute("PRAGMA user_version = 2")
    shell.close()
    before = path.read_bytes()
    with pytest.raises(PermanentError) as refused:
        await log.open()
    assert refused.value.reason is Reason.LOG_NEWER
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*quarantine*"))


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.data.event_samples import records
from vpccni.adapters.log_sqlite import SqliteLog

async def main():
    log = SqliteLog(Path(sys.argv[1]), volatile_ok=True)
    head = (await log.open()).head
    while True:
        await log.append(records(head + 1, head + 7))
        head += 7
        print(head, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_killed_writer_loses_no_acknowledged_batch_and_leaves_no_part_of_one(path):
    for patience in (1, 5, 23):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            acknowledged = [int(process.stdout.readline()) for _ in range(patience)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout]
        log = SqliteLog(path, volatile_ok=True)
        start = await log.open()
        assert start.tail == tuple(records(1, start.head))
        assert start.head % 7 == 0
        assert acknowledged[-1] <= start.head <= acknowledged[-1] + 7
        await log.close()


async def test_reopening_after_a_failed_sync_writes_the_wal_anew(path):
    faults = LogFaults()
    log = SqliteLog(path, volatile_ok=True, faults=faults)
    await log.open()
    await log.append(records(1, 3))
    main, wal = path.read_bytes(), beside(path, "-wal")
    content, inode = wal.read_bytes(), wal.stat().st_ino
    with wal.open("rb"):  # keeps the old inode's number from being given again
        faults.plan(LogFault.APPLIED)
        with pytest.raises(OutcomeUnknownError):
            await log.append(records(4, 5))
        content = wal.read_bytes()
        assert (await log.reopen()).head == 5
        assert wal.read_bytes() == content
        assert wal.stat().st_ino != inode
        assert path.read_bytes() == main
    await log.close()


async def test_closing_after_an_unknown_outcome_writes_nothing(path):
    faults = LogFaults()
    log = SqliteLog(path, volatile_ok=True, faults=faults)
    await log.open()
    await log.append(records(1, 3))
    faults.plan(LogFault.LOST)
    with pytest.raises(OutcomeUnknownError):
        await log.append(records(4, 5))
    before = [path.read_bytes(), beside(path, "-wal").read_bytes()]
    await log.close()
    assert [path.read_bytes(), beside(path, "-wal").read_bytes()] == before


async def test_a_wal_that_grows_too_long_is_emptied_by_an_append(path):
    log = SqliteLog(path, volatile_ok=True, wal_bytes_max=200_000)
    await log.open()
    sizes = []
    for first in range(1, 400, 10):
        await log.append(records(first, first + 9))
        sizes.append(beside(path, "-wal").stat().st_size)
    assert max(sizes) <= 300_000
    assert sizes.count(0) >= 2
    await log.close()


async def test_a_reader_that_stays_cannot_stop_appends(path):
    log = SqliteLog(path, volatile_ok=True, wal_bytes_max=100_000)
    await log.open()
    await log.append(records(1, 10))
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM event").fetchone() == (10,)
    for first in range(11, 200, 10):
        await log.append(records(first, first + 9))
    assert reader.execute("SELECT count(*) FROM event").fetchone() == (10,)
    reader.close()
    for first in range(201, 400, 10):
        await log.append(records(first, first + 9))
    assert beside(path, "-wal").stat().st_size <= 400_000
    await log.close()


async def test_a_checkpoint_makes_the_wal_long_enough_for_the_next_batches(path, log):
    for first in range(1, 100, 10):
        await log.append(records(first, first + 9))
    size = beside(path, "-wal").stat().st_size
    await log.checkpoint()
    longer = beside(path, "-wal").stat().st_size
    assert size < WAL_BYTES_MAX // WAL_AHEAD <= longer
    for seq in range(101, 200):
        await log.append(records(seq, seq))
    await log.checkpoint()
    await log.append(records(200, 201))
    assert beside(path, "-wal").stat().st_size == longer
    assert await log.read(Seq(0), 1000) == records(1, 201)


# --- the disk is full -------------------------------------------------------------------------------


async def test_a_planned_full_disk_lets_the_reserve_go_and_a_checkpoint_takes_it_back(path):
    faults = LogFaults()
    log = SqliteLog(path, volatile_ok=True, faults=faults)
    await log.open()
    reserve = beside(path, ".reserve")
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    faults.plan(LogFault.DISK_FULL)
    with pytest.raises(TransientError):
        await log.append(records(1, 2))
    assert not reserve.exists()
    await log.append(records(1, 2))
    await log.checkpoint()
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    await log.close()


FULL_DISK = """
import asyncio, json, os, sys
from pathlib import Path
from tests.data.event_samples import records
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import TransientError

async def fill(log, head, step):
    while True:
        try:
            await log.append(records(head + 1, head + step))
        except TransientError as error:
            return head, str(error.reason)
        head += step

async def main():
    directory = Path(sys.argv[1])
    path, filler = directory / "events.db", directory / "filler"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    reserve = path.with_name("events.db.reserve")
    said = {"reserve_at_start": reserve.exists()}
    space = os.statvfs(directory)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 1_000_000)
    head, said["first"] = await fill(log, 0, 500)
    said["reserve_when_full"] = reserve.exists()
    small = head
    for _ in range(40):
        await log.append(records(small + 1, small + 1))
        small += 1
    said["small_batches"] = small - head
    head, said["second"] = await fill(log, small, 500)
    try:
        await log.write_snapshot(head, records(1, 9000))
        said["snapshot"] = "stored"
    except TransientError as error:
        said["snapshot"] = str(error.reason)
    said["restored_while_full"] = log.restore_reserve()
    filler.unlink()
    await log.checkpoint()
    said["reserve_at_end"] = reserve.exists()
    await log.append(records(head + 1, head + 50))
    start = await log.reopen()
    said["whole"] = start.tail == tuple(records(1, head + 50))
    await log.close()
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    """On a small tmpfs in a mount namespace of its own, which dies with the process."""
    small = tmp_path / "small"
    small.mkdir()
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs a mount namespace (root, or unprivileged user namespaces)")
    command = 'mount -t tmpfs -o size=24m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*unshare, "sh", "-c", command, "sh", str(small), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert list(small.iterdir()) == []
    assert json.loads(done.stdout) == {
        "reserve_at_start": True,
        "first": "log_disk_full",
        "reserve_when_full": False,
        "small_batches": 40,
        "second": "log_disk_full",
        "snapshot": "log_disk_full",
        "restored_while_full": False,
        "reserve_at_end": True,
        "whole": True,
    }


async def test_no_room_for_a_new_log_leaves_nothing_behind(path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_files, "create_schema", full)
    log = SqliteLog(path, volatile_ok=True)
    with pytest.raises(TransientError) as refused:
        await log.open()
    assert refused.value.reason is Reason.LOG_DISK_FULL
    assert [one.name for one in path.parent.iterdir()] == ["events.db.lock"]
    monkeypatch.undo()
    assert (await log.open()).head == 0
    await log.close()


async def test_a_half_made_new_log_is_no_log(path):
    path.parent.mkdir()
    beside(path, ".new").write_bytes(b"SQLite format 3\0 and then the power failed")
    beside(path, ".new-journal").write_bytes(b"x")
    log = SqliteLog(path, volatile_ok=True)
    assert (await log.open()).head == 0
    await log.close()
    assert not beside(path, ".new").exists()
    assert not beside(path, ".new-journal").exists()


def test_the_lock_is_given_back_and_taken_again(path):
    path.parent.mkdir()
    first, second = LogFiles(path), LogFiles(path)
    first.acquire()
    first.acquire()
    with pytest.raises(PermanentError):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()
