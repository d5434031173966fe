"""Who lives on this node? Asked before anything is changed, and again whenever somebody else may have been here.

Theory of operation. A log that is new, lost, old or another machine's does not know the pods that live. So the
agent begins by comparing: a good log is confirmed by one look at the checkpoint file; any other is filled by a
search of the node (:mod:`vpccni.recovery`). Until that is done the kernel, EC2, the spool, the executable and
the conflist are left alone, and ADDs wait.

===============================  =============================================================================
while                            then
===============================  =============================================================================
another agent lives here         nothing is assigned, changed or exported; it is looked for every two seconds
the take-over is refused         the same; the reasons are told and looked at again
an interface is unexplained      ADDs are refused, EC2 is not changed, DELs are served; looked at again
none of these                    the agent serves
===============================  =============================================================================

The API server only adds names, so nobody waits long for it; EC2 is not asked at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import structlog

from vpccni.adapters.beat import until_beat
from vpccni.datapath.objects import LinkChange, LinkSeen
from vpccni.datapath.survey import is_host_veth
from vpccni.errors import Reason, Refused, VpccniError
from vpccni.events.node import InstanceObserved
from vpccni.evidence import (
    ABSENT,
    API_SERVER,
    CHECKPOINT,
    KERNEL,
    READ,
    RUNTIME_CACHE,
    CheckpointFile,
    Evidence,
    HostVeth,
    PodSeen,
    Verdict,
)
from vpccni.loops.imds_enis import imds_enis
from vpccni.loops.readiness import Readiness
from vpccni.loops.write import Writer
from vpccni.model import EniFacts, LeaseId, Mac, Stamp
from vpccni.planner import commands as c
from vpccni.ports import Checkpoints, Clock, Imds, Kernel, KubernetesNode, Predecessor, RuntimeCache, Spool
from vpccni.recovery import KnownVeths, judge

if TYPE_CHECKING:
    from vpccni.takeover import Findings

_log = structlog.get_logger("recover")

LOOK_PERIOD_S: Final = 2.0
"""Between two looks for another agent, and at what is unexplained."""
QUIET_S: Final = 5.0
"""Another agent is taken for gone when it has written nothing for so long."""
UNKNOWN_PATIENCE_S: Final = 1.0
"""A veth that is being wired has neither its alias nor its record yet; after this long it is looked at."""
NAMES_PATIENCE_S: Final = 0.5
"""How long a search waits for the API server once everything else has been read."""
PARK_UNEXPLAINED_S: Final = 10.0
"""An interface of a plugin that is still at work is explained in a second: so long ADDs wait for that."""


class Recovery:
    """The loop of the unknown.

    Attributes:
        is_done: Whether this process knows who lives here. Nothing outside is changed before.
        unlisted: Leases that another agent's checkpoint no longer lists: one source for the lease sweep.
        findings: What stood in the way of a take-over, at the last look; ``None`` when none was asked for.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        kernel: Kernel,
        runtime: RuntimeCache,
        checkpoints: Checkpoints,
        predecessor: Predecessor,
        kubernetes: Callable[[], Awaitable[KubernetesNode | None]],
        spool: Spool,
        clock: Clock,
        readiness: Readiness,
        imds: Imds,
        veth_prefix: str,
        on_done: Callable[[], Awaitable[None]],
        on_unlisted: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._kernel = kernel
        self._runtime = runtime
        self._checkpoints = checkpoints
        self._predecessor = predecessor
        self._kubernetes = kubernetes
        self._spool = spool
        self._clock = clock
        self._readiness = readiness
        self._imds = imds
        self._veth_prefix = veth_prefix
        self._on_done = on_done
        self._on_unlisted = on_unlisted
        self._is_lost = False
        self._opened_head: int | None = None
        self._is_same_boot = False
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._unknown: dict[int, tuple[LinkSeen, float]] = {}
        self._pending = ""
        self._unexplained_since: float | None = None
        self._stamp: tuple[int, ...] | None = None
        self._written_at = float("-inf")
        self._has_yielded = False
        self.is_done = False
        self.unlisted: frozenset[LeaseId] = frozenset()
        self.findings: Findings | None = None

    # -- at the start -----------------------------------------------------------------------------

    async def begin(self, *, is_lost: bool, opened_head: int, is_same_boot: bool = False) -> None:
        """Confirm the log, or search the node. Returns also when another agent lives: ``run`` goes on then.

        Args:
            is_lost: The log is new although there was one here.
            opened_head: The newest event of the log as it was opened, before this agent's own.
            is_same_boot: An agent has written the log in this boot: a reboot takes our export away, nothing else.
        """
        self._is_same_boot = is_same_boot
        self.begin_soon(is_lost=is_lost, opened_head=opened_head)
        self._wake.clear()
        await self._look_once()

    def begin_soon(self, *, is_lost: bool, opened_head: int) -> None:
        """As :meth:`begin`, but the first look is the first thing that ``run`` does."""
        self._is_lost, self._opened_head = is_lost, opened_head
        self._readiness.hold = Refused(Reason.RECOVERING, "the node is searched for living pods")
        self._wake.set()

    async def confirm(self, links: Sequence[LinkSeen]) -> None:
        """The kernel was just read: a veth that the log does not explain means that the log is not whole."""
        known = KnownVeths(self._writer.state)
        pods = [link for link in links if is_host_veth(link, self._veth_prefix)]
        if self.is_done and not all(known.explains(_as_host_veth(link)) for link in pods):
            self._pending = "unknown_veth"
            self._hold(Refused(Reason.RECOVERING, "an interface is here that the log does not explain"))
            await self._guarded(lambda: self._search("unknown_veth"))
            if self._pending:
                # Nobody knows yet who lives here: as long as a search fails nothing is changed.
                self.is_done = False

    # -- the loop ---------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Look for another agent, and at what is unexplained, for ever."""
        while True:
            try:
                async with asyncio.timeout(until_beat(LOOK_PERIOD_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._look_once()

    def note_link(self, change: LinkChange) -> None:
        """A link of the node changed: a host veth that nobody knows may be somebody else's pod."""
        link = change.link
        if change.kind == "removed" or not is_host_veth(link, self._veth_prefix):
            self._unknown.pop(link.ifindex, None)
        else:
            # Nearly always one that is being wired: whether the log explains it is asked when it has an age.
            self._unknown[link.ifindex] = (link, asyncio.get_running_loop().time())

    def note_export(self, stamp: tuple[int, ...]) -> None:
        """We wrote the checkpoint file: this is how it looks now."""
        self._stamp = stamp

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    async def wait_looked(self) -> None:
        """Wait until this process has looked for the first time who lives here, whatever came of it."""
        await self._looked.wait()

    async def _look_once(self) -> None:
        await self._guarded(self._look)
        self._looked.set()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except VpccniError as error:
            _log.warning("search_failed", reason=error.reason, detail=error.detail)
            if not self.is_done:
                self._hold(Refused(Reason.RECOVERING, error.detail or str(error.reason)))

    async def _look(self) -> None:
        living = await self._living()
        if living:
            await self._yield_to(living)
            return
        is_recorded = self._writer.state.other_agent is not None
        was_here = is_recorded or self._has_yielded
        if is_recorded:
            await self._writer.submit(c.NoteOtherAgent(is_alive=False))
        why = await self._why_search(was_here=was_here)
        has_returned = was_here or why == "foreign_checkpoint"
        if self._writer.state.mode == "handed_back" or (has_returned and self._writer.state.mode != "serve"):
            await self._writer.submit(c.SetMode("serve", "the other agent is gone"))
        if why:
            await self._search(why)
        elif not self.is_done:
            await self._finish()
        self._tell_unexplained()

    async def _living(self) -> str:
        """How another agent shows; also one that writes the checkpoint file and has no socket that answers."""
        living = await self._predecessor.living()
        stamp = await self._checkpoints.stamp()
        if stamp != self._stamp:
            is_first, self._stamp = self._stamp is None, stamp
            if stamp and not is_first and not await self._is_our_file():
                self._written_at = asyncio.get_running_loop().time()
        if not living and asyncio.get_running_loop().time() - self._written_at < QUIET_S:
            return "somebody else writes the checkpoint file"
        return living

    async def _is_our_file(self) -> bool:
        """Whether the checkpoint file carries our mark: an export that was not yet told of."""
        files = await self._checkpoints.read()
        return bool(files[0].log_id) and files[0].log_id == self._writer.state.log_id

    async def _yield_to(self, living: str) -> None:
        # First of all: on a full disk the log may not take it, and the node is the other one's all the same.
        self.is_done = False
        self._has_yielded = True
        self._hold(Refused(Reason.ANOTHER_AGENT, living))
        try:
            if self._writer.state.other_agent is None:
                _log.warning("another_agent", detail=living)
                await self._writer.submit(c.NoteOtherAgent(is_alive=True, detail=living))
            if self._writer.state.mode == "hand_back":
                await self._writer.submit(c.SetMode("handed_back", living))
        except VpccniError as error:
            _log.warning("another_agent_not_recorded", reason=error.reason, detail=error.detail)

    async def _why_search(self, *, was_here: bool) -> str:
        """Why the node must be searched; empty when the log is known to be whole."""
        state = self._writer.state
        if state.survey is None:
            if self._is_lost:
                return "marker_without_log"
            latest = state.latest.get("instance")
            changed = (
                latest is not None and isinstance(latest.event, InstanceObserved) and latest.event.changed
            )
            return "another_machine" if changed else "new_log"
        if self._pending or state.survey.unexplained or self._has_unknown():
            return self._pending or "unknown_veth"
        if self.is_done and not was_here:
            return ""
        files = await self._checkpoints.read()
        why = _why_of(files[0], self._clock.now(), state.log_id, self._known_head(), self._imported())
        # The other one may have served since, also where its file is gone: a reboot takes that away.
        if not why and state.mode != "serve":
            return "handed_back"
        if not why and was_here and files[0].log_id != state.log_id:
            # A reboot has taken its file away, or the file is as it was before: it has changed the pool all the same.
            return "another_agent"
        return why or ("no_checkpoint" if self._misses_export(files[0]) else "")

    def _misses_export(self, file: CheckpointFile) -> bool:
        """Whether our export should be there and is not: only it tells an old copy of the log from the log."""
        if self.is_done or self._writer.state.exported is None:
            return False
        return self._is_same_boot and file.status == ABSENT  # A reboot takes it away.

    def _has_unknown(self) -> bool:
        """Whether a veth that appeared a while ago is still explained by no lease."""
        now = asyncio.get_running_loop().time()
        aged = [link for link, since in self._unknown.values() if now - since >= UNKNOWN_PATIENCE_S]
        if not aged:
            return False
        known, is_any = KnownVeths(self._writer.state), False
        for link in aged:
            if known.explains(_as_host_veth(link)):
                del self._unknown[link.ifindex]
            else:
                is_any = True
        return is_any

    def _known_head(self) -> int:
        """Up to where the log is known to be whole: until it is confirmed, this agent's own events do not count."""
        head = self._writer.state.head
        return head if self._opened_head is None else min(head, self._opened_head)

    def _imported(self) -> str:
        imported = self._writer.state.imported
        return imported.digest if imported is not None else ""

    # -- a search ---------------------------------------------------------------------------------

    async def _search(self, why: str) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        is_first, was_done = self._writer.state.survey is None, self.is_done
        seen_head = int(self._writer.state.head)
        evidence = await self.gather()
        gathered = loop.time()
        verdict = judge(
            self._writer.state,
            evidence,
            self._clock.now(),
            self._veth_prefix,
            known_head=self._known_head(),
        )
        judged = loop.time()
        if is_first and not await self._may_take_over(evidence, verdict):
            return
        checked = loop.time()
        await self._writer.submit(c.TakeSurvey(why=why, verdict=verdict, seen_head=seen_head))
        self._unknown.clear()
        self._pending = ""
        _log.info(
            "searched",
            why=why,
            claims=len(verdict.claims),
            ended=len(verdict.endings),
            unexplained=[veth.ifname for veth in verdict.unexplained],
            sources=evidence.sources,
            gathered_s=round(gathered - started, 4),
            judged_s=round(judged - gathered, 4),
            checked_s=round(checked - judged, 4),
            recorded_s=round(loop.time() - checked, 4),
            elapsed_s=round(loop.time() - started, 4),
        )
        if verdict.unlisted != self.unlisted:
            self.unlisted = verdict.unlisted
            self._on_unlisted()
        if was_done and not self.is_done:
            return  # Another agent was seen meanwhile: the node is its own.
        await self._finish()

    async def _may_take_over(self, evidence: Evidence, verdict: Verdict) -> bool:
        """The first start on a node: what we cannot serve must not be taken from who serves it."""
        from vpccni.takeover import BRANCH_VETH_PREFIX, check  # an agent with a good log never needs it

        policies = await self._enforced_policies()
        # Without a pinned program nothing is enforced: then the API server need not be asked.
        endpoints = await self._policy_endpoints() if policies != () else ()
        self.findings = check(
            evidence=evidence,
            verdict=verdict,
            pins=policies,
            policy_endpoints=endpoints,
            now=self._clock.now(),
            enis=await self._enis() if verdict.claims else None,
            branch_veths=(await self._kernel.survey(BRANCH_VETH_PREFIX, ())).veths,
        )
        refused = self.findings.refused()
        if refused is None:
            return True
        if self._readiness.hold != refused:
            _log.error("take_over_refused", reason=refused.reason, detail=refused.detail)
        self._hold(refused)
        return False

    async def _enforced_policies(self) -> tuple[str, ...] | None:
        try:
            return await self._predecessor.enforced_policies()
        except VpccniError as error:
            _log.info("policies_unknown", reason=error.reason, detail=error.detail[:200])
            return None

    async def _enis(self) -> tuple[EniFacts, ...] | None:
        """The ENIs as IMDS lists them: who lives in a prefix shows by nothing else. Nobody waits long for it."""
        try:
            async with asyncio.timeout(NAMES_PATIENCE_S):
                return await imds_enis(self._imds)
        except (VpccniError, TimeoutError):
            return None

    async def _policy_endpoints(self) -> tuple[str, ...] | None:
        try:
            async with asyncio.timeout(NAMES_PATIENCE_S):
                node = await self._kubernetes()
                return await node.policy_endpoints() if node is not None else None
        except (VpccniError, TimeoutError):
            return None

    async def gather(self) -> Evidence:
        """Read every source. Only the kernel must answer.

        Raises:
            PermanentError: ``kernel_refused``: the kernel cannot be searched.
        """
        async with asyncio.TaskGroup() as group:
            naming = group.create_task(self._name_pods(), name="name pods")
            here = await self._read_here()
            is_somebody_here = not isinstance(here, VpccniError) and bool(
                here.kernel is None or here.kernel.veths or here.cache.entries or here.has_rows()
            )
            await asyncio.wait([naming], timeout=NAMES_PATIENCE_S if is_somebody_here else 0.0)
            is_named = naming.done()
            naming.cancel()
        if isinstance(here, VpccniError):
            raise here
        pods, api_status = naming.result() if is_named else (None, "unreadable: no answer in time")
        return msgspec.structs.replace(here, pods=pods, sources=here.sources | {API_SERVER: api_status})

    async def _read_here(self) -> Evidence | VpccniError:
        """The sources on this node. A refusal is a value: raised, it would come out wrapped in a group."""
        try:
            cache = await self._runtime.read()
            files = await self._checkpoints.read()
            paths = [one.netns for one in cache.entries if one.netns]
            paths += [lease.netns for lease in self._writer.state.leases.values() if lease.netns]
            kernel = await self._kernel.survey(self._veth_prefix, sorted(set(paths)))
            newest, spool_status = await self._newest_spooled_ns()
        except VpccniError as error:
            return error
        sources = {KERNEL: READ, RUNTIME_CACHE: cache.status, "spool": spool_status}
        for file in files:
            sources[CHECKPOINT if not file.card else f"{CHECKPOINT}_nic_{file.card}"] = file.status
        return Evidence(
            kernel=kernel, cache=cache, checkpoints=files, newest_spool_ns=newest, sources=sources
        )

    async def _name_pods(self) -> tuple[tuple[PodSeen, ...] | None, str]:
        try:
            node = await self._kubernetes()
            if node is None:
                return None, "absent"
            return await node.pods(), READ
        except VpccniError as error:
            return None, f"unreadable: {error.detail[:200]}"

    async def _newest_spooled_ns(self) -> tuple[int, str]:
        """When the newest DEL of this boot was spooled, wall time."""
        now = self._clock.now()
        try:
            entries = await self._spool.entries()
        except VpccniError as error:
            return 0, f"unreadable: {error.detail[:200]}"
        here = [entry.boottime_ns for entry in entries if entry.boot_id == now.boot_id]
        return (now.wall_ns - (now.boottime_ns - max(here)) if here else 0), READ

    # -- what follows -----------------------------------------------------------------------------

    def search_again(self) -> None:
        """The log turned out to be about another machine: who lives here is not known, and nothing is changed."""
        self.is_done = False
        self._hold(Refused(Reason.RECOVERING, "the node is searched for living pods"))
        self._wake.set()

    async def _finish(self) -> None:
        was_done, self.is_done, self._opened_head = self.is_done, True, None
        self._has_yielded = False
        self._hold(None)
        if not was_done:
            await self._on_done()

    def _hold(self, refused: Refused | None) -> None:
        changed = self._readiness.hold != refused
        self._readiness.hold = refused
        if changed:
            self._writer.look_again()

    def _tell_unexplained(self) -> None:
        """ADDs wait a little for a plugin that is still at work, then they are refused with the reason."""
        survey = self._writer.state.survey
        names = survey.unexplained if survey is not None and self.is_done else ()
        now = asyncio.get_running_loop().time()
        if not names:
            self._unexplained_since = None
            self._readiness.unexplained = None
            return
        if self._unexplained_since is None:
            self._unexplained_since = now
        self._readiness.unexplained = Refused(Reason.ADDRESS_UNEXPLAINED, ", ".join(names))
        self._readiness.is_unexplained_for_long = now - self._unexplained_since >= PARK_UNEXPLAINED_S
        self._writer.look_again()


def _as_host_veth(link: LinkSeen) -> HostVeth:
    return HostVeth(ifindex=link.ifindex, ifname=link.ifname, mac=Mac(link.mac), alias=link.alias)


def _why_of(file: CheckpointFile, now: Stamp, log_id: str, head: int, imported: str) -> str:
    """What a checkpoint file says about a log that seems whole; empty when nothing."""
    if file.status == ABSENT:
        return ""
    if file.status != READ:
        return "no_checkpoint"  # Nobody can tell whether another agent has served since.
    if file.digest == imported:
        return ""
    if file.log_id == log_id:
        return "older_log" if file.seq > head else ""
    is_of_this_boot = (
        file.boot_id == now.boot_id if file.boot_id else (file.modified_ns >= now.wall_ns - now.boottime_ns)
    )
    return "foreign_checkpoint" if is_of_this_boot else ""
