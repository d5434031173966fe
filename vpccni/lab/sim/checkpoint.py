"""The original's checkpoint files in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from vpccni.checkpoint import card_path, parse_checkpoint
from vpccni.errors import OutcomeUnknownError, Reason, TransientError
from vpccni.evidence import ABSENT, CheckpointFile


class FakeCheckpoints:
    """The ``Checkpoints`` port. The files' bytes are kept, so what is read went through the real format.

    A file that is torn or lies is put there by ``put``.

    Attributes:
        files: The bytes of each file and its modification time, by network card.
        is_readable: Whether reading works.
        is_writable: Whether writing works; otherwise the old file stays.
        is_unsynced: The next write replaces the file and reports that it may not last.
        stale: What is read in place of ``files``; ``None`` when it is not behind.
        writes: How many times the file was replaced by ``write``.
    """

    def __init__(
        self,
        path: str = "/var/run/aws-node/ipam.json",
        *,
        now_ns: Callable[[], int] = lambda: 0,
        sync_s: float = 0.0,
    ) -> None:
        self._path = path
        self._now_ns = now_ns
        self._sync_s = sync_s
        self._turn = asyncio.Lock()
        self._inode = 0
        self.files: dict[int, tuple[bytes, int]] = {}
        self.is_readable = True
        self.is_writable = True
        self.is_unsynced = False
        self.stale: dict[int, tuple[bytes, int]] | None = None
        self.writes = 0

    def put(self, content: bytes, card: int = 0) -> None:
        """Somebody else replaces a file."""
        self._inode += 1
        self.files[card] = (content, self._now_ns())

    def reopen(self) -> None:
        """A new agent opens it: a write that died with the agent before it is in nobody's way."""
        self._turn = asyncio.Lock()

    async def read(self) -> tuple[CheckpointFile, ...]:
        """See ``Checkpoints.read``."""
        shown = self.files if self.stale is None else self.stale
        return tuple(self._read_one(card, shown) for card in sorted({0, *shown}))

    async def stamp(self) -> tuple[int, ...]:
        """See ``Checkpoints.stamp``."""
        if 0 not in self.files:
            return ()
        content, modified_ns = self.files[0]
        return (self._inode, len(content), modified_ns)

    async def write(self, content: bytes) -> str:
        """See ``Checkpoints.write``."""
        async with self._turn:
            await asyncio.sleep(self._sync_s)  # Whoever dies until here has written nothing.
            if not self.is_writable:
                raise TransientError(Reason.EXPORT_FAILED, f"{self._path}: No space left on device")
            self.files[0] = (content, self._now_ns())
            self.writes += 1
            self._inode += 1
            if self.is_unsynced:
                self.is_unsynced = False
                raise OutcomeUnknownError(Reason.EXPORT_FAILED, f"{self._path} was replaced and not synced")
        return hashlib.sha256(content).hexdigest()

    def _read_one(self, card: int, shown: dict[int, tuple[bytes, int]]) -> CheckpointFile:
        path = card_path(self._path, card)
        if not self.is_readable:
            return CheckpointFile(path=path, card=card, status="unreadable: Input/output error")
        if card not in shown:
            return CheckpointFile(path=path, card=card, status=ABSENT)
        content, modified_ns = shown[card]
        return parse_checkpoint(content, path=path, card=card, modified_ns=modified_ns)
