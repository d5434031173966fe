"""Looks that share one beat."""

from __future__ import annotations

import asyncio

import pytest

from vpccni.adapters.beat import until_beat


class Clock:
    """A loop, as far as it is asked."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(0.0)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


@pytest.mark.parametrize("now", [0.5, 7.25, 1234.5678])
def test_whoever_waits_for_a_beat_wakes_when_everybody_else_does(clock, now):
    clock.now = now
    woken = now + until_beat(2.0)
    assert woken % 2.0 == pytest.approx(0.0, abs=1e-6) or woken % 2.0 == pytest.approx(2.0, abs=1e-6)
    assert 0 < woken - now <= 2.0


@pytest.mark.parametrize("now", [4.0, 3.9999999, 3.995])
def test_a_timer_that_comes_early_is_not_followed_by_a_second_look(clock, now):
    clock.now = now
    assert until_beat(2.0) >= 1.9
