"""Run seeds in turn until one breaks a promise: a line of JSON for each, ``broken`` empty where all held.

A process of its own, started below a copy of the package: ``python -P run_seeds.py FIRST LAST OPERATIONS NODES``, or
``python -P run_seeds.py MODULE FUNCTION`` for a scenario.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path

import vpccni
from vpccni.lab.sim.world import simulate

ANSWERS = sys.stdout


def end_with_parent() -> None:
    """Standard input ends when whoever started us does, however that ends."""
    sys.stdin.read()
    os._exit(1)


def tell(seed: int, operations: int, broken: str) -> None:
    print(json.dumps({"seed": seed, "operations": operations, "broken": broken}), file=ANSWERS, flush=True)


def run_seeds(first: int, last: int, operations: int, nodes: int) -> None:
    for seed in range(first, last + 1):
        outcome = simulate(seed=seed, operations=operations, nodes=nodes)
        tell(seed, outcome.operations, outcome.broken)
        if outcome.broken:
            return


def play(module: str, function: str) -> None:
    sys.path.append(str(Path(__file__).parents[3]))  # After the copy: the tests, not the package.
    broken = ""
    try:
        getattr(importlib.import_module(module), function)()
    except AssertionError as error:
        broken = str(error).partition("\n")[0] or "an assertion of the scenario"
    tell(0, 0, broken)


if __name__ == "__main__":
    if not Path(vpccni.__file__).resolve().is_relative_to(Path.cwd()):
        raise SystemExit(f"the package comes from {vpccni.__file__}, not from below {Path.cwd()}")
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # What the agent of a scenario logs is no answer.
    if sys.argv[1].isdigit():
        run_seeds(*map(int, sys.argv[1:]))
    else:
        play(*sys.argv[1:])
