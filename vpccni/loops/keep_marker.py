"""Keeps the marker true by which STATUS is answered while the agent is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

import structlog

from vpccni.adapters.beat import until_beat
from vpccni.errors import PermanentError, Reason, Refused, TransientError

_log = structlog.get_logger("marker")

FIRST_LOOK_S: Final = 0.1
"""How often it is seen whether ADDs can be served, while they cannot."""
LOOK_S: Final = 2.0
"""And while they can: a marker that somebody removed is missed only when the agent goes away."""


@contextmanager
def unmarked_when_unusable(mark: Callable[[bool], None]) -> Iterator[None]:
    """Open the log in this block: when it cannot be used, the marker goes.

    Nobody is served then until somebody has seen to it. While another agent has the log, the marker is its own.

    Raises:
        PermanentError: what the block raised.
    """
    try:
        yield
    except PermanentError as error:
        if error.reason is not Reason.LOG_IN_USE:
            with suppress(TransientError):  # What is wrong with the log is what has to be told.
                mark(False)
        raise


async def keep_marker(refusal: Callable[[], Refused | None], mark: Callable[[bool], None]) -> NoReturn:
    """Mark that ADDs can be served, and unmark it when they cannot for a reason that an operator must see.

    Start it once the agent knows its log. An agent that is stopping leaves the marker as it is: the next one comes.

    Args:
        refusal: Why no ADD is served; ``None`` when they are.
        mark: Sets or removes the marker. Raises ``TransientError`` when it cannot: told once, then tried again.
    """
    problem = ""
    while True:
        refused = refusal()
        if refused is None or refused.reason is not Reason.STOPPING:
            try:
                mark(refused is None)
            except TransientError as error:
                if error.detail != problem:
                    _log.warning("ready_marker", reason=error.reason, detail=error.detail)
                problem = error.detail
            else:
                problem = ""
        await asyncio.sleep(FIRST_LOOK_S if refused is not None else until_beat(LOOK_S))
