"""Looking for living sandboxes: one suite for the fake and for rtnetlink in namespaces that the test makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.contract.kernel_worlds import FakeWorld, RealWorld, World
from tests.original.wiring import WIRING
from tests.unit.datapath.builders import SETTINGS, eni, lease
from vpccni.datapath.difference import unwire, wire
from vpccni.datapath.names import alias_of, host_mac_of, host_veth_name, pod_mac_of
from vpccni.datapath.objects import LeaseWiring, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.evidence import HostVeth
from vpccni.model import Cidr, PodRef
from vpccni.ports import Kernel

POD = PodRef("default", "web-0")
VETH = "eni0d7763386da"
"""What the original calls the host veth of default/web-0."""
ADDRESS = "10.0.1.77"


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.netns)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World = FakeWorld() if request.param == "fake" else RealWorld()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def kernel(world: World) -> Kernel:
    return await world.open()


async def wire_ours(kernel: Kernel, one: LeaseWiring) -> None:
    await kernel.apply(wire(one, [eni(0), eni(1)], SETTINGS))


async def only_veth(kernel: Kernel, *paths: str) -> HostVeth:
    found = await kernel.survey("eni", paths)
    (veth,) = found.veths
    return veth


async def test_a_node_without_pods_shows_none(world, kernel):
    world.plug("02:00:00:00:00:01", "eth0")
    found = await kernel.survey("eni", [])
    assert (found.veths, found.from_tables, found.ruled, found.unreadable) == ((), {}, (), ())


async def test_a_pod_of_ours_is_found_with_both_its_ends(world, kernel):
    path = world.add_netns()
    one = lease(1, netns=path)
    await wire_ours(kernel, one)
    address = one.bindings[0].address
    found = await kernel.survey("eni", [path])
    assert found.from_tables == {address: 2}
    assert found.ruled == ()
    assert found.unreadable == ()
    (veth,) = found.veths
    assert veth == HostVeth(
        ifindex=veth.ifindex,
        ifname=host_veth_name("eni", "default", "pod-1"),
        mac=host_mac_of(one.key),
        alias=alias_of(one.key),
        netns=path,
        netns_inode=world.inode(path),
        has_peer=True,
        pod_ifname="eth0",
        pod_mac=pod_mac_of(one.key, address),
        inside=(address,),
        routed=(address,),
    )
    assert veth.ifindex in {link.ifindex for link in (await kernel.observe()).links}


async def test_a_pod_of_the_original_is_found_with_both_its_ends(world, kernel):
    path = world.add_netns()
    assert world.wire_as_original(POD, path, ADDRESS, table=3) == VETH
    found = await kernel.survey("eni", [path])
    assert found.from_tables == {ADDRESS: 3}
    assert found.ruled == (ADDRESS,)
    (veth,) = found.veths
    assert (veth.ifname, veth.alias, veth.has_peer) == (VETH, "", True)
    assert (veth.netns, veth.netns_inode) == (path, world.inode(path))
    assert (veth.pod_ifname, veth.inside, veth.routed) == ("eth0", (ADDRESS,), (ADDRESS,))
    assert veth.mac
    assert veth.pod_mac
    assert veth.mac != veth.pod_mac


async def test_a_pod_of_the_original_on_the_primary_has_no_from_rule(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    found = await kernel.survey("eni", [path])
    assert (found.from_tables, found.ruled) == ({}, (ADDRESS,))


@pytest.mark.parametrize("until", WIRING)
async def test_a_half_wired_pod_of_the_original_shows_what_it_has(world, kernel, until):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS, table=2, until=until)
    found = await kernel.survey("eni", [path])
    done = WIRING[: WIRING.index(until)]
    assert [veth.ifname for veth in found.veths] == ([VETH] if "create_veth" in done else [])
    for veth in found.veths:
        assert veth.has_peer
        assert (veth.netns, veth.pod_ifname) == (path, "eth0")
        assert veth.inside == ((ADDRESS,) if "pod_address" in done else ())
        assert veth.routed == ((ADDRESS,) if "host_route" in done else ())
    assert found.ruled == ((ADDRESS,) if "to_rule" in done else ())
    assert found.from_tables == ({ADDRESS: 2} if "from_rule" in done else {})


async def test_what_a_half_done_del_of_the_original_leaves_is_told(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS, table=2)
    world.unwire_as_original(ADDRESS, table=2, until="from_rule")
    found = await kernel.survey("eni", [path])
    assert (found.ruled, found.from_tables) == ((), {ADDRESS: 2})
    world.unwire_as_original(ADDRESS, table=2)
    found = await kernel.survey("eni", [path])
    assert (found.ruled, found.from_tables) == ((), {})
    (veth,) = found.veths
    assert (veth.routed, veth.inside) == ((), (ADDRESS,))


async def test_rules_outlive_the_pod_and_are_told(world, kernel):
    """A pod's namespace ended and no DEL came: its veth and route go with it, its rules stay."""
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS, table=2)
    world.remove_netns(path)
    async with asyncio.timeout(10):
        while (found := await kernel.survey("eni", [])).veths:
            await asyncio.sleep(0.01)
    assert (found.ruled, found.from_tables) == ((ADDRESS,), {ADDRESS: 2})


async def test_a_namespace_is_found_without_being_named(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    veth = await only_veth(kernel)
    assert veth.netns
    assert (veth.netns_inode, veth.inside) == (world.inode(path), (ADDRESS,))


async def test_a_namespace_that_nobody_finds_leaves_what_the_node_shows(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    world.hide(path)
    veth = await only_veth(kernel)
    assert veth.has_peer
    assert (veth.netns, veth.netns_inode, veth.pod_ifname, veth.pod_mac, veth.inside) == ("", 0, "", "", ())
    assert veth.routed == (ADDRESS,)
    assert (await only_veth(kernel, path)).inside == (ADDRESS,)


async def test_a_path_that_is_gone_is_nothing_to_tell(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    found = await kernel.survey("eni", ["/nowhere", path])
    assert found.unreadable == ()
    assert found.veths[0].netns == path


async def test_the_route_and_the_address_inside_speak_for_themselves(world, kernel):
    path = world.add_netns()
    one = lease(1, netns=path)
    await wire_ours(kernel, one)
    address = one.bindings[0].address
    world.lose_routes(address)
    veth = await only_veth(kernel, path)
    assert (veth.routed, veth.inside) == ((), (address,))
    await kernel.apply(wire(one, [eni(1)], SETTINGS))
    world.lose_inside(path, address)
    veth = await only_veth(kernel, path)
    assert (veth.routed, veth.inside) == ((address,), ())


async def test_an_unwired_pod_of_ours_still_shows_its_veth(world, kernel):
    """What a hold of a lease that has just ended looks like: neither route nor rule, the namespace lives."""
    path = world.add_netns()
    one = lease(1, netns=path)
    await wire_ours(kernel, one)
    await kernel.apply(unwire(one))
    found = await kernel.survey("eni", [path])
    assert found.from_tables == {}
    (veth,) = found.veths
    assert (veth.alias, veth.routed, veth.inside) == (alias_of(one.key), (), (one.bindings[0].address,))


async def test_a_pod_of_the_original_that_we_hold_or_took_over_is_found_under_any_prefix(world, kernel):
    """Its veth keeps its name and gets an alias of ours, which is enough to know it by."""
    path = world.add_netns()
    name = world.wire_as_original(POD, path, ADDRESS)
    alias = f"vpccni:held-{ADDRESS}:eth0"
    world.set_alias(name, alias)
    (veth,) = (await kernel.survey("xyz", [path])).veths
    assert (veth.ifname, veth.alias) == (name, alias)
    assert (veth.netns, veth.inside, veth.routed) == (path, (ADDRESS,), (ADDRESS,))


async def test_only_links_that_may_be_host_veths_are_told(world, kernel):
    """A foreign veth of such a name is told, for nobody can say whose it is; an alias of ours is enough."""
    world.plug("02:00:00:00:ee:01", "veth0123456789a")
    world.plug("02:00:00:00:ee:02", "eni0123456789")
    world.plug("02:00:00:00:ee:03", "eni0123456789AB")
    world.plug("02:00:00:00:ee:04", "eni0123456789a")
    world.plug("02:00:00:00:ee:05", "pod7", "vpccni:abc:eth0")
    world.plug("02:00:00:00:ee:06", "ens7", "made by another")
    found = await kernel.survey("eni", [])
    assert [(veth.ifname, veth.has_peer, veth.netns) for veth in found.veths] == [
        ("eni0123456789a", True, ""),
        ("pod7", True, ""),
    ]
    assert [veth.ifname for veth in (await kernel.survey("veth", [])).veths] == ["veth0123456789a", "pod7"]


async def test_a_veth_with_both_ends_on_the_node_has_no_peer_elsewhere(world, kernel):
    world.plug_pair("eni0123456789a")
    veth = await only_veth(kernel)
    assert (veth.has_peer, veth.netns, veth.inside) == (False, "", ())


async def test_rules_of_others_are_not_taken_for_pods(world, kernel):
    world.add_rule(Rule(priority=512, table=51200))
    world.add_rule(Rule(priority=512, table=254, dst=Cidr("10.0.9.0/24")))
    world.add_rule(Rule(priority=512, table=7, dst=Cidr("10.0.9.9/32")))
    world.add_rule(Rule(priority=513, table=254, dst=Cidr("10.0.9.10/32")))
    world.add_rule(Rule(priority=1536, table=2, src=Cidr("10.0.9.0/28")))
    world.add_rule(Rule(priority=1535, table=254, src=Cidr("10.0.9.11/32")))
    world.add_rule(Rule(priority=1536, table=2, src=Cidr("10.0.9.12/32")))
    world.add_rule(Rule(priority=1536, table=9, src=Cidr("10.0.9.12/32")))
    found = await kernel.survey("eni", [])
    assert (found.ruled, found.from_tables) == ((), {"10.0.9.12": 2})


async def test_a_hostile_pod_confuses_nobody_but_itself(world, kernel):
    """A pod with NET_ADMIN renames its interface, takes others' addresses, and makes veths named as ours are."""
    hostile, honest = world.add_netns(), world.add_netns()
    world.wire_as_original(PodRef("default", "hostile"), hostile, "10.0.1.66", table=2)
    world.wire_as_original(POD, honest, ADDRESS, table=2)
    name = "$(x);'\\n"
    world.rename_inside(hostile, "eth0", name)
    world.add_pair_inside(hostile, VETH, "eth0")
    world.add_inside(hostile, VETH, "10.0.1.99")
    for address in (ADDRESS, "169.254.7.7", "127.0.0.9"):
        world.add_inside(hostile, name, address)
    found = await kernel.survey("eni", [hostile, honest])
    assert found.unreadable == ()
    told = {veth.ifname: veth for veth in found.veths}
    assert told.keys() == {VETH, host_veth_name("eni", "default", "hostile")}
    assert (told[VETH].netns, told[VETH].inside, told[VETH].routed) == (honest, (ADDRESS,), (ADDRESS,))
    theirs = told[host_veth_name("eni", "default", "hostile")]
    assert (theirs.netns, theirs.pod_ifname) == (hostile, name)
    assert theirs.inside == ("10.0.1.66", ADDRESS)
    assert theirs.routed == ("10.0.1.66",)


async def test_a_pod_whose_host_veth_is_another_pods_by_number_is_not_mixed_up(world, kernel):
    """All interfaces have the same index in their sandboxes: only the namespace's number tells them apart."""
    paths = [world.add_netns() for _ in range(5)]
    for number, path in enumerate(paths):
        world.wire_as_original(PodRef("default", f"web-{number}"), path, f"10.0.1.{30 + number}")
    found = await kernel.survey("eni", list(reversed(paths)))
    assert [(veth.netns, veth.inside, veth.routed) for veth in found.veths] == [
        (path, (f"10.0.1.{30 + number}",), (f"10.0.1.{30 + number}",)) for number, path in enumerate(paths)
    ]


async def test_a_survey_changes_nothing(world, kernel):
    ours, theirs = world.add_netns(), world.add_netns()
    await wire_ours(kernel, lease(1, netns=ours))
    world.wire_as_original(POD, theirs, ADDRESS, table=2)
    before = world.dump(ours, theirs)
    first = await kernel.survey("eni", [ours, theirs])
    assert await kernel.survey("eni", [ours, theirs]) == first
    assert world.dump(ours, theirs) == before


async def test_the_originals_interface_is_not_wired_over(world, kernel):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS, table=2)
    before = world.dump(path)
    with pytest.raises(PermanentError) as caught:
        await wire_ours(kernel, lease(1, netns=path, pod="web-0"))
    assert caught.value.reason == Reason.INTERFACE_EXISTS
    assert world.dump(path) == before
