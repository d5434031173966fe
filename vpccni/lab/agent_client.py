"""The agent's API on its Unix socket, as the lab and its tests ask it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp

POLL_S: Final = 0.02
"""How often an agent that is not ready is asked again: far below its time to start."""

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_FOLLOW_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5)


class AgentAwayError(Exception):
    """The agent did not answer: it is not running, or it stopped meanwhile."""


class AgentClient:
    """Reads one agent's API. Each call makes its own connection, so that a restart of the agent is no matter."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def get(self, path: str) -> Any:
        """GET a path, such as ``/v1/pods``, and return its JSON, whatever the status.

        Raises:
            AgentAwayError: nobody answered.
        """
        return (await self.ask(path))[1]

    async def ask(self, path: str) -> tuple[int, Any]:
        """GET a path and return status and JSON.

        Raises:
            AgentAwayError: nobody answered.
        """
        try:
            async with self._session(_TIMEOUT) as session, session.get(f"http://agent{path}") as reply:
                return reply.status, await reply.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError, json.JSONDecodeError) as error:
            raise AgentAwayError(f"{path} on {self.socket}: {error}") from error

    async def readiness(self) -> str | None:
        """None when the agent serves ADDs; otherwise why it does not, or that it does not answer."""
        try:
            status, said = await self.ask("/readyz")
        except AgentAwayError:
            return "it does not answer"
        return None if status == 200 else str(said.get("message", said))

    async def follow(self, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Every event after that number, and then new ones as they become durable, until the agent goes.

        Raises:
            AgentAwayError: it is not there, or went away.
        """
        url = f"http://agent/v1/events?after={after}&follow=1"
        try:
            async with self._session(_FOLLOW_TIMEOUT) as session, session.get(url) as reply:
                async for line in reply.content:
                    if line.strip():
                        yield json.loads(line)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise AgentAwayError(f"events on {self.socket}: {error}") from error
        raise AgentAwayError(f"events on {self.socket}: the agent hung up")

    def _session(self, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(str(self.socket), force_close=True)
        return aiohttp.ClientSession(connector=connector, timeout=timeout)
