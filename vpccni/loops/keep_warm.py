"""Keep the pool warm: plan the whole deficit at once, and perform it in parallel, never in the way of an ADD."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec
import structlog

from vpccni.errors import Reason, VpccniError
from vpccni.events.decision import PlanMade
from vpccni.events.effect import EffectIntended
from vpccni.loops.breakers import Breakers
from vpccni.loops.effects import CREATED_AT_TAG, Effects
from vpccni.loops.write import Writer
from vpccni.model import EniId
from vpccni.planner import commands as c
from vpccni.planner.lifecycle import next_effects
from vpccni.planner.view import views_of
from vpccni.planner.warm_pool import (
    Constraints,
    CreateEni,
    Demand,
    GrowEni,
    Plan,
    PoolPolicy,
    ReleaseCidrs,
    RemoveEni,
    Step,
    plan,
    step_text,
)
from vpccni.ports import Clock
from vpccni.projections.state import State

_log = structlog.get_logger("keep_warm")

PERIOD_S: Final = 10.0
"""Rests and ages end without an event; so often the plan is looked at again. A look costs 0.2 ms."""
SETTLED_PAUSE_S: Final = 0.02
"""A burst of ADDs wakes us once, not once an ADD."""


class EniTemplate(msgspec.Struct, frozen=True):
    """How ENIs of ours are named: description and tags by which the original knows them, too."""

    cluster_name: str = ""
    additional_tags: dict[str, str] = {}

    def tags(self, instance: str, created_at: str) -> dict[str, str]:
        """Tags of a new ENI (the original's, by which its tools find them)."""
        tags = {"node.k8s.amazonaws.com/instance_id": instance, CREATED_AT_TAG: created_at}
        if self.cluster_name:
            tags |= {"cluster.k8s.amazonaws.com/name": self.cluster_name, "eks:eni:owner": "amazon-vpc-cni"}
        return tags | self.additional_tags


class KeepWarm:
    """The loop."""

    def __init__(
        self,
        *,
        writer: Writer,
        effects: Effects,
        breakers: Breakers,
        clock: Clock,
        policy: Callable[[], PoolPolicy | None],
        cooldown_s: float,
        template: EniTemplate,
        no_change: Callable[[], str],
    ) -> None:
        self._writer = writer
        self._effects = effects
        self._breakers = breakers
        self._clock = clock
        self._policy = policy
        self._cooldown_s = cooldown_s
        self._template = template
        self._no_change = no_change
        self._wake = asyncio.Event()
        self._released_at: float | None = None
        self.plan: Plan | None = None

    def wake(self) -> None:
        """Something changed that a plan may depend on."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Plan whenever woken, and every few seconds."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wait()
                self._wake.clear()
                await self._look(group)
        raise AssertionError

    async def _wait(self) -> None:
        now = asyncio.get_running_loop().time()
        due = min(now + PERIOD_S, self._breakers.next_change(now) or now + PERIOD_S)
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
                await asyncio.sleep(SETTLED_PAUSE_S)
        except TimeoutError:
            return

    async def _look(self, group: asyncio.TaskGroup) -> None:
        state, policy = self._writer.state, self._policy()
        self._writer.look_again()
        self._resume(group, state)
        if policy is None or state.instance is None or state.primary_eni() is None:
            return
        wanted = self._plan_pool(state, policy)
        if not self._no_change():
            now = asyncio.get_running_loop().time()
            refused = frozenset(EniId(eni) for eni in self._effects.attach_refused)
            wanted += self._breakers.admit(next_effects(state, refused), now)
        await self._perform(group, wanted)

    def _resume(self, group: asyncio.TaskGroup, state: State) -> None:
        """Intents that nobody works on: left by a crash, or by a failure in between."""
        if not self._effects.may_finish():
            return
        for intent in list(state.intents.values()):
            if intent.id not in self._effects.under_way:
                self._effects.under_way.add(intent.id)
                group.create_task(
                    self._effects.settle_open(intent.id, intent.intended), name=f"settle {intent.id}"
                )

    def _plan_pool(self, state: State, policy: PoolPolicy) -> list[EffectIntended]:
        stamp, now = self._clock.now(), asyncio.get_running_loop().time()
        views = views_of(state, stamp, self._cooldown_s, policy.slots_per_eni)
        made = plan(views, policy, Demand(self._writer.waiting), self._constraints(state, now, policy))
        self.plan = made
        self._writer.post(
            c.NotePlan(
                PlanMade(
                    reason=made.reason,
                    steps=tuple(step_text(step) for step in made.steps),
                    constraints=made.constraints,
                )
            )
        )
        wanted: list[EffectIntended] = []
        for number, step in enumerate(made.steps):
            wanted.append(self._intended(state, step, number, made.reason))
            if isinstance(step, ReleaseCidrs):
                self._released_at = now
        return wanted

    def _constraints(self, state: State, now: float, policy: PoolPolicy) -> Constraints:
        shrink = ""
        if self._released_at is not None and now - self._released_at < policy.release_interval_s:
            shrink = "released_lately"
        return self._breakers.for_plan(
            now,
            shrink_blocked=shrink,
            no_change=self._no_change(),
            is_urgent=self._writer.waiting > 0,
            is_attaching=any(
                held.phase == "detached" and not held.is_retiring for held in state.enis.values()
            )
            or any(intent.intended.kind in ("create", "attach") for intent in state.intents.values()),
        )

    def _intended(self, state: State, step: Step, number: int, reason: str) -> EffectIntended:
        match step:
            case GrowEni():
                held = state.enis[step.eni]
                return EffectIntended(
                    kind="assign",
                    eni=step.eni,
                    subnet=held.facts.subnet,
                    count=step.count,
                    known=tuple(held.cidrs),
                    reason=reason,
                )
            case CreateEni():
                return self._new_eni(state, step, number, reason)
            case ReleaseCidrs():
                cidrs = tuple(rested.cidr for rested in step.cidrs)
                return EffectIntended(kind="unassign", eni=step.eni, cidrs=cidrs, reason=reason)
            case RemoveEni():
                return EffectIntended(
                    kind="detach", eni=step.eni, attachment=state.enis[step.eni].attachment, reason=reason
                )

    def _new_eni(self, state: State, step: CreateEni, number: int, reason: str) -> EffectIntended:
        primary, instance = state.primary_eni(), state.instance
        if primary is None or instance is None:
            raise VpccniError(Reason.NODE_NOT_INITIALIZED, "no primary ENI")
        wall_ns = self._clock.now().wall_ns
        created = datetime.datetime.fromtimestamp(wall_ns / 1e9, tz=datetime.UTC)
        # With a fraction, and one microsecond apart within a plan: by this tag an ENI whose create was
        # never answered is found again, also where EC2's token is not honoured.
        created += datetime.timedelta(microseconds=number)
        return EffectIntended(
            kind="create",
            token=f"{instance.id}-{wall_ns:x}-{state.head}-{number}",
            subnet=primary.facts.subnet,
            groups=primary.facts.groups,
            count=step.count,
            description=f"aws-K8S-{instance.id}",
            tags=self._template.tags(instance.id, created.isoformat(timespec="microseconds")),
            reason=reason,
        )

    async def _perform(self, group: asyncio.TaskGroup, wanted: list[EffectIntended]) -> None:
        """Intend all in one batch; each is then performed by a task of its own."""
        if not wanted:
            return
        async with asyncio.TaskGroup() as intending:
            for effect in wanted:
                intending.create_task(self._begin(group, effect), name=f"intend {effect.kind}")

    async def _begin(self, group: asyncio.TaskGroup, wanted: EffectIntended) -> None:
        try:
            intent = await self._effects.intend(wanted)
        except VpccniError as error:
            _log.info("step_dropped", kind=wanted.kind, eni=wanted.eni, detail=error.detail or error.reason)
            return
        group.create_task(self._effects.perform(intent, wanted), name=f"{wanted.kind} {intent}")
