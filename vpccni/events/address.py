"""Ownership of addresses. The unit is a CIDR on an ENI: /32, /28 or /80; nothing is expanded."""

from __future__ import annotations

import msgspec

from vpccni.model import Cidr, EniId


class CidrsOwned(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 routes these CIDRs to this ENI. One event per reply of EC2.

    Attributes:
        source: ``reply`` to our own call, ``observed`` (our call's outcome, read later), or ``describe``.
    """

    eni: EniId
    cidrs: tuple[Cidr, ...]
    source: str


class CidrsReleased(msgspec.Struct, frozen=True, kw_only=True):
    """The node no longer owns these CIDRs; none has an open lease."""

    eni: EniId
    cidrs: tuple[Cidr, ...]
    source: str


class CidrSuspected(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 does not list an owned CIDR, or has not been asked since somebody else may have given it back.

    Leases on it stay; nothing new is assigned out of it.

    Attributes:
        source: ``ec2``, or ``survey``.
        readings: How many readings did not list it; 1 as well for a survey, so that the next one decides.
    """

    eni: EniId
    cidr: Cidr
    source: str
    readings: int


class CidrCleared(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 lists the CIDR again: the suspicion ends."""

    eni: EniId
    cidr: Cidr
    source: str
