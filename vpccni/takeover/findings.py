"""The answer to "can this node be taken over?", as data. The words are defined in the package's docstring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from vpccni.errors import Reason, Refused
from vpccni.model import Address, PodRef, SandboxKey

NAMES_MAX: Final = 10
"""So many names stand in a sentence; its ``names`` has them all."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One address in use.

    Attributes:
        key: The sandbox; ``None`` for a hold, whose sandbox no source names.
        host_ifname: The host veth; empty when the kernel shows none.
        sources: Which sources say so, the most telling first.
        is_ours: vpccni has wired it.
    """

    address: Address
    pod: PodRef
    key: SandboxKey | None
    host_ifname: str = ""
    sources: tuple[str, ...] = ()
    is_ours: bool = False

    @property
    def is_hold(self) -> bool:
        """Whether the address is kept without a lease."""
        return self.key is None


class Objection(msgspec.Struct, frozen=True, kw_only=True):
    """Something that stands in the way.

    Attributes:
        reason: The reason code.
        kind: What it is about, for programs: ``branch_enis``, ``other_cards``, ``ipv6``, ``prefixes``,
            ``network_policies``, ``settings`` or ``kernel``.
        sentence: What is the matter; it names at most ``NAMES_MAX`` pods.
        next_action: What to do.
        pods: All pods that it is about: ``namespace/name``, else what is known of them.
    """

    reason: Reason
    kind: str
    sentence: str
    next_action: str
    pods: tuple[str, ...] = ()


class Caution(msgspec.Struct, frozen=True, kw_only=True):
    """Something to know before the node is taken over.

    Attributes:
        kind: ``trunk``, ``prefixes``, ``network_policies``, ``unexplained``, ``without_eni``, ``sources`` or
            ``unreadable``.
        next_action: What to do; empty when there is nothing to do.
        names: Everything that it is about.
    """

    kind: str
    sentence: str
    next_action: str = ""
    names: tuple[str, ...] = ()


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    Attributes:
        found: By address.
        gaps: One sentence each.
        living: How the original's daemon shows that it lives; empty when it does not.
        sources: What was read, by name: ``read``, ``absent`` or ``unreadable: <why>``.
        notes: What was left out and why, as the verdict says it.
    """

    found: tuple[Found, ...] = ()
    objections: tuple[Objection, ...] = ()
    cautions: tuple[Caution, ...] = ()
    gaps: tuple[str, ...] = ()
    living: str = ""
    sources: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    def refused(self) -> Refused | None:
        """Why the node is not to be taken over, all in one; ``None`` when nothing is known to stand in the way."""
        if not self.objections:
            return None
        told = " ".join(f"{one.sentence} {one.next_action}" for one in self.objections)
        return Refused(self.objections[0].reason, told)


def pod_text(pod: PodRef) -> str:
    """``namespace/name``; empty for a pod that no source names."""
    return f"{pod.namespace}/{pod.name}" if pod.name else ""


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once."""
    return tuple(sorted(set(names)))


def some(names: Iterable[str]) -> str:
    """The first names of all, for a sentence."""
    told = distinct(names)
    more = len(told) - NAMES_MAX
    return ", ".join(told[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")
