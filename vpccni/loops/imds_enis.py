"""The node's ENIs with their addresses and prefixes, as the instance metadata service lists them."""

from __future__ import annotations

from vpccni.model import Address, EniFacts, EniId, Mac, host_cidr
from vpccni.ports import Imds


async def imds_enis(imds: Imds) -> tuple[EniFacts, ...]:
    """Every attached ENI: three requests each. IMDS may lag behind EC2.

    ``id`` is the MAC, for IMDS is asked for nothing that is not needed; ``cidrs`` holds IPv6 prefixes, too.

    Raises:
        TransientError: ``imds_unreachable``.
    """
    found = []
    for mac in map(Mac, await imds.attached_macs()):
        primary, *others = await imds.addresses(mac) or (Address(""),)
        cidrs = (*(host_cidr(one) for one in others), *await imds.prefixes(mac))
        found.append(EniFacts(id=EniId(mac), mac=mac, primary=primary, cidrs=cidrs))
    return tuple(found)
