"""Moments and durations, as people write and read them."""

from __future__ import annotations

from typing import Any

import pytest

from vpccni.events.envelope import GENESIS, Stored
from vpccni.model import Seq, Stamp
from vpccni.replay.when import BadMomentError, boots_between, clock_text, iso_text, moment_of, span_text

SECOND = 10**9
MIDNIGHT = 1_772_323_200 * SECOND  # 2026-03-01 00:00:00 UTC


class FakeLog:
    """Records of nothing but stamps; the reader's methods that moments use."""

    def __init__(self, *stamps: tuple[float, str], first: int = 1) -> None:
        self.stored = [
            Stored(
                seq=Seq(first + at),
                kind="scheduling_observed",
                version=1,
                must_understand=False,
                stamp=Stamp(MIDNIGHT + round(wall_s * SECOND), round(wall_s * SECOND), boot),
                cause=0,
                body=b"{}",
                hash=GENESIS,
            )
            for at, (wall_s, boot) in enumerate(stamps)
        ]
        self.asked = 0

    def head(self):
        return (self.stored[-1].seq if self.stored else Seq(0)), GENESIS

    def records(self, after=0, upto=None):
        self.asked += 1
        return iter([one for one in self.stored if after < one.seq <= (upto or 10**9)])


def Log(*stamps: tuple[float, str], first: int = 1) -> Any:
    return FakeLog(*stamps, first=first)


def log_of(*walls: float) -> Any:
    return Log(*((wall, "a") for wall in walls))


def seq_of(log, text) -> int:
    return moment_of(log, text).seq


@pytest.mark.parametrize(
    ("text", "seq"),
    [
        (None, 4),
        ("#2", 2),
        ("00:01:40", 2),
        ("00:01:39", 1),
        ("0:05", 4),
        ("2026-03-01T00:03:20Z", 3),
        ("2026-03-01 01:03:20+01:00", 3),
        ("-100s", 3),
        ("-1m41s", 2),
        ("-0d", 4),
    ],
)
def test_a_moment_is_the_last_event_that_had_happened(text, seq):
    assert seq_of(log_of(0, 100, 200, 300), text) == seq


@pytest.mark.parametrize(
    "text", ["", "-", "-m", "noon", "12", "24:00", "12:60", "#", "#-1", "#1.5", "-5", "2026-13-01"]
)
def test_what_is_no_moment_says_what_to_write(text):
    with pytest.raises(BadMomentError, match=r"write a time|the log has no event|no event number"):
        moment_of(log_of(0, 100), text)


def test_between_two_events_the_clocks_are_carried_on():
    moment = moment_of(log_of(0, 100, 200), "00:02:10")
    assert (moment.seq, moment.stamp) == (2, Stamp(MIDNIGHT + 130 * SECOND, 130 * SECOND, "a"))


def test_a_log_that_was_cut_begins_where_its_events_begin():
    cut = Log((100, "a"), (200, "a"), (300, "a"), first=1001)
    assert seq_of(cut, "00:02:00") == 1001
    with pytest.raises(BadMomentError, match="it holds 1001 to 1003"):
        moment_of(cut, "#5")
    with pytest.raises(BadMomentError, match="begins at 2026-03-01 00:01:40"):
        moment_of(cut, "00:01")


def test_a_long_log_is_not_read_through():
    log = log_of(*range(10_000))
    assert seq_of(log, "01:00:00") == 3601
    assert log.asked < 40


def test_a_clock_that_was_set_back_still_gives_a_moment_with_that_time():
    log = log_of(0, 100, 200, 50, 150, 250)
    found = moment_of(log, "00:02:00")
    assert found.seq in (2, 4)


@pytest.mark.parametrize(
    ("boots", "changes"),
    [
        ("aaaa", []),
        ("aabb", [("b", 3)]),
        ("abbc", [("b", 2), ("c", 4)]),
        ("abcd", [("b", 2), ("c", 3), ("d", 4)]),
    ],
)
def test_every_boot_between_two_events_is_found(boots, changes):
    log = Log(*((at, boot) for at, boot in enumerate(boots)))
    found = boots_between(log, log.stored[0], log.stored[-1])
    assert [(boot.boot_id, boot.seq) for boot in found] == changes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.000s"),
        (0.25, "0.250s"),
        (9.9994, "9.999s"),
        (61, "1m 1s"),
        (3600, "1h"),
        (90_061, "1d 1h"),
        (-61, "-1m 1s"),
    ],
)
def test_durations_read_well(seconds, text):
    assert span_text(round(seconds * SECOND)) == text


def test_times_are_in_utc():
    assert clock_text(MIDNIGHT + 1_500_000_000, fraction=True) == "2026-03-01 00:00:01.500"
    assert iso_text(MIDNIGHT + 1_500_001_000) == "2026-03-01T00:00:01.500001Z"
    assert clock_text(2**80) == "@1208925819614629"
