"""The promises, checked from outside after every event.

What is believed here: the emulated EC2 (who owns an address, where an ENI hangs), the runtime's own record of
what was acknowledged and what was deleted, and the bytes that reached the disk. The agent's state is looked at
only to compare it with those.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec

import msgspec

from vpccni.adapters.log_format import opened, unpack_snapshot
from vpccni.api.views import pods_view
from vpccni.datapath.numbers import POD_TABLE
from vpccni.errors import InvariantBrokenError
from vpccni.events.codec import Record
from vpccni.events.effect import EffectAbandoned, EffectConfirmed, EffectFailed, EffectIntended
from vpccni.events.envelope import Stored
from vpccni.events.node import InvariantBroken
from vpccni.events.sandbox import AddressAssigned, LeaseEnded
from vpccni.lab.ec2 import Region
from vpccni.lab.ec2.entities import Eni
from vpccni.lab.sim.kernel_checks import check_kernel, check_wired
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.loops.write import fold_start
from vpccni.model import Address, EniId, IntentId, LeaseId, SandboxKey, Stamp, host_cidr
from vpccni.planner.assign import choose_address
from vpccni.planner.reconcile import INSTANCE_TAG, NO_MANAGE_TAG
from vpccni.ports import LogStart
from vpccni.projections.snapshot import picture, restore, snapshot_of
from vpccni.projections.state import State

COOLDOWN_SLACK_S: Final = 5.0
"""Between the stamp of a record and the instant at which it reached the disk, where no clock spans both stamps."""


LINK_LOSS_SLACK_S: Final = 10.0
"""Until the loss of a NIC is on a slow disk."""
PLANS_MAX: Final = 100
PLANS_S: Final = 5.0
"""More plans than that in so many seconds are a loop."""
IDLE_LOOKS_MAX: Final = 3
"""In so many looks in a row the same address was free: what is being given away on a slow disk is so in fewer."""
CALLS_MAX: Final = 150
CALLS_S: Final = 30.0
"""So many calls of one node in so many seconds are a storm; whole ENIs for a burst of pods are a third of that."""
INTENDED: Final = {
    "CreateNetworkInterface": "create",
    "AttachNetworkInterface": "attach",
    "ModifyNetworkInterfaceAttribute": "modify",
    "AssignPrivateIpAddresses": "assign",
    "UnassignPrivateIpAddresses": "unassign",
    "DetachNetworkInterface": "detach",
    "DeleteNetworkInterface": "delete",
    "CreateTags": "tag",
}
"""By what kind of intent a call is covered."""

P = ParamSpec("P")


def _reporting(check: Callable[Concatenate[Checker, P], None]) -> Callable[Concatenate[Checker, P], None]:
    """A check that is called from within somebody else's step: it reports and does not raise."""

    @functools.wraps(check)
    def reporting(checker: Checker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check(checker, *args, **kwargs)
        except BrokenPromiseError as error:
            checker.report(str(error))
        except InvariantBrokenError as error:
            checker.report(f"what is on the disk does not fold: {error}")

    return reporting


class _OpenLease(msgspec.Struct):
    address: Address
    key: SandboxKey
    lease: LeaseId
    boot_id: str
    boottime_ns: int


class _NodeBook(msgspec.Struct):
    """What is known of one node from outside."""

    node: SimNode
    leases: dict[LeaseId, _OpenLease] = {}
    imaged: frozenset[LeaseId] = frozenset()
    by_address: dict[Address, LeaseId] = {}
    acked: dict[SandboxKey, Sandbox] = {}
    intents: dict[IntentId, EffectIntended] = {}
    calls: deque[float] = msgspec.field(default_factory=deque)
    audit: State = msgspec.field(default_factory=State)
    records: list[Record] = []
    folds: dict[int, State] = {}
    idle: tuple[str, int] = ("", 0)
    plans: list[float] = []
    boots: int = 1


class Checker:
    """Follows everything that happens. ``cooldown_s`` is every node's; ``report`` gets each broken promise."""

    def __init__(self, region: Region, cooldown_s: float, report: Callable[[str], None]) -> None:
        self.report = report
        self._region = region
        self._cooldown_s = cooldown_s
        self._books: dict[str, _NodeBook] = {}
        self._ended: dict[Address, tuple[float, Stamp, _NodeBook]] = {}
        self._acked_at: dict[Address, Sandbox] = {}
        self.checks = 0

    def follow(self, node: SimNode) -> None:
        """Begin with a node."""
        self._books[node.name] = _NodeBook(node=node)

    def image(self, node: SimNode, of: SimNode) -> None:
        """A node's disk holds another one's log: those leases are the other's, and may end here."""
        book, other = self._books[node.name], self._books[of.name]
        book.leases = dict(other.leases)
        book.imaged = frozenset(other.leases)

    # -- the runtime's side -----------------------------------------------------------------------

    @_reporting
    def on_acked(self, node: SimNode, sandbox: Sandbox) -> None:
        """An ADD was answered with success; ``sandbox.address`` is what it was given."""
        self.checks += 1
        address = sandbox.address
        book = self._books[node.name]
        before = self._acked_at.get(address)
        if before is not None and before is not sandbox:
            raise BrokenPromiseError(
                f"{address} has two holders: {before.told} and, acknowledged now, {sandbox.told}"
            )
        owner = self._owner(address)
        if owner is None:
            raise BrokenPromiseError(f"{sandbox.told} was given {address}, which no ENI has in EC2")
        attachment = owner.attachment
        if attachment is None or attachment.instance.id != node.instance.id:
            raise BrokenPromiseError(f"{sandbox.told} was given {address}, which EC2 routes elsewhere")
        if attachment.status == "detaching":
            raise BrokenPromiseError(f"{sandbox.told} was given {address} on an ENI that is being detached")
        lease = book.leases.get(book.by_address.get(address, LeaseId(0)))
        if lease is None or lease.key != sandbox.key:
            raise BrokenPromiseError(f"{sandbox.told} was given {address} before the disk had it: {lease}")
        is_linked = any(link.mac == owner.mac for link in node.kernel.state.links.values())
        lost_s = node.loop.time() - node.lost_links.get(owner.mac, 0.0)
        if not is_linked and lost_s > LINK_LOSS_SLACK_S:
            raise BrokenPromiseError(f"{sandbox.told} was given {address} on {owner.id}, which has no link")
        check_wired(node, sandbox)
        self._acked_at[address] = sandbox
        book.acked[sandbox.key] = sandbox

    @_reporting
    def on_repeated(self, node: SimNode, sandbox: Sandbox, address: Address) -> None:
        """A repeated ADD of an acknowledged sandbox was answered with success."""
        self.checks += 1
        if address != sandbox.address:
            raise BrokenPromiseError(
                f"{sandbox.told} had {sandbox.address}; the same ADD again gave {address}"
            )

    @_reporting
    def on_refused(self, sandbox: Sandbox, verb: str, answer: Mapping[str, Any]) -> None:
        """A request was answered with an error."""
        self.checks += 1
        if answer.get("reason") in ("internal", "invariant_broken", "bad_request"):
            raise BrokenPromiseError(f"{verb} of {sandbox.told} was refused with {answer}")

    @_reporting
    def on_deleted(self, node: SimNode, sandbox: Sandbox) -> None:
        """A DEL was answered with success by an agent: its end is on the disk, or in the spool."""
        self.checks += 1
        book = self._books[node.name]
        if any(lease.key == sandbox.key for lease in book.leases.values()) and not node.spool.is_holding(
            sandbox.container_id
        ):
            raise BrokenPromiseError(f"DEL of {sandbox.told} succeeded and its lease is open on the disk")

    def on_released(self, node: SimNode, sandbox: Sandbox) -> None:
        """The runtime gives the sandbox up: a DEL is sent, or never will be."""
        if self._acked_at.get(sandbox.address) is sandbox:
            del self._acked_at[sandbox.address]
        book = self._books[node.name]
        if book.acked.get(sandbox.key) is sandbox:
            del book.acked[sandbox.key]

    def on_boot(self, node: SimNode) -> None:
        """The machine was rebooted: nothing of before lives."""
        book = self._books[node.name]
        book.boots = node.clock.boots
        for sandbox in list(book.acked.values()):
            self.on_released(node, sandbox)

    # -- the disk's side --------------------------------------------------------------------------

    @_reporting
    def on_commit(self, node: SimNode, batch: Sequence[Stored]) -> None:
        """A batch reached the disk."""
        book = self._books[node.name]
        self._check_spool(book)
        for stored in batch:
            self.checks += 1
            if stored.kind == "plan_made":
                self._on_plan(book)
            if stored.kind not in _WATCHED:
                continue
            record = opened(stored)
            match record.event:
                case AddressAssigned():
                    self._on_assigned(book, LeaseId(record.seq), record.stamp, record.event)
                case LeaseEnded():
                    self._on_ended(book, record.stamp, record.event)
                case EffectIntended():
                    book.intents[IntentId(record.seq)] = record.event
                    self._on_intended(book, record.stamp, record.event)
                case EffectConfirmed() | EffectFailed() | EffectAbandoned():
                    book.intents.pop(record.event.intent, None)
                case InvariantBroken():
                    raise BrokenPromiseError(f"{node.name} reports {record.event}")
                case _:
                    pass

    def _check_spool(self, book: _NodeBook) -> None:
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

    def _on_plan(self, book: _NodeBook) -> None:
        """The log tells what changes; a planner that is at odds with the writer would fill the disk."""
        now = book.node.loop.time()
        book.plans.append(now)
        if len(book.plans) > PLANS_MAX and now - book.plans.pop(0) < PLANS_S:
            raise BrokenPromiseError(f"{book.node.name} writes plan after plan: {PLANS_MAX} in {PLANS_S} s")

    def _on_assigned(self, book: _NodeBook, lease: LeaseId, stamp: Stamp, event: AddressAssigned) -> None:
        for binding in event.bindings:
            address = binding.address
            for other in self._books.values():
                if address in other.by_address:
                    held = other.leases[other.by_address[address]]
                    raise BrokenPromiseError(
                        f"{book.node.name} assigned {address} to {event.key} while {other.node.name} "
                        f"has lease {held.lease} on it for {held.key}"
                    )
            self._check_rest(book, address, stamp, event)
            if any(
                (route.table, route.dst) == (POD_TABLE, host_cidr(address))
                for route in book.node.kernel.state.routes
            ):
                raise BrokenPromiseError(
                    f"{book.node.name} assigned {address} to {event.key} and still routes it to its last pod"
                )
            book.leases[lease] = _OpenLease(address, event.key, lease, stamp.boot_id, stamp.boottime_ns)
            book.by_address[address] = lease

    def _check_rest(self, book: _NodeBook, address: Address, stamp: Stamp, event: AddressAssigned) -> None:
        ended = self._ended.get(address)
        if ended is None:
            return
        rested, wanted = self._rested(book, ended, stamp)
        if rested < wanted:
            raise BrokenPromiseError(
                f"{book.node.name} assigned {address} to {event.key} {rested:.2f} s after its last lease ended"
            )

    def _rested(
        self, book: _NodeBook, ended: tuple[float, Stamp, _NodeBook], stamp: Stamp
    ) -> tuple[float, float]:
        """How long an address has rested, and how long it must have, as well as can be told from outside."""
        at, since, before = ended
        if before is book and since.boot_id == stamp.boot_id:
            return (stamp.boottime_ns - since.boottime_ns) / 1e9, self._cooldown_s
        if before is book and book.node.clock.was_set_forward_over(since.boot_id):
            return 0.0, 0.0
        return book.node.loop.time() - at, self._cooldown_s - COOLDOWN_SLACK_S

    def _on_ended(self, book: _NodeBook, stamp: Stamp, event: LeaseEnded) -> None:
        held = book.leases.pop(event.lease, None)
        if held is None:
            raise BrokenPromiseError(f"{book.node.name} ended lease {event.lease}, which was not open")
        if event.lease in book.imaged:
            return  # The other one's address, which never was in use here.
        book.by_address.pop(held.address, None)
        if event.was_wired:
            self._ended[held.address] = (book.node.loop.time(), stamp, book)
        sandbox = book.acked.get(held.key)
        if sandbox is not None:
            raise BrokenPromiseError(
                f"{book.node.name} ended lease {event.lease} of {sandbox.told} ({sandbox.address}), which is "
                f"acknowledged and alive: cause {event.cause}, sources {list(event.sources)}"
            )

    def _on_intended(self, book: _NodeBook, stamp: Stamp, event: EffectIntended) -> None:
        inside: set[str] = set()
        if event.kind == "unassign":
            inside = {cidr.removesuffix("/32") for cidr in event.cidrs}
        elif event.kind in ("detach", "delete"):
            owner = self._region.world.enis.get(event.eni)
            inside = set(owner.addresses) if owner is not None else set()
        covered = [address for address in book.by_address if address in inside]
        for address in sorted(inside & self._ended.keys()):
            rested, wanted = self._rested(book, self._ended[Address(address)], stamp)
            if rested < wanted and self._ended[Address(address)][2] is book:
                covered.append(Address(address))
        if covered:
            raise BrokenPromiseError(
                f"{book.node.name} intends {event.kind} of {event.eni} over {covered}, leased or resting"
            )

    # -- EC2's side -------------------------------------------------------------------------------

    @_reporting
    def on_call(self, sender: str, action: str, params: Mapping[str, Any]) -> None:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        self.checks += 1
        book = self._books[sender]
        now = book.node.loop.time()
        book.calls.append(now)
        if len(book.calls) > CALLS_MAX and now - book.calls.popleft() < CALLS_S:
            raise BrokenPromiseError(f"{sender} storms EC2: {CALLS_MAX} calls in {CALLS_S} s, now {action}")
        kind = INTENDED.get(action)
        if kind is None:
            return
        eni = self._concerned(action, params)
        if eni is not None:
            holder = eni.attachment.instance.id if eni.attachment else eni.tags.get(INSTANCE_TAG, "")
            if holder != book.node.instance.id or eni.tags.get(NO_MANAGE_TAG) == "true":
                raise BrokenPromiseError(f"{action} by {sender} is about {eni.id}, which is not its own")
        if not any(intent.kind == kind and _covers(intent, params) for intent in book.intents.values()):
            raise BrokenPromiseError(f"{action} by {sender} leaves and no open intent on the disk covers it")

    def before_call(self, sender: str, action: str, params: Mapping[str, Any]) -> object:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        if action not in ("UnassignPrivateIpAddresses", "DetachNetworkInterface", "DeleteNetworkInterface"):
            return None
        eni = self._concerned(action, params)
        return (eni, frozenset(eni.addresses) if eni.attachment is not None else frozenset()) if eni else None

    @_reporting
    def after_call(self, sender: str, action: str, outcome: str, before: object) -> None:
        """See :class:`vpccni.lab.sim.cloud.Watcher`."""
        self.checks += 1
        if not isinstance(before, tuple):
            return
        eni, had = before
        has: frozenset[str] = frozenset()
        if eni.attachment is not None and eni.attachment.status != "detaching":
            has = frozenset(eni.addresses)
        for address in sorted(had - has):
            sandbox = self._acked_at.get(address)
            if sandbox is not None:
                raise BrokenPromiseError(f"{action} by {sender} took {address} from {sandbox.told}")
            for book in self._books.values():
                lease = book.by_address.get(address)
                if lease is not None:
                    raise BrokenPromiseError(
                        f"{action} by {sender} took {address}, on which {book.node.name} has lease {lease}"
                    )

    def _concerned(self, action: str, params: Mapping[str, Any]) -> Eni | None:
        if action == "DetachNetworkInterface":
            return self._region.world.eni_of_attachment.get(params.get("AttachmentId", ""))
        return self._region.world.enis.get(params.get("NetworkInterfaceId", ""))

    def _owner(self, address: str) -> Eni | None:
        for subnet in self._region.world.subnets.values():
            holder = subnet.addresses.holder_of(address)
            if holder is not None and holder.startswith("eni-"):
                return self._region.world.enis.get(holder)
        return None

    # -- now and then -----------------------------------------------------------------------------

    @_reporting
    def audit(self, node: SimNode) -> None:
        """Live state, fold from zero and fold from snapshots agree; what is acknowledged is in the books."""
        self.checks += 1
        book = self._books[node.name]
        events = node.store.events
        news = [opened(one) for one in events[len(book.records) :]]
        book.records += news
        book.audit.evolve_all(news)
        folded = picture(book.audit)
        short = restore(snapshot_of(book.audit))
        short.head = book.audit.head
        _compare(node, "fold of a snapshot taken now", picture(short), folded)
        before, book.folds = book.folds, {}
        for snapshot in node.store.snapshots:
            state = before.get(snapshot.seq)
            if state is None:
                tail, records = tuple(book.records[snapshot.seq :]), _unpacked(node, snapshot)
                state = fold_start(LogStart(snapshot=records, tail=tail, head=book.audit.head))
            else:
                state.evolve_all(news)
            book.folds[snapshot.seq] = state
            _compare(node, f"fold from the snapshot of event {snapshot.seq}", picture(state), folded)
        agent = node.agent
        if agent is None:
            return
        live = agent.writer.state
        if live.head == book.audit.head:
            _compare(node, "live state", picture(live), folded)
        told = {address for pod in pods_view(live, node.clock.now()) for address in pod["addresses"]}
        for sandbox in book.acked.values():
            if sandbox.address not in told:
                raise BrokenPromiseError(f"/v1/pods has forgotten {sandbox.told} with {sandbox.address}")
            check_wired(node, sandbox)

    @_reporting
    def look_at_waiting(self, node: SimNode) -> None:
        """Called every few seconds: nobody waits for an address while there is one."""
        self.checks += 1
        book, agent = self._books[node.name], node.agent
        free = ""
        if agent is not None and agent.writer.waiting > 0 and agent.readiness.refusal() is None:
            chosen = choose_address(agent.writer.state, node.clock.now(), self._cooldown_s)
            free = chosen.address if chosen is not None else ""
        address, looks = book.idle
        book.idle = (free, looks + 1 if free == address else 1)
        if free and book.idle[1] >= IDLE_LOOKS_MAX:
            raise BrokenPromiseError(f"{node.name}: ADDs wait although nobody has {free}")

    @_reporting
    def after_boot(self, node: SimNode) -> None:
        """An agent has started: what was leased in another boot is no more."""
        for lease in self._books[node.name].leases.values():
            if lease.boot_id != node.clock.boot_id:
                raise BrokenPromiseError(f"{node.name} keeps {lease} over a reboot")

    @_reporting
    def no_orphans(self) -> None:
        """Minutes after the last fault nothing is attached nowhere: every open intent has been settled."""
        for eni in self._region.world.enis.values():
            if eni.attachment is None and NO_MANAGE_TAG not in eni.tags:
                raise BrokenPromiseError(
                    f"{eni.id} is an orphan, ten minutes after the last fault: {eni.tags}"
                )

    # -- at the end -------------------------------------------------------------------------------

    @_reporting
    def finish(self) -> None:
        """Nothing is left over after a long rest: no orphan, no open intent, no leaked lease, a pool in order."""
        world = self._region.world
        for eni in world.enis.values():
            if eni.attachment is None and NO_MANAGE_TAG not in eni.tags:
                raise BrokenPromiseError(f"{eni.id} is an orphan: available, {eni.tags}")
        for book in self._books.values():
            self.audit(book.node)
            self._finish_node(book)

    def _finish_node(self, book: _NodeBook) -> None:
        node = book.node
        if node.agent is None:
            raise BrokenPromiseError(f"{node.name} has no agent")
        refused = node.agent.readiness.refusal()
        if refused is not None:
            raise BrokenPromiseError(f"{node.name} is not ready: {refused}")
        state = node.agent.writer.state
        if state.intents:
            left = [intent.intended for intent in state.intents.values()]
            raise BrokenPromiseError(f"{node.name} has open intents: {left}")
        if node.agent.writer.waiting:
            raise BrokenPromiseError(f"{node.name}: {node.agent.writer.waiting} ADDs wait")
        leased = {held.address for held in book.leases.values()}
        held = {sandbox.address for sandbox in book.acked.values()}
        if leased != held:
            leaked = [book.leases[book.by_address[each]] for each in sorted(leased - held)]
            raise BrokenPromiseError(f"{node.name} leaked {leaked}, lost {sorted(held - leased)}")
        owned = {
            EniId(eni.id): set(eni.secondaries)
            for eni in node.instance.enis.values()
            if NO_MANAGE_TAG not in eni.tags
        }
        books = {
            each.facts.id: {cidr.removesuffix("/32") for cidr in each.cidrs}
            for each in state.enis.values()
            if each.managed
        }
        if owned != books:
            raise BrokenPromiseError(f"{node.name}: EC2 has {_sizes(owned)}, the books {_sizes(books)}")
        outliving = [
            eni.id
            for eni in node.instance.enis.values()
            if NO_MANAGE_TAG not in eni.tags and eni.attachment and not eni.attachment.delete_on_termination
        ]
        if outliving:
            raise BrokenPromiseError(f"{node.name} would leave {outliving} behind when it is terminated")
        check_kernel(node, list(book.acked.values()))
        self._finish_pool(node, sum(map(len, owned.values())), len(leased))

    def _finish_pool(self, node: SimNode, owned: int, used: int) -> None:
        """The pool's targets, by arithmetic of our own."""
        policy = node.agent.policy() if node.agent is not None else None
        if policy is None:
            raise BrokenPromiseError(f"{node.name} has no policy")
        per_eni = policy.slots_per_eni
        most = min((policy.enis_max - policy.unmanaged_enis) * per_eni, max(policy.max_pods, 0) + per_eni - 1)
        free = owned - used
        is_subnet_full = node.instance.subnet.addresses.free_count < per_eni + 1
        if policy.has_ip_targets:
            wanted = max(used + (policy.warm_ip_target or 0), policy.minimum_ip_target or 0)
            low, high = min(wanted, most), wanted
        else:
            low = min(used + (policy.warm_eni_target or 0) * per_eni, most - per_eni + 1)
            high = used + ((policy.warm_eni_target or 0) + 1) * per_eni
            used_enis = sum(
                any(address in self._acked_at for address in eni.addresses)
                for eni in node.instance.enis.values()
            )
            high = max(high, (used_enis + (policy.warm_eni_target or 0) + 1) * per_eni)
        if (owned < low and not is_subnet_full) or owned > high:
            raise BrokenPromiseError(
                f"{node.name}: the pool owns {owned} ({used} used, {free} free); it should own {low} to {high}"
            )


_WATCHED: Final = frozenset(
    {
        "address_assigned",
        "lease_ended",
        "effect_intended",
        "effect_confirmed",
        "effect_failed",
        "effect_abandoned",
        "invariant_broken",
    }
)


def _covers(intent: EffectIntended, params: Mapping[str, Any]) -> bool:
    """Whether a call is the one that was intended, by what it is about."""
    if intent.kind == "create":
        return bool(intent.token == params.get("ClientToken"))
    if intent.kind == "detach":
        return bool(intent.attachment == params.get("AttachmentId"))
    return bool(intent.eni == params.get("NetworkInterfaceId"))


def _unpacked(node: SimNode, snapshot: Any) -> Any:
    """The records of a stored snapshot."""
    return unpack_snapshot(snapshot, node.store.events[snapshot.seq - 1].hash)


def _compare(node: SimNode, what: str, found: Any, wanted: Any, path: str = "") -> None:
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            _compare(node, what, found.get(key), wanted.get(key), f"{path}/{key}")
    raise BrokenPromiseError(f"{node.name}: {what} differs at {path}: {found!r} is not {wanted!r}")


def _sizes(owned: Mapping[EniId, set[str]]) -> dict[str, int]:
    return {eni: len(addresses) for eni, addresses in sorted(owned.items())}
