"""The checkpoint of amazon-vpc-cni-k8s: the file of its allocations, and which of its rows it believes at start."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VERSION: Final = "vpc-cni-ipam/1"


class FatalCheckpointError(Exception):
    """It does not start with such a file."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One allocation."""

    container_id: str
    address: str
    namespace: str = ""
    name: str = ""
    network: str = "aws-cni"
    ifname: str = "eth0"
    allocated_ns: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it."""
        return self.network, self.container_id, self.ifname


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file: a temporary one beside it, synced and renamed."""
    text = json.dumps({"version": VERSION, "allocations": [_encoded(row) for row in rows]})
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.tmp", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)
    os.rename(name, path)


def read(path: Path) -> list[Row]:
    """The rows of the file; none when it is not there.

    Raises:
        FatalCheckpointError: It is not JSON, or of another version.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise FatalCheckpointError(f"{path}: {error}") from error
    if found.get("version") != VERSION:
        raise FatalCheckpointError(f"{path}: version {found.get('version')!r}")
    return [_decoded(each) for each in found.get("allocations") or []]


def restored(
    rows: Iterable[Row], *, is_linked: Callable[[Row], bool], is_listed: Callable[[str], bool]
) -> tuple[list[Row], list[Row]]:
    """What it keeps of the rows at start.

    Args:
        rows: In the order of the file.
        is_linked: Whether the node has a link of the row's pod; asked only for rows that name a pod.
        is_listed: Whether IMDS lists the address on an ENI that was set up.

    Returns:
        The rows that are assigned from now on, and those whose pod has no link (their rules are deleted).

    Raises:
        FatalCheckpointError: Two rows have one address.
    """
    kept: list[Row] = []
    gone: list[Row] = []
    for row in rows:
        if row.namespace and row.name and not is_linked(row):
            gone.append(row)
        elif is_listed(row.address):
            if any(each.address == row.address for each in kept):
                raise FatalCheckpointError(f"two rows have the address {row.address}")
            kept.append(row)
    # A row without a key takes its address, and reads as unassigned.
    return [row for row in kept if any(row.key)], gone


def _encoded(row: Row) -> dict[str, Any]:
    named = {"k8sPodNamespace": row.namespace, "k8sPodName": row.name}
    metadata: dict[str, Any] = {key: text for key, text in named.items() if text}
    return {
        "networkName": row.network,
        "containerID": row.container_id,
        "ifName": row.ifname,
        "ipv4": row.address,
        "allocationTimestamp": row.allocated_ns,
        "metadata": metadata | {"interfacesCount": 1},
    }


def _decoded(found: dict[str, Any]) -> Row:
    metadata = found.get("metadata") or {}
    return Row(
        network=found.get("networkName", ""),
        container_id=found.get("containerID", ""),
        ifname=found.get("ifName", ""),
        address=found.get("ipv4", ""),
        allocated_ns=found.get("allocationTimestamp", 0),
        namespace=metadata.get("k8sPodNamespace", ""),
        name=metadata.get("k8sPodName", ""),
    )
