"""The simulator: whole regions with faults keep every promise, and broken rules do not get past it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from vpccni.lab.sim import command
from vpccni.lab.sim.faults import Fault, draw_faults
from vpccni.lab.sim.loop import Life, VirtualLoop, run_virtual
from vpccni.lab.sim.shrink import gist_of, shrink
from vpccni.lab.sim.world import simulate


@pytest.mark.parametrize("seed", [1, 8, 27])
def test_every_promise_holds(seed):
    outcome = simulate(seed=seed, operations=400, nodes=3)
    assert not outcome.broken
    assert outcome.operations >= 400
    assert outcome.faults >= outcome.operations / 50


def test_the_same_seed_gives_the_same_trace_under_another_hash_seed(tmp_path):
    traces = []
    for number, hash_seed in enumerate(("1", "4711")):
        path = tmp_path / f"{number}.trace"
        subprocess.run(
            [sys.executable, "-m", "vpccni.lab.sim", "--seed", "5", "--operations", "250", "--trace", path],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )
        traces.append(path.read_bytes())
    assert traces[0] == traces[1]
    assert traces[0].count(b"\n") > 1000


def test_another_seed_gives_another_trace():
    digests = {simulate(seed=seed, operations=40, nodes=1, faults=()).digest for seed in (1, 2)}
    assert len(digests) == 2


def test_leaving_one_fault_out_changes_none_of_the_others():
    one = draw_faults(3, nodes=3, begin_s=0, end_s=1000, every_s=10)
    only_crashes = draw_faults(3, nodes=3, begin_s=0, end_s=1000, every_s=10, kinds=frozenset({"crash"}))
    assert only_crashes == tuple(fault for fault in one if fault.kind == "crash")


def test_the_simulator_runs_the_loops_that_the_agent_is_composed_of():
    """Only the ports are others: nothing of its own in between."""
    code = (
        "import sys\n{}\n"
        # Not vpccni.events: the index of subjects belongs to the SQLite log.
        "names = ('vpccni.loops', 'vpccni.planner', 'vpccni.projections', 'vpccni.datapath')\n"
        "print(sorted(name for name in sys.modules if name.startswith(names)))"
    )
    seen = [
        subprocess.run(
            [sys.executable, "-c", code.format(line)], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for line in ("import vpccni.app", "import vpccni.lab.sim.world")
    ]
    assert seen[0] == seen[1]


def test_nothing_of_a_killed_process_runs_again_not_even_its_clean_up():
    """A handle may hold the last reference to a task; were that collected, Python would run its clean-up."""
    cleaned = []

    async def work(seconds):
        try:
            await asyncio.sleep(seconds)
        finally:
            cleaned.append(seconds)

    async def world():
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        life = Life("a")

        def begin(seconds):
            loop.create_task(work(seconds), context=life.context())  # noqa: RUF006  # that nobody holds it is the point

        begin(2)
        begin(0)
        await asyncio.sleep(0)
        begin(1)  # Its first step is still to come.
        loop.end(life)
        gc.collect()
        await asyncio.sleep(10)

    run_virtual(world())
    gc.collect()
    assert cleaned == []


# -- that it can find something ----------------------------------------------------------------------


def _first_broken(seeds=range(1, 9), operations=500) -> str:
    for seed in seeds:
        outcome = simulate(seed=seed, operations=operations, nodes=2)
        if outcome.broken:
            return outcome.broken
    return ""


def test_a_forgotten_cooldown_is_found(monkeypatch):
    monkeypatch.setattr("vpccni.projections.state.State.rest_left_s", lambda *_: 0.0)
    assert "after its last lease ended" in _first_broken()


def test_a_release_that_does_not_look_at_leases_is_found(monkeypatch):
    monkeypatch.setattr("vpccni.planner.view.is_cidr_rested", lambda *_: True)
    monkeypatch.setattr("vpccni.planner.decide.is_cidr_free", lambda *_: True)
    assert "intends" in _first_broken()


def test_waiting_adds_that_nobody_looks_at_again_are_found(monkeypatch):
    monkeypatch.setattr("vpccni.loops.write.Writer._retry_parked", lambda *_: None)
    assert "ADDs wait although nobody has" in _first_broken()


def test_a_snapshot_without_rests_is_found(monkeypatch):
    from vpccni.projections import snapshot

    whole = snapshot.snapshot_of

    def without_rests(state):
        ends = {rest.records["ended"].seq for rest in state.rests.values()}
        return tuple(record for record in whole(state) if record.seq not in ends)

    monkeypatch.setattr("vpccni.lab.sim.invariants.snapshot_of", without_rests)
    assert "fold" in _first_broken()


def test_an_acknowledgement_before_the_commit_is_found(monkeypatch):
    """The writer answers, and then the disk takes the batch, or does not."""
    from vpccni.loops.write import Writer

    async def turn_without_waiting(self, batch):
        context, stamp = self._context(), self._clock.now()
        records: list[Any] = []
        answered: list[Any] = []
        for asked in batch:
            if asked.future is None or not asked.future.done():
                self._decide(asked, stamp, context, records, answered)
        self._retry_parked(stamp, context, records, answered)
        if records:
            self._publish(records)
        for asked, decision in answered:
            if asked.future is not None and not asked.future.done():
                asked.future.set_result(decision)
        if records:
            await self._log.append(records)

    monkeypatch.setattr(Writer, "_turn", turn_without_waiting)
    assert _first_broken()


# -- what it leaves ---------------------------------------------------------------------------------


def test_a_failed_run_prints_its_seed_and_leaves_what_replay_needs(tmp_path, monkeypatch):
    from vpccni.replay.cli import main as replay

    monkeypatch.setattr("vpccni.projections.state.State.rest_left_s", lambda *_: 0.0)
    report = command.run(1, 300, 2, out=tmp_path, trace=tmp_path / "first.trace")
    text = command.words_of(report)
    assert "seed 1" in text
    assert "BROKEN" in text
    assert "with 0 faults" in text  # Nothing has to go wrong for this one.
    assert text.endswith(
        f"vpccni lab sim --seed 1 --operations 300 --nodes 2 --faults {tmp_path}/seed-1.faults.json\n"
    )
    (log,) = tmp_path.glob("seed-1-n*.db")
    assert replay([str(log), "verify"]) == 0
    assert (tmp_path / "seed-1.trace").read_text().splitlines()[-1].endswith("ended")
    again = command.run(1, 300, 2, faults=tmp_path / "seed-1.faults.json", out=tmp_path / "again")
    assert again.outcome.broken == report.with_culprits


def test_shrinking_keeps_just_what_is_needed():
    asked = []

    def still_fails(some):
        asked.append(tuple(some))
        return {3, 11} <= set(some)

    assert shrink(list(range(20)), still_fails, tries_max=200) == (3, 11)
    assert shrink(list(range(20)), lambda _: True, tries_max=200) == ()
    assert len(shrink(list(range(20)), lambda _: False, tries_max=10)) == 20


def test_the_gist_of_two_finds_of_one_bug_is_the_same():
    one = gist_of("n1 assigned 10.0.0.5 to cn1-4 3.21 s after its last lease ended")
    other = gist_of("n0 assigned 10.0.0.77 to cn0-122 28.00 s after its last lease ended")
    assert one == other


def test_a_fault_is_plain_data():
    import msgspec

    fault = Fault(at=1.5, kind="crash", node=1, action="commit", count=3, flag=("torn",))
    assert msgspec.json.decode(msgspec.json.encode(fault), type=Fault) == fault
