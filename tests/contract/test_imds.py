"""The IMDS port over HTTP against the lab, against the lab in this process, and against a rude server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.ec2 import serving
from tests.fakes.imds import region_imds
from vpccni.adapters.imds import ImdsV2
from vpccni.errors import Reason, TransientError
from vpccni.lab.ec2 import Ec2Fault, ImdsFault, Region, small_region
from vpccni.lab.ec2.http import imds_app
from vpccni.model import Mac


@dataclass(frozen=True)
class Node:
    imds: ImdsV2
    region: Region
    id: str


@pytest.fixture(params=["lab-http", "lab-in-process"])
async def node(request: Any) -> AsyncIterator[Node]:
    region = small_region()
    instance = region.launch_instance(next(iter(region.world.subnets)), "m5.large", now=time.monotonic()).id
    if request.param == "lab-http":
        async with serving(imds_app(region, instance, time.monotonic)) as url:
            imds = ImdsV2(url)
            yield Node(imds, region, instance)
            await imds.close()
        return
    imds = region_imds(region, instance, time.monotonic)
    yield Node(imds, region, instance)
    await imds.close()


async def test_the_machine_tells_who_it_is_in_three_requests_and_a_token(node: Node) -> None:
    facts = await node.imds.instance()
    primary = node.region.world.instances[node.id].primary_eni
    assert (facts.id, facts.type, facts.region, facts.az) == (node.id, "m5.large", "lab-1", "lab-1a")
    assert facts.primary_mac == primary.mac
    assert facts.vpc_cidrs == ("10.0.0.0/16",)
    assert node.imds.requests == 4


async def test_a_cidr_that_the_vpc_gets_later_is_told_by_one_request(node: Node) -> None:
    primary = node.region.world.instances[node.id].primary_eni
    mac = Mac(primary.mac)
    assert await node.imds.vpc_cidrs(mac) == ("10.0.0.0/16",)
    primary.subnet.vpc.cidrs.append("100.64.0.0/16")
    node.region.world.history.record(node.region.world.instances[node.id], time.monotonic())
    before = node.imds.requests
    assert await node.imds.vpc_cidrs(mac) == ("10.0.0.0/16", "100.64.0.0/16")
    assert node.imds.requests == before + 1


async def test_reading_the_macs_is_one_request(node: Node) -> None:
    await node.imds.attached_macs()
    before = node.imds.requests
    assert await node.imds.attached_macs() == (node.region.world.instances[node.id].primary_eni.mac,)
    assert node.imds.requests == before + 1


async def test_the_addresses_and_prefixes_of_an_eni_are_told(node: Node) -> None:
    primary = node.region.world.instances[node.id].primary_eni
    (mac,) = await node.imds.attached_macs()
    for count in ({"SecondaryPrivateIpAddressCount": 1}, {"Ipv4PrefixCount": 2}):
        params = {"NetworkInterfaceId": primary.id, **count}
        assert not isinstance(
            node.region.perform("AssignPrivateIpAddresses", params, time.monotonic()), Ec2Fault
        )
    assert await node.imds.prefixes(Mac(mac)) == tuple(primary.prefixes)
    assert len(primary.prefixes) == 2
    assert len(await node.imds.addresses(Mac(mac))) == 2


async def test_an_eni_without_prefixes_has_none(node: Node) -> None:
    (mac,) = await node.imds.attached_macs()
    assert await node.imds.prefixes(Mac(mac)) == ()


async def test_a_refused_token_is_renewed_once_and_the_request_repeated(node: Node) -> None:
    await node.imds.attached_macs()
    node.region.imds._tokens.clear()
    assert len(await node.imds.attached_macs()) == 1


@pytest.mark.parametrize("status", [403, 500, 503])
async def test_any_other_status_is_unreachable(node: Node, status: int) -> None:
    node.region.imds.inject(ImdsFault(kind="status", status=status))
    with pytest.raises(TransientError) as caught:
        await node.imds.instance()
    assert caught.value.reason is Reason.IMDS_UNREACHABLE
    node.region.imds.clear()
    assert (await node.imds.instance()).id == node.id


async def test_a_refusal_of_every_token_ends(node: Node) -> None:
    node.region.imds.inject(ImdsFault(kind="status", status=401, path="meta-data"))
    with pytest.raises(TransientError):
        await node.imds.attached_macs()
    assert node.imds.requests == 4


@pytest.mark.slow
async def test_a_hanging_service_is_unreachable_within_two_seconds(node: Node) -> None:
    node.region.imds.inject(ImdsFault(kind="hang", path="macs"))
    before = time.monotonic()
    with pytest.raises(TransientError) as caught:
        await node.imds.attached_macs()
    assert caught.value.reason is Reason.IMDS_UNREACHABLE
    assert time.monotonic() - before < 4


async def test_a_connection_refused_is_unreachable(unused_tcp_port: int) -> None:
    imds = ImdsV2(f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(TransientError):
        await imds.attached_macs()
    await imds.close()


def _server(leaves: dict[str, str]) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            return web.Response(text="token")
        text = leaves.get(request.path.removeprefix("/latest/"))
        return web.Response(status=404) if text is None else web.Response(text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


LEAVES = {
    "meta-data/mac": "02:AA:00:00:00:01",
    "meta-data/instance-id": "i-1",
    "meta-data/instance-type": "m5.large",
    "meta-data/placement/availability-zone": "eu-west-1b",
}


async def test_ipv6_prefixes_are_told_in_their_canonical_form() -> None:
    folder = "meta-data/network/interfaces/macs/02:aa:00:00:00:01/"
    leaves = {folder + "ipv4-prefix": "10.0.0.16/28", folder + "ipv6-prefix": "2001:DB8:0:0:7::/80"}
    async with serving(_server(leaves)) as url:
        imds = ImdsV2(url)
        prefixes = await imds.prefixes(Mac("02:aa:00:00:00:01"))
        await imds.close()
    assert prefixes == ("10.0.0.16/28", "2001:db8:0:0:7::/80")


async def test_a_prefix_that_is_none_is_no_answer() -> None:
    leaves = {"meta-data/network/interfaces/macs/02:aa:00:00:00:01/ipv4-prefix": "<html>"}
    async with serving(_server(leaves)) as url:
        imds = ImdsV2(url)
        with pytest.raises(TransientError):
            await imds.prefixes(Mac("02:aa:00:00:00:01"))
        await imds.close()


@pytest.mark.parametrize(
    ("more", "region"),
    [
        ({}, "eu-west-1"),
        ({"meta-data/placement/region": "eu-west-9"}, "eu-west-9"),
        (
            {"dynamic/instance-identity/document": json.dumps({"region": "eu-west-8", "accountId": "1"})},
            "eu-west-8",
        ),
        ({"dynamic/instance-identity/document": "not json"}, "eu-west-1"),
        ({"dynamic/instance-identity/document": '{"region": 7}'}, "eu-west-1"),
    ],
    ids=["zone", "placement", "document", "no json", "wrong type"],
)
async def test_optional_paths_may_be_absent(more: dict[str, str], region: str) -> None:
    async with serving(_server({**LEAVES, **more})) as url:
        imds = ImdsV2(url)
        facts = await imds.instance()
        await imds.close()
    assert (facts.id, facts.type, facts.region) == ("i-1", "m5.large", region)
    assert (facts.primary_mac, facts.vpc_cidrs) == ("02:aa:00:00:00:01", ())


async def test_vpc_cidrs_are_read_whatever_separates_them_and_sorted_by_number() -> None:
    path = "meta-data/network/interfaces/macs/02:AA:00:00:00:01/vpc-ipv4-cidr-blocks"
    async with serving(_server({**LEAVES, path: "100.64.0.0/16\n10.0.0.0/16 9.0.0.0/24\n"})) as url:
        imds = ImdsV2(url)
        assert (await imds.instance()).vpc_cidrs == ("9.0.0.0/24", "10.0.0.0/16", "100.64.0.0/16")
        await imds.close()


async def test_the_endpoint_comes_from_the_environment_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(_server(LEAVES)) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url + "/")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        imds = ImdsV2()
        assert (await imds.instance()).id == "i-1"
        await imds.close()


async def test_readers_side_by_side_share_one_token(node: Node) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(node.imds.attached_macs())
    assert node.imds.requests == 6
