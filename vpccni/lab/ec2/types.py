"""The instance types that the emulated region offers: every public one, with EC2's own limits."""

from collections.abc import Mapping
from typing import Any, Final

from vpccni.instance_types import InstanceType, instance_types

INSTANCE_TYPES: Final[Mapping[str, InstanceType]] = instance_types()

# An ENI that is not attached has no instance type yet; EC2 then allows what its largest types allow.
IPV4_PER_ENI_UNATTACHED: Final = max(kind.ipv4_per_eni for kind in INSTANCE_TYPES.values())


def render_instance_type(row: InstanceType) -> dict[str, Any]:
    """Return the type in the output shape of ``DescribeInstanceTypes``."""
    reply: dict[str, Any] = {
        "InstanceType": row.name,
        "BareMetal": row.is_bare_metal,
        "ProcessorInfo": {"SupportedArchitectures": list(row.architectures)},
        "VCpuInfo": {"DefaultVCpus": row.vcpus},
        "MemoryInfo": {"SizeInMiB": row.memory_mib},
        "NetworkInfo": {
            "MaximumNetworkInterfaces": row.enis,
            "MaximumNetworkCards": row.cards,
            "DefaultNetworkCardIndex": 0,
            "NetworkCards": [
                {"NetworkCardIndex": card, "MaximumNetworkInterfaces": enis}
                for card, enis in enumerate(row.enis_by_card)
            ],
            "Ipv4AddressesPerInterface": row.ipv4_per_eni,
            "Ipv6AddressesPerInterface": row.ipv6_per_eni,
            "Ipv6Supported": row.ipv6_per_eni > 0,
        },
        "SupportedInRegion": True,
    }
    if row.hypervisor:
        reply["Hypervisor"] = row.hypervisor
    return reply
