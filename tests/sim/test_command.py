"""``vpccni lab sim``, as one types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vpccni.cli import main as cli
from vpccni.lab.sim import command
from vpccni.lab.sim.world import simulate


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``vpccni lab sim`` with arguments; gives exit code, what was printed, and what was complained about."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vpccni", "lab", "sim", *map(str, arguments)])
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_seed_that_was_not_given_is_drawn_and_told_first(run, monkeypatch):
    monkeypatch.setattr(command, "fresh_seed", lambda: 4711)
    code, said, _ = run("--operations", 30, "--nodes", 1)
    assert code == 0
    assert said.startswith("seed 4711 (a fresh one)\nseed 4711: ")
    assert said.endswith("every promise held\n")


def test_json_is_one_document_with_the_command_that_repeats_the_run(run):
    code, said, _ = run("--seed", 6, "--operations", 60, "--nodes", 2, "--json")
    told = json.loads(said)
    assert (code, told["ok"], told["broken"], told["left"]) == (0, True, "", {})
    assert told["digest"] == simulate(seed=6, operations=60, nodes=2).digest
    assert told["again"] == "vpccni lab sim --seed 6 --operations 60 --nodes 2"
    assert told["operations_per_cpu_s"] > 0


def test_a_broken_promise_exits_with_1_and_leaves_what_was_named(run, monkeypatch, tmp_path):
    monkeypatch.setattr("vpccni.projections.state.State.rest_left_s", lambda *_: 0.0)
    code, said, _ = run(
        "--seed", 1, "--operations", 300, "--nodes", 2, "--no-shrink", "--json", "--out", tmp_path
    )
    told = json.loads(said)
    assert (code, told["ok"]) == (1, False)
    assert "after its last lease ended" in told["broken"]
    assert told["left"]["faults"] == str(tmp_path / "seed-1.faults.json")
    assert {"faults", "trace", f"log of {told['node']}"} <= set(told["left"])
    assert all(Path(path).exists() for path in told["left"].values())


def test_a_list_of_faults_that_is_none_is_wrong_usage(run, tmp_path):
    (tmp_path / "faults").write_text("[1, 2]")
    code, _, complaint = run("--seed", 1, "--faults", tmp_path / "faults")
    assert code == 2
    assert "is no list of faults" in complaint


def test_help_shows_examples(run):
    code, said, _ = run("--help")
    assert code == 0
    assert "vpccni lab sim --seed" in said.partition("Examples")[2]
