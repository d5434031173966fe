"""``make sim``: minutes of the simulator, over seeds that are always the same and one that never was before.

The one that never was is for whoever looks for bugs. Other runs leave it out: they answer for a change, which has
nothing to do with what a new seed finds.
"""

from __future__ import annotations

import os

import pytest

from vpccni.lab.sim import command

pytestmark = pytest.mark.slow

# Each a few seconds; one to five machines, and each of the four paces of faults.
RUNS = [(number, 4500, 1 + number % 5) for number in range(101, 109)]


FRESH = [(command.fresh_seed(), 4500, 3)] if os.environ.get("FRESH_SEED") else []


@pytest.mark.parametrize(
    ("seed", "operations", "nodes"),
    [*RUNS, *FRESH],
    ids=[*(f"{seed}-on-{nodes}" for seed, _, nodes in RUNS), *("a-fresh-one" for _ in FRESH)],
)
def test_no_promise_is_broken(seed, operations, nodes, tmp_path, capsys):
    report = command.run(seed, operations, nodes, out=tmp_path, is_shrinking=False)
    told, outcome = command.words_of(report), report.outcome
    with capsys.disabled():
        print(f"\n{told}", end="")
    assert report.is_good, f"{told}\nTo repeat it: {command.command_of(outcome, operations)}"
    # A run in which little happens would prove little.
    assert outcome.operations >= 60 * outcome.nodes * outcome.virtual_s / 3600
    assert outcome.faults >= outcome.operations / 50
