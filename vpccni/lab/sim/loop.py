"""An event loop whose clock stands still while anything can run, and jumps when nothing can.

No wall clock, no threads, no sockets: what happens depends on the program alone, so the same program with the
same seed does the same, step for step.

A *life* is one process on the loop: everything that is scheduled in its context belongs to it. Ending a life is
SIGKILL: nothing of it runs again, no ``finally`` either. The step that is being run when it ends goes on to its
next ``await``, as a thread of a dying process may.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import heapq
import selectors
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")


def _keep_for_ever(task: asyncio.Task[Any]) -> None:
    """Were the task of a killed process collected, Python would run its clean-up, be it at its own exit."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


class StuckError(Exception):
    """Nothing can run and nothing is scheduled: a deadlock, or a real wait on a virtual loop."""


class Life:
    """One process on a :class:`VirtualLoop`.

    Attributes:
        is_over: Nothing of it runs any more.
        steps: How often something of it was scheduled.
        dies_at: The step at which it ends by itself; 0 for never.
        on_death: Called when it ends by itself, outside of it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_over = False
        self.steps = 0
        self.dies_at = 0
        self.on_death: Callable[[], None] | None = None
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def context(self) -> contextvars.Context:
        """A context in which whatever is started belongs to this life."""
        context = contextvars.copy_context()
        context.run(_LIFE.set, self)
        return context


_LIFE: Final[contextvars.ContextVar[Life | None]] = contextvars.ContextVar("life", default=None)


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


class _Timer(asyncio.TimerHandle):
    """Of two that are due at once the one that was asked for first runs first.

    A heap alone would leave that to what else is in it: a fault that is left out would change all the rest.
    """

    __slots__ = ("number",)

    _when: float
    _scheduled: bool

    def __init__(self, number: int, *args: Any) -> None:
        super().__init__(*args)
        self.number = number

    def __lt__(self, other: Any) -> bool:
        # Called several times for each timer, and nothing else is ever on the heap.
        if self._when == other._when:
            return bool(self.number < other.number)
        return bool(self._when < other._when)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and moves only when every task waits.

    Attributes:
        steps: How often something was scheduled to run: the finest measure of what has happened.
    """

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        self._jump = _Jump()
        self.steps = 0
        self._timers = 0
        super().__init__(self._jump)
        self._outside = contextvars.copy_context()
        self.set_task_factory(_new_task)  # type: ignore[arg-type]

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now

    def call_soon(  # type: ignore[override]  # the base says it with a TypeVarTuple, to no gain
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As any loop; what belongs to an ended life is dropped."""
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        life = context.get(_LIFE)
        if life is not None:
            if life.is_over:
                handle.cancel()
                return handle
            life.steps += 1
            if life.steps == life.dies_at:
                self._ready.appendleft(asyncio.Handle(self._die, (life,), self, self._outside))
        self.steps += 1
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]  # as above
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As any loop; what belongs to an ended life is dropped."""
        if context is None:
            context = contextvars.copy_context()
        self._timers += 1
        timer = _Timer(self._timers, when, callback, args, self, context)
        life = context.get(_LIFE)
        if life is not None and life.is_over:
            timer.cancel()
            return timer
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def call_outside(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        """Schedule something of the world, whoever asks: it outlives every life."""
        return self.call_at(self.time() + delay_s, callback, *args, context=self._outside)

    def end(self, life: Life) -> None:
        """SIGKILL."""
        if life.is_over:
            return
        life.is_over = True
        # First, for a handle may hold the last reference to its task.
        for task in life.tasks:
            if not task.done():
                _keep_for_ever(task)
        for handle in (*self._ready, *self._scheduled):
            if handle._context.get(_LIFE) is life:
                handle.cancel()

    def _die(self, life: Life) -> None:
        if not life.is_over and life.on_death is not None:
            life.on_death()


def _new_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, T],
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    # The first step of a task is scheduled while it is made, so its life is asked before.
    task = asyncio.Task(coro, loop=loop, context=context)
    life = _LIFE.get() if context is None else context.get(_LIFE)
    if life is not None:
        life.tasks.add(task)
        if life.is_over:
            _keep_for_ever(task)
    return task


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
        for task in asyncio.all_tasks(loop):
            _keep_for_ever(task)
        asyncio.set_event_loop(None)
        loop.close()
