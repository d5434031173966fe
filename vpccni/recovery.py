"""Who lives on this node? From what the sources say to leases and holds.

Theory of operation. The log may be new, lost, old, or another machine's, while pods live. Then the node is
searched (:mod:`vpccni.evidence`), and each address that somebody may use is opened in the log before any
address is assigned:

=====================================================  =====================================================
what is found                                          what it becomes
=====================================================  =====================================================
a host veth whose address a route or its namespace     a lease, when the cache or a row tells its sandbox's
shows                                                  key (ours: its alias); else a hold
a cached result or a row of this boot, without veth    a lease that is not wired; two sources end it
a cached result or a row from before this boot         nothing: no sandbox of then is alive. Where an alias of
                                                       ours names its sandbox, only the clock was set
a host veth whose address nothing shows                unexplained: no address is assigned meanwhile
=====================================================  =====================================================

The API server only names what the others show: after a reboot it still lists yesterday's addresses. Where two
sources contradict each other, the kernel's present user has the address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from vpccni.checkpoint import HOLD_NETWORK, is_made_up
from vpccni.datapath.names import (
    alias_of,
    alias_of_hold,
    host_mac_of,
    host_veth_name,
    is_our_alias,
    sandbox_of_alias,
)
from vpccni.events.sandbox import SandboxLink, SandboxWired
from vpccni.evidence import (
    API_SERVER,
    CHECKPOINT,
    KERNEL,
    RUNTIME_CACHE,
    CachedResult,
    CheckpointFile,
    Claim,
    Ending,
    Evidence,
    HostVeth,
    PodSeen,
    Row,
    Verdict,
)
from vpccni.model import (
    MAIN_TABLE,
    Address,
    LeaseId,
    PodRef,
    SandboxKey,
    Stamp,
)
from vpccni.planner.decide_leases import same_netns
from vpccni.projections.leases import Lease
from vpccni.projections.state import State

OUR_NETWORK: Final = "aws-cni"
"""The ``name`` of our conflist and the original's: what an alias, which holds no network, stands for."""
OUR_PLUGIN: Final = "aws-cni"
_BOOT_SLACK_NS: Final = 2 * 10**9
"""Between the wall clock at boot and its first correction: evidence that is this little older is of this boot."""
_NOTES_MAX: Final = 20
_DIGITS: Final = 11
"""Hexadecimal digits at the end of a host veth's name (``host_veth_name``)."""


def judge(
    state: State, evidence: Evidence, now: Stamp, veth_prefix: str, *, known_head: int | None = None
) -> Verdict:
    """Compare all sources with the log, and say what is to be opened, ended or explained.

    Args:
        state: What the log says; empty for a new log.
        evidence: What one search found. Its ``kernel`` must be there.
        now: The instant of the search; older evidence than this boot proves no life.
        veth_prefix: How the names of the original's host veths begin.
        known_head: The newest event that the log had when this agent opened it, where the agent's own first events
            must not count: an export up to a later one shows that the log is an old copy. ``None``: all count.
    """
    return _Judge(
        state, evidence, now, veth_prefix, state.head if known_head is None else known_head
    ).verdict()


_ANY: Final = -1
"""An index that is not known."""


class KnownVeths:
    """The host veths that the log explains: those of open leases and those of leases that it has ended.

    A veth without an alias is known by its index, or, while it is being wired, by its MAC.
    """

    def __init__(self, state: State) -> None:
        """Index the state as it is now; what changes later is not seen."""
        rests = {rest.lease: rest for rest in (*state.rests.values(), *state.standing.values())}
        # With a boot the indexes begin anew: what has an earlier one's index is somebody else.
        ended = [rest for rest in rests.values() if rest.records["assigned"].stamp.boot_id == state.boot_id]
        self._open = _Known(((lease.key, lease.wired) for lease in state.leases.values()), is_open=True)
        self._ended = _Known(((rest.key, rest.wired) for rest in ended), is_open=False)

    def explains(self, veth: HostVeth) -> bool:
        """Whether a lease, open or ended, is the reason why the veth is there."""
        return self._open.has(veth) or self._ended.has(veth)

    def has_ended(self, veth: HostVeth) -> bool:
        """Whether it is what is left of a lease that the log has ended."""
        return not self._open.has(veth) and self._ended.has(veth)


class _Known:
    """Veths by alias, by index and by MAC.

    What is left of an ended lease has its index, too: a sandbox of the same key that came after an old log has not.
    """

    def __init__(self, holders: Iterable[tuple[SandboxKey, SandboxWired | None]], *, is_open: bool) -> None:
        self._aliases: dict[str, set[int]] = {}
        self._indexes: set[int] = set()
        self._keys: list[SandboxKey] = []
        self._macs: set[str] | None = None
        for key, wired in holders:
            self._keys.append(key)
            alias = wired.alias if wired is not None else alias_of(key)
            index = _ANY if is_open or wired is None else wired.host_ifindex
            self._aliases.setdefault(alias, set()).add(index)
            if wired is not None:
                self._indexes.add(wired.host_ifindex)

    def has(self, veth: HostVeth) -> bool:
        if veth.alias:
            return not {_ANY, veth.ifindex}.isdisjoint(self._aliases.get(veth.alias, ()))
        if veth.ifindex in self._indexes:
            return True
        if (
            self._macs is None
        ):  # A digest each: made only when a veth without alias is not known by its index.
            self._macs = {host_mac_of(key) for key in self._keys}
        return veth.mac in self._macs


class _Judge:
    """One comparison. Claims are collected by address: the first that is entered has it."""

    def __init__(
        self, state: State, evidence: Evidence, now: Stamp, veth_prefix: str, known_head: int
    ) -> None:
        self._state = state
        self._known_head = known_head
        self._evidence = evidence
        self._prefix = veth_prefix
        self._boot_ns = now.wall_ns - now.boottime_ns - _BOOT_SLACK_NS
        self._boot_id = now.boot_id
        self._known = KnownVeths(state)
        self._notes: list[str] = []
        self._claims: dict[Address, Claim] = {}
        self._in_use: dict[Address, HostVeth] = {}
        self._keys: set[SandboxKey] = set()
        self._endings: dict[LeaseId, Ending] = {}
        self._seen: set[LeaseId] = set()
        self._unexplained: list[HostVeth] = []
        self._wired: dict[LeaseId, SandboxWired] = {}
        self._awaited = {_digits_of(lease.pod) for lease in state.leases.values() if lease.is_unseen} - {""}
        kernel = evidence.kernel
        self._veths = kernel.veths if kernel is not None else ()
        self._tables = kernel.from_tables if kernel is not None else {}
        self._aliases = {veth.alias for veth in self._veths if is_our_alias(veth.alias)}
        self._cached = [one for one in evidence.cache.entries if self._is_ours(one)]
        self._rows = [row for file in evidence.checkpoints for row in self._rows_of(file)]
        self._cached_by: dict[str, list[CachedResult]] = {}
        for cached in self._cached:
            for name in {*cached.host_ifnames, alias_of(cached.key)}:
                self._cached_by.setdefault(name, []).append(cached)
            if not cached.host_ifnames and cached.netns:
                self._cached_by.setdefault(cached.netns, []).append(cached)
        self._rows_by: dict[str, list[Row]] = {}
        for row in self._rows:
            self._rows_by.setdefault(row.address, []).append(row)
            self._rows_by.setdefault(_digits_of(row.pod), []).append(row)
        # A finished pod may still list an address that another one has by now.
        living = [pod for pod in evidence.pods or () if not pod.is_finished]
        self._pods = {address: pod for pod in living for address in pod.addresses}

    def verdict(self) -> Verdict:
        # A route is the node's own word: whoever it leads to comes before those who only say that they have it.
        for veth in sorted(self._veths, key=lambda veth: (not veth.routed, veth.ifindex)):
            self._judge_veth(veth)
        for cached in self._cached:
            self._judge_cached(cached)
        for row in self._rows:
            self._judge_row(row)
        notes = self._notes
        if len(notes) > _NOTES_MAX:
            notes = [*notes[:_NOTES_MAX], f"and {len(notes) - _NOTES_MAX} more"]
        return Verdict(
            claims=tuple(self._claims[address] for address in sorted(self._claims)),
            endings=tuple(self._endings[lease] for lease in sorted(self._endings)),
            unlisted=self._unlisted(),
            unexplained=tuple(self._unexplained),
            wired=tuple(self._wired[lease] for lease in sorted(self._wired)),
            last_use_ns=self._last_use_ns(),
            imported=tuple(file for file in self._evidence.checkpoints if file.status == "read"),
            sources=self._evidence.sources,
            notes=tuple(notes),
        )

    # -- which evidence counts --------------------------------------------------------------------

    def _is_ours(self, cached: CachedResult) -> bool:
        """Whether a cached result is of this boot and of our plugin's network."""
        is_our_network = (
            OUR_PLUGIN in cached.plugin_types if cached.plugin_types else cached.key.network == OUR_NETWORK
        )
        if not is_our_network or not cached.addresses:
            return False
        if self._is_of_before(cached.key, cached.modified_ns):
            self._notes.append(f"{cached.file}: written before this boot")
            return False
        return True

    def _is_of_before(self, key: SandboxKey, written_ns: int) -> bool:
        """Whether evidence is from before this boot.

        A wall clock that is set forward makes all evidence look so. The alias of an interface proves the contrary.
        """
        return 0 < written_ns < self._boot_ns and alias_of(key) not in self._aliases

    def _has_seen_end(self, key: SandboxKey, address: Address, told_ns: int) -> bool:
        """Whether the log ended this lease after the time from which a file speaks: the file is behind."""
        rest = self._state.rests.get(address)
        return rest is not None and rest.key == key and told_ns <= rest.ended.wall_ns

    def _rows_of(self, file: CheckpointFile) -> Iterator[Row]:
        if file.log_id and file.log_id == self._state.log_id and file.seq <= self._known_head:
            return  # Our own export: the log knows all that is in it, and more.
        if file.boot_id and file.boot_id != self._boot_id:
            self._notes.append(f"{file.path}: our export of another boot")
            return
        for row in file.rows:
            written_ns = row.allocated_ns or file.modified_ns
            if self._is_of_before(row.key, written_ns):
                self._notes.append(f"{row.address} in {file.path}: allocated before this boot")
            elif ":" in row.address:
                self._notes.append(f"{row.address} in {file.path}: IPv6 is not served yet")
            else:
                yield row

    # -- the kernel -------------------------------------------------------------------------------

    def _judge_veth(self, veth: HostVeth) -> None:
        if self._known.has_ended(veth):
            return  # Its DEL has come; the veth dies with its namespace.
        addresses = [one for one in (veth.routed or veth.inside) if _is_of_a_pod(one)]
        if not veth.routed and len(addresses) > 1:
            told = {one for cached in self._named_by(veth) for one in cached.addresses}
            told |= {
                row.address
                for one in addresses
                for row in self._rows_by.get(one, ())
                if _is_of_pod(row, veth)
            }
            addresses = [one for one in addresses if one in told] or addresses
        if not addresses:
            if not self._known.explains(veth) and not self._is_told_by_name(veth):
                self._unexplained.append(veth)
            return
        for count, address in enumerate(addresses):
            self._judge_use(veth, address, is_first=count == 0)

    def _judge_use(self, veth: HostVeth, address: Address, *, is_first: bool) -> None:
        """The kernel shows that this veth's sandbox uses this address."""
        if address in self._in_use:
            self._notes.append(f"{address}: {self._in_use[address].ifname} and {veth.ifname} use it at once")
            return
        self._in_use[address] = veth
        known = self._lease_at(address)
        claim = self._claim_of(veth, address, is_first=is_first)
        if known is not None:
            if self._is_same(known, veth, claim.key):
                self._note_wired(known, claim)
                self._seen.add(known.id)
                return
            # The kernel's present user has it. A second source that names that user ends the other; without
            # one the address is held without owner.
            sources = (KERNEL, claim.evidence[1]) if claim.key is not None else (KERNEL,)
            self._endings[known.id] = Ending(known.id, "superseded", sources)
            self._notes.append(f"{address}: lease {known.id} is not the sandbox that uses it")
        self._enter(claim)

    def _claim_of(self, veth: HostVeth, address: Address, *, is_first: bool) -> Claim:
        cached, row = self._cached_of(veth, address), self._row_of(veth, address)
        key, pod, since_ns, evidence = None, PodRef(), 0, [KERNEL]
        if row is not None:
            key = _real(row.key)
            pod, since_ns = row.pod, row.allocated_ns
            evidence.append(CHECKPOINT)
        if cached is not None:
            key, pod = _real(cached.key) or key, _fuller(cached.pod, pod)
            since_ns = since_ns or cached.modified_ns
            evidence.insert(1, RUNTIME_CACHE)
        if is_our_alias(veth.alias):
            told = sandbox_of_alias(veth.alias)
            if told is not None and (key is None or is_made_up(key)):  # or its row has lost a part of it
                key = SandboxKey(OUR_NETWORK, *told)
                evidence.append("alias")
        if key is not None and len(evidence) > 1 and evidence[1] != "alias":
            self._end_other_lease(key, address, evidence[1])
        if key is not None and (key in self._keys or self._has_other_lease(key, address)):
            self._notes.append(
                f"{address} of {veth.ifname}: its sandbox {key.container_id} has another address"
            )
            key = None
        pod = self._named(pod, address, evidence)
        ifname = key.ifname if key is not None else veth.pod_ifname
        alias = veth.alias or (alias_of(key) if key is not None else alias_of_hold(address, ifname))
        link = SandboxLink(
            ifname=ifname,
            host_ifname=veth.ifname,
            host_ifindex=veth.ifindex,
            alias=alias,
            host_mac=veth.mac,
            pod_mac=veth.pod_mac,
        )
        return Claim(
            key=key,
            pod=pod,
            address=address,
            table=self._tables.get(address, MAIN_TABLE),
            netns=veth.netns or (cached.netns if cached is not None else ""),
            netns_inode=veth.netns_inode,
            ifname=ifname,
            veth=link if is_first else None,
            evidence=tuple(evidence),
            since_ns=since_ns,
            detail="" if key is not None else f"{veth.ifname} uses it, and no source tells its sandbox's key",
        )

    def _note_wired(self, lease: Lease, claim: Claim) -> None:
        """The interface of a lease that was opened by a file, before its plugin had made one."""
        link = claim.veth
        if link is None or not lease.is_unseen:
            return
        if claim.key is None and not lease.is_hold:
            link = msgspec.structs.replace(link, ifname=lease.key.ifname, alias=alias_of(lease.key))
        self._wired[lease.id] = SandboxWired(
            lease=lease.id, links=(link,), netns=claim.netns, netns_inode=claim.netns_inode
        )

    def _named_by(self, veth: HostVeth) -> list[CachedResult]:
        """Cached results that name this veth, those of its namespace and the newest last."""
        names = [veth.ifname, veth.netns] + ([veth.alias] if is_our_alias(veth.alias) else [])
        found = {one.file: one for name in names if name for one in self._cached_by.get(name, ())}.values()
        return sorted(found, key=lambda one: (bool(veth.netns) and one.netns == veth.netns, one.modified_ns))

    def _cached_of(self, veth: HostVeth, address: Address) -> CachedResult | None:
        found = [one for one in self._named_by(veth) if address in one.addresses]
        if is_our_alias(veth.alias):  # A sandbox before this one may have had the same name and address.
            found = [one for one in found if veth.alias == alias_of(one.key)]
        return found[-1] if found else None

    def _row_of(self, veth: HostVeth, address: Address) -> Row | None:
        found = [row for row in self._rows_by.get(address, ()) if _is_of_pod(row, veth)]
        if is_our_alias(veth.alias):
            found = [row for row in found if veth.alias == alias_of(row.key)]
        return max(found, key=lambda row: row.allocated_ns, default=None)

    def _is_told_by_name(self, veth: HostVeth) -> bool:
        """Whether a cached result, a row or a lease that names this veth has an address, which is held for it."""
        digits = veth.ifname[-_DIGITS:]
        return bool(self._named_by(veth) or self._rows_by.get(digits)) or digits in self._awaited

    # -- what only files tell ---------------------------------------------------------------------

    def _judge_cached(self, cached: CachedResult) -> None:
        for address in cached.addresses:
            self._enter_unseen(
                cached.key,
                address,
                Claim(
                    key=_real(cached.key),
                    pod=cached.pod,
                    address=address,
                    table=self._tables.get(address, MAIN_TABLE),
                    netns=cached.netns,
                    ifname=cached.key.ifname,
                    evidence=(RUNTIME_CACHE,),
                    since_ns=cached.modified_ns,
                ),
                f"the cached result {cached.file}",
            )

    def _judge_row(self, row: Row) -> None:
        self._enter_unseen(
            row.key,
            row.address,
            Claim(
                key=_real(row.key),
                pod=row.pod,
                address=row.address,
                table=self._tables.get(row.address, MAIN_TABLE),
                ifname=row.key.ifname,
                origin="imported",
                evidence=(CHECKPOINT,),
                since_ns=row.allocated_ns,
                detail="" if _real(row.key) else "a row of the checkpoint holds it, without a sandbox's key",
            ),
            "a row of the checkpoint",
        )

    def _enter_unseen(self, key: SandboxKey, address: Address, claim: Claim, what: str) -> None:
        """A sandbox that the kernel does not show; it is held until two sources end it."""
        if ":" in address:
            self._notes.append(f"{address} in {what}: IPv6 is not served yet")
            return
        if self._has_seen_end(key, address, claim.since_ns):
            return
        known, other = self._lease_at(address), self._claims.get(address)
        if known is not None or other is not None:
            holder = other.key if other is not None else known.key if known is not None else None
            if holder != claim.key:
                self._notes.append(f"{address} in {what} of {key.container_id}: another sandbox uses it")
            elif other is not None and claim.evidence[0] not in other.evidence:
                pod, since_ns = _fuller(other.pod, claim.pod), other.since_ns or claim.since_ns
                told = (*other.evidence, *claim.evidence)
                merged = msgspec.structs.replace(other, pod=pod, since_ns=since_ns, evidence=told)
                self._claims[address] = merged
            return
        if claim.key is not None and (key in self._keys or self._has_other_lease(key, address)):
            self._notes.append(f"{address} in {what}: {key.container_id} has another address")
            claim = msgspec.structs.replace(
                claim, key=None, detail=f"{what} says so, of a sandbox with another"
            )
        evidence = list(claim.evidence)
        pod = self._named(claim.pod, address, evidence)
        self._enter(msgspec.structs.replace(claim, pod=pod, evidence=tuple(evidence)))

    # -- common -----------------------------------------------------------------------------------

    def _enter(self, claim: Claim) -> None:
        self._claims[claim.address] = claim
        if claim.key is not None:
            self._keys.add(claim.key)

    def _lease_at(self, address: Address) -> Lease | None:
        lease_id = self._state.by_address.get(address)
        return None if lease_id is None or lease_id in self._endings else self._state.leases[lease_id]

    def _has_other_lease(self, key: SandboxKey, address: Address) -> bool:
        lease = self._state.lease_of(key)
        if lease is None or lease.id in self._endings:
            return False
        return all(binding.address != address for binding in lease.bindings)

    def _end_other_lease(self, key: SandboxKey, address: Address, source: str) -> None:
        """An old log knows an earlier sandbox of this key: kernel and a file agree on what the present one has."""
        lease = self._state.lease_of(key)
        if lease is None or not self._has_other_lease(key, address):
            return
        shown = {one for veth in self._veths for one in veth.routed or veth.inside}
        if not any(binding.address in shown for binding in lease.bindings):
            self._endings[lease.id] = Ending(lease.id, "superseded", (KERNEL, source))
            self._notes.append(f"lease {lease.id}: its sandbox has {address} now")

    @staticmethod
    def _is_same(lease: Lease, veth: HostVeth, key: SandboxKey | None) -> bool:
        """Whether the sandbox behind a veth is the one that the log has."""
        if lease.wired is not None and veth.alias and veth.alias == lease.wired.alias:
            return True
        if lease.wired is None and not lease.is_hold:
            # It may be wired just now, and its record may ride along with the next batch.
            is_its_veth = (
                veth.alias == alias_of(lease.key) if veth.alias else veth.mac == host_mac_of(lease.key)
            )
            if is_its_veth:
                return True
        if key is not None and not lease.is_hold:
            if not is_made_up(key):
                return key == lease.key
            # Of such a key only the container id is real, if that: it contradicts nobody.
            if key.container_id == lease.key.container_id:
                return True
        if veth.netns and lease.netns and same_netns(lease.netns, veth.netns):
            return True
        if lease.is_unseen and not veth.alias and _digits_of(lease.pod) == veth.ifname[-_DIGITS:]:
            return True
        return lease.wired is not None and lease.wired.host_ifindex == veth.ifindex and not veth.alias

    def _named(self, pod: PodRef, address: Address, evidence: list[str]) -> PodRef:
        """The pod, with what the API server adds to it."""
        seen: PodSeen | None = self._pods.get(address)
        if seen is None or seen.is_host_network:
            return pod
        if pod.name and (pod.namespace, pod.name) != (seen.pod.namespace, seen.pod.name):
            return pod
        if _fuller(pod, seen.pod) != pod:
            evidence.append(API_SERVER)
        return _fuller(pod, seen.pod)

    def _unlisted(self) -> frozenset[LeaseId]:
        """Leases that a checkpoint of somebody else, written since, does not list with their key.

        Whom the kernel has just shown is alive, whoever has lost his row. A file of which not every row can be read
        leaves nobody out, and a row without a whole key may be anybody's.
        """
        foreign = [
            file
            for file in self._evidence.checkpoints
            if file.status == "read"
            and not file.unreadable
            and file.card == 0
            and file.log_id != self._state.log_id
        ]
        if not foreign or not self._state.log_id:
            return frozenset()
        listed = {(row.key, row.address) for row in self._rows}
        half_listed = {row.address for row in self._rows if is_made_up(row.key)}
        return frozenset(
            lease.id
            for lease in self._state.leases.values()
            if not lease.is_hold
            and lease.id not in self._endings
            and lease.id not in self._seen
            and all((lease.key, binding.address) not in listed for binding in lease.bindings)
            and all(binding.address not in half_listed for binding in lease.bindings)
            and 0 < lease.since.wall_ns < max(file.modified_ns for file in foreign)
        )

    def _last_use_ns(self) -> int | None:
        """The latest trace; the boot when somebody lived here and nothing tells when he last changed."""
        traces = [file.modified_ns for file in self._evidence.checkpoints if file.status == "read"]
        traces += [self._evidence.cache.modified_ns, self._evidence.newest_spool_ns]
        latest = max(traces, default=0)
        if latest:
            return latest
        return self._boot_ns + _BOOT_SLACK_NS if self._claims or self._unexplained else None


def _is_of_a_pod(address: str) -> bool:
    """IPv4, and not one of those that every namespace may have."""
    return ":" not in address and not address.startswith(("169.254.", "127."))


def _fuller(first: PodRef, second: PodRef) -> PodRef:
    """The first, with what only the second tells."""
    if first.name and second.name and (first.namespace, first.name) != (second.namespace, second.name):
        return first
    return PodRef(first.namespace or second.namespace, first.name or second.name, first.uid or second.uid)


def _real(key: SandboxKey) -> SandboxKey | None:
    """A key that a call may name; ``None`` for our own exports of holds, and for rows without a container id."""
    return None if key.network == HOLD_NETWORK or not key.container_id else key


def _digits_of(pod: PodRef) -> str:
    """The end of the name that the original gives to a pod's host veth; empty for a pod without a name."""
    return host_veth_name("", pod.namespace, pod.name) if pod.namespace and pod.name else ""


def _is_of_pod(row: Row, veth: HostVeth) -> bool:
    """Whether a row's pod is the one that the veth is named after; a row without a name contradicts nobody."""
    return veth.ifname[-_DIGITS:] == (_digits_of(row.pod) or veth.ifname[-_DIGITS:])
