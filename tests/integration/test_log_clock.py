"""The machine's clocks."""

from __future__ import annotations

import time

import pytest

from vpccni.adapters.clock import BOOT_ID, SystemClock
from vpccni.errors import PermanentError


def test_now_lies_between_before_and_after_on_both_clocks():
    clock = SystemClock()
    before = (time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    stamp = clock.now()
    after = (time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert before[0] <= stamp.wall_ns <= after[0]
    assert before[1] <= stamp.boottime_ns <= after[1]
    assert stamp.boot_id == BOOT_ID.read_text().strip()


def test_a_node_of_the_lab_has_a_boot_id_of_its_own(tmp_path):
    path = tmp_path / "boot_id"
    path.write_text("node-a-boot-2\n")
    assert SystemClock(path).now().boot_id == "node-a-boot-2"


@pytest.mark.parametrize(
    "content", [None, b"", b"\n", b"\xff\xfe"], ids=["missing", "empty", "blank", "noise"]
)
def test_without_a_boot_id_nothing_starts(tmp_path, content):
    path = tmp_path / "boot_id"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError):
        SystemClock(path)
