"""The kernel port: one suite for the fake and for rtnetlink in namespaces that the test makes itself."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.kernel_worlds import FakeWorld, RealWorld, World
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.adapters.kernel_wiring import STEPS
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import (
    difference,
    find_link,
    probe,
    setup_eni,
    sweep,
    sweep_links,
    teardown_eni,
    unwire,
    wire,
)
from vpccni.datapath.names import alias_of, veth_name_of
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import Applied, Difference, LeaseWiring, Observed, Route, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.model import Cidr
from vpccni.ports import Kernel

ENIS = [eni(0), eni(1)]


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


async def wire_one(kernel: Kernel, one: LeaseWiring) -> Applied:
    return await kernel.apply(wire(one, ENIS, SETTINGS))


async def settle_node(world: World, kernel: Kernel) -> None:
    """Both ENIs plugged, and everything that does not depend on pods in place."""
    for device in (0, 1):
        world.plug(eni(device).mac, f"eth{device}")
    await kernel.apply(difference(desired([], ENIS, SETTINGS, VPC), await kernel.observe()))


def ours(observed: Observed) -> list[str]:
    return [link.ifname for link in observed.links if link.alias.startswith("vpccni:")]


async def refusal(kernel: Kernel, one: LeaseWiring) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        await wire_one(kernel, one)
    return caught.value


async def test_a_wired_sandbox_is_as_its_lease_says(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    seen = (await wire_one(kernel, one)).sandboxes[one.lease]
    assert seen.host_ifname == veth_name_of("eni", one.key, one.pod)
    assert seen.alias == alias_of(one.key)
    assert seen.netns_inode > 0
    found = (await kernel.apply(probe(one, SETTINGS))).probed[one.lease]
    assert found.problems == ()
    assert (found.netns_inode, found.host_ifindex) == (seen.netns_inode, seen.host_ifindex)
    observed = await kernel.observe()
    link = next(link for link in observed.links if link.ifindex == seen.host_ifindex)
    assert (link.ifname, link.mac, link.alias, link.kind) == (
        seen.host_ifname,
        seen.host_mac,
        seen.alias,
        "veth",
    )
    assert (link.is_up, link.mtu, link.rp_filter) == (True, 9001, 1)


async def test_after_one_application_there_is_no_difference(world, kernel):
    for device in (0, 1):
        world.plug(eni(device).mac, f"eth{device}")
    leases = [lease(number, netns=world.add_netns(), device=number % 2) for number in range(3)]
    for one in leases:
        await wire_one(kernel, one)
    wanted = desired(leases, ENIS, SETTINGS, VPC)
    first = difference(wanted, await kernel.observe())
    assert not first.is_empty
    await kernel.apply(first)
    again = difference(wanted, await kernel.observe())
    assert again.is_empty
    assert again.absent == ()
    assert [(link.eni, link.ifname) for link in again.enis_ready] == [("eni-0", "eth0"), ("eni-1", "eth1")]


async def test_wiring_again_changes_nothing(world, kernel):
    await settle_node(world, kernel)
    one = lease(1, netns=world.add_netns())
    first = await wire_one(kernel, one)
    before = world.dump(one.netns)
    assert (await wire_one(kernel, one)).sandboxes == first.sandboxes
    assert world.dump(one.netns) == before


async def test_wiring_and_unwiring_and_sweeping_leaves_nothing(world, kernel):
    await settle_node(world, kernel)
    path = world.add_netns()
    before = world.dump(path)
    one = lease(1, netns=path)
    seen = (await wire_one(kernel, one)).sandboxes[one.lease]
    await kernel.apply(unwire(one))
    observed = await kernel.observe()
    assert ours(observed) == [seen.host_ifname]
    assert [route for route in observed.routes if route.table == POD_TABLE] == []
    assert [rule for rule in observed.rules if rule.priority == 1536] == []
    gone = await kernel.apply(sweep([lease(1, netns=path, ifindex=seen.host_ifindex)]))
    assert gone.removed_veths == (seen.host_ifindex,)
    assert world.dump(path) == before


async def test_taking_away_what_is_not_there_succeeds(world, kernel):
    one = lease(1, netns="/nowhere", ifindex=4711)
    await kernel.apply(unwire(one))
    assert (await kernel.apply(sweep([one]))).removed_veths == (4711,)
    await kernel.apply(teardown_eni(eni(1)))


@pytest.mark.parametrize("step", STEPS)
async def test_whichever_step_fails_the_kernel_is_as_it_was(world, step):
    settling = await world.open()
    await settle_node(world, settling)
    one = lease(1, netns=world.add_netns())
    before = world.dump(one.netns)

    def fail(name: str) -> None:
        if name == step:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    refused = await refusal(await world.open(fail), one)
    assert refused.reason == Reason.KERNEL_REFUSED
    assert refused.detail == f"{step}: No buffer space available [ENOBUFS]"
    assert world.dump(one.netns) == before
    kernel = await world.open()
    await wire_one(kernel, one)
    assert (await kernel.apply(probe(one, SETTINGS))).probed[one.lease].problems == ()


async def test_the_steps_are_those_that_are_named(world):
    await settle_node(world, await world.open())
    done: list[str] = []
    await wire_one(await world.open(done.append), lease(1, netns=world.add_netns()))
    assert tuple(done) == STEPS


async def test_an_interface_that_is_not_ours_is_left_alone(world, kernel):
    path = world.add_netns()
    world.add_foreign_interface(path, "eth0")
    before = world.dump(path)
    assert (await refusal(kernel, lease(1, netns=path))).reason == Reason.INTERFACE_EXISTS
    assert world.dump(path) == before


async def test_the_veth_of_another_lease_in_the_same_sandbox_is_replaced(world, kernel):
    """1. ADD assigns .21. 2. DEL. 3. ADD for the same sandbox assigns .99 while the veth still stands."""
    await settle_node(world, kernel)
    path = world.add_netns()
    first = lease(1, netns=path)
    await wire_one(kernel, first)
    await kernel.apply(unwire(first))
    second = lease(2, netns=path, container=first.key.container_id, pod="pod-1", address="10.0.1.99")
    await wire_one(kernel, second)
    assert (await kernel.apply(probe(second, SETTINGS))).probed[second.lease].problems == ()
    assert difference(desired([second], ENIS, SETTINGS, VPC), await kernel.observe()).is_empty


async def test_the_veth_of_a_recreated_pods_old_sandbox_makes_way(world, kernel):
    """1. A pod's sandbox is wired. 2. DEL. 3. The pod is created again, and its old veth still stands."""
    old = lease(1, netns=world.add_netns(), pod="web-0")
    new = lease(2, netns=world.add_netns(), pod="web-0")
    before = (await wire_one(kernel, old)).sandboxes[old.lease]
    await kernel.apply(unwire(old))
    after = (await wire_one(kernel, new)).sandboxes[new.lease]
    assert before.host_ifname == after.host_ifname
    assert before.host_ifindex != after.host_ifindex
    observed = await kernel.observe()
    assert ours(observed) == [after.host_ifname]
    # The sweep for the old lease comes late and must not meet the new veth.
    await kernel.apply(sweep([lease(1, pod="web-0", ifindex=after.host_ifindex)]))
    assert ours(await kernel.observe()) == [after.host_ifname]


@pytest.mark.parametrize("alias", ["", "made by another"])
async def test_a_foreign_link_with_the_veths_name_is_named_and_left_alone(world, kernel, alias):
    one = lease(1, netns=world.add_netns())
    name = veth_name_of("eni", one.key, one.pod)
    world.plug("02:00:00:00:ee:01", name, alias)
    before = world.dump(one.netns)
    refused = await refusal(kernel, one)
    assert refused.reason == Reason.KERNEL_REFUSED
    assert name in refused.detail
    assert world.dump(one.netns) == before


async def test_a_veth_without_alias_is_known_by_its_mac_after_a_crash(world, kernel):
    """1. The agent dies between making the veth and giving it its alias. 2. The ADD comes again."""
    one = lease(1, netns=world.add_netns())
    seen = (await wire_one(kernel, one)).sandboxes[one.lease]
    world.forget_alias(seen.host_ifname)
    again = (await wire_one(kernel, one)).sandboxes[one.lease]
    assert again == seen
    assert ours(await kernel.observe()) == [seen.host_ifname]


async def test_a_namespace_that_is_gone_is_told_as_gone(world, kernel):
    path = world.add_netns()
    world.remove_netns(path)
    for each in (path, "/nowhere/at/all", ""):
        assert (await refusal(kernel, lease(1, netns=each))).reason == Reason.NETNS_GONE


async def test_a_left_over_rule_of_the_address_does_not_win(world, kernel):
    """The address moved to another ENI, and a rule of its former holder stayed behind."""
    world.add_rule(Rule(priority=1536, table=7, src=Cidr("10.0.1.21/32")))
    await wire_one(kernel, lease(1, netns=world.add_netns()))
    found = [rule.table for rule in (await kernel.observe()).rules if rule.priority == 1536]
    assert found == [2]


async def test_foreign_objects_survive_a_whole_repair(world, kernel):
    foreign = [
        Rule(priority=100, table=50, dst=Cidr("192.168.7.0/24")),
        Rule(priority=1536, table=2, src=Cidr("172.16.0.1/32")),
        Rule(priority=512, table=254, dst=Cidr("10.0.1.21/32")),
    ]
    for rule in foreign:
        world.add_rule(rule)
    world.plug("02:00:00:00:ee:01", "foreign0")
    world.plug("02:00:00:00:ee:02", "eni00000000000", "not ours")
    await settle_node(world, kernel)
    observed = await kernel.observe()
    assert set(foreign) <= set(observed.rules)
    assert {"foreign0", "eni00000000000"} <= {link.ifname for link in observed.links}


async def test_a_route_by_a_link_that_has_gone_is_refused(world, kernel):
    """What was looked at may be gone when it is changed."""
    await settle_node(world, kernel)
    gone = Route(table=POD_TABLE, dst=Cidr("10.0.77.77/32"), ifindex=1_000_000)
    with pytest.raises(PermanentError) as told:
        await kernel.apply(Difference(routes_set=(gone,)))
    assert told.value.reason == Reason.KERNEL_REFUSED
    assert gone.dst not in {route.dst for route in (await kernel.observe()).routes}


async def test_an_eni_without_a_link_is_missing_and_then_ready(world, kernel):
    change = setup_eni(eni(1), SETTINGS)
    first = await kernel.apply(change)
    assert (first.missing_links, first.enis) == (("eni-1",), {})
    world.plug(eni(1).mac, "eth1")
    second = await kernel.apply(change)
    assert second.missing_links == ()
    assert second.enis["eni-1"][0] == "eth1"
    observed = await kernel.observe()
    link = find_link(observed.links, eni(1).mac)
    assert link is not None
    assert (link.mtu, link.is_up, link.rp_filter) == (9001, True, 2)
    assert [route.dst for route in observed.routes if route.table == 2] == ["0.0.0.0/0", "10.0.1.1/32"] or [
        route.dst for route in observed.routes if route.table == 2
    ] == ["10.0.1.1/32", "0.0.0.0/0"]
    assert Rule(priority=32765, table=2, src=Cidr("10.0.1.10/32")) in observed.rules
    await kernel.apply(teardown_eni(eni(1)))
    assert not any(rule.priority == 32765 for rule in (await kernel.observe()).rules)


async def test_setting_up_an_eni_again_changes_nothing(world, kernel):
    await settle_node(world, kernel)
    before = world.dump()
    await kernel.apply(setup_eni(eni(1), SETTINGS))
    assert world.dump() == before


async def test_veths_go_with_their_namespace(world, kernel):
    one = lease(1, netns=world.add_netns())
    await wire_one(kernel, one)
    world.remove_netns(one.netns)
    async with asyncio.timeout(10):
        while ours(await kernel.observe()):
            await asyncio.sleep(0.01)
    found = (await kernel.apply(probe(one, SETTINGS))).probed[one.lease]
    assert found.netns_inode == 0
    assert found.host_ifindex == 0
    assert found.problems


async def test_a_standing_veth_without_a_lease_is_swept(world, kernel):
    for number in range(3):
        await wire_one(kernel, lease(number, netns=world.add_netns()))
    observed = await kernel.observe()
    kept = desired([lease(1)], [], SETTINGS, (), ended=[lease(0), lease(2)])
    assert len(difference(kept, observed).veths_delete) == 2
    # Of a veth whose lease the log does not have nobody can tell that it has ended.
    assert difference(desired([lease(1)], [], SETTINGS, ()), observed).veths_delete == ()
    await kernel.apply(sweep_links(observed.links))
    assert ours(await kernel.observe()) == []


@pytest.mark.parametrize("is_half_made", [False, True])
async def test_a_veth_that_nobody_wrote_down_is_swept_by_name(world, kernel, is_half_made):
    """1. The agent dies while it wires. 2. The lease is ended. 3. The pod's next sandbox is not touched."""
    one = lease(1, netns=world.add_netns(), pod="web-0")
    seen = (await wire_one(kernel, one)).sandboxes[one.lease]
    if is_half_made:
        world.forget_alias(seen.host_ifname)
    await kernel.apply(sweep([lease(9, pod="web-0")]))
    assert seen.host_ifindex in {link.ifindex for link in (await kernel.observe()).links}
    assert (await kernel.apply(sweep([one]))).removed_veths == ()
    assert seen.host_ifindex not in {link.ifindex for link in (await kernel.observe()).links}


async def test_links_are_told_as_they_come_and_go(world, kernel):
    world.plug("02:00:00:00:ee:01", "before0")
    told: list[tuple[str, str]] = []

    async def until(kind: str, ifname: str):
        async for change in changes:
            told.append((change.kind, change.link.ifname))
            if told[-1] == (kind, ifname):
                return change
        raise AssertionError(told)

    changes: Any = kernel.link_changes()
    async with asyncio.timeout(10):
        await until("added", "before0")
        world.plug("02:00:00:00:ee:02", "after0")
        assert (await until("added", "after0")).link.mac == "02:00:00:00:ee:02"
        world.unplug("02:00:00:00:ee:02", "after0")
        await until("removed", "after0")
    await changes.aclose()


async def test_many_sandboxes_at_once(world, kernel):
    leases = [lease(number, netns=world.add_netns(), device=number % 2) for number in range(20)]
    async with asyncio.TaskGroup() as group:
        for one in leases:
            group.create_task(wire_one(kernel, one))
    observed = await kernel.observe()
    assert len(ours(observed)) == 20
    assert len([route for route in observed.routes if route.table == POD_TABLE]) == 20
    assert len([rule for rule in observed.rules if rule.priority == 1536]) == 10


async def test_one_bad_sandbox_does_not_keep_others_from_being_wired(world, kernel):
    good = lease(1, netns=world.add_netns())
    both = desired([good, lease(2, netns="/nowhere")], ENIS, SETTINGS, ())
    with pytest.raises(PermanentError) as caught:
        await kernel.apply(difference(both, await kernel.observe(), rewire=True))
    assert caught.value.reason == Reason.NETNS_GONE
    assert len(ours(await kernel.observe())) == 1


async def test_a_cancelled_wiring_leaves_nothing(world, kernel):
    one = lease(1, netns=world.add_netns())
    before = world.dump(one.netns)
    for turns in range(4):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(wire_one(kernel, one))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        if task.cancelled():
            assert world.dump(one.netns) == before
        else:
            await kernel.apply(unwire(one))
            await kernel.apply(sweep_links((await kernel.observe()).links))
