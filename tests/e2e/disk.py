"""Where these tests keep their labs, and that it is a disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpccni.lab.places import volatile_filesystem

DIRECTORY = Path(__file__).parents[2] / "build" / "e2e"


def require_disk(directory: Path) -> None:
    """A log on a filesystem that forgets proves nothing. Where the tests count (CI), that is a failure."""
    kind = volatile_filesystem(directory)
    if not kind:
        return
    why = f"{directory} is on {kind}: this test needs the checkout on a disk"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
