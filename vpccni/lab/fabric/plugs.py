"""The records that go into the fabric and come out of it."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

import msgspec

ENI_MTU = 9001
"""EC2's jumbo frames: what an ENI and every link behind it carries."""


class EniPlug(msgspec.Struct, frozen=True, kw_only=True):
    """An ENI as EC2 attaches it.

    Attributes:
        eni_id: EC2's id.
        mac: Its MAC address, unique in the VPC; the link in the node has it.
        device_index: 0 is the node's primary interface on its card.
        card: Network card index.
        subnet_cidr: The subnet, whose base + 1 is the gateway.
        primary: Its primary private address.
        addresses: What else the VPC routes to it: addresses, /32s or /28 prefixes.
        mtu: Of both ends, in bytes.
        public_ip: A public address for ``primary``. Without it the fabric gives one to device 0 of card 0,
            and to no other, as EC2 does in a public subnet.
    """

    eni_id: str
    mac: str
    device_index: int
    subnet_cidr: str
    primary: str
    card: int = 0
    addresses: tuple[str, ...] = ()
    mtu: int = ENI_MTU
    public_ip: str | None = None

    @property
    def link_name(self) -> str:
        """``ens5`` for device 0, ``ens6`` for device 1 …, as Nitro instances name them."""
        return f"ens{self.card * 100 + 5 + self.device_index}"

    @property
    def gateway(self) -> str:
        """The VPC router's address in the subnet."""
        return str(IPv4Network(self.subnet_cidr)[1])

    @property
    def is_first(self) -> bool:
        """Whether this is the interface with which the instance starts."""
        return self.device_index == 0 and self.card == 0


class Drops(msgspec.Struct, frozen=True, kw_only=True):
    """Packets from one ENI that the VPC threw away, since the ENI was plugged.

    Attributes:
        spoofed: Their source is not an address of the ENI (EC2's source/destination check).
        unowned: Their destination is in the VPC (or link-local), and no plugged ENI owns it.
        unmapped: They were bound for the internet, and their source has no public address.
    """

    spoofed: int = 0
    unowned: int = 0
    unmapped: int = 0


class FabricError(Exception):
    """The fabric was asked for what cannot be, such as an ENI plugged twice. Nothing was changed."""


@lru_cache(maxsize=16384)  # a change names all addresses of an ENI, nearly all of them as before
def network_of(cidr: str) -> str:
    """Write an address or a CIDR in the one way that the fabric compares: ``10.0.0.5`` is ``10.0.0.5/32``.

    Raises:
        ValueError: not an IPv4 address or network, or host bits are set.
    """
    return str(IPv4Network(cidr))


def address_of(address: str) -> str:
    """Check one IPv4 address.

    Raises:
        ValueError: it is none.
    """
    return str(IPv4Address(address))
