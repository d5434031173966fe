"""Whole nodes: the mark ``root`` means the machine's own root, not that of a user namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns import fabric, netns_world, pytest_runtest_protocol

__all__ = ["fabric", "netns_world", "pytest_runtest_protocol"]

_WHOLE_RANGE = ["0", "0", "4294967295"]


@pytest.fixture(autouse=True)
def _real_root(request):
    if request.node.get_closest_marker("root") is None:
        return
    if Path("/proc/self/uid_map").read_text().split() != _WHOLE_RANGE:
        pytest.skip("needs real root: inside a user namespace there are no control groups to write")
