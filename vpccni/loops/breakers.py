"""What holds growth back just now. Volatile: after a restart everything is tried again, with jitter."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from vpccni.errors import PermanentError, Reason, TransientError, VpccniError
from vpccni.planner.warm_pool import Constraints

SUBNET_PAUSE_S: Final = 120.0
"""The original's pause after an IP shortage; here for each kind of call and not for the whole daemon."""
PERMANENT_PAUSE_S: Final = 60.0
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
UNREACHABLE_AFTER: Final = 4
"""So many failures in a row, about 5 s, and waiting ADDs are told why instead of being kept."""


class Breaker(msgspec.Struct):
    """One kind of call.

    Attributes:
        until: On the loop's clock; no call before.
        is_refusing: An ADD that needs this call is refused and not kept waiting.
    """

    until: float = 0.0
    reason: str = ""
    failures: int = 0
    is_refusing: bool = False

    def fail(self, error: VpccniError, now: float, rng: random.Random) -> None:
        """Note a failure: back off, doubling, with jitter; pause for longer where trying is useless."""
        self.failures += 1
        self.reason = str(error.reason)
        if error.reason is Reason.SUBNET_EXHAUSTED:
            pause, self.is_refusing = SUBNET_PAUSE_S, True
        elif isinstance(error, PermanentError):
            pause, self.is_refusing = PERMANENT_PAUSE_S, True
        else:
            pause = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self.failures - 1, 10))
            if isinstance(error, TransientError):
                pause = max(pause, error.retry_after_s)
            self.is_refusing = self.failures >= UNREACHABLE_AFTER
        self.until = now + pause * (1.0 + 0.15 * rng.random())

    def succeed(self) -> None:
        """Close it."""
        self.until, self.reason, self.failures, self.is_refusing = 0.0, "", 0, False

    def holding(self, now: float) -> str:
        """The reason why no call is made now; empty when it may be made."""
        return self.reason if now < self.until else ""


class Breakers:
    """One breaker for creating and attaching ENIs, one for assigning, one for all that shrinks, one for asking."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.create = Breaker()
        self.assign = Breaker()
        self.shrink = Breaker()
        self.ask = Breaker()

    def of(self, kind: str) -> Breaker:
        """The breaker of an effect; ``ask``: of finding out what became of one."""
        if kind in ("create", "attach"):
            return self.create
        if kind == "ask":
            return self.ask
        return self.assign if kind == "assign" else self.shrink

    def fail(self, kind: str, error: VpccniError, now: float) -> None:
        """An effect of this kind failed."""
        self.of(kind).fail(error, now, self._rng)

    def for_plan(self, now: float, shrink_blocked: str = "", no_change: str = "") -> Constraints:
        """What the planner must not do now."""
        return Constraints(
            create_blocked=self.create.holding(now),
            assign_blocked=self.assign.holding(now),
            shrink_blocked=shrink_blocked or self.shrink.holding(now),
            no_change=no_change,
        )

    def for_waiting(self, now: float, no_change: str = "") -> Constraints:
        """What makes waiting for an address useless: pauses that are over soon are left out."""

        def refusing(breaker: Breaker) -> str:
            # Once the pause is over somebody has to wait, or the call that would close it is never made.
            return breaker.reason if breaker.is_refusing and breaker.holding(now) else ""

        return Constraints(
            create_blocked=refusing(self.create),
            assign_blocked=refusing(self.assign),
            no_change=no_change,
        )

    def next_change(self, now: float) -> float | None:
        """When the first holding breaker lets go, on the loop's clock."""
        dues = [b.until for b in (self.create, self.assign, self.shrink) if b.until > now]
        return min(dues) if dues else None
