"""What is found on a node by looking: the kernel, the runtime's cache, checkpoint files, the API server.

Evidence is what a source says, not what is true. :mod:`vpccni.recovery` compares the sources and comes to a
*verdict*: which leases and holds are to be opened, which end, and what nothing explains.

* *source*: one place to look (``kernel``, ``runtime_cache``, ``checkpoint``, ``api_server``).
* *host veth*: the node's end of a pod's interface: ours by its alias, the original's by its name.
* *cached result*: what the container runtime keeps of an ADD (libcni).
* *row*: one allocation in the original's checkpoint file (``ipam.json``).
"""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.events.sandbox import SandboxLink, SandboxWired
from vpccni.model import MAIN_TABLE, Address, LeaseId, Mac, PodRef, SandboxKey

KERNEL: Final = "kernel"
RUNTIME_CACHE: Final = "runtime_cache"
CHECKPOINT: Final = "checkpoint"
API_SERVER: Final = "api_server"
GC_LIST: Final = "gc_list"

READ: Final = "read"
ABSENT: Final = "absent"


class HostVeth(msgspec.Struct, frozen=True, kw_only=True):
    """A veth on the node that is, or may be, the host end of a pod's interface.

    Attributes:
        alias: Its IFALIAS; ours begin with ``vpccni:``.
        netns, netns_inode: The namespace that holds the other end, when it was found: a path and its inode.
        has_peer: Whether the kernel says that the other end is in another namespace that still exists.
        pod_ifname, pod_mac: The other end, when its namespace was found.
        inside: Global addresses of the other end, as the namespace shows them.
        routed: Addresses whose host route on the node (main table or ours) leads to this veth.
    """

    ifindex: int
    ifname: str
    mac: Mac
    alias: str = ""
    netns: str = ""
    netns_inode: int = 0
    has_peer: bool = True
    pod_ifname: str = ""
    pod_mac: Mac = Mac("")
    inside: tuple[Address, ...] = ()
    routed: tuple[Address, ...] = ()


class KernelEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel shows of living sandboxes.

    Attributes:
        veths: Every host veth of ours (by alias) or of the original (by prefix and 11 hex digits).
        from_tables: For each address with a rule at priority 1536: the routing table that it names.
        ruled: Addresses with a rule of their own at priority 512.
        unreadable: Namespaces that could not be looked into, one sentence each.
    """

    veths: tuple[HostVeth, ...] = ()
    from_tables: dict[Address, int] = {}
    ruled: tuple[Address, ...] = ()
    unreadable: tuple[str, ...] = ()


class CachedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the runtime's cache, read by content and not by its name.

    Attributes:
        file: Its name, for messages.
        netns: From the entry (libcni 1.2 and later), else from the result's interfaces; may be empty.
        addresses: From the result's ``ips``, without prefix length, those of this interface.
        host_ifnames: The result's interfaces that are not in a sandbox.
        modified_ns: Modification time of the file, nanoseconds since the epoch.
        plugin_types: The ``type`` of each plugin in the cached configuration, in order.
    """

    file: str
    key: SandboxKey
    pod: PodRef = PodRef()
    netns: str = ""
    addresses: tuple[Address, ...] = ()
    host_ifnames: tuple[str, ...] = ()
    modified_ns: int = 0
    plugin_types: tuple[str, ...] = ()


class CacheEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime's whole cache.

    Attributes:
        status: ``read``, ``absent`` (no such directory) or ``unreadable: <why>``.
        entries: Every entry that could be read.
        unreadable: Entries that could not, one sentence each.
        modified_ns: Modification time of the directory; 0 when it is not there.
    """

    status: str = ABSENT
    entries: tuple[CachedResult, ...] = ()
    unreadable: tuple[str, ...] = ()
    modified_ns: int = 0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One allocation of a checkpoint file.

    Attributes:
        card: Network card of the file that it stands in: 0 for ``ipam.json``.
        allocated_ns: When, nanoseconds since the epoch; 0 when not told.
        interfaces_count: How many addresses the pod has (multi-NIC); 1 when not told.
    """

    key: SandboxKey
    address: Address
    pod: PodRef = PodRef()
    card: int = 0
    allocated_ns: int = 0
    interfaces_count: int = 1


class CheckpointFile(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint file: the original's, or our export.

    Attributes:
        status: ``read``, ``absent`` or ``unreadable: <why>``.
        unreadable: Rows that could not be read in a file that otherwise could, one sentence each, at most a few.
        digest: SHA-256 of its bytes, in hexadecimal; empty when the bytes could not be read.
        log_id, seq, boot_id: Our own mark, when we wrote it: of which log, up to which event, in which boot.
            Empty (0) in a file of the original.
    """

    path: str
    card: int = 0
    status: str = READ
    rows: tuple[Row, ...] = ()
    unreadable: tuple[str, ...] = ()
    modified_ns: int = 0
    digest: str = ""
    log_id: str = ""
    seq: int = 0
    boot_id: str = ""


class PodSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that the API server has bound to this node.

    Attributes:
        addresses: ``status.podIPs``.
        is_host_network: It uses the node's own network and has no address of the pool.
        has_branch_eni: It carries the annotation ``vpc.amazonaws.com/pod-eni``.
        is_finished: Its phase is ``Succeeded`` or ``Failed``: it keeps its addresses in ``status``, and each may
            be another pod's by now.
    """

    pod: PodRef
    addresses: tuple[Address, ...] = ()
    is_host_network: bool = False
    has_branch_eni: bool = False
    is_finished: bool = False


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one search of the node found.

    Attributes:
        kernel: ``None`` when the kernel could not be read: then nothing is decided.
        pods: ``None`` when the API server did not answer (in time), or is not known.
        newest_spool_ns: When the newest spooled DEL was written, wall time; 0 for none.
        sources: What was read, by name: ``read``, ``absent`` or ``unreadable: <why>``.
    """

    kernel: KernelEvidence | None = None
    cache: CacheEvidence = CacheEvidence()
    checkpoints: tuple[CheckpointFile, ...] = ()
    pods: tuple[PodSeen, ...] | None = None
    newest_spool_ns: int = 0
    sources: dict[str, str] = {}

    def has_rows(self) -> bool:
        """Whether a checkpoint file lists anybody."""
        return any(file.rows for file in self.checkpoints)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody uses an address.

    Attributes:
        key: ``None`` for a hold.
        veth: The host end, when the kernel shows one; its alias is the one that it has, or is to get.
        origin: ``recovered`` or ``imported``.
        since_ns: When the sandbox got the address, wall time; 0 when nothing tells.
        detail: For a hold: why it is one.
    """

    key: SandboxKey | None
    pod: PodRef
    address: Address
    table: int = MAIN_TABLE
    netns: str = ""
    netns_inode: int = 0
    ifname: str = "eth0"
    veth: SandboxLink | None = None
    origin: str = "recovered"
    evidence: tuple[str, ...] = ()
    since_ns: int = 0
    detail: str = ""


class Ending(msgspec.Struct, frozen=True):
    """A lease of the log that does not hold any more, and who says so."""

    lease: LeaseId
    cause: str
    sources: tuple[str, ...]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a search of the node comes to.

    Attributes:
        claims: To be opened: the log does not have them.
        endings: Leases of the log whose address another sandbox has.
        unlisted: Leases of the log that a newer checkpoint of the original no longer lists: one source.
        unexplained: Host veths whose address nothing shows.
        wired: Interfaces of leases that were opened by what files say alone, and that the kernel shows now.
        last_use_ns: The latest trace of any use of an address, wall time; ``None`` for no trace at all.
        imported: The checkpoint files that were read.
        notes: What was left out and why.
    """

    claims: tuple[Claim, ...] = ()
    endings: tuple[Ending, ...] = ()
    unlisted: frozenset[LeaseId] = frozenset()
    unexplained: tuple[HostVeth, ...] = ()
    wired: tuple[SandboxWired, ...] = ()
    last_use_ns: int | None = None
    imported: tuple[CheckpointFile, ...] = ()
    sources: dict[str, str] = {}
    notes: tuple[str, ...] = ()
