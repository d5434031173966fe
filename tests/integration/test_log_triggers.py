"""The past is guarded inside the file: a bare ``sqlite3`` connection tries to change it."""

from __future__ import annotations

import sqlite3

import pytest

from vpccni.adapters.log_schema import create_schema

HASH = {seq: bytes([seq]) * 32 for seq in range(12)}
EVENT = "INTO event VALUES (?, 'agent_started', 1, 0, 1, 1, 'boot', 0, x'7b7d', ?)"


@pytest.fixture
def db():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create_schema(connection)
    for seq in range(1, 6):
        connection.execute(f"INSERT {EVENT}", (seq, HASH[seq]))
        connection.execute("INSERT INTO event_subject VALUES ('eni', 'eni-1', ?)", (seq,))
    for seq in (2, 3, 4):
        connection.execute("INSERT INTO snapshot VALUES (?, ?, x'5b5d', zeroblob(32))", (seq, HASH[seq]))
    yield connection
    connection.close()


def close_segment(db, seq):
    db.execute("INSERT INTO segment VALUES (?, ?, ?, 'held by nobody')", (seq, HASH[seq], seq))


def everything(db):
    return [
        db.execute(f"SELECT * FROM {table}").fetchall()
        for table in ("event", "event_subject", "snapshot", "segment")
    ]


def event(verb, seq, bytes=32):
    return f"{verb} {EVENT}".replace("?", seq, 1).replace("?", f"zeroblob({bytes})")


COPY = "SELECT seq, head_hash, x'00', digest FROM snapshot WHERE seq = 4"
FORBIDDEN = {
    "change a body": "UPDATE event SET body = x'00' WHERE seq = 2",
    "change a number": "UPDATE event SET seq = 6 WHERE seq = 5",
    "change or replace": "UPDATE OR REPLACE event SET seq = 4 WHERE seq = 5",
    "delete the first": "DELETE FROM event WHERE seq = 1",
    "delete the last": "DELETE FROM event WHERE seq = 5",
    "delete all": "DELETE FROM event",
    "insert a number again": event("INSERT", "3"),
    "insert or replace the last": event("INSERT OR REPLACE", "5"),
    "replace the first": event("REPLACE", "1"),
    "insert or ignore a number again": event("INSERT OR IGNORE", "3"),
    "upsert": event("INSERT", "3") + " ON CONFLICT DO UPDATE SET body = x'00'",
    "leave a gap": event("INSERT", "7"),
    "insert below": event("INSERT", "0"),
    "insert without a number": event("INSERT", "NULL"),
    "insert a short hash": event("INSERT", "6", bytes=31),
    "change a subject": "UPDATE event_subject SET id = 'eni-2'",
    "delete a subject": "DELETE FROM event_subject WHERE seq = 1",
    "change a snapshot": "UPDATE snapshot SET records = x'00'",
    "replace a snapshot": f"INSERT OR REPLACE INTO snapshot {COPY}",
    "insert an older snapshot": "INSERT INTO snapshot SELECT 1, hash, x'00', hash FROM event WHERE seq = 1",
    "a snapshot of another chain": "INSERT INTO snapshot VALUES (5, zeroblob(32), x'5b5d', zeroblob(32))",
    "a snapshot beyond the end": "INSERT INTO snapshot VALUES (6, zeroblob(32), x'5b5d', zeroblob(32))",
    "delete the newest snapshot": "DELETE FROM snapshot WHERE seq = 4",
    "delete the newest but one": "DELETE FROM snapshot WHERE seq = 3",
    "a segment without snapshot": "INSERT INTO segment SELECT 1, hash, 1, 'x' FROM event WHERE seq = 1",
    "a segment with another snapshot": "INSERT INTO segment SELECT 3, hash, 4, 'x' FROM event WHERE seq = 3",
    "a segment with a wrong hash": "INSERT INTO segment VALUES (3, zeroblob(32), 3, 'x')",
    "a segment without summary": "INSERT INTO segment SELECT 3, hash, 3, '' FROM event WHERE seq = 3",
    "a segment beyond the end": "INSERT INTO segment VALUES (9, zeroblob(32), 9, 'x')",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_past_cannot_be_changed_by(db, statement):
    before = everything(db)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    assert everything(db) == before


def test_the_next_event_is_taken(db):
    db.execute(f"INSERT {EVENT}", (6, HASH[6]))
    db.execute(f"INSERT OR REPLACE {EVENT}", (7, HASH[7]))
    assert db.execute("SELECT max(seq) FROM event").fetchone() == (7,)


def test_events_below_a_closed_segment_may_go_and_no_others(db):
    close_segment(db, 3)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("DELETE FROM event WHERE seq <= 4")
    db.execute("DELETE FROM event WHERE seq <= 3")
    db.execute("DELETE FROM event_subject WHERE seq <= 3")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("DELETE FROM event_subject")
    assert [row[0] for row in db.execute("SELECT seq FROM event")] == [4, 5]


def test_a_number_is_not_given_again_after_every_event_was_moved_out(db):
    db.execute("INSERT INTO snapshot VALUES (5, ?, x'5b5d', zeroblob(32))", (HASH[5],))
    close_segment(db, 5)
    db.execute("DELETE FROM event")
    for wrong in (1, 5, 7):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(f"INSERT {EVENT}", (wrong, HASH[wrong]))
    db.execute(f"INSERT {EVENT}", (6, HASH[6]))


def test_a_closed_segment_stays_with_its_snapshot(db):
    close_segment(db, 2)
    db.execute(f"INSERT {EVENT}", (6, HASH[6]))
    before = everything(db)
    for statement in (
        "DELETE FROM segment",
        "UPDATE segment SET summary = 'other'",
        "REPLACE INTO segment SELECT last_seq, head_hash, snapshot_seq, 'other' FROM segment",
        "DELETE FROM snapshot WHERE seq = 2",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(statement)
    assert everything(db) == before


def test_an_old_snapshot_may_go(db):
    db.execute("DELETE FROM snapshot WHERE seq = 2")
    assert [row[0] for row in db.execute("SELECT seq FROM snapshot")] == [3, 4]


def test_the_guard_of_the_next_number_costs_the_same_at_any_length(db):
    plan = " ".join(row[3] for row in db.execute("EXPLAIN QUERY PLAN SELECT max(seq) FROM event").fetchall())
    assert "SEARCH" in plan
