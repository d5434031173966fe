"""Waiting for what must come true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

PATIENCE_S: Final = 15.0
"""For a loaded machine; nothing here takes more than three seconds otherwise."""


async def wait_until(is_true: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait for a condition; the test fails when it does not come true."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = is_true()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.02)
