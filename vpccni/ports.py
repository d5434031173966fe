"""The outside, as the loops see it: one small protocol for each outside thing.

Real adapters are in ``vpccni.adapters``; ``MemoryLog`` and the fakes pass the same contract suites.
Every foreign exception ends in an adapter: what leaves one is a :class:`vpccni.errors.VpccniError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from vpccni.datapath.objects import Applied, Difference, LinkChange, Observed, PathChange
from vpccni.events.codec import Record
from vpccni.evidence import CacheEvidence, CheckpointFile, KernelEvidence, PodSeen
from vpccni.model import (
    Address,
    Cidr,
    EniFacts,
    EniId,
    InstanceFacts,
    InstanceId,
    InstanceLimits,
    Mac,
    Seq,
    Stamp,
    SubnetId,
)


class Clock(Protocol):
    """Both clocks and the boot id."""

    def now(self) -> Stamp:
        """The stamp of this instant."""


class LogStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a log gives at its opening.

    Attributes:
        snapshot: The records of the newest good snapshot; folding them rebuilds its state. Their
            sequence numbers have gaps. Empty when there is no snapshot.
        tail: Every record after the snapshot, without gaps.
        head: The sequence number of the last record; 0 for an empty log.
        is_lost: A log was here before, and this one is new.
        must_not_change: Kinds that a newer version wrote and that must be understood; when not empty
            the agent changes nothing (ADD is refused, DEL is spooled).
    """

    snapshot: tuple[Record, ...]
    tail: tuple[Record, ...]
    head: Seq
    must_not_change: tuple[str, ...] = ()
    is_lost: bool = False


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What it took to make a log whole again at its path.

    Attributes:
        start: As ``EventLog.open`` gives it.
        missing: Names of the files that were gone or replaced; empty when they were back already.
        aside: Names under which the files now stand that somebody had put there instead.
        events: How many events the log holds.
    """

    start: LogStart
    missing: tuple[str, ...]
    aside: tuple[str, ...]
    events: int


class EventLog(Protocol):
    """The one append-only file. One writer; readers see only what is durable."""

    async def open(self) -> LogStart:
        """Open or create the log, verify its chain from the last snapshot on, and read it.

        Raises:
            PermanentError: ``log_damaged`` (a quarantine copy was made; nothing else was changed),
                ``log_newer`` (a schema from the future), ``log_volatile``, ``log_in_use``.
        """

    async def append(self, records: Sequence[Record]) -> None:
        """Append all records in one transaction and sync it to the disk; all or nothing.

        The records continue the log without a gap.

        Raises:
            TransientError: ``log_disk_full``. Nothing was appended. The reserve was let go, so that a
                few small batches (DELs) will fit.
            OutcomeUnknownError: ``log_write_failed``. The batch may or may not be in the log: the log
                takes nothing more until ``reopen``. A failed sync is never tried again.
            OutcomeUnknownError: ``log_removed``. The batch was written into files that are no longer at the
                log's path: the log takes nothing more until ``restore``, after which the batch is in it.
        """

    async def reopen(self) -> LogStart:
        """Close without writing and open again, after an unknown outcome.

        Raises:
            TransientError: ``log_removed``: the files are not at the log's path. Nothing was closed: only
                ``restore`` can save what they hold.
            PermanentError: As ``open``. The log is closed.
        """

    async def missing(self) -> tuple[str, ...]:
        """Names of the log's files that are not at their path any more, or are others there. Cheap."""

    async def restore(self) -> Restored:
        """Make the log whole again at its path, and open it there. To be called when files are missing.

        Everything that the open files hold is copied into new ones, synced, and put in place in one step; what
        somebody else put there is moved aside. Without a missing file it is a ``reopen``.

        Raises:
            TransientError: ``log_removed``: it cannot be done now (no space, a read-only disk). The open
                files still hold everything; try again, and append nothing meanwhile.
            PermanentError: ``log_in_use``: another agent has taken the path. Or as ``reopen``.
        """

    async def read(self, after: Seq, limit: int) -> list[Record]:
        """Up to ``limit`` durable records that follow ``after``, in order."""

    async def write_snapshot(self, seq: Seq, records: Sequence[Record]) -> None:
        """Store a snapshot that stands for everything up to and including ``seq`` (durable).

        Raises:
            TransientError: ``log_disk_full``; nothing was stored.
        """

    def restore_reserve(self) -> bool:
        """Whether the space kept for DELs on a full disk is there, after trying to take it back."""

    async def checkpoint(self) -> None:
        """Bring the write-ahead log into the main file. Only when idle: it costs several syncs."""

    async def close(self) -> None:
        """Release the file. Idempotent."""


class Subnet(msgspec.Struct, frozen=True):
    """What EC2 says of a subnet; ``free`` is how many addresses it has left, -1 when not told."""

    cidr: Cidr
    az: str
    free: int


class Ec2(Protocol):
    """The EC2 calls that the agent makes.

    Every method may raise:
        TransientError: throttled, 5xx or not reachable *before the request was sent*: nothing changed.
        PermanentError: EC2 refused; ``code`` is its error code, ``reason`` ours
            (``subnet_exhausted``, ``ec2_unauthorized``, ``instance_full``, ``ec2_refused``).
        OutcomeUnknownError: the request left and no usable reply came.
    """

    async def describe_limits(self, instance_type: str) -> InstanceLimits:
        """``DescribeInstanceTypes`` for one type."""

    async def describe_subnet(self, subnet: SubnetId) -> Subnet:
        """``DescribeSubnets`` for one, always asked anew: its free addresses change."""

    async def describe_attached(self, instance: InstanceId) -> tuple[EniFacts, ...]:
        """``DescribeNetworkInterfaces`` by instance: all ENIs of the machine, by id."""

    async def describe_eni(self, eni: EniId) -> EniFacts | None:
        """``DescribeNetworkInterfaces`` of one; ``None`` when EC2 does not know it."""

    async def describe_enis(self, enis: Sequence[EniId]) -> tuple[EniFacts, ...]:
        """``DescribeNetworkInterfaces`` of several, one call; those that EC2 does not know are left out."""

    async def describe_left_behind(self, instance: InstanceId) -> tuple[EniFacts, ...]:
        """Unattached (``available``) ENIs whose tag ``node.k8s.amazonaws.com/instance_id`` is ours."""

    async def create_eni(
        self,
        *,
        subnet: SubnetId,
        groups: tuple[str, ...],
        secondary_count: int,
        description: str,
        tags: dict[str, str],
        token: str,
    ) -> EniFacts:
        """``CreateNetworkInterface``; with the same token and arguments EC2 answers with the same ENI."""

    async def attach_eni(self, eni: EniId, instance: InstanceId, *, device: int, card: int) -> str:
        """``AttachNetworkInterface``; gives the attachment id."""

    async def set_delete_on_termination(self, eni: EniId, attachment: str) -> None:
        """``ModifyNetworkInterfaceAttribute``: the ENI dies with the instance."""

    async def assign_addresses(self, eni: EniId, count: int) -> tuple[Cidr, ...]:
        """``AssignPrivateIpAddresses``: the new /32s only, sorted; EC2 may give fewer than asked."""

    async def unassign_addresses(self, eni: EniId, cidrs: tuple[Cidr, ...]) -> None:
        """``UnassignPrivateIpAddresses`` for /32s."""

    async def detach_eni(self, attachment: str) -> None:
        """``DetachNetworkInterface``, without force. An attachment that is gone counts as done."""

    async def delete_eni(self, eni: EniId) -> None:
        """``DeleteNetworkInterface``. An ENI that is gone counts as done."""

    async def tag_eni(self, eni: EniId, tags: dict[str, str]) -> None:
        """``CreateTags``."""

    async def close(self) -> None:
        """Release connections. Idempotent."""


class Imds(Protocol):
    """The instance metadata service, version 2 (session tokens)."""

    async def instance(self) -> InstanceFacts:
        """Who this machine is. Raises ``TransientError`` (``imds_unreachable``)."""

    async def vpc_cidrs(self, mac: Mac) -> tuple[Cidr, ...]:
        """The CIDRs of the VPC of an attached ENI, sorted; empty when IMDS tells none. Raises as ``instance``."""

    async def attached_macs(self) -> tuple[str, ...]:
        """The MACs that IMDS lists: one request, the cheap reading. May lag. Raises as ``instance``."""

    async def addresses(self, mac: Mac) -> tuple[Address, ...]:
        """The IPv4 addresses that IMDS lists for an attached ENI, its own included. Raises as ``instance``."""

    async def prefixes(self, mac: Mac) -> tuple[Cidr, ...]:
        """The prefixes, IPv4 and IPv6, that IMDS lists for an attached ENI. Raises as ``instance``."""

    async def subnet_cidr(self, mac: Mac) -> Cidr:
        """The CIDR of the subnet of an attached ENI. Raises as ``instance``."""

    async def close(self) -> None:
        """Release connections. Idempotent."""


class KubernetesNode(Protocol):
    """What we ask the API server about our own node."""

    async def max_pods(self) -> int | None:
        """``status.capacity.pods`` of our node; ``None`` when the node does not say.

        Raises:
            TransientError: not reachable, or not (yet) allowed.
        """

    async def pod_uids(self) -> frozenset[str]:
        """UIDs of all pods bound to our node, from a fresh (not cached) list. Raises as ``max_pods``.

        A static pod is at the API server by its mirror pod, which has a UID of its own. The UID by which kubelet
        and the runtime know the static pod is the mirror pod's annotation ``kubernetes.io/config.mirror``. Both
        are returned.
        """

    async def pods(self) -> tuple[PodSeen, ...]:
        """All pods bound to our node with their addresses, from a fresh list. Raises as ``max_pods``."""

    async def policy_endpoints(self) -> tuple[str, ...]:
        """``namespace/name`` of PolicyEndpoint objects (``networking.k8s.aws/v1alpha1``), some at least.

        Empty when there are none or when the cluster does not know the kind. Raises as ``max_pods``.
        """

    async def close(self) -> None:
        """Release connections. Idempotent."""


class RuntimeCache(Protocol):
    """The container runtime's cached CNI results: its own word on which sandboxes it still keeps."""

    async def is_known(self, network: str, container_id: str, ifname: str) -> bool | None:
        """Whether the runtime has a cached result for the key; ``None`` when the cache cannot tell.

        It cannot say no of a key that no runtime ever used (``checkpoint.is_made_up``), nor before this process
        has seen an entry of the same network in it: then it would not have said yes either.
        """

    async def read(self) -> CacheEvidence:
        """Every entry of the cache, by content. Never raises: what cannot be read is told in the answer."""


class Checkpoints(Protocol):
    """The original's checkpoint files: ``ipam.json``, and ``ipam-nic-<card>.json`` beside it."""

    async def read(self) -> tuple[CheckpointFile, ...]:
        """Every checkpoint file, that of card 0 first, also when it is absent. Never raises: see ``status``."""

    async def stamp(self) -> tuple[int, ...]:
        """Inode, size and modification time of ``ipam.json``; empty when it is absent. Cheap; never raises."""

    async def write(self, content: bytes) -> str:
        """Replace ``ipam.json`` as a whole, synced. Returns the SHA-256 of the content, in hexadecimal.

        Raises:
            TransientError: ``export_failed``; the old file is as it was.
            OutcomeUnknownError: ``export_failed``; the new file is in place and may not outlive a power failure.
        """


class Predecessor(Protocol):
    """amazon-vpc-cni-k8s on this node, as far as it shows without being asked for anything."""

    async def living(self) -> str:
        """How it shows that its daemon lives (its socket answers); empty when it does not. Never raises.

        Quick: it never waits for the daemon. What cannot be told counts as living.
        """

    async def enforced_policies(self) -> tuple[str, ...]:
        """Network policies that are really enforced: programs pinned in the BPF filesystem; some at least.

        Raises:
            TransientError: they are there and cannot be listed.
        """


class SpooledDel(msgspec.Struct, frozen=True, kw_only=True):
    """A DEL that the CNI executable wrote down while the agent was away.

    Attributes:
        name: The entry's name in the spool, by which it is removed.
        boot_id, boottime_ns: When it was written.
        body: The request as JSON, as ``POST /v1/cni`` takes it.
    """

    name: str
    boot_id: str
    boottime_ns: int
    body: bytes


class Spool(Protocol):
    """The directory of DELs that were written while the agent was away."""

    async def entries(self) -> list[SpooledDel]:
        """Whole entries, oldest first. An unreadable one is set aside (suffix ``.bad``) and left out."""

    async def remove(self, name: str) -> None:
        """Forget an entry after its DEL is durable in the log. Absent is fine."""

    async def write(self, body: bytes, stamp: Stamp) -> None:
        """Write one durably, as the executable does. Raises ``TransientError`` when it cannot."""

    async def wait_changed(self) -> None:
        """Wait until an entry may have been added since the last call; costs nothing meanwhile."""

    async def close(self) -> None:
        """End the watch. Idempotent."""


class Kernel(Protocol):
    """The node's network stack, at the grain of a plan.

    Raises from ``observe`` and ``apply``:
        PermanentError: ``kernel_refused``, ``netns_gone``, ``interface_exists``; everything that the
            failed sandbox's wiring had done before is undone, what other parts of the difference did stays, and
            nothing of amazon-vpc-cni-k8s (``foreign_rules``, ``foreign_routes``, ``firewall``) was removed.
    """

    async def observe(self) -> Observed:
        """Read links, addresses, routes and rules that concern us. No dump happens anywhere else."""

    async def survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        """Look for living sandboxes: host veths, their routes, rules and the addresses inside. Changes nothing.

        Args:
            veth_prefix: A veth whose name is this and 11 hexadecimal digits may be the original's.
            netns_paths: Namespaces that other sources name, besides those that the adapter finds itself.

        Raises:
            PermanentError: ``kernel_refused``: nothing can be told.
        """

    async def apply(self, difference: Difference) -> Applied:
        """Bring the kernel nearer to what is desired. Idempotent; additions before deletions."""

    def link_changes(self) -> AsyncIterator[LinkChange]:
        """Links that appear, change or vanish, as the kernel tells."""

    def path_changes(self) -> AsyncIterator[PathChange]:
        """Policy rules, and host routes of main and of the pod table, that somebody else makes or takes away.

        What this port does itself may be told or left out. A change without rule and route tells that some were
        lost: anything may have happened.
        """

    async def close(self) -> None:
        """Release sockets and threads. Idempotent."""
