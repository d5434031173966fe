"""The EC2 port against moto, the lab's region over HTTP, and the lab's region in this process.

Where moto does not do what EC2 does, the expectation says so: moto knows no ClientToken, no limits, no
DeleteOnTermination, and answers an assign with every address of the ENI.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.ec2 import region_ec2, serving
from vpccni.adapters.ec2 import AwsEc2
from vpccni.errors import PermanentError, Reason
from vpccni.lab.ec2 import small_region
from vpccni.lab.ec2.http import ec2_app
from vpccni.model import EniId, InstanceId, SubnetId

INSTANCE_TAG = "node.k8s.amazonaws.com/instance_id"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """An EC2 with one instance and one more subnet's worth of room."""

    name: str
    ec2: AwsEc2
    instance: InstanceId
    subnet: SubnetId
    subnet_cidr: str
    group: str
    instance_type: str = "m5.large"

    async def create(self, token: str, count: int = 0, **tags: str) -> Any:
        return await self.ec2.create_eni(
            subnet=self.subnet,
            groups=(self.group,),
            secondary_count=count,
            description="aws-K8S-" + self.instance,
            tags={INSTANCE_TAG: self.instance, **tags},
            token=token,
        )


async def _answer_by_moto(request: web.Request) -> web.Response:
    """moto's own dispatch; its server would need a package more."""
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.compat import HTTPHeaders
    from moto.core.botocore_stubber import BotocoreStubber

    prepared = AWSPreparedRequest(
        method="POST",
        url="https://ec2.eu-west-1.amazonaws.com/",
        headers=HTTPHeaders.from_dict(dict(request.headers)),
        body=await request.read(),
        stream_output=False,
    )
    answer = await asyncio.to_thread(BotocoreStubber().process_request, prepared)
    assert answer is not None
    status, _, body = answer
    return web.Response(status=status, body=body, content_type="text/xml")


@lru_cache(maxsize=1)
def _moto_client() -> Any:
    """boto3 with moto in place of the network; made once, for it takes a second."""
    import boto3  # type: ignore[import-untyped]
    from botocore.awsrequest import AWSResponse
    from moto.core.botocore_stubber import BotocoreStubber, MockRawResponse

    def answer(request: Any, **_: Any) -> Any:
        reply = BotocoreStubber().process_request(request)
        assert reply is not None
        return AWSResponse(request.url, reply[0], reply[1], MockRawResponse(reply[2]))

    client = boto3.client("ec2", region_name="eu-west-1")
    client.meta.events.register("before-send.ec2", answer)
    return client


def _moto_world() -> tuple[str, str, str]:
    """A VPC with one instance: ids of instance, subnet and group."""
    ec2 = _moto_client()
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.0.0/20", AvailabilityZone="eu-west-1a")["Subnet"][
        "SubnetId"
    ]
    group = ec2.create_security_group(GroupName="nodes", Description="nodes", VpcId=vpc)["GroupId"]
    (node,) = ec2.run_instances(
        ImageId="ami-12c6146b",
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet,
        SecurityGroupIds=[group],
    )["Instances"]
    return node["InstanceId"], subnet, group


@pytest.fixture(params=["moto", "lab-http", "lab-in-process"])
async def place(request: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if request.param == "moto":
        moto = web.Application()
        moto.router.add_post("/", _answer_by_moto)
        async with serving(moto) as url:
            ids = await asyncio.to_thread(_moto_world)
            ec2 = AwsEc2(region="eu-west-1", endpoint=url)
            yield Place("moto", ec2, InstanceId(ids[0]), SubnetId(ids[1]), "10.7.0.0/20", ids[2])
            await ec2.close()
        return
    region = small_region()
    subnet = next(iter(region.world.subnets.values()))
    group = next(iter(region.world.groups))
    instance = InstanceId(region.launch_instance(subnet.id, "m5.large", now=time.monotonic()).id)
    if request.param == "lab-http":
        async with serving(ec2_app(region, time.monotonic)) as url:
            ec2 = AwsEc2(region=region.name, endpoint=url)
            yield Place("lab", ec2, instance, SubnetId(subnet.id), str(subnet.cidr), group)
            await ec2.close()
        return
    ec2 = region_ec2(region, time.monotonic)
    yield Place("lab", ec2, instance, SubnetId(subnet.id), str(subnet.cidr), group)
    await ec2.close()


async def test_an_instance_has_its_primary_eni(place: Place) -> None:
    (eni,) = await place.ec2.describe_attached(place.instance)
    assert (eni.device, eni.card, eni.instance, eni.status) == (0, 0, place.instance, "in-use")
    assert (eni.subnet, eni.subnet_cidr) == (place.subnet, place.subnet_cidr)
    assert ipaddress.ip_address(eni.primary) in ipaddress.ip_network(eni.subnet_cidr)
    assert eni.cidrs == ()
    assert eni.type == "interface"
    assert eni.mac == eni.mac.lower()
    assert eni.mac.count(":") == 5


async def test_a_created_eni_tells_its_secondary_addresses_but_not_its_own(place: Place) -> None:
    eni = await place.create("t-1", 3, **{"cluster.k8s.amazonaws.com/name": "blue"})
    assert len(eni.cidrs) == 3
    assert f"{eni.primary}/32" not in eni.cidrs
    assert list(eni.cidrs) == sorted(eni.cidrs, key=ipaddress.ip_network)
    assert eni.tags["cluster.k8s.amazonaws.com/name"] == "blue"
    assert eni.groups == (place.group,)
    assert (eni.attachment, eni.instance, eni.device) == ("", "", -1)
    assert eni.subnet_cidr == place.subnet_cidr
    described = await place.ec2.describe_eni(eni.id)
    assert described is not None
    assert (described.cidrs, described.primary, described.mac) == (eni.cidrs, eni.primary, eni.mac)


async def test_the_same_token_gives_the_same_eni(place: Place) -> None:
    first, second = await place.create("t-2"), await place.create("t-2")
    assert (first.id == second.id) is (place.name != "moto")


async def test_an_eni_that_does_not_exist_is_none(place: Place) -> None:
    assert await place.ec2.describe_eni(EniId("eni-00000000000000000")) is None


async def test_several_enis_are_described_by_one_call_and_those_that_do_not_exist_are_left_out(
    place: Place,
) -> None:
    one, other = await place.create("t-8", 1), await place.create("t-9")
    before = place.ec2.calls["DescribeNetworkInterfaces"]
    found = await place.ec2.describe_enis([other.id, EniId("eni-00000000000000000"), one.id])
    assert place.ec2.calls["DescribeNetworkInterfaces"] == before + 1
    assert {facts.id: facts.cidrs for facts in found} == {one.id: one.cidrs, other.id: ()}
    assert await place.ec2.describe_enis([]) == ()


async def test_attach_assign_unassign_detach_delete(place: Place) -> None:
    eni = await place.create("t-3", 1)
    attachment = await place.ec2.attach_eni(eni.id, place.instance, device=1, card=0)
    await place.ec2.set_delete_on_termination(eni.id, attachment)
    attached = {one.id: one for one in await place.ec2.describe_attached(place.instance)}
    assert attached[eni.id].attachment == attachment
    assert attached[eni.id].device == 1
    if place.name != "moto":
        assert attached[eni.id].delete_on_termination is True

    given = await place.ec2.assign_addresses(eni.id, 4)
    assert len(given) == 4
    assert not set(given) & set(eni.cidrs)
    assert f"{eni.primary}/32" not in given
    more = await place.ec2.assign_addresses(eni.id, 2)
    assert len(more) == 2
    assert not set(more) & {*given, *eni.cidrs}

    await place.ec2.unassign_addresses(eni.id, given)
    left = await place.ec2.describe_eni(eni.id)
    assert left is not None
    assert set(left.cidrs) == {*eni.cidrs, *more}

    await place.ec2.detach_eni(attachment)
    await place.ec2.detach_eni(attachment)
    await place.ec2.delete_eni(eni.id)
    await place.ec2.delete_eni(eni.id)
    assert await place.ec2.describe_eni(eni.id) is None


async def test_left_behind_are_only_unattached_enis_with_our_tag(place: Place) -> None:
    mine = await place.create("t-4")
    used = await place.create("t-5")
    await place.ec2.attach_eni(used.id, place.instance, device=1, card=0)
    await place.ec2.create_eni(
        subnet=place.subnet,
        groups=(),
        secondary_count=0,
        description="of another node",
        tags={INSTANCE_TAG: "i-00000000000000000"},
        token="t-6",
    )
    assert [eni.id for eni in await place.ec2.describe_left_behind(place.instance)] == [mine.id]


async def test_tags_can_be_added(place: Place) -> None:
    eni = await place.create("t-7")
    await place.ec2.tag_eni(eni.id, {"one": "1", "two": "2"})
    described = await place.ec2.describe_eni(eni.id)
    assert described is not None
    assert {"one": "1", "two": "2"}.items() <= described.tags.items()


async def test_limits_of_an_instance_type(place: Place) -> None:
    limits = await place.ec2.describe_limits(place.instance_type)
    assert (limits.enis_max, limits.ipv4_per_eni, limits.is_nitro) == (3, 10, True)


async def test_an_unknown_instance_type_is_refused(place: Place) -> None:
    with pytest.raises(PermanentError) as caught:
        await place.ec2.describe_limits("x0.tiny")
    assert caught.value.reason is Reason.EC2_REFUSED


async def test_a_subnet_tells_its_cidr_zone_and_free_addresses(place: Place) -> None:
    before = await place.ec2.describe_subnet(place.subnet)
    assert before.cidr == place.subnet_cidr
    assert before.az.endswith("a")
    await place.create("t-8", 2)
    assert (await place.ec2.describe_subnet(place.subnet)).free <= before.free


async def test_an_unknown_attachment_is_detached_already(place: Place) -> None:
    await place.ec2.detach_eni("eni-attach-00000000000000000")


async def test_attaching_to_an_unknown_instance_is_refused_with_its_code(place: Place) -> None:
    eni = await place.create("t-9")
    with pytest.raises(PermanentError) as caught:
        await place.ec2.attach_eni(eni.id, InstanceId("i-00000000000000000"), device=1, card=0)
    assert (caught.value.reason, caught.value.code) == (Reason.EC2_REFUSED, "InvalidInstanceID.NotFound")


async def test_calls_are_counted_by_action_and_the_subnet_is_asked_once(place: Place) -> None:
    for _ in range(3):
        await place.ec2.describe_attached(place.instance)
    assert dict(place.ec2.calls) == {"DescribeNetworkInterfaces": 3, "DescribeSubnets": 1}
