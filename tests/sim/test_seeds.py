"""``make sim``: minutes of the simulator, over seeds that are always the same and one that never was before."""

from __future__ import annotations

import pytest

from vpccni.lab.sim import command

pytestmark = pytest.mark.slow

# Each a few seconds; one to five machines, and each of the four paces of faults.
RUNS = [(number, 4500, 1 + number % 5) for number in range(101, 109)]


@pytest.mark.parametrize(
    ("seed", "operations", "nodes"),
    [*RUNS, (command.fresh_seed(), 4500, 3)],
    ids=[*(f"{seed}-on-{nodes}" for seed, _, nodes in RUNS), "a-fresh-one"],
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
