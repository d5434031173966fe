"""Planted bugs: each patch of this directory breaks one rule of the agent, and the simulator is to find it.

A patch begins with a line that says what it breaks. ``Scenario: module function`` in a second one names a test for
what the simulator's worlds do not have; it is played in place of the seeds. Found means that a promise was broken: a
package that cannot be imported, a slip of the patch itself (a name that does not exist), a simulator that stumbles or
never ends prove nothing and do not count.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SEEDS = 20
OPERATIONS = 1500
NODES = 3
SEED_S_MAX = 300.0
"""A seed takes some six seconds; what takes fifty times as long will not end."""

_STUMBLES = re.compile(
    r"the (workload|simulator) itself failed"
    r"|\b(NameError|UnboundLocalError|AttributeError|TypeError|ImportError|ModuleNotFoundError|SyntaxError"
    r"|NotImplementedError)\b"
    # The agent's own errors end it on purpose, all others by accident.
    r"|the agent ended by itself: (?!(Permanent|Transient|OutcomeUnknown|InvariantBroken)Error)"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one planted bug, or of the package without one.

    Attributes:
        name: The patch's; empty for the package as it is.
        rule: What it breaks.
        state: ``found``, ``missed`` (no seed found anything), ``crashed`` (it failed without breaking a promise),
            ``hangs`` or ``does not apply``.
        seed: The seed that found it; 0 for a scenario.
        scenario: The scenario that is played, if not seeds.
        operations: ADDs and DELs until then, those of the seeds before included.
        said: The promise that was broken, or what went wrong.
        seconds: How long it took.
    """

    name: str
    rule: str
    state: str
    seed: int = 0
    scenario: str = ""
    operations: int = 0
    said: str = ""
    seconds: float = 0.0


def patches() -> list[Path]:
    """All of them, by name."""
    return sorted(HERE.glob("*.patch"))


def header_of(patch: Path) -> tuple[str, str]:
    """What a patch breaks, and the scenario that shows it, if it is not for the seeds."""
    rule, _, scenario = patch.read_text().partition("--- ")[0].partition("Scenario:")
    return " ".join(rule.split()), scenario.strip()


def copy_package(where: Path) -> None:
    """A fresh copy of the package below a directory."""
    shutil.copytree(ROOT / "vpccni", where / "vpccni", ignore=shutil.ignore_patterns("__pycache__"))


def apply(patch: Path, where: Path, *options: str) -> str:
    """Apply a patch to the copy below ``where``, exactly; what went wrong, or nothing."""
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--batch", "--silent", *options, "-i", patch],
        cwd=where,
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def is_stumble(said: str) -> bool:
    """Whether what the simulator said is about a slip of the patch, or of its own, and not about a promise."""
    return _STUMBLES.search(said) is not None


def hunt(patch: Path | None, where: Path, seeds: int) -> Verdict:
    """Plant a bug in a copy of the package, and run one seed after the other until one finds it.

    Args:
        patch: ``None`` for the package as it is.
        where: An empty directory, for the copy.
        seeds: From 1 up to this one.
    """
    rule, scenario = header_of(patch) if patch is not None else ("", "")
    verdict = Verdict(patch.stem if patch is not None else "", rule, "missed", scenario=scenario)
    copy_package(where)
    trouble = apply(patch, where) if patch is not None else ""
    if trouble:
        return dataclasses.replace(verdict, state="does not apply", said=trouble.strip())
    began = time.monotonic()
    found = _run_seeds(verdict, where, seeds)
    return dataclasses.replace(found, seconds=time.monotonic() - began)


def _run_seeds(verdict: Verdict, where: Path, seeds: int) -> Verdict:
    what = verdict.scenario.split() or [*map(str, (1, seeds, OPERATIONS, NODES))]
    runs = 0
    with (where / "complaints").open("w+") as complaints:
        child = subprocess.Popen(
            [sys.executable, "-P", HERE / "run_seeds.py", *what],
            cwd=where,
            # One hash seed: a bug that takes its chances with the order of a set is found by the same seed again.
            env={**os.environ, "PYTHONPATH": str(where), "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,  # Its end is ours: see there.
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        is_late = threading.Event()
        seed = operations = 0
        try:
            while line := _read_line(child, is_late):
                told = json.loads(line)
                runs += 1
                seed, operations = told["seed"], operations + told["operations"]
                if told["broken"]:
                    state = "crashed" if is_stumble(told["broken"]) else "found"
                    return dataclasses.replace(
                        verdict, state=state, seed=seed, operations=operations, said=told["broken"]
                    )
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if is_late.is_set():
            return dataclasses.replace(verdict, state="hangs", seed=seed + 1, said="a seed does not end")
        complaints.seek(0)
        said = complaints.read().strip().splitlines()
    if runs < (1 if verdict.scenario else seeds):
        last = said[-1] if said else "no word"
        return dataclasses.replace(verdict, state="crashed", seed=seed + 1, said=last)
    return dataclasses.replace(verdict, seed=seed, operations=operations)


def _read_line(child: subprocess.Popen[str], is_late: threading.Event) -> str:
    """The next line, or nothing at the end; a child that takes too long for it is ended."""

    def end() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(SEED_S_MAX, end)
    timer.start()
    try:
        return child.stdout.readline() if child.stdout is not None else ""
    finally:
        timer.cancel()
