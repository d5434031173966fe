"""The verbs, on the whole agent on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.api.shapes import check_error, check_result
from tests.unit.loops.rig import Rig, lease_id
from vpccni.adapters.kernel_wiring import STEPS
from vpccni.adapters.log_format import LogFault
from vpccni.datapath.numbers import POD_TABLE
from vpccni.lab.ec2 import FOR_EVER, Fault, ImdsFault
from vpccni.lab.sim.loop import run_virtual
from vpccni.loops import serve_cni

TINY = "t3.small"
FULL = 9
"""Pods on a t3.small: three ENIs of three secondary addresses."""


def reason_of(answer):
    check_error(answer)
    return answer["reason"]


async def answered(task):
    async with asyncio.timeout(120):
        return await task


async def full_rig(deleted: int = 0) -> Rig:
    """A node without a free address, on which some pods were deleted just now: their addresses rest."""
    rig = await Rig(TINY).up()
    for number in range(FULL):
        await rig.add(f"pod-{number}")
    await asyncio.sleep(10)
    for number in range(deleted):
        await rig.cni("DEL", f"pod-{number}")
    return rig


# -- ADD --------------------------------------------------------------------------------------------


def test_an_add_answers_with_a_valid_result_and_a_durable_wired_lease():
    async def scenario():
        rig = await Rig().up()
        status, result = await rig.cni("ADD", "web")
        assert status == 200
        check_result(result, "1.0.0")
        lease = rig.held("web")
        assert result["ips"][0]["address"] == f"{lease.bindings[0].address}/32"
        assert "address_assigned" in rig.kinds()
        await asyncio.sleep(1)
        assert rig.held("web").wired is not None
        await rig.stop()

    run_virtual(scenario())


def test_concurrent_adds_of_one_sandbox_get_one_lease():
    async def scenario():
        rig = await Rig().up()
        async with asyncio.TaskGroup() as group:
            adds = [group.create_task(rig.cni("ADD", "web")) for _ in range(10)]
        assert {add.result()[0] for add in adds} == {200}
        assert len({str(add.result()[1]) for add in adds}) == 1
        assert rig.kinds().count("address_assigned") == 1
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("on_secondary", [False, True], ids=["primary", "secondary"])
def test_a_failed_wiring_step_is_undone_and_its_address_is_free_at_once(step, on_secondary):
    async def scenario():
        rig = await Rig().up()
        for number in range(9 if on_secondary else 0):
            await rig.add(f"filler-{number}")
        await asyncio.sleep(20)  # The growth that they caused is over.
        rig.kernel.add_netns("/run/netns/web")
        before, rests = rig.kernel.dump(), len(rig.state.rests)
        rig.kernel.fail(step)
        status, answer = await rig.cni("ADD", "web")
        if status == 200:
            assert not on_secondary  # The only reason for a step not to be reached.
            await rig.stop()
            return
        assert reason_of(answer) == "kernel_refused"
        assert answer["code"] == 11
        assert step in answer["details"]
        assert rig.kernel.dump() == before
        assert rig.lease("web") is None
        assert len(rig.state.rests) == rests
        assert not rig.state.standing
        assert await rig.add("web")
        await rig.stop()

    run_virtual(scenario())


def test_a_namespace_that_is_gone_costs_no_address_a_cooldown():
    async def scenario():
        rig = await Rig().up()
        rig.kernel.add_netns("/run/netns/ghost")
        owned = sum(len(held.cidrs) for held in rig.state.enis.values())
        for _ in range(owned + 5):
            body = {"command": "ADD", "containerId": "ghost", "netns": "/run/netns/nowhere", "ifname": "eth0",
                    "config": {"cniVersion": "1.1.0", "name": "aws-cni"}}  # fmt: skip
            status, answer = await rig.send(body)
            assert (status, answer["code"]) == (400, 102)
            assert reason_of(answer) == "netns_gone"
        assert not rig.state.rests
        assert rig.lease("ghost") is None
        await rig.stop()

    run_virtual(scenario())


def test_an_unforeseen_error_while_wiring_is_undone_and_the_agent_lives():
    async def scenario():
        rig = await Rig().up()

        def fault(step):
            if step == "host_route":
                raise ZeroDivisionError

        rig.kernel.fault = fault
        status, answer = await rig.cni("ADD", "web")
        assert (status, answer["code"]) == (400, 104)
        assert rig.lease("web") is None
        rig.kernel.fault = None
        assert await rig.add("web")
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("step", ["open_netns", "create_veth", "host_route", "done"])
def test_a_repeated_add_that_fails_does_not_end_the_lease_that_was_acknowledged(step):
    async def scenario():
        rig = await Rig().up()
        address = await rig.add("web")
        first = lease_id(rig.lease("web"))
        rig.kernel.fail(step)
        status, answer = await rig.cni("ADD", "web")
        assert (status, reason_of(answer)) == (503, "kernel_refused")
        assert lease_id(rig.lease("web")) == first
        assert await rig.add("web") == address
        await rig.stop()

    run_virtual(scenario())


def test_a_repeated_add_whose_caller_goes_away_does_not_end_the_lease():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        first = lease_id(rig.lease("web"))
        rig.kernel.latency_s = 1.0
        task = asyncio.get_running_loop().create_task(rig.cni("ADD", "web"))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(5)
        assert lease_id(rig.lease("web")) == first
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.5, 1.5])
def test_a_caller_that_goes_away_in_the_middle_leaves_no_lease_and_nothing_in_the_kernel(after_s):
    """Cancelled while queued, while wiring is under way, and at its end."""

    async def scenario():
        rig = await Rig().up(settle_s=20)
        rig.kernel.add_netns("/run/netns/web")
        rig.kernel.latency_s = 1.0
        before = set(rig.kernel.state.routes)
        task = asyncio.get_running_loop().create_task(rig.cni("ADD", "web"))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        rig.kernel.latency_s = 0.0
        await asyncio.sleep(0 if after_s < 1 else 5)
        if after_s >= 1:
            assert not task.cancelled()  # It was over by then: acknowledged, so it stays.
            assert rig.lease("web") is not None
        else:
            assert rig.lease("web") is None
            await asyncio.sleep(5)
            assert not rig.state.standing
            assert not any(link.alias for link in rig.kernel.state.links.values())
            pod_routes = [route for route in rig.kernel.state.routes if route.table == POD_TABLE]
            assert pod_routes == [route for route in before if route.table == POD_TABLE]
        await rig.stop()

    run_virtual(scenario())


def test_a_caller_that_goes_away_while_it_waits_for_an_address_gives_up_its_place():
    async def scenario():
        rig = await full_rig(deleted=2)
        loop = asyncio.get_running_loop()
        first = loop.create_task(rig.cni("ADD", "first"))
        await asyncio.sleep(0.1)
        second = loop.create_task(rig.cni("ADD", "second"))
        await asyncio.sleep(0.1)
        assert rig.live.writer.waiting == 2
        first.cancel()
        await asyncio.wait([first])
        assert rig.live.writer.waiting == 1
        assert (await answered(second))[0] == 200
        assert rig.lease("first") is None
        await rig.stop()

    run_virtual(scenario())


# -- DEL --------------------------------------------------------------------------------------------


def test_a_del_ends_the_lease_and_takes_the_route_and_the_second_one_succeeds_too():
    async def scenario():
        rig = await Rig().up()
        address = await rig.add("web")
        assert any(route.dst == f"{address}/32" for route in rig.kernel.state.routes)
        assert await rig.cni("DEL", "web") == (200, {})
        assert rig.lease("web") is None
        assert not any(
            route.dst == f"{address}/32" and route.table == POD_TABLE for route in rig.kernel.state.routes
        )
        assert await rig.cni("DEL", "web") == (200, {})
        assert await rig.cni("DEL", "never-seen") == (200, {})
        assert rig.kinds().count("lease_ended") == 1
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("at_s", [0.0, 0.2, 0.9, 1.1])
def test_a_del_during_an_add_cancels_it_waits_for_its_undo_and_succeeds(at_s):
    """1. ADD is under way (1 s of wiring).  2. DEL comes.  3. ADD is refused, DEL succeeds, nothing is left."""

    async def scenario():
        rig = await Rig().up()
        rig.kernel.latency_s = 1.0
        add = asyncio.get_running_loop().create_task(rig.cni("ADD", "web"))
        await asyncio.sleep(at_s)
        assert await rig.cni("DEL", "web") == (200, {})
        assert rig.lease("web") is None
        status, answer = await add
        if at_s < 1:
            assert (status, reason_of(answer)) == (503, "cancelled")
        else:
            assert status == 200
        rig.kernel.remove_netns("/run/netns/web")
        rig.kernel.latency_s = 0.0
        await asyncio.sleep(10)
        assert not rig.state.standing
        await rig.stop()

    run_virtual(scenario())


def test_a_del_gives_up_all_adds_before_it_and_none_after_it():
    async def scenario():
        rig = await Rig().up()
        loop = asyncio.get_running_loop()
        rig.kernel.latency_s = 1.0
        before = [loop.create_task(rig.cni("ADD", "web")) for _ in range(3)]
        await asyncio.sleep(0)
        delete = loop.create_task(rig.cni("DEL", "web"))
        await asyncio.sleep(0)
        after = loop.create_task(rig.cni("ADD", "web"))
        assert [reason_of((await add)[1]) for add in before] == ["cancelled"] * 3
        assert (await delete)[0] == 200
        assert (await after)[0] == 200
        assert rig.lease("web") is not None
        await rig.stop()

    run_virtual(scenario())


def test_a_del_does_not_wait_behind_adds_that_wait_for_an_address():
    async def scenario():
        rig = await full_rig(deleted=2)
        loop = asyncio.get_running_loop()
        adds = [loop.create_task(rig.cni("ADD", "late")) for _ in range(2)]
        await asyncio.sleep(1)
        began = rig.now()
        assert await rig.cni("DEL", "late") == (200, {})
        assert rig.now() - began < 0.5
        assert [reason_of((await add)[1]) for add in adds] == ["cancelled"] * 2
        await rig.stop()

    run_virtual(scenario())


def test_an_add_after_a_del_of_the_same_sandbox_gets_a_new_lease_and_another_address():
    async def scenario():
        rig = await Rig().up()
        address = await rig.add("web")
        first = rig.held("web").id
        await rig.cni("DEL", "web")
        assert await rig.add("web") != address  # The first one rests.
        assert rig.held("web").id != first
        await rig.stop()

    run_virtual(scenario())


def test_two_interfaces_of_one_container_are_two_attachments():
    async def scenario():
        rig = await Rig().up()
        rig.kernel.add_netns("/run/netns/web")
        for ifname in ("eth0", "net1"):
            status, answer = await rig.send(
                {
                    "command": "ADD",
                    "containerId": "web",
                    "netns": "/run/netns/web",
                    "ifname": ifname,
                    "args": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=web",
                    "config": {"cniVersion": "1.1.0", "name": "aws-cni"},
                }
            )
            assert status == 200, answer
            check_result(answer, "1.1.0")
        assert len(rig.state.leases) == 2
        await rig.stop()

    run_virtual(scenario())


# -- the log fails ----------------------------------------------------------------------------------


def test_on_a_full_disk_an_add_is_refused_and_a_del_is_served():
    async def scenario():
        rig = await Rig().up()
        await rig.add("old")
        rig.store.faults.plan(LogFault.DISK_FULL)
        status, answer = await rig.cni("ADD", "new")
        assert (status, reason_of(answer), answer["code"]) == (503, "log_disk_full", 11)
        rig.store.faults.plan(LogFault.DISK_FULL)
        assert await rig.cni("DEL", "old") == (200, {})
        assert rig.lease("old") is None
        assert not await rig.spool.entries()
        assert await rig.add("new")
        await rig.stop()

    run_virtual(scenario())


def test_while_the_disk_is_full_status_says_so_and_no_longer_than_that():
    async def scenario():
        rig = await Rig().up()
        assert await rig.verb("STATUS") == (200, {})
        rig.store.capacity_bytes = rig.store.used_bytes + 10
        assert (await rig.cni("ADD", "web"))[0] == 503
        for _ in range(3):
            status, answer = await rig.verb("STATUS")
            assert (status, answer["code"], reason_of(answer)) == (503, 50, "log_disk_full")
            await asyncio.sleep(10)
        rig.store.capacity_bytes = None
        await asyncio.sleep(6)  # Tried by itself: nobody sends an ADD to a node that is not ready.
        assert await rig.verb("STATUS") == (200, {})
        assert await rig.add("web")
        await rig.stop()

    run_virtual(scenario())


def test_a_del_that_the_log_does_not_take_is_spooled_and_carried_out_when_it_does():
    async def scenario():
        rig = await Rig().up()
        await rig.add("old")
        rig.store.faults.plan(LogFault.DISK_FULL, LogFault.DISK_FULL)
        assert await rig.cni("DEL", "old") == (200, {})
        assert len(await rig.spool.entries()) == 1
        await asyncio.sleep(30)
        assert not await rig.spool.entries()
        assert rig.lease("old") is None
        await rig.stop()

    run_virtual(scenario())


def test_a_del_that_neither_the_log_nor_the_spool_takes_is_tried_again_by_the_runtime():
    async def scenario():
        rig = await Rig().up()
        await rig.add("old")
        rig.spool.is_broken = True
        rig.store.faults.plan(LogFault.DISK_FULL, LogFault.DISK_FULL)
        status, answer = await rig.cni("DEL", "old")
        assert (status, answer["code"]) == (503, 11)
        assert rig.lease("old") is not None
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("fault", [LogFault.LOST, LogFault.APPLIED])
def test_after_an_unknown_commit_the_add_has_one_lease_and_the_del_none(fault):
    async def scenario():
        rig = await Rig().up()
        rig.store.faults.plan(fault)
        address = await rig.add("web")
        assert rig.held("web").bindings[0].address == address
        rig.store.faults.plan(fault)
        assert await rig.cni("DEL", "web") == (200, {})
        assert rig.lease("web") is None
        assert rig.kinds().count("address_assigned") == rig.kinds().count("lease_ended") == 1
        await rig.stop()

    run_virtual(scenario())


def test_over_a_newer_log_adds_are_refused_dels_are_spooled_and_nothing_is_written():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        await rig.stop()
        head = len(rig.store.events)
        await rig.start()
        rig.live.readiness.must_not_change = ("a_new_kind",)
        head = len(rig.store.events)
        status, answer = await rig.cni("ADD", "late")
        assert (status, reason_of(answer), answer["code"]) == (503, "log_newer", 11)
        assert await rig.cni("DEL", "web") == (200, {})
        assert len(await rig.spool.entries()) == 1
        status, answer = await rig.verb("STATUS")
        assert (status, answer["code"], reason_of(answer)) == (503, 50, "log_newer")
        await asyncio.sleep(1)
        kinds = rig.kinds()[head:]
        assert "lease_ended" not in kinds
        assert "address_assigned" not in kinds
        assert "effect_intended" not in kinds
        await rig.stop()

    run_virtual(scenario())


# -- CHECK ------------------------------------------------------------------------------------------


def damage_netns(rig, address):
    rig.kernel.state.netns.pop("/run/netns/web")


def damage_interface(rig, address):
    rig.kernel.state.netns["/run/netns/web"].interfaces.clear()


def damage_address(rig, address):
    rig.kernel.state.netns["/run/netns/web"].interfaces["eth0"].addresses.clear()


def damage_route(rig, address):
    rig.kernel.state.routes = {each for each in rig.kernel.state.routes if each.dst != f"{address}/32"}


def damage_veth(rig, address):
    rig.kernel.state.links = {
        index: link for index, link in rig.kernel.state.links.items() if not link.alias.startswith("vpccni:")
    }


def damage_rule(rig, address):
    rig.kernel.state.rules = [each for each in rig.kernel.state.rules if each.src != f"{address}/32"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_netns, "/run/netns/web"),
        (damage_interface, "no interface eth0"),
        (damage_address, "does not have the address"),
        (damage_route, "not routed"),
        (damage_veth, "no interface eni"),
        (damage_rule, "no rule from"),
    ],
)
def test_check_sees_each_kind_of_damage_and_says_which(damage, said):
    async def scenario():
        rig = await Rig().up()
        for number in range(9):  # The next pod comes on the second ENI, which has rules.
            await rig.add(f"filler-{number}")
        address = await rig.add("web")
        prev = {"ips": [{"address": f"{address}/32"}]}
        assert await rig.verb("CHECK", "web", prevResult=prev) == (200, {})
        before = rig.state.head
        damage(rig, address)
        status, answer = await rig.verb("CHECK", "web", prevResult=prev)
        assert (status, answer["code"], reason_of(answer)) == (400, 100, "check_failed")
        assert said in answer["msg"]
        assert rig.lease("web") is not None
        assert rig.state.head == before  # Looking changes nothing.
        await rig.stop()

    run_virtual(scenario())


def test_check_compares_with_the_previous_result_and_knows_strangers():
    async def scenario():
        rig = await Rig().up()
        await rig.add("web")
        status, answer = await rig.verb("CHECK", "web", prevResult={"ips": [{"address": "10.9.9.9/32"}]})
        assert (status, reason_of(answer)) == (400, "check_failed")
        assert "prevResult" in answer["msg"]
        assert (await rig.verb("CHECK", "web"))[0] == 200
        status, answer = await rig.verb("CHECK", "stranger")
        assert (status, answer["code"], reason_of(answer)) == (400, 3, "unknown_container")
        await rig.stop()

    run_virtual(scenario())


# -- host ports --------------------------------------------------------------------------------------

NO_PORTMAP: dict[str, Any] = {"capabilities": {"portMappings": True}}
"""What libcni passes on of our entry when no plugin of the list serves host ports."""
WANTS_PORTS = NO_PORTMAP | {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}


def test_a_pod_with_a_host_port_is_refused_where_nobody_serves_it_and_holds_no_address():
    async def scenario():
        rig = await Rig().up()
        rig.kernel.add_netns("/run/netns/web")
        for verb_count in (1, 2):
            status, answer = await rig.verb("ADD", "web", **WANTS_PORTS)
            assert (status, answer["code"]) == (400, 105)
            assert reason_of(answer) == "portmap_missing"
            assert "8080/tcp" in answer["msg"]
            await asyncio.sleep(1)
            assert rig.kinds().count("add_requested") == rig.kinds().count("add_failed") == verb_count
        assert rig.lease("web") is None
        assert "address_assigned" not in rig.kinds()
        assert await rig.verb("DEL", "web", **WANTS_PORTS) == (200, {})
        await rig.stop()

    run_virtual(scenario())


def test_a_pod_without_host_ports_runs_where_nobody_serves_them():
    async def scenario():
        rig = await Rig().up()
        rig.kernel.add_netns("/run/netns/web")
        status, _ = await rig.verb("ADD", "web", **NO_PORTMAP, runtimeConfig={"portMappings": []})
        assert status == 200
        await rig.stop()

    run_virtual(scenario())


def test_status_tells_that_nobody_serves_host_ports_and_does_not_fail():
    """A STATUS that fails makes the node NotReady, and its pods are moved away."""

    async def scenario():
        rig = await Rig().up()
        assert rig.live.status()["problems"]["host_ports"] == ""
        status, answer = await rig.verb("STATUS", **NO_PORTMAP)
        assert status == 200
        (warning,) = answer["warnings"]
        assert warning["reason"] == "portmap_missing"
        assert "portmap" in warning["msg"]
        assert "portmap" in rig.live.status()["problems"]["host_ports"]
        assert await rig.verb("STATUS") == (200, {})
        assert rig.live.status()["problems"]["host_ports"] == ""
        await rig.stop()

    run_virtual(scenario())


def test_an_old_pods_del_does_not_tell_what_the_conflist_says_now():
    async def scenario():
        rig = await Rig().up()
        await rig.verb("STATUS", **NO_PORTMAP)
        await rig.verb("DEL", "old")
        assert rig.live.status()["problems"]["host_ports"]
        await rig.add("web")
        assert not rig.live.status()["problems"]["host_ports"]
        await rig.stop()

    run_virtual(scenario())


# -- STATUS, GC -------------------------------------------------------------------------------------


def test_status_is_50_with_the_reason_until_adds_can_be_served_and_not_when_the_agent_stops():
    """An agent that stops hangs up, as it does on the other verbs: the executable knows from the marker whether the
    node was ready, and an upgrade of the agent does not make it NotReady."""

    async def scenario():
        rig = Rig()
        rig.region.imds.inject(ImdsFault(kind="latency", seconds=0.5))
        await rig.start()
        status, answer = await rig.verb("STATUS")
        assert (status, answer["code"], reason_of(answer)) == (503, 50, "recovering")
        while not rig.live.recovery.is_done:
            await asyncio.sleep(0.01)
        status, answer = await rig.verb("STATUS")
        assert (status, answer["code"], reason_of(answer)) == (503, 50, "node_not_initialized")
        assert "IMDS" in answer["msg"]
        await rig.ready()
        assert await rig.verb("STATUS") == (200, {})
        for number in range(18):
            await rig.add(f"pod-{number}")
        assert await rig.verb("STATUS") == (200, {})
        rig.live.cni.is_stopping = rig.live.readiness.is_stopping = True
        status, _ = await rig.verb("STATUS")
        assert status == 0
        rig.live.cni.is_stopping = rig.live.readiness.is_stopping = False
        await rig.stop()

    run_virtual(scenario())


def test_gc_doubts_what_is_not_listed_and_stops_doubting_what_is_listed_again():
    async def scenario():
        rig = await Rig().up()
        for pod in ("a", "b"):
            await rig.add(pod)
        assert await rig.gc("a") == (200, {})
        assert rig.held("b").source == ""  # The list may be older than the lease.
        await asyncio.sleep(serve_cni.GC_LATE_S + 1)
        assert await rig.gc("a") == (200, {})
        assert rig.held("a").source == ""
        assert rig.held("b").source == "gc_list"
        assert await rig.gc("a", "b") == (200, {})
        assert rig.held("b").source == ""
        await rig.stop()

    run_virtual(scenario())


def test_gc_without_a_list_or_of_another_network_doubts_nobody():
    async def scenario():
        rig = await Rig().up()
        await rig.add("a")
        assert await rig.verb("GC") == (200, {})
        config = {"cniVersion": "1.1.0", "name": "other", "cni.dev/valid-attachments": []}
        assert await rig.send({"command": "GC", "config": config}) == (200, {})
        assert rig.held("a").source == ""
        await rig.stop()

    run_virtual(scenario())


# -- bounds, stopping -------------------------------------------------------------------------------


def test_more_requests_than_the_bound_are_refused_and_counted_down_again(monkeypatch):
    monkeypatch.setattr(serve_cni, "IN_FLIGHT_MAX", 3)

    async def scenario():
        rig = await Rig().up()
        rig.kernel.latency_s = 1.0
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(rig.cni("ADD", f"pod-{number}")) for number in range(4)]
        await asyncio.sleep(0.1)
        status, answer = await rig.cni("DEL", "x")
        assert (status, answer["code"], reason_of(answer)) == (503, 11, "too_busy")
        assert sorted([(await task)[0] for task in tasks]) == [200, 200, 200, 503]
        rig.kernel.latency_s = 0.0
        assert (await rig.cni("DEL", "x"))[0] == 200
        await rig.stop()

    run_virtual(scenario())


def test_at_a_stop_waiting_adds_are_hung_up_on_at_once_and_leave_no_lease():
    async def scenario():
        rig = await full_rig(deleted=3)
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(rig.cni("ADD", f"late-{number}")) for number in range(3)]
        await asyncio.sleep(1)
        assert rig.live.writer.waiting == 3
        began = rig.now()
        rig.live.begin_stop()
        assert [await task for task in waiting] == [(0, {})] * 3
        assert rig.now() - began < 0.5
        assert await rig.cni("ADD", "later") == (0, {})
        assert await rig.cni("DEL", "pod-8") == (200, {})  # A DEL is served to the last.
        await rig.live.cni.wait_idle()
        await rig.stop()
        assert len(rig.state.leases) == FULL - 4
        assert rig.kinds().count("add_failed") == 3

    run_virtual(scenario())


def test_dels_and_check_are_served_while_ec2_imds_and_the_api_server_are_down():
    async def scenario():
        rig = await Rig().up()
        address = await rig.add("web")
        await rig.stop()
        rig.region.faults.inject(Fault(action="*", kind="hang", times=FOR_EVER))
        await rig.start()
        began = rig.now()
        assert await rig.add("web") == address
        assert await rig.add("other")
        assert (await rig.verb("CHECK", "web"))[0] == 200
        assert await rig.cni("DEL", "web") == (200, {})
        assert rig.now() - began < 1
        await rig.stop()

    run_virtual(scenario())
