"""Leases: from the runtime's ADD to the end of the address's use."""

from __future__ import annotations

from typing import Literal

import msgspec

from vpccni.model import Binding, LeaseId, PodRef, SandboxKey

EndCause = Literal["del", "undo", "gc", "boot", "instance"]


class AddRequested(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime asked for an address: demand, whether or not it could be met."""

    key: SandboxKey
    pod: PodRef


class AddressAssigned(msgspec.Struct, frozen=True, kw_only=True):
    """A free address was given to a sandbox. The record's sequence number is the lease's id.

    Attributes:
        bindings: At least one; each with its address and its way out of the node.
        netns: Path of the sandbox's network namespace, as the runtime gave it.
        netns_inode: Its inode, 0 when it could not be read.
    """

    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    netns: str
    netns_inode: int = 0


class SandboxWired(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel has the pod's interface, addresses and routes.

    Attributes:
        alias: The IFALIAS of the host veth; it holds the container id, so that a veth of a
            re-created pod of the same name is told from this one.
        netns: Where it was wired, when that is not where the lease was opened for.
    """

    lease: LeaseId
    host_ifname: str
    host_ifindex: int
    alias: str
    host_mac: str = ""
    pod_mac: str = ""
    netns: str = ""
    netns_inode: int = 0


class AddFailed(msgspec.Struct, frozen=True, kw_only=True):
    """An ADD was answered with an error (or its caller went away).

    Attributes:
        lease: The lease that had been opened for it, or 0.
        undone: Whether what had been wired was taken back.
    """

    key: SandboxKey
    pod: PodRef
    reason: str
    detail: str = ""
    lease: LeaseId = LeaseId(0)
    undone: bool = True


class LeaseEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The address is no longer the sandbox's; its rest begins.

    Attributes:
        cause: The only five ways in which a lease ends.
        witnesses: For ``gc``: the two independent ones. For ``del``: ``runtime`` or ``spool``. For
            ``undo``: ``never_wired`` when no packet can ever have carried the address: then it needs no rest.
    """

    lease: LeaseId
    cause: EndCause
    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    witnesses: tuple[str, ...] = ()


class SandboxUnwired(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of the lease is left in the kernel: its address may be assigned after its rest."""

    lease: LeaseId


class LeaseQuarantined(msgspec.Struct, frozen=True, kw_only=True):
    """One witness says that the sandbox is gone, a second is missing. Nothing is freed."""

    lease: LeaseId
    witness: str
    detail: str = ""


class LeaseWitnessed(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox under suspicion was seen alive; the quarantine ends."""

    lease: LeaseId
    witness: str
