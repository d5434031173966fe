"""One request at a time for each sandbox, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from vpccni.api.cni import Wired
from vpccni.errors import VpccniError
from vpccni.model import SandboxKey, Stamp


class Flight(msgspec.Struct):
    """What goes on for one sandbox.

    Attributes:
        users: Requests that hold the turn or wait for it.
        dels: DELs that have come; an ADD that came before one of them is given up, also when it still waits.
        add: The ADD that holds the turn.
        since: When that ADD's turn began.
    """

    lock: asyncio.Lock
    users: int = 0
    dels: int = 0
    since: Stamp | None = None
    add: asyncio.Task[Wired | VpccniError] | None = None


class Turns:
    """Who works for which sandbox, and who waits to."""

    def __init__(self) -> None:
        self._flights: dict[SandboxKey, Flight] = {}

    def under_way(self, key: SandboxKey) -> Flight | None:
        """What goes on for a sandbox; ``None`` for nothing."""
        return self._flights.get(key)

    @asynccontextmanager
    async def of(self, key: SandboxKey) -> AsyncIterator[Flight]:
        """Be the only one that works for this sandbox, after all who came before."""
        flight = self._flights.setdefault(key, Flight(asyncio.Lock()))
        flight.users += 1
        try:
            async with flight.lock:
                yield flight
        finally:
            flight.users -= 1
            if not flight.users:
                self._flights.pop(key, None)

    @asynccontextmanager
    async def free(self, key: SandboxKey) -> AsyncIterator[bool]:
        """Be the only one, if nobody is: an ADD may hold its turn for as long as it waits for an address."""
        if key in self._flights:
            yield False
            return
        async with self.of(key):
            yield True
