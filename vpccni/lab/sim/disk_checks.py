"""The promises about leases and rests, checked at every batch that reaches a disk.

Whoever the runtime says is alive is alive, whichever plugin wired him and whatever log the agent has. What an agent
can know of a use before its log began is what a source told when it searched: no more is asked of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from vpccni.adapters.log_format import opened
from vpccni.checkpoint import parse_checkpoint
from vpccni.datapath.numbers import POD_TABLE
from vpccni.events.adoption import NodeSurveyed
from vpccni.events.codec import Record
from vpccni.events.effect import EffectAbandoned, EffectConfirmed, EffectFailed, EffectIntended
from vpccni.events.envelope import Stored
from vpccni.events.node import InvariantBroken
from vpccni.events.sandbox import AddressAssigned, AddressHeld, LeaseEnded, LeaseIdentified, LeaseLocated
from vpccni.evidence import KERNEL, READ
from vpccni.lab.ec2 import Region
from vpccni.lab.sim import handover
from vpccni.lab.sim.books import LastUse, NodeBook, OpenLease, Rested
from vpccni.lab.sim.ec2_checks import Ec2Checks, could_locate, reporting
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.model import Address, IntentId, LeaseId, SandboxKey, Stamp, host_cidr
from vpccni.projections.state import State

COOLDOWN_SLACK_S: Final = 5.0
"""Between the stamp of a record and the instant at which it reached the disk, where no clock spans both stamps."""
LATE_S: Final = 8.0
"""A plugin of the original that was at work when its daemon ended may wire a pod after our start."""
PLANS_MAX: Final = 100
PLANS_S: Final = 5.0
"""More plans than that in so many seconds are a loop."""

_LEASE_KINDS: Final = frozenset({"address_assigned", "address_held", "lease_identified", "lease_ended"})
_WATCHED: Final = _LEASE_KINDS | frozenset(
    {
        "lease_located",
        "node_surveyed",
        "effect_intended",
        "effect_confirmed",
        "effect_failed",
        "effect_abandoned",
        "invariant_broken",
    }
)


class DiskChecks(Ec2Checks):
    """See :class:`vpccni.lab.sim.invariants.Checker`."""

    def __init__(self, region: Region, cooldown_s: float, report: Callable[[str], None]) -> None:
        super().__init__(region, report)
        self._cooldown_s = cooldown_s
        self._ended: dict[Address, Rested] = {}
        self._last_use: dict[Address, LastUse] = {}

    # -- another log ------------------------------------------------------------------------------

    @reporting
    def on_disk_changed(self, node: SimNode) -> None:
        """The node's log is another one: what it says now is all that its agent knows.

        Leases of another machine's log are the other's, and may end here.
        """
        book = self._books[node.name]
        self._check_spool(book)  # What was forgotten until now was forgotten by the log of until now.
        book.generation += 1
        book.leases, book.by_address, book.intents = {}, {}, {}
        book.records, book.audit, book.folds = [], State(), {}
        book.trace_at = float("-inf")
        book.lease_sets.clear()
        for stored in node.store.events:
            if stored.kind in _WATCHED:
                self._take(book, opened(stored))
        for lease in book.leases.values():
            lease.told_at = node.loop.time()
        book.had_lost_log = True
        foreign = node.store.foreign_count
        last = node.store.events[foreign - 1].seq if foreign else 0
        book.imaged = frozenset(lease for lease in book.leases if lease <= last)
        book.by_address = {each: lease for each, lease in book.by_address.items() if lease not in book.imaged}
        handover.note_leases(book)

    def _take(self, book: NodeBook, record: Record) -> None:
        """What one record says of leases and intents."""
        match record.event:
            case AddressAssigned() | AddressHeld():
                self._open(book, record, record.event)
            case LeaseIdentified():
                book.leases[record.event.lease].key = record.event.key
            case LeaseLocated():
                book.leases[record.event.lease].is_located = all(each.eni for each in record.event.bindings)
            case LeaseEnded():
                held = book.leases.pop(record.event.lease, None)
                if held is not None and book.by_address.get(held.address) == held.lease:
                    del book.by_address[held.address]
            case EffectIntended():
                book.intents[IntentId(record.seq)] = record.event
            case EffectConfirmed() | EffectFailed() | EffectAbandoned():
                book.intents.pop(record.event.intent, None)
            case _:
                pass

    @staticmethod
    def _open(book: NodeBook, record: Record, event: AddressAssigned | AddressHeld) -> None:
        since = event.since or record.stamp
        origin = "recovered" if isinstance(event, AddressHeld) else event.origin
        for binding in event.bindings:
            lease = OpenLease(
                address=binding.address,
                key=SandboxKey("", "", event.ifname) if isinstance(event, AddressHeld) else event.key,
                lease=LeaseId(record.seq),
                boot_id=since.boot_id,
                boottime_ns=since.boottime_ns,
                origin=origin,
                told_at=float("-inf") if origin == "add" else book.node.loop.time(),
                is_shown=origin == "add" or KERNEL in event.evidence,
                is_located=bool(binding.eni),
            )
            book.leases[lease.lease] = lease
            book.by_address[binding.address] = lease.lease

    # -- every batch ------------------------------------------------------------------------------

    @reporting
    def on_commit(self, node: SimNode, batch: Sequence[Stored]) -> None:
        """A batch reached the disk."""
        book = self._books[node.name]
        self._check_spool(book)
        ended: list[tuple[Sandbox, LeaseEnded]] = []
        are_leases_changed = False
        for stored in batch:
            self.checks += 1
            if stored.kind == "plan_made":
                self._on_plan(book)
            if stored.kind not in _WATCHED:
                continue
            record = opened(stored)
            match record.event:
                case AddressAssigned():
                    self._on_assigned(book, record.stamp, record.event)
                case LeaseEnded():
                    ended += self._on_ended(book, record.stamp, record.event)
                case EffectIntended():
                    self._on_intended(book, record.stamp, record.event)
                case NodeSurveyed():
                    book.trace_at = latest_trace(node)
                    book.may_export_since = float("inf")  # Nothing was exported during the search.
                case InvariantBroken():
                    raise BrokenPromiseError(f"{node.name} reports {record.event}")
                case _:
                    pass
            self._take(book, record)
            are_leases_changed |= stored.kind in _LEASE_KINDS
        if are_leases_changed:
            handover.note_leases(book)
            self._check_covered(book, ended)

    def _check_covered(self, book: NodeBook, ended: Sequence[tuple[Sandbox, LeaseEnded]]) -> None:
        """Whoever is alive has a lease or a hold, unless his node is just being searched."""
        node = book.node
        for sandbox, event in ended:
            if sandbox.address not in book.by_address:
                raise BrokenPromiseError(
                    f"{node.name} ended lease {event.lease} of {sandbox.told} ({sandbox.address}), which is "
                    f"acknowledged and alive: cause {event.cause}, sources {list(event.sources)}"
                )
        if node.agent is None or not node.agent.recovery.is_done or node.original.is_running:
            return
        for sandbox in book.acked.values():
            is_late = sandbox.served_by != "ours" and node.loop.time() - sandbox.acked_at < LATE_S
            if sandbox.address not in book.by_address and not is_late:
                raise BrokenPromiseError(
                    f"{node.name} knows who lives here, and {sandbox.told} ({sandbox.address}) has no lease"
                )

    def _check_spool(self, book: NodeBook) -> None:
        """An entry is forgotten once its end of lease is on the disk, and not sooner."""
        removed, book.node.spool.removed = book.node.spool.removed, []
        for entry in removed:
            request = json.loads(entry.body)
            for lease in book.leases.values():
                if (
                    lease.key.container_id == request["containerId"]
                    and lease.boot_id == entry.boot_id
                    and lease.boottime_ns < entry.boottime_ns
                ):
                    raise BrokenPromiseError(
                        f"{book.node.name} forgot the spooled DEL of {lease.key}, whose lease is open on the disk"
                    )

    def _on_plan(self, book: NodeBook) -> None:
        """The log tells what changes; a planner that is at odds with the writer would fill the disk."""
        now = book.node.loop.time()
        book.plans.append(now)
        if len(book.plans) > PLANS_MAX and now - book.plans.pop(0) < PLANS_S:
            raise BrokenPromiseError(f"{book.node.name} writes plan after plan: {PLANS_MAX} in {PLANS_S} s")

    # -- leases -----------------------------------------------------------------------------------

    def _on_assigned(self, book: NodeBook, stamp: Stamp, event: AddressAssigned) -> None:
        if event.origin != "add":
            return  # It says that somebody uses the address, and gives it to nobody.
        node = book.node
        handover.check_alone(node, f"assigns {event.bindings[0].address}")
        for binding in event.bindings:
            address = binding.address
            living = self._acked_at.get(address)
            if living is not None and living.key != event.key:
                raise BrokenPromiseError(
                    f"{node.name} assigned {address} to {event.key}; {living.told} has it"
                )
            for other in self._books.values():
                if address in other.by_address:
                    held = other.leases[other.by_address[address]]
                    if other is book or (other.generation == 1 and held.origin == "add"):
                        raise BrokenPromiseError(
                            f"{node.name} assigned {address} to {event.key} while {other.node.name} "
                            f"has lease {held.lease} on it for {held.key}"
                        )
            self._check_rest(book, address, stamp, event)
            if any(
                (route.table, route.dst) == (POD_TABLE, host_cidr(address))
                for route in node.kernel.state.routes
            ):
                raise BrokenPromiseError(
                    f"{node.name} assigned {address} to {event.key} and still routes it to its last pod"
                )

    def _on_ended(self, book: NodeBook, stamp: Stamp, event: LeaseEnded) -> list[tuple[Sandbox, LeaseEnded]]:
        """The living sandbox that had this lease: it must have another one by the end of the batch."""
        held = book.leases.get(event.lease)
        if held is None:
            raise BrokenPromiseError(f"{book.node.name} ended lease {event.lease}, which was not open")
        if event.lease in book.imaged:
            return []  # The other one's address, which never was in use here.
        if event.was_wired and (held.origin == "add" or self._is_here(book, held.address)):
            self._ended[held.address] = Rested(book.node.loop.time(), stamp, book, book.generation)
        sandbox = self._acked_at.get(held.address)
        is_its_own = sandbox is not None and book.acked.get(sandbox.key) is sandbox
        return [(sandbox, event)] if sandbox is not None and is_its_own and held.key == sandbox.key else []

    # -- rests ------------------------------------------------------------------------------------

    def _is_here(self, book: NodeBook, address: Address) -> bool:
        """Whether EC2 leads an address to the node: a source may have named one that it had long ago, or never."""
        owner = self._owner(address)
        return owner is not None and owner.instance is book.node.instance

    def _check_rest(self, book: NodeBook, address: Address, stamp: Stamp, event: AddressAssigned) -> None:
        ended = self._ended.get(address)
        if ended is not None and self._is_known(book, ended):
            rested, wanted = self._rested(book, ended, stamp)
            if rested < wanted:
                raise BrokenPromiseError(
                    f"{book.node.name} assigned {address} to {event.key} {rested:.2f} s after its last lease ended"
                )
        use = self._last_use.get(address)
        if use is None or use.book is not book or use.boots != book.node.clock.boots:
            return
        unused_s = book.node.loop.time() - use.at
        is_told = use.at <= book.trace_at and not book.node.clock.was_set_since(use.at)
        if is_told and unused_s < self._cooldown_s - COOLDOWN_SLACK_S:
            raise BrokenPromiseError(
                f"{book.node.name} assigned {address} to {event.key} {unused_s:.2f} s after a pod was given up that "
                "had it before the node was searched"
            )

    @staticmethod
    def _is_known(book: NodeBook, ended: Rested) -> bool:
        """Whether the agent's log, or a source when it was lost, could tell of the end of a lease."""
        before = ended.book
        if before.generation == ended.generation:
            return True
        return ended.at <= before.trace_at and not before.node.clock.was_set_since(ended.at)

    def _rested(self, book: NodeBook, ended: Rested, stamp: Stamp) -> tuple[float, float]:
        """How long an address has rested, and how long it must have, as well as can be told from outside."""
        since = ended.stamp
        if ended.book is book and since.boot_id == stamp.boot_id and ended.generation == book.generation:
            return (stamp.boottime_ns - since.boottime_ns) / 1e9, self._cooldown_s
        if ended.book is book and book.node.clock.was_set_forward_over(since.boot_id):
            return 0.0, 0.0
        return book.node.loop.time() - ended.at, self._cooldown_s - COOLDOWN_SLACK_S

    # -- what is given back -----------------------------------------------------------------------

    def _on_intended(self, book: NodeBook, stamp: Stamp, event: EffectIntended) -> None:
        inside: set[str] = set()
        if event.kind == "unassign":
            inside = {cidr.removesuffix("/32") for cidr in event.cidrs}
        elif event.kind in ("detach", "delete"):
            owner = self._region.world.enis.get(event.eni)
            inside = set(owner.secondaries) if owner is not None else set()
        covered = [
            address
            for address, lease in book.by_address.items()
            if address in inside and could_locate(book, book.leases[lease])
        ]
        covered += [sandbox.address for sandbox in book.acked.values() if sandbox.address in inside]
        for address in sorted(inside & self._ended.keys()):
            ended = self._ended[Address(address)]
            rested, wanted = self._rested(book, ended, stamp)
            if rested < wanted and ended.book is book and self._is_known(book, ended):
                covered.append(Address(address))
        if covered:
            raise BrokenPromiseError(
                f"{book.node.name} intends {event.kind} of {event.eni} over {covered}, leased, alive or resting"
            )


def latest_trace(node: SimNode) -> float:
    """The virtual second of the latest change of what tells of a use of an address, as far as it can be read."""
    traces = [0]
    content, modified_ns = node.checkpoints.files.get(0, (b"", 0))
    if node.checkpoints.is_readable and parse_checkpoint(content, path="ipam.json").status == READ:
        traces.append(modified_ns)
    if node.cache.is_readable and not node.cache.is_absent:
        traces.append(node.cache.modified_ns)
    now = node.clock.now()
    latest = max(traces)
    return node.loop.time() - (now.wall_ns - latest) / 1e9 if latest else float("-inf")
