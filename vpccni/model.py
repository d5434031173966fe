"""Ids and value objects that every part shares.

All are plain, immutable and cheap. Addresses and CIDRs travel as text in canonical form
(``10.0.3.7``, ``10.0.3.7/32``); :func:`parse_cidr` and :func:`parse_address` are the only doors
through which foreign text becomes one.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, NewType

import msgspec

EniId = NewType("EniId", str)
SubnetId = NewType("SubnetId", str)
InstanceId = NewType("InstanceId", str)
Mac = NewType("Mac", str)
Address = NewType("Address", str)
Cidr = NewType("Cidr", str)
Seq = NewType("Seq", int)
"""Position in the event log, from 1, without gaps."""
LeaseId = NewType("LeaseId", int)
"""The sequence number of the ``AddressAssigned`` event that opened the lease."""
IntentId = NewType("IntentId", int)
"""The sequence number of the ``EffectIntended`` event."""

MAIN_TABLE: Final = 254
"""Linux ``RT_TABLE_MAIN``: the table of the primary ENI."""
POOL_CARD: Final = 0
"""The network card whose ENIs hold pod addresses: ``ENABLE_MULTI_NIC`` is not built, so there is just this one."""
_CARD_TABLES: Final = 10_000
"""Tables of ENIs on further network cards begin here, a hundred for each card."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """When something happened, on both clocks that we can trust a little.

    Attributes:
        wall_ns: ``CLOCK_REALTIME`` in nanoseconds since the epoch. May jump.
        boottime_ns: ``CLOCK_BOOTTIME`` in nanoseconds. Monotonic within ``boot_id``.
        boot_id: Which boot ``boottime_ns`` counts from.
    """

    wall_ns: int
    boottime_ns: int
    boot_id: str


class SandboxKey(msgspec.Struct, frozen=True, order=True):
    """What identifies an attachment (CNI spec 1.1, section 2): network, container id, interface name."""

    network: str
    container_id: str
    ifname: str


class PodRef(msgspec.Struct, frozen=True):
    """The pod that a sandbox belongs to, as far as ``CNI_ARGS`` told; empty text when it did not."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


class Binding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One address of a lease, and where its packets leave the node.

    Attributes:
        family: 4 or 6.
        address: The pod's address, without prefix length.
        eni: The ENI that EC2 routes the address to; empty for ``egress``, and while it is not known yet.
        card: Network card index of the ENI.
        device: Device index of the ENI on its card.
        table: The Linux routing table of the ENI (254 for the primary ENI).
        kind: ``pool`` (out of the warm pool), ``branch`` (a branch ENI's own) or ``egress`` (node-local).
        vlan, mac, gateway: Of a branch ENI: its VLAN id (1 to 4094), its MAC and its subnet's router.
        ifname: The interface inside the pod that has it, where a lease has several; empty for the key's.
    """

    family: int
    address: Address
    eni: EniId
    card: int
    device: int
    table: int
    kind: str = "pool"
    vlan: int = 0
    mac: Mac = Mac("")
    gateway: Address = Address("")
    ifname: str = ""


class CardLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What EC2 allows one network card (``NetworkInfo.NetworkCards``)."""

    card: int
    enis_max: int


class InstanceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What EC2 allows one instance type (``DescribeInstanceTypes``, ``NetworkInfo``).

    Attributes:
        enis_max: Network interfaces on the default card.
        ipv4_per_eni: Addresses per interface, the interface's own primary included.
        is_nitro: Whether /28 prefixes can be assigned.
        ipv6_per_eni: IPv6 addresses per interface; 0 when the type has none.
        cards: Each network card with its own limit, the default card first; empty when not told.
    """

    enis_max: int
    ipv4_per_eni: int
    is_nitro: bool = True
    ipv6_per_eni: int = 0
    cards: tuple[CardLimits, ...] = ()


class EniFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What EC2 or IMDS say of one ENI. Lists are sorted; ``cidrs`` leaves out the ENI's own address."""

    id: EniId
    mac: Mac
    subnet: SubnetId = SubnetId("")
    subnet_cidr: Cidr = Cidr("")
    primary: Address = Address("")
    cidrs: tuple[Cidr, ...] = ()
    groups: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    type: str = "interface"
    status: str = ""
    attachment: str = ""
    attachment_status: str = ""
    instance: InstanceId = InstanceId("")
    device: int = -1
    card: int = 0
    delete_on_termination: bool | None = None


class InstanceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What IMDS says of the machine that we run on."""

    id: InstanceId
    type: str
    az: str
    region: str
    primary_mac: Mac
    vpc_cidrs: tuple[Cidr, ...]


def route_table_of(card: int, device: int) -> int:
    """Routing table of an ENI: 254 for the primary; device + 1 on card 0; 10000 + 100 x card + device."""
    if card == 0:
        return MAIN_TABLE if device == 0 else device + 1
    return _CARD_TABLES + 100 * card + device


def device_of_table(table: int) -> tuple[int, int]:
    """Card and device index that a routing table stands for: the inverse of :func:`route_table_of`."""
    if table >= _CARD_TABLES:
        return divmod(table - _CARD_TABLES, 100)
    return (0, table - 1) if 1 < table < MAIN_TABLE else (0, 0)


def parse_address(text: str) -> Address:
    """Canonical form of an IPv4 or IPv6 address. Raises ``ValueError`` for anything else."""
    return Address(str(ipaddress.ip_address(text)))


def parse_cidr(text: str) -> Cidr:
    """Canonical form of a CIDR; a bare address becomes a /32 or /128. Raises ``ValueError``."""
    return Cidr(str(ipaddress.ip_network(text, strict=False)))


def host_cidr(address: str) -> Cidr:
    """The /32 (or /128) that holds just this address."""
    return Cidr(f"{address}/{128 if ':' in address else 32}")


@lru_cache(maxsize=65536)
def cidr_span(cidr: Cidr) -> tuple[int, int]:
    """First and last address of a CIDR, as integers."""
    network = ipaddress.ip_network(cidr)
    return int(network.network_address), int(network.broadcast_address)


@lru_cache(maxsize=65536)
def address_number(address: Address) -> int:
    """The address as an integer, for ordering and containment."""
    return int(ipaddress.ip_address(address))


def address_at(number: int, family: int = 4) -> Address:
    """The address with this integer value."""
    if family == 4:
        return Address(str(ipaddress.IPv4Address(number)))
    return Address(str(ipaddress.IPv6Address(number)))


def is_inside(address: Address, cidr: Cidr) -> bool:
    """Whether the CIDR contains the address (same family)."""
    if (":" in address) != (":" in cidr):
        return False
    first, last = cidr_span(cidr)
    return first <= address_number(address) <= last


def cidr_size(cidr: Cidr) -> int:
    """How many addresses the CIDR holds (1 for a /32, 16 for a /28, 2**48 for a /80)."""
    first, last = cidr_span(cidr)
    return last - first + 1
