"""How each instance's network looked, and when: what lets IMDS show the world as it was.

A snapshot is a tuple of frozen views, one per ENI.
"""

from collections import deque
from typing import Final

import msgspec

from vpccni.lab.ec2.entities import Eni, Instance

KEPT_S: Final = 300.0  # a lag longer than this shows the oldest snapshot that is left
_KEPT_SNAPSHOTS: Final = 4096


class EniView(msgspec.Struct, frozen=True, kw_only=True):
    """One ENI as IMDS tells of it."""

    eni_id: str
    mac: str
    device_index: int
    card: int
    subnet_id: str
    subnet_cidr: str
    vpc_id: str
    vpc_cidrs: tuple[str, ...]
    addresses: tuple[str, ...]
    prefixes: tuple[str, ...]
    group_ids: tuple[str, ...]
    group_names: tuple[str, ...]
    public_ip: str | None


Snapshot = tuple[EniView, ...]


def _view(eni: Eni) -> EniView | None:
    attachment = eni.attachment
    if attachment is None or attachment.status == "detaching":
        return None
    subnet = eni.subnet
    return EniView(
        eni_id=eni.id,
        mac=eni.mac,
        device_index=attachment.device_index,
        card=attachment.card,
        subnet_id=subnet.id,
        subnet_cidr=str(subnet.cidr),
        vpc_id=subnet.vpc.id,
        vpc_cidrs=tuple(subnet.vpc.cidrs),
        addresses=eni.addresses,
        prefixes=tuple(eni.prefixes),
        group_ids=tuple(group.id for group in eni.groups),
        group_names=tuple(group.name for group in eni.groups),
        public_ip=eni.public_ip,
    )


class ImdsHistory:
    """The snapshots of every instance, oldest first."""

    def __init__(self) -> None:
        self._snapshots: dict[str, deque[tuple[float, Snapshot]]] = {}

    def record(self, instance: Instance, now: float) -> None:
        """Note how the instance looks from ``now`` on. One snapshot per instant: the last one counts."""
        views = (_view(eni) for eni in instance.enis.values())
        snapshot = tuple(view for view in views if view is not None)
        kept = self._snapshots.setdefault(instance.id, deque(maxlen=_KEPT_SNAPSHOTS))
        if kept and kept[-1][0] >= now:
            kept[-1] = (kept[-1][0], snapshot)
        else:
            kept.append((now, snapshot))
        while len(kept) > 1 and kept[1][0] <= now - KEPT_S:
            kept.popleft()

    def as_of(self, instance_id: str, instant: float) -> Snapshot:
        """Return how the instance looked then; its first look when the instant lies before that.

        Raises:
            KeyError: There never was such an instance.
        """
        kept = self._snapshots[instance_id]
        for at, snapshot in reversed(kept):
            if at <= instant:
                return snapshot
        return kept[0][1]
