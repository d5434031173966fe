"""The agent: all loops over a set of ports, and the order in which they begin and end.

``app.py`` gives it the real adapters; tests and the simulator give it others. Nothing else differs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import structlog

from vpccni import __version__
from vpccni.datapath.objects import DatapathSettings
from vpccni.errors import InvariantBrokenError, PermanentError, Reason, Refused, VpccniError, sentence
from vpccni.events.address import CidrSuspected
from vpccni.events.codec import Record
from vpccni.events.eni import EniAttached
from vpccni.events.node import PolicyObserved
from vpccni.loops.breakers import Breakers
from vpccni.loops.effects import Effects
from vpccni.loops.export import Export
from vpccni.loops.hand_back import HandBack
from vpccni.loops.housekeeping import Housekeeping, LeaseSweep
from vpccni.loops.keep_links import KeepLinks, has_primary_link
from vpccni.loops.keep_marker import keep_marker
from vpccni.loops.keep_warm import EniTemplate, KeepWarm
from vpccni.loops.readiness import Readiness
from vpccni.loops.reconcile import Reconcile
from vpccni.loops.recover import Recovery
from vpccni.loops.serve_cni import CniService, Reply
from vpccni.loops.write import Writer
from vpccni.model import Cidr, Stamp
from vpccni.planner import commands as c
from vpccni.planner.policy import policy_of
from vpccni.planner.view import LINK_PATIENCE_S, unmanaged_enis, without_link_s
from vpccni.planner.warm_pool import PoolPolicy
from vpccni.ports import (
    Checkpoints,
    Clock,
    Ec2,
    EventLog,
    Imds,
    Kernel,
    KubernetesNode,
    Predecessor,
    RuntimeCache,
    Spool,
)
from vpccni.settings import Settings, effective

_log = structlog.get_logger("agent")

DEFAULT_MAX_PODS = 110


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Everything outside. ``ec2`` and ``kubernetes`` are opened when first needed: they are heavy.

    ``mark_ready`` sets or removes the file by which STATUS is answered while no agent is there.
    """

    log: EventLog
    clock: Clock
    ec2: Callable[[], Awaitable[Ec2]]
    imds: Imds
    kubernetes: Callable[[], Awaitable[KubernetesNode | None]]
    kernel: Kernel
    runtime: RuntimeCache
    spool: Spool
    checkpoints: Checkpoints
    predecessor: Predecessor
    mark_ready: Callable[[bool], None]


class Agent:
    """One node's agent.

    Life: ``start`` (the log is read, the kernel is looked at, spooled DELs are carried out; ADDs can be served
    from then on, unless the log is new) -> ``run`` until cancelled -> ``stop``.
    """

    def __init__(self, settings: Settings, ports: Ports, rng: random.Random) -> None:
        self.settings = settings
        self._ports = ports
        self._log_ids = rng
        self.readiness = Readiness()
        self.breakers = Breakers(rng)
        self.writer = Writer(ports.log, ports.clock, self._context)
        self.readiness.log_refusal = self.writer.log_health.refusal
        self.readiness.kernel_refusal = self._kernel_refusal
        self.readiness.frozen = self._frozen
        self._datapath = datapath_settings(settings)
        self.links = KeepLinks(
            writer=self.writer,
            kernel=ports.kernel,
            clock=ports.clock,
            settings=self._datapath,
            free_turn_of=lambda key: self.cni.free_turn_of(key),
            may_change=self.readiness.may_change_kernel,
            on_link=lambda change: self.recovery.note_link(change),
            confirm=lambda links: self.recovery.confirm(links),
        )
        self.effects = Effects(
            writer=self.writer,
            ec2=ports.ec2,
            clock=ports.clock,
            breakers=self.breakers,
            parallel_max=settings.ec2_parallel_max,
            may_finish=self.readiness.may_finish,
            on_change=self._wake_planner,
            on_refused=lambda: self.reconcile.compare_soon(),
            on_recreated=lambda: self.reconcile.clean_soon(),
        )
        self.keep_warm = KeepWarm(
            writer=self.writer,
            effects=self.effects,
            breakers=self.breakers,
            clock=ports.clock,
            policy=self.policy,
            cooldown_s=settings.ip_cooldown_s,
            template=EniTemplate(settings.cluster_name, settings.additional_eni_tags),
            no_change=self.readiness.no_change,
        )
        self.reconcile = Reconcile(
            writer=self.writer,
            imds=ports.imds,
            ec2=ports.ec2,
            kubernetes=ports.kubernetes,
            clock=ports.clock,
            readiness=self.readiness,
            max_pods=settings.max_pods,
            cleans_up=not settings.disable_leaked_eni_cleanup,
            rng=rng,
            on_identity=self._recognize,
            wait_searched=lambda: self.recovery.wait_looked(),
        )
        sweep = LeaseSweep(
            writer=self.writer,
            kernel=ports.kernel,
            clock=ports.clock,
            kubernetes=ports.kubernetes,
            runtime=ports.runtime,
            settings=self._datapath,
            turn_of=lambda key: self.cni.turn_of(key),
        )
        self.housekeeping = Housekeeping(
            writer=self.writer,
            log=ports.log,
            spool=ports.spool,
            sweep=sweep,
            del_spooled=lambda entry: self.cni.end_spooled(entry),
            may_drain=lambda: self.recovery.is_done,
        )
        self.recovery = Recovery(
            writer=self.writer,
            kernel=ports.kernel,
            runtime=ports.runtime,
            checkpoints=ports.checkpoints,
            predecessor=ports.predecessor,
            kubernetes=ports.kubernetes,
            spool=ports.spool,
            clock=ports.clock,
            readiness=self.readiness,
            imds=ports.imds,
            veth_prefix=settings.veth_prefix,
            on_done=self._recovered,
            on_unlisted=lambda: self.housekeeping.sweep_unlisted(self.recovery.unlisted),
        )
        self.export = Export(
            writer=self.writer,
            checkpoints=ports.checkpoints,
            path=settings.backing_store,
            clock=ports.clock,
            may_export=lambda: self.recovery.is_done and not self.readiness.must_not_change,
            on_written=self.recovery.note_export,
        )
        self.hand_back = HandBack(writer=self.writer, imds=ports.imds, behind=self._behind)
        self.cni = CniService(
            writer=self.writer,
            kernel=ports.kernel,
            spool=ports.spool,
            clock=ports.clock,
            datapath=self._datapath,
            add_wait_s=settings.add_wait_s,
            readiness=self.readiness,
            on_gc=self.housekeeping.sweep_soon,
            look_soon=self.links.look_soon,
        )
        self.writer.subscribe(self._on_records)
        self._writing: asyncio.Task[None] | None = None

    # -- what a decision depends on besides the log -----------------------------------------------

    def policy(self) -> PoolPolicy | None:
        """The pool's targets and limits; ``None`` while the instance type's limits are unknown."""
        state = self.writer.state
        if state.limits is None:
            return None
        primary = state.primary_eni()
        return policy_of(
            self.settings,
            state.limits,
            max_pods=state.max_pods or DEFAULT_MAX_PODS,
            unmanaged_enis=unmanaged_enis(state),
            subnet=primary.facts.subnet if primary is not None else None,
        )

    def _context(self) -> c.Context:
        now = asyncio.get_running_loop().time()
        return c.Context(
            cooldown_s=self.settings.ip_cooldown_s,
            add_wait_s=self.settings.add_wait_s,
            policy=self.policy(),
            constraints=self.breakers.for_waiting(now, self.readiness.no_change()),
            not_serving=self.readiness.waiting(),
            refusing=self.readiness.refusing(),
            must_not_change=self.readiness.must_not_change,
            manages_untagged=self.settings.manage_untagged_eni,
        )

    def _kernel_refusal(self) -> Refused | None:
        """The kernel lets us set up not even one ENI: no sandbox would have a way out."""
        if not self.links.problem:
            return None
        if any(held.managed and held.is_link_ready for held in self.writer.state.enis.values()):
            return None
        return Refused(Reason.KERNEL_REFUSED, self.links.problem)

    def observed_region(self) -> str:
        """The region that IMDS named; empty while it has not."""
        instance = self.writer.state.instance
        return instance.region if instance is not None else ""

    def now(self) -> Stamp:
        """The stamp of this instant."""
        return self._ports.clock.now()

    def status(self) -> dict[str, Any]:
        """What an operator looks at first, as plain data."""
        state, refused, plan = self.writer.state, self.readiness.refusal(), self.keep_warm.plan
        return {
            "version": __version__,
            "ready": refused is None,
            "reason": str(refused.reason) if refused else "",
            "message": sentence(refused.reason, refused.detail) if refused else "",
            "instance": msgspec.to_builtins(state.instance),
            "limits": msgspec.to_builtins(state.limits),
            "max_pods": state.max_pods,
            "waiting_adds": self.writer.waiting,
            "plan": {
                "reason": plan.reason,
                "constraints": list(plan.constraints),
                "short": plan.short,
                "over": plan.over,
            }
            if plan is not None
            else None,
            "open_intents": [
                {"intent": intent.id, "kind": intent.intended.kind, "eni": intent.intended.eni}
                for intent in state.intents.values()
            ],
            "standing_veths": len(state.standing),
            "mode": state.mode,
            "hand_back": self.hand_back.progress(),
            "recovery": self._recovery_view(),
            "log": {"head": state.head, "commits": self.writer.commits},
            "problems": {
                "log": self.writer.log_health.problem(),
                "imds": self.reconcile.imds_failing,
                "ec2": self.reconcile.ec2_failing,
                "kernel": self.links.problem,
                "datapath": list(self.links.notes),
                "links": [
                    sentence(Reason.ENI_LINK_MISSING, held.facts.id)
                    for held in state.enis.values()
                    if held.managed and without_link_s(state, held, self.now()) > LINK_PATIENCE_S
                ],
                "broken": self.readiness.is_broken,
                "identity": state.doubted.detail if state.doubted is not None else "",
                "unexplained": list(state.survey.unexplained) if state.survey is not None else [],
                "export": self.export.problem,
                "host_ports": sentence(Reason.PORTMAP_MISSING) if self.cni.refuses_host_ports else "",
                "settings": list(self.settings.warnings),
            },
        }

    def _recovery_view(self) -> dict[str, Any]:
        """What the last search of the node found, and what of it still stands."""
        state = self.writer.state
        recovered = [lease for lease in state.leases.values() if lease.origin != "add"]
        return {
            "is_done": self.recovery.is_done,
            "last": msgspec.to_builtins(state.survey),
            "leases": sum(not lease.is_hold for lease in recovered),
            "holds": sum(lease.is_hold for lease in recovered),
            "suspected": sum(lease.suspected is not None for lease in recovered),
            "other_agent": state.other_agent.detail if state.other_agent is not None else "",
        }

    def _behind(self) -> str:
        """What the original would need and is not in place yet."""
        if self.links.problem:
            return f"the kernel: {self.links.problem}"
        if self.links.converged_mode != "hand_back":
            return "the routes and rules of the original"
        return self.export.problem or ("" if self.export.is_current() else "the checkpoint file")

    def _frozen(self) -> str:
        """Why EC2 must not be changed, as the log says."""
        state = self.writer.state
        if state.doubted is not None:
            return str(Reason.INSTANCE_DOUBTED)
        if state.unknown_effects():
            return str(Reason.LOG_NEWER)
        return str(Reason.HANDING_BACK) if state.mode != "serve" else ""

    def _on_records(self, records: Sequence[Record]) -> None:
        self.links.on_records(records)
        self.export.on_records(records)
        if any(isinstance(one.event, CidrSuspected) and one.event.source == "survey" for one in records):
            self.reconcile.compare_soon()
        self._wake_planner()
        self.readiness.is_broken = self.writer.state.broken.name if self.writer.state.broken else ""
        if any(isinstance(record.event, EniAttached) for record in records) or self.writer.state.standing:
            self.links.wake()

    def _wake_planner(self) -> None:
        self.keep_warm.wake()

    async def set_mode(self, body: bytes) -> Reply:
        """An operator asks for another mode; answered when it is recorded."""
        try:
            wanted = msgspec.json.decode(body, type=dict[str, str]).get("mode", "")
        except msgspec.DecodeError:
            wanted = ""
        if wanted not in ("serve", "hand_back"):
            said = sentence(Reason.BAD_REQUEST, "give a mode: serve or hand_back")
            return Reply(400, msgspec.json.encode({"reason": "bad_request", "msg": said}))
        refused = self.readiness.hold
        if refused is not None:
            said = sentence(refused.reason, refused.detail)
            return Reply(503, msgspec.json.encode({"reason": str(refused.reason), "msg": said}))
        try:
            await self.writer.submit(c.SetMode(wanted, "asked for by an operator"))
        except VpccniError as error:
            said = sentence(error.reason, error.detail)
            return Reply(503, msgspec.json.encode({"reason": str(error.reason), "msg": said}))
        self.hand_back.wake()
        self.links.converge_soon()
        self._wake_planner()
        return Reply(200, msgspec.json.encode({"mode": wanted}))

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the log, look at the kernel, carry out spooled DELs. No network is needed.

        When the log is new, the node is searched by ``run``.

        Raises:
            PermanentError: the log cannot be used (``log_damaged``, ``log_newer``, ``log_in_use``,
                ``log_volatile``); nothing was changed.
        """
        start = await self.writer.open()
        self.readiness.must_not_change = start.must_not_change
        self.housekeeping.begin_at(start.head - len(start.tail))
        # The writer runs from here on; it is stopped last, after everybody who asks it.
        self._writing = asyncio.get_running_loop().create_task(self.writer.run(), name="write")
        if start.must_not_change:
            _log.error("log_newer", kinds=start.must_not_change)
            return
        if start.head:
            self.breakers.note_restart(asyncio.get_running_loop().time())
        boot_id = self._ports.clock.now().boot_id
        is_same_boot = self.writer.state.boot_id == boot_id
        log_id = f"{self._log_ids.getrandbits(128):032x}"
        await self.writer.submit(c.StartAgent(boot_id=boot_id, version=__version__, log_id=log_id))
        await self.writer.submit(c.Observe(PolicyObserved(settings=effective(self.settings))))
        if self.writer.state.survey is None:
            # Nobody is served before IMDS and EC2 have answered: they are asked while the node is searched.
            self.recovery.begin_soon(is_lost=start.is_lost, opened_head=int(start.head))
            return
        await self.recovery.begin(
            is_lost=start.is_lost, opened_head=int(start.head), is_same_boot=is_same_boot
        )
        if not self.recovery.is_done:
            self.readiness.not_serving = None  # What holds us back is told by the recovery.

    async def _recovered(self) -> None:
        """It is known who lives here: from now on the kernel, EC2 and the spool are ours."""
        await self._recognize(is_just_recovered=True)
        await self.housekeeping.drain_at_start()

    async def _recognize(self, *, is_just_recovered: bool = False) -> None:
        """Is this the machine that the log is about? Then ADDs are served, from the log alone."""
        state = self.writer.state
        if state.survey is None or not self.recovery.is_done:
            # New to this log or this machine, or another agent's: nothing is changed before that is settled.
            if self.recovery.is_done:
                self.recovery.search_again()
            return
        # First, also where IMDS has not answered yet: what is exported must not leave out who lives here.
        observed = await self.links.look()
        if self.readiness.hold is not None:
            return  # It could not be told who lives here: the recovery comes back to this.
        if is_just_recovered:
            self.export.wake()  # Now: on a slow machine it takes seconds to bring the kernel in line.
        if state.instance is None:
            if self.readiness.not_serving is not None:
                self.readiness.not_serving = Refused(
                    Reason.NODE_NOT_INITIALIZED, "the log is new: waiting for IMDS"
                )
            return
        if not has_primary_link(observed, state.instance.primary_mac):
            mac = state.instance.primary_mac
            self.readiness.not_serving = Refused(Reason.NOT_THE_SAME_MACHINE, f"no link has MAC {mac}")
            return
        try:
            await self.links.converge(observed)
            self.links.problem = ""
        except PermanentError as error:
            # What is wired stays wired and new pods can be: the loop tries again and says so.
            _log.error("kernel_problem", reason=error.reason, detail=error.detail)
            self.links.problem = error.detail
        primary = self.writer.state.primary_eni()
        if primary is None or not primary.facts.subnet_cidr:
            lacking = "to list the ENIs" if primary is None else "or IMDS to tell the subnet's CIDR"
            self.readiness.not_serving = Refused(Reason.NODE_NOT_INITIALIZED, f"waiting for EC2 {lacking}")
            return
        if self.readiness.not_serving is not None:
            _log.info("serving", leases=len(self.writer.state.leases), enis=len(self.writer.state.enis))
        self.readiness.not_serving = None
        self.writer.look_again()
        self.links.wake()
        self._wake_planner()

    async def run(self) -> None:
        """All loops, until cancelled or until one of them fails."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_writer(), name="watch the writer")
            if self.readiness.must_not_change:
                return
            group.create_task(self.keep_warm.run(), name="keep warm")
            group.create_task(self.links.run(), name="keep links")
            group.create_task(self.links.follow_links(), name="follow links")
            group.create_task(self.links.follow_paths(), name="follow paths")
            group.create_task(self.reconcile.run(), name="reconcile")
            group.create_task(self.housekeeping.run(), name="housekeeping")
            group.create_task(self.housekeeping.run_log_watch(), name="log watch")
            group.create_task(self.housekeeping.run_spool(), name="spool")
            group.create_task(self.housekeeping.run_sweep(), name="lease sweep")
            group.create_task(
                keep_marker(self.readiness.unusable, self._ports.mark_ready), name="keep marker"
            )
            group.create_task(self.recovery.run(), name="recover")
            group.create_task(self.export.run(), name="export")
            group.create_task(self.hand_back.run(), name="hand back")

    async def _watch_writer(self) -> None:
        if self._writing is None:
            raise InvariantBrokenError("the agent was not started")
        await asyncio.shield(self._writing)

    def begin_stop(self) -> None:
        """Take no more ADDs, and hang up on those that wait: the next agent answers them."""
        self.readiness.is_stopping = True
        self.cni.is_stopping = True
        self.writer.refuse_waiting()

    async def stop(self) -> None:
        """Refuse what waits, commit what is queued, stop writing. Adapters are the caller's to close."""
        self.begin_stop()
        if self._writing is None:
            return
        self._writing.cancel()
        try:
            await self._writing
        except asyncio.CancelledError:
            await self.writer.drain()
            await self.export.finish()
        except VpccniError as error:
            _log.error("writer_failed", reason=error.reason, detail=error.detail)


def datapath_settings(settings: Settings) -> DatapathSettings:
    """The part of the settings that shapes the datapath."""
    return DatapathSettings(
        veth_prefix=settings.veth_prefix,
        eni_mtu=settings.eni_mtu,
        pod_mtu=settings.pod_mtu,
        external_snat=settings.external_snat,
        exclude_snat_cidrs=tuple(Cidr(cidr) for cidr in settings.exclude_snat_cidrs),
        random_snat=settings.randomize_snat,
        node_port=settings.node_port_support,
        connmark=settings.connmark,
    )
