"""The region: calls in, replies and link events out. No clock, no I/O, no chance but the seed's.

Theory of operation. ``now`` is a number of seconds that the caller's clock gives; it never runs backwards in
here. Every entry first does what the agenda has due, then what it was asked for, then again what is due at
once.
A transport that wants latencies and faults goes through ``arrive``::

    call = region.arrive(action, params, now)   # throttle and faults strike here
    ... wait call.before_s ...
    answer = call.apply(now)                    # the world changes here, once
    ... wait call.after_s, then answer, or break the connection, or never answer: call.ending ...

``handle`` does all of it at once and waits for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any, Final, Literal

from vpccni.lab.ec2 import describe_actions, eni_actions, errors
from vpccni.lab.ec2.entities import Attachment, Eni, Instance, SecurityGroup, Subnet, Vpc
from vpccni.lab.ec2.errors import Ec2Fault, ReplyLost
from vpccni.lab.ec2.faults import Fault, FaultPlan
from vpccni.lab.ec2.imds import Imds, ImdsReply
from vpccni.lab.ec2.journal import Journal
from vpccni.lab.ec2.link_events import LinkPlugged
from vpccni.lab.ec2.subnet import AddressBook
from vpccni.lab.ec2.throttle import Throttle
from vpccni.lab.ec2.types import INSTANCE_TYPES
from vpccni.lab.ec2.world import LinkSubscriber, Request, Timing, World, plugged

Reply = dict[str, Any]
Ending = Literal["reply", "lost", "hang"]
ActionFunction = Callable[[World, Request], Reply]

ACCOUNT_ID: Final = "000000000000"

# The latencies that the demo and the benchmarks are stated for (create, attach, assign, describe); the other
# figures are of the same order, not measured.
REALISTIC_LATENCY_S: Final[Mapping[str, float]] = {
    "CreateNetworkInterface": 0.6,
    "AttachNetworkInterface": 1.2,
    "AssignPrivateIpAddresses": 0.5,
    "UnassignPrivateIpAddresses": 0.3,
    "DetachNetworkInterface": 0.3,
    "DeleteNetworkInterface": 0.3,
    "ModifyNetworkInterfaceAttribute": 0.2,
    "*": 0.1,
}
_THROTTLED_S: Final = (
    0.02  # a refusal comes from the front door and is quick; never slower than the call itself
)

_PAGED: Final = ("Filters", "MaxResults", "NextToken")
_ACTIONS: Final[Mapping[str, tuple[ActionFunction, frozenset[str]]]] = {
    name: (function, frozenset((*parameters, "DryRun")))
    for name, function, parameters in (
        ("AssignPrivateIpAddresses", eni_actions.assign_private_ip_addresses,
         ("NetworkInterfaceId", "PrivateIpAddresses", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount",
          "AllowReassignment")),
        ("AttachNetworkInterface", eni_actions.attach_network_interface,
         ("NetworkInterfaceId", "InstanceId", "DeviceIndex", "NetworkCardIndex")),
        ("CreateNetworkInterface", eni_actions.create_network_interface,
         ("SubnetId", "Description", "Groups", "PrivateIpAddress", "PrivateIpAddresses",
          "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "TagSpecifications", "ClientToken")),
        ("CreateTags", eni_actions.create_tags, ("Resources", "Tags")),
        ("DeleteNetworkInterface", eni_actions.delete_network_interface, ("NetworkInterfaceId",)),
        ("DeleteTags", eni_actions.delete_tags, ("Resources", "Tags")),
        ("DescribeInstances", describe_actions.describe_instances, ("InstanceIds", *_PAGED)),
        ("DescribeInstanceTypes", describe_actions.describe_instance_types, ("InstanceTypes", *_PAGED)),
        ("DescribeNetworkInterfaces", describe_actions.describe_network_interfaces,
         ("NetworkInterfaceIds", *_PAGED)),
        ("DescribeSecurityGroups", describe_actions.describe_security_groups, ("GroupIds", *_PAGED)),
        ("DescribeSubnets", describe_actions.describe_subnets, ("SubnetIds", *_PAGED)),
        ("DescribeVpcs", describe_actions.describe_vpcs, ("VpcIds", *_PAGED)),
        ("DetachNetworkInterface", eni_actions.detach_network_interface, ("AttachmentId", "Force")),
        ("ModifyNetworkInterfaceAttribute", eni_actions.modify_network_interface_attribute,
         ("NetworkInterfaceId", "Attachment", "Description", "Groups", "SourceDestCheck")),
        ("UnassignPrivateIpAddresses", eni_actions.unassign_private_ip_addresses,
         ("NetworkInterfaceId", "PrivateIpAddresses", "Ipv4Prefixes")),
    )
}  # fmt: skip


class Call:
    """One call that has arrived. ``apply`` is called once, ``before_s`` after the arrival.

    Attributes:
        before_s: How long it takes to be applied.
        after_s: How long its answer takes then.
        ending: ``reply``: answer. ``lost``: break the connection instead. ``hang``: never answer.
    """

    __slots__ = ("_fault", "_refusal", "_region", "action", "after_s", "before_s", "ending", "params")

    def __init__(
        self, region: "Region", action: str, params: Mapping[str, Any], fault: Fault | None, now: float
    ) -> None:
        self.action = action
        self.params = params
        self._region = region
        self._fault = fault
        self._refusal = region.refusal(action, fault, now)
        self.ending: Ending = "reply"
        half_s = region.latency(action) / 2
        if fault is not None:
            if fault.kind in ("lost_reply", "dropped_request"):
                self.ending = "lost"
            elif fault.kind == "hang":
                self.ending = "hang"
            elif fault.kind == "latency":
                half_s += fault.seconds / 2
        if self._refusal is not None and self._refusal.code == "RequestLimitExceeded":
            half_s = min(half_s, _THROTTLED_S / 2)
        self.before_s = half_s
        self.after_s = half_s

    @property
    def is_applied(self) -> bool:
        """Whether ``apply`` changes anything, seen from the faults alone."""
        fault = self._fault
        if fault is None:
            return True
        return fault.kind != "dropped_request" and (fault.kind != "hang" or fault.applied)

    def apply(self, now: float) -> Reply | Ec2Fault:
        """Change the world and return EC2's answer; ``ending`` says whether it is delivered."""
        region, fault = self._region, self._fault
        region.advance(now)
        answer: Reply | Ec2Fault = {}
        outcome = ""
        if self._refusal is not None:
            answer = self._refusal
        elif self.is_applied:
            give = fault.give if fault is not None and fault.kind == "partial" else None
            answer = region.perform(self.action, self.params, now, give)
            region.advance(now)
        if fault is not None and fault.kind in ("lost_reply", "dropped_request", "hang"):
            outcome = fault.kind
        elif isinstance(answer, Ec2Fault):
            outcome = answer.code
        region.journal.record(now, self.action, self.params, outcome or "ok")
        return answer


class Region:
    """One region and one account of the emulated cloud.

    Replies share their parts with the model: read them, never change them.

    Attributes:
        timing: How long attaching, detaching and links take; may be changed at any time.
        faults: What is to go wrong with calls.
        throttle: Off until it is enabled.
        imds: The metadata service, its lag and its faults.
        journal: Every call that arrived.
        latency_s: Seconds by action, ``*`` for the others; empty means none.

    ``world.describe_lag_s`` makes DescribeNetworkInterfaces show each ENI as it was that many seconds ago,
    and not at all when it is younger; filters and deletions are not delayed.
    """

    def __init__(
        self,
        seed: int | str = 0,
        *,
        name: str = "lab-1",
        account_id: str = ACCOUNT_ID,
        timing: Timing | None = None,
        latency_s: Mapping[str, float] | None = None,
    ) -> None:
        self.world = World(seed, name, account_id)
        if timing is not None:
            self.world.timing = timing
        self.latency_s: dict[str, float] = dict(latency_s or {})
        self.faults = FaultPlan()
        self.throttle = Throttle()
        self.imds = Imds(self.world)
        self.journal = Journal()
        self._now = 0.0
        self._agenda_listeners: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        """The region's name."""
        return self.world.name

    @property
    def timing(self) -> Timing:
        """How long things take after a call was applied."""
        return self.world.timing

    # Calls ----------------------------------------------------------------------------------------------

    def arrive(self, action: str, params: Mapping[str, Any], now: float) -> Call:
        """Take in a call: throttling is decided and the fault that hits it is drawn now."""
        return Call(self, action, params, self.faults.draw(action, params), now)

    def handle(self, action: str, params: Mapping[str, Any], now: float) -> Reply | Ec2Fault | ReplyLost:
        """Answer a call at once, in botocore's output shape; faults strike, latencies do not.

        ``ReplyLost`` comes back only where such a fault was armed. A ``hang`` too is a lost reply here.
        """
        call = self.arrive(action, params, now)
        answer = call.apply(now)
        if call.ending == "reply":
            return answer
        return ReplyLost(action, applied=call.is_applied)

    def refusal(self, action: str, fault: Fault | None, now: float) -> Ec2Fault | None:
        """Return why this call is refused before anybody looks at it, or None."""
        if fault is not None and fault.kind == "error":
            return Ec2Fault(fault.code, fault.message or f"{fault.code} (asked for by a fault)")
        if fault is not None and fault.kind == "throttle":
            return errors.throttled()
        return None if self.throttle.is_admitted(action, now) else errors.throttled()

    def perform(
        self, action: str, params: Mapping[str, Any], now: float, give: int | None = None
    ) -> Reply | Ec2Fault:
        """Apply one call, without faults, throttle and journal."""
        known = _ACTIONS.get(action)
        if known is None:
            return Ec2Fault("InvalidAction", f"The action {action} is not valid for this web service.")
        function, parameters = known
        for parameter in params:
            if parameter not in parameters:
                return errors.not_modelled(action, parameter)
        if params.get("DryRun"):
            return Ec2Fault("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
        try:
            return function(self.world, Request(action=action, params=params, now=now, give=give))
        except Ec2Fault as fault:
            return fault

    def latency(self, action: str) -> float:
        """Return how many seconds this call takes."""
        return self.latency_s.get(action, self.latency_s.get("*", 0.0))

    # Time -----------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do everything that is due: to be called when ``pending_until`` has come. Every call does it too."""
        self._now = max(now, self._now)
        agenda = self.world.agenda
        agenda.run_until(self._now)
        if self._agenda_listeners and agenda.next_instant() is not None:
            for listener in self._agenda_listeners:
                listener()

    def pending_until(self) -> float | None:
        """Return the next instant at which something changes by itself, None if nothing will."""
        return self.world.agenda.next_instant()

    def on_pending(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` when something is pending, so that an alarm can be set; returns how to stop."""
        self._agenda_listeners.append(listener)
        return lambda: self._agenda_listeners.remove(listener)

    # Links ----------------------------------------------------------------------------------------------

    def subscribe(self, subscriber: LinkSubscriber) -> Callable[[], None]:
        """Tell ``subscriber`` of every link event from now on; returns how to stop that."""
        self.world.subscribers.append(subscriber)
        return lambda: self.world.subscribers.remove(subscriber)

    def links(self, instance_id: str | None = None) -> list[LinkPlugged]:
        """Return the links that are plugged now, as the events that would plug them, primaries first."""
        instances = self.world.instances
        chosen = instances.values() if instance_id is None else (instances[instance_id],)
        return [
            plugged(eni, eni.attachment, self._now)
            for instance in chosen
            for eni in sorted(instance.enis.values(), key=lambda eni: eni.number)
            if eni.attachment is not None and eni.attachment.is_plugged
        ]

    # Building -------------------------------------------------------------------------------------------

    def add_vpc(self, *cidrs: str, tags: Mapping[str, str] | None = None) -> Vpc:
        """Add a VPC with its default security group."""
        if not cidrs:
            raise ValueError("a VPC needs a CIDR block")
        world = self.world
        vpc = Vpc(
            id=world.ids.resource_id("vpc"), cidrs=[str(IPv4Network(c)) for c in cidrs], tags=dict(tags or {})
        )
        world.vpcs[vpc.id] = vpc
        self.add_security_group(vpc.id, "default")
        return vpc

    def add_security_group(self, vpc_id: str, name: str, description: str = "") -> SecurityGroup:
        """Add a security group."""
        world = self.world
        group = SecurityGroup(
            id=world.ids.resource_id("sg"), name=name, description=description or name, vpc=world.vpc(vpc_id)
        )
        world.groups[group.id] = group
        return group

    def add_subnet(self, vpc_id: str, zone: str, cidr: str, tags: Mapping[str, str] | None = None) -> Subnet:
        """Add a subnet to a zone (``a``, ``b``, …, or its full name)."""
        world = self.world
        vpc = world.vpc(vpc_id)
        network = IPv4Network(cidr)
        if not any(network.subnet_of(IPv4Network(block)) for block in vpc.cidrs):
            raise ValueError(f"{cidr} is outside of the VPC's {', '.join(vpc.cidrs)}")
        if any(network.overlaps(other.cidr) for other in world.subnets.values() if other.vpc is vpc):
            raise ValueError(f"{cidr} overlaps another subnet of the VPC")
        letter = zone[-1]
        subnet = Subnet(
            id=world.ids.resource_id("subnet"),
            vpc=vpc,
            zone=f"{world.name}{letter}",
            zone_id=f"{world.name}-az{ord(letter) - ord('a') + 1}",
            cidr=network,
            addresses=AddressBook(network),
            tags=dict(tags or {}),
        )
        world.subnets[subnet.id] = subnet
        return subnet

    def launch_instance(
        self,
        subnet_id: str,
        instance_type: str = "m5.large",
        *,
        now: float = 0.0,
        groups: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        private_ip: str | None = None,
        public_ip: bool = True,
    ) -> Instance:
        """Start an instance with its primary ENI; it runs, and its link is plugged, at once.

        Raises:
            Ec2Fault: The subnet is full, or a group does not exist; nothing was started.
            KeyError: The instance type is not one of ``types.INSTANCE_TYPES``.
        """
        world = self.world
        self.advance(now)
        subnet = world.subnet(subnet_id)
        kind = INSTANCE_TYPES[instance_type]
        chosen = world.security_groups(list(groups), subnet.vpc, code="InvalidGroup.NotFound")
        params = {"PrivateIpAddress": private_ip} if private_ip else {}
        eni = eni_actions.new_eni(
            world, Request(action="RunInstances", params=params, now=now), subnet, chosen
        )
        eni.public_ip = world.ids.public_ip() if public_ip else None
        instance = Instance(
            id=world.ids.resource_id("i"),
            reservation_id=world.ids.resource_id("r"),
            type=kind,
            number=world.next_number(),
            subnet=subnet,
            launched_at=now,
            tags=dict(tags or {}),
        )
        world.instances[instance.id] = instance
        eni.attachment = Attachment(
            id=world.ids.resource_id("eni-attach"),
            instance=instance,
            device_index=0,
            card=0,
            status="attached",
            attached_at=now,
            delete_on_termination=True,
            is_plugged=True,
        )
        instance.enis[eni.id] = eni
        world.eni_of_attachment[eni.attachment.id] = eni
        world.changed(eni, now)
        world.emit(plugged(eni, eni.attachment, now))
        return instance

    def terminate_instance(self, instance_id: str, now: float) -> None:
        """End an instance: its ENIs are deleted where ``DeleteOnTermination`` says so, else available.

        Raises:
            Ec2Fault: No such instance.
        """
        self.advance(now)
        world = self.world
        instance = world.instance(instance_id)
        if instance.state == "terminated":
            return
        doomed: list[tuple[Eni, Attachment]] = [
            (eni, eni.attachment) for eni in instance.enis.values() if eni.attachment is not None
        ]
        instance.state = "terminated"
        for eni, attachment in doomed:
            world.cut(eni, attachment, now)
            if attachment.delete_on_termination:
                world.destroy(eni)

    # IMDS -----------------------------------------------------------------------------------------------

    def imds_get(self, instance_id: str, path: str, now: float) -> ImdsReply:
        """Answer a metadata path (``latest/meta-data/…``), without a token. 404 when there is nothing."""
        self.advance(now)
        return self.imds.get(instance_id, path, now)


def small_region(seed: int | str = 0, **settings: Any) -> Region:
    """Return a region with one VPC 10.0.0.0/16 and two /20 subnets in the zones a and b."""
    region = Region(seed, **settings)
    vpc = region.add_vpc("10.0.0.0/16", tags={"Name": "lab"})
    region.add_subnet(vpc.id, "a", "10.0.0.0/20", tags={"Name": "lab-a"})
    region.add_subnet(vpc.id, "b", "10.0.16.0/20", tags={"Name": "lab-b"})
    return region
