"""Looking at something every now and then, together with everybody else who does."""

from __future__ import annotations

import asyncio
from typing import Final

_TOO_SOON_S: Final = 0.01
"""A timer may come a little early: what is left of its own beat is no beat."""


def until_beat(period_s: float) -> float:
    """Seconds until the running loop's clock is at the next multiple of the period.

    Whoever looks at something every so often waits for this and not for the whole period. An idle agent is then
    woken once for all of them: to be woken costs more processor time than most looks.
    """
    left_s = period_s - asyncio.get_running_loop().time() % period_s
    return left_s if left_s > _TOO_SOON_S else left_s + period_s
