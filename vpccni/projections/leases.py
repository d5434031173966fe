"""Leases and resting addresses, as records left them."""

from __future__ import annotations

import msgspec

from vpccni.events.codec import Record
from vpccni.events.sandbox import SandboxWired
from vpccni.model import Binding, LeaseId, PodRef, SandboxKey, Stamp


class Lease(msgspec.Struct, kw_only=True):
    """An open lease, or a hold: an address in use whose sandbox's key is not known.

    Attributes:
        key: For a hold, its container id is empty.
        bindings: With their ENI as soon as it is known.
        origin: ``add``, ``recovered`` or ``imported``.
        evidence: Which sources showed it, when it did not come from an ADD.
        since: When the sandbox got the address, as far as known; of an ADD, when it was opened.
        suspected: Since when a source says that the sandbox is gone; ``None`` when none does.
        source: That source.
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
    origin: str = "add"
    evidence: tuple[str, ...] = ()
    since: Stamp
    suspected: Stamp | None = None
    source: str = ""
    records: dict[str, Record]

    @property
    def is_hold(self) -> bool:
        """Whether nobody knows the key of its sandbox."""
        return not self.key.container_id

    @property
    def is_unseen(self) -> bool:
        """Whether only files told of it, and no interface yet: its plugin may be at work, or dead."""
        return self.origin != "add" and self.wired is None

    @property
    def is_located(self) -> bool:
        """Whether the ENI of each of its addresses is known."""
        return all(binding.eni or binding.kind == "egress" for binding in self.bindings)


class Rest(msgspec.Struct, kw_only=True):
    """A lease that ended, as long as one of its addresses is not leased again.

    Attributes:
        is_found: It did not come from an ADD, so that its veth may be somebody else's work, without our alias.
        is_standing: Nobody has yet seen that its veth is gone: its addresses are not assignable.
    """

    lease: LeaseId
    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    netns: str
    ended: Stamp
    wired: SandboxWired | None
    is_found: bool = False
    is_standing: bool
    records: dict[str, Record]
