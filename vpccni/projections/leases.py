"""Leases and resting addresses, as records left them."""

from __future__ import annotations

import msgspec

from vpccni.events.codec import Record
from vpccni.events.sandbox import SandboxWired
from vpccni.model import Binding, LeaseId, PodRef, SandboxKey, Stamp


class Lease(msgspec.Struct, kw_only=True):
    """An open lease.

    Attributes:
        quarantined: Since when a witness says that the sandbox is gone; ``None`` when none does.
        records: The records that made it what it is, for snapshots.
    """

    id: LeaseId
    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    netns: str
    netns_inode: int
    opened: Stamp
    wired: SandboxWired | None = None
    quarantined: Stamp | None = None
    witness: str = ""
    records: dict[str, Record]


class Rest(msgspec.Struct, kw_only=True):
    """A lease that ended, as long as one of its addresses is not leased again.

    Attributes:
        is_standing: Nobody has yet seen that its veth is gone: its addresses are not assignable.
    """

    lease: LeaseId
    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    netns: str
    ended: Stamp
    wired: SandboxWired | None
    is_standing: bool
    records: dict[str, Record]
