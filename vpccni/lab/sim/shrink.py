"""Fewer faults that still break the same promise: delta debugging over the list."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_PARTICULARS: Final = re.compile(r"[\w.:/-]*\d[\w.:/-]*")


def gist_of(broken: str) -> str:
    """What a broken promise says without names and figures: the same bug has the same gist."""
    return _PARTICULARS.sub("#", broken)


def shrink(
    items: Sequence[T], still_fails: Callable[[Sequence[T]], bool], *, tries_max: int
) -> tuple[T, ...]:
    """A subsequence that still fails and, tries permitting, of which nothing can be left out.

    Args:
        items: Fails as a whole.
        still_fails: Whether a subsequence fails, too. The same answer every time.
        tries_max: How often it is asked at most.
    """
    kept = list(items)
    tries, parts = 0, 2
    while len(kept) >= 1 and tries < tries_max:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            without = kept[:start] + kept[start + size :]
            tries += 1
            if still_fails(without):
                kept, parts = without, max(parts - 1, 2)
                break
            if tries >= tries_max:
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return tuple(kept)
