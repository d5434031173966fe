"""Faults on demand: what is to go wrong with EC2 calls, and when.

A fault hits a call when it arrives; each call is hit by at most one fault, the oldest that matches.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

Kind = Literal[
    "error",  # EC2 answers with ``code``; nothing is applied
    "throttle",  # RequestLimitExceeded; nothing is applied
    "lost_reply",  # applied, then the connection breaks
    "dropped_request",  # the connection breaks, nothing is applied
    "hang",  # never answered; ``applied`` says whether it was applied
    "latency",  # answered ``seconds`` later than usual
    "partial",  # gives at most ``give`` addresses or prefixes, without saying so
]

FOR_EVER: Final = -1


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that is to go wrong.

    Attributes:
        action: The API it hits, or ``*``.
        skip: How many matching calls pass first (``skip=1``: the second call is hit).
        times: How many calls it hits, ``FOR_EVER`` for all of them.
        code: For ``error``.
        message: For ``error``; the code's own sentence when empty.
        seconds: For ``latency``; at least 0.
        give: For ``partial``: the most that is given; at least 0.
        applied: For ``hang``.
        where: Parameters that must have these very values (top level only), so that one ENI can be hit.
    """

    action: str
    kind: Kind
    skip: int = 0
    times: int = 1
    code: str = "InternalError"
    message: str = ""
    seconds: float = 0.0
    give: int = 0
    applied: bool = False
    where: dict[str, Any] = {}


Matcher = Callable[[str, Mapping[str, Any]], bool]


class _Armed:
    __slots__ = ("fault", "left", "matches", "skip")

    def __init__(self, fault: Fault, matches: Matcher | None) -> None:
        self.fault = fault
        self.matches = matches
        self.skip = fault.skip
        self.left = fault.times

    def is_for(self, action: str, params: Mapping[str, Any]) -> bool:
        fault = self.fault
        if fault.action not in ("*", action):
            return False
        if any(params.get(name) != value for name, value in fault.where.items()):
            return False
        return self.matches is None or self.matches(action, params)


class FaultPlan:
    """The faults that wait for their calls."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._random: random.Random | None = None
        self._rate = 0.0
        self._kinds: tuple[Fault, ...] = ()

    def inject(self, fault: Fault, matches: Matcher | None = None) -> None:
        """Arm a fault. ``matches`` narrows it to calls for which it returns True."""
        self._armed.append(_Armed(fault, matches))

    def randomize(self, seed: int | str, rate: float, kinds: tuple[Fault, ...]) -> None:
        """Hit a share ``rate`` (0 to 1) of all calls with one of ``kinds``, drawn from ``seed``.

        A drawn fault whose action does not match the call lets it pass, so a plan may name the actions it
        hits.
        """
        if not 0.0 <= rate <= 1.0 or (rate > 0.0 and not kinds):
            raise ValueError(
                f"a rate is between 0 and 1 and needs kinds to draw from, not {rate} of {len(kinds)}"
            )
        self._random = random.Random(f"faults/{seed}")
        self._rate = rate
        self._kinds = kinds

    def clear(self) -> None:
        """Disarm everything, random faults too."""
        self._armed.clear()
        self._random = None

    @property
    def armed(self) -> list[Fault]:
        """The faults that still wait."""
        return [armed.fault for armed in self._armed]

    def draw(self, action: str, params: Mapping[str, Any]) -> Fault | None:
        """Return the fault that hits this call, and use it up."""
        hit: Fault | None = None
        for armed in self._armed:
            if not armed.is_for(action, params):
                continue
            if armed.skip > 0:
                armed.skip -= 1
            elif hit is None:
                hit = armed.fault
                armed.left -= 1  # from FOR_EVER on it never meets 0
        if hit is not None:
            self._armed = [armed for armed in self._armed if armed.left != 0]
            return hit
        return self._draw_random(action, params)

    def _draw_random(self, action: str, params: Mapping[str, Any]) -> Fault | None:
        if self._random is None:
            return None
        is_hit = self._random.random() < self._rate
        fault = self._random.choice(self._kinds) if self._kinds else None
        if not is_hit or fault is None or not _Armed(fault, None).is_for(action, params):
            return None
        return fault
