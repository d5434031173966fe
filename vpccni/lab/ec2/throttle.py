"""EC2's request throttling: one token bucket per API, for the whole account in the region.

EC2 developer guide, "Request throttling": each request takes a token from its API's bucket; an empty bucket
answers ``RequestLimitExceeded``. Sizes and refills below are the guide's classes; single APIs differ.
"""

from typing import Final

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """Size of a bucket in requests, and its refill in requests a second."""

    size: float
    refill_per_s: float


READS: Final = Rate(100, 20)
WRITES: Final = Rate(50, 5)


class Throttle:
    """The buckets of one account. Off until ``enable`` is called."""

    def __init__(self) -> None:
        self._is_enabled = False
        self._rates: dict[str, Rate] = {}
        self._level: dict[
            str, tuple[float, float]
        ] = {}  # action -> tokens, and the instant they were counted

    def enable(self, rates: dict[str, Rate] | None = None) -> None:
        """Throttle from now on, with EC2's classes, or with ``rates`` where it names the action."""
        self._is_enabled = True
        self._rates = dict(rates or {})
        self._level.clear()

    def disable(self) -> None:
        """Let every request through."""
        self._is_enabled = False

    def is_admitted(self, action: str, now: float) -> bool:
        """Take a token for this request, if there is one. A refused request costs none."""
        if not self._is_enabled:
            return True
        rate = self._rates.get(action) or (READS if action.startswith("Describe") else WRITES)
        tokens, counted_at = self._level.get(action, (rate.size, now))
        tokens = min(rate.size, tokens + max(0.0, now - counted_at) * rate.refill_per_s)
        is_admitted = tokens >= 1.0
        self._level[action] = (tokens - 1.0 if is_admitted else tokens, now)
        return is_admitted
