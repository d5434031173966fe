"""Moments: a place in a log, as people write it, and where the log stands then."""

from __future__ import annotations

import datetime
import re
from typing import Final

import msgspec

from vpccni.events.envelope import Stored
from vpccni.model import Seq, Stamp
from vpccni.replay.reader import LogFile

FORMS: Final = (
    'a time ("2026-03-01T14:05:00Z", "14:05" or "14:05:30" of the log\'s last day, in UTC), '
    'a distance from the log\'s end ("-15m", "-1h30m"), or the number of an event ("#123")'
)

_NS: Final = 10**9
_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_BACK: Final = re.compile(r"-(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class BadMomentError(ValueError):
    """The text is no moment, or the log does not reach there; the message says what to write instead."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a log.

    Attributes:
        seq: The last event that had happened; 0 before the first.
        stamp: The clocks then: for a time between two events, carried on from the event before it.
        note: What the reader should know, a sentence; empty when there is nothing.
    """

    seq: Seq
    stamp: Stamp
    note: str = ""


def first_after(log: LogFile, seq: int) -> Stored | None:
    """The first record that follows ``seq``."""
    return next(log.records(seq), None)


def record_at(log: LogFile, seq: int) -> Stored | None:
    """The record of this number, or ``None`` when the log does not hold it."""
    return next(log.records(seq - 1, seq), None) if seq > 0 else None


def moment_of(log: LogFile, text: str | None) -> Moment:
    """The moment that ``text`` names; the end of the log for ``None``.

    Raises:
        BadMomentError: No moment, or outside of the log.
        PermanentError: The log is damaged there.
    """
    head, _ = log.head()
    last = record_at(log, head)
    if last is None:
        raise BadMomentError("the log is empty: nothing has happened yet")
    if text is None:
        return Moment(seq=last.seq, stamp=last.stamp)
    if text.startswith("#"):
        return _at_event(log, text, last)
    wall_ns = _wall_ns(text, last.stamp)
    if wall_ns >= last.stamp.wall_ns:
        note = ""
        if wall_ns > last.stamp.wall_ns:
            note = f"the log ends at {clock_text(last.stamp.wall_ns)}, before that time: this is its end"
        return Moment(seq=last.seq, stamp=last.stamp, note=note)
    first = first_after(log, 0)
    if first is None or wall_ns < first.stamp.wall_ns:
        begin = clock_text((first or last).stamp.wall_ns)
        raise BadMomentError(f"the log begins at {begin}, after that time; choose a later one")
    before = _last_before(log, first, last, wall_ns)
    passed = wall_ns - before.stamp.wall_ns
    stamp = Stamp(wall_ns, before.stamp.boottime_ns + passed, before.stamp.boot_id)
    return Moment(seq=before.seq, stamp=stamp)


def _at_event(log: LogFile, text: str, last: Stored) -> Moment:
    if not text[1:].isdecimal():
        raise BadMomentError(f"{text!r} is no event number; write {FORMS}")
    found = record_at(log, int(text[1:]))
    if found is None:
        first = first_after(log, 0)
        begin = first.seq if first is not None else last.seq
        raise BadMomentError(f"the log has no event {text}: it holds {begin} to {last.seq}")
    return Moment(seq=found.seq, stamp=found.stamp)


def _wall_ns(text: str, last: Stamp) -> int:
    back = _BACK.fullmatch(text)
    if back is not None:
        parts = zip(back.groups(), _UNITS.values(), strict=True)
        return last.wall_ns - _NS * sum(int(count or 0) * unit for count, unit in parts)
    day = datetime.datetime.fromtimestamp(last.wall_ns // _NS, tz=datetime.UTC)
    clock = _CLOCK.fullmatch(text)
    try:
        if clock is not None:
            hour, minute, second = (int(part or 0) for part in clock.groups())
            when = day.replace(hour=hour, minute=minute, second=second)
        else:
            when = datetime.datetime.fromisoformat(text)
            if when.tzinfo is None:
                when = when.replace(tzinfo=datetime.UTC)
    except ValueError:
        raise BadMomentError(f"{text!r} is no moment; write {FORMS}") from None
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (when - epoch) // datetime.timedelta(microseconds=1) * 1000


def _last_before(log: LogFile, first: Stored, last: Stored, wall_ns: int) -> Stored:
    """The last record at or before a time, by halving: a long log is not read through.

    Where the wall clock was set back, a time happened twice; one of the two is found.
    """
    low, high = first, last
    while True:
        middle = record_at(log, (low.seq + high.seq) // 2)
        if middle is None or middle.seq == low.seq:
            return low
        low, high = (middle, high) if middle.stamp.wall_ns <= wall_ns else (low, middle)


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """The node was booted between two events."""

    seq: Seq
    wall_ns: int
    boot_id: str


def boots_between(log: LogFile, first: Stored, last: Stored) -> list[Boot]:
    """Boot changes after ``first`` up to ``last``: the first record of each new boot, by halving."""
    found: list[Boot] = []
    while first.stamp.boot_id != last.stamp.boot_id:
        low, high = first, last
        while high.seq - low.seq > 1:
            middle = record_at(log, (low.seq + high.seq) // 2)
            if middle is None:
                break
            low, high = (middle, high) if middle.stamp.boot_id == first.stamp.boot_id else (low, middle)
        found.append(Boot(seq=high.seq, wall_ns=high.stamp.wall_ns, boot_id=high.stamp.boot_id))
        first = high
    return found


def clock_text(wall_ns: int, *, fraction: bool = False) -> str:
    """A time in UTC: ``2026-03-01 14:05:00``, with milliseconds when asked for."""
    seconds, rest = divmod(wall_ns, _NS)
    try:
        when = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}"
    text = when.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{rest // 1_000_000:03d}" if fraction else text


def iso_text(wall_ns: int) -> str:
    """A time as RFC 3339 with microseconds, for ``--json``."""
    seconds, rest = divmod(wall_ns, _NS)
    return f"{clock_text(seconds * _NS).replace(' ', 'T')}.{rest // 1000:06d}Z"


def span_text(ns: int) -> str:
    """A duration, in its two largest units: ``2d 3h``, ``5m 1s``, ``0.250s``."""
    if ns < 0:
        return f"-{span_text(-ns)}"
    if ns < 10 * _NS:
        return f"{ns / _NS:.3f}s"
    seconds, parts = ns // _NS, []
    for unit, size in _UNITS.items():
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2])
