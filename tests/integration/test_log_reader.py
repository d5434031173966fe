"""The replay tool's reader: from the file alone, writing nothing, also beside a running agent."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.event_samples import ENI, KEY, POD, record, records
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import PermanentError, Reason
from vpccni.events import sandbox
from vpccni.events.envelope import GENESIS
from vpccni.events.subjects import subjects_of
from vpccni.model import LeaseId, Seq
from vpccni.replay import reader
from vpccni.replay.reader import open_log

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.db"


@pytest.fixture
async def log(path):
    """A running agent's log with 60 events, the last 20 only in the -wal."""
    opened = SqliteLog(path, volatile_ok=True)
    await opened.open()
    await opened.append(records(1, 40))
    await opened.write_snapshot(Seq(38), records(1, 38))
    await opened.checkpoint()
    await opened.append(records(41, 60))
    yield opened
    await opened.close()


def listing(directory):
    return {one.name: one.read_bytes() for one in directory.iterdir()}


async def test_records_come_by_range(log, path):
    with open_log(path) as file:
        assert [file.decoded(one) for one in file.records()] == records(1, 60)
        assert [one.seq for one in file.records(after=57)] == [58, 59, 60]
        assert [one.seq for one in file.records(after=3, upto=5)] == [4, 5]
        assert list(file.records(after=60)) == []


def about(kind: str, subject: str) -> list[int]:
    """Which of the log's records are about a subject, by the one rule for that."""
    return [one.seq for one in records(1, 60) if (kind, subject) in subjects_of(one.seq, one.event)]


@pytest.mark.parametrize(
    ("kind", "subject", "least"),
    [
        ("lease", "29", 7),
        ("pod", f"{POD.namespace}/{POD.name}", 5),
        ("container", KEY.container_id, 5),
        ("address", "10.0.3.7", 4),
        ("eni", ENI, 12),
    ],
    ids=["lease", "pod", "container", "address", "eni"],
)
async def test_records_come_by_subject(log, path, kind, subject, least):
    with open_log(path) as file:
        found = [one.seq for one in file.by_subject(kind, subject)]
    assert found == about(kind, subject)
    assert len(found) >= least


async def test_no_record_is_about_a_subject_that_was_never_named(log, path):
    with open_log(path) as file:
        assert list(file.by_subject("address", "10.9.9.9")) == []


async def test_head_and_snapshots(log, path):
    with open_log(path) as file:
        seq, digest = file.head()
        (last,) = file.records(after=59)
        assert (seq, digest) == (60, last.hash)
        (snapshot,) = file.snapshots()
        assert snapshot.seq == 38
        assert file.snapshot_records(snapshot) == tuple(records(1, 38))


async def test_an_empty_log_has_the_genesis_for_its_head(path):
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    await log.close()
    with open_log(path) as file:
        assert file.head() == (0, GENESIS)
        report = file.verify_chain()
        assert (report.ok, report.events, report.head_seq) == (True, 0, 0)


async def test_a_walk_sees_the_log_as_it_was_and_the_next_what_was_appended_meanwhile(log, path):
    with open_log(path) as file:
        walk = file.records()
        assert next(walk).seq == 1
        await log.append(records(61, 70))
        await log.checkpoint()
        assert file.head()[0] == 60
        assert [one.seq for one in walk][-1] == 60
        assert file.head()[0] == 70
        report = file.verify_chain()
        assert (report.ok, report.events, report.snapshots) == (True, 70, 1)
        assert not report.ends_without_wal
        assert report.notes == ()
    await log.append(records(71, 71))


async def test_the_agent_goes_on_after_readers_came_and_went(log, path):
    for seq in range(61, 71):
        with open_log(path) as file:
            assert file.verify_chain().head_seq == seq - 1
        await log.append([record(seq)])
    assert (await log.reopen()).head == 70


async def test_progress_is_told(log, path, monkeypatch):
    monkeypatch.setattr(reader, "PROGRESS_EVERY", 20)
    told = []
    with open_log(path) as file:
        file.verify_chain(lambda at, last: told.append((at, last)))
    assert told == [(20, 60), (40, 60), (60, 60)]


async def test_a_copy_with_its_wal_is_whole_and_stays_as_it_is(log, path, tmp_path):
    copy = tmp_path / "evidence"
    copy.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", copy / f"events.db{suffix}")
    before = listing(copy)
    with open_log(copy / "events.db") as file:
        report = file.verify_chain()
    assert (report.ok, report.head_seq, report.ends_without_wal) == (True, 60, False)
    assert listing(copy) == before


async def test_a_copy_without_its_wal_says_where_it_ends(log, path, tmp_path):
    copy = tmp_path / "evidence"
    copy.mkdir()
    shutil.copyfile(path, copy / "events.db")
    before = listing(copy)
    with open_log(copy / "events.db") as file:
        report = file.verify_chain()
        assert file.ends_without_wal
    assert (report.ok, report.head_seq, report.ends_without_wal) == (True, 40, True)
    assert "ends at event 40" in report.notes[0]
    assert listing(copy) == before


async def test_no_private_copy_is_left_behind(log, path, tmp_path, monkeypatch):
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    copy = tmp_path / "evidence"
    copy.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", copy / f"events.db{suffix}")
    file = open_log(copy / "events.db")
    assert len(list(private.iterdir())) == 1
    file.close()
    file.close()
    assert list(private.iterdir()) == []
    (copy / "events.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(PermanentError):
        open_log(copy / "events.db")
    assert list(private.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "empty"), (b"x" * 9000, "not a database")],
    ids=["missing", "empty", "text"],
)
def test_what_is_no_log_is_refused_in_a_sentence(tmp_path, content, words):
    path = tmp_path / "events.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError) as refused:
        open_log(path)
    assert refused.value.reason is Reason.LOG_DAMAGED
    assert words in refused.value.detail


def test_a_directory_is_no_log(tmp_path):
    with pytest.raises(PermanentError):
        open_log(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "events.db"
    path.write_bytes(b"x" * 9000)
    path.chmod(0)
    with pytest.raises(PermanentError):
        open_log(path)


async def test_a_log_from_the_future_is_named_as_such(log, path):
    await log.close()
    shell = sqlite3.connect(path)
    shell.execute("PRAGMA user_version = 7")
    shell.close()
    with pytest.raises(PermanentError) as refused:
        open_log(path)
    assert refused.value.reason is Reason.LOG_NEWER


async def test_a_segment_that_was_moved_out_is_told_and_the_rest_is_verified(log, path):
    await log.close()
    shell = sqlite3.connect(path)
    shell.execute("INSERT INTO segment SELECT seq, hash, seq, 'nothing' FROM event WHERE seq = 38")
    shell.execute("DELETE FROM event WHERE seq <= 38")
    shell.execute("DELETE FROM event_subject WHERE seq <= 38")
    shell.commit()
    shell.close()
    with open_log(path) as file:
        report = file.verify_chain()
    assert (report.ok, report.events, report.head_seq, report.snapshots) == (True, 22, 60, 1)
    assert "38" in report.notes[0]
    start = await log.open()
    assert (start.snapshot, start.tail) == (tuple(records(1, 38)), tuple(records(39, 60)))
    await log.append([record(61, sandbox.SandboxUnwired(lease=LeaseId(29)))])


def test_the_reader_imports_nothing_heavy():
    script = "import sys, vpccni.replay.reader; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"sqlalchemy", "aiosqlite", "alembic", "asyncio", "aiohttp", "pyroute2", "typer", "rich"}
    assert not heavy & set(done.stdout.split())
