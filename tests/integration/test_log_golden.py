"""Logs of every release open, verify and decode, for ever; those of a later one go on, or are refused loudly."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from typing import Any

import msgspec
import pytest

from tests.data.event_samples import EVENTS, record, records
from tests.data.make_golden import SNAPSHOT_AT, golden_path
from tests.data.make_lived import RUNNING, lived_path
from tests.data.make_next import BEFORE, EVICTED, MUST, UNDERSTOOD, beginning, next_path
from tests.integration.test_agent_process import add, place
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import PermanentError, Reason
from vpccni.events import codec
from vpccni.events.codec import KIND_OF, KINDS, Shape, UnknownEvent
from vpccni.events.node import MaxPodsObserved
from vpccni.loops.write import fold_start
from vpccni.model import Seq
from vpccni.replay.reader import open_log

__all__ = ["place"]

SCHEMAS = [1]
HEADS = {1: "3e087d5ab6811f4332987c727261f076f35a4995629d8e9ec4132d19d3d99eef"}


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


# --- a later release, and back ----------------------------------------------------------------------


class PodNoticed(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of the later release."""

    pod: str
    since_s: int


class MaxPodsWithReserve(msgspec.Struct, frozen=True, kw_only=True):
    """``MaxPodsObserved`` of the later release."""

    max_pods: int
    source: str
    reserved: int = 0


@contextlib.contextmanager
def later_release():
    """Today's code with the later release's vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, type_ in (("pod_noticed", PodNoticed), ("max_pods_observed", MaxPodsWithReserve)):
            patch.setitem(KINDS, kind, Shape(type_, 1, False))
            patch.setitem(KIND_OF, type_, kind)
            patch.setitem(codec._decoders, kind, msgspec.json.Decoder(type_))
        yield


@pytest.fixture
def later(tmp_path):
    """A copy of a log that a later release has written."""

    def copy(name):
        path = tmp_path / "events.db"
        shutil.copyfile(next_path(name), path)
        return path

    return copy


async def test_what_a_later_release_may_write_is_passed_over_and_kept_byte_for_byte(later):
    """N wrote it, N + 1 went on, N takes over, and N + 1 after that: nothing is lost, the chain is whole."""
    path = later("understood")
    head = Seq(BEFORE + len(UNDERSTOOD) + 1)
    today = SqliteLog(path, volatile_ok=True)
    start = await today.open()
    assert (start.snapshot, start.head, start.must_not_change) == (tuple(beginning()), head, ())
    noticed, pods, plan, _ = (one.event for one in start.tail)
    assert (noticed, plan) == (UNDERSTOOD[0], UNDERSTOOD[2])
    assert pods == MaxPodsObserved(max_pods=30, source="kubelet")
    await today.append([record(head + 1)])
    await today.write_snapshot(Seq(head + 1), beginning())
    await today.append([record(head + 2)])
    await today.close()

    with later_release():
        tomorrow = SqliteLog(path, volatile_ok=True)
        assert (await tomorrow.open()).head == head + 2
        found: list[object] = [one.event for one in await tomorrow.read(Seq(BEFORE), 3)]
        assert found[0] == PodNoticed(pod="cart", since_s=4)
        assert found[1] == MaxPodsWithReserve(max_pods=30, source="kubelet", reserved=2)
        till: Any = PodNoticed(pod="till", since_s=1)  # no event to today's types
        await tomorrow.append([record(head + 3, till)])
        await tomorrow.close()

    assert (await today.open()).tail[-1].event == UnknownEvent(
        kind="pod_noticed", version=1, must_understand=False, body=b'{"pod":"till","since_s":1}'
    )
    await today.close()
    with open_log(path) as file:
        assert file.verify_chain().ok
        bodies = [one.body for one in file.records()][BEFORE : BEFORE + len(UNDERSTOOD)]
    assert bodies == [one.body for one in UNDERSTOOD]


async def test_a_kind_that_must_be_understood_forbids_every_change(later):
    log = SqliteLog(later("must"), volatile_ok=True)
    assert (await log.open()).must_not_change == (MUST.kind,)
    await log.close()


async def test_a_schema_from_the_future_is_refused_and_left_alone(later):
    path = later("schema")
    before = path.read_bytes()
    with pytest.raises(PermanentError) as refused:
        await SqliteLog(path, volatile_ok=True).open()
    assert refused.value.reason is Reason.LOG_NEWER
    assert path.read_bytes() == before


# --- the agent itself ---------------------------------------------------------------------------------


def put(place, source):
    path = place.root / "state" / "events.sqlite"
    path.parent.mkdir()
    shutil.copyfile(source, path)
    return path


def stopped(place, agent):
    agent.send_signal(signal.SIGTERM)
    code, said = place.ended(agent)
    assert code == 0, said
    return said


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "pods_now"),
    [
        (lived_path(1), set(RUNNING)),
        (next_path("understood"), set()),
        (next_path("values"), set(RUNNING) - {EVICTED}),
    ],
    ids=["lived", "understood", "values"],
)
def test_the_agent_starts_on_a_log_of_another_release_and_goes_on_with_it(place, source, pods_now):
    path = put(place, source)
    (place.root / "boot_id").write_text("boot-1\n")  # a reboot would have ended the pods
    with open_log(path) as log:
        before = [one.hash for one in log.records()]
    agent = place.start()
    place.serving(agent)
    status, answer = place.ask("GET", "/v1/status")
    assert status == 200
    assert answer["log"]["head"] > len(before)
    assert answer["reason"] not in ("log_newer", "log_damaged")
    _, pods = place.ask("GET", "/v1/pods")
    assert {pod["name"] for pod in pods} == pods_now
    stopped(place, agent)
    with open_log(path) as log:
        assert log.verify_chain().ok
        assert [one.hash for one in log.records()][: len(before)] == before


@pytest.mark.netns
@pytest.mark.slow
async def test_values_of_a_later_release_are_no_damage_and_an_open_effect_of_it_freezes_ec2(tmp_path):
    """An unknown end is still an end; an effect that nobody here can finish keeps EC2 as it is."""
    path = tmp_path / "events.db"
    shutil.copyfile(next_path("values"), path)
    log = SqliteLog(path, volatile_ok=True)
    try:
        start = await log.open()
    finally:
        await log.close()
    assert start.must_not_change == ()
    state = fold_start(start)
    assert {lease.pod.name for lease in state.leases.values()} == set(RUNNING) - {EVICTED}
    assert state.unknown_effects() == ["associate_trunk"]
    with open_log(path) as read:
        assert read.verify_chain().ok


@pytest.mark.netns
@pytest.mark.slow
def test_the_agent_on_a_log_that_it_must_understand_and_does_not_changes_nothing(place):
    """ADDs are refused with the reason, DELs lie in the spool, until the later release is back."""
    path = put(place, next_path("must"))
    before = path.read_bytes()
    agent = place.start()
    place.serving(agent)
    status, answer = place.ask("GET", "/readyz")
    assert (status, answer["reason"]) == (503, "log_newer")
    assert "Run the newer version again" in answer["message"]
    status, answer = place.ask("POST", "/v1/cni", add("pod"))
    assert (status, answer["reason"]) == (503, "log_newer")
    assert place.ask("POST", "/v1/cni", add("pod", command="DEL")) == (200, {})
    (entry,) = (place.root / "run" / "spool").glob("*.json")
    assert json.loads(entry.read_bytes())["request"]["containerId"] == "pod"
    stopped(place, agent)
    assert path.read_bytes() == before


@pytest.mark.netns
@pytest.mark.slow
def test_the_agent_does_not_start_on_a_schema_from_the_future(place):
    path = put(place, next_path("schema"))
    before = path.read_bytes()
    code, said = place.ended(place.start())
    assert code == 1
    assert '"reason":"log_newer"' in said
    assert "Run the newer version again" in said
    assert path.read_bytes() == before
