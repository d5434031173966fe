"""How long an address has rested, across boots and jumping clocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from vpccni.model import Stamp

_PLAUSIBLE_NS: Final = 24 * 3600 * 10**9
"""A wall-clock difference over a reboot of more than a day is not believed: it may be a clock that was set.
The full rest is then counted from the new start, which costs no more than one cooldown."""


_LAG_KEPT_NS: Final = 120 * 10**9
"""What we gave back is remembered for as long as a Describe may lag, twice over."""


def is_recent(then: Stamp, now: Stamp) -> bool:
    """Whether a Describe that is asked now may still show what was before."""
    return then.boot_id == now.boot_id and now.boottime_ns - then.boottime_ns < _LAG_KEPT_NS


class BootMark(msgspec.Struct, frozen=True):
    """The end of a boot: its last event, and the first event of the boot after it."""

    last: Stamp
    next_start: Stamp


def elapsed_ns(since: Stamp, now: Stamp, boots: Mapping[str, BootMark]) -> int:
    """Nanoseconds that have surely passed between two stamps; never more than really passed.

    Within one boot: the difference of ``CLOCK_BOOTTIME``. After a boot change: what passed in the old
    boot until its last event, plus the wall-clock difference from there, if that is positive and
    plausible, and at least what passed in the present boot; otherwise what passed in the present boot.
    """
    if since.boot_id == now.boot_id:
        return max(0, now.boottime_ns - since.boottime_ns)
    in_this_boot = _in_present_boot(now, boots)
    mark = boots.get(since.boot_id)
    if mark is None:
        return in_this_boot  # So many boots ago that its mark is forgotten.
    in_old_boot = max(0, mark.last.boottime_ns - since.boottime_ns)
    by_wall = now.wall_ns - mark.last.wall_ns
    if not 0 < by_wall <= _PLAUSIBLE_NS:
        return in_this_boot
    return in_old_boot + max(by_wall, in_this_boot)


def _in_present_boot(now: Stamp, boots: Mapping[str, BootMark]) -> int:
    """Since the first event of the boot that ``now`` counts from; 0 when the log does not know that boot."""
    starts = [mark.next_start for mark in boots.values() if mark.next_start.boot_id == now.boot_id]
    return max(0, now.boottime_ns - starts[-1].boottime_ns) if starts else 0
