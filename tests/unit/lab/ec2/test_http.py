"""The region behind real sockets, asked by the SDK's own client: its serializer and parser are the judge."""

import asyncio
import contextlib
import time

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import web
from botocore.exceptions import BotoCoreError, ClientError

from vpccni.lab.ec2 import Fault, ImdsFault, Timing
from vpccni.lab.ec2.http import ec2_app, imds_app

pytestmark = pytest.mark.slow  # making an SDK client takes half a second

_SESSION = get_session()  # keeps the service model loaded between the tests


@contextlib.asynccontextmanager
async def serving(app):
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def sdk(url, *, timeout_s=5.0):
    config = AioConfig(
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        retries={"total_max_attempts": 1},
        parameter_validation=True,
    )
    async with _SESSION.create_client(
        "ec2",
        region_name="lab-1",
        endpoint_url=url,
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=config,
    ) as client:
        yield client


@contextlib.asynccontextmanager
async def ec2_of(bench, **settings):
    async with serving(ec2_app(bench.region, time.time)) as url, sdk(url, **settings) as client:
        yield client


async def test_the_sdk_walks_an_eni_through_its_whole_life(bench):
    async with ec2_of(bench) as ec2:
        made = await ec2.create_network_interface(
            SubnetId=bench.subnet_a.id,
            Description="aws-K8S-<x> & more",
            Groups=[bench.instance.primary_eni.groups[0].id],
            SecondaryPrivateIpAddressCount=2,
            TagSpecifications=[
                {
                    "ResourceType": "network-interface",
                    "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b.c/d", "Value": "zwei & drei"}],
                }
            ],
        )
        eni_id = made["NetworkInterface"]["NetworkInterfaceId"]
        hung = await ec2.attach_network_interface(
            NetworkInterfaceId=eni_id, InstanceId=bench.instance.id, DeviceIndex=1, NetworkCardIndex=0
        )
        await ec2.modify_network_interface_attribute(
            NetworkInterfaceId=eni_id,
            Attachment={"AttachmentId": hung["AttachmentId"], "DeleteOnTermination": True},
        )
        await ec2.modify_network_interface_attribute(
            NetworkInterfaceId=eni_id, SourceDestCheck={"Value": False}
        )
        assigned = await ec2.assign_private_ip_addresses(
            NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=3
        )
        new = [a["PrivateIpAddress"] for a in assigned["AssignedPrivateIpAddresses"]]
        await ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, PrivateIpAddresses=new[:2])
        await ec2.create_tags(Resources=[eni_id], Tags=[{"Key": "e", "Value": ""}])
        await ec2.delete_tags(Resources=[eni_id], Tags=[{"Key": "a"}])
        (seen,) = (await ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id]))["NetworkInterfaces"]

        assert seen["Description"] == "aws-K8S-<x> & more"
        assert seen["TagSet"] == [{"Key": "b.c/d", "Value": "zwei & drei"}, {"Key": "e", "Value": ""}]
        assert seen["Attachment"]["DeleteOnTermination"] is True
        assert seen["SourceDestCheck"] is False
        assert abs(seen["Attachment"]["AttachTime"].timestamp() - time.time()) < 30
        assert [a["PrivateIpAddress"] for a in seen["PrivateIpAddresses"]] == list(
            bench.region.world.enis[eni_id].addresses
        )
        assert [a["Primary"] for a in seen["PrivateIpAddresses"]] == [True, False, False, False]

        await ec2.detach_network_interface(AttachmentId=hung["AttachmentId"])
        await ec2.delete_network_interface(NetworkInterfaceId=eni_id)
        with pytest.raises(ClientError) as gone:
            await ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])
        assert gone.value.response["Error"] == {
            "Code": "InvalidNetworkInterfaceID.NotFound",
            "Message": f"The networkInterface ID '{eni_id}' does not exist",
        }
        assert gone.value.response["ResponseMetadata"]["RequestId"]


async def test_the_sdk_reads_back_exactly_what_the_model_answered(make_bench):
    bench = make_bench("p4d.24xlarge")
    eni_id = bench.create(Ipv4PrefixCount=2, SecondaryPrivateIpAddressCount=0)["NetworkInterfaceId"]
    bench.attach(eni_id, 1, NetworkCardIndex=3)
    async with ec2_of(bench) as ec2:
        for action, method, params in [
            ("DescribeNetworkInterfaces", ec2.describe_network_interfaces, {}),
            ("DescribeInstances", ec2.describe_instances, {"InstanceIds": [bench.instance.id]}),
            ("DescribeSubnets", ec2.describe_subnets, {}),
            ("DescribeVpcs", ec2.describe_vpcs, {}),
            ("DescribeSecurityGroups", ec2.describe_security_groups, {}),
            ("DescribeInstanceTypes", ec2.describe_instance_types, {}),
        ]:
            over_the_wire = await method(**params)
            over_the_wire.pop("ResponseMetadata")
            assert over_the_wire == bench.ok(action, **params), action


async def test_filters_and_pages_survive_the_wire(bench):
    ids = [bench.create()["NetworkInterfaceId"] for _ in range(7)]
    async with ec2_of(bench) as ec2:
        pages = ec2.get_paginator("describe_network_interfaces").paginate(
            Filters=[
                {"Name": "status", "Values": ["available", "gone"]},
                {"Name": "vpc-id", "Values": [bench.subnet_a.vpc.id]},
            ],
            PaginationConfig={"PageSize": 5},
        )
        seen = [[e["NetworkInterfaceId"] for e in page["NetworkInterfaces"]] async for page in pages]
    assert seen == [ids[:5], ids[5:]]


async def test_a_repeated_creation_with_one_token_is_one_eni_over_the_wire_too(bench):
    async with ec2_of(bench) as ec2:
        made = [
            await ec2.create_network_interface(SubnetId=bench.subnet_a.id, ClientToken="t") for _ in range(2)
        ]
    assert made[0]["NetworkInterface"] == made[1]["NetworkInterface"]
    assert len(bench.region.world.enis) == 2


async def test_a_lost_reply_looks_like_a_broken_connection_and_was_applied(bench):
    bench.region.faults.inject(Fault(action="CreateNetworkInterface", kind="lost_reply"))
    bench.region.faults.inject(Fault(action="CreateNetworkInterface", kind="dropped_request"))
    async with ec2_of(bench) as ec2:
        for _ in range(2):
            with pytest.raises((BotoCoreError, aiohttp.ClientError, OSError)):
                await ec2.create_network_interface(SubnetId=bench.subnet_a.id)
    assert len(bench.region.world.enis) == 2  # the primary and the one whose reply was lost


async def test_a_hanging_call_does_not_keep_the_server_from_stopping(bench):
    bench.region.faults.inject(Fault(action="DescribeSubnets", kind="hang"))
    started = time.monotonic()
    async with ec2_of(bench, timeout_s=0.2) as ec2:
        with pytest.raises((BotoCoreError, aiohttp.ClientError, OSError)):
            await ec2.describe_subnets()
    assert time.monotonic() - started < 3.0


async def test_the_region_moves_on_by_itself_while_nobody_calls(make_bench):
    bench = make_bench(timing=Timing(link_delay_s=0.03, attach_settle_s=0.06))
    eni_id = bench.create(now=time.time())["NetworkInterfaceId"]
    async with serving(ec2_app(bench.region, time.time)):
        bench.attach(eni_id, 1, time.time())
        assert len(bench.events) == 1
        async with asyncio.timeout(2.0):
            while bench.region.pending_until() is not None:  # the region has no clock to ask
                await asyncio.sleep(0.01)
    assert [event.eni_id for event in bench.events] == [bench.instance.primary_eni.id, eni_id]
    assert bench.region.world.enis[eni_id].attachment.status == "attached"


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({}, 400, "MissingAction"),
        ({"Action": "MakeCoffee"}, 400, "InvalidAction"),
        ({"Action": "RunInstances", "MinCount": "1", "MaxCount": "1"}, 400, "InvalidAction"),
        ({"Action": "DescribeSubnets", "Colour": "red"}, 400, "UnknownParameter"),
        ({"Action": "DescribeSubnets", "Filter.1.Name": "x", "Filter.1": "y"}, 400, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "Filter": "y"}, 400, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "Filter.a.Name": "y"}, 400, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "MaxResults": "many"}, 400, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "DryRun": "perhaps"}, 400, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "DryRun": "true"}, 412, "DryRunOperation"),
        ({"Action": "AttachNetworkInterface"}, 400, "MissingParameter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_malformed_request_is_refused_and_changes_nothing(bench, form, status, code):
    async with (
        serving(ec2_app(bench.region, time.time)) as url,
        aiohttp.ClientSession() as http,
        http.post(url, data=form or None) as reply,
    ):
        body = await reply.text()
        assert reply.status == status
    assert f"<Code>{code}</Code>" in body
    assert len(bench.region.world.enis) == 1


async def test_the_control_end_shows_the_state_and_takes_faults(bench):
    async with serving(ec2_app(bench.region, time.time)) as url, aiohttp.ClientSession(url) as http:
        async with http.post("/lab/faults", json={"action": "DescribeVpcs", "kind": "throttle"}) as reply:
            assert reply.status == 201
        async with http.post("/lab/faults", json={"action": "DescribeVpcs", "kind": "fire"}) as reply:
            assert reply.status == 400
        async with http.post("/", data={"Action": "DescribeVpcs"}) as reply:
            assert reply.status == 503
        async with http.post("/", data={"Action": "DescribeVpcs"}) as reply:
            assert reply.status == 200
        async with http.get("/lab/state") as reply:
            state = await reply.json()
        async with http.get("/lab/calls", params={"after": "1"}) as reply:
            (call,) = await reply.json()
    assert state["calls"]["by_outcome"] == {"RequestLimitExceeded": 1, "ok": 1}
    assert [eni["id"] for eni in state["enis"]] == [bench.instance.primary_eni.id]
    assert (call["number"], call["action"], call["outcome"]) == (2, "DescribeVpcs", "ok")


async def test_metadata_is_served_with_tokens_and_breaks_when_told(bench):
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    app = imds_app(bench.region, bench.instance.id, time.time)
    async with serving(app) as url, aiohttp.ClientSession(url) as http:
        async with http.get("/latest/meta-data/instance-id") as reply:
            assert reply.status == 401
        async with http.put("/latest/api/token", headers=ttl) as reply:
            token = {"X-aws-ec2-metadata-token": await reply.text()}
        async with http.get("/latest/meta-data/instance-id", headers=token) as reply:
            assert await reply.text() == bench.instance.id
        bench.region.imds.inject(ImdsFault(kind="hang", times=1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await http.get("/latest/meta-data/mac", headers=token)
        async with http.get("/latest/meta-data/mac", headers=token) as reply:
            assert await reply.text() == bench.instance.primary_eni.mac
