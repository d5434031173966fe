"""A log that is not what was written is noticed, kept, copied aside, and never replaced."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.data.event_samples import EVENTS, record, records
from vpccni.adapters.log_files import LogFiles
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, VpccniError
from vpccni.model import Seq
from vpccni.replay.reader import open_log

COUNT = 70
PAGE = 4096


def open_copy(source, directory):
    """A copy of a log's database and -wal, as a crash or a careless ``cp`` leaves it."""
    directory.mkdir(exist_ok=True)
    target = directory / "events.db"
    for suffix in ("", "-wal"):
        if (origin := source.with_name(source.name + suffix)).exists():
            shutil.copyfile(origin, target.with_name(target.name + suffix))
        else:
            target.with_name(target.name + suffix).unlink(missing_ok=True)
    target.with_name(target.name + "-shm").unlink(missing_ok=True)
    for old in directory.glob("*quarantine*"):
        old.unlink()
    return target


@pytest.fixture
async def whole(tmp_path):
    """A log that was closed properly: everything is in the one file."""
    path = tmp_path / "whole" / "events.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    for first in range(1, COUNT, 10):
        await log.append(records(first, first + 9))
    await log.close()
    return path


@pytest.fixture
async def crashed(tmp_path):
    """A log whose newest thirty events, one to a transaction, are only in the -wal."""
    path = tmp_path / "running" / "events.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    await log.append(records(1, 10))
    await log.close()
    await log.open()
    for seq in range(11, 41):
        await log.append(records(seq, seq))
    copy = open_copy(path, tmp_path / "crashed")
    await log.close()
    return copy


async def opened(path):
    """What an agent gets at its start."""
    log = SqliteLog(path, volatile_ok=True)
    try:
        return await log.open(), log.notes
    finally:
        await log.close()


async def damage_of(path, *, copied=True):
    """What an agent says of a damaged log; the files must stay as they are, and be copied aside."""
    files = [one for one in (path, path.with_name(path.name + "-wal")) if one.exists()]
    before = [one.read_bytes() for one in files]
    with pytest.raises(PermanentError) as refused:
        await opened(path)
    assert refused.value.reason is Reason.LOG_DAMAGED
    assert [one.read_bytes() for one in files] == before
    if copied:
        copies = sorted(path.parent.glob("events.db.quarantine-*"))
        assert [one.read_bytes() for one in copies] == before
    return refused.value.detail


def check_reason(error, where):
    # A flip in user_version makes a log from the future out of ours.
    assert error.reason in (Reason.LOG_DAMAGED, Reason.LOG_NEWER), where


def is_good(path):
    """What replay says: a report, or a refusal by name; never another exception."""
    try:
        with open_log(path) as log:
            report = log.verify_chain()
            return report.ok and [log.decoded(one) for one in log.records()] == records(1, COUNT)
    except VpccniError as error:
        check_reason(error, path)
        return False


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def edit(path, *statements):
    """Change a closed log as somebody with a sqlite3 shell would who first drops the triggers."""
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


EDITS = {
    "a body is changed": ("UPDATE event SET body = replace(body, '10.0.3.7', '10.0.3.9') WHERE seq = 29", 29),
    "a clock is changed": ("UPDATE event SET wall_ns = wall_ns + 1 WHERE seq = 30", 30),
    "must_understand is changed": ("UPDATE event SET must_understand = 1 - must_understand WHERE seq = 7", 7),
    "a hash is changed": ("UPDATE event SET hash = zeroblob(32) WHERE seq = 12", 12),
    "an event is taken out": ("DELETE FROM event WHERE seq = 20", 20),
    "the first is taken out": ("DELETE FROM event WHERE seq = 1", 1),
    "two change places": (
        "UPDATE event SET seq = CASE seq WHEN 5 THEN -6 ELSE -5 END WHERE seq IN (5, 6);"
        "UPDATE event SET seq = -seq WHERE seq < 0",
        5,
    ),
    "a number becomes text": ("UPDATE event SET version = 'one' WHERE seq = 9", 9),
    "a kind is not text": ("UPDATE event SET kind = x'ff00' WHERE seq = 9", 9),
    "a kind is not UTF-8": ("UPDATE event SET kind = CAST(x'ff' AS TEXT) WHERE seq = 9", 0),
    "a stranger is put at the end": (
        f"INSERT INTO event SELECT {COUNT + 1}, kind, version, must_understand, wall_ns, boottime_ns,"
        " boot_id, cause, body, hash FROM event WHERE seq = 1",
        COUNT + 1,
    ),
}


@pytest.mark.parametrize(("change", "seq"), EDITS.values(), ids=EDITS.keys())
async def test_an_edited_log_is_refused_by_the_agent_and_named_by_replay_when(whole, change, seq):
    edit(whole, *change.split(";"))
    detail = await damage_of(whole)
    assert f"event {seq}:" in detail or not seq
    with open_log(whole) as log:
        report = log.verify_chain()
    assert not report.ok
    assert report.why
    assert report.first_bad_seq == seq


async def test_an_end_that_was_cut_off_is_seen_by_the_index(whole):
    edit(whole, f"DELETE FROM event WHERE seq > {COUNT - 3}")
    with open_log(whole) as log:
        report = log.verify_chain()
    assert not report.ok
    assert report.first_bad_seq == COUNT - 2


async def test_a_tail_that_was_lost_below_a_snapshot_is_damage(whole):
    log = SqliteLog(whole, volatile_ok=True)
    await log.open()
    await log.write_snapshot(Seq(COUNT), records(1, 3))
    await log.close()
    edit(whole, f"DELETE FROM event WHERE seq > {COUNT - 3}", "DELETE FROM event_subject")
    assert f"event {COUNT - 2}: is missing" in await damage_of(whole)
    with open_log(whole) as file:
        assert not file.verify_chain().ok


@pytest.mark.parametrize("seed", range(8))
async def test_flipped_bits_are_noticed_or_harmless(whole, tmp_path, seed):
    """Twenty flips a seed, anywhere in the file: replay reports them, or every record is what it was."""
    chance = random.Random(seed)
    size = whole.stat().st_size
    for _ in range(20):
        copy = open_copy(whole, tmp_path / "copy")
        at, bit = chance.randrange(size), chance.randrange(8)
        flip(copy, at, bit)
        try:
            with open_log(copy) as log:
                report = log.verify_chain()
                # A flip in unused space, or in SQLite's own version number, changes nothing that is read.
                same = report.ok and [log.decoded(one) for one in log.records()] == records(1, COUNT)
                assert same or (not report.ok and report.why), f"byte {at}, bit {bit}"
        except VpccniError as error:
            check_reason(error, f"byte {at}, bit {bit}")


@pytest.mark.parametrize("seed", range(4))
async def test_an_agent_starts_on_the_true_state_or_not_at_all(whole, tmp_path, seed):
    chance = random.Random(100 + seed)
    size = whole.stat().st_size
    for _ in range(6):
        copy = open_copy(whole, tmp_path / "copy")
        at, bit = chance.randrange(size), chance.randrange(8)
        flip(copy, at, bit)
        before = copy.read_bytes()
        kept = True
        try:
            start, _ = await opened(copy)
        except VpccniError as error:
            check_reason(error, f"byte {at}, bit {bit}")
            kept = copy.read_bytes() == before
        else:
            assert start.tail == tuple(records(1, COUNT)), f"byte {at}, bit {bit}"
        assert kept, f"byte {at}, bit {bit}: a damaged log was changed"


@pytest.mark.parametrize("keep", [1, 99, 100, PAGE - 1, PAGE, 3 * PAGE, 5 * PAGE + 17, -1], ids=str)
async def test_a_truncated_file_is_refused(whole, keep):
    content = whole.read_bytes()
    whole.write_bytes(content[:keep])
    await damage_of(whole)
    assert not is_good(whole)


async def test_pages_that_changed_places_are_noticed(whole, tmp_path):
    pages = whole.stat().st_size // PAGE
    chance = random.Random(7)
    for _ in range(10):
        copy = open_copy(whole, tmp_path / "copy")
        content = whole.read_bytes()
        first, second = sorted(chance.sample(range(1, pages), 2))
        parts = [content[at * PAGE : (at + 1) * PAGE] for at in range(pages)]
        parts[first], parts[second] = parts[second], parts[first]
        copy.write_bytes(b"".join(parts))
        assert is_good(copy) == (parts[first] == parts[second]), (first, second)


@pytest.mark.parametrize(
    "content", [b"not a database, not by far" * 300, b"\0" * 8192], ids=["text", "zeros"]
)
async def test_something_that_is_no_database_is_refused(tmp_path, content):
    path = tmp_path / "events.db"
    path.write_bytes(content)
    assert "not an SQLite database" in await damage_of(path)


async def test_a_database_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "events.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE ours (x)")
    connection.close()
    assert "not a log of vpccni" in await damage_of(path)


async def test_an_empty_file_is_not_taken_for_a_new_log(whole):
    whole.write_bytes(b"")
    assert "empty" in await damage_of(whole)


async def test_an_empty_file_beside_a_wal_is_damage(crashed):
    crashed.write_bytes(b"")
    assert "empty" in await damage_of(crashed)


async def test_a_wal_without_its_database_is_a_lost_log_and_is_kept(crashed):
    crashed.with_name("events.db.exists").unlink(missing_ok=True)
    left = crashed.with_name("events.db-wal").read_bytes()
    crashed.unlink()
    start, notes = await opened(crashed)
    assert (start.head, start.is_lost) == (0, True)
    kept = list(crashed.parent.glob("events.db.lost-*-wal"))
    assert [one.read_bytes() for one in kept] == [left]
    assert any(kept[0].name in note for note in notes)


async def test_a_log_that_vanished_is_told_by_its_marker_once(whole):
    whole.unlink()
    start, notes = await opened(whole)
    assert (start.head, start.is_lost) == (0, True)
    assert any("is gone, a new one is made" in note for note in notes)
    assert whole.exists()
    start, _ = await opened(whole)
    assert not start.is_lost


async def test_a_new_place_is_no_loss(tmp_path):
    start, _ = await opened(tmp_path / "events.db")
    assert (start.head, start.is_lost) == (0, False)


async def test_a_log_that_was_put_back_without_its_marker_serves_and_is_marked(whole):
    whole.with_name("events.db.exists").unlink()
    start, _ = await opened(whole)
    assert start.head == COUNT
    assert whole.with_name("events.db.exists").exists()


async def test_the_same_damage_is_copied_once(whole):
    flip(whole, whole.stat().st_size // 2 + 300)
    edit(whole, "UPDATE event SET cause = 9 WHERE seq = 3")
    await damage_of(whole)
    await damage_of(whole)
    edit(whole, "UPDATE event SET cause = 8 WHERE seq = 3")
    await damage_of(whole, copied=False)
    assert len(list(whole.parent.glob("events.db.quarantine-*"))) == 2


async def test_a_damaged_snapshot_is_passed_over(whole):
    log = SqliteLog(whole, volatile_ok=True)
    await log.open()
    await log.write_snapshot(Seq(30), records(1, 30))
    await log.write_snapshot(Seq(50), records(1, 50))
    await log.close()
    edit(whole, "UPDATE snapshot SET records = replace(records, '10.0.3.7', '10.0.3.8') WHERE seq = 50")
    start, notes = await opened(whole)
    assert start.snapshot == tuple(records(1, 30))
    assert start.tail == tuple(records(31, COUNT))
    assert notes == ("the snapshot at event 50 does not match its digest",)
    edit(whole, "UPDATE snapshot SET head_hash = zeroblob(32) WHERE seq = 30")
    start, notes = await opened(whole)
    assert (start.snapshot, start.tail) == ((), tuple(records(1, COUNT)))
    assert len(notes) == 2
    with open_log(whole) as file:
        assert not file.verify_chain().ok


async def test_damage_before_the_last_snapshot_is_left_to_replay(whole):
    """A start reads from the last snapshot on, so that it takes the same time at any length."""
    log = SqliteLog(whole, volatile_ok=True)
    await log.open()
    await log.write_snapshot(Seq(50), records(1, 50))
    await log.close()
    edit(whole, "UPDATE event SET cause = 4 WHERE seq = 5")
    start, _ = await opened(whole)
    assert start.tail == tuple(records(51, COUNT))
    with open_log(whole) as file:
        assert file.verify_chain().first_bad_seq == 5


async def test_a_crashed_log_is_whole_with_its_wal(crashed):
    start, _ = await opened(crashed)
    assert start.tail == tuple(records(1, 40))


def written_bytes(wal: Path) -> int:
    """How far SQLite has written it; behind that it was only lengthened."""
    return len(wal.read_bytes().rstrip(b"\0"))


@pytest.mark.parametrize("seed", range(10))
async def test_a_frame_of_the_wal_that_was_damaged_is_not_taken_for_a_torn_end(crashed, seed):
    """SQLite would silently end the log before the bad frame, and acknowledged leases would be gone."""
    wal = Path(f"{crashed}-wal")
    chance = random.Random(seed)
    flip(wal, 32 + chance.randrange(int((written_bytes(wal) - 32) * 0.8)), chance.randrange(8))
    assert "-wal" in await damage_of(crashed)


async def test_replay_says_that_a_copy_ends_early_when_a_frame_of_its_wal_is_damaged(crashed):
    """SQLite passes over everything behind the frame, and the reader would have a shorter history than the agent."""
    with open_log(crashed) as log:
        assert log.verify_chain().ok
    flip(Path(f"{crashed}-wal"), 32 + 100)
    with open_log(crashed) as log:
        report = log.verify_chain()
    assert not report.ok
    assert "a frame of the -wal is damaged" in report.why
    assert report.head_seq < 40


async def test_a_damaged_header_of_the_wal_is_damage(crashed):
    flip(Path(f"{crashed}-wal"), 17)
    assert "header of the -wal" in await damage_of(crashed)


async def test_a_last_transaction_that_was_torn_is_given_up_and_cleared_away(crashed):
    """1. Power is lost while event 40 is written. 2. The start ends at 39. 3. So does the next crash's."""
    wal = Path(f"{crashed}-wal")
    flip(wal, written_bytes(wal) - 2000)
    start, _ = await opened(crashed)
    assert start.tail == tuple(records(1, 39))
    log = SqliteLog(crashed, volatile_ok=True)
    await log.open()
    await log.append(records(40, 40))
    again = open_copy(crashed, crashed.parent / "again")
    await log.close()
    start, _ = await opened(again)
    assert start.head == 40


# -- a log that is shorter than it was: the number beside it tells ------------------------------------


@pytest.fixture
def killed(crashed):
    """With the number beside it, as a process that dies leaves it."""
    shutil.copyfile(crashed.parent.parent / "running" / "events.db.head", f"{crashed}.head")
    return crashed


async def test_a_log_whose_process_was_killed_is_whole(killed):
    start, notes = await opened(killed)
    assert (start.head, notes) == (40, ())


@pytest.mark.parametrize("how", ["gone", "cut", "last transaction", "older copy"])
async def test_a_log_that_is_shorter_than_it_was_is_damage(killed, how, tmp_path):
    wal = Path(f"{killed}-wal")
    if how == "gone":
        wal.unlink()
    elif how == "cut":
        os.truncate(wal, written_bytes(wal) - 9000)
    elif how == "last transaction":
        flip(wal, written_bytes(wal) - 2000)
    else:
        (tmp_path / "running" / "events.db").replace(killed)
        note_head(killed, 41)
        wal.unlink()
    assert "events.db.head" in await damage_of(killed)
    Path(f"{killed}.head").unlink()  # what the message says: it is meant to be as it is
    start, _ = await opened(killed)
    assert start.head == {"gone": 10, "last transaction": 39, "older copy": 40}.get(how, start.head) < 41


def note_head(path, seq):
    files = LogFiles(path)
    files.note_head(seq)
    files.release()


@pytest.mark.parametrize("said", ["", "nonsense", "00000000000000000099 00000000\n", "\udce4"])
async def test_a_number_that_is_none_says_nothing(killed, said):
    Path(f"{killed}.head").write_bytes(said.encode(errors="surrogateescape"))
    start, _ = await opened(killed)
    assert start.head == 40


async def test_a_new_log_is_not_measured_by_the_number_of_the_one_before(tmp_path):
    path = tmp_path / "events.db"
    note_head(path, 500)
    start, _ = await opened(path)
    assert start.head == 0


async def test_a_wal_whose_first_write_was_torn_is_no_damage(whole):
    Path(f"{whole}-wal").write_bytes(bytes(9000))
    start, _ = await opened(whole)
    assert start.head == COUNT


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_older_frames_behind_the_newest_are_no_damage(tmp_path, count):
    """1. The -wal is long. 2. A checkpoint lets it begin anew, its old frames stay. 3. The agent is killed."""
    path = tmp_path / "running" / "events.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    for seq in range(1, 31):
        await log.append(records(seq, seq))
    await log.checkpoint()
    for seq in range(31, 31 + count):
        await log.append(records(seq, seq))
    copy = open_copy(path, tmp_path / "crashed")
    await log.close()
    start, _ = await opened(copy)
    assert start.tail == tuple(records(1, 30 + count))


async def test_an_index_that_is_corrupt_is_found_when_an_append_meets_it(whole):
    """No event is on the page, so a start does not look at it; the append does, and says so at the reopening."""
    connection = sqlite3.connect(whole)
    ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event_subject'")
    connection.close()
    content = bytearray(whole.read_bytes())
    content[(root - 1) * PAGE : root * PAGE] = b"\x77" * PAGE
    whole.write_bytes(content)
    log = SqliteLog(whole, volatile_ok=True)
    assert (await log.open()).head == COUNT
    with pytest.raises(OutcomeUnknownError) as unknown:
        await log.append([record(COUNT + 1, EVENTS[28])])
    assert unknown.value.reason is Reason.LOG_WRITE_FAILED
    with pytest.raises(PermanentError) as refused:
        await log.reopen()
    assert refused.value.reason is Reason.LOG_DAMAGED
    assert "corrupt" in refused.value.detail
    await log.close()
    assert not is_good(whole)
