"""Logs of every release open, verify and decode, for ever."""

from __future__ import annotations

import shutil

import pytest

from tests.data.event_samples import EVENTS, records
from tests.data.make_golden import SNAPSHOT_AT, golden_path
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.events.codec import KIND_OF, KINDS
from vpccni.replay.reader import open_log

SCHEMAS = [1]
HEADS = {1: "1b868f99b3a47c642b1100c0a4421258a9be026e57f45470af4cff9a09f42e4b"}


def test_the_samples_hold_every_kind_once():
    assert [KIND_OF[type(event)] for event in EVENTS] == list(KINDS)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_golden_log_is_whole_and_says_what_it_said_then(schema, tmp_path):
    with open_log(golden_path(schema)) as log:
        report = log.verify_chain()
        assert report.ok, report
        assert (report.events, report.snapshots) == (len(EVENTS), 1)
        assert report.head_hash == HEADS[schema]
        assert [log.decoded(one) for one in log.records()] == records(1, len(EVENTS))
        (snapshot,) = log.snapshots()
        assert log.snapshot_records(snapshot) == tuple(records(1, SNAPSHOT_AT))


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_golden_log_is_taken_over_by_todays_agent(schema, tmp_path):
    path = tmp_path / "events.db"
    shutil.copyfile(golden_path(schema), path)
    log = SqliteLog(path, volatile_ok=True)
    start = await log.open()
    assert start.snapshot == tuple(records(1, SNAPSHOT_AT))
    assert start.tail == tuple(records(SNAPSHOT_AT + 1, len(EVENTS)))
    await log.append(records(len(EVENTS) + 1, len(EVENTS) + 1))
    await log.close()
    with open_log(path) as file:
        assert file.verify_chain().ok


def test_reading_a_golden_log_leaves_no_trace_beside_it():
    golden = golden_path(1)
    before = sorted(one.name for one in golden.parent.iterdir())
    with open_log(golden) as log:
        assert list(log.by_subject("address", "10.0.3.7"))
    assert sorted(one.name for one in golden.parent.iterdir()) == before
