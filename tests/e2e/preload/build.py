"""Builds the LD_PRELOAD libraries of this directory with the machine's own C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def preload(name: str, directory: Path) -> Path:
    """The library ``name``, compiled into a directory. Skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the disk and the clock cannot be made to fail")
    target = directory / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [compiler, *flags, "-o", target, source, "-ldl", "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target
