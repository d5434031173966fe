"""Everything that exists in the region, found by id, and the few doors through which it changes.

Invariant: an ENI's change goes through ``changed``, so that its cached rendering, the history that IMDS
reads, and the fabric stay true to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vpccni.lab.ec2 import errors
from vpccni.lab.ec2.agenda import Agenda
from vpccni.lab.ec2.entities import (
    Attachment,
    Eni,
    Instance,
    SecurityGroup,
    Subnet,
    Taggable,
    Vpc,
    render_eni,
)
from vpccni.lab.ec2.identity import IdSource
from vpccni.lab.ec2.imds_history import ImdsHistory
from vpccni.lab.ec2.link_events import AddressesChanged, LinkEvent, LinkPlugged, LinkUnplugged

LinkSubscriber = Callable[[LinkEvent], None]


@dataclass(slots=True, kw_only=True)
class Timing:
    """How long things take after the call that asked for them was applied: seconds, each at least 0.

    Attributes:
        attach_settle_s: From ``attaching`` to ``attached``.
        detach_settle_s: From ``detaching`` to ``available``; deleting before that fails.
        link_delay_s: Until the instance sees a NIC come or go.
    """

    attach_settle_s: float = 0.0
    detach_settle_s: float = 0.0
    link_delay_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Request:
    """One call, as an action's function sees it. ``give`` caps how much EC2 gives (a ``partial`` fault)."""

    action: str
    params: Mapping[str, Any]
    now: float
    give: int | None = None

    def required(self, name: str) -> Any:
        """Return a parameter.

        Raises:
            Ec2Fault: It was not given.
        """
        value = self.params.get(name)
        if value is None or value == "":
            raise errors.missing(name)
        return value

    def capped(self, count: int) -> int:
        """Return how many of ``count`` are to be given."""
        return count if self.give is None else min(count, self.give)


class World:
    """The things of one region and one account."""

    def __init__(self, seed: int | str, name: str, account_id: str) -> None:
        self.name = name
        self.account_id = account_id
        self.ids = IdSource(seed)
        self.timing = Timing()
        self.describe_lag_s = 0.0
        self.agenda = Agenda()
        self.history = ImdsHistory()
        self.vpcs: dict[str, Vpc] = {}
        self.subnets: dict[str, Subnet] = {}
        self.groups: dict[str, SecurityGroup] = {}
        self.instances: dict[str, Instance] = {}
        self.enis: dict[str, Eni] = {}
        self.eni_of_attachment: dict[str, Eni] = {}
        self.eni_of_token: dict[str, tuple[bytes, dict[str, Any], str]] = {}
        self.subscribers: list[LinkSubscriber] = []
        self._numbers = 0

    def next_number(self) -> int:
        """Return the next place in the order of creation."""
        self._numbers += 1
        return self._numbers

    def eni(self, eni_id: str) -> Eni:
        """Return an ENI, or raise the fault that EC2 answers."""
        found = self.enis.get(eni_id)
        if found is None:
            if not eni_id.startswith("eni-"):
                raise errors.Ec2Fault(
                    "InvalidNetworkInterfaceId.Malformed", f'Invalid id: "{eni_id}" (expecting "eni-...")'
                )
            raise errors.eni_not_found(eni_id)
        return found

    def instance(self, instance_id: str) -> Instance:
        """Return an instance, or raise the fault that EC2 answers."""
        found = self.instances.get(instance_id)
        if found is None:
            if not instance_id.startswith("i-"):
                raise errors.Ec2Fault(
                    "InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}" (expecting "i-...")'
                )
            raise errors.instance_not_found(instance_id)
        return found

    def subnet(self, subnet_id: str) -> Subnet:
        """Return a subnet, or raise the fault that EC2 answers."""
        found = self.subnets.get(subnet_id)
        if found is None:
            raise errors.subnet_not_found(subnet_id)
        return found

    def vpc(self, vpc_id: str) -> Vpc:
        """Return a VPC, or raise the fault that EC2 answers."""
        found = self.vpcs.get(vpc_id)
        if found is None:
            raise errors.vpc_not_found(vpc_id)
        return found

    def security_groups(self, group_ids: list[str], vpc: Vpc, *, code: str) -> list[SecurityGroup]:
        """Return security groups of a VPC, its default one when none are named."""
        if not group_ids:
            return [group for group in self.groups.values() if group.vpc is vpc and group.name == "default"]
        found = []
        for group_id in group_ids:
            group = self.groups.get(group_id)
            if group is None or group.vpc is not vpc:
                raise errors.group_not_found(group_id, code=code)
            found.append(group)
        return found

    def taggable(self, resource_id: str) -> Taggable:
        """Return whatever has this id, or raise the fault that EC2 answers."""
        kind = resource_id.partition("-")[0]
        match kind:
            case "eni":
                return self.eni(resource_id)
            case "i":
                return self.instance(resource_id)
            case "subnet":
                return self.subnet(resource_id)
            case "vpc":
                return self.vpc(resource_id)
            case "sg":
                found = self.groups.get(resource_id)
                if found is None:
                    raise errors.group_not_found(resource_id)
                return found
            case _:
                raise errors.Ec2Fault("InvalidID", f"The ID '{resource_id}' is not valid")

    # Doors ----------------------------------------------------------------------------------------------

    def changed(self, eni: Eni, now: float, *, addresses: bool = False) -> None:
        """Note that an ENI changed; tell the fabric when it is what the ENI owns that changed."""
        self._look_again(eni, now)
        instance = eni.instance
        if instance is not None:
            self.history.record(instance, now)
        if addresses:
            self.emit(
                AddressesChanged(
                    at=now,
                    eni_id=eni.id,
                    instance_id=None if instance is None else instance.id,
                    addresses=eni.addresses,
                    prefixes=tuple(eni.prefixes),
                    source_dest_check=eni.source_dest_check,
                )
            )

    def emit(self, event: LinkEvent) -> None:
        """Tell every subscriber."""
        for subscriber in self.subscribers:
            subscriber(event)

    def hang(self, eni: Eni, instance: Instance, card: int, device_index: int, now: float) -> Attachment:
        """Attach an ENI; everything was checked. The link appears ``link_delay_s`` later."""
        attachment = Attachment(
            id=self.ids.resource_id("eni-attach"),
            instance=instance,
            device_index=device_index,
            card=card,
            status="attaching" if self.timing.attach_settle_s > 0 else "attached",
            attached_at=now,
        )
        eni.attachment = attachment
        instance.enis[eni.id] = eni
        self.eni_of_attachment[attachment.id] = eni
        self.changed(eni, now)
        if attachment.status == "attaching":
            self.agenda.at(now + self.timing.attach_settle_s, lambda at: self._attached(eni, attachment, at))
        self.agenda.at(now + self.timing.link_delay_s, lambda at: self._plug(eni, attachment, at))
        return attachment

    def unhang(self, eni: Eni, attachment: Attachment, now: float) -> None:
        """Detach an ENI; everything was checked. It is available ``detach_settle_s`` later."""
        attachment.status = "detaching"
        self.changed(eni, now)
        self.agenda.at(now + self.timing.link_delay_s, lambda at: self._unplug(eni, attachment, at))
        self.agenda.at(now + self.timing.detach_settle_s, lambda at: self.cut(eni, attachment, at))

    def destroy(self, eni: Eni) -> None:
        """Delete an available ENI and give its addresses back."""
        eni.subnet.addresses.give_back(eni.addresses)
        eni.subnet.addresses.give_back_prefixes(tuple(eni.prefixes))
        del self.enis[eni.id]

    def _look_again(self, eni: Eni, now: float) -> None:
        eni.rendered = None
        eni.past.append((now, render_eni(eni, self.account_id)))

    def _attached(self, eni: Eni, attachment: Attachment, at: float) -> None:
        if eni.attachment is attachment and attachment.status == "attaching":
            attachment.status = "attached"
            self.changed(eni, at)

    def cut(self, eni: Eni, attachment: Attachment, at: float) -> None:
        """End an attachment at once: the link is gone and the ENI available."""
        if eni.attachment is not attachment:
            return
        self._unplug(eni, attachment, at)
        eni.attachment = None
        self._look_again(eni, at)
        attachment.instance.enis.pop(eni.id, None)
        del self.eni_of_attachment[attachment.id]

    def _plug(self, eni: Eni, attachment: Attachment, at: float) -> None:
        if eni.attachment is not attachment or attachment.status == "detaching":
            return
        attachment.is_plugged = True
        self.emit(plugged(eni, attachment, at))

    def _unplug(self, eni: Eni, attachment: Attachment, at: float) -> None:
        if attachment.is_plugged:
            attachment.is_plugged = False
            self.emit(LinkUnplugged(at=at, instance_id=attachment.instance.id, eni_id=eni.id, mac=eni.mac))


def plugged(eni: Eni, attachment: Attachment, at: float) -> LinkPlugged:
    """Return the event that says that this ENI's NIC is there."""
    return LinkPlugged(
        at=at,
        instance_id=attachment.instance.id,
        eni_id=eni.id,
        mac=eni.mac,
        device_index=attachment.device_index,
        card=attachment.card,
        subnet_id=eni.subnet.id,
        subnet_cidr=str(eni.subnet.cidr),
        primary=eni.primary,
        secondaries=tuple(eni.secondaries),
        prefixes=tuple(eni.prefixes),
        public_ip=eni.public_ip,
        source_dest_check=eni.source_dest_check,
    )
