"""What the region does by itself later: an ordered list of instants and deeds."""

import heapq
from collections.abc import Callable

Deed = Callable[[float], None]


class Agenda:
    """Deeds in the order of their instants, and of their entry where instants are equal."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deed]] = []
        self._entries = 0

    def at(self, instant: float, deed: Deed) -> None:
        """Enter a deed; it is given its own instant when it is due."""
        heapq.heappush(self._heap, (instant, self._entries, deed))
        self._entries += 1

    def next_instant(self) -> float | None:
        """Return when something is due next, or None."""
        return self._heap[0][0] if self._heap else None

    def run_until(self, now: float) -> None:
        """Do everything that is due, also what that enters anew."""
        while self._heap and self._heap[0][0] <= now:
            instant, _, deed = heapq.heappop(self._heap)
            deed(instant)
