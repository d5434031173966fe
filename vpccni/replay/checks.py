"""``verify``: is the log whole, and does it mean one thing?

Three readings must agree: the chain (nothing was changed or lost), the fold from the first event (no event
contradicts those before it), and each snapshot (it stands for exactly the fold of the events up to it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from vpccni.errors import InvariantBrokenError, PermanentError, Reason
from vpccni.events.codec import UnknownEvent
from vpccni.model import Seq
from vpccni.projections.snapshot import digest, picture, restore
from vpccni.projections.state import State
from vpccni.replay.past import note_unknown
from vpccni.replay.reader import PROGRESS_EVERY, ChainReport, LogFile

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, events done, last event)."""


class FoldReport(msgspec.Struct, frozen=True, kw_only=True):
    """What folding a log and comparing it with its snapshots found.

    Attributes:
        events: How many events were folded.
        first_bad_seq: The event that contradicts, or the snapshot that differs; 0 when none.
        why: What is wrong, one sentence; empty when nothing is.
        compared: The snapshots that were compared, by their place.
        unknown: Kinds that this version does not know, with their numbers.
        judged_to: Up to here the fold can be judged: before the first unknown event that must be understood.
    """

    events: int
    first_bad_seq: Seq = Seq(0)
    why: str = ""
    compared: tuple[Seq, ...] = ()
    unknown: dict[str, int] = {}
    judged_to: Seq = Seq(0)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Both halves; ``ok`` when neither found anything wrong."""

    chain: ChainReport
    fold: FoldReport

    @property
    def ok(self) -> bool:
        """Whether the log is good."""
        return self.chain.ok and not self.fold.why


def verify(log: LogFile, progress: Progress | None = None) -> Verdict:
    """Check everything, as far as the log can be read. Damage is reported, not raised."""

    def tell(seq: int, last: int) -> None:
        if progress is not None:
            progress("chain", seq, last)

    chain = log.verify_chain(tell)
    return Verdict(chain=chain, fold=_fold(log, chain, progress))


class _Fold:
    """A fold in the making, with the snapshots that it will meet."""

    def __init__(self, log: LogFile) -> None:
        self.log = log
        self.state = State()
        self.begin = 0
        self.events = 0
        self.unknown: dict[str, int] = {}
        self.compared: list[Seq] = []
        self.judged_to = Seq(0)
        self.is_judging = True
        self.snapshots = {one.seq: one for one in log.snapshots()}

    def start(self, floor: int) -> None:
        """Begin where the kept events begin: at zero, or at the snapshot that closes the last segment.

        Raises:
            PermanentError: ``log_damaged``: nothing to begin at.
        """
        if not floor:
            return
        if floor not in self.snapshots:
            why = f"the events up to {floor} were moved away, and no snapshot stands for them"
            raise PermanentError(Reason.LOG_DAMAGED, why)
        self.state = restore(self.log.snapshot_records(self.snapshots.pop(Seq(floor))))
        self.begin = floor

    def compare(self, seq: Seq) -> str:
        """How the snapshot of this event differs from the fold; empty when it does not, or is not there."""
        snapshot = self.snapshots.pop(seq, None)
        if snapshot is None or not self.is_judging:
            return ""
        restored = restore(self.log.snapshot_records(snapshot))
        self.compared.append(seq)
        if digest(restored) == digest(self.state):
            return ""
        where = "; ".join(_differences(picture(self.state), picture(restored)))
        return f"the snapshot at event {seq} differs from the fold of the events up to it: {where}"


def _fold(log: LogFile, chain: ChainReport, progress: Progress | None) -> FoldReport:
    """Fold as far as the chain is good."""
    fold, why, bad = _Fold(log), "", 0
    at = chain.head_seq - chain.events
    try:
        fold.start(at)
        for stored in log.records(at, chain.head_seq):
            record = log.decoded(stored)
            at = stored.seq
            note_unknown(fold.unknown, record)
            if isinstance(record.event, UnknownEvent) and record.event.must_understand:
                fold.is_judging = False
            fold.state.evolve(record)
            fold.events += 1
            if fold.is_judging:
                fold.judged_to = stored.seq
            why = fold.compare(stored.seq)
            if why:
                bad = at
                break
            if progress is not None and fold.events % PROGRESS_EVERY == 0:
                progress("fold", stored.seq, chain.head_seq)
    except InvariantBrokenError as error:
        # What an unknown event did cannot be known: what contradicts it afterwards is no contradiction.
        if fold.is_judging:
            why, bad = f"event {at} contradicts those before it: {error.detail}", at
    except PermanentError as error:
        why, bad = error.detail, at + 1
    return FoldReport(
        events=fold.events,
        first_bad_seq=Seq(bad),
        why=why,
        compared=tuple(fold.compared),
        unknown=dict(sorted(fold.unknown.items())),
        judged_to=fold.judged_to,
    )


_DIFFERENCES_MAX = 3


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The first few places where two pictures differ: the fold's value first."""
    if isinstance(one, dict) and isinstance(other, dict):
        found: list[str] = []
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                found += _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
            if len(found) >= _DIFFERENCES_MAX:
                break
        return found[:_DIFFERENCES_MAX]
    return [f"{path}: {_short(one)} in the fold, {_short(other)} in the snapshot"]


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
