"""Work that is not left half done when its asker is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T], name: str) -> T:
    """Await ``work``; when cancelled meanwhile, let it come to its end first and then go on cancelling.

    Raises:
        asyncio.CancelledError: the caller was cancelled; ``work`` is done, with whatever outcome.
    """
    # Not asyncio.TaskGroup: a group would cancel the work, which is what must not happen here.
    task = asyncio.get_running_loop().create_task(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # Seen: the cancellation is what is told.
        raise
