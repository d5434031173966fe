"""Plant each bug in a copy of the package and see how soon the simulator finds it.

``python -m tests.sim.mutants`` prints the table and fails when one is not found; with ``--check`` it only tries
whether every patch still applies; with names it looks at those alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SEEDS = 20
OPERATIONS = 1500
NODES = 3


def patches(names: list[str]) -> list[Path]:
    found = sorted(HERE.glob("*.patch"))
    return [path for path in found if not names or path.stem in names]


def planted(patch: Path, where: Path) -> str:
    """Apply a patch to a fresh copy of the package below ``where``; what went wrong, or nothing."""
    shutil.rmtree(where / "vpccni", ignore_errors=True)
    shutil.copytree(ROOT / "vpccni", where / "vpccni", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--batch", "--silent", "-i", patch],
        cwd=where,
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def first_seed_that_finds(where: Path, seeds: int) -> tuple[int, str]:
    """Seeds that were needed, and what was said; 0 when none of them found anything."""
    for seed in range(1, seeds + 1):
        flags = (f"--seed={seed}", f"--operations={OPERATIONS}", f"--nodes={NODES}", f"--out={where / 'out'}")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vpccni.lab.sim", "--no-shrink", *flags],
            cwd=where,
            env={**os.environ, "PYTHONPATH": str(where)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            said = re.search(r"BROKEN after [\d.]+ s: (.*)", done.stdout)
            return seed, said.group(1) if said else done.stderr.strip().splitlines()[-1]
    return 0, ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        for patch in patches(options.names):
            trouble = planted(patch, where)
            if trouble:
                print(f"{patch.stem}: does not apply\n{trouble}")
                missed += 1
                continue
            if options.check:
                continue
            began = time.monotonic()
            seeds, said = first_seed_that_finds(where, options.seeds)
            missed += not seeds
            told = f"seed {seeds}" if seeds else "NOT FOUND"
            print(f"{patch.stem:44} {told:10} {time.monotonic() - began:6.1f} s  {said[:110]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
