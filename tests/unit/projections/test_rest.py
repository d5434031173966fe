"""How long an address has rested, across boots and clocks that jump."""

from __future__ import annotations

import pytest

from tests.unit.projections.node import COOLDOWN_S, MORNING, SECOND, Node, eni_facts
from vpccni.model import Stamp
from vpccni.projections.rest import BootMark, elapsed_ns

DAY = 86400


def at(wall_s: float, boottime_s: float, boot: str = "a") -> Stamp:
    return Stamp(MORNING + round(wall_s * SECOND), round(boottime_s * SECOND), boot)


def elapsed_s(since: Stamp, now: Stamp, **boots: BootMark) -> float:
    return elapsed_ns(since, now, boots) / SECOND


A_TO_B = {"a": BootMark(last=at(100, 1100), next_start=at(130, 10, "b"))}
"""Boot a ended at 100 s, b's agent started at 130 s, 10 s after the kernel."""


def test_within_a_boot_only_the_boottime_counts():
    assert elapsed_s(at(0, 1000), at(3600, 1005)) == 5
    assert elapsed_s(at(0, 1000), at(-3600, 1005)) == 5
    assert elapsed_s(at(0, 1000), at(0, 990)) == 0


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (at(135, 15, "b"), 10 + 35),  # the wall clock bridges the boot
        (at(99, 15, "b"), 5),  # it went backwards: only the present boot counts
        (at(100 + 2 * DAY, 15, "b"), 5),  # it jumped by days: likewise
        (at(102, 40, "b"), 10 + 30),  # it was set back, and this boot alone lasted longer
    ],
    ids=["plausible", "backwards", "by days", "set back a little"],
)
def test_across_a_boot_the_wall_clock_is_believed_when_it_is_plausible(now, expected):
    assert elapsed_s(at(90, 1090), now, **A_TO_B) == expected


def test_across_two_boots_the_wall_clock_bridges_both():
    marks = A_TO_B | {"b": BootMark(last=at(140, 20, "b"), next_start=at(170, 7, "c"))}
    assert elapsed_s(at(90, 1090), at(175, 12, "c"), **marks) == 10 + 75
    assert elapsed_s(at(90, 1090), at(50, 12, "c"), **marks) == 5


def test_of_a_boot_that_nobody_recorded_nothing_is_known():
    assert elapsed_s(at(90, 1090), at(500, 400, "b")) == 0


def test_a_boot_that_is_forgotten_ended_before_this_one_began():
    marks = {"y": BootMark(last=at(0, 10, "y"), next_start=at(20, 5, "z"))}
    assert elapsed_s(at(-9000, 50, "a"), at(60, 45, "z"), **marks) == 40


def test_an_address_is_free_again_also_after_many_boots():
    """A bug: with its boot's mark forgotten, an address rested for ever."""
    node = Node().start(eni_facts(0, 10))
    node.run_pod("web")
    node.delete("web")
    for number in range(2, 14):
        node.wait(1)
        node.boot(f"boot-{number}", off_s=1)
    node.ready("eni-0")
    node.wait(COOLDOWN_S)
    assert node.run_pod("late") == "10.0.0.10"
    assert node.state.elapsed_s(node.state.enis[eni_facts(0).id].adopted, node.now) >= COOLDOWN_S


def test_a_full_node_that_reboots_rests_until_the_wall_clock_says_so():
    node = Node().start(eni_facts(0, 10))
    node.run_pod("web")
    node.boot("boot-2", off_s=COOLDOWN_S - 1)
    node.ready("eni-0")
    (rest,) = node.state.rests.values()
    # The lease ends with the first event of the new boot: the address may have been in use until the end.
    assert node.state.rest_left_s(rest, node.now, COOLDOWN_S) == COOLDOWN_S
    node.wait(COOLDOWN_S)
    assert node.run_pod("next") == "10.0.0.10"
