"""What was true at a moment: a fold from the nearest snapshot, and the words for one address in it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from vpccni.errors import InvariantBrokenError, PermanentError, Reason
from vpccni.events.codec import Record, UnknownEvent, is_chained, kind_of
from vpccni.model import Address, Cidr, EniId, Seq, Stamp, cidr_size, is_inside
from vpccni.projections.enis import Eni
from vpccni.projections.leases import Rest
from vpccni.projections.snapshot import restore
from vpccni.projections.state import State
from vpccni.replay.reader import LogFile
from vpccni.replay.when import first_after, iso_text, record_at

COOLDOWN_S: Final = 30.0
"""The default of ``IP_COOLDOWN_PERIOD``, for a log in which no settings stand yet."""


UNCHAINED: Final = "its hash does not follow from the event before it"


class Past(msgspec.Struct, kw_only=True):
    """The state at a moment.

    Attributes:
        seq: The last event that is in it.
        from_snapshot: The snapshot that the fold began at; 0 for the beginning of the log.
        unknown: Kinds that this version does not know and therefore left out, with their numbers.
        problem: Why the fold ends before the moment that was asked for; empty when it does not.
    """

    state: State
    seq: Seq
    from_snapshot: Seq
    unknown: dict[str, int]
    problem: str = ""


def past_at(log: LogFile, seq: int) -> Past:
    """Fold up to and including event ``seq``.

    Raises:
        PermanentError: ``log_damaged``: there is nothing to begin at.
    """
    state, begin = _begin(log, seq)
    past = Past(state=state, seq=begin, from_snapshot=begin, unknown={})
    before = record_at(log, begin)
    previous = before.hash if before is not None else None
    try:
        for stored in log.records(begin, seq):
            if previous is not None and not is_chained(stored, previous):
                past.problem = f"{log.path}: event {stored.seq}: {UNCHAINED}"
                break
            record = log.decoded(stored)
            note_unknown(past.unknown, record)
            state.evolve(record)
            past.seq, previous = stored.seq, stored.hash
    except PermanentError as error:
        past.problem = error.detail
    except InvariantBrokenError as error:
        past.problem = f"{log.path}: event {past.seq + 1} contradicts those before it: {error.detail}"
    return past


def note_unknown(unknown: dict[str, int], record: Record) -> None:
    """Count a record of a kind that this version does not know."""
    if isinstance(record.event, UnknownEvent):
        kind = kind_of(record.event)
        unknown[kind] = unknown.get(kind, 0) + 1


def _begin(log: LogFile, seq: int) -> tuple[State, Seq]:
    """The state to begin at: of the newest good snapshot that is not younger, or empty."""
    for snapshot in sorted(log.snapshots(), key=lambda one: -one.seq):
        if snapshot.seq > seq:
            continue
        try:
            state = restore(log.snapshot_records(snapshot))
        except (PermanentError, InvariantBrokenError):
            continue  # A damaged snapshot is `verify`'s to tell; an older one, or all events, will do.
        state.head = snapshot.seq
        return state, snapshot.seq
    first = first_after(log, 0)
    if first is not None and first.seq > 1:
        why = f"{log.path}: the events up to {first.seq - 1} were moved away, and no snapshot covers them"
        raise PermanentError(Reason.LOG_DAMAGED, why)
    return State(), Seq(0)


def cooldown_of(state: State) -> float:
    """The cooldown in force, in seconds: as the settings in the log say."""
    try:
        return float(state.policy.get("IP_COOLDOWN_PERIOD", COOLDOWN_S))
    except ValueError:
        return COOLDOWN_S


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of an ENI at a moment; their sum is ``owned``."""

    owned: int
    leased: int
    resting: int
    blocked: int
    free: int


def counts_of(state: State, held: Eni, now: Stamp) -> Counts:
    """Count an ENI's addresses, each once."""
    owned = sum(cidr_size(cidr) for cidr in held.cidrs)
    cooldown_s = cooldown_of(state)
    blocked_cidrs = state.cidrs_under_release() | {cidr for cidr, one in held.cidrs.items() if one.suspected}
    leased = sum(_is_in(address, held.cidrs) for address in state.by_address)
    resting = blocked = 0
    for address, rest in state.rests.items():
        if not _is_in(address, held.cidrs) or _is_in(address, blocked_cidrs):
            continue
        if state.rest_left_s(rest, now, cooldown_s) > 0:
            resting += 1
        elif rest.is_standing:
            blocked += 1
    for cidr in held.cidrs:
        if cidr in blocked_cidrs:
            blocked += cidr_size(cidr) - sum(is_inside(address, cidr) for address in state.by_address)
    return Counts(
        owned=owned,
        leased=leased,
        resting=resting,
        blocked=blocked,
        free=owned - leased - resting - blocked,
    )


def _is_in(address: Address, cidrs: Any) -> bool:
    return (Cidr(f"{address}/32") in cidrs) or any(
        is_inside(address, cidr) for cidr in cidrs if not cidr.endswith("/32")
    )


class Unheld(msgspec.Struct, frozen=True, kw_only=True):
    """An address that nobody held.

    Attributes:
        status: ``resting``, ``standing`` (its last pod's interface was not yet seen gone), ``free``,
            ``suspected`` (EC2 did not list it), ``under_release``, ``not_owned``, or ``unknown`` (the log
            cannot be folded to that moment).
        rest: The lease that ended last on it, when the log still knew.
        left_s: Seconds of rest that were left.
    """

    status: str
    eni: EniId = EniId("")
    cidr: Cidr = Cidr("")
    rest: Rest | None = None
    left_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        rest = self.rest
        return {
            "status": self.status,
            "eni": self.eni or None,
            "cidr": self.cidr or None,
            "since": iso_text(rest.ended.wall_ns) if rest else None,
            "last_lease": rest.lease if rest else None,
            "rest_left_s": round(self.left_s, 3),
        }


def unheld_at(past: Past, address: Address, now: Stamp) -> Unheld:
    """Why nobody held an address at a moment."""
    state = past.state
    if past.problem:
        return Unheld(status="unknown")
    rest = state.rests.get(address)
    place = next(
        (
            (held.facts.id, cidr, owned.suspected)
            for held in state.enis.values()
            for cidr, owned in held.cidrs.items()
            if is_inside(address, cidr)
        ),
        None,
    )
    left_s = state.rest_left_s(rest, now, cooldown_of(state)) if rest is not None else 0.0
    if place is None:
        return Unheld(status="not_owned", rest=rest)
    eni, cidr, suspected = place
    status = "free"
    if rest is not None and left_s > 0:
        status = "resting"
    elif rest is not None and rest.is_standing:
        status = "standing"
    elif cidr in state.cidrs_under_release():
        status = "under_release"
    elif suspected:
        status = "suspected"
    return Unheld(status=status, eni=eni, cidr=cidr, rest=rest, left_s=left_s)
