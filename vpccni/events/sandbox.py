"""Leases: from the runtime's ADD, or from what was found on the node, to the end of the address's use."""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import Address, Binding, LeaseId, PodRef, SandboxKey, Stamp

END_CAUSES: Final = (
    "del",
    "add_failed",
    "sandbox_gone",
    "reboot",
    "machine_changed",
    "superseded",
)
"""Why a lease ends. A log of tomorrow may name others: an end is an end, whatever its cause.

``del``: the runtime's DEL. ``add_failed``: the undo of an ADD that was never answered with success.
``sandbox_gone``: two independent sources agree. ``reboot``, ``machine_changed``: nothing of before is alive.
``superseded``: another sandbox uses the address, and a second source agrees.
"""

ORIGINS: Final = ("add", "recovered", "imported")
"""Where a lease came from: a CNI ADD, what lives on the node, or the original's checkpoint file."""


class AddRequested(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The runtime asked for an address: demand, whether or not it could be met.

    Attributes:
        demand: What was asked for: ``pool`` (an address of the warm pool); later also ``branch``, …
        family: 4 or 6.
    """

    key: SandboxKey
    pod: PodRef
    demand: str = "pool"
    family: int = 4


class AddressAssigned(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sandbox has an address. The record's sequence number is the lease's id.

    Attributes:
        bindings: At least one; each with its address and its way out of the node. The ``eni`` of a recovered
            one may be empty: it becomes known when EC2 lists the address.
        netns: Path of the sandbox's network namespace, as the runtime gave it.
        netns_inode: Its inode, 0 when it could not be read.
        origin: One of :data:`ORIGINS`.
        evidence: For a lease that did not come from an ADD: the sources that show it.
        since: For such a lease: when the sandbox got the address, as the sources tell; ``None`` when they do
            not. A DEL that is older does not end it.
    """

    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    netns: str
    netns_inode: int = 0
    origin: str = "add"
    evidence: tuple[str, ...] = ()
    since: Stamp | None = None


class AddressHeld(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something on this node uses an address, and no source tells the key of its sandbox: a *hold*.

    A hold is a lease without a key. Its address is not assigned and not released. It ends by a DEL that names
    its address and its namespace, by two sources, or by a reboot; or a call names it, and it becomes an
    ordinary lease (``LeaseIdentified``). The record's sequence number is its id.

    Attributes:
        ifname: The interface inside the namespace; empty when not known.
        pod: The pod, as far as a source names it.
        evidence, since: As for ``AddressAssigned``.
        detail: Why it is a hold, one sentence.
    """

    bindings: tuple[Binding, ...]
    netns: str = ""
    netns_inode: int = 0
    ifname: str = ""
    pod: PodRef = PodRef()
    evidence: tuple[str, ...] = ()
    since: Stamp | None = None
    detail: str = ""


class LeaseLocated(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 listed the address of a recovered lease: its ENI is known from here on.

    Or the log turned out to be another machine's, whose ENI it cannot be: then it is not known any more.

    Attributes:
        bindings: All of the lease's, in the same order, with their ENIs as far as they are known.
    """

    lease: LeaseId
    bindings: tuple[Binding, ...]


class LeaseIdentified(msgspec.Struct, frozen=True, kw_only=True):
    """A call or a source told which sandbox a hold belongs to; from here on it is an ordinary lease.

    Or it told the whole key of a lease of which only the container id was known.

    Attributes:
        source: Who told it (``add``, ``check``, ``runtime_cache``, …).
    """

    lease: LeaseId
    key: SandboxKey
    pod: PodRef
    source: str


class SandboxLink(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One interface of a sandbox.

    Attributes:
        ifname: Inside the pod.
        host_ifname, host_ifindex: The host end; 0 when it is not known.
        alias: The IFALIAS of the host end; it holds the container id, so that a veth of a re-created pod of
            the same name is told from this one.
    """

    ifname: str
    host_ifname: str
    host_ifindex: int
    alias: str
    host_mac: str = ""
    pod_mac: str = ""


class SandboxWired(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The kernel has the pod's interfaces, addresses and routes.

    Attributes:
        links: One for each interface, that of the lease's key first.
        netns: Where it was wired, when that is not where the lease was opened for.
    """

    lease: LeaseId
    links: tuple[SandboxLink, ...]
    netns: str = ""
    netns_inode: int = 0

    @property
    def host_ifname(self) -> str:
        """The host end of the first interface."""
        return self.links[0].host_ifname

    @property
    def host_ifindex(self) -> int:
        """Its index; 0 when it is not known."""
        return self.links[0].host_ifindex

    @property
    def alias(self) -> str:
        """Its IFALIAS."""
        return self.links[0].alias


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


class LeaseEnded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The address is no longer the sandbox's; its cooldown begins.

    Attributes:
        cause: One of :data:`END_CAUSES`, or one that a later release added.
        key: Empty for a hold.
        sources: Who said so. For ``sandbox_gone`` and ``superseded``: two independent ones. For ``del``:
            ``runtime`` or ``spool``.
        was_wired: False when no packet can ever have carried the address: then it needs no cooldown.
    """

    lease: LeaseId
    cause: str
    key: SandboxKey
    pod: PodRef
    bindings: tuple[Binding, ...]
    sources: tuple[str, ...] = ()
    was_wired: bool = True


class SandboxUnwired(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of the lease is left in the kernel: its address may be assigned after its cooldown."""

    lease: LeaseId


class LeaseSuspected(msgspec.Struct, frozen=True, kw_only=True):
    """One source says that the sandbox is gone, a second is missing. Nothing is freed."""

    lease: LeaseId
    source: str
    detail: str = ""


class LeaseCleared(msgspec.Struct, frozen=True, kw_only=True):
    """A suspected sandbox was seen alive; the suspicion ends."""

    lease: LeaseId
    source: str


class AddressUnexplained(msgspec.Struct, frozen=True, kw_only=True):
    """A host interface with our prefix whose address nothing tells: no address is assigned until it is known.

    Attributes:
        ifname, ifindex: The interface.
        detail: What was looked at, one sentence.
    """

    ifname: str
    ifindex: int
    detail: str = ""
    addresses: tuple[Address, ...] = ()
