"""What is known of the machine and of what is asked of us."""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import Cidr, InstanceFacts, InstanceId, InstanceLimits, Stamp, SubnetId

LIMITS_REVISION: Final = 1
"""Grows when the program learns to read further limits: older readings are then taken again."""


class LogCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The first event of every log.

    Attributes:
        log_id: Random, 32 hexadecimal digits: by it a fleet tells logs apart, and we know our own exports.
    """

    log_id: str


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
    """IMDS told which machine this is; said again once in each boot, as proof of identity.

    Attributes:
        changed: The log knew another machine before: its leases end, its ENIs are not ours.
        readings: How many readings of IMDS in a row said so.
    """

    instance: InstanceFacts
    changed: bool = False
    readings: int = 1


class InstanceDoubted(msgspec.Struct, frozen=True, kw_only=True):
    """IMDS names another machine than the log knows, and there is no proof: EC2 is not changed meanwhile."""

    instance: InstanceId
    detail: str = ""


class LimitsObserved(msgspec.Struct, frozen=True, kw_only=True):
    """What the instance type allows.

    Attributes:
        revision: Which limits the program that read them knew: see :data:`LIMITS_REVISION`.
    """

    type: str
    limits: InstanceLimits
    source: str = "ec2"
    revision: int = 0


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


class LogRestored(msgspec.Struct, frozen=True, kw_only=True):
    """Files of the log had been removed or replaced while the agent ran; the log was made whole again.

    Attributes:
        missing: Names of the files that were gone, or replaced by others.
        events: How many events the log held when it was whole again.
    """

    missing: tuple[str, ...]
    events: int


class InvariantBroken(msgspec.Struct, frozen=True, kw_only=True):
    """A check of our own failed: changes to EC2 stop until the next start."""

    name: str
    detail: str
