"""Serve the runtime: each verb from the checked call to the answer.

For one sandbox (network, container id, ifname) one request is served at a time, in the order of arrival. A DEL
that finds an ADD under way cancels it, waits until the ADD has been undone, and then succeeds.

ADD: lease durable, then wired, then answered. Whatever fails in between is undone before the error is told.
DEL: end of lease durable and, at the same time, its routes and rules removed; then answered; the veth dies with its
namespace. The route need not wait for the record: the pod is going, and a lease that stays open for want of a
record gets its route again at the next look at the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec
import structlog

from vpccni.adapters.finish import finish
from vpccni.api import cni
from vpccni.api.cni import Call, CniFault, Wired
from vpccni.datapath.desired import pod_wiring
from vpccni.datapath.difference import unwire, wire
from vpccni.datapath.objects import Applied, DatapathSettings, Difference, SandboxSeen
from vpccni.errors import Reason, TransientError, VpccniError
from vpccni.evidence import GC_LIST
from vpccni.loops.asked import AddRefusedError
from vpccni.loops.readiness import Readiness
from vpccni.loops.turns import Flight, Turns
from vpccni.loops.wiring import (
    attached_enis,
    is_handing_back,
    lease_wiring,
    note_removed,
    rest_wiring,
    sandbox_wired,
)
from vpccni.loops.write import Writer
from vpccni.model import LeaseId, SandboxKey, Stamp
from vpccni.planner import commands as c
from vpccni.planner.decide_leases import find_leases
from vpccni.ports import Clock, Kernel, Spool, SpooledDel
from vpccni.projections.leases import Lease

_log = structlog.get_logger("cni")

IN_FLIGHT_MAX: Final = 2048
GC_LATE_S: Final = 60.0
"""A GC waits for an agent that restarts: its list may be older than a lease that is younger than this."""


class Reply(msgspec.Struct, frozen=True):
    """An answer: HTTP status and JSON body. 200 is success, everything else carries a CNI error.

    Status 0: no answer, hang up. The executable then asks again, and the next agent answers: a pod that
    waits does not notice a restart.
    """

    status: int
    body: bytes = b"{}"


class CniService:
    """The verbs."""

    def __init__(
        self,
        *,
        writer: Writer,
        kernel: Kernel,
        spool: Spool,
        clock: Clock,
        datapath: DatapathSettings,
        add_wait_s: float,
        readiness: Readiness,
        on_gc: Callable[[frozenset[LeaseId]], None],
        look_soon: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._kernel = kernel
        self._spool = spool
        self._clock = clock
        self._datapath = datapath
        self._add_wait_s = add_wait_s
        self._readiness = readiness
        self._on_gc = on_gc
        self._look_soon = look_soon
        self._turns = Turns()
        self._in_flight = 0
        self.is_stopping = False
        self.refuses_host_ports = False
        """Whether no plugin of the node's conflist serves host ports, as it was installed or as a runtime uses it."""

    async def handle(self, body: bytes) -> Reply:
        """Answer one request. Never raises but for cancellation: the caller went away."""
        verb, version = "", "1.1.0"
        if self._in_flight >= IN_FLIGHT_MAX:
            return _fault(CniFault(Reason.TOO_BUSY, f"{IN_FLIGHT_MAX} requests under way"))
        self._in_flight += 1
        try:
            call = cni.decode(body)
            verb, version = call.verb, call.version
            if verb in ("ADD", "STATUS"):  # these carry the live conflist; a DEL may carry a pod's old one
                self.refuses_host_ports = call.takes_host_ports
            return await self._serve(call, body)
        except CniFault as fault:
            return _fault(fault, verb)
        except VpccniError as error:
            return _fault(CniFault(error.reason, error.detail, version), verb)
        except Exception as error:  # noqa: BLE001 - nothing a client sends ends the agent
            _log.exception("request_failed", verb=verb)
            return _fault(CniFault(Reason.INTERNAL, type(error).__name__, version), verb)
        finally:
            self._in_flight -= 1

    async def _serve(self, call: Call, body: bytes) -> Reply:
        match call.verb:
            case "ADD":
                wired = await self._add(call)
                return Reply(200, cni.result(call.version, wired, call.previous))
            case "DEL":
                await self._del(call, body)
            case "CHECK":
                await self._check(call)
            case "STATUS":
                refused = self._readiness.unusable()
                if refused is not None:
                    raise CniFault(refused.reason, refused.detail, call.version)
                warnings = [Reason.PORTMAP_MISSING] if call.takes_host_ports else []
                if self._readiness.unexplained is not None:
                    warnings.append(Reason.ADDRESS_UNEXPLAINED)
                return Reply(200, cni.status_body(call.version, warnings))
            case _:
                await self._gc(call)
        return Reply(200)

    # -- one at a time for each sandbox -----------------------------------------------------------

    def turn_of(self, key: SandboxKey) -> AbstractAsyncContextManager[Flight]:
        """Be the only one that works for this sandbox, after all who came before."""
        return self._turns.of(key)

    def free_turn_of(self, key: SandboxKey) -> AbstractAsyncContextManager[bool]:
        """Be the only one, if nobody is: an ADD may hold its turn for as long as it waits for an address."""
        return self._turns.free(key)

    # -- ADD --------------------------------------------------------------------------------------

    async def _add(self, call: Call) -> Wired:
        if self.is_stopping:
            raise CniFault(Reason.STOPPING, "", call.version)
        if call.host_ports:
            raise self._refuse_host_ports(call)
        before = self._turns.under_way(call.key)
        dels_before = before.dels if before is not None else 0
        async with self.turn_of(call.key) as flight:
            if flight.dels != dels_before:
                raise CniFault(Reason.CANCELLED, "", call.version)
            flight.since = self._clock.now()
            if self._writer.state.lease_of(call.key) is not None:
                await self._end_by_spool(call.key)
            async with asyncio.TaskGroup() as group:
                # A task of its own, so that a DEL can cancel the work and not the connection.
                flight.add = group.create_task(self._try_add(call), name=f"add {call.key.container_id}")
                try:
                    await asyncio.wait([flight.add])
                finally:
                    add, flight.add = flight.add, None
            # Outside of the group, which would wrap what is raised and hide its reason.
            if add.cancelled():
                raise CniFault(Reason.CANCELLED, "", call.version)
            outcome = add.result()
            if isinstance(outcome, VpccniError):
                raise CniFault(outcome.reason, outcome.detail, call.version) from outcome
            return outcome

    def _refuse_host_ports(self, call: Call) -> CniFault:
        """A pod must not run without its host ports, and they come to us when nobody serves them."""
        detail = f"asked for: {', '.join(call.host_ports[:8])}"
        refuse = c.RefuseAdd(
            key=call.key,
            pod=call.pod,
            reason=Reason.PORTMAP_MISSING,
            detail=detail,
            ends_lease=False,
            request=0,
        )
        self._writer.post(refuse)
        return CniFault(Reason.PORTMAP_MISSING, detail, call.version)

    async def _try_add(self, call: Call) -> Wired | VpccniError:
        """A refusal as a value: raised, it would end the group and the caller's wait with it."""
        try:
            return await self._assign_and_wire(call)
        except VpccniError as error:
            return error

    async def _assign_and_wire(self, call: Call) -> Wired:
        is_repeated = self._writer.state.lease_of(call.key) is not None
        was_wired = False
        try:
            lease = await self._lease_for(call)
            if lease.origin != "add" and not is_repeated:
                # A search has found the sandbox while the ADD waited. A DEL in the spool came before that ADD.
                is_repeated = True
                await self._end_by_spool(call.key)
                is_repeated = lease.id in self._writer.state.leases
                lease = await self._lease_for(call)
            was_wired = True
            seen = await self._wire(lease, call.netns)
        except asyncio.CancelledError:
            await self._undo(call, Reason.CANCELLED, "", is_repeated, was_wired)
            raise
        except VpccniError as error:
            # A failed wiring was undone by the kernel adapter itself: no packet carried the address.
            request = error.request if isinstance(error, AddRefusedError) else -1
            await self._undo(call, error.reason, error.detail, is_repeated, was_wired=False, request=request)
            raise
        except Exception as error:
            # Nobody knows how far it came: what it may have made is taken down and its address rests.
            await self._undo(call, Reason.INTERNAL, type(error).__name__, is_repeated, was_wired)
            raise
        return Wired(
            host_ifname=seen.host_ifname,
            host_mac=seen.host_mac,
            pod_mac=seen.pod_mac,
            ifname=call.key.ifname,
            netns=call.netns,
            mtu=self._datapath.pod_mtu,
            bindings=lease.bindings,
        )

    async def _lease_for(self, call: Call) -> Lease:
        add = c.Add(key=call.key, pod=call.pod, netns=call.netns)
        decision = await self._writer.submit(add, wait_s=self._add_wait_s)
        return self._writer.state.leases[decision.lease]

    async def _wire(self, lease: Lease, netns: str) -> SandboxSeen:
        state = self._writer.state
        made = wire(
            lease_wiring(lease, netns),
            attached_enis(state),
            self._datapath,
            as_original=is_handing_back(state),
        )
        # Shielded: half a wiring cannot be undone by somebody who does not know how far it came.
        applied = await finish(self._kernel.apply(made), "wire")
        seen = applied.sandboxes[lease.id]
        self._writer.post(c.NoteWired(sandbox_wired(lease, seen, netns)))
        self._tell_removed(applied)
        return seen

    def _tell_removed(self, applied: Applied) -> None:
        """What of amazon-vpc-cni-k8s was in the way. While the node is handed back such objects are our own."""
        note = note_removed(applied.removed) if not is_handing_back(self._writer.state) else None
        if note is not None:
            self._writer.post(note)

    async def _undo(
        self,
        call: Call,
        reason: Reason,
        detail: str,
        is_repeated: bool,
        was_wired: bool,
        request: int = -1,
    ) -> None:
        """Take back what an ADD did; a lease that may have been acknowledged before stays."""
        refuse = c.RefuseAdd(
            key=call.key,
            pod=call.pod,
            reason=reason,
            detail=detail[:500],
            ends_lease=not is_repeated,
            was_wired=was_wired,
            request=request,
        )
        if is_repeated or reason in (Reason.STOPPING, Reason.TOO_BUSY, Reason.TOO_MANY_WAITING):
            self._writer.post(refuse)
            return
        await finish(self._take_back(call.key, refuse), "undo")

    async def _take_back(self, key: SandboxKey, refuse: c.RefuseAdd) -> None:
        try:
            await self._writer.submit(refuse)
            if refuse.was_wired:
                for rest in [held for held in self._writer.state.standing.values() if held.key == key]:
                    await self._kernel.apply(unwire(rest_wiring(rest)))
        except VpccniError as error:
            # The lease stays open in the log: kubelet's DEL, or the lease sweep, ends it.
            _log.error("undo_failed", container_id=key.container_id, reason=error.reason, detail=error.detail)

    # -- DEL --------------------------------------------------------------------------------------

    async def _del(self, call: Call, body: bytes) -> None:
        flight = self._turns.under_way(call.key)
        if flight is not None:
            flight.dels += 1
            if flight.add is not None:
                flight.add.cancel()
        async with self.turn_of(call.key):
            await finish(self._end(call, body), "del")

    async def _end(self, call: Call, body: bytes) -> None:
        state = self._writer.state
        end = c.EndLease(
            key=call.key, cause="del", sources=("runtime",), addresses=call.addresses, netns=call.netns
        )
        leases = find_leases(state, end)
        if not leases and self._readiness.hold is not None:
            # A search may be about to find this sandbox: the DEL is carried out when that is over.
            await self._spool.write(body, self._clock.now())
            return
        async with asyncio.TaskGroup() as group:
            if state.other_agent is None:
                for lease in leases:
                    group.create_task(self._unwire(lease), name=f"unwire {call.key.container_id}")
            refused = await self._record_end(end, body)
        if refused is not None:
            raise refused
        if not leases and any(address not in state.by_address for address in call.addresses):
            # A sandbox that the log never had: what its rules and routes left is found by a look at the whole.
            self._look_soon()

    async def _record_end(self, end: c.EndLease, body: bytes) -> VpccniError | None:
        """A refusal as a value: the group would hide it."""
        try:
            await self._writer.submit(end)
        except VpccniError as error:
            # The log takes nothing just now: the DEL is kept where the executable keeps it, too.
            _log.error("del_spooled", reason=error.reason, detail=error.detail)
            try:
                await self._spool.write(body, self._clock.now())
            except VpccniError as unwritten:
                return unwritten
        return None

    async def _unwire(self, lease: Lease) -> None:
        try:
            self._tell_removed(await self._kernel.apply(unwire(lease_wiring(lease))))
        except VpccniError as error:
            _log.warning("unwire_failed", lease=lease.id, reason=error.reason, detail=error.detail)

    # -- DELs that were written down ---------------------------------------------------------------

    async def end_spooled(self, entry: SpooledDel) -> bool:
        """Carry out one spooled DEL, in its sandbox's turn.

        False when it must be tried again: the log does not take it now, or a newer ADD of the sandbox is under way,
        which may wait long for its address and sees to older DELs itself.
        """
        try:
            call = cni.decode(entry.body)
        except CniFault as fault:
            _log.warning("spool_entry_refused", name=entry.name, reason=fault.reason, detail=fault.detail)
            return True
        if call.verb != "DEL":
            _log.warning(
                "spool_entry_refused", name=entry.name, reason="bad_request", detail=f"a {call.verb}"
            )
            return True
        flight = self._turns.under_way(call.key)
        if flight is not None and flight.add is not None:
            if not _is_newer(entry, flight.since):
                return False
            flight.add.cancel()
        async with self.turn_of(call.key):
            return await self._submit_spooled(call, entry)

    async def _end_by_spool(self, key: SandboxKey) -> None:
        """An ADD for a sandbox that has a lease: a DEL that lies in the spool came before it.

        Raises:
            TransientError: the DEL is in the spool and the log does not take it: what to give cannot be told.
        """
        for entry in await self._spool.entries():
            try:
                written = cni.decode(entry.body)
            except CniFault:
                continue
            if (written.verb, written.key) != ("DEL", key):
                continue
            if not await self._submit_spooled(written, entry):
                raise TransientError(Reason.SANDBOX_HELD, "a DEL before this ADD is not recorded yet")
            await self._spool.remove(entry.name)

    async def _submit_spooled(self, call: Call, entry: SpooledDel) -> bool:
        try:
            await self._writer.submit(
                c.EndLease(
                    key=call.key,
                    cause="del",
                    sources=("spool",),
                    addresses=call.addresses,
                    netns=call.netns,
                    written_boot_id=entry.boot_id,
                    written_boottime_ns=entry.boottime_ns,
                )
            )
        except VpccniError as error:
            _log.warning("spool_not_drained", name=entry.name, reason=error.reason)
            return False
        return True

    # -- CHECK, GC --------------------------------------------------------------------------------

    async def _check(self, call: Call) -> None:
        async with self.turn_of(call.key):
            state = self._writer.state
            if state.lease_of(call.key) is None and call.addresses:
                await self._writer.submit(
                    c.Identify(
                        key=call.key,
                        pod=call.pod,
                        netns=call.netns,
                        addresses=call.addresses,
                        source="check",
                    )
                )
            lease = state.lease_of(call.key)
            if lease is None:
                raise CniFault(Reason.UNKNOWN_CONTAINER, call.key.container_id, call.version)
            problems = _result_problems(call, lease)
            wiring = lease_wiring(lease, call.netns)
            pod = pod_wiring(wiring, self._datapath, as_original=is_handing_back(state))
            applied = await self._kernel.apply(Difference(probe=(pod,)))
            problems += applied.probed[lease.id].problems
            if problems:
                raise CniFault(Reason.CHECK_FAILED, "; ".join(problems), call.version)

    async def _gc(self, call: Call) -> None:
        """The runtime's list is one source: what is not on it is suspected, the sweep looks for a second.

        What is on it again is doubted no longer on the list's account.
        """
        if call.valid is None:
            return
        unlisted: set[LeaseId] = set()
        now = self._clock.now()
        for lease in list(self._writer.state.leases.values()):
            if lease.key.network != call.key.network:
                continue
            is_listed = (lease.key.container_id, lease.key.ifname) in call.valid
            if not is_listed and self._writer.state.elapsed_s(lease.opened, now) < GC_LATE_S:
                continue
            if not is_listed:
                unlisted.add(lease.id)
            elif lease.source != GC_LIST:
                continue
            await self._writer.submit(
                c.NoteEvidence(
                    lease=lease.id,
                    source=GC_LIST,
                    is_alive=is_listed,
                    detail="" if is_listed else "not in the GC list",
                )
            )
        self._on_gc(frozenset(unlisted))

    # -- stopping ---------------------------------------------------------------------------------

    async def wait_idle(self) -> None:
        """Until no request is under way."""
        while self._in_flight:  # noqa: ASYNC110 - only at the end, for seconds
            await asyncio.sleep(0.01)


def _is_newer(entry: SpooledDel, since: Stamp | None) -> bool:
    """Whether a DEL was written down after that."""
    return since is not None and entry.boot_id == since.boot_id and entry.boottime_ns > since.boottime_ns


def _result_problems(call: Call, lease: Lease) -> tuple[str, ...]:
    """Where the runtime's cached result and the lease disagree (CNI spec 1.1, CHECK)."""
    if call.previous is None:
        return ()
    told = {str(entry.get("address", "")).partition("/")[0] for entry in call.previous.get("ips") or []}
    return tuple(
        f"{binding.address} is not in prevResult" for binding in lease.bindings if binding.address not in told
    )


def _fault(fault: CniFault, verb: str = "") -> Reply:
    if fault.reason is Reason.STOPPING:
        # The executable asks the next agent. STATUS is answered by the marker until that one is there.
        return Reply(0)
    status = 503 if cni.code_of(fault.reason, verb) in (cni.CODE_TRY_AGAIN, cni.CODE_NOT_AVAILABLE) else 400
    return Reply(status, cni.fault_body(fault.version, fault.reason, fault.detail, verb))
