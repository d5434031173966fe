"""Keep the kernel as the books want it: ENI links set up as they appear, stray differences repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NoReturn

import msgspec
import structlog

from vpccni.datapath.desired import desired, veth_removals
from vpccni.datapath.difference import difference, find_link, setup_eni, sweep
from vpccni.datapath.objects import (
    Applied,
    DatapathSettings,
    Desired,
    Difference,
    LinkChange,
    LinkSeen,
    Observed,
    PathChange,
)
from vpccni.errors import InvariantBrokenError, VpccniError
from vpccni.events.adoption import ModeChanged
from vpccni.events.codec import Record
from vpccni.events.eni import EniDetached, EniGone
from vpccni.events.node import NetworkConfigObserved
from vpccni.events.sandbox import AddressAssigned, AddressHeld, LeaseEnded, LeaseLocated
from vpccni.loops.watch_paths import PathWatch
from vpccni.loops.wiring import (
    attached_enis,
    eni_wiring,
    is_handing_back,
    lease_wiring,
    note_removed,
    rest_wiring,
)
from vpccni.loops.write import Writer
from vpccni.model import EniId, SandboxKey
from vpccni.planner import commands as c
from vpccni.ports import Clock, Kernel
from vpccni.projections.leases import Rest
from vpccni.projections.state import State

_log = structlog.get_logger("keep_links")

PERIOD_S: Final = 60.0
"""A whole look at the kernel: what somebody else flushed is repaired within this."""
MISSING_PERIOD_S: Final = 0.5
"""While an attached ENI has no link: netlink tells at once, this is in case it did not."""
FAILING_PERIOD_MAX_S: Final = 10.0
"""A whole look costs some 40 ms: what fails for good is not tried more often than this."""
VETH_GRACE_S: Final = 2.0
"""A namespace's end takes its veth along; what still stands after this is deleted by us."""


class KeepLinks:
    """The loop of the kernel.

    Attributes:
        problem: Why the kernel is not as it should be; empty when it is.
        notes: What the last look could not do, and what matters less, one sentence each.
        converged_mode: The mode in which the kernel was last brought in line.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        kernel: Kernel,
        clock: Clock,
        settings: DatapathSettings,
        free_turn_of: Callable[[SandboxKey], AbstractAsyncContextManager[bool]],
        may_change: Callable[[], bool],
        on_link: Callable[[LinkChange], None],
        confirm: Callable[[Sequence[LinkSeen]], Awaitable[None]],
    ) -> None:
        self._writer = writer
        self._kernel = kernel
        self._clock = clock
        self._settings = settings
        self._free_turn_of = free_turn_of
        self._may_change = may_change
        self._on_link = on_link
        self._confirm = confirm
        self._paths = PathWatch(writer=writer, kernel=kernel, on_amiss=self.converge_soon)
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._seen: Observed | None = None
        self._must_converge = False
        self.problem = ""
        self.notes: tuple[str, ...] = ()
        self.converged_mode = ""

    def on_records(self, records: Sequence[Record]) -> None:
        """Attaches make links to set up; detaches leave rules to take away."""
        # What an ENI left in the kernel must not wait for the next regular look, because its address may be
        # another node's a second later. Pods that were found are still wired as somebody else did it.
        if any(_changes_what_is_wanted(record.event) for record in records):
            self.converge_soon()

    def converge_soon(self) -> None:
        """What is wanted has changed: look at the whole now."""
        self._must_converge = True
        self.wake()

    def look_soon(self) -> None:
        """Something may have been left in the kernel: look at the whole, but not more often than every second."""
        self._paths.hear(PathChange())

    async def follow_paths(self) -> NoReturn:
        """What netlink tells of rules and host routes: what is not our own doing leads to a look."""
        await self._paths.run()

    def wake(self) -> None:
        """A link may have come or gone, or an ENI was attached."""
        self._wake.set()

    # -- the whole difference ---------------------------------------------------------------------

    async def look(self) -> Observed:
        """Read the kernel. Whoever is found only now has a lease before anything is decided.

        Raises:
            PermanentError: the kernel could not be read.
        """
        observed = self._seen = await self._kernel.observe()
        await self._confirm(observed.links)
        return observed

    async def converge(self, observed: Observed | None = None) -> None:
        """Bring everything that is ours in line: at start, and every now and then.

        Args:
            observed: What ``look`` has returned; without it, or when the kernel was changed since, it looks again.

        Raises:
            PermanentError: the kernel refused; what could be done is done.
        """
        # What one has removed must not be missed by another that looked before: one at a time.
        async with self._turn:
            if observed is None or observed is not self._seen:
                observed = await self.look()
            self._seen = None
            if self._may_change():
                await self._bring_in_line(observed)

    async def _bring_in_line(self, observed: Observed) -> None:
        state = self._writer.state
        mode = state.mode
        wanted = desired(
            [lease_wiring(lease) for lease in state.leases.values()],
            attached_enis(state),
            self._settings,
            state.vpc_cidrs,
            ended=[rest_wiring(rest) for rest in state.standing.values()],
            as_original=is_handing_back(state),
        )
        made = difference(wanted, observed)
        # Veths of ended leases are the sweep's, which gives their namespaces time to take them along.
        made = msgspec.structs.replace(made, veths_delete=())
        try:
            applied = await self._kernel.apply(made)
        except VpccniError:
            # Nobody may be put on what is surely gone, however long it takes until the rest is done.
            await self._note_lost(made, observed)
            raise
        self.converged_mode = mode
        self._tell(wanted, observed, applied)
        await self._note_enis(applied, made)
        self._note_unwired(observed)

    def _tell(self, wanted: Desired, observed: Observed, applied: Applied) -> None:
        """What was removed goes on record; what could not be done is told."""
        note = note_removed(applied.removed)
        if note is not None:
            _log.info("foreign_objects_removed", count=len(note.events))
            self._writer.post(note)
        notes = [*wanted.notes, *applied.notes]
        state = self._writer.state
        if state.imported is not None or any(lease.origin != "add" for lease in state.leases.values()):
            notes += observed.firewall.problems
        if tuple(notes) != self.notes and notes:
            _log.warning("kernel_notes", notes=notes)
        self.notes = tuple(notes)

    async def _note_enis(self, applied: Applied, made: Difference) -> None:
        ready = {eni: (eni, name, index) for eni, (name, index) in applied.enis.items()}
        ready |= {link.eni: (link.eni, link.ifname, link.ifindex) for link in made.enis_ready}
        lost = [(eni, "no link has its MAC") for eni in (*made.enis_missing, *applied.missing_links)]
        note = c.NoteLinks(
            ready=tuple(ready[eni] for eni in sorted(ready)),
            lost=tuple(sorted(pair for pair in set(lost) if pair[0] not in ready)),
        )
        await self._writer.submit(note)

    async def _note_lost(self, made: Difference, observed: Observed) -> None:
        """ENIs whose link is gone, or is another one than the books have and not set up."""
        lost = [(eni, "no link has its MAC") for eni in made.enis_missing]
        for setup in made.enis:
            held, link = self._writer.state.enis.get(setup.eni), find_link(observed.links, setup.mac)
            if held is not None and link is not None and held.ifindex != link.ifindex:
                lost.append((setup.eni, f"{link.ifname} has its MAC and is not set up"))
        try:
            await self._writer.submit(c.NoteLinks(lost=tuple(lost)))
        except VpccniError as error:
            _log.warning("link_loss_not_noted", enis=[eni for eni, _ in lost], reason=error.reason)

    def _note_unwired(self, observed: Observed) -> None:
        """Ended leases whose veth is not there (any more)."""
        veths = [link for link in observed.links if link.kind == "veth"]
        aliases = {link.alias for link in veths if link.alias}
        unnamed = {(link.ifname, link.mac) for link in veths if not link.alias}
        rests = list(self._writer.state.standing.values())
        removals = veth_removals([rest_wiring(rest) for rest in rests], self._settings.veth_prefix)
        leases = tuple(
            rest.lease
            for rest, removal in zip(rests, removals, strict=True)
            if removal.alias not in aliases and (removal.ifname, removal.mac) not in unnamed
        )
        if leases:
            self._writer.post(c.NoteUnwired(leases))

    # -- the loop ---------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Set up what appears, sweep what is left, and look at the whole now and then."""
        loop = asyncio.get_running_loop()
        looked_at, failures = loop.time(), 0
        while True:
            await self._pause()
            if not self._may_change():
                self._must_converge = True
                await asyncio.sleep(MISSING_PERIOD_S)
                continue
            try:
                await self._set_up_missing()
                await self._sweep_veths()
                if self._must_converge or loop.time() - looked_at > PERIOD_S:
                    looked_at, self._must_converge = loop.time(), False
                    await self.converge()
                self.problem, failures = "", 0
            except VpccniError as error:
                if self.problem != error.detail:
                    _log.warning("kernel_problem", reason=error.reason, detail=error.detail)
                self.problem = error.detail or str(error.reason)
                self._must_converge = True
                failures += 1
                await asyncio.sleep(min(MISSING_PERIOD_S * failures, FAILING_PERIOD_MAX_S))

    async def _pause(self) -> None:
        pause = PERIOD_S
        state = self._writer.state
        if self._must_converge or self._without_link(state):
            pause = MISSING_PERIOD_S
        elif state.standing:
            pause = VETH_GRACE_S / 2
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    @staticmethod
    def _without_link(state: State) -> list[EniId]:
        return [
            held.facts.id
            for held in state.enis.values()
            if held.managed and held.phase == "attached" and not held.is_link_ready and not held.is_retiring
        ]

    async def _set_up_missing(self) -> None:
        state = self._writer.state
        for eni_id in self._without_link(state):
            held = state.enis.get(eni_id)
            # It may have left the books while the one before it was set up.
            if held is not None and held.facts.primary and held.facts.subnet_cidr:
                applied = await self._kernel.apply(setup_eni(eni_wiring(held), self._settings))
                await self._note_enis(applied, Difference())

    async def _sweep_veths(self) -> None:
        """Veths of ended leases: gone with their namespace, or deleted now."""
        now = self._clock.now()
        state = self._writer.state
        due = [rest for rest in state.standing.values() if state.elapsed_s(rest.ended, now) >= VETH_GRACE_S]
        if not due:
            return
        known = [rest for rest in due if rest.wired is not None]
        await self._sweep(known)
        done = known + [rest for rest in due if rest.wired is None and await self._sweep_by_name(rest)]
        self._writer.post(c.NoteUnwired(tuple(rest.lease for rest in done)))

    async def _sweep(self, rests: list[Rest]) -> None:
        if rests:
            wirings = [rest_wiring(rest) for rest in rests]
            await self._kernel.apply(sweep(wirings, veth_prefix=self._settings.veth_prefix))

    async def _sweep_by_name(self, rest: Rest) -> bool:
        """A veth whose index nobody wrote down. Whether nothing of it stands any more.

        A sandbox that uses the key again has the same name and alias: in its turn it is seen whether there is
        one. Its wiring replaces what is in the way, so that when it is done there is nothing to sweep.
        """
        async with self._free_turn_of(rest.key) as is_free:
            again = self._writer.state.lease_of(rest.key)
            if not is_free or again is not None:
                return again is not None and again.wired is not None
            await self._sweep([rest])
            return True

    async def follow_links(self) -> NoReturn:
        """What netlink tells: an ENI's link comes, or goes."""
        async for change in self._kernel.link_changes():
            await self._on_change(change)
        raise InvariantBrokenError("the kernel's link changes ended")

    async def _on_change(self, change: LinkChange) -> None:
        state = self._writer.state
        link = change.link
        self._on_link(change)
        held = next((held for held in state.enis.values() if held.facts.mac == link.mac.lower()), None)
        if link.kind == "veth" and change.kind == "removed":
            self._note_veth_gone(link.ifindex)
        if held is None or link.alias:
            return
        if change.kind == "removed" and held.ifindex == link.ifindex and held.is_link_ready:
            lost = ((held.facts.id, f"{link.ifname} vanished"),)
            try:
                await self._writer.submit(c.NoteLinks(lost=lost))
            except VpccniError as error:
                # Nothing may be put on it: the whole is looked at, and noted, until the log takes it.
                _log.warning("link_loss_not_noted", eni=held.facts.id, reason=error.reason)
                self._must_converge = True
                self._wake.set()
        elif not held.is_link_ready or held.ifname != link.ifname:
            self._wake.set()

    def _note_veth_gone(self, ifindex: int) -> None:
        """A pod's namespace ended: its address waits for its rest only, and not for the sweep."""
        leases = tuple(
            lease
            for lease, rest in self._writer.state.standing.items()
            if rest.wired is not None and rest.wired.host_ifindex == ifindex
        )
        if leases:
            self._writer.post(c.NoteUnwired(leases))


def _changes_what_is_wanted(event: object) -> bool:
    if isinstance(event, AddressAssigned):
        return event.origin != "add"
    if isinstance(event, LeaseEnded):
        return "runtime" not in event.sources and event.cause != "add_failed"
    return isinstance(
        event, (EniDetached, EniGone, AddressHeld, LeaseLocated, ModeChanged, NetworkConfigObserved)
    )


def has_primary_link(observed: Observed, mac: str) -> bool:
    """Whether the link with the primary ENI's MAC is here: the proof that this is still the same machine."""
    return bool(mac) and find_link(observed.links, mac) is not None
