"""What is known of the machine and of what is asked of us."""

from __future__ import annotations

import msgspec

from vpccni.model import Cidr, InstanceFacts, InstanceLimits, Stamp, SubnetId


class AgentStarted(msgspec.Struct, frozen=True, kw_only=True):
    """An agent opened the log and became its writer."""

    boot_id: str
    version: str


class BootChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The machine was booted since the last event: no sandbox of before is alive.

    Attributes:
        last: The stamp of the last event of the old boot, against which rests are measured on.
    """

    old: str
    new: str
    last: Stamp


class InstanceObserved(msgspec.Struct, frozen=True, kw_only=True):
    """IMDS told which machine this is. ``changed`` when the log knew another one before."""

    instance: InstanceFacts
    changed: bool = False


class LimitsObserved(msgspec.Struct, frozen=True, kw_only=True):
    """What the instance type allows."""

    type: str
    limits: InstanceLimits
    source: str = "ec2"


class PolicyObserved(msgspec.Struct, frozen=True, kw_only=True):
    """The effective settings, whole, as text by their environment names; secrets are never among them."""

    settings: dict[str, str]


class MaxPodsObserved(msgspec.Struct, frozen=True, kw_only=True):
    """How many pods this node may run."""

    max_pods: int
    source: str


class SchedulingObserved(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the node takes new pods (no ``node.kubernetes.io/unschedulable`` taint)."""

    schedulable: bool


class SubnetObserved(msgspec.Struct, frozen=True, kw_only=True):
    """What EC2 says of a subnet.

    Attributes:
        free: Addresses that EC2 could still give, at the time of asking.
    """

    subnet: SubnetId
    cidr: Cidr
    az: str
    free: int


class NetworkConfigObserved(msgspec.Struct, frozen=True, kw_only=True):
    """The VPC's address blocks, within which pods are reached without translation."""

    vpc_cidrs: tuple[Cidr, ...]


class InvariantBroken(msgspec.Struct, frozen=True, kw_only=True):
    """A check of our own failed: changes to EC2 stop until the next start."""

    name: str
    detail: str
