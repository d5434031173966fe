"""The EC2 port over the SDK."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from vpccni.adapters.ec2.errors import detail_of, outcome_code, translate
from vpccni.adapters.ec2.facts import Reply, eni_facts, instance_limits, sorted_cidrs
from vpccni.adapters.ec2.sdk import CONNECT_TIMEOUT_S, open_client
from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError
from vpccni.model import (
    Cidr,
    EniFacts,
    EniId,
    InstanceId,
    InstanceLimits,
    SubnetId,
    host_cidr,
    parse_cidr,
)
from vpccni.ports import Subnet

ClientOpener = Callable[..., Awaitable[Any]]
"""Builds the SDK's client; takes the arguments of :func:`vpccni.adapters.ec2.sdk.open_client`."""
CallHook = Callable[[str, float, str], None]
"""Told after each call: action, seconds, outcome (``ok``, EC2's error code, or the SDK's error name)."""

INSTANCE_TAG: Final = "node.k8s.amazonaws.com/instance_id"
_ENI_NOT_FOUND: Final = "InvalidNetworkInterfaceID.NotFound"
_ATTACHMENT_NOT_FOUND: Final = "InvalidAttachmentID.NotFound"
_PAGES_MAX: Final = 100
"""An instance has at most some sixty ENIs, one page; this only bounds an endpoint that never ends."""
_SUBNET_RETRY_S: Final = 60.0
"""A node that may not call DescribeSubnets does not try at every describe."""
_SUBNET_SOON_S: Final = 5.0
"""Without its subnet's CIDR an ENI cannot be set up: after a failure that may pass it is asked for again soon."""


class _Flight:
    """Whether the request of the current call was handed to the HTTP client."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


_FLIGHT: ContextVar[_Flight | None] = ContextVar("ec2_flight", default=None)


async def _mark_sent(**_: object) -> None:
    """The SDK's hook right before a signed request of ours is sent; runs in the caller's context."""
    flight = _FLIGHT.get()
    if flight is not None:
        flight.sent = True


class AwsEc2:
    """The ``Ec2`` port against any endpoint that speaks EC2's protocol.

    One attempt for each call, without retries: pacing and repetition are the caller's. Cancelling a call
    that changes something leaves its outcome unknown. A client is opened by the first call, or before by
    ``open``; opening that failed is tried again by the next call.

    Attributes:
        calls: How often each action was called, for metrics.
    """

    def __init__(
        self,
        *,
        region: str = "",
        endpoint: str = "",
        timeout_s: float = 15.0,
        on_call: CallHook | None = None,
        opener: ClientOpener = open_client,
    ) -> None:
        """Remember the settings; nothing is opened.

        Args:
            region: AWS region; empty: ``AWS_REGION``, then what the SDK finds by itself, then what
                ``use_region`` was told.
            endpoint: URL; empty: the SDK's own choice (``AWS_ENDPOINT_URL_EC2``, ``AWS_ENDPOINT_URL``, AWS).
            timeout_s: How long a reply may take, in seconds.
            on_call: Told of each call's end, in the event loop; must not raise.
            opener: Builds the client; simulations put a region in its place.
        """
        self.calls: dict[str, int] = defaultdict(int)
        self._region = region
        self._region_fallback = ""
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._on_call = on_call
        self._opener = opener
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._is_closed = False
        self._subnet_cidrs: dict[SubnetId, Cidr] = {}
        self._subnets_not_before = 0.0
        self._seen: dict[EniId, frozenset[Cidr]] = {}

    def use_region(self, region: str) -> None:
        """The region to use when neither the settings nor the environment name one (IMDS knows it)."""
        self._region_fallback = region

    async def open(self) -> None:
        """Import the SDK on a thread, find credentials and build the client. Idempotent.

        Raises:
            TransientError: no credentials or no region yet, or the agent is stopping.
            PermanentError: region or endpoint make no sense, or STS refused.
        """
        async with self._opening:
            if self._is_closed:
                raise TransientError(Reason.STOPPING, "the EC2 client is closed")
            if self._client is not None:
                return
            region = self._region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            region = region or self._region_fallback
            if not region:
                raise TransientError(Reason.EC2_UNREACHABLE, "no region is known: AWS_REGION is not set", 1.0)
            try:
                self._client = await self._opener(
                    region=region, endpoint=self._endpoint, timeout_s=self._timeout_s, before_send=_mark_sent
                )
            except (VpccniError, asyncio.CancelledError):
                raise
            except Exception as error:
                raise translate(error, action="open", mutates=False, sent=False) from error

    async def close(self) -> None:
        """Release connections. Idempotent; later calls raise ``TransientError`` (``stopping``)."""
        async with self._opening:
            self._is_closed = True
            client, self._client = self._client, None
            if client is not None:
                await client.__aexit__(None, None, None)

    # -- reading

    async def describe_limits(self, instance_type: str) -> InstanceLimits:
        """``DescribeInstanceTypes`` for one type."""
        reply = await self._call("DescribeInstanceTypes", InstanceTypes=[instance_type])
        for item in reply.get("InstanceTypes") or ():
            try:
                return instance_limits(item)
            except KeyError as error:
                detail = f"DescribeInstanceTypes: {instance_type} comes without {error}"
                raise PermanentError(Reason.EC2_REFUSED, detail) from error
        raise PermanentError(Reason.EC2_REFUSED, f"DescribeInstanceTypes: {instance_type} is not known")

    async def describe_subnet(self, subnet: SubnetId) -> Subnet:
        """``DescribeSubnets`` for one, always asked anew: its free addresses change. Raises as the port."""
        reply = await self._call("DescribeSubnets", SubnetIds=[subnet])
        for item in reply.get("Subnets") or ():
            self._remember_subnet(item)
            return Subnet(
                cidr=parse_cidr(item["CidrBlock"]),
                az=item.get("AvailabilityZone") or "",
                free=int(item.get("AvailableIpAddressCount", -1)),
            )
        raise PermanentError(Reason.EC2_REFUSED, f"DescribeSubnets: {subnet} is not known")

    async def describe_attached(self, instance: InstanceId) -> tuple[EniFacts, ...]:
        """``DescribeNetworkInterfaces`` by instance: all ENIs of the machine, by id."""
        return await self._describe({"attachment.instance-id": [instance]})

    async def describe_left_behind(self, instance: InstanceId) -> tuple[EniFacts, ...]:
        """Unattached (``available``) ENIs whose instance tag is ours."""
        facts = await self._describe({"status": ["available"], f"tag:{INSTANCE_TAG}": [instance]})
        return tuple(eni for eni in facts if not eni.attachment)

    async def describe_eni(self, eni: EniId) -> EniFacts | None:
        """``DescribeNetworkInterfaces`` of one; ``None`` when EC2 does not know it."""
        try:
            reply = await self._call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])
        except PermanentError as error:
            if error.code == _ENI_NOT_FOUND:
                return None
            raise
        facts = await self._facts(reply.get("NetworkInterfaces") or ())
        return facts[0] if facts else None

    async def describe_enis(self, enis: Sequence[EniId]) -> tuple[EniFacts, ...]:
        """``DescribeNetworkInterfaces`` of several, one call; those that EC2 does not know are left out."""
        # By a filter, because an id that does not exist would fail the call for all of them.
        return await self._describe({"network-interface-id": enis}) if enis else ()

    # -- changing

    async def create_eni(
        self,
        *,
        subnet: SubnetId,
        groups: tuple[str, ...],
        secondary_count: int,
        description: str,
        tags: dict[str, str],
        token: str,
    ) -> EniFacts:
        """``CreateNetworkInterface``; with the same token and arguments EC2 answers with the same ENI."""
        arguments: dict[str, Any] = {"SubnetId": subnet, "Description": description, "ClientToken": token}
        if groups:
            arguments["Groups"] = list(groups)
        if secondary_count > 0:
            arguments["SecondaryPrivateIpAddressCount"] = secondary_count
        if tags:
            arguments["TagSpecifications"] = [{"ResourceType": "network-interface", "Tags": _tag_list(tags)}]
        reply = await self._change("CreateNetworkInterface", **arguments)
        raw = _member(reply, "NetworkInterface", "CreateNetworkInterface")
        try:
            (facts,) = await self._facts([raw])
        except TransientError as error:
            raise OutcomeUnknownError(error.reason, error.detail) from error
        return facts

    async def attach_eni(self, eni: EniId, instance: InstanceId, *, device: int, card: int) -> str:
        """``AttachNetworkInterface``; gives the attachment id."""
        # Card 0 is the default, and not every EC2-compatible endpoint knows the parameter.
        on_card = {"NetworkCardIndex": card} if card else {}
        reply = await self._change(
            "AttachNetworkInterface",
            NetworkInterfaceId=eni,
            InstanceId=instance,
            DeviceIndex=device,
            **on_card,
        )
        return str(_member(reply, "AttachmentId", "AttachNetworkInterface"))

    async def set_delete_on_termination(self, eni: EniId, attachment: str) -> None:
        """``ModifyNetworkInterfaceAttribute``: the ENI dies with the instance."""
        await self._change(
            "ModifyNetworkInterfaceAttribute",
            NetworkInterfaceId=eni,
            Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
        )

    async def assign_addresses(self, eni: EniId, count: int) -> tuple[Cidr, ...]:
        """``AssignPrivateIpAddresses``: the new /32s only, sorted; EC2 may give fewer than asked.

        Some endpoints answer with every address of the ENI. A reply with more than was asked for is
        therefore cut down by what this client has seen on the ENI; if that does not settle it, the
        outcome is unknown.
        """
        if count < 1:
            return ()
        action = "AssignPrivateIpAddresses"
        reply = await self._change(action, NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=count)
        items = _member(reply, "AssignedPrivateIpAddresses", action)
        given = {host_cidr(item["PrivateIpAddress"]) for item in items if item.get("PrivateIpAddress")}
        seen = self._seen.get(eni, frozenset())
        if len(given) > count:
            given -= seen
        if len(given) > count:
            raise OutcomeUnknownError(
                Reason.EC2_UNREACHABLE,
                detail_of(action, f"asked for {count}, the reply names {len(given)} addresses"),
            )
        self._seen[eni] = seen | given
        return sorted_cidrs(given)

    async def unassign_addresses(self, eni: EniId, cidrs: tuple[Cidr, ...]) -> None:
        """``UnassignPrivateIpAddresses``: /32s as addresses, anything larger as prefixes."""
        addresses = [cidr.removesuffix("/32") for cidr in cidrs if cidr.endswith("/32")]
        prefixes = [str(cidr) for cidr in cidrs if not cidr.endswith("/32")]
        arguments = {"PrivateIpAddresses": addresses, "Ipv4Prefixes": prefixes}
        arguments = {name: values for name, values in arguments.items() if values}
        if arguments:
            await self._change("UnassignPrivateIpAddresses", NetworkInterfaceId=eni, **arguments)
            self._seen[eni] = self._seen.get(eni, frozenset()) - frozenset(cidrs)

    async def detach_eni(self, attachment: str) -> None:
        """``DetachNetworkInterface``, without force. An attachment that is gone counts as done.

        An attachment in the wrong state is looked at: if it is on its way out, that counts as done too.
        """
        try:
            await self._change("DetachNetworkInterface", AttachmentId=attachment)
        except PermanentError as error:
            if error.code == _ATTACHMENT_NOT_FOUND:
                return
            if error.code != "IncorrectState" or not await self._is_leaving(attachment):
                raise

    async def delete_eni(self, eni: EniId) -> None:
        """``DeleteNetworkInterface``. An ENI that is gone counts as done; one in use raises transient."""
        try:
            await self._change("DeleteNetworkInterface", NetworkInterfaceId=eni)
        except PermanentError as error:
            if error.code != _ENI_NOT_FOUND:
                raise
        self._seen.pop(eni, None)

    async def tag_eni(self, eni: EniId, tags: dict[str, str]) -> None:
        """``CreateTags``. No tags, no call."""
        if tags:
            await self._change("CreateTags", Resources=[eni], Tags=_tag_list(tags))

    # -- beneath

    async def _is_leaving(self, attachment: str) -> bool:
        """Whether an attachment is detaching, detached or gone."""
        facts = await self._describe({"attachment.attachment-id": [attachment]})
        return all(eni.attachment_status in {"detaching", "detached", ""} for eni in facts)

    async def _describe(self, filters: Mapping[str, Sequence[str]]) -> tuple[EniFacts, ...]:
        """All pages of ``DescribeNetworkInterfaces`` under a filter, by id."""
        arguments: dict[str, Any] = {
            "Filters": [{"Name": name, "Values": list(values)} for name, values in filters.items()]
        }
        items: list[Reply] = []
        for _ in range(_PAGES_MAX):
            reply = await self._call("DescribeNetworkInterfaces", **arguments)
            items += reply.get("NetworkInterfaces") or ()
            if not reply.get("NextToken"):
                return await self._facts(items)
            arguments["NextToken"] = reply["NextToken"]
        raise TransientError(
            Reason.EC2_UNREACHABLE, f"DescribeNetworkInterfaces: no end after {_PAGES_MAX} pages"
        )

    async def _facts(self, items: Iterable[Reply]) -> tuple[EniFacts, ...]:
        """Replies as facts, by id, with their subnets' CIDRs; remembers the addresses of each ENI.

        Raises:
            TransientError: A reply that cannot be read.
        """
        raw = list(items)
        await self._learn_subnets({_subnet_of(item) for item in raw} - {SubnetId("")})
        try:
            facts = [eni_facts(item, self._subnet_cidrs.get(_subnet_of(item), Cidr(""))) for item in raw]
        except (KeyError, ValueError) as error:
            detail = detail_of("DescribeNetworkInterfaces", f"unreadable: {error!r}")
            raise TransientError(Reason.EC2_UNREACHABLE, detail) from error
        for eni in facts:
            own = [host_cidr(eni.primary)] if eni.primary else []
            self._seen[eni.id] = frozenset([*own, *eni.cidrs])
        return tuple(sorted(facts, key=lambda eni: eni.id))

    async def _learn_subnets(self, subnets: set[SubnetId]) -> None:
        """Ask once for the CIDRs of subnets not met before. Failure leaves them unknown for a while."""
        unknown = sorted(subnets - self._subnet_cidrs.keys())
        now = asyncio.get_running_loop().time()
        if not unknown or now < self._subnets_not_before:
            return
        try:
            # A filter, because an id that does not exist would fail the call for all of them.
            reply = await self._call("DescribeSubnets", Filters=[{"Name": "subnet-id", "Values": unknown}])
        except VpccniError as error:
            is_final = isinstance(error, PermanentError)
            self._subnets_not_before = now + (_SUBNET_RETRY_S if is_final else _SUBNET_SOON_S)
            return
        for item in reply.get("Subnets") or ():
            self._remember_subnet(item)

    def _remember_subnet(self, item: Reply) -> None:
        if item.get("SubnetId") and item.get("CidrBlock"):
            self._subnet_cidrs[SubnetId(item["SubnetId"])] = parse_cidr(item["CidrBlock"])

    async def _change(self, action: str, **arguments: Any) -> Reply:
        """A call that changes something: a lost reply leaves its outcome unknown."""
        return await self._call(action, mutates=True, **arguments)

    async def _call(self, action: str, *, mutates: bool = False, **arguments: Any) -> Reply:
        """One attempt of one action. Raises only ``VpccniError`` (and ``CancelledError``)."""
        await self.open()
        client, clock = self._client, asyncio.get_running_loop().time
        if client is None:
            raise TransientError(Reason.STOPPING, "the EC2 client is closed")
        self.calls[action] += 1
        flight, began, outcome = _Flight(), clock(), "cancelled"
        mark = _FLIGHT.set(flight)
        try:
            # The SDK's timeouts do not cover name resolution, or a reply that drips.
            async with asyncio.timeout(CONNECT_TIMEOUT_S + self._timeout_s):
                reply: Reply = await getattr(client, _method_of(action))(**arguments)
            outcome = "ok"
        except Exception as error:
            outcome = outcome_code(error)
            raise translate(error, action=action, mutates=mutates, sent=flight.sent) from error
        else:
            return reply
        finally:
            _FLIGHT.reset(mark)
            if self._on_call is not None:
                self._on_call(action, clock() - began, outcome)


def _method_of(action: str) -> str:
    """The SDK's method name of an action: ``DescribeSubnets`` → ``describe_subnets``."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in action).removeprefix("_")


def _subnet_of(item: Reply) -> SubnetId:
    return SubnetId(item.get("SubnetId") or "")


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _member(reply: Reply, name: str, action: str) -> Any:
    """A member without which a reply to a change is no proof that it was made."""
    value = reply.get(name)
    if not value:
        raise OutcomeUnknownError(Reason.EC2_UNREACHABLE, detail_of(action, f"the reply has no {name}"))
    return value
