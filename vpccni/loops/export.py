"""Keep the original's checkpoint file up to date, so that the original could take the node back at any moment.

The file is at most a second behind the log, and is written off the path of an ADD. After the last
acknowledgement before a stop it is written once more. It carries our own mark (log id and number of the newest
event), by which the next agent tells it from a file that somebody else wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import structlog

from vpccni.checkpoint import Mark, hold_key, render_checkpoint
from vpccni.errors import VpccniError
from vpccni.events.address import CidrsReleased
from vpccni.events.adoption import CheckpointExported
from vpccni.events.codec import Record
from vpccni.events.eni import EniGone
from vpccni.events.sandbox import AddressAssigned, AddressHeld, LeaseEnded, LeaseIdentified
from vpccni.evidence import Row
from vpccni.loops.write import Writer
from vpccni.model import PodRef, SandboxKey
from vpccni.planner import commands as c
from vpccni.ports import Checkpoints, Clock
from vpccni.projections.leases import Lease
from vpccni.projections.state import State

_log = structlog.get_logger("export")

PERIOD_S: Final = 0.5
"""Between two writes while leases come and go: half of what is promised."""
RETRY_S: Final = 2.0


_WORTH_WRITING: Final = (
    AddressAssigned,
    AddressHeld,
    LeaseIdentified,
    LeaseEnded,
    # The rows stay, and the mark moves on: an older copy of the log, which still owns these, shows by it.
    CidrsReleased,
    EniGone,
)


class Export:
    """The loop.

    Attributes:
        problem: Why the file is behind; empty when it is not.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        checkpoints: Checkpoints,
        path: str,
        clock: Clock,
        may_export: Callable[[], bool],
        on_written: Callable[[tuple[int, ...]], None],
    ) -> None:
        self._writer = writer
        self._checkpoints = checkpoints
        self._path = path
        self._clock = clock
        self._may_export = may_export
        self._on_written = on_written
        self._wake = asyncio.Event()
        self._written: int | None = None
        self.problem = ""

    def on_records(self, records: Sequence[Record]) -> None:
        """Leases came or went, or something was given back to EC2."""
        if any(isinstance(one.event, _WORTH_WRITING) for one in records):
            self._wake.set()

    def wake(self) -> None:
        """Write it now, whatever was written before."""
        self._written = None
        self._wake.set()

    def is_current(self) -> bool:
        """Whether the file holds every lease of the log, as far as leases go."""
        return self._written is not None and not self._wake.is_set()

    async def run(self) -> NoReturn:
        """Write whenever leases have changed, but not more often than every half second."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            is_written = await self._write()
            await asyncio.sleep(PERIOD_S if is_written else RETRY_S)
            if not is_written:
                self._wake.set()

    async def finish(self) -> None:
        """After the last acknowledgement: bring the file up to date. Somebody may have removed it meanwhile."""
        self._written = None
        if await self._write():
            _log.info("exported", path=self._path, leases=len(self._writer.state.leases))

    async def _write(self) -> bool:
        """Whether there is nothing left to do."""
        state = self._writer.state
        if not self._may_export() or state.other_agent is not None:
            return True
        if self._written == state.head:
            return True
        head, rows = int(state.head), rows_of(state)
        mark = Mark(log_id=state.log_id, seq=head, boot_id=self._clock.now().boot_id)
        try:
            digest = await self._checkpoints.write(render_checkpoint(rows, mark))
        except VpccniError as error:
            if not self.problem:
                _log.warning("export_failed", reason=error.reason, detail=error.detail)
            self.problem = error.detail or str(error.reason)
            return False
        self._on_written(await self._checkpoints.stamp())
        self._written, self.problem = head, ""
        if state.exported is None or state.exported.path != self._path:
            exported = CheckpointExported(digest=digest, allocations=len(rows), path=self._path)
            self._writer.post(c.Note((exported,)))
        return True


def rows_of(state: State) -> list[Row]:
    """One row for each leased or held address, by address. Keys are unique, also those that we make up."""
    rows = [
        Row(
            key=_key_of(lease),
            address=binding.address,
            pod=_pod_of(lease),
            card=binding.card,
            allocated_ns=lease.since.wall_ns,
        )
        for lease in state.leases.values()
        for binding in lease.bindings
        if binding.kind == "pool"
    ]
    return sorted(rows, key=lambda row: row.address)


def _key_of(lease: Lease) -> SandboxKey:
    """The key; of a hold one that no sandbox has, for the original reads an empty key as "not assigned"."""
    if not lease.is_hold:
        return lease.key
    return hold_key(lease.bindings[0].address, lease.key.ifname or "eth0")


def _pod_of(lease: Lease) -> PodRef:
    """The pod, if the original will find its interface by it.

    At a restore it drops a row whose pod's name does not give the name of a link; a row without a name it keeps.
    """
    if lease.is_hold or lease.key.ifname != "eth0" or not (lease.pod.namespace and lease.pod.name):
        return PodRef()
    return lease.pod
