"""Finding out who lives on a node, taking it over from amazon-vpc-cni-k8s, and handing it back."""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import Stamp

MODES: Final = ("serve", "hand_back", "handed_back")
"""``serve``: ours alone. ``hand_back``: each lease also has the original's wiring, EC2 is not changed.
``handed_back``: the original serves; we change nothing."""


class NodeSurveyed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The node was searched for living sandboxes; what was found is in the leases and holds around this event.

    Attributes:
        why: ``new_log``, ``marker_without_log``, ``older_log``, ``no_checkpoint`` (it is gone, or cannot be read),
            ``another_machine``, ``unknown_veth``, ``foreign_checkpoint``, ``another_agent`` (it left no file) or
            ``handed_back``.
        leases, holds: How many were found that the log did not have.
        ended: How many of the log's leases ended by it.
        unexplained: Host interfaces whose address nothing tells.
        sources: What was read, by name: ``read``, ``absent``, or ``unreadable: <why>``.
        last_use: The latest trace of somebody's use of this node's addresses: a cooldown is counted from it
            for every address that was here before. ``None``: no trace of any use.
        notes: What was left out and why, one sentence each, at most a few.
    """

    why: str
    leases: int = 0
    holds: int = 0
    ended: int = 0
    unexplained: tuple[str, ...] = ()
    sources: dict[str, str] = {}
    last_use: Stamp | None = None
    notes: tuple[str, ...] = ()


class OtherAgentObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Another agent serves this node, or no longer does. While it does we change nothing.

    Attributes:
        detail: How it shows: its socket answers, or somebody else writes the checkpoint file.
    """

    is_alive: bool
    detail: str = ""


class CheckpointImported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The original's checkpoint file (``ipam.json``) was read as evidence.

    Attributes:
        digest: SHA-256 of the file, in hexadecimal.
        allocations: Rows in it.
        modified_ns: Its modification time, nanoseconds since the epoch.
    """

    digest: str
    allocations: int
    path: str = ""
    modified_ns: int = 0


class CheckpointExported(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The open leases were written as the original's checkpoint file for the first time, or at an end."""

    digest: str
    allocations: int
    path: str = ""


class ModeChanged(msgspec.Struct, frozen=True, kw_only=True):
    """An operator changed what the agent is for: one of :data:`MODES`."""

    mode: str
    reason: str = ""


class ForeignObjectRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """Something that amazon-vpc-cni-k8s had left in the kernel was removed, because ours took its place.

    Attributes:
        kind: ``rule``, ``route``, ``iptables`` or ``nftables``.
        text: The object as its own tool prints it, so that it can be made again by hand.
    """

    kind: str
    text: str
