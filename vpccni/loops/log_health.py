"""What keeps the log from taking more: what the writer knows of it, and what a person is told.

Its disk is full. Or somebody has removed or replaced its files: the agent would go on writing into what has no name
any more, and all of it would be gone with the process. The log notices that at its next batch; a look every few
seconds notices without one.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

import structlog

from vpccni.errors import Refused, TransientError, sentence
from vpccni.events.node import LogRestored
from vpccni.ports import Clock, EventLog, Restored

_log = structlog.get_logger("log")


FULL_RETRY_S: Final = 5.0
"""While the disk is full, what nobody waits for is tried again at this pace."""


class LogHealth:
    """The writer's; others ask it, and nobody else restores the log.

    Attributes:
        is_in_doubt: Files were missing at the last look: restore before anything more is written.
        removed: Why the log is not at its path and takes nothing; ``None`` when it is, or was not tried.
    """

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._missing: tuple[str, ...] = ()
        self._since = ""
        self._restored = ""
        self._count = 0
        self._full: TransientError | None = None
        self._full_until = 0.0
        self.is_in_doubt = False
        self.removed: TransientError | None = None

    async def look(self) -> bool:
        """Whether the log must be restored before it is written to."""
        missing = await self._log.missing()
        if missing:
            self._missing = missing
        if missing or self.removed is not None:
            self.is_in_doubt = True
        return self.is_in_doubt

    async def restore(self) -> Restored:
        """Put the log back. In the writer's turn. Raises as ``EventLog.restore``."""
        self.is_in_doubt = False
        try:
            restored = await self._log.restore()
        except TransientError as error:
            if self.removed is None:
                self._since = self._now()
            if self.removed is None or self.removed.detail != error.detail:
                _log.error("log_removed", detail=error.detail)
            self.removed = error
            raise
        self._missing = restored.missing or self._missing
        self.removed = None
        return restored

    def take_event(self, restored: Restored) -> LogRestored | None:
        """What is to be recorded of a log that was put back; ``None`` when nothing had been missing."""
        missing, self._missing = self._missing, ()
        if not missing:
            return None
        self._count += 1
        times = f", {self._count} times since the start" if self._count > 1 else ""
        aside = f"; what stood there instead is now {', '.join(restored.aside)}" if restored.aside else ""
        self._restored = (
            f"removed or replaced under the agent, and put back at {self._now()}{times}: {', '.join(missing)} "
            f"({restored.events} events, none was lost{aside}). Find out what did it; "
            "a kill within two seconds of it would have lost the log."
        )
        _log.error("log_restored", missing=missing, aside=restored.aside, events=restored.events)
        return LogRestored(missing=missing, events=restored.events)

    def note_full(self, error: TransientError) -> None:
        """The disk was found full."""
        self._full, self._full_until = error, 0.0

    def full(self) -> Refused | None:
        """Why no new lease is taken: the disk is full. Whether it still is, is tried every few seconds."""
        if self._full is None:
            return None
        now = asyncio.get_running_loop().time()
        if now >= self._full_until:
            self._full_until = now + FULL_RETRY_S
            if self._log.restore_reserve():
                self._full = None
                return None
        return Refused(self._full.reason, self._full.detail)

    def refusal(self) -> Refused | None:
        """Why no new lease is taken just now: the log is not at its path, or its disk is full."""
        if self.removed is not None:
            return Refused(self.removed.reason, self.removed.detail)
        return self.full()

    def problem(self) -> str:
        """What became of the log's files while the agent ran, for a person; empty when nothing did."""
        if self.removed is None:
            return self._restored
        return f"since {self._since}: {sentence(self.removed.reason, self.removed.detail)}"

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.now().wall_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
