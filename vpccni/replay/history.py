"""Who held an address, and what happened to a pod: from the subject index, without a fold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from vpccni.errors import PermanentError, Reason
from vpccni.events.codec import Record, is_chained
from vpccni.events.envelope import GENESIS, Stored
from vpccni.events.sandbox import (
    AddFailed,
    AddressAssigned,
    AddressHeld,
    LeaseCleared,
    LeaseEnded,
    LeaseIdentified,
    LeaseLocated,
    LeaseSuspected,
    SandboxWired,
)
from vpccni.model import Address, Binding, LeaseId, PodRef, SandboxKey
from vpccni.replay.past import UNCHAINED
from vpccni.replay.reader import LogFile
from vpccni.replay.text import record_json
from vpccni.replay.when import Boot, boots_between, iso_text, record_at


class Holding(msgspec.Struct, kw_only=True):
    """One lease of an address, from beginning to end.

    Attributes:
        binding: The one with the address that was asked about.
        ended: Its end, ``None`` while it is open.
        wired: When it was wired first, ``None`` when never.
        failed: The failure of the ADD that opened it.
        doubts: Quarantines and their ends.
        boots: Boots of the node since the holding before it ended (or since its own beginning, for the
            first), up to its own end.
    """

    assigned: Record
    event: AddressAssigned | AddressHeld
    binding: Binding
    identified: Record | None = None
    ended: Record | None = None
    wired: Record | None = None
    failed: Record | None = None
    doubts: list[Record] = []
    boots: list[Boot] = []

    @property
    def lease(self) -> LeaseId:
        """The lease's id."""
        return LeaseId(self.assigned.seq)

    @property
    def key(self) -> SandboxKey:
        """The sandbox; its container id is empty while nobody has named it."""
        if self.identified is not None and isinstance(self.identified.event, LeaseIdentified):
            return self.identified.event.key
        event = self.event
        return event.key if isinstance(event, AddressAssigned) else SandboxKey("", "", event.ifname)

    @property
    def pod(self) -> PodRef:
        """The pod, as far as it was told."""
        if self.identified is not None and isinstance(self.identified.event, LeaseIdentified):
            return self.identified.event.pod
        return self.event.pod

    @property
    def origin(self) -> str:
        """``add``, ``recovered``, ``imported``, or ``held`` as long as nobody has named its sandbox."""
        if isinstance(self.event, AddressAssigned):
            return self.event.origin
        return "recovered" if self.identified is not None else "held"

    @property
    def end(self) -> LeaseEnded | None:
        """The event that ended it."""
        return self.ended.event if self.ended and isinstance(self.ended.event, LeaseEnded) else None

    def covers(self, seq: int) -> bool:
        """Whether the address was held when the log had come to this event."""
        return self.assigned.seq <= seq and (self.ended is None or seq < self.ended.seq)

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        ended, event = self.ended, self.event
        end = self.end
        return {
            "lease": self.lease,
            "address": self.binding.address,
            "pod": msgspec.to_builtins(self.pod),
            "network": self.key.network,
            "container_id": self.key.container_id,
            "ifname": self.key.ifname,
            "origin": self.origin,
            "evidence": list(event.evidence),
            "since": iso_text(event.since.wall_ns) if event.since is not None else None,
            "netns": event.netns,
            "eni": self.binding.eni,
            "card": self.binding.card,
            "device": self.binding.device,
            "table": self.binding.table,
            "kind": self.binding.kind,
            "from": iso_text(self.assigned.stamp.wall_ns),
            "from_seq": self.assigned.seq,
            "wired": iso_text(self.wired.stamp.wall_ns) if self.wired else None,
            "to": iso_text(ended.stamp.wall_ns) if ended else None,
            "to_seq": ended.seq if ended else None,
            "end": {"cause": end.cause, "sources": list(end.sources)} if end else None,
            "add_failed": self.failed.event.reason
            if self.failed and isinstance(self.failed.event, AddFailed)
            else None,
            "doubts": [record_json(record) for record in self.doubts],
            "boots": [
                {"seq": boot.seq, "time": iso_text(boot.wall_ns), "boot_id": boot.boot_id}
                for boot in self.boots
            ],
        }


class Holdings(msgspec.Struct, kw_only=True):
    """The holdings of an address, oldest first.

    Attributes:
        damage: What kept the rest from being read; empty when everything was read.
    """

    found: list[Holding]
    damage: str = ""


class Story(msgspec.Struct, kw_only=True):
    """The records about a pod, in order. ``damage`` as in :class:`Holdings`."""

    records: list[Record]
    damage: str = ""


def holdings_of(log: LogFile, address: Address) -> Holdings:
    """Every lease of an address that the log holds. Damage ends the list and is told in it."""
    open_by_lease: dict[int, Holding] = {}
    found: list[Holding] = []
    damage = ""
    try:
        for record in _records(log, "address", address):
            event = record.event
            if isinstance(event, AddressAssigned | AddressHeld):
                binding = next(one for one in event.bindings if one.address == address)
                holding = Holding(assigned=record, event=event, binding=binding)
                open_by_lease[record.seq] = holding
                found.append(holding)
            elif isinstance(event, LeaseEnded) and event.lease in open_by_lease:
                open_by_lease.pop(event.lease).ended = record
        for holding in found:
            _add_details(log, holding)
        _add_boots(log, found)
    except PermanentError as error:
        damage = error.detail
    return Holdings(found=found, damage=damage)


def story_of(log: LogFile, pod: str) -> Story:
    """Every record about a pod (``namespace/name``), those about its leases included."""
    records: dict[int, Record] = {}
    damage = ""
    try:
        for record in _records(log, "pod", pod):
            records[record.seq] = record
        for seq in [
            seq for seq, record in records.items() if isinstance(record.event, AddressAssigned | AddressHeld)
        ]:
            records |= {record.seq: record for record in _records(log, "lease", str(seq))}
        for named in [record.event for record in records.values()]:
            if isinstance(named, LeaseIdentified):
                records |= {record.seq: record for record in _records(log, "lease", str(named.lease))}
    except PermanentError as error:
        damage = error.detail
    return Story(records=[records[seq] for seq in sorted(records)], damage=damage)


def checked(log: LogFile, stored: Stored) -> Record:
    """Decode a record, after checking that its hash follows from the record before it.

    Raises:
        PermanentError: ``log_damaged``: it was changed after it was written, or cannot be decoded.
    """
    before = record_at(log, stored.seq - 1)
    previous = before.hash if before is not None else GENESIS if stored.seq == 1 else None
    # Without the record before it (moved into a closed segment) only `verify` can tell.
    if previous is not None and not is_chained(stored, previous):
        why = f"{log.path}: event {stored.seq}: {UNCHAINED}"
        raise PermanentError(Reason.LOG_DAMAGED, why)
    return log.decoded(stored)


def _records(log: LogFile, kind: str, subject: str) -> Iterable[Record]:
    for stored in log.by_subject(kind, subject):
        yield checked(log, stored)


def _add_details(log: LogFile, holding: Holding) -> None:
    for record in _records(log, "lease", str(holding.lease)):
        match record.event:
            case SandboxWired():
                holding.wired = holding.wired or record
            case AddFailed():
                holding.failed = record
            case LeaseIdentified():
                holding.identified = record
            case LeaseLocated():
                holding.binding = next(
                    (one for one in record.event.bindings if one.address == holding.binding.address),
                    holding.binding,
                )
            case LeaseSuspected() | LeaseCleared():
                holding.doubts.append(record)
            case _:
                pass


def _add_boots(log: LogFile, found: list[Holding]) -> None:
    """Between two records of different boots the node was booted; a lease never outlives that."""
    before: Stored | None = None
    head, _ = log.head()
    for holding in found:
        first = before or record_at(log, holding.assigned.seq)
        before = record_at(log, holding.ended.seq if holding.ended else head)
        if first is not None and before is not None:
            holding.boots = boots_between(log, first, before)
