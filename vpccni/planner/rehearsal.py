"""The planner at work on a node that exists only here: what it would do, call by call, and why.

The books, the plans, the decisions about intents and ADDs are the agent's own; only EC2 is not there. Every call
succeeds at once and subnets never end, so that what comes out is what the *policy* costs, not what a bad day costs.

Three words: a *turn* is one look of the planner and everything that is done because of it; pods *arrive* together or
one by one; the node is *settled* when a look changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, assert_never

import msgspec

from vpccni.errors import InvariantBrokenError, Refused
from vpccni.events.codec import Record
from vpccni.events.effect import EffectIntended
from vpccni.events.eni import EniAdopted
from vpccni.events.node import LimitsObserved, MaxPodsObserved
from vpccni.model import (
    MAIN_TABLE,
    Address,
    Cidr,
    EniFacts,
    EniId,
    InstanceFacts,
    InstanceId,
    InstanceLimits,
    Mac,
    PodRef,
    SandboxKey,
    Seq,
    Stamp,
    SubnetId,
    address_at,
    address_number,
    cidr_size,
)
from vpccni.planner import commands as c
from vpccni.planner.capacity import PREFIX_SIZE
from vpccni.planner.decide import decide
from vpccni.planner.lifecycle import next_effects
from vpccni.planner.policy import policy_of
from vpccni.planner.reconcile import INSTANCE_TAG
from vpccni.planner.sizing import PoolPolicy
from vpccni.planner.view import views_of
from vpccni.planner.warm_pool import (
    Constraints,
    CreateEni,
    Demand,
    GrowEni,
    Plan,
    ReleaseCidrs,
    RemoveEni,
    Step,
    plan,
)
from vpccni.projections.state import State
from vpccni.settings import Settings

ACTIONS: Final = {
    "create": "CreateNetworkInterface",
    "attach": "AttachNetworkInterface",
    "modify": "ModifyNetworkInterfaceAttribute",
    "assign": "AssignPrivateIpAddresses",
    "unassign": "UnassignPrivateIpAddresses",
    "detach": "DetachNetworkInterface",
    "delete": "DeleteNetworkInterface",
    "tag": "CreateTags",
}
"""EC2's name for each kind of effect."""

PATIENCE_S: Final = 900.0
"""For this long after the last pod it is watched what the planner still changes: ENIs grow old, surplus stands."""

_LOOK_S: Final = 10.0
"""Between two looks at a quiet node, as the agent does it."""
_TURNS_MAX: Final = 100
"""A node that has not settled after so many turns never will."""
_SECOND: Final = 10**9
_MORNING: Final = 1_772_359_200 * _SECOND
_BOOT: Final = "rehearsal"
_INSTANCE: Final = InstanceId("i-rehearsal")
_SUBNET: Final = SubnetId("subnet-rehearsal")
_FIRST_ADDRESS: Final = Address("10.0.0.16")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One EC2 call that changes something.

    Attributes:
        action: EC2's name for it.
        eni: The ENI that it is about, also of a create.
        count: Addresses or prefixes that it brings or takes back.
    """

    action: str
    eni: str
    count: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One look of the planner that changed something.

    Attributes:
        at_s: Seconds since the node started.
        pods: Pods that have an address, before it.
        waiting: ADDs that wait for one, before it.
        reason: The plan's own; empty where only ENIs were brought further on their way.
        constraints: What held the plan back.
        calls: What was done, side by side.
    """

    at_s: float
    pods: int
    waiting: int
    reason: str
    constraints: tuple[str, ...]
    calls: tuple[Call, ...]


class EniOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one ENI: addresses that it holds beside its own, and those of them that pods have."""

    eni: str
    device: int
    addresses: int
    pods: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A rehearsal's result.

    Attributes:
        turns: Everything that was done, in order.
        enis: What is there in the end, by device index.
        reason: What the planner says of the settled node.
        constraints: What holds it back there, as limits that are met.
        refused: Why ADDs were refused, by reason code; empty when every pod has its address.
    """

    turns: tuple[Turn, ...]
    enis: tuple[EniOutcome, ...]
    reason: str
    constraints: tuple[str, ...]
    refused: dict[str, int]

    @property
    def calls(self) -> dict[str, int]:
        """How often each action was called."""
        counts: dict[str, int] = {}
        for turn in self.turns:
            for call in turn.calls:
                counts[call.action] = counts.get(call.action, 0) + 1
        return dict(sorted(counts.items()))


def rehearse(
    settings: Settings, limits: InstanceLimits, *, pods: int, max_pods: int, one_by_one: bool = False
) -> Outcome:
    """Start a node, let pods arrive, and wait until nothing changes any more.

    Args:
        settings: The agent's.
        limits: Of the instance type.
        pods: How many pods arrive that need an address.
        max_pods: Pods that the node may run, should ``settings`` not say.
        one_by_one: Each arrives when the node has settled after the one before; otherwise all at once.

    Raises:
        InvariantBrokenError: the planner does not come to rest. That is a bug of ours.
    """
    node = _Node(settings, limits, max_pods)
    node.settle()
    for name in range(pods):
        node.add(f"pod-{name + 1}")
        if one_by_one:
            node.settle()
    node.settle()
    node.watch(PATIENCE_S)
    return node.outcome()


class _Node:
    """The core alone, as the writer drives it, with an EC2 that always says yes."""

    def __init__(self, settings: Settings, limits: InstanceLimits, max_pods: int) -> None:
        self._settings = settings
        self._policy: PoolPolicy = policy_of(settings, limits, max_pods=max_pods)
        self._context = c.Context(
            cooldown_s=settings.ip_cooldown_s,
            add_wait_s=settings.add_wait_s,
            policy=self._policy,
            constraints=Constraints(),
        )
        self._state = State()
        self._now = Stamp(_MORNING, 100 * _SECOND, _BOOT)
        self._addresses = address_number(_FIRST_ADDRESS)
        self._enis = 0
        self._waiting: list[c.Add] = []
        self._turns: list[Turn] = []
        self._refused: dict[str, int] = {}
        self._released_at_s = -self._policy.release_interval_s
        self._last: Plan | None = None
        self._begin(limits)

    # -- what rehearse() asks -----------------------------------------------------------------------

    def add(self, name: str) -> None:
        """A pod arrives."""
        key = SandboxKey("aws-cni", name, "eth0")
        self._try(c.Add(key=key, pod=PodRef("rehearsal", name, name), netns=f"/netns/{name}"))

    def settle(self) -> None:
        """Look and do, until a look changes nothing."""
        for _ in range(_TURNS_MAX):
            if not self._turn():
                return
        raise InvariantBrokenError("the rehearsed node does not settle")

    def watch(self, seconds: float) -> None:
        """Let time pass, looking as often as the agent does."""
        until_s = self._at_s + seconds
        while self._at_s < until_s:
            self._pass(_LOOK_S)
            self.settle()

    def outcome(self) -> Outcome:
        """What there is now, and how it came about."""
        held = sorted(self._state.enis.values(), key=lambda one: (one.card, one.device))
        return Outcome(
            turns=tuple(self._turns),
            enis=tuple(
                EniOutcome(
                    eni=one.facts.id,
                    device=one.device,
                    addresses=sum(cidr_size(cidr) for cidr in one.cidrs),
                    pods=one.lease_count,
                )
                for one in held
            ),
            reason=self._last.reason if self._last is not None else "",
            constraints=self._last.constraints if self._last is not None else (),
            refused=dict(sorted(self._refused.items())),
        )

    # -- a turn -------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """One look; whether it changed anything."""
        pods, waiting = len(self._state.leases), len(self._waiting)
        views = views_of(self._state, self._now, self._context.cooldown_s, self._policy.slots_per_eni)
        made = plan(views, self._policy, Demand(waiting), self._constraints())
        self._last = made
        wanted = [self._intended(step, made.reason) for step in made.steps]
        if any(isinstance(step, ReleaseCidrs) for step in made.steps):
            self._released_at_s = self._at_s
        wanted += next_effects(self._state, frozenset())
        calls = tuple(self._perform(wanted))
        if calls:
            reason = made.reason if made.steps else ""
            turn = Turn(
                at_s=self._at_s,
                pods=pods,
                waiting=waiting,
                reason=reason,
                constraints=made.constraints,
                calls=calls,
            )
            self._turns.append(turn)
            self._pass(1.0)
        self._again()
        return bool(calls) or len(self._waiting) < waiting

    def _perform(self, wanted: list[EffectIntended]) -> Iterator[Call]:
        """Intend all side by side, then let each succeed."""
        begun = []
        for effect in wanted:
            answer = self._ask(c.Intend(effect))
            if isinstance(answer, c.Decision):
                begun.append((answer.intent, effect))
        for intent, effect in begun:
            confirmed = self._succeed(effect)
            self._ask(c.Settle(intent, confirmed))
            eni = confirmed.facts.id if confirmed.facts is not None else effect.eni
            if effect.kind == "attach":
                self._ask(c.NoteLinks(ready=((eni, f"ens{5 + effect.device}", 2 + effect.device),)))
            yield Call(action=ACTIONS[effect.kind], eni=eni, count=effect.count or len(effect.cidrs))

    def _intended(self, step: Step, reason: str) -> EffectIntended:
        match step:
            case GrowEni():
                return EffectIntended(kind="assign", eni=step.eni, count=step.count, reason=reason)
            case CreateEni():
                return EffectIntended(
                    kind="create", subnet=_SUBNET, groups=("sg-rehearsal",), count=step.count, reason=reason
                )
            case ReleaseCidrs():
                cidrs = tuple(one.cidr for one in step.cidrs)
                return EffectIntended(kind="unassign", eni=step.eni, cidrs=cidrs, reason=reason)
            case RemoveEni():
                attachment = self._state.enis[step.eni].attachment
                return EffectIntended(kind="detach", eni=step.eni, attachment=attachment, reason=reason)
            case _:
                assert_never(step)

    def _constraints(self) -> Constraints:
        lately = self._at_s - self._released_at_s < self._policy.release_interval_s
        return Constraints(shrink_blocked="released_lately" if lately else "")

    # -- EC2 that always says yes -------------------------------------------------------------------

    def _succeed(self, effect: EffectIntended) -> c.Confirmed:
        match effect.kind:
            case "create":
                return c.Confirmed(facts=self._new_eni(self._fresh(effect.count, effect.unit)))
            case "assign":
                return c.Confirmed(cidrs=self._fresh(effect.count, effect.unit))
            case "attach":
                return c.Confirmed(attachment=f"attach-{effect.eni}")
            case _:
                return c.Confirmed()

    def _fresh(self, count: int, unit: str) -> tuple[Cidr, ...]:
        step, length = (PREFIX_SIZE, 28) if unit == "prefix" else (1, 32)
        first = -(-self._addresses // step) * step
        self._addresses = first + count * step
        return tuple(Cidr(f"{address_at(first + number * step, 4)}/{length}") for number in range(count))

    def _new_eni(self, cidrs: tuple[Cidr, ...]) -> EniFacts:
        number, self._enis = self._enis, self._enis + 1
        (own,) = self._fresh(1, "address")
        return EniFacts(
            id=EniId(f"eni-{number:02}"),
            mac=Mac(f"02:00:00:00:00:{number:02x}"),
            subnet=_SUBNET,
            subnet_cidr=Cidr("10.0.0.0/8"),
            primary=Address(own.removesuffix("/32")),
            cidrs=cidrs,
            groups=("sg-rehearsal",),
            tags={INSTANCE_TAG: _INSTANCE},
        )

    # -- the books ----------------------------------------------------------------------------------

    def _begin(self, limits: InstanceLimits) -> None:
        """A node that serves, with its primary ENI and no address for pods yet."""
        primary = msgspec.structs.replace(
            self._new_eni(()),
            attachment="attach-eni-00",
            attachment_status="attached",
            instance=_INSTANCE,
            device=0,
            delete_on_termination=True,
        )
        machine = InstanceFacts(
            id=_INSTANCE, type="", az="", region="", primary_mac=primary.mac, vpc_cidrs=(Cidr("10.0.0.0/8"),)
        )
        self._ask(c.StartAgent(boot_id=_BOOT, version="rehearsal"))
        self._ask(c.ObserveInstance(machine))
        self._ask(c.Observe(LimitsObserved(type="", limits=limits)))
        self._ask(c.Observe(MaxPodsObserved(max_pods=self._policy.max_pods, source="rehearsal")))
        adopted = EniAdopted(facts=primary, managed=True, origin="found", table=MAIN_TABLE)
        self._ask(c.Note((adopted,)))
        self._ask(c.NoteLinks(ready=((primary.id, "ens5", 2),)))

    def _ask(self, command: c.Command, ahead: int = 0) -> c.Answer:
        context = msgspec.structs.replace(self._context, ahead=ahead) if ahead else self._context
        answer = decide(self._state, command, self._now, context)
        if not isinstance(answer, Refused):
            for event, cause in answer.events:
                whose = self._state.head if cause == c.PREVIOUS else cause
                self._state.evolve(Record(Seq(self._state.head + 1), self._now, event, whose))
        return answer

    def _try(self, command: c.Add) -> None:
        answer = self._ask(command, ahead=len(self._waiting))
        if isinstance(answer, c.Park):
            request = command.request or int(self._state.head)
            self._waiting.append(msgspec.structs.replace(command, request=request))
        elif isinstance(answer, Refused):
            self._refused[answer.reason] = self._refused.get(answer.reason, 0) + 1

    def _again(self) -> None:
        """Who waits is asked for again, first come first served."""
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            self._try(command)

    @property
    def _at_s(self) -> float:
        return (self._now.wall_ns - _MORNING) / _SECOND

    def _pass(self, seconds: float) -> None:
        passed = round(seconds * _SECOND)
        self._now = Stamp(self._now.wall_ns + passed, self._now.boottime_ns + passed, _BOOT)
