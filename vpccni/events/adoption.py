"""Taking a node over from amazon-vpc-cni-k8s, and handing it back."""

from __future__ import annotations

import msgspec


class CheckpointImported(msgspec.Struct, frozen=True, kw_only=True):
    """The original's ``ipam.json`` was read into leases. ``digest`` is its SHA-256."""

    digest: str
    allocations: int


class CheckpointExported(msgspec.Struct, frozen=True, kw_only=True):
    """The open leases were written as the original's ``ipam.json``."""

    digest: str
    allocations: int
