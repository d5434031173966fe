"""The instance types that the emulated region offers, and their limits.

Figures: what ``DescribeInstanceTypes`` answers for these types. ``enis`` counts over all network cards.
"""

from typing import Any, Final

import msgspec


class InstanceType(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one instance type.

    Attributes:
        enis: Interfaces over all network cards together.
        ipv4_per_eni: Addresses and /28 prefixes on one ENI, its primary address included.
        hypervisor: ``nitro``, ``xen``, or empty for bare metal.
    """

    name: str
    enis: int
    ipv4_per_eni: int
    ipv6_per_eni: int
    cards: int
    hypervisor: str
    vcpus: int
    memory_mib: int
    architecture: str

    @property
    def enis_per_card(self) -> int:
        """Interfaces that one network card takes."""
        return self.enis // self.cards

    @property
    def is_bare_metal(self) -> bool:
        """Whether the type has no hypervisor."""
        return not self.hypervisor


def _row(
    name: str,
    enis: int,
    ipv4: int,
    vcpus: int,
    memory_gib: int,
    *,
    ipv6: int | None = None,
    cards: int = 1,
    hypervisor: str = "nitro",
    architecture: str = "x86_64",
) -> InstanceType:
    return InstanceType(
        name=name,
        enis=enis,
        ipv4_per_eni=ipv4,
        ipv6_per_eni=ipv4 if ipv6 is None else ipv6,
        cards=cards,
        hypervisor=hypervisor,
        vcpus=vcpus,
        memory_mib=memory_gib * 1024,
        architecture=architecture,
    )


INSTANCE_TYPES: Final[dict[str, InstanceType]] = {
    row.name: row
    for row in (
        _row("t3.small", 3, 4, 2, 2),
        _row("t3.medium", 3, 6, 2, 4),
        _row("t3.large", 3, 12, 2, 8),
        _row("m4.4xlarge", 8, 30, 16, 64, hypervisor="xen"),
        _row("m5.large", 3, 10, 2, 8),
        _row("m5.xlarge", 4, 15, 4, 16),
        _row("m5.2xlarge", 4, 15, 8, 32),
        _row("m5.4xlarge", 8, 30, 16, 64),
        _row("m5.metal", 15, 50, 96, 384, hypervisor=""),
        _row("m6g.large", 3, 10, 2, 8, architecture="arm64"),
        _row("m6i.large", 3, 10, 2, 8),
        _row("c5.xlarge", 4, 15, 4, 8),
        _row("c5.4xlarge", 8, 30, 16, 32),
        _row("r5.large", 3, 10, 2, 16),
        _row("p3dn.24xlarge", 15, 50, 96, 768),
        _row("p4d.24xlarge", 60, 50, 96, 1152, cards=4),
        _row("p5.48xlarge", 64, 50, 192, 2048, cards=32),
    )
}

# An ENI that is not attached has no instance type yet; EC2 then allows what its largest types allow.
IPV4_PER_ENI_UNATTACHED: Final = 50


def render_instance_type(row: InstanceType) -> dict[str, Any]:
    """Return the type in the output shape of ``DescribeInstanceTypes``."""
    reply: dict[str, Any] = {
        "InstanceType": row.name,
        "CurrentGeneration": True,
        "BareMetal": row.is_bare_metal,
        "ProcessorInfo": {"SupportedArchitectures": [row.architecture]},
        "VCpuInfo": {"DefaultVCpus": row.vcpus},
        "MemoryInfo": {"SizeInMiB": row.memory_mib},
        "NetworkInfo": {
            "MaximumNetworkInterfaces": row.enis,
            "MaximumNetworkCards": row.cards,
            "DefaultNetworkCardIndex": 0,
            "NetworkCards": [
                {"NetworkCardIndex": card, "MaximumNetworkInterfaces": row.enis_per_card}
                for card in range(row.cards)
            ],
            "Ipv4AddressesPerInterface": row.ipv4_per_eni,
            "Ipv6AddressesPerInterface": row.ipv6_per_eni,
            "Ipv6Supported": True,
            "EnaSupport": "required" if row.hypervisor == "nitro" else "supported",
        },
        "SupportedInRegion": True,
    }
    if row.hypervisor:
        reply["Hypervisor"] = row.hypervisor
    return reply
