"""The spool in memory."""

from __future__ import annotations

import asyncio

from vpccni.errors import Reason, TransientError
from vpccni.model import Stamp
from vpccni.ports import SpooledDel


class FakeSpool:
    """The ``Spool`` port.

    Attributes:
        is_broken: Writing fails, as on a full disk.
        is_stuck: Reading fails.
        removed: Entries that were taken away, for whoever looks at that.
    """

    def __init__(self, *, sync_s: float = 0.0) -> None:
        self._sync_s = sync_s
        self.removed: list[SpooledDel] = []
        self.is_broken = False
        self.is_stuck = False
        self._entries: dict[str, SpooledDel] = {}
        self._boots: list[str] = []
        self._changed = asyncio.Event()
        self._changed.set()

    async def entries(self) -> list[SpooledDel]:
        """See ``Spool.entries``."""
        if self.is_stuck:
            raise TransientError(Reason.SPOOL_UNREADABLE, "the spool cannot be read")
        return sorted(
            self._entries.values(),
            key=lambda entry: (self._boots.index(entry.boot_id), entry.boottime_ns, entry.name),
        )

    def is_holding(self, container_id: str) -> bool:
        """Whether an entry is about this sandbox."""
        return any(f'"{container_id}"'.encode() in entry.body for entry in self._entries.values())

    async def remove(self, name: str) -> None:
        """See ``Spool.remove``."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.removed.append(entry)

    async def write(self, body: bytes, stamp: Stamp) -> None:
        """See ``Spool.write``."""
        if self.is_broken:
            raise TransientError(Reason.LOG_DISK_FULL, "the spool cannot be written")
        await asyncio.sleep(self._sync_s)  # Whoever dies until here has written nothing.
        at = stamp.boottime_ns
        while f"{at:020}-1.json" in self._entries:
            at += 1
        name = f"{at:020}-1.json"
        if stamp.boot_id not in self._boots:
            self._boots.append(stamp.boot_id)
        self._entries[name] = SpooledDel(
            name=name, boot_id=stamp.boot_id, boottime_ns=stamp.boottime_ns, body=body
        )
        self._changed.set()

    async def wait_changed(self) -> None:
        """See ``Spool.wait_changed``."""
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Nothing to release."""
