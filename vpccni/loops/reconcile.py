"""Keep the books and the world in agreement: which machine this is, which ENIs EC2 sees, which links are there.

Order at start: IMDS (who are we), EC2 (limits, ENIs), ENIs left behind. After that IMDS is read cheaply, and EC2
only when IMDS lists other ENIs than the books, or after a long while. Nothing here ends a lease.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import msgspec
import structlog

from vpccni.errors import Reason, Refused, TransientError, VpccniError
from vpccni.events.node import LIMITS_REVISION, LimitsObserved, MaxPodsObserved
from vpccni.loops.imds_enis import imds_enis
from vpccni.loops.readiness import Readiness
from vpccni.loops.write import Writer
from vpccni.model import Cidr, EniFacts, InstanceId
from vpccni.planner import commands as c
from vpccni.planner.capacity import capacity_of
from vpccni.planner.reconcile import is_outdated
from vpccni.planner.view import is_leased, is_unread
from vpccni.ports import Clock, Ec2, Imds, KubernetesNode

_log = structlog.get_logger("reconcile")

IMDS_PERIOD_S: Final = 15.0
"""One small read each: 4 a minute, where the original makes 77."""
EC2_PERIOD_S: Final = 1800.0
"""EC2 is asked when IMDS disagrees with the books; this is for what IMDS cannot show."""
VPC_PERIOD_S: Final = 30.0
"""How often the VPC's CIDRs are read: the original's period."""
IMDS_PATIENCE_S: Final = 0.5
SECOND_READING_S: Final = 5.0
"""After a reading that found something new: two readings must agree before it is believed."""
RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 15.0
LEFT_BEHIND_PERIOD_S: Final = 3600.0
CLEAN_SOON_S: Final = 60.0


class Reconcile:
    """The loop that talks to IMDS, EC2's Describe and the API server."""

    def __init__(
        self,
        *,
        writer: Writer,
        imds: Imds,
        ec2: Callable[[], Awaitable[Ec2]],
        kubernetes: Callable[[], Awaitable[KubernetesNode | None]],
        clock: Clock,
        readiness: Readiness,
        max_pods: int,
        cleans_up: bool,
        rng: random.Random,
        on_identity: Callable[[], Awaitable[None]],
        wait_searched: Callable[[], Awaitable[None]],
    ) -> None:
        self._writer = writer
        self._imds = imds
        self._ec2 = ec2
        self._kubernetes = kubernetes
        self._clock = clock
        self._readiness = readiness
        self._max_pods = max_pods
        self._cleans_up = cleans_up
        self._rng = rng
        self._on_identity = on_identity
        self._wait_searched = wait_searched
        self._named: tuple[InstanceId, int] = (InstanceId(""), 0)
        self._previous: c.Reading | None = None
        self._vpc_cidrs: tuple[Cidr, ...] = ()
        self._vpc_due = 0.0
        self._wake = asyncio.Event()
        self._disagreements = 0
        self._is_doubted = False
        self._clean_at = math.inf
        self._is_max_pods_open = False
        self.ec2_seen_at: float | None = None
        self.imds_failing = ""
        self.ec2_failing = ""

    def compare_soon(self) -> None:
        """EC2 refused something that the books allow: ask it what it sees, once and soon."""
        self._is_doubted = True
        self._wake.set()

    def clean_soon(self) -> None:
        """An ENI may have been made twice: look for what was left behind before the hour is over."""
        self._clean_at = min(self._clean_at, asyncio.get_running_loop().time() + CLEAN_SOON_S)

    async def run(self) -> NoReturn:
        """Learn who we are, then compare for ever."""
        await self._patiently(self._identify, "imds")
        # The ENIs first: who waits on a node without a log needs no more of EC2.
        await self._patiently(self._read_ec2, "ec2")
        await self._patiently(self._learn_limits, "ec2")
        await self._learn_max_pods()
        if self._cleans_up:
            await self._patiently(self._adopt_left_behind, "ec2")
        loop = asyncio.get_running_loop()
        self._clean_at = min(self._clean_at, loop.time() + LEFT_BEHIND_PERIOD_S)
        while True:
            await self._pause(IMDS_PERIOD_S * (0.9 + 0.2 * self._rng.random()))
            await self._look()
            if loop.time() >= self._vpc_due:
                await self._once(self._read_vpc, "imds")
            if self._readiness.not_serving is not None:
                await self._once(self._on_identity, "kernel")  # The primary link may come late.
            if self._is_max_pods_open:
                await self._learn_max_pods()
            if self._cleans_up and loop.time() > self._clean_at:
                self._clean_at = loop.time() + LEFT_BEHIND_PERIOD_S
                await self._once(self._adopt_left_behind, "ec2")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _patiently(self, step: Callable[[], Awaitable[None]], who: str) -> None:
        """Until it succeeds: quick at first, then with growing, jittered pauses."""
        pause = RETRY_FIRST_S
        while not await self._once(step, who):
            await asyncio.sleep(pause * (1.0 + 0.3 * self._rng.random()))
            pause = min(pause * 2, RETRY_MAX_S)

    async def _once(self, step: Callable[[], Awaitable[None]], who: str) -> bool:
        try:
            await step()
        except VpccniError as error:
            said = (error.detail or str(error.reason))[:300]
            before = self.imds_failing if who == "imds" else self.ec2_failing
            self._note(who, said)
            if said != before:
                _log.warning("not_answering", who=who, reason=error.reason, detail=error.detail[:300])
            return False
        self._note(who, "")
        return True

    def _note(self, who: str, said: str) -> None:
        if who == "imds":
            self.imds_failing = said
        elif who == "ec2":
            self.ec2_failing = said
        else:
            return
        refused = self._readiness.not_serving
        if said and refused is not None and refused.reason is not Reason.NOT_THE_SAME_MACHINE:
            reason = Reason.IMDS_UNREACHABLE if who == "imds" else Reason.NODE_NOT_INITIALIZED
            self._readiness.not_serving = Refused(reason, said)

    # -- steps ------------------------------------------------------------------------------------

    async def _identify(self) -> None:
        instance = await self._imds.instance()
        named, readings = self._named
        self._named = (instance.id, readings + 1 if named == instance.id else 1)
        refused = self._readiness.not_serving
        await self._writer.submit(
            c.ObserveInstance(
                instance,
                readings=self._named[1],
                has_other_primary=refused is not None and refused.reason is Reason.NOT_THE_SAME_MACHINE,
            )
        )
        self._note_vpc(instance.vpc_cidrs)
        await self._on_identity()
        doubted = self._writer.state.doubted
        if doubted is not None:
            # Asked again, with growing pauses: nothing of EC2 is changed before IMDS and the log agree.
            raise TransientError(Reason.INSTANCE_DOUBTED, f"IMDS names {doubted.instance}; {doubted.detail}")

    async def _read_vpc(self) -> None:
        """The VPC's CIDRs: its owner may add some while we run, and take them away."""
        instance = self._writer.state.instance
        if instance is None:
            raise TransientError(Reason.NODE_NOT_INITIALIZED)
        cidrs = await self._imds.vpc_cidrs(instance.primary_mac)
        await self._writer.submit(c.ObserveVpc(cidrs=cidrs, previous=self._vpc_cidrs))
        self._note_vpc(cidrs)

    def _note_vpc(self, cidrs: tuple[Cidr, ...]) -> None:
        self._vpc_cidrs = cidrs or self._vpc_cidrs
        # A look is up to a tenth early: every second one reads.
        self._vpc_due = asyncio.get_running_loop().time() + VPC_PERIOD_S - IMDS_PERIOD_S / 2

    async def _learn_limits(self) -> None:
        state = self._writer.state
        if state.instance is None:
            raise TransientError(Reason.NODE_NOT_INITIALIZED)
        latest = state.latest.get("limits")
        if latest is not None and isinstance(latest.event, LimitsObserved):
            is_known = latest.event.type == state.instance.type
            if is_known and latest.event.revision >= LIMITS_REVISION:
                return
        ec2 = await self._ec2()
        limits = await ec2.describe_limits(state.instance.type)
        await self._writer.submit(
            c.Observe(LimitsObserved(type=state.instance.type, limits=limits, revision=LIMITS_REVISION))
        )

    async def _learn_max_pods(self) -> None:
        """From the setting, else the Node object, else what the instance type can address."""
        state = self._writer.state
        observed = MaxPodsObserved(max_pods=self._max_pods, source="setting") if self._max_pods else None
        self._is_max_pods_open = False
        try:
            node = await self._kubernetes() if observed is None else None
            capacity = await node.max_pods() if node is not None else None
            if capacity is not None:
                observed = MaxPodsObserved(max_pods=capacity, source="node")
        except VpccniError as error:
            self._is_max_pods_open = True
            _log.info("max_pods_unknown", reason=error.reason, detail=error.detail[:200])
        latest = state.latest.get("max_pods")
        is_from_node = latest is not None and getattr(latest.event, "source", "") == "node"
        if observed is None and state.limits is not None and not (is_from_node and self._is_max_pods_open):
            by_type = capacity_of(state.limits).max_pods
            observed = MaxPodsObserved(max_pods=by_type, source="instance type")
        if observed is not None:
            await self._once(lambda: self._submit(c.Observe(observed)), "log")

    async def _submit(self, command: c.Command) -> None:
        await self._writer.submit(command)

    async def _look(self) -> None:
        """One cheap reading; EC2 is asked when it disagrees with the books twice, or after a long while."""
        now = asyncio.get_running_loop().time()
        is_due = self.ec2_seen_at is None or now - self.ec2_seen_at > EC2_PERIOD_S or self._is_doubted
        is_due |= self._is_subnet_unknown() or self._is_unread()
        self._is_doubted = False
        try:
            macs = set(await self._imds.attached_macs())
            self._note("imds", "")
        except VpccniError as error:
            self._note("imds", (error.detail or str(error.reason))[:300])
            macs = None
        if macs is not None:
            booked = {held.facts.mac for held in self._writer.state.enis.values() if held.phase == "attached"}
            self._disagreements = self._disagreements + 1 if macs != booked else 0
        if is_due or self._disagreements == 2 or self._disagreements % 20 == 19:
            await self._once(self._read_ec2, "ec2")

    def _is_unread(self) -> bool:
        """Whether addresses wait for a reading, as somebody else may have given them back."""
        enis = self._writer.state.enis.values()
        return any(is_unread(held, cidr) for held in enis for cidr in held.cidrs)

    def _is_subnet_unknown(self) -> bool:
        """Whether an ENI cannot be set up because EC2 did not tell its subnet's CIDR."""
        held = self._writer.state.enis.values()
        return any(eni.managed and eni.phase == "attached" and not eni.facts.subnet_cidr for eni in held)

    async def _read_ec2(self) -> None:
        """Describe; once more a little later if something in it is news."""
        for _ in range(2):
            state = self._writer.state
            if state.instance is None:
                raise TransientError(Reason.NODE_NOT_INITIALIZED)
            ec2 = await self._ec2()
            begun = self._clock.now()
            enis = await self._with_subnets(await ec2.describe_attached(state.instance.id))
            self.ec2_seen_at = asyncio.get_running_loop().time()
            # The search of a node doubts every address that the log had before it; these are read just now.
            await self._wait_searched()
            was_empty = not state.enis
            if not any(facts.device == 0 for facts in enis):
                raise TransientError(Reason.EC2_REFUSED, "EC2 does not list the primary ENI")
            believed = await self._as_imds_lists(enis) if was_empty else enis
            await self._writer.submit(c.ReadEc2(c.Reading(believed, begun), self._previous))
            self._previous = c.Reading(enis, begun)
            if was_empty:
                self._is_doubted = True  # It is asked again at the next look.
                break
            if not self._differs(enis):
                break
            # Asked again at the next look, too, if calls of ours have overtaken this one.
            self._is_doubted |= any(is_outdated(self._writer.state, facts.id, begun) for facts in enis)
            await asyncio.sleep(SECOND_READING_S)
        await self._on_identity()

    async def _as_imds_lists(self, enis: tuple[EniFacts, ...]) -> tuple[EniFacts, ...]:
        """The first reading of all, without the addresses that IMDS does not list and no pod has.

        It may be older than what a log that is lost has given back. IMDS, when it answers, is another witness.
        """
        try:
            async with asyncio.timeout(IMDS_PATIENCE_S):
                listed = {facts.mac: set(facts.cidrs) for facts in await imds_enis(self._imds)}
        except (VpccniError, TimeoutError):
            return enis
        state = self._writer.state
        return tuple(
            msgspec.structs.replace(
                facts,
                cidrs=tuple(
                    cidr
                    for cidr in facts.cidrs
                    if cidr in listed.get(facts.mac, ()) or is_leased(state, cidr)
                ),
            )
            for facts in enis
        )

    async def _with_subnets(self, enis: tuple[EniFacts, ...]) -> tuple[EniFacts, ...]:
        """EC2 tells a subnet's CIDR by a call of its own, which IAM may forbid; IMDS knows it, too."""
        known = {held.facts.subnet: held.facts.subnet_cidr for held in self._writer.state.enis.values()}
        filled = []
        for facts in enis:
            cidr = facts.subnet_cidr or known.get(facts.subnet) or Cidr("")
            if not cidr:
                try:
                    cidr = await self._imds.subnet_cidr(facts.mac)
                except VpccniError as error:
                    _log.warning("subnet_unknown", eni=facts.id, reason=error.reason, detail=error.detail)
            filled.append(msgspec.structs.replace(facts, subnet_cidr=cidr))
        return tuple(filled)

    def _differs(self, enis: tuple[EniFacts, ...]) -> bool:
        state = self._writer.state
        described = {facts.id: set(facts.cidrs) for facts in enis}
        booked = {
            held.facts.id: set(held.cidrs) if held.managed else described.get(held.facts.id, set())
            for held in state.enis.values()
            if held.phase == "attached" and not state.intents_on(held.facts.id)
        }
        return any(described.get(eni) != cidrs for eni, cidrs in booked.items()) or any(
            eni not in state.enis for eni in described
        )

    async def _adopt_left_behind(self) -> None:
        state = self._writer.state
        if state.instance is None:
            return
        if any(intent.intended.kind == "create" for intent in state.intents.values()):
            self.clean_soon()  # What is found now may be what that create makes.
            return
        ec2 = await self._ec2()
        enis = await ec2.describe_left_behind(state.instance.id)
        if enis:
            await self._writer.submit(c.AdoptLeftBehind(enis))
