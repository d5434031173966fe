"""The original's checkpoint file (``ipam.json``): reading it as evidence, and writing our leases in its form.

The file is one line of JSON and a newline: ``version`` (``vpc-cni-ipam/1``) and ``allocations``, a *row* for each
assigned address. A file of ours has one more key at the top, ``vpccni``: the *mark*, which says from which log it
was made. The original ignores the mark, and loses it at its first write: so a file without it is not ours.

* *made-up key*: a sandbox key that no runtime ever used. It stands where a row needs a key and none is known.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from vpccni.errors import InvariantBrokenError
from vpccni.evidence import READ, CheckpointFile, Row
from vpccni.model import Address, PodRef, SandboxKey

VERSION: Final = "vpc-cni-ipam/1"
"""The only version; the original does not start with a file of another."""
CRI_NETWORK: Final = "_migrated-from-cri"
UNKNOWN_IFNAME: Final = "unknown"
"""The original's key for a row that it once took over from the container runtime: only the container id is real."""
HOLD_NETWORK: Final = "_vpccni-hold"
"""Network of the key that our export makes up for an address whose sandbox is not known."""
COMPLAINTS_MAX: Final = 20
"""Sentences about one file: enough to see what is wrong with it."""
_INT64_MAX: Final = (1 << 63) - 1


class Mark(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How we know a file as our own: of which log it is, up to which event, and in which boot it was written."""

    log_id: str
    seq: int
    boot_id: str


class _Document(msgspec.Struct):
    """The whole file. ``allocations`` must be there: a list that is missing is not an empty one."""

    version: str
    allocations: list[msgspec.Raw] | None
    vpccni: msgspec.Raw = msgspec.Raw(b"")


_KEYS: Final = {
    "network": "networkName",
    "container_id": "containerID",
    "ifname": "ifName",
    "allocated_ns": "allocationTimestamp",
}


class _Allocation(msgspec.Struct, rename=_KEYS):
    """A row as it is read. What is not needed to know the address and its key may have any shape."""

    network: str | None = None
    container_id: str | None = None
    ifname: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    allocated_ns: Any = None
    metadata: Any = None


_METADATA_KEYS: Final = {
    "namespace": "k8sPodNamespace",
    "name": "k8sPodName",
    "interfaces_count": "interfacesCount",
}


class _Metadata(msgspec.Struct, rename=_METADATA_KEYS, omit_defaults=True):
    namespace: str = ""
    name: str = ""
    interfaces_count: int = 0


class _Written(msgspec.Struct, kw_only=True, rename=_KEYS, omit_defaults=True):
    """A row as it is written, its keys in the original's order. Those without default are always there."""

    network: str
    container_id: str
    ifname: str
    ipv4: str = ""
    ipv6: str = ""
    allocated_ns: int
    metadata: _Metadata


class _File(msgspec.Struct, omit_defaults=True):
    version: str
    allocations: list[_Written]
    vpccni: Mark | None = None


def parse_checkpoint(content: bytes, *, path: str, card: int = 0, modified_ns: int = 0) -> CheckpointFile:
    """What a checkpoint file says. Never raises.

    A file that is not whole or is of another version has the status ``unreadable: <why>``. A row that cannot be
    read is told of in ``unreadable`` and hides no other. A row with an address stays a row also when its time or
    its pod cannot be read.

    Args:
        content: The bytes of the file.
        path: Where it lies, for messages.
        card: The network card that it is about.
        modified_ns: The file's modification time, nanoseconds since the epoch.
    """
    found = CheckpointFile(
        path=path,
        card=card,
        status=READ,
        modified_ns=modified_ns,
        digest=hashlib.sha256(content).hexdigest(),
    )
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        return msgspec.structs.replace(found, status=f"unreadable: {error}")
    if document.version != VERSION:
        why = f"its version is {document.version[:40]!r} and not {VERSION!r}"
        return msgspec.structs.replace(found, status=f"unreadable: {why}")
    rows: list[Row] = []
    complaints: list[str] = []
    for number, raw in enumerate(document.allocations or (), start=1):
        some, wrong = _read_row(raw, card)
        rows += some
        complaints += [f"row {number}: {sentence}" for sentence in wrong]
    mark = _read_mark(document.vpccni, complaints)
    if len(complaints) > COMPLAINTS_MAX:
        complaints[COMPLAINTS_MAX:] = [f"and {len(complaints) - COMPLAINTS_MAX} more"]
    return msgspec.structs.replace(
        found,
        rows=tuple(rows),
        unreadable=tuple(complaints),
        log_id=mark.log_id,
        seq=mark.seq,
        boot_id=mark.boot_id,
    )


def render_checkpoint(rows: Iterable[Row], mark: Mark | None) -> bytes:
    """The bytes of a checkpoint file with these rows, in their order.

    Args:
        rows: Those of one network card.
        mark: Ours; ``None`` for a file as the original writes it.

    Raises:
        InvariantBrokenError: two rows have the same address (the original would not start), or a row has no key
            at all (the original would take its address for free).
    """
    written: list[_Written] = []
    seen: set[Address] = set()
    for row in rows:
        if row.address in seen:
            raise InvariantBrokenError(f"two rows of the checkpoint have the address {row.address}")
        if not (row.key.network or row.key.container_id or row.key.ifname):
            raise InvariantBrokenError(f"the row of {row.address} has no key")
        seen.add(row.address)
        written.append(_as_written(row))
    return msgspec.json.encode(_File(VERSION, written, mark)) + b"\n"


def card_path(path: str, card: int) -> str:
    """Where the checkpoint file of a network card lies, given that of card 0."""
    return path if card == 0 else f"{path.removesuffix('.json')}-nic-{card}.json"


def hold_key(address: Address, ifname: str = "eth0") -> SandboxKey:
    """The made-up key of an address that is in use by a sandbox that nobody can name; unique by address."""
    # The characters that CNI allows in a container id, so that every tool can show and match it.
    return SandboxKey(HOLD_NETWORK, f"vpccni-hold-{address.replace(':', '-')}", ifname)


def is_made_up(key: SandboxKey) -> bool:
    """Whether no runtime ever used this key, so that a runtime's not knowing it proves nothing."""
    return (
        key.network in ("", CRI_NETWORK, HOLD_NETWORK)
        or not key.container_id
        or key.ifname in ("", UNKNOWN_IFNAME)
    )


def _read_row(raw: msgspec.Raw, card: int) -> tuple[list[Row], list[str]]:
    """The rows in one element of ``allocations`` (one, as a rule) and what is wrong with it."""
    try:
        read = msgspec.json.decode(raw, type=_Allocation)
    except (ValueError, RecursionError) as error:
        return [], [f"cannot be read: {error}"]
    complaints: list[str] = []
    addresses = _read_addresses(read, complaints)
    key = SandboxKey(read.network or "", read.container_id or "", read.ifname or "")
    if not (key.network or key.container_id or key.ifname):
        told = ", ".join(addresses) or "no address"
        return [], [*complaints, f"it has no key ({told}), so the original takes it as unassigned"]
    metadata = _read_metadata(read.metadata, complaints)
    row = Row(
        key=key,
        address=Address(""),
        pod=PodRef(metadata.namespace, metadata.name),
        card=card,
        allocated_ns=_read_time(read.allocated_ns, complaints),
        interfaces_count=max(1, metadata.interfaces_count),
    )
    return [msgspec.structs.replace(row, address=address) for address in addresses], complaints


def _read_addresses(read: _Allocation, complaints: list[str]) -> list[Address]:
    """The original writes exactly one; if both should stand there, both are evidence."""
    addresses: list[Address] = []
    try:
        if read.ipv4:
            addresses.append(Address(str(ipaddress.IPv4Address(read.ipv4))))
        if read.ipv6:
            addresses.append(Address(str(ipaddress.IPv6Address(read.ipv6.partition("%")[0]))))
    except ValueError as error:
        complaints.append(f"its address cannot be read: {str(error)[:100]}")
    else:
        if not addresses:
            complaints.append("it has no address")
    return addresses


def _read_metadata(value: Any, complaints: list[str]) -> _Metadata:
    try:
        return msgspec.convert(value or {}, _Metadata)
    except ValueError as error:
        complaints.append(f"its metadata cannot be read: {error}")
        return _Metadata()


def _read_time(value: Any, complaints: list[str]) -> int:
    if value is None:
        return 0
    if type(value) is not int or abs(value) > _INT64_MAX:
        complaints.append("its allocation time is not a number of nanoseconds")
        return 0
    # Go writes a time that was never set as a large negative number.
    return max(0, value)


def _read_mark(raw: msgspec.Raw, complaints: list[str]) -> Mark:
    nobody = Mark(log_id="", seq=0, boot_id="")
    if not bytes(raw):
        return nobody
    try:
        return msgspec.json.decode(raw, type=Mark)
    except (ValueError, RecursionError) as error:
        complaints.append(f"the mark of vpccni cannot be read: {error}")
        return nobody


def _as_written(row: Row) -> _Written:
    is_v6 = ":" in row.address
    return _Written(
        network=row.key.network,
        container_id=row.key.container_id,
        ifname=row.key.ifname,
        ipv4="" if is_v6 else row.address,
        ipv6=row.address if is_v6 else "",
        allocated_ns=row.allocated_ns,
        metadata=_Metadata(row.pod.namespace, row.pod.name, row.interfaces_count),
    )
