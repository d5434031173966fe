"""An event loop whose clock stands still while anything can run, and jumps when nothing can.

No wall clock, no threads, no sockets: what happens depends on the program alone, so the same program with the
same seed does the same, step for step.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


_left_hanging: list[asyncio.Task[Any]] = []
"""Tasks of killed agents. Kept: were they collected, Python would run their clean-up."""


class StuckError(Exception):
    """Nothing can run and nothing is scheduled: a deadlock, or a real wait on a virtual loop."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting for file descriptors, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("nothing can run and nothing is scheduled")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and moves only when every task waits."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time.

    Raises:
        StuckError: nothing could run any more and ``work`` was not done.
    """
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work)
    finally:
        # What a killed agent left hanging stays so, as after SIGKILL: cancelling it would run its clean-up.
        _left_hanging.extend(asyncio.all_tasks(loop))
        asyncio.set_event_loop(None)
        loop.close()
