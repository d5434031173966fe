"""Carry out intended effects, and settle those whose outcome nobody knows.

    intend (durable) -> call -> confirmed | failed (durable)
                             -> no reply: unknown (durable) -> Describe until two readings agree -> settled

A crash anywhere leaves an open intent; at the next start it is settled like an unknown one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

import msgspec
import structlog

from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError
from vpccni.events.effect import DELETE_ON_TERMINATION, EffectIntended, EffectKind
from vpccni.events.node import SubnetObserved
from vpccni.loops.breakers import Breakers
from vpccni.loops.detaching import Detaching
from vpccni.loops.write import Writer
from vpccni.model import EniFacts, InstanceId, IntentId, SubnetId
from vpccni.planner import commands as c
from vpccni.planner.view import SIDE_KINDS
from vpccni.ports import Clock, Ec2

_log = structlog.get_logger("effects")

SETTLE_PAUSE_S: Final = 2.0
"""Between two readings that must agree: EC2's Describe has been seen to lag a second or two."""
GROWTH_KINDS: Final = ("create", "attach", "assign")
REPEATED_KINDS: Final = ("create", "unassign", "detach")
"""Calls that are made once more when Describe shows no trace of the first."""
SURE_AFTER_S: Final = 60.0
"""So long after a call without a reply Describe shows what became of it, and a refusal is believed."""
CREATED_AT_TAG: Final = "node.k8s.amazonaws.com/createdAt"
FRESH_S: Final = 60.0
"""So long after an ENI came EC2 may not know it everywhere: "not found" is no news before."""
FREE_COUNT_KEPT_S: Final = 1.0
"""Calls that are refused side by side ask once how many addresses the subnet has."""
FREE_COUNT_RETRY_S: Final = 10.0
"""A node that may not call DescribeSubnets does not try at every refusal."""

_ASK: Final = EffectIntended(kind="ask")


class _Accepted(msgspec.Struct, frozen=True):
    """EC2 has begun to detach an ENI, by its reply or as it was observed."""

    how: str = "reply"


class Effects:
    """Performs effects within a budget of EC2 calls at once.

    Attributes:
        may_finish: Whether what was intended may be carried out just now.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        ec2: Callable[[], Awaitable[Ec2]],
        clock: Clock,
        breakers: Breakers,
        parallel_max: int,
        may_finish: Callable[[], bool],
        on_change: Callable[[], None],
        on_refused: Callable[[], None],
        on_recreated: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._ec2 = ec2
        self._clock = clock
        self._breakers = breakers
        self.may_finish = may_finish
        # What gives back never stands in the way of growth: each has a part of the budget to itself. Nothing stands
        # in the way of DeleteOnTermination: without it an ENI outlives a machine that ends now.
        shrinking = max(1, parallel_max // 4)
        self._growth = asyncio.Semaphore(max(1, parallel_max - shrinking))
        self._shrinkage = asyncio.Semaphore(shrinking)
        self._aside = asyncio.Semaphore(shrinking)
        self._detaching = Detaching()
        self._on_change = on_change
        self._on_refused = on_refused
        self._on_recreated = on_recreated
        self.attach_refused: set[str] = set()
        self.under_way: set[IntentId] = set()
        self._unsure_since: dict[IntentId, float] = {}
        self._free_counts: dict[SubnetId, tuple[int, float]] = {}

    async def intend(self, wanted: EffectIntended) -> IntentId:
        """Make an intent durable. Raises what ``Writer.submit`` raises."""
        decision = await self._writer.submit(c.Intend(wanted))
        self.under_way.add(decision.intent)
        self._breakers.begin(wanted, decision.intent, asyncio.get_running_loop().time())
        return decision.intent

    async def perform(self, intent: IntentId, wanted: EffectIntended) -> None:
        """Make the call of a durable intent and record its outcome."""
        self.under_way.add(intent)
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            ec2 = await self._ec2()
            async with self._budget_of(wanted.kind):
                # While it waited for its turn, another call may have failed in a way that concerns this one.
                called = self._held_back(intent, wanted) or await self._attempt(ec2, wanted)
            outcome = await self._wait_done(ec2, wanted, called)
            await self._writer.submit(c.Settle(intent, outcome))
            _log.info(
                "effect",
                kind=wanted.kind,
                eni=wanted.eni,
                intent=intent,
                outcome=type(outcome).__name__.lower(),
                elapsed_s=round(loop.time() - started, 3),
            )
            if isinstance(outcome, c.Unknown):
                await asyncio.sleep(SETTLE_PAUSE_S)
                await self._settle(ec2, intent, wanted)
        except VpccniError as error:
            # The log or EC2 failed us in between: the intent stays open, ``settle_open`` comes back to it.
            _log.warning("effect_left_open", kind=wanted.kind, reason=error.reason, detail=error.detail)
        finally:
            self.under_way.discard(intent)
            self._breakers.end(intent)
            self._on_change()

    async def settle_open(self, intent: IntentId, wanted: EffectIntended) -> None:
        """Settle an intent that an earlier process, or a failure, left open."""
        self.under_way.add(intent)
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        try:
            until = max(self._breakers.until(wanted, now), self._breakers.until(_ASK, now))
            await asyncio.sleep(until - now)
            if not self.may_finish():
                return  # Meanwhile the node has become another agent's, or its machine is in doubt.
            ec2 = await self._ec2()
            began = loop.time()
            await self._settle(ec2, intent, wanted, self._budget_of(wanted.kind))
            self._breakers.succeed(_ASK, began, loop.time())
        except VpccniError as error:
            self._breakers.fail(_ASK, error, began, loop.time())
            _log.info(
                "settle_later", kind=wanted.kind, intent=intent, reason=error.reason, detail=error.detail
            )
            await asyncio.sleep(SETTLE_PAUSE_S)
        finally:
            self.under_way.discard(intent)
            self._on_change()

    def _budget_of(self, kind: EffectKind) -> asyncio.Semaphore:
        if kind in SIDE_KINDS:
            return self._aside
        return self._growth if kind in GROWTH_KINDS else self._shrinkage

    # -- the calls --------------------------------------------------------------------------------

    async def _attempt(self, ec2: Ec2, wanted: EffectIntended) -> c.Outcome | _Accepted:
        if not self.may_finish():
            # It was intended when it still might; seconds may have passed in waiting for its turn or a reading.
            raise TransientError(Reason.CANCELLED, "nothing may be changed just now; the intent stays open")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            outcome = await self._call(ec2, wanted)
        except OutcomeUnknownError as error:
            self._breakers.fail(wanted, error, began, loop.time())
            return c.Unknown(detail=error.detail)
        except (TransientError, PermanentError) as error:
            return await self._refused(ec2, wanted, error, began)
        self._breakers.succeed(wanted, began, loop.time())
        return outcome

    def _held_back(self, intent: IntentId, wanted: EffectIntended) -> c.Failed | None:
        """The call is not made, as EC2 would not do it now; the planner looks again at what is wanted."""
        held = self._breakers.holding(wanted, asyncio.get_running_loop().time(), intent)
        if held is None:
            return None
        return c.Failed(
            reason=Reason(held.reason), detail=f"not called: {held.detail}"[:500], is_transient=True
        )

    async def _refused(
        self, ec2: Ec2, wanted: EffectIntended, error: TransientError | PermanentError, began: float
    ) -> c.Failed:
        """EC2 did not do it: what is to pause for it, and is it worth asking what EC2 sees?"""
        loop = asyncio.get_running_loop()
        is_transient = isinstance(error, TransientError)
        if error.reason is Reason.SUBNET_EXHAUSTED:
            free = await self._free_count(ec2, wanted.subnet)
            self._breakers.shorten(wanted, loop.time(), free=free, needed=self._writer.waiting)
        elif self._is_too_fresh(wanted, error):
            is_transient = True
            self._breakers.note_fresh(wanted, error, loop.time())
        else:
            self._breakers.fail(wanted, error, began, loop.time())
            if not is_transient:
                # EC2 sees something else than the books (a full ENI, an index in use): compare.
                self._on_refused()
                if wanted.kind == "attach":
                    self.attach_refused.add(wanted.eni)
        return c.Failed(
            reason=error.reason,
            code=getattr(error, "code", ""),
            detail=error.detail[:500],
            is_transient=is_transient,
        )

    def _is_too_fresh(self, wanted: EffectIntended, error: VpccniError) -> bool:
        """Whether EC2 does not find what it has made a moment ago: it is eventually consistent."""
        held = self._writer.state.enis.get(wanted.eni)
        if held is None or held.origin != "created" or not getattr(error, "code", "").endswith(".NotFound"):
            return False
        return self._writer.state.elapsed_s(held.adopted, self._clock.now()) < FRESH_S

    async def _free_count(self, ec2: Ec2, subnet: SubnetId) -> int:
        """How many addresses a subnet has left; -1 when EC2 does not tell."""
        loop = asyncio.get_running_loop()
        free, until = self._free_counts.get(subnet, (-1, 0.0))
        if loop.time() < until:
            return free
        try:
            told = await ec2.describe_subnet(subnet)
        except VpccniError as error:
            _log.info("free_count_unknown", subnet=subnet, reason=error.reason, detail=error.detail)
            self._free_counts[subnet] = (-1, loop.time() + FREE_COUNT_RETRY_S)
            return -1
        self._free_counts[subnet] = (told.free, loop.time() + FREE_COUNT_KEPT_S)
        self._writer.post(
            c.Observe(SubnetObserved(subnet=subnet, cidr=told.cidr, az=told.az, free=told.free))
        )
        return told.free

    async def _call(self, ec2: Ec2, wanted: EffectIntended) -> c.Confirmed | _Accepted:
        match wanted.kind:
            case "create":
                return c.Confirmed(facts=await self._create(ec2, wanted))
            case "attach":
                attachment = await ec2.attach_eni(
                    wanted.eni, self._instance(), device=wanted.device, card=wanted.card
                )
                return c.Confirmed(attachment=attachment)
            case "modify" if wanted.attribute == DELETE_ON_TERMINATION:
                await ec2.set_delete_on_termination(wanted.eni, wanted.attachment)
            case "assign":
                return c.Confirmed(cidrs=await ec2.assign_addresses(wanted.eni, wanted.count))
            case "unassign":
                await ec2.unassign_addresses(wanted.eni, wanted.cidrs)
            case "detach":
                await ec2.detach_eni(wanted.attachment)
                return _Accepted()
            case "delete":
                await ec2.delete_eni(wanted.eni)
            case "tag":
                await ec2.tag_eni(wanted.eni, wanted.tags)
            case _:
                raise PermanentError(Reason.LOG_NEWER, f"effect {wanted.kind} of a later release")
        return c.Confirmed()

    async def _create(self, ec2: Ec2, wanted: EffectIntended) -> EniFacts:
        return await ec2.create_eni(
            subnet=wanted.subnet,
            groups=wanted.groups,
            secondary_count=wanted.count,
            description=wanted.description,
            tags=wanted.tags,
            token=wanted.token,
        )

    async def _wait_done(self, ec2: Ec2, wanted: EffectIntended, called: c.Outcome | _Accepted) -> c.Outcome:
        """The outcome of a call; of a detach when it is over. Nothing of the budget is held meanwhile.

        Raises:
            OutcomeUnknownError: a detach that was observed to be under way does not end: asked again later.
        """
        if not isinstance(called, _Accepted):
            return called
        try:
            await self._detaching.wait_detached(ec2, wanted.eni)
        except OutcomeUnknownError as error:
            if called.how == "observed":
                raise
            return c.Unknown(detail=error.detail)
        return c.Confirmed(how=called.how)

    def _instance(self) -> InstanceId:
        instance = self._writer.state.instance
        if instance is None:
            raise TransientError(Reason.NODE_NOT_INITIALIZED, "the instance id is not known")
        return instance.id

    # -- settling ---------------------------------------------------------------------------------

    async def _settle(
        self,
        ec2: Ec2,
        intent: IntentId,
        wanted: EffectIntended,
        budget: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        now = asyncio.get_running_loop().time()
        since = self._unsure_since.setdefault(intent, now)
        async with budget or nullcontext():
            found = await self._find_outcome(ec2, intent, wanted)
        outcome = await self._wait_done(ec2, wanted, found)
        if isinstance(outcome, c.Failed) and wanted.kind in REPEATED_KINDS and now - since < SURE_AFTER_S:
            # That a second try is refused says nothing about the first, and Describe may lag behind it: what
            # was given back must not return to the pool, what was created must not be forgotten.
            raise TransientError(outcome.reason, f"unsettled, and tried again in vain: {outcome.detail}")
        await self._writer.submit(c.Settle(intent, outcome))
        self._unsure_since.pop(intent, None)
        _log.info("settled", kind=wanted.kind, eni=wanted.eni, outcome=type(outcome).__name__.lower())

    async def _find_outcome(
        self, ec2: Ec2, intent: IntentId, wanted: EffectIntended
    ) -> c.Outcome | _Accepted:
        """What became of a call whose reply nobody has. Raises when EC2 does not answer: asked again later."""
        match wanted.kind:
            case "create":
                return await self._find_created(ec2, wanted)
            case "modify" | "tag":
                return await self._attempt(ec2, wanted)  # Doing it twice changes nothing.
            case "delete":
                if await ec2.describe_eni(wanted.eni) is None:
                    return c.Confirmed(how="observed")
                self._check_open(intent)
                return await self._attempt(ec2, wanted)
            case "detach":
                facts = await ec2.describe_eni(wanted.eni)
                if facts is None or not facts.attachment:
                    return c.Confirmed(how="observed")
                if facts.attachment_status == "detaching":
                    return _Accepted("observed")
                self._check_open(intent)
                return await self._attempt(ec2, wanted)
            case "attach":
                return await self._find_attached(ec2, wanted)
            case "assign":
                return await self._find_assigned(ec2, wanted)
            case "unassign":
                return await self._find_unassigned(ec2, intent, wanted)
            case _:
                raise PermanentError(Reason.LOG_NEWER, f"effect {wanted.kind} of a later release")

    async def _find_created(self, ec2: Ec2, wanted: EffectIntended) -> c.Outcome | _Accepted:
        """By our own creation tag first: then also an EC2 that ignores the token cannot give us two."""
        mark = wanted.tags.get(CREATED_AT_TAG)
        for facts in await ec2.describe_left_behind(self._instance()):
            if mark and facts.tags.get(CREATED_AT_TAG) == mark:
                return c.Confirmed(facts=facts, how="observed")
        # Describe may lag, and an EC2 that ignores the token then makes a second one: pods wait for this one,
        # so it is asked for now, and the other is looked for when all is settled.
        self._on_recreated()
        return await self._attempt(ec2, wanted)

    async def _find_attached(self, ec2: Ec2, wanted: EffectIntended) -> c.Outcome:
        """One reading proves that it was done; that it was not takes two that agree."""
        facts = await ec2.describe_eni(wanted.eni)
        if facts is None or not facts.attachment:
            facts = await self._read_twice(ec2, wanted)
        if facts is not None and facts.attachment and facts.instance == self._instance():
            if facts.device != wanted.device:
                return c.Failed(reason=Reason.EC2_REFUSED, detail="attached with another index")
            return c.Confirmed(attachment=facts.attachment, how="observed")
        return c.Failed(reason=Reason.EC2_UNREACHABLE, detail="not attached", is_transient=True)

    async def _find_assigned(self, ec2: Ec2, wanted: EffectIntended) -> c.Outcome:
        facts = await self._read_twice(ec2, wanted)
        held = self._writer.state.enis.get(wanted.eni)
        if facts is None or held is None:
            return c.Abandoned(reason="the ENI is gone")
        # What left the ENI lately is listed by a Describe that lags, and is not what this call brought.
        ours = {*wanted.known, *held.cidrs, *held.released}
        fresh = tuple(cidr for cidr in facts.cidrs if cidr not in ours)
        if not fresh:
            return c.Failed(reason=Reason.EC2_UNREACHABLE, detail="nothing was assigned", is_transient=True)
        return c.Confirmed(cidrs=fresh, how="observed")

    def _check_open(self, intent: IntentId) -> None:
        """Before a call is repeated that takes something away: a search may have found who uses it."""
        if intent not in self._writer.state.intents:
            raise TransientError(Reason.CANCELLED, "the intent was abandoned meanwhile")

    async def _find_unassigned(
        self, ec2: Ec2, intent: IntentId, wanted: EffectIntended
    ) -> c.Outcome | _Accepted:
        facts = await self._read_twice(ec2, wanted)
        left = tuple(cidr for cidr in wanted.cidrs if facts is not None and cidr in facts.cidrs)
        if not left:
            return c.Confirmed(how="observed")
        # Still ours to give back: nothing was assigned out of them meanwhile, or the intent was abandoned.
        self._check_open(intent)
        outcome = await self._attempt(ec2, msgspec.structs.replace(wanted, cidrs=left))
        if isinstance(outcome, c.Failed) and left != wanted.cidrs:
            # A part is gone: a failure of the whole would put it back into the pool.
            raise TransientError(outcome.reason, f"{len(left)} of {len(wanted.cidrs)} are left")
        return outcome

    async def _read_twice(self, ec2: Ec2, wanted: EffectIntended) -> EniFacts | None:
        before = await ec2.describe_eni(wanted.eni)
        while True:
            await asyncio.sleep(SETTLE_PAUSE_S)
            facts = await ec2.describe_eni(wanted.eni)
            if _same(before, facts):
                return facts
            before = facts


def _same(one: EniFacts | None, other: EniFacts | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.cidrs, one.attachment, one.device, one.status) == (
        other.cidrs,
        other.attachment,
        other.device,
        other.status,
    )
