"""The promises, checked from outside after every event.

What is believed here: the emulated EC2 (who owns an address, where an ENI hangs), the runtime's own record of
what was acknowledged and what was deleted, and the bytes that reached the disk. The agent's state is looked at
only to compare it with those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from vpccni.adapters.log_format import opened, unpack_snapshot
from vpccni.api.views import pods_view
from vpccni.datapath.objects import Difference
from vpccni.evidence import Row
from vpccni.lab.ec2 import Region
from vpccni.lab.sim import handover
from vpccni.lab.sim.books import LastUse, NodeBook
from vpccni.lab.sim.disk_checks import DiskChecks
from vpccni.lab.sim.ec2_checks import reporting
from vpccni.lab.sim.kernel_checks import check_kernel, check_reachable, check_wired
from vpccni.lab.sim.leftovers import why_it_stays
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.promises import BrokenPromiseError
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.loops.write import fold_start
from vpccni.model import Address, EniId, LeaseId
from vpccni.planner.assign import choose_address
from vpccni.planner.reconcile import NO_MANAGE_TAG
from vpccni.ports import LogStart
from vpccni.projections.snapshot import picture, restore, snapshot_of
from vpccni.projections.state import State

SETTLED_S: Final = 75.0
"""After another one has served: within this we have looked at the whole kernel once more."""
LINK_LOSS_SLACK_S: Final = 10.0
"""Until the loss of a NIC is on a slow disk."""
IDLE_LOOKS_MAX: Final = 3
"""In so many looks in a row the same address was free: what is being given away on a slow disk is so in fewer."""


class Checker(DiskChecks):
    """Follows everything that happens. ``cooldown_s`` is every node's; ``report`` gets each broken promise.

    Attributes:
        stays: Leases that nothing could end any more, as the last look found them, one sentence each.
    """

    def __init__(self, region: Region, cooldown_s: float, report: Callable[[str], None]) -> None:
        super().__init__(region, cooldown_s, report)
        self.stays: list[str] = []

    def follow(self, node: SimNode) -> None:
        """Begin with a node."""
        self._books[node.name] = NodeBook(node=node)

    # -- the runtime's side -----------------------------------------------------------------------

    @reporting
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
        self._take_in(book, sandbox)

    @reporting
    def on_original_acked(self, node: SimNode, sandbox: Sandbox) -> None:
        """An ADD of the original's plugin has succeeded."""
        self.checks += 1
        before = self._acked_at.get(sandbox.address)
        if before is not None and before is not sandbox:
            raise BrokenPromiseError(
                f"{sandbox.address} has two holders: {before.told} and {sandbox.told}, which the original wired"
            )
        check_reachable(node, sandbox)
        self._take_in(self._books[node.name], sandbox)

    def _take_in(self, book: NodeBook, sandbox: Sandbox) -> None:
        sandbox.acked_at = book.node.loop.time()
        self._acked_at[sandbox.address] = sandbox
        book.acked[sandbox.key] = sandbox

    @reporting
    def on_repeated(self, node: SimNode, sandbox: Sandbox, address: Address) -> None:
        """A repeated ADD of an acknowledged sandbox was answered with success."""
        self.checks += 1
        if address != sandbox.address:
            raise BrokenPromiseError(
                f"{sandbox.told} had {sandbox.address}; the same ADD again gave {address}"
            )

    @reporting
    def on_refused(self, sandbox: Sandbox, verb: str, answer: Mapping[str, Any]) -> None:
        """A request was answered with an error."""
        self.checks += 1
        if answer.get("reason") in ("internal", "invariant_broken", "bad_request"):
            raise BrokenPromiseError(f"{verb} of {sandbox.told} was refused with {answer}")

    @reporting
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
        book = self._books[node.name]
        if self._acked_at.get(sandbox.address) is sandbox:
            del self._acked_at[sandbox.address]
            self._last_use[sandbox.address] = LastUse(node.loop.time(), book, node.clock.boots)
        if book.acked.get(sandbox.key) is sandbox:
            del book.acked[sandbox.key]

    def on_boot(self, node: SimNode) -> None:
        """The machine was rebooted: nothing of before lives."""
        book = self._books[node.name]
        book.boots = node.clock.boots
        for sandbox in list(book.acked.values()):
            self.on_released(node, sandbox)

    # -- who serves -------------------------------------------------------------------------------

    def is_living(self, node: SimNode, address: Address) -> bool:
        """See :class:`vpccni.lab.sim.original.OriginalWatcher`. An open lease counts, too."""
        return address in self._acked_at or address in self._books[node.name].by_address

    def on_original_restored(
        self, node: SimNode, kept: dict[Address, Row], listed: Collection[Address]
    ) -> frozenset[Address]:
        """See :class:`vpccni.lab.sim.original.OriginalWatcher`."""
        self.checks += 1
        book = self._books[node.name]
        try:
            return handover.lost_by_restore(book, list(book.acked.values()), kept, listed)
        except BrokenPromiseError as error:
            self.report(str(error))
            return frozenset()

    @reporting
    def on_exported(self, node: SimNode, content: bytes, *, is_allowed: bool) -> None:
        """Our agent has replaced the checkpoint file."""
        self.checks += 1
        handover.check_exported(self._books[node.name], content, is_allowed=is_allowed)

    @reporting
    def on_kernel_change(self, node: SimNode, difference: Difference) -> None:
        """Our agent changes the kernel."""
        handover.check_kernel_change(node, difference)

    @reporting
    def on_end(self, node: SimNode, *, is_clean: bool) -> None:
        """Our agent ends."""
        self.checks += 1
        book, now = self._books[node.name], node.loop.time()
        is_writing = node.checkpoints.is_writable and handover.may_export(node)
        if not is_clean:
            is_writing &= now - book.may_export_since >= handover.SETTLES_S
        book.left = ("clean" if is_clean else "killed", now, is_writing)
        book.may_export_since = float("inf")
        if is_clean:
            handover.check_last_export(book)

    # -- now and then -----------------------------------------------------------------------------

    @reporting
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
        if not agent.recovery.is_done or node.original.is_running:
            return
        is_settled = node.loop.time() - node.original.ended_at > SETTLED_S
        for sandbox in book.acked.values():
            if sandbox.address not in told and node.loop.time() - sandbox.acked_at > SETTLED_S:
                raise BrokenPromiseError(f"/v1/pods has forgotten {sandbox.told} with {sandbox.address}")
            if is_settled and not _is_way_unknown(node, live, sandbox):
                (check_wired if sandbox.served_by == "ours" else check_reachable)(node, sandbox)

    @reporting
    def look_at_waiting(self, node: SimNode) -> None:
        """Called every few seconds: nobody waits for an address while there is one."""
        self.checks += 1
        book, agent = self._books[node.name], node.agent
        handover.check_told(node)
        handover.check_export_is_current(book)
        free = ""
        if agent is not None and agent.writer.waiting > 0 and agent.readiness.refusal() is None:
            chosen = choose_address(agent.writer.state, node.clock.now(), self._cooldown_s)
            free = chosen.address if chosen is not None else ""
        address, looks = book.idle
        book.idle = (free, looks + 1 if free == address else 1)
        if free and book.idle[1] >= IDLE_LOOKS_MAX:
            raise BrokenPromiseError(f"{node.name}: ADDs wait although nobody has {free}")

    @reporting
    def after_boot(self, node: SimNode) -> None:
        """An agent has started: what was leased in another boot is no more."""
        book = self._books[node.name]
        for lease in book.leases.values():
            if lease.boot_id != node.clock.boot_id:
                raise BrokenPromiseError(f"{node.name} keeps {lease} over a reboot")

    @reporting
    def no_orphans(self) -> None:
        """Minutes after the last fault nothing is attached nowhere: every open intent has been settled.

        What only a lost log knew of, or what the original left, is found by the hourly look alone.
        """
        books = self._books.values()
        if any(book.had_lost_log or book.node.original.left_behind for book in books):
            return
        for eni in self._region.world.enis.values():
            if eni.attachment is None and NO_MANAGE_TAG not in eni.tags:
                raise BrokenPromiseError(
                    f"{eni.id} is an orphan, ten minutes after the last fault: {eni.tags}"
                )

    # -- at the end -------------------------------------------------------------------------------

    @reporting
    def finish(self) -> None:
        """Nothing is left over after a long rest: no orphan, no open intent, no leaked lease, a pool in order."""
        world = self._region.world
        leased = {address for book in self._books.values() for address in book.by_address}
        for eni in world.enis.values():
            # One with an address that a file gives to a pod stays as long as that lease, which may be until a reboot.
            is_ours = NO_MANAGE_TAG not in eni.tags and leased.isdisjoint(eni.addresses)
            if eni.attachment is None and is_ours:
                raise BrokenPromiseError(f"{eni.id} is an orphan: available, {eni.tags}")
        for book in self._books.values():
            self.audit(book.node)
            self._finish_node(book)

    def _finish_node(self, book: NodeBook) -> None:
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
        leaked = []
        for lease_id in [book.by_address[each] for each in sorted(leased - held)]:
            why = why_it_stays(node, state.leases[lease_id])
            self.stays += [why] if why else []
            leaked += [] if why else [book.leases[lease_id]]
        if leaked or held - leased:
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
        check_kernel(node, list(book.acked.values()), leased)
        every = set().union(*owned.values())
        self._finish_pool(node, len(every), len(leased & every))

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


def _is_way_unknown(node: SimNode, state: State, sandbox: Sandbox) -> bool:
    """Whether the original took the rules of a pod away and nothing has told since by which ENI its packets leave.

    A log that knew it would put them back. When it is lost, too, EC2 must list the address first.
    """
    if sandbox.address not in node.original.lost:
        return False
    return state.by_address.get(sandbox.address) in state.unlocated


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
