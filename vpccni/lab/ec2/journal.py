"""The region's record of the calls that reached it, for counting and for looking at what an agent did."""

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_KEPT_CALLS: Final = 20_000  # some MiB at most; the counts go on for ever


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Attributes:
        number: Position in the whole history, from 1.
        at: The instant at which it was applied or refused.
        outcome: ``ok``, the error code, ``lost_reply`` (applied), ``dropped_request`` (not applied), or
        ``hang``.
    """

    number: int
    at: float
    action: str
    params: Mapping[str, Any]
    outcome: str


class Journal:
    """A bounded list of calls, and unbounded counts."""

    def __init__(self) -> None:
        self._calls: deque[CallRecord] = deque(maxlen=_KEPT_CALLS)
        self._count = 0
        self.count_by_action: Counter[str] = Counter()
        self.count_by_outcome: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._count

    def record(self, at: float, action: str, params: Mapping[str, Any], outcome: str) -> None:
        """Append a call."""
        self._count += 1
        self.count_by_action[action] += 1
        self.count_by_outcome[outcome] += 1
        self._calls.append(
            CallRecord(number=self._count, at=at, action=action, params=params, outcome=outcome)
        )

    def calls(self, *, after: int = 0, action: str | None = None) -> list[CallRecord]:
        """Return the kept calls with a number above ``after``, oldest first."""
        return [c for c in self._calls if c.number > after and (action is None or c.action == action)]
