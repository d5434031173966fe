"""``vpccni replay`` on real log files: what it answers, and what it does with bad ones."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.event_samples import EVENTS
from tests.unit.projections.node import Node, eni_facts, key_of, pod_of
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import Reason
from vpccni.events.codec import Record, UnknownEvent
from vpccni.model import Seq
from vpccni.planner import commands as c
from vpccni.projections.snapshot import snapshot_of
from vpccni.replay import cli

ROOT = Path(__file__).parents[2]


def story() -> Node:
    """A day of a node: address 10.0.0.10 is held three times, with a boot in between.

    10:00 the agent starts; 10:01 web gets .10 and db .11; 10:10 web is deleted; 10:20 job gets .10; 10:30:20
    the node is booted again; 10:40:20 late gets .11 and fails, filler gets .11, last gets .10.
    """
    node = Node().start(eni_facts(0, 10, 11))
    node.wait(60)
    node.run_pod("web")
    node.run_pod("db")
    node.wait(540)
    node.end_pod("web")
    node.wait(600)
    node.run_pod("job")
    node.wait(600)
    node.boot("boot-2")
    node.ready("eni-0")
    node.wait(600)
    node.add("late")
    node.ask(c.RefuseAdd(key=key_of("late"), pod=pod_of("late"), reason=Reason.NETNS_GONE, detail="ENOENT"))
    node.run_pod("filler")
    node.run_pod("last")
    return node


async def write(path: Path, made: list[Record], *snapshots: tuple[int, tuple[Record, ...]]) -> None:
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    done = 0
    for seq, snapshot in (*snapshots, (len(made), ())):
        await log.append(made[done:seq])
        done = seq
        if snapshot:
            await log.write_snapshot(Seq(seq), snapshot)
    await log.close()


def snapshot_at(node: Node, seq: int) -> tuple[int, tuple[Record, ...]]:
    half = Node()
    half.state.evolve_all(node.records[:seq])
    return seq, snapshot_of(half.state)


@pytest.fixture
def node() -> Node:
    return story()


@pytest.fixture
async def log(node, tmp_path):
    path = tmp_path / "events.db"
    await write(path, node.records, snapshot_at(node, 12), snapshot_at(node, 20))
    return path


@pytest.fixture
def replay(capsys):
    """Ask; gives (exit code, output, error output)."""

    def ask(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:
            code = int(str(end.code))
        out, err = capsys.readouterr()
        return code, out, err

    return ask


@pytest.fixture
def answer(replay):
    """Ask for JSON of a good log."""

    def ask(*words):
        code, out, err = replay(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return ask


# -- whohad -----------------------------------------------------------------------------------------


def test_every_holder_of_an_address_is_named_from_beginning_to_end(log, answer):
    leases = answer(log, "whohad", "10.0.0.10")["leases"]
    assert [(one["pod"]["name"], one["from"], one["to"]) for one in leases] == [
        ("web", "2026-03-01T10:01:00.000000Z", "2026-03-01T10:10:00.000000Z"),
        ("job", "2026-03-01T10:20:00.000000Z", "2026-03-01T10:30:20.000000Z"),
        ("last", "2026-03-01T10:40:20.000000Z", None),
    ]
    assert [one["end"] for one in leases] == [
        {"cause": "del", "sources": ["runtime"]},
        {"cause": "reboot", "sources": []},
        None,
    ]
    assert leases[0]["container_id"] == "container-web"
    assert leases[0]["pod"] == {"namespace": "shop", "name": "web", "uid": "uid-web"}
    assert {one["eni"] for one in leases} == {"eni-0"}
    assert [one["wired"] for one in leases] == [one["from"] for one in leases]


def test_an_address_whose_add_failed_tells_why(log, answer):
    db, late, filler = answer(log, "whohad", "10.0.0.11")["leases"]
    assert [one["pod"]["name"] for one in (db, late, filler)] == ["db", "late", "filler"]
    assert late["end"] == {"cause": "add_failed", "sources": []}
    assert (late["add_failed"], late["wired"]) == ("netns_gone", None)


def test_a_boot_between_two_holders_is_told(log, answer):
    leases = answer(log, "whohad", "10.0.0.10")["leases"]
    assert [[boot["boot_id"] for boot in one["boots"]] for one in leases] == [[], ["boot-2"], []]


def test_the_text_says_the_same_as_the_data(log, replay):
    code, out, err = replay(log, "whohad", "10.0.0.10")
    assert (code, err) == (0, "")
    assert "10.0.0.10 was held 3 times in this log" in out
    assert "del, the runtime deleted it [runtime]" in out
    assert "boot, the node was booted" in out
    assert "still (as of the end of this log)" in out
    assert "booted     2026-03-01 10:30:20" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("moment", "holder"),
    [
        ("2026-03-01T10:05:00Z", "web"),
        ("2026-03-01T12:05:00+02:00", "web"),
        ("2026-03-01 10:05", "web"),
        ("10:05", "web"),
        ("10:25:30", "job"),
        ("-12m", "job"),
        ("-35m20s", "web"),
        ("-0h36m", "web"),
        ("23:59", "last"),
        ("2031-01-01", "last"),
    ],
)
def test_who_held_an_address_at_a_moment(log, answer, moment, holder):
    assert answer(log, "whohad", "10.0.0.10", "--at", moment)["holder"]["pod"]["name"] == holder


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("10:00:30", "free"),
        ("10:10:10", "resting"),
        ("10:10:31", "free"),
        ("10:30:40", "resting"),
        ("10:35", "free"),
    ],
)
def test_why_nobody_held_it_at_a_moment(log, answer, moment, status):
    found = answer(log, "whohad", "10.0.0.10", "--at", moment)
    assert (found["holder"], found["status"]) == (None, status)


def test_a_resting_address_says_since_when_and_after_whom(log, replay, answer):
    found = answer(log, "whohad", "10.0.0.10", "--at", "10:10:10")
    assert found["since"] == "2026-03-01T10:10:00.000000Z"
    assert found["rest_left_s"] == 20.0
    _, out, _ = replay(log, "whohad", "10.0.0.10", "--at", "10:10:10")
    assert "it was resting for another 20.0 s, on eni-0" in out
    assert "Before: shop/web" in out


def test_an_event_number_is_a_moment(log, node, answer):
    ended = next(r.seq for r in node.records if type(r.event).__name__ == "LeaseEnded")
    assert answer(log, "whohad", "10.0.0.10", "--at", f"#{ended - 1}")["holder"]["pod"]["name"] == "web"
    assert answer(log, "whohad", "10.0.0.10", "--at", f"#{ended}")["status"] in ("resting", "standing")


def test_an_address_that_was_never_ours(log, answer, replay):
    assert answer(log, "whohad", "10.9.9.9")["leases"] == []
    assert answer(log, "whohad", "10.9.9.9", "--at", "10:05")["status"] == "not_owned"
    assert "was held by nobody in this log" in replay(log, "whohad", "10.9.9.9")[1]


def test_a_time_after_the_end_is_answered_with_a_note(log, replay):
    code, out, _ = replay(log, "whohad", "10.0.0.10", "--at", "23:59")
    assert code == 0
    assert "the log ends at 2026-03-01 10:40:20" in out


# -- pod --------------------------------------------------------------------------------------------


def test_the_story_of_a_pod_is_in_order_with_causes(log, answer):
    steps = answer(log, "pod", "shop/web")["events"]
    assert [step["kind"] for step in steps] == [
        "add_requested",
        "address_assigned",
        "sandbox_wired",
        "lease_ended",
        "sandbox_unwired",
    ]
    asked, assigned, wired, ended, unwired = steps
    assert assigned["cause"] == asked["seq"]
    assert {wired["cause"], ended["cause"], unwired["cause"]} == {assigned["seq"]}


def test_a_failed_pod_tells_why(log, replay):
    code, out, _ = replay(log, "pod", "shop/late")
    assert code == 0
    assert "ADD failed for shop/late: netns_gone: ENOENT" in out
    assert "add_failed, its ADD failed and was undone" in out


def test_a_pod_that_does_not_occur(log, replay):
    assert replay(log, "pod", "shop/nobody")[:2] == (0, "shop/nobody does not occur in this log.\n")


# -- state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [1, 9, 12, 13, 19, 20, 25])
def test_the_state_at_an_event_is_the_fold_of_the_events_up_to_it(log, node, answer, seq):
    from vpccni.projections.snapshot import picture
    from vpccni.projections.state import State

    state = State()
    state.evolve_all(node.records[:seq])
    found = answer(log, "state", "--at", f"#{seq}")
    assert found["state"] == json.loads(json.dumps(picture(state)))
    assert found["from_snapshot"] == (0 if seq < 12 else 12 if seq < 20 else 20)


def test_the_state_shows_enis_leases_and_rests(log, replay, answer):
    counts = answer(log, "state", "--at", "10:10:05")["counts"]["eni-0"]
    assert counts == {"owned": 2, "leased": 1, "resting": 1, "blocked": 0, "free": 0}
    code, out, _ = replay(log, "state", "--at", "10:10:05")
    assert code == 0
    assert "eni-0" in out
    assert "shop/db" in out
    assert "25.0 s" in out


def test_the_state_without_a_moment_is_that_of_the_end(log, node, answer):
    assert answer(log, "state")["seq"] == len(node.records)


# -- verify -----------------------------------------------------------------------------------------


def test_a_good_log_is_good(log, node, answer, replay):
    found = answer(log, "verify")
    assert found["ok"]
    assert found["chain_ok"]
    assert found["events"] == found["folded"] == len(node.records)
    assert found["snapshots_compared"] == [12, 20]
    assert "The log is good." in replay(log, "verify")[1]


async def test_a_snapshot_that_lacks_a_lease_is_found(node, tmp_path, replay):
    """The planted bug: a snapshot that was taken one event too early."""
    path = tmp_path / "events.db"
    assigned = next(r.seq for r in node.records if type(r.event).__name__ == "AddressAssigned")
    _, early = snapshot_at(node, assigned - 1)
    await write(path, node.records, (assigned, early))
    code, out, _ = replay(path, "verify", "--json")
    found = json.loads(out)
    assert code == 1
    assert found["chain_ok"]
    assert (found["fold_ok"], found["first_bad_seq"]) == (False, assigned)
    assert "leases" in found["why"][0]


async def test_a_log_that_contradicts_itself_is_found(node, tmp_path, replay):
    path = tmp_path / "events.db"
    twice = next(r for r in node.records if type(r.event).__name__ == "AddressAssigned")
    made = [*node.records, Record(Seq(len(node.records) + 1), node.now, twice.event)]
    made.append(Record(Seq(len(made) + 1), node.now, twice.event))
    await write(path, made)
    code, out, _ = replay(path, "verify")
    assert code == 1
    assert "contradicts those before it" in " ".join(out.split())
    assert "The log is NOT good." in out
    # An agent without its log recovers leases; a log that was deleted tells nobody anything.
    assert "without deleting them" in " ".join(out.split())


def tamper(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(sql)
    connection.close()


def test_a_changed_event_is_found_and_what_is_before_it_is_read(log, node, replay):
    ended = next(r.seq for r in node.records if type(r.event).__name__ == "LeaseEnded")
    tamper(log, f"UPDATE event SET body = CAST(replace(body, 'web', 'bew') AS BLOB) WHERE seq = {ended}")
    code, out, _ = replay(log, "verify", "--json")
    assert (code, json.loads(out)["first_bad_seq"]) == (1, ended)
    code, out, err = replay(log, "whohad", "10.0.0.10")
    assert code == 1
    assert "shop/web" in out
    assert f"event {ended}" in err
    assert "verify` says more" in err
    code, out, err = replay(log, "state", "--at", f"#{ended + 1}", "--json")
    assert (code, json.loads(out)["seq"]) in ((1, ended - 1), (1, 12))
    assert replay(log, "pod", "shop/web")[0] == 1
    # What does not depend on it is answered whole.
    assert replay(log, "pod", "shop/last")[0] == 0


def test_a_missing_event_is_found(log, replay):
    tamper(log, "DELETE FROM event WHERE seq = 15")
    code, out, _ = replay(log, "verify")
    assert code == 1
    assert "event 15: is missing" in " ".join(out.split())


# -- events -----------------------------------------------------------------------------------------


def test_the_last_events_are_listed(log, node, answer):
    head = len(node.records)
    assert [one["seq"] for one in answer(log, "events", "--limit", "3")["events"]] == [
        head - 2,
        head - 1,
        head,
    ]


def test_events_are_found_by_kind_and_by_subject(log, answer):
    found = answer(log, "events", "--kind", "address_assigned")["events"]
    assert [one["event"]["pod"]["name"] for one in found] == ["web", "db", "job", "late", "filler", "last"]
    found = answer(log, "events", "--subject", "container=container-db")["events"]
    assert [one["kind"] for one in found] == ["add_requested", "address_assigned", "lease_ended"]
    found = answer(log, "events", "--after", "2", "--limit", "2")["events"]
    assert [one["seq"] for one in found] == [3, 4]


# -- usage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("whohad", "10.0.0"), "is no IP address"),
        (("whohad", "10.0.0.10", "--at", "yesterday"), "is no moment"),
        (("whohad", "10.0.0.10", "--at", "25:00"), "is no moment"),
        (("whohad", "10.0.0.10", "--at", "#9999"), "the log has no event #9999: it holds 1 to"),
        (("whohad", "10.0.0.10", "--at", "#x"), "is no event number"),
        (("whohad", "10.0.0.10", "--at", "09:00"), "the log begins at 2026-03-01 10:00:00"),
        (("pod", "web"), "write NAMESPACE/NAME"),
        (("events", "--subject", "colour=red"), "KIND one of"),
        (("events", "--limit", "0"), "at least 1"),
        ((), "required"),
        (("ponder",), "invalid choice"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_told_with_what_to_write(log, replay, words, said):
    code, out, err = replay(log, *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("content", [None, b"", b"not a database, but long enough to be looked at" * 99])
def test_what_is_no_log_is_refused_in_a_sentence(tmp_path, replay, content):
    path = tmp_path / "events.db"
    if content is not None:
        path.write_bytes(content)
    code, out, err = replay(path, "verify")
    assert (code, out) == (2, "")
    assert str(path) in err
    assert "Traceback" not in err


async def test_an_empty_log_says_so(tmp_path, replay):
    path = tmp_path / "events.db"
    await write(path, [])
    code, _, err = replay(path, "state")
    assert (code, "the log is empty" in err) == (2, True)
    assert replay(path, "verify")[0] == 0


# -- logs of other places ---------------------------------------------------------------------------


async def test_a_log_that_an_agent_writes_right_now(node, tmp_path, answer):
    path = tmp_path / "events.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    try:
        await log.append(node.records[:20])
        assert answer(path, "verify")["events"] == 20
        await log.append(node.records[20:])
        assert answer(path, "verify")["events"] == len(node.records)
        assert len(answer(path, "whohad", "10.0.0.10")["leases"]) == 3
    finally:
        await log.close()


async def test_a_copy_without_its_wal_says_where_it_ends(node, tmp_path, replay):
    path, copy = tmp_path / "events.db", tmp_path / "copy.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    try:
        await log.append(node.records[:15])
        await log.checkpoint()
        await log.append(node.records[15:])
        shutil.copyfile(path, copy)
    finally:
        await log.close()
    code, out, _ = replay(copy, "verify")
    assert code == 0
    assert "there is no -wal: the log ends at event 15" in " ".join(out.split())
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.db"]


@pytest.mark.parametrize("must_understand", [False, True])
async def test_events_of_a_newer_version_are_shown_as_such(node, tmp_path, replay, answer, must_understand):
    path = tmp_path / "events.db"
    newer = UnknownEvent(
        kind="pod_teleported", version=3, must_understand=must_understand, body=b'{"to":"mars"}'
    )
    made = [*node.records, Record(Seq(len(node.records) + 1), node.now, newer)]
    await write(path, made)
    found = answer(path, "verify")
    assert found["ok"]
    assert found["unknown_kinds"] == {"pod_teleported": 1}
    assert found["judged_to"] == len(made) - must_understand
    last = answer(path, "events", "--limit", "1")["events"][0]
    assert last["event"] == {"to": "mars"}
    assert last["unknown"] == {"version": 3, "must_understand": must_understand}
    assert "unknown to this version" in replay(path, "events", "--limit", "1")[1]
    assert "pod_teleported" in replay(path, "state")[1]


async def test_a_log_may_not_steer_the_terminal(node, tmp_path, replay):
    path = tmp_path / "events.db"
    node.ask(c.Add(key=key_of("x"), pod=pod_of("evil\x1b[2Jname"), netns="/netns/x"))
    await write(path, node.records)
    for words in (("events",), ("state",), ("whohad", "10.0.0.11"), ("pod", "shop/evil\x1b[2Jname")):
        assert "\x1b" not in replay(path, *words)[1]


async def test_a_damaged_snapshot_costs_nothing_but_verify(node, tmp_path, replay, answer):
    path = tmp_path / "events.db"
    await write(path, node.records, snapshot_at(node, 20))
    tamper(path, "UPDATE snapshot SET records = x'00'")
    found = answer(path, "state", "--at", "#21")
    assert found["from_snapshot"] == 0
    assert replay(path, "verify")[0] == 1


# -- as a program -----------------------------------------------------------------------------------


def run(*words, **options):
    command = [sys.executable, "-m", "vpccni", "replay", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options
    )


def test_it_runs_as_a_program_and_writes_nothing_beside_the_log(log):
    before = sorted(one.name for one in log.parent.iterdir())
    done = run(log, "whohad", "10.0.0.10", "--at", "-35m")
    assert (done.returncode, done.stderr) == (0, "")
    assert "shop/web" in done.stdout
    assert sorted(one.name for one in log.parent.iterdir()) == before


def test_a_log_on_a_read_only_place_is_read(log):
    os.chmod(log, 0o400)
    os.chmod(log.parent, 0o500)
    try:
        assert run(log, "verify").returncode == 0
    finally:
        os.chmod(log.parent, 0o700)


def test_it_loads_nothing_heavy(log):
    code = (
        "import sys; from vpccni.replay.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'asyncio', 'sqlalchemy', 'aiohttp', 'pyroute2', 'typer', 'rich', 'structlog'} & set(sys.modules);"
        "sys.exit(code or bool(heavy) and repr(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log), "verify"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_is_no_error(log):
    command = f"{sys.executable} -m vpccni replay {log} events | true"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_the_golden_log_tells_every_kind(replay):
    golden = ROOT / "tests" / "data" / "golden-0001.sqlite"
    code, out, _ = replay(golden, "events", "--limit", "100")
    assert code == 0
    assert len(out.splitlines()) == len(EVENTS) + 1
