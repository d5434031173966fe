"""The life of an ENI, as this node sees it."""

from __future__ import annotations

import msgspec

from vpccni.model import EniFacts, EniId


class EniAdopted(msgspec.Struct, frozen=True, kw_only=True):
    """The node now keeps this ENI in its books.

    Attributes:
        facts: What EC2 said. Its ``cidrs`` are empty, ownership is ``CidrsOwned``; but for what was left behind,
            which is not in the pool: a lease that is found on one of them later keeps it from being deleted.
        managed: Whether addresses of it may be assigned and changed by us.
        origin: ``created`` by us, ``found`` attached, or ``left_behind`` (unattached, to be deleted).
        table: Its Linux routing table (254 for the primary ENI).
        eni_config: Name of the ENIConfig that chose its subnet and groups; empty for none.
    """

    facts: EniFacts
    managed: bool
    origin: str
    table: int = 0
    eni_config: str = ""


class EniAttached(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 attached the ENI to this instance."""

    eni: EniId
    attachment: str
    device: int
    card: int
    table: int


class EniLinkReady(msgspec.Struct, frozen=True, kw_only=True):
    """The link with the ENI's MAC is in the kernel, addressed and routed: its addresses can serve."""

    eni: EniId
    ifname: str
    ifindex: int


class EniLinkLost(msgspec.Struct, frozen=True, kw_only=True):
    """The link with the ENI's MAC is not in the kernel (any more): no new pod is put on it."""

    eni: EniId
    detail: str = ""


class EniSuspected(msgspec.Struct, frozen=True, kw_only=True):
    """A source no longer lists the ENI. Nothing is freed; no new pod is put on it.

    Attributes:
        source: Who says so (``ec2``, ``imds``).
        readings: How many readings in a row say so.
    """

    eni: EniId
    source: str
    readings: int


class EniCleared(msgspec.Struct, frozen=True, kw_only=True):
    """The suspicion was wrong: a better source lists the ENI again."""

    eni: EniId
    source: str


class EniDetached(msgspec.Struct, frozen=True, kw_only=True):
    """EC2 detached the ENI; it still exists and is ours to delete."""

    eni: EniId


class EniGone(msgspec.Struct, frozen=True, kw_only=True):
    """The ENI no longer exists, or is no longer ours; it has no open lease.

    Attributes:
        source: ``reply`` to our delete, or ``ec2`` when two readings agree.
    """

    eni: EniId
    source: str
