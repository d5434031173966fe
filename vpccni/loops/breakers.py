"""What EC2 would not do just now, and when to try again. Volatile: a restart forgets it, and waits a little.

Theory of operation. What failed decides what pauses, because EC2 itself keeps these apart:

=====================================  ==========================  ==========================================
EC2 said                               what pauses                 an ADD that waits for it
=====================================  ==========================  ==========================================
throttled, a failure of EC2's own      this API action             goes on waiting
nothing: no connection, no reply,      every call                  is refused after ``UNREACHABLE_REFUSES_S``
no credentials yet
not allowed                            this API action             is refused at once
the subnet has too few addresses       this call, unit and subnet  is refused when not even one can be had
the ENI has no room or is not there    this ENI                    has the other ENIs
another refusal                        the ENI; for create and     is refused at once
                                       attach the action
=====================================  ==========================  ==========================================

A pause is drawn at random (*full jitter*), so that nodes which failed together do not come back together. After
it the first call is a *trial*: until it has ended, no other call is made that depends on the same. Success closes,
failure makes the next pause longer. Calls that were under way when the first of them failed are one failure, not
many; and a success of a call that was made before the failure says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

import msgspec

from vpccni.errors import PermanentError, Reason, TransientError, VpccniError
from vpccni.events.effect import EffectIntended
from vpccni.model import EniId, SubnetId
from vpccni.planner.constraints import NO_LIMIT, Constraints, HeldEni, Shortage

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
"""Pauses after throttling are drawn from 0 to a bound, which doubles from the first value to the second."""
PERMANENT_FIRST_S: Final = 60.0
PERMANENT_MAX_S: Final = 600.0
"""A missing permission or a full quota is mended by a person; he sees it work again within ten minutes."""
SUBNET_PAUSE_S: Final = 120.0
"""The original's pause after an IP shortage; here for each subnet and not for the whole daemon."""
SMALLER_S: Final = 0.5
"""Before less is asked for: several nodes that share a subnet should not ask at the same instant."""
FRESH_FIRST_S: Final = 0.5
FRESH_MAX_S: Final = 4.0
"""What EC2 has just made is found a second or two later, seldom after ten."""
UNREACHABLE_REFUSES_S: Final = 10.0
"""A connection that is lost for less than this costs a pod less than kubelet's next try, 13 s away."""
RESTART_JITTER_S: Final = 5.0
"""Agents that restart together do not fill their pools at the same instant."""

ACTIONS: Final = {
    "create": "CreateNetworkInterface",
    "attach": "AttachNetworkInterface",
    "assign": "AssignPrivateIpAddresses",
    "unassign": "UnassignPrivateIpAddresses",
    "detach": "DetachNetworkInterface",
    "delete": "DeleteNetworkInterface",
    "modify": "ModifyNetworkInterfaceAttribute",
    "tag": "CreateTags",
    "ask": "DescribeNetworkInterfaces",
}
"""EC2's action for each kind of effect: its request buckets and permissions are per action."""

Key = tuple[str, ...]
UNREACHABLE: Final[Key] = ("unreachable",)


class Gate(msgspec.Struct):
    """One thing that failed lately.

    Attributes:
        until: On the loop's clock; no call before.
        since: When it began to fail.
        noted_at: When the last failure that counted came back.
        failures: How many in a row; those of one burst are one.
        trial: The intent whose call is the trial; 0 for none.
        is_refusing: An ADD that needs this call is refused while the pause lasts, and not kept waiting.
    """

    reason: str = ""
    detail: str = ""
    until: float = 0.0
    since: float = 0.0
    noted_at: float = 0.0
    failures: int = 0
    trial: int = 0
    is_refusing: bool = False

    def holds(self, now: float, intent: int = -1) -> bool:
        """Whether a call must wait; the trial itself need not."""
        return now < self.until or (self.trial != 0 and self.trial != intent)


class _Short(msgspec.Struct):
    """A subnet gave less than was asked for.

    Attributes:
        left: The most that the next call may ask for; 0 when there is nothing.
        free: What DescribeSubnets said, less what we took since; -1 when it did not say.
        until: No call before.
        ends: From then on one call tries whether the subnet has more.
        trial: The intent whose call is under way.
    """

    left: int
    free: int
    until: float
    ends: float
    noted_at: float
    trial: int = 0


class Breakers:
    """Every pause that is on just now."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._gates: dict[Key, Gate] = {}
        self._shorts: dict[tuple[str, str, SubnetId], _Short] = {}
        self._settled_at = 0.0

    # -- what happened ----------------------------------------------------------------------------

    def note_restart(self, now: float) -> None:
        """The agent has started again: what no ADD waits for begins a little later, at a random moment."""
        self._settled_at = now + RESTART_JITTER_S * self._rng.random()

    def begin(self, wanted: EffectIntended, intent: int, now: float) -> None:
        """An intent is durable. Where a pause is over its call is the trial."""
        for key in _keys(wanted.kind, wanted.eni):
            gate = self._gates.get(key)
            if gate is not None and now >= gate.until and not gate.trial:
                gate.trial = intent
        short = self._shorts.get(_short_key(wanted))
        if short is not None and not short.trial:
            short.trial = intent

    def end(self, intent: int) -> None:
        """Nothing more comes of this intent's call just now."""
        for gate in self._gates.values():
            gate.trial = 0 if gate.trial == intent else gate.trial
        for short in self._shorts.values():
            short.trial = 0 if short.trial == intent else short.trial

    def succeed(self, wanted: EffectIntended, began: float, now: float) -> None:
        """A call that left at ``began`` was done."""
        for key in _keys(wanted.kind, wanted.eni):
            gate = self._gates.get(key)
            if gate is not None and began >= gate.noted_at:
                del self._gates[key]
        short = self._shorts.get(_short_key(wanted))
        if short is None or began < short.noted_at:
            return
        if short.free >= 0 and now < short.ends:
            self.note_free(wanted.subnet, short.free - _cost(wanted), now, wanted.unit)
        elif now >= short.ends:
            del self._shorts[_short_key(wanted)]

    def fail(self, wanted: EffectIntended, error: VpccniError, began: float, now: float) -> None:
        """A call that left at ``began`` came back with an error, or did not come back."""
        key = _failed(wanted, error)
        if key is None:
            return  # a shortage: see :meth:`shorten`
        gate = self._gates.setdefault(key, Gate(since=now))
        self._pause(gate, key, error, began, now)
        if key == UNREACHABLE:
            # Perhaps it is only this action that fails: another one's success must not let it go on at once.
            action: Key = ("action", ACTIONS.get(wanted.kind, wanted.kind))
            self._pause(self._gates.setdefault(action, Gate(since=now)), action, error, began, now)

    def note_fresh(self, wanted: EffectIntended, error: VpccniError, now: float) -> None:
        """EC2 does not know yet what it has just made: it is asked again soon, and nothing else waits for it."""
        gate = self._gates.setdefault(_eni_key(wanted.kind, wanted.eni), Gate(since=now))
        gate.failures += 1
        gate.reason, gate.detail, gate.noted_at = str(error.reason), error.detail, now
        bound = min(FRESH_MAX_S, FRESH_FIRST_S * 2 ** min(gate.failures - 1, 10))
        gate.until = now + bound * (0.5 + 0.5 * self._rng.random())

    def _pause(self, gate: Gate, key: Key, error: VpccniError, began: float, now: float) -> None:
        gate.reason, gate.detail = str(error.reason), _detail(key, error)
        retry_after_s = error.retry_after_s if isinstance(error, TransientError) else 0.0
        if gate.failures and began < gate.noted_at:
            gate.until = max(gate.until, now + retry_after_s)  # of the same burst
            return
        gate.failures += 1
        gate.noted_at = now
        doubled = 2 ** min(gate.failures - 1, 10)
        if isinstance(error, PermanentError):
            bound = min(PERMANENT_MAX_S, PERMANENT_FIRST_S * doubled)
            pause = bound * (0.5 + 0.5 * self._rng.random())
            gate.is_refusing = True
        else:
            pause = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * doubled) * self._rng.random()
            gate.is_refusing = False
        gate.until = now + max(pause, retry_after_s)

    # -- shortages --------------------------------------------------------------------------------

    def shorten(self, wanted: EffectIntended, now: float, *, free: int, needed: int) -> None:
        """EC2 had fewer addresses than this call asked for, and gave none: the next one asks for less.

        Args:
            wanted: The call; ``subnet`` says where, also of an assign.
            now: On the loop's clock.
            free: What DescribeSubnets says; -1 when it was not told.
            needed: How many ADDs wait: the count does not fall below it before EC2 has refused it.
        """
        asked = wanted.count
        left = max(asked // 2, needed) if needed < asked else asked // 2
        own = _cost(wanted) - asked
        if free >= 0 and free - own < asked:
            left = max(free - own, 0)
            self.note_free(wanted.subnet, free, now, wanted.unit)
        else:
            free = -1  # EC2's count lags behind its refusal.
        before = self._shorts.get(_short_key(wanted))
        if before is not None and now < before.ends:
            left = min(left, before.left)
        self._set_short(_short_key(wanted), left, free, now)

    def note_free(self, subnet: SubnetId, free: int, now: float, unit: str = "address") -> None:
        """So many addresses are left, as far as is known; a new ENI needs one of them for itself."""
        for kind, own in (("assign", 0), ("create", 1)):
            self._set_short((kind, unit, subnet), max(free - own, 0), max(free, 0), now)

    def _set_short(self, key: tuple[str, str, SubnetId], left: int, free: int, now: float) -> None:
        before = self._shorts.get(key)
        trial = before.trial if before is not None else 0
        pause = SUBNET_PAUSE_S * (0.5 + 0.5 * self._rng.random())
        if left > 0:
            until, ends = now + SMALLER_S * self._rng.random(), now + pause
        else:
            until = ends = now + pause
        if left <= 0 and before is not None and before.left <= 0 and now < before.until:
            until = ends = before.until  # What was known already makes a pause no longer.
        self._shorts[key] = _Short(left, free, until, ends, noted_at=now, trial=trial)

    # -- what may be done -------------------------------------------------------------------------

    def holding(self, wanted: EffectIntended, now: float, intent: int = -1) -> Gate | None:
        """What a call must wait for. ``intent`` is its own, so that a trial does not wait for itself."""
        for key in _keys(wanted.kind, wanted.eni):
            gate = self._gates.get(key)
            if gate is not None and gate.holds(now, intent):
                return gate
        short = self._shorts.get(_short_key(wanted))
        if short is not None and (now < short.until or short.trial not in (0, intent)):
            text = _short_text(wanted.subnet, short)
            return Gate(str(Reason.SUBNET_EXHAUSTED), text, until=short.until, trial=short.trial)
        return None

    def until(self, wanted: EffectIntended, now: float) -> float:
        """When a call may be made at the earliest, on the loop's clock."""
        gates = [self._gates[key] for key in _keys(wanted.kind, wanted.eni) if key in self._gates]
        return max([now, *(gate.until for gate in gates)])

    def admit(self, steps: Iterable[EffectIntended], now: float) -> list[EffectIntended]:
        """The steps that may begin now: none that is held, and one where a trial is due."""
        admitted: list[EffectIntended] = []
        trials: set[Key] = set()
        for step in steps:
            if self.holding(step, now) is not None:
                continue
            due = {key for key in _keys(step.kind, step.eni) if key in self._gates}
            if due & trials:
                continue
            trials |= due
            admitted.append(step)
        return admitted

    def for_plan(
        self,
        now: float,
        *,
        shrink_blocked: str = "",
        no_change: str = "",
        is_urgent: bool = True,
        is_attaching: bool = False,
    ) -> Constraints:
        """What the planner must not do now.

        Args:
            now: On the loop's clock.
            shrink_blocked: See :class:`Constraints`.
            no_change: See :class:`Constraints`.
            is_urgent: An ADD waits.
            is_attaching: An ENI was created and is not attached yet. If the last attach failed, it is the trial.
        """
        starting = "" if is_urgent or now >= self._settled_at else "restarted"
        attach = self._growth_gates("attach")
        create, assign = [*self._growth_gates("create"), *attach], self._growth_gates("assign")
        trial = attach[0].reason if attach and is_attaching else ""
        return Constraints(
            create_blocked=starting or _first(create, now) or trial,
            assign_blocked=starting or _first(assign, now),
            release_blocked=_first(self._growth_gates("unassign"), now),
            remove_blocked=_first(self._growth_gates("detach", "delete"), now),
            shrink_blocked=shrink_blocked,
            no_change=no_change,
            create_once=bool(create),
            assign_once=bool(assign),
            shortages=tuple(
                Shortage(
                    call=call,
                    subnet=subnet,
                    left=0 if now < short.until or short.trial else _left(short, now),
                    detail=_short_text(subnet, short),
                )
                for (call, _, subnet), short in self._shorts.items()
            ),
            enis=self._held_enis(now),
        )

    def for_waiting(self, now: float, no_change: str = "") -> Constraints:
        """What makes waiting for an address useless: pauses that are over soon are left out.

        Once a pause is over somebody has to wait, or the call that would close it is never made.
        """
        create, assign = self._refusing(now, "create", "attach"), self._refusing(now, "assign")
        return Constraints(
            create_blocked=create.reason,
            assign_blocked=assign.reason,
            no_change=no_change,
            shortages=tuple(
                Shortage(call=call, subnet=subnet, left=0, detail=_short_text(subnet, short))
                for (call, _, subnet), short in self._shorts.items()
                if short.left <= 0 and now < short.until
            ),
            enis=self._held_enis(now, is_refusing=True),
            create_detail=create.detail,
            assign_detail=assign.detail,
        )

    def next_change(self, now: float) -> float | None:
        """When the first pause ends, on the loop's clock."""
        dues = [gate.until for gate in self._gates.values()]
        dues += [time for short in self._shorts.values() for time in (short.until, short.ends)]
        return min((due for due in (*dues, self._settled_at) if due > now), default=None)

    # -- beneath ----------------------------------------------------------------------------------

    def _growth_gates(self, *kinds: str) -> list[Gate]:
        found = [self._gates.get(key) for kind in kinds for key in _keys(kind, EniId(""))]
        return [gate for gate in found if gate is not None]

    def _refusing(self, now: float, *kinds: str) -> Gate:
        for gate in self._growth_gates(*kinds):
            is_lost = gate is self._gates.get(UNREACHABLE) and now - gate.since >= UNREACHABLE_REFUSES_S
            if now < gate.until and (gate.is_refusing or is_lost):
                return gate
        return Gate()

    def _held_enis(self, now: float, *, is_refusing: bool = False) -> tuple[HeldEni, ...]:
        held: dict[EniId, dict[str, str]] = {}
        for key, gate in self._gates.items():
            if key[0] != "eni" or key[1] not in ("assign", "unassign", "detach", "delete"):
                continue
            if not gate.holds(now) or (is_refusing and not gate.is_refusing):
                continue
            about = held.setdefault(EniId(key[2]), {"detail": gate.detail})
            about["growth" if key[1] == "assign" else "shrink"] = gate.reason
        return tuple(HeldEni(eni=eni, **about) for eni, about in sorted(held.items()))


def _keys(kind: str, eni: EniId) -> tuple[Key, ...]:
    """Everything that a call depends on."""
    action = ACTIONS.get(kind, kind)
    keys: tuple[Key, ...] = (UNREACHABLE, ("action", action), ("denied", action), ("refused", kind))
    return (*keys, _eni_key(kind, eni)) if eni else keys


def _eni_key(kind: str, eni: EniId) -> Key:
    return ("eni", kind, eni)


def _failed(wanted: EffectIntended, error: VpccniError) -> Key | None:
    """What an error says is not to be had; ``None`` for a shortage."""
    action = ACTIONS.get(wanted.kind, wanted.kind)
    if wanted.kind == "ask":
        return ("action", action)  # Whatever it was: what became of a call is asked for later.
    if error.reason is Reason.SUBNET_EXHAUSTED:
        return None
    if isinstance(error, PermanentError):
        if error.reason is Reason.EC2_UNAUTHORIZED:
            return ("denied", action)
        # An ENI that cannot be attached is deleted: the pause must outlive it, or it goes on for ever.
        if wanted.kind in ("create", "attach") or not wanted.eni:
            return ("refused", wanted.kind)
        return _eni_key(wanted.kind, wanted.eni)
    if error.reason in (Reason.EC2_UNREACHABLE, Reason.EC2_UNAUTHORIZED):
        return UNREACHABLE
    if error.reason is Reason.EC2_THROTTLED or not wanted.eni:
        return ("action", action)
    return _eni_key(wanted.kind, wanted.eni)


def _detail(key: Key, error: VpccniError) -> str:
    """What an operator is told: the action that is not allowed first."""
    if key[0] == "denied" and key[1] not in error.detail:
        return f"{key[1]}: {error.detail}"
    return error.detail


def _first(gates: Iterable[Gate], now: float) -> str:
    return next((gate.reason for gate in gates if gate.holds(now)), "")


def _short_key(wanted: EffectIntended) -> tuple[str, str, SubnetId]:
    return (wanted.kind, wanted.unit, wanted.subnet)


def _cost(wanted: EffectIntended) -> int:
    """Addresses of the subnet that a call takes: a new ENI has one of its own."""
    return wanted.count + (wanted.kind == "create")


def _left(short: _Short, now: float) -> int:
    """After the pause one call tries: for a single address where there was none, else for all that is wanted."""
    if now < short.ends:
        return short.left
    return NO_LIMIT if short.left else 1


def _short_text(subnet: SubnetId, short: _Short) -> str:
    if short.free >= 0:
        return f"{subnet} has {short.free} free addresses"
    most = f"more than {short.left}" if short.left else "even one"
    return f"EC2 refuses {most} in {subnet}, and DescribeSubnets did not tell how many are free"
