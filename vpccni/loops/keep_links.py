"""Keep the kernel as the books want it: ENI links set up as they appear, stray differences repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NoReturn

import structlog

from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, find_link, setup_eni, sweep
from vpccni.datapath.names import alias_of
from vpccni.datapath.objects import Applied, DatapathSettings, Difference, LinkChange, Observed
from vpccni.errors import InvariantBrokenError, VpccniError
from vpccni.events.codec import Record
from vpccni.events.eni import EniDetached, EniGone
from vpccni.loops.wiring import attached_enis, eni_wiring, lease_wiring, rest_wiring
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
    """The loop of the kernel."""

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
    ) -> None:
        self._writer = writer
        self._kernel = kernel
        self._clock = clock
        self._settings = settings
        self._free_turn_of = free_turn_of
        self._may_change = may_change
        self._on_link = on_link
        self._wake = asyncio.Event()
        self._must_converge = False
        self.problem = ""
        self.converged_mode = ""

    def on_records(self, records: Sequence[Record]) -> None:
        """Attaches make links to set up; detaches leave rules to take away."""
        # What an ENI left in the kernel must not wait for the next regular look, because its address may be
        # another node's a second later.
        if any(isinstance(record.event, (EniDetached, EniGone)) for record in records):
            self._must_converge = True
            self.wake()

    def converge_soon(self) -> None:
        """What is wanted has changed: look at the whole now."""
        self._must_converge = True
        self.wake()

    def wake(self) -> None:
        """A link may have come or gone, or an ENI was attached."""
        self._wake.set()

    # -- the whole difference ---------------------------------------------------------------------

    async def converge(self, observed: Observed | None = None) -> Observed:
        """Bring everything that is ours in line: at start, and every now and then.

        Args:
            observed: What the kernel looks like, if that was just read.

        Raises:
            PermanentError: the kernel refused; what could be done is done.
        """
        observed = observed or await self._kernel.observe()
        state = self._writer.state
        wanted = desired(
            [lease_wiring(lease) for lease in state.leases.values()],
            attached_enis(state),
            self._settings,
            state.vpc_cidrs,
        )
        made = difference(wanted, observed)
        mode = state.mode
        applied = await self._kernel.apply(made)
        self.converged_mode = mode
        await self._note_enis(applied, made)
        self._note_unwired(observed, applied)
        return observed

    async def _note_enis(self, applied: Applied, made: Difference) -> None:
        ready = {eni: (eni, name, index) for eni, (name, index) in applied.enis.items()}
        ready |= {link.eni: (link.eni, link.ifname, link.ifindex) for link in made.enis_ready}
        lost = [(eni, "no link has its MAC") for eni in (*made.enis_missing, *applied.missing_links)]
        note = c.NoteLinks(
            ready=tuple(ready[eni] for eni in sorted(ready)),
            lost=tuple(sorted(pair for pair in set(lost) if pair[0] not in ready)),
        )
        await self._writer.submit(note)

    def _note_unwired(self, observed: Observed, applied: Applied) -> None:
        """Ended leases none of whose veths is (still) there."""
        gone = set(applied.removed_veths)
        aliases = {link.alias for link in observed.links if link.alias and link.ifindex not in gone}
        leases = tuple(
            lease
            for lease, rest in self._writer.state.standing.items()
            if (rest.wired.alias if rest.wired else alias_of(rest.key)) not in aliases
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
        if link.alias and change.kind == "removed":
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


def has_primary_link(observed: Observed, mac: str) -> bool:
    """Whether the link with the primary ENI's MAC is here: the proof that this is still the same machine."""
    return bool(mac) and find_link(observed.links, mac) is not None
