"""The things of a region, as plain mutable records that only the region changes.

An ENI's life, in EC2's words (status / attachment status)::

    create ──► available / -  ──attach──► in-use / attaching ──settle──► in-use / attached
                    ▲                                                          │ detach
                    └───────settle────── in-use / detaching ◄──────────────────┘
    delete: only from ``available``
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network
from typing import Any

from vpccni.instance_types import InstanceType
from vpccni.lab.ec2.subnet import AddressBook

Rendered = dict[str, Any]

_KEPT_PAST = 16  # changes of one ENI within a describe lag of seconds


@dataclass(slots=True, kw_only=True)
class Vpc:
    """A VPC with one or more IPv4 blocks, the first one primary."""

    id: str
    cidrs: list[str]
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Subnet:
    """A subnet of one availability zone."""

    id: str
    vpc: Vpc
    zone: str
    zone_id: str
    cidr: IPv4Network
    addresses: AddressBook
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class SecurityGroup:
    """A security group. Its rules are not modelled."""

    id: str
    name: str
    description: str
    vpc: Vpc
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Attachment:
    """How an ENI hangs on an instance. ``is_plugged`` says whether the instance has seen the NIC."""

    id: str
    instance: "Instance"
    device_index: int
    card: int
    status: str
    attached_at: float
    delete_on_termination: bool = False
    is_plugged: bool = False


@dataclass(slots=True, kw_only=True)
class Eni:
    """A network interface.

    ``number`` is its place in the order of creation; ``rendered`` is its output shape, made anew on every
    change; ``past`` holds the last few of those with their instants, oldest first.
    """

    id: str
    number: int
    mac: str
    subnet: Subnet
    description: str
    groups: list[SecurityGroup]
    primary: str
    secondaries: dict[str, None] = field(default_factory=dict)
    prefixes: dict[str, None] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    attachment: Attachment | None = None
    public_ip: str | None = None
    source_dest_check: bool = True
    created_at: float = 0.0
    rendered: Rendered | None = None
    past: deque[tuple[float, Rendered]] = field(default_factory=lambda: deque(maxlen=_KEPT_PAST))

    @property
    def status(self) -> str:
        """``available`` or ``in-use``, as EC2 reports it."""
        return "available" if self.attachment is None else "in-use"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address, the primary one first."""
        return (self.primary, *self.secondaries)

    @property
    def slots_used(self) -> int:
        """What counts against the type's limit: the primary, the secondaries and the prefixes."""
        return 1 + len(self.secondaries) + len(self.prefixes)

    @property
    def instance(self) -> "Instance | None":
        """The instance that the ENI is attached to, in whatever state the attachment is."""
        return None if self.attachment is None else self.attachment.instance


@dataclass(slots=True, kw_only=True)
class Instance:
    """A virtual machine.

    ``enis`` holds every attached ENI, also while it attaches and detaches. Its security groups are those of
    its primary ENI.
    """

    id: str
    reservation_id: str
    type: InstanceType
    number: int
    subnet: Subnet
    launched_at: float
    enis: dict[str, Eni] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    state: str = "running"

    @property
    def primary_eni(self) -> Eni:
        """The ENI at device index 0 of card 0.

        Raises:
            LookupError: The instance was terminated.
        """
        for eni in self.enis.values():
            attachment = eni.attachment
            if attachment is not None and attachment.device_index == 0 and attachment.card == 0:
                return eni
        raise LookupError(f"instance {self.id} has no primary ENI (state {self.state})")

    def has_device(self, card: int, device_index: int) -> bool:
        """Whether an ENI hangs there; an index is unique on its card."""
        return any(
            eni.attachment is not None
            and eni.attachment.card == card
            and eni.attachment.device_index == device_index
            for eni in self.enis.values()
        )


Taggable = Vpc | Subnet | SecurityGroup | Eni | Instance

_STATE_CODE = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


def render_tags(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return tags in EC2's shape, in the order of their keys."""
    return [{"Key": key, "Value": tags[key]} for key in sorted(tags)]


def render_time(instant: float) -> datetime:
    """Return an instant of the region as the UTC time that EC2 would print."""
    return datetime.fromtimestamp(instant, UTC)


def render_groups(groups: list[SecurityGroup]) -> list[dict[str, str]]:
    """Return security groups as EC2 refers to them."""
    return [{"GroupId": group.id, "GroupName": group.name} for group in groups]


def eni_as_of(eni: Eni, instant: float) -> Rendered | None:
    """Return the ENI as it was then, None if it did not exist; its oldest known look if that is forgotten."""
    for at, rendered in reversed(eni.past):
        if at <= instant:
            return rendered
    return eni.past[0][1] if len(eni.past) == _KEPT_PAST else None


def _render_attachment(attachment: Attachment, account_id: str) -> Rendered:
    return {
        "AttachTime": render_time(attachment.attached_at),
        "AttachmentId": attachment.id,
        "DeleteOnTermination": attachment.delete_on_termination,
        "DeviceIndex": attachment.device_index,
        "NetworkCardIndex": attachment.card,
        "InstanceId": attachment.instance.id,
        "InstanceOwnerId": account_id,
        "Status": attachment.status,
    }


def render_eni(eni: Eni, account_id: str) -> Rendered:
    """Return the ENI in EC2's shape. The result is shared between replies: read it, never change it."""
    if eni.rendered is not None:
        return eni.rendered
    association = {"IpOwnerId": "amazon", "PublicIp": eni.public_ip} if eni.public_ip else None
    addresses: list[Rendered] = [{"Primary": True, "PrivateIpAddress": eni.primary}]
    addresses += [{"Primary": False, "PrivateIpAddress": address} for address in eni.secondaries]
    reply: Rendered = {
        "AvailabilityZone": eni.subnet.zone,
        "Description": eni.description,
        "Groups": render_groups(eni.groups),
        "InterfaceType": "interface",
        "Ipv6Addresses": [],
        "MacAddress": eni.mac,
        "NetworkInterfaceId": eni.id,
        "OwnerId": account_id,
        "PrivateIpAddress": eni.primary,
        "PrivateIpAddresses": addresses,
        "RequesterManaged": False,
        "SourceDestCheck": eni.source_dest_check,
        "Status": eni.status,
        "SubnetId": eni.subnet.id,
        "TagSet": render_tags(eni.tags),
        "VpcId": eni.subnet.vpc.id,
    }
    if eni.prefixes:
        reply["Ipv4Prefixes"] = [{"Ipv4Prefix": prefix} for prefix in eni.prefixes]
    if association:
        addresses[0]["Association"] = association
        reply["Association"] = association
    if eni.attachment is not None:
        reply["Attachment"] = _render_attachment(eni.attachment, account_id)
    eni.rendered = reply
    return reply


def render_instance(instance: Instance, account_id: str) -> Rendered:
    """Return the instance in EC2's shape, with the ENIs that hang on it."""
    reply: Rendered = {
        "InstanceId": instance.id,
        "InstanceType": instance.type.name,
        "State": {"Code": _STATE_CODE[instance.state], "Name": instance.state},
        "LaunchTime": render_time(instance.launched_at),
        "Placement": {"AvailabilityZone": instance.subnet.zone, "Tenancy": "default"},
        "Architecture": instance.type.architectures[-1],
        "Tags": render_tags(instance.tags),
        "NetworkInterfaces": [],
        "SecurityGroups": [],
    }
    if instance.type.hypervisor:
        # DescribeInstances reports the legacy value for Nitro too; only DescribeInstanceTypes tells them
        # apart.
        reply["Hypervisor"] = "xen"
    if instance.state == "terminated":
        return reply
    reply["SubnetId"] = instance.subnet.id
    reply["VpcId"] = instance.subnet.vpc.id
    reply["PrivateIpAddress"] = instance.primary_eni.primary
    reply["SecurityGroups"] = render_groups(instance.primary_eni.groups)
    reply["NetworkInterfaces"] = [_of_instance(render_eni(eni, account_id)) for eni in instance.enis.values()]
    if instance.primary_eni.public_ip:
        reply["PublicIpAddress"] = instance.primary_eni.public_ip
    return reply


_NOT_IN_INSTANCE = frozenset({"AvailabilityZone", "RequesterManaged", "TagSet"})
_NOT_IN_INSTANCE_ATTACHMENT = frozenset({"InstanceId", "InstanceOwnerId"})


def _of_instance(eni: Rendered) -> Rendered:
    """Leave out what DescribeInstances does not say about an ENI."""
    reply = {key: value for key, value in eni.items() if key not in _NOT_IN_INSTANCE}
    attachment = eni["Attachment"]
    reply["Attachment"] = {k: v for k, v in attachment.items() if k not in _NOT_IN_INSTANCE_ATTACHMENT}
    return reply


def render_subnet(subnet: Subnet, account_id: str, region: str) -> Rendered:
    """Return the subnet in EC2's shape."""
    return {
        "SubnetId": subnet.id,
        "SubnetArn": f"arn:aws:ec2:{region}:{account_id}:subnet/{subnet.id}",
        "VpcId": subnet.vpc.id,
        "State": "available",
        "CidrBlock": str(subnet.cidr),
        "AvailableIpAddressCount": subnet.addresses.free_count,
        "AvailabilityZone": subnet.zone,
        "AvailabilityZoneId": subnet.zone_id,
        "DefaultForAz": False,
        "MapPublicIpOnLaunch": False,
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "OwnerId": account_id,
        "Tags": render_tags(subnet.tags),
    }


def render_vpc(vpc: Vpc, account_id: str) -> Rendered:
    """Return the VPC in EC2's shape."""
    return {
        "VpcId": vpc.id,
        "State": "available",
        "CidrBlock": vpc.cidrs[0],
        "CidrBlockAssociationSet": [
            {
                "AssociationId": f"vpc-cidr-assoc-{vpc.id.removeprefix('vpc-')[:14]}{index:03x}",
                "CidrBlock": cidr,
                "CidrBlockState": {"State": "associated"},
            }
            for index, cidr in enumerate(vpc.cidrs)
        ],
        "DhcpOptionsId": "default",
        "InstanceTenancy": "default",
        "IsDefault": False,
        "OwnerId": account_id,
        "Tags": render_tags(vpc.tags),
    }


def render_security_group(group: SecurityGroup, account_id: str) -> Rendered:
    """Return the security group in EC2's shape, without rules: they are not modelled."""
    return {
        "GroupId": group.id,
        "GroupName": group.name,
        "Description": group.description,
        "VpcId": group.vpc.id,
        "OwnerId": account_id,
        "IpPermissions": [],
        "IpPermissionsEgress": [],
        "Tags": render_tags(group.tags),
    }
