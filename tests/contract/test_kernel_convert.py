"""Taking over from amazon-vpc-cni-k8s, and handing back: one suite for the fake and for rtnetlink."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from tests.contract.kernel_worlds import FakeWorld, RealWorld, World
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.adapters.kernel_wiring import ALL_STEPS
from vpccni.datapath.convert import farewell
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, probe, sweep, unwire, wire
from vpccni.datapath.names import alias_of, host_veth_name
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import Applied, Desired, Difference, LeaseWiring, PathChange, Route, Rule
from vpccni.errors import PermanentError
from vpccni.model import Address, Cidr, Mac, PodRef
from vpccni.ports import Kernel

ENIS = [eni(0), eni(1)]
WAIT_S = 10.0


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


async def original_pod(
    world: World, kernel: Kernel, number: int = 1, *, device: int = 1, until: str = "done"
) -> LeaseWiring:
    """A pod that the original wired, as a search of the node brings it into the log."""
    one = lease(number, device=device, netns=world.add_netns())
    binding = one.bindings[0]
    world.wire_as_original(one.pod, one.netns, binding.address, table=binding.table, until=until)
    ifname = host_veth_name("eni", one.pod.namespace, one.pod.name)
    link = next(link for link in (await kernel.observe()).links if link.ifname == ifname)
    (veth,) = [veth for veth in (await kernel.survey("eni", [one.netns])).veths if veth.ifname == ifname]
    return msgspec.structs.replace(
        one,
        host_ifname=ifname,
        host_ifindex=link.ifindex,
        alias=alias_of(one.key),
        host_mac=Mac(link.mac),
        pod_mac=veth.pod_mac,
        is_found=True,
    )


def wanted(*leases: LeaseWiring, as_original: bool = False, ended: tuple[LeaseWiring, ...] = ()) -> Desired:
    return desired(leases, ENIS, SETTINGS, VPC, as_original=as_original, ended=ended)


async def converge(kernel: Kernel, want: Desired) -> Applied:
    """Apply the difference; a second look finds nothing more to do."""
    applied = await kernel.apply(difference(want, await kernel.observe()))
    again = difference(want, await kernel.observe())
    assert again.is_empty, again
    return applied


async def settle_node(world: World, kernel: Kernel) -> None:
    for device in (0, 1):
        world.plug(eni(device).mac, f"eth{device}")
    await converge(kernel, wanted())


async def problems_of(kernel: Kernel, one: LeaseWiring, *, as_original: bool = False) -> tuple[str, ...]:
    found = await kernel.apply(probe(one, SETTINGS, as_original=as_original))
    return found.probed[one.lease].problems


def address_of(one: LeaseWiring) -> Address:
    return one.bindings[0].address


def to(one: LeaseWiring) -> Rule:
    return Rule(priority=512, table=254, dst=Cidr(f"{address_of(one)}/32"))


async def routes_to(kernel: Kernel, one: LeaseWiring) -> dict[int, int]:
    dst = f"{address_of(one)}/32"
    return {route.table: route.ifindex for route in (await kernel.observe()).routes if route.dst == dst}


async def rules_of(kernel: Kernel, one: LeaseWiring) -> list[tuple[int, int]]:
    cidr = f"{address_of(one)}/32"
    found = (await kernel.observe()).rules
    return [(rule.priority, rule.table) for rule in found if cidr in (rule.src, rule.dst)]


# --- conversion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 1])
async def test_a_pod_of_the_original_becomes_ours_and_keeps_name_mtu_and_rp_filter(world, kernel, device):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel, device=device)
    before = next(link for link in (await kernel.observe()).links if link.ifindex == one.host_ifindex)
    assert await problems_of(kernel, one)
    applied = await converge(kernel, wanted(one))
    after = next(link for link in (await kernel.observe()).links if link.ifindex == one.host_ifindex)
    assert after == msgspec.structs.replace(before, alias=one.alias)
    assert await routes_to(kernel, one) == {POD_TABLE: one.host_ifindex}
    assert await rules_of(kernel, one) == ([(1536, 2)] if device else [])
    assert await problems_of(kernel, one) == ()
    assert [(removed.kind, removed.text) for removed in applied.removed] == [
        ("rule", f"512:\tfrom all to {address_of(one)} lookup main"),
        ("route", f"{address_of(one)} dev {one.host_ifname} scope link"),
    ]


async def test_nothing_of_the_original_goes_when_something_of_ours_could_not_be_made(world, kernel):
    """1. The node is looked at. 2. A pod's veth goes. 3. Our route to it is refused: all of its objects stay."""
    await settle_node(world, kernel)
    one, other = await original_pod(world, kernel, 1), await original_pod(world, kernel, 2)
    made = difference(wanted(one, other), await kernel.observe())
    world.remove_netns(other.netns)
    async with asyncio.timeout(WAIT_S):
        while other.host_ifindex in {link.ifindex for link in (await kernel.observe()).links}:
            await asyncio.sleep(0.01)
    with pytest.raises(PermanentError):
        await kernel.apply(made)
    assert await routes_to(kernel, one) == {POD_TABLE: one.host_ifindex, 254: one.host_ifindex}
    assert (512, 254) in await rules_of(kernel, one)


async def test_ours_comes_first_and_its_rule_goes_before_the_route_to_which_it_leads(world, kernel):
    """A rule without its route would send packets by main's default route."""
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    dst = Cidr(f"{address_of(one)}/32")
    rule = PathChange(is_removed=True, rule=to(one))
    theirs = PathChange(is_removed=True, route=Route(table=254, dst=dst, ifindex=one.host_ifindex))
    ours = PathChange(route=Route(table=POD_TABLE, dst=dst, ifindex=one.host_ifindex))
    async with listening(world, await world.open()) as (wait_for, heard):
        await converge(kernel, wanted(one))
        await wait_for(theirs)
    assert heard.index(ours) < heard.index(rule) < heard.index(theirs)


@pytest.mark.parametrize("is_new", [False, True])
async def test_while_handing_back_the_route_comes_before_the_rule(world, kernel, is_new):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    if not is_new:
        await kernel.apply(wire(one, ENIS, SETTINGS))
    async with listening(world, await world.open()) as (wait_for, heard):
        if is_new:
            await kernel.apply(wire(one, ENIS, SETTINGS, as_original=True))
        else:
            await converge(kernel, wanted(one, as_original=True))
        await wait_for(PathChange(rule=to(one)))
    (route,) = [
        place for place, change in enumerate(heard) if change.route is not None and change.route.table == 254
    ]
    assert route < heard.index(PathChange(rule=to(one)))


async def test_what_is_gone_already_is_not_told_as_removed(world, kernel):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    made = difference(wanted(one), await kernel.observe())
    world.unwire_as_original(address_of(one), until="from_rule")
    applied = await kernel.apply(made)
    assert [removed.kind for removed in applied.removed] == ["route"]


async def test_what_twenty_dead_pods_left_goes(world, kernel):
    await settle_node(world, kernel)
    dead = [await original_pod(world, kernel, number) for number in range(20)]
    for one in dead:
        world.remove_netns(one.netns)
    async with asyncio.timeout(WAIT_S):
        while (await kernel.survey("eni", [])).veths:
            await asyncio.sleep(0.01)
    applied = await converge(kernel, wanted())
    assert len(applied.removed) == 40
    assert [await rules_of(kernel, one) for one in dead] == [[]] * len(dead)


async def test_a_pod_that_the_log_does_not_know_is_left_as_it_is(world, kernel):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    before = world.dump(one.netns)
    await converge(kernel, wanted())
    assert world.dump(one.netns) == before


@pytest.mark.parametrize("until", ["host_route", "to_rule", "from_rule"])
async def test_a_pod_that_its_plugin_only_half_wired_is_completed(world, kernel, until):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel, until=until)
    await converge(kernel, wanted(one))
    assert await problems_of(kernel, one) == ()


async def test_a_repeated_add_finds_the_interface_that_the_original_made(world, kernel):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    for _ in range(2):
        seen = (await kernel.apply(wire(one, ENIS, SETTINGS))).sandboxes[one.lease]
        assert (seen.host_ifindex, seen.host_ifname) == (one.host_ifindex, one.host_ifname)
        assert (seen.host_mac, seen.pod_mac) == (one.host_mac, one.pod_mac)
        link = next(link for link in (await kernel.observe()).links if link.ifindex == one.host_ifindex)
        assert (link.alias, link.rp_filter) == (one.alias, 0)
        await converge(kernel, wanted(one))
        assert await problems_of(kernel, one) == ()


@pytest.mark.parametrize("are_macs_known", [False, True])
async def test_a_repeated_add_changes_nothing_inside_a_pod_of_the_original(world, kernel, are_macs_known):
    """Without MACs in the log the index tells it; its gateway keeps the MAC of the veth that is there."""
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    if not are_macs_known:
        one = msgspec.structs.replace(one, host_mac=Mac(""), pod_mac=Mac(""))
    before = world.inside(one.netns)
    smaller = msgspec.structs.replace(SETTINGS, pod_mtu=1400)
    seen = (await kernel.apply(wire(one, ENIS, smaller))).sandboxes[one.lease]
    assert seen.host_ifindex == one.host_ifindex
    assert world.inside(one.netns) == before
    await converge(kernel, wanted(one))
    assert await problems_of(kernel, one) == ()


@pytest.mark.parametrize("other", ["vpccni:other:eth0", ""])
async def test_a_veth_that_is_another_ones_by_now_gets_no_alias(world, kernel, other):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    made = difference(wanted(one), await kernel.observe())
    if not other:  # Its name is another one, too.
        (setting,) = made.links_set
        made = msgspec.structs.replace(
            made, links_set=(msgspec.structs.replace(setting, ifname="eni00000000000"),)
        )
    world.set_alias(one.host_ifname, other)
    await kernel.apply(made)
    link = next(link for link in (await kernel.observe()).links if link.ifindex == one.host_ifindex)
    assert link.alias == other


# --- addresses that are used again, and ends -----------------------------------------------------------------


async def test_a_stale_rule_of_a_used_again_address_goes_before_the_add_is_answered(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    world.add_rule(to(one))
    applied = await kernel.apply(wire(one, ENIS, SETTINGS))
    assert [removed.text for removed in applied.removed] == [
        f"512:\tfrom all to {address_of(one)} lookup main"
    ]
    assert await rules_of(kernel, one) == [(1536, 2)]
    assert await problems_of(kernel, one) == ()


async def test_check_tells_of_a_stale_rule_and_a_look_heals_it(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    await kernel.apply(wire(one, ENIS, SETTINGS))
    world.add_rule(to(one))
    assert any("rule of amazon-vpc-cni-k8s" in problem for problem in await problems_of(kernel, one))
    await converge(kernel, wanted(one))
    assert await problems_of(kernel, one) == ()


@pytest.mark.parametrize("is_converted", [False, True])
async def test_the_end_of_a_pod_of_the_original_leaves_nothing(world, kernel, is_converted):
    await settle_node(world, kernel)
    one = await original_pod(world, kernel)
    world.add_rule(Rule(priority=1536, table=7, src=Cidr(f"{address_of(one)}/32")))
    if is_converted:
        await converge(kernel, wanted(one))
    applied = await kernel.apply(unwire(one))
    assert (await rules_of(kernel, one), await routes_to(kernel, one)) == ([], {})
    assert [removed.kind for removed in applied.removed] == ([] if is_converted else ["route", "rule"])
    gone = await kernel.apply(sweep([one]))
    assert gone.removed_veths == (one.host_ifindex,)
    assert (await kernel.survey("eni", [])).veths == ()


async def test_the_end_of_a_pod_leaves_the_route_of_another_sandbox(world, kernel):
    """Its address is another one's by now, which the log does not know."""
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    await kernel.apply(wire(one, ENIS, SETTINGS))
    theirs = world.add_netns()
    world.wire_as_original(PodRef("other", "pod"), theirs, address_of(one), table=2)
    before = (await routes_to(kernel, one))[254]
    seen = await kernel.apply(probe(one, SETTINGS))
    await kernel.apply(unwire(msgspec.structs.replace(one, host_ifindex=seen.probed[one.lease].host_ifindex)))
    assert await routes_to(kernel, one) == {254: before}


async def test_the_veth_of_another_sandbox_of_the_same_name_is_not_swept(world, kernel):
    """1. The log lost pod web-0's veth. 2. The pod was made again, by the original: same name, no alias yet."""
    new = await original_pod(world, kernel)
    for old in (
        msgspec.structs.replace(new, host_ifindex=new.host_ifindex + 1000),
        msgspec.structs.replace(new, host_ifindex=0),
        msgspec.structs.replace(new, host_mac=Mac("0a:ff:00:00:00:01")),
        msgspec.structs.replace(new, host_ifname="eni00000000000"),
    ):
        await kernel.apply(sweep([old]))
        assert new.host_ifindex in {link.ifindex for link in (await kernel.observe()).links}
    await kernel.apply(sweep([new]))
    assert new.host_ifindex not in {link.ifindex for link in (await kernel.observe()).links}


# --- handing back -------------------------------------------------------------------------------------------


async def test_while_handing_back_a_living_pod_gets_the_originals_path_and_loses_it_at_its_end(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    seen = (await kernel.apply(wire(one, ENIS, SETTINGS))).sandboxes[one.lease]
    one = msgspec.structs.replace(one, host_ifindex=seen.host_ifindex)
    await converge(kernel, wanted(one, as_original=True))
    assert await routes_to(kernel, one) == {POD_TABLE: seen.host_ifindex, 254: seen.host_ifindex}
    assert sorted(await rules_of(kernel, one)) == [(512, 254), (1536, 2)]
    assert await problems_of(kernel, one, as_original=True) == ()
    await kernel.apply(unwire(one))
    assert (await rules_of(kernel, one), await routes_to(kernel, one)) == ([], {})


@pytest.mark.parametrize("has_stale_rule", [False, True])
async def test_while_handing_back_a_new_pod_gets_both_paths(world, kernel, has_stale_rule):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    if has_stale_rule:
        world.add_rule(to(one))
    await kernel.apply(wire(one, ENIS, SETTINGS, as_original=True))
    await converge(kernel, wanted(one, as_original=True))
    assert await problems_of(kernel, one, as_original=True) == ()
    assert sorted(await rules_of(kernel, one)) == [(512, 254), (1536, 2)]


@pytest.mark.parametrize("step", ALL_STEPS)
async def test_while_handing_back_whichever_step_fails_the_kernel_is_as_it_was(world, step):
    await settle_node(world, await world.open())
    one = lease(1, netns=world.add_netns())
    before = world.dump(one.netns)

    def fail(name: str) -> None:
        if name == step:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    failing = await world.open(fail)
    with pytest.raises(PermanentError) as refused:
        await failing.apply(wire(one, ENIS, SETTINGS, as_original=True))
    assert refused.value.detail.startswith(f"{step}: ")
    assert world.dump(one.netns) == before


async def test_while_handing_back_the_steps_are_those_that_are_named(world):
    await settle_node(world, await world.open())
    done: list[str] = []
    kernel = await world.open(done.append)
    await kernel.apply(wire(lease(1, netns=world.add_netns()), ENIS, SETTINGS, as_original=True))
    assert tuple(done) == ALL_STEPS


async def test_check_tells_what_the_original_would_lack(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    await kernel.apply(wire(one, ENIS, SETTINGS))
    assert any("no rule 512" in problem for problem in await problems_of(kernel, one, as_original=True))


async def test_coming_back_from_a_hand_back_leaves_ours_alone(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    await kernel.apply(wire(one, ENIS, SETTINGS))
    before = world.dump(one.netns)
    await converge(kernel, wanted(one, as_original=True))
    assert world.dump(one.netns) != before
    await converge(kernel, wanted(one))
    assert world.dump(one.netns) == before


async def test_after_the_farewell_only_the_originals_objects_are_left(world, kernel):
    await settle_node(world, kernel)
    leases = [lease(number, device=number % 2, netns=world.add_netns()) for number in (1, 2)]
    for one in leases:
        await kernel.apply(wire(one, ENIS, SETTINGS))
    want = wanted(*leases, as_original=True)
    await converge(kernel, want)
    bye = farewell(want, await kernel.observe())
    assert [said for said in bye.objections if "firewall" not in said] == []
    await kernel.apply(bye.difference)
    observed = await kernel.observe()
    assert observed.nft.digest == ""
    assert {link.alias for link in observed.links} == {""}
    assert POD_TABLE not in {route.table for route in observed.routes}
    assert Rule(priority=512, table=POD_TABLE) not in observed.rules
    for one in leases:
        assert list(await routes_to(kernel, one)) == [254]
        assert (512, 254) in await rules_of(kernel, one)


# --- what the kernel tells ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(
    world: World, kernel: Kernel
) -> AsyncIterator[tuple[Callable[[PathChange], Awaitable[None]], list[PathChange]]]:
    """Collects what a kernel port tells; gives a function that waits for a change, and the collection.

    What is done through a port need not be told by it: to hear that, listen through a second one.
    """
    heard: list[PathChange] = []
    news = asyncio.Event()
    follower = kernel.path_changes()

    async def follow() -> None:
        async for change in follower:
            heard.append(change)
            news.set()

    async def wait_for(change: PathChange) -> None:
        async with asyncio.timeout(WAIT_S):
            while change not in heard:
                await news.wait()
                news.clear()

    task = asyncio.get_running_loop().create_task(follow())
    try:
        # Nothing tells when a listener begins to hear: something is changed until it does.
        async with asyncio.timeout(WAIT_S):
            priorities = itertools.count(3000)
            while not heard:
                world.add_rule(Rule(priority=next(priorities), table=254, src=Cidr("192.0.2.1/32")))
                await asyncio.sleep(0.01)
        yield wait_for, heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_the_originals_plugin_does_is_told(world, kernel):
    await settle_node(world, kernel)
    async with listening(world, await world.open()) as (wait_for, _):
        one = await original_pod(world, kernel)
        dst = Cidr(f"{address_of(one)}/32")
        route = Route(table=254, dst=dst, ifindex=one.host_ifindex)
        await wait_for(PathChange(route=route))
        await wait_for(PathChange(rule=to(one)))
        await wait_for(PathChange(rule=Rule(priority=1536, table=2, src=dst)))
        world.unwire_as_original(address_of(one), table=2)
        await wait_for(PathChange(is_removed=True, rule=to(one)))
        await wait_for(PathChange(is_removed=True, route=route))


async def test_what_we_do_ourselves_wakes_nobody(world, kernel):
    """Told is what somebody else does after it. One of our threads begins only after the listener did."""
    if isinstance(world, FakeWorld):
        pytest.skip("a port may tell of it, and the fake does")
    await settle_node(world, kernel)
    async with listening(world, kernel) as (wait_for, heard):
        heard.clear()
        leases = [lease(number, netns=world.add_netns()) for number in (1, 2, 3)]
        await asyncio.gather(*(kernel.apply(wire(one, ENIS, SETTINGS)) for one in leases))
        await asyncio.gather(*(kernel.apply(unwire(one)) for one in leases))
        last = Rule(priority=2999, table=254, src=Cidr("192.0.2.1/32"))
        world.add_rule(last)
        await wait_for(PathChange(rule=last))
    assert [change for change in heard if change.rule is None or change.rule.priority < 2999] == []


async def test_an_empty_difference_of_the_original_removes_nothing(world, kernel):
    await settle_node(world, kernel)
    assert (await kernel.apply(Difference())).removed == ()
