"""How events about leases change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vpccni.checkpoint import is_made_up
from vpccni.errors import InvariantBrokenError
from vpccni.events import sandbox
from vpccni.events.codec import Record
from vpccni.model import LeaseId, SandboxKey
from vpccni.projections.leases import Lease, Rest

if TYPE_CHECKING:
    from vpccni.projections.state import State


def _address_assigned(state: State, record: Record, event: sandbox.AddressAssigned) -> None:
    if event.key in state.by_key:
        raise InvariantBrokenError(
            f"event {record.seq} is for {event.key}, which already has lease {state.by_key[event.key]}"
        )
    _open(
        state,
        record,
        Lease(
            id=LeaseId(record.seq),
            key=event.key,
            pod=event.pod,
            bindings=event.bindings,
            netns=event.netns,
            netns_inode=event.netns_inode,
            opened=record.stamp,
            origin=event.origin,
            evidence=event.evidence,
            since=event.since or record.stamp,
            records={"assigned": record},
        ),
    )
    state.by_key[event.key] = LeaseId(record.seq)


def _address_held(state: State, record: Record, event: sandbox.AddressHeld) -> None:
    _open(
        state,
        record,
        Lease(
            id=LeaseId(record.seq),
            key=SandboxKey("", "", event.ifname),
            pod=event.pod,
            bindings=event.bindings,
            netns=event.netns,
            netns_inode=event.netns_inode,
            opened=record.stamp,
            origin="recovered",
            evidence=event.evidence,
            since=event.since or record.stamp,
            records={"assigned": record},
        ),
    )


def _open(state: State, record: Record, lease: Lease) -> None:
    for binding in lease.bindings:
        if binding.address in state.by_address:
            other = state.by_address[binding.address]
            raise InvariantBrokenError(
                f"event {record.seq} gives {binding.address}, which is held by lease {other}"
            )
    state.leases[lease.id] = lease
    for binding in lease.bindings:
        state.by_address[binding.address] = lease.id
        state.rests.pop(binding.address, None)
        if binding.eni in state.enis:
            state.enis[binding.eni].lease_count += 1
    if not lease.is_located:
        state.unlocated[lease.id] = None


def _lease_located(state: State, record: Record, event: sandbox.LeaseLocated) -> None:
    lease = state.leases.get(event.lease)
    if lease is None:
        return
    for before, after in zip(lease.bindings, event.bindings, strict=True):
        if before.eni in state.enis:
            state.enis[before.eni].lease_count -= 1
        if after.eni in state.enis:
            state.enis[after.eni].lease_count += 1
    lease.bindings = event.bindings
    lease.records["located"] = record
    if lease.is_located:
        state.unlocated.pop(lease.id, None)
    else:
        state.unlocated[lease.id] = None


def _lease_identified(state: State, record: Record, event: sandbox.LeaseIdentified) -> None:
    lease = state.leases.get(event.lease)
    if lease is None or not (lease.is_hold or is_made_up(lease.key)):
        raise InvariantBrokenError(f"event {record.seq} names lease {event.lease}, whose sandbox is known")
    if event.key in state.by_key:
        raise InvariantBrokenError(
            f"event {record.seq} is for {event.key}, which already has lease {state.by_key[event.key]}"
        )
    if not lease.is_hold:
        del state.by_key[lease.key]
    lease.key, lease.pod = event.key, event.pod
    lease.records["identified"] = record
    state.by_key[event.key] = lease.id


def _sandbox_wired(state: State, record: Record, event: sandbox.SandboxWired) -> None:
    lease = state.leases.get(event.lease)
    if lease is None:
        return  # The DEL overtook it: wiring rides along with a later batch.
    lease.wired = event
    if event.netns:
        lease.netns, lease.netns_inode = event.netns, event.netns_inode
    lease.records["wired"] = record


def _lease_ended(state: State, record: Record, event: sandbox.LeaseEnded) -> None:
    lease = state.leases.pop(event.lease, None)
    if lease is None:
        raise InvariantBrokenError(f"event {record.seq} ends lease {event.lease}, which is not open")
    if state.by_key.get(lease.key) == lease.id:
        del state.by_key[lease.key]
    state.unlocated.pop(lease.id, None)
    rest = Rest(
        lease=lease.id,
        key=lease.key,
        pod=lease.pod,
        bindings=lease.bindings,
        netns=lease.netns,
        ended=record.stamp,
        wired=lease.wired,
        is_found=lease.origin != "add",
        # After a boot or on another machine no veth of before can stand. Where another sandbox has the
        # address, the kernel's objects are that one's.
        is_standing=event.cause not in ("reboot", "machine_changed", "superseded"),
        records={**lease.records, "ended": record},
    )
    rest.records.pop("suspected", None)
    for binding in lease.bindings:
        del state.by_address[binding.address]
        if event.was_wired:
            state.rests[binding.address] = rest
        if binding.eni in state.enis:
            state.enis[binding.eni].lease_count -= 1
    if event.was_wired and rest.is_standing:
        state.standing[lease.id] = rest


def _sandbox_unwired(state: State, record: Record, event: sandbox.SandboxUnwired) -> None:
    rest = state.standing.pop(event.lease, None)
    if rest is not None:
        rest.is_standing = False
        rest.records["unwired"] = record


def _lease_suspected(state: State, record: Record, event: sandbox.LeaseSuspected) -> None:
    lease = state.leases.get(event.lease)
    if lease is not None:
        lease.suspected, lease.source = record.stamp, event.source
        lease.records["suspected"] = record


def _lease_cleared(state: State, record: Record, event: sandbox.LeaseCleared) -> None:
    lease = state.leases.get(event.lease)
    if lease is not None:
        lease.suspected, lease.source = None, ""
        lease.records.pop("suspected", None)


FOLDS: Final[dict[type, Callable[[State, Record, Any], None]]] = {
    sandbox.AddressAssigned: _address_assigned,
    sandbox.AddressHeld: _address_held,
    sandbox.LeaseLocated: _lease_located,
    sandbox.LeaseIdentified: _lease_identified,
    sandbox.SandboxWired: _sandbox_wired,
    sandbox.LeaseEnded: _lease_ended,
    sandbox.SandboxUnwired: _sandbox_unwired,
    sandbox.LeaseSuspected: _lease_suspected,
    sandbox.LeaseCleared: _lease_cleared,
}
