"""EC2's replies in our own words. Whatever is optional in EC2's model may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vpccni.adapters.ec2.errors import redact
from vpccni.model import (
    Address,
    CardLimits,
    Cidr,
    EniFacts,
    EniId,
    InstanceId,
    InstanceLimits,
    Mac,
    SubnetId,
    cidr_span,
    host_cidr,
    parse_cidr,
)

Reply = Mapping[str, Any]


def sorted_cidrs(cidrs: Iterable[Cidr]) -> tuple[Cidr, ...]:
    """Without duplicates, in the order of their addresses (10.0.0.9 before 10.0.0.10)."""
    return tuple(sorted(set(cidrs), key=cidr_span))


def eni_facts(raw: Reply, subnet_cidr: Cidr) -> EniFacts:
    """The facts of one ``NetworkInterface``.

    ``cidrs`` are its secondary addresses as /32 and its /28 prefixes. Tags of AWS's own (``aws:``) are
    left out and values are redacted: both are where account numbers hide, and facts enter the log.

    Raises:
        KeyError, ValueError: The reply lacks an id or holds an address that is none.
    """
    attachment = raw.get("Attachment") or {}
    tags = sorted((tag.get("Key", ""), tag.get("Value", "")) for tag in raw.get("TagSet") or ())
    return EniFacts(
        id=EniId(raw["NetworkInterfaceId"]),
        mac=Mac((raw.get("MacAddress") or "").lower()),
        subnet=SubnetId(raw.get("SubnetId") or ""),
        subnet_cidr=subnet_cidr,
        primary=Address(raw.get("PrivateIpAddress") or ""),
        cidrs=_cidrs(raw),
        groups=tuple(sorted(group["GroupId"] for group in raw.get("Groups") or ())),
        tags={key: redact(value) for key, value in tags if not key.startswith("aws:")},
        type=raw.get("InterfaceType") or "interface",
        status=raw.get("Status") or "",
        attachment=attachment.get("AttachmentId") or "",
        attachment_status=attachment.get("Status") or "",
        instance=InstanceId(attachment.get("InstanceId") or ""),
        device=int(attachment.get("DeviceIndex", -1)),
        card=int(attachment.get("NetworkCardIndex") or 0),
        delete_on_termination=attachment.get("DeleteOnTermination"),
    )


def _cidrs(raw: Reply) -> tuple[Cidr, ...]:
    primary = raw.get("PrivateIpAddress")
    secondary = [
        host_cidr(item["PrivateIpAddress"])
        for item in raw.get("PrivateIpAddresses") or ()
        if not item.get("Primary") and item["PrivateIpAddress"] != primary
    ]
    prefixes = [parse_cidr(item["Ipv4Prefix"]) for item in raw.get("Ipv4Prefixes") or ()]
    return sorted_cidrs([*secondary, *prefixes])


def instance_limits(raw: Reply) -> InstanceLimits:
    """The limits in one ``InstanceTypeInfo``: those of the default network card.

    Raises:
        KeyError: EC2 left out the network limits.
    """
    network = raw["NetworkInfo"]
    default_card = network.get("DefaultNetworkCardIndex", 0)
    enis_max = network["MaximumNetworkInterfaces"]
    cards: list[CardLimits] = []
    for card in network.get("NetworkCards") or ():
        index, card_max = int(card.get("NetworkCardIndex", 0)), int(card.get("MaximumNetworkInterfaces", 0))
        cards.append(CardLimits(card=index, enis_max=card_max))
        if index == default_card:
            enis_max = card_max or enis_max
    return InstanceLimits(
        enis_max=int(enis_max),
        ipv4_per_eni=int(network["Ipv4AddressesPerInterface"]),
        is_nitro=raw.get("Hypervisor") == "nitro" or bool(raw.get("BareMetal")),
        ipv6_per_eni=int(network.get("Ipv6AddressesPerInterface") or 0),
        cards=tuple(sorted(cards, key=lambda one: (one.card != default_card, one.card))),
    )
