"""The limits of every public instance type, from the table that ``scripts/instance_types.py`` prints.

For planning without AWS, and for the emulated EC2. The agent asks EC2 for the limits of its own type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from vpccni.model import CardLimits, InstanceLimits

_TABLE: Final = Path(__file__).with_name("instance_types.txt")


class InstanceType(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one instance type.

    Attributes:
        enis_by_card: Interfaces that each network card takes; card 0, the default card, first.
        ipv4_per_eni: Addresses and /28 prefixes on one ENI, its primary address included.
        ipv6_per_eni: IPv6 addresses on one ENI; 0 when the type has none.
        hypervisor: ``nitro``, ``xen``, or empty for bare metal.
    """

    name: str
    enis_by_card: tuple[int, ...]
    ipv4_per_eni: int
    ipv6_per_eni: int
    hypervisor: str
    vcpus: int
    memory_mib: int
    architectures: tuple[str, ...]

    @property
    def enis(self) -> int:
        """Interfaces over all network cards together."""
        return sum(self.enis_by_card)

    @property
    def cards(self) -> int:
        """Network cards."""
        return len(self.enis_by_card)

    @property
    def is_bare_metal(self) -> bool:
        """Whether the type has no hypervisor."""
        return not self.hypervisor

    @property
    def limits(self) -> InstanceLimits:
        """The same as the agent reads it from EC2."""
        return InstanceLimits(
            enis_max=self.enis_by_card[0],
            ipv4_per_eni=self.ipv4_per_eni,
            is_nitro=self.hypervisor == "nitro" or self.is_bare_metal,
            ipv6_per_eni=self.ipv6_per_eni,
            cards=tuple(CardLimits(card=card, enis_max=enis) for card, enis in enumerate(self.enis_by_card)),
        )


@cache
def instance_types() -> Mapping[str, InstanceType]:
    """Every public type by its name, in the order of the names. Reads the packaged table once."""
    lines = _TABLE.read_text(encoding="ascii").splitlines()
    read = (_read(line) for line in lines if not line.startswith("#"))
    return MappingProxyType({kind.name: kind for kind in read})


def nearest(name: str) -> tuple[str, ...]:
    """Known types whose name is like this one, the likest first; at most three."""
    import difflib

    wanted = name.strip().lower()
    return tuple(difflib.get_close_matches(wanted, instance_types(), n=3, cutoff=0.7))


def _read(line: str) -> InstanceType:
    name, cards, ipv4, ipv6, hypervisor, vcpus, memory_mib, architectures = line.split()
    return InstanceType(
        name=name,
        enis_by_card=tuple(_by_card(cards)),
        ipv4_per_eni=int(ipv4),
        ipv6_per_eni=int(ipv6),
        hypervisor="" if hypervisor == "metal" else hypervisor,
        vcpus=int(vcpus),
        memory_mib=int(memory_mib),
        architectures=tuple(architectures.split(",")),
    )


def _by_card(text: str) -> Iterator[int]:
    for run in text.split(","):
        enis, _, count = run.partition("*")
        yield from [int(enis)] * int(count or 1)
