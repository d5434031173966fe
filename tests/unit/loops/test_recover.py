"""The agent on a node where somebody lives already: what it does before it changes anything."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from tests.unit.loops.rig import Rig
from vpccni.checkpoint import Mark, parse_checkpoint, render_checkpoint
from vpccni.datapath.names import alias_of, host_veth_name
from vpccni.evidence import CachedResult, Row
from vpccni.lab.ec2 import FOR_EVER, Fault, ImdsFault
from vpccni.lab.sim.loop import run_virtual
from vpccni.model import Address, PodRef, SandboxKey
from vpccni.planner.doctor import examine

MINUTE = 60.0
NETWORK = "aws-cni"


def key_of(pod: str) -> SandboxKey:
    return SandboxKey(NETWORK, pod, "eth0")


def live_as_original(rig: Rig, pod: str, address: str, *, cached: bool = True, **wiring) -> None:
    """A pod that amazon-vpc-cni-k8s has wired, with what the runtime keeps of it."""
    netns = f"/run/netns/{pod}"
    rig.kernel.wire_as_original(PodRef("default", pod), netns=netns, address=address, **wiring)
    if cached:
        rig.runtime.is_readable = True
        rig.runtime.put(
            CachedResult(
                file=f"{NETWORK}-{pod}-eth0",
                key=key_of(pod),
                pod=PodRef("default", pod, f"uid-{pod}"),
                netns=netns,
                addresses=(Address(address),),
                host_ifnames=(host_veth_name("eni", "default", pod),),
                modified_ns=rig.clock.now().wall_ns,
                plugin_types=("aws-cni",),
            )
        )


def row(pod: str, address: str, rig: Rig) -> Row:
    return Row(
        key=key_of(pod),
        address=Address(address),
        pod=PodRef("default", pod),
        allocated_ns=rig.clock.now().wall_ns,
    )


def exported(rig: Rig) -> dict[str, str]:
    """Container id by address, as the checkpoint file says."""
    content, _ = rig.checkpoints.files[0]
    found = parse_checkpoint(content, path="ipam.json")
    return {one.address: one.key.container_id for one in found.rows}


def lose_log(rig: Rig) -> None:
    rig.store.events.clear()
    rig.store.snapshots.clear()


def secondaries(rig: Rig) -> list[str]:
    """Addresses of the primary ENI that a predecessor may have given to its pods."""
    eni = next(iter(rig.instance.enis.values()))
    return list(eni.secondaries)


async def with_predecessor(pods: int) -> Rig:
    """A node whose ENIs hold addresses already, ``pods`` of which living pods of the original have."""
    rig = await Rig().up(settle_s=MINUTE)  # To fill the ENIs.
    await rig.stop()
    lose_log(rig)
    rig.checkpoints.files.clear()
    rig.kernel.state.rules[:] = [
        rule for rule in rig.kernel.state.rules if rule.priority in (0, 32766, 32767)
    ]
    for number, address in enumerate(secondaries(rig)[:pods]):
        live_as_original(rig, f"old-{number}", address)
    rig.clock.boot_offset_ns += 3600 * 10**9
    return rig


def test_an_empty_log_on_a_node_with_living_pods_gives_nobody_their_addresses():
    """The incident: of 20 new pods, 20 got addresses that living pods held."""

    async def scenario():
        rig = await with_predecessor(5)
        taken = {f"old-{number}": address for number, address in enumerate(secondaries(rig)[:5])}
        await rig.start()
        await rig.ready(120)
        await asyncio.sleep(40)
        new = [await rig.add(f"new-{number}") for number in range(6)]
        assert not set(new) & set(taken.values())
        held = {lease.key.container_id: lease.bindings[0].address for lease in rig.state.leases.values()}
        assert taken.items() <= held.items()
        assert examine(rig.state) == []
        await asyncio.sleep(20 * MINUTE)
        owned = {address for eni in rig.instance.enis.values() for address in eni.secondaries}
        assert set(taken.values()) <= owned, "an address in use went back to EC2"
        for pod in taken:
            status, _ = await rig.cni("DEL", pod)
            assert status == 200
        assert not {pod for pod in taken if rig.lease(pod)}
        await rig.stop()

    run_virtual(scenario())


def test_our_own_pods_survive_the_loss_of_the_log():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        rig.runtime.is_readable = True
        before = {f"pod-{number}": await rig.add(f"pod-{number}") for number in range(7)}
        await rig.kill()
        lose_log(rig)
        await rig.start()
        await rig.ready(120)
        assert {f"pod-{n}": rig.held(f"pod-{n}").bindings[0].address for n in range(7)} == before
        assert {lease.origin for lease in rig.state.leases.values()} <= {"recovered", "imported"}
        await asyncio.sleep(MINUTE)
        assert not {await rig.add(f"new-{number}") for number in range(6)} & set(before.values())
        routed = {route.dst.removesuffix("/32") for route in rig.kernel.state.routes if route.table == 51200}
        assert set(before.values()) <= routed
        await rig.stop()

    run_virtual(scenario())


def test_nothing_is_changed_before_it_is_known_who_lives_here():
    """The kernel cannot be searched yet: no rule, no route, no EC2 call, no export, no spooled DEL."""

    async def scenario():
        rig = await with_predecessor(3)
        rig.kernel.survey_refusal = "Operation not permitted [EPERM]"
        kernel, calls = rig.kernel.dump(), rig.calls()
        await rig.spool.write(json.dumps(spooled("old-0")).encode(), rig.clock.now())
        await rig.start()
        await asyncio.sleep(2 * MINUTE)
        refused = rig.live.readiness.refusal()
        assert refused is not None
        assert refused.reason == "recovering"
        changed = {action for action, count in rig.calls().items() if count != calls.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}
        assert rig.kernel.dump() == kernel
        assert 0 not in rig.checkpoints.files
        assert len(await rig.spool.entries()) == 1
        rig.kernel.survey_refusal = ""
        await rig.ready(30)
        assert len(await rig.spool.entries()) == 0
        assert rig.lease("old-0") is None
        await rig.stop()

    run_virtual(scenario())


def test_an_add_that_waits_for_the_search_comes_after_a_del_in_the_spool():
    """1. The log is lost. 2. A DEL is spooled. 3. The same key is used again before the search is over."""

    async def scenario():
        rig = await with_predecessor(3)
        rig.kernel.survey_refusal = "Operation not permitted [EPERM]"
        await rig.spool.write(json.dumps(spooled("old-0")).encode(), rig.clock.now())
        await rig.start()
        adding = asyncio.create_task(rig.cni("ADD", "old-0"))
        await asyncio.sleep(2)
        rig.kernel.survey_refusal = ""
        status, _ = await adding
        assert status == 200
        await asyncio.sleep(MINUTE)
        assert await rig.spool.entries() == []
        held = rig.lease("old-0")
        assert held is not None
        assert held.origin == "add"
        await rig.stop()

    run_virtual(scenario())


def test_an_add_that_waits_for_an_address_holds_up_neither_the_recovery_nor_other_spooled_dels():
    """1. A DEL is spooled, and its key is used again. 2. That ADD waits, as EC2 is away."""

    async def scenario():
        rig = await with_predecessor(3)
        rig.region.faults.inject(Fault(action="*", kind="error", code="InternalError", times=FOR_EVER))
        for pod in ("again", "old-0"):
            await rig.spool.write(json.dumps(spooled(pod)).encode(), rig.clock.now())
        rig.kernel.survey_refusal = "Operation not permitted [EPERM]"
        await rig.start()
        adding = asyncio.create_task(rig.cni("ADD", "again"))
        await asyncio.sleep(2)
        rig.kernel.survey_refusal = ""
        await asyncio.sleep(8)
        assert not adding.done()
        assert rig.lease("old-0") is None
        assert set(exported(rig).values()) == {"old-1", "old-2"}
        adding.cancel()
        await rig.stop()

    run_virtual(scenario())


def spooled(pod: str) -> dict[str, object]:
    return {
        "command": "DEL",
        "containerId": pod,
        "netns": f"/run/netns/{pod}",
        "ifname": "eth0",
        "config": {"cniVersion": "1.0.0", "name": NETWORK, "type": "aws-cni"},
    }


def test_while_another_agent_lives_nothing_is_assigned_changed_or_exported():
    async def scenario():
        rig = await with_predecessor(3)
        rig.predecessor.is_alive = True
        kernel, calls = rig.kernel.dump(), rig.calls()
        await rig.start()
        await asyncio.sleep(2 * MINUTE)
        status, answer = await rig.cni("ADD", "new")
        assert (status, answer["reason"]) == (503, "another_agent")
        said = rig.live.status()
        assert (said["ready"], said["reason"]) == (False, "another_agent")
        assert "ipamd.sock" in said["recovery"]["other_agent"]
        changed = {action for action, count in rig.calls().items() if count != calls.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}
        assert 0 not in rig.checkpoints.files
        rig.kernel.remove_netns("/run/netns/new")
        assert rig.kernel.dump() == kernel
        rig.predecessor.is_alive = False
        await rig.ready(60)
        assert len(rig.state.leases) == 3
        await rig.stop()

    run_virtual(scenario())


def test_an_agent_that_serves_yields_to_an_original_that_comes_back_and_returns_after_it():
    """1. We serve.  2. The original is started and changes things.  3. It is gone: who is it that lives now?"""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        rig.runtime.is_readable = True
        mine = {f"pod-{number}": await rig.add(f"pod-{number}") for number in range(3)}
        await asyncio.sleep(5)
        assert set(exported(rig)) == set(mine.values())
        rig.predecessor.is_alive = True
        await asyncio.sleep(10)
        written = rig.checkpoints.writes
        free = next(one for one in secondaries(rig) if one not in mine.values())
        live_as_original(rig, "theirs", free)
        rows = [row(pod, address, rig) for pod, address in mine.items() if pod != "pod-0"]
        rig.kernel.remove_netns("/run/netns/pod-0")
        rig.checkpoints.put(render_checkpoint([*rows, row("theirs", free, rig)], None))
        await asyncio.sleep(MINUTE)
        assert rig.checkpoints.writes == written
        assert rig.lease("theirs") is None
        rig.predecessor.is_alive = False
        await rig.ready(60)
        assert rig.held("theirs").bindings[0].address == free
        assert rig.held("pod-1").bindings[0].address == mine["pod-1"]
        await asyncio.sleep(5 * MINUTE)
        assert rig.lease("pod-0") is None, "the kernel and the original's checkpoint agree that it is gone"
        assert set(exported(rig)) == {mine["pod-1"], mine["pod-2"], free}
        await rig.stop()

    run_virtual(scenario())


def test_the_node_is_the_other_agents_also_when_the_log_cannot_take_that_it_lives():
    """1. The disk is full.  2. The original is started.  3. It is gone, and there is room again."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        rig.store.is_reserve_held, rig.store.capacity_bytes = False, rig.store.used_bytes
        rig.predecessor.is_alive = True
        await asyncio.sleep(10)
        assert rig.state.other_agent is None
        assert rig.live.readiness.refusal().reason == "another_agent"
        written = rig.checkpoints.writes
        rig.live.links.converge_soon()
        live_as_original(
            rig, "theirs", next(one for one in secondaries(rig) if one not in rig.state.by_address)
        )
        changed = rig.kernel.applied_count
        await asyncio.sleep(10)
        assert (rig.kernel.applied_count, rig.checkpoints.writes) == (changed, written)
        rig.predecessor.is_alive, rig.store.capacity_bytes = False, None
        await rig.ready(60)
        assert rig.held("theirs")
        await rig.stop()

    run_virtual(scenario())


def test_an_interface_that_nothing_explains_refuses_adds_and_serves_dels():
    async def scenario():
        rig = await with_predecessor(2)
        free = secondaries(rig)[3]
        live_as_original(rig, "half", free, cached=False)
        rig.kernel.lose_routes(free)
        rig.kernel.lose_inside(free)
        calls = rig.calls()
        await rig.start()
        add = asyncio.get_running_loop().create_task(rig.cni("ADD", "new"))
        await asyncio.sleep(MINUTE)
        status, answer = await add
        assert (status, answer["reason"]) == (503, "address_unexplained")
        assert host_veth_name("eni", "default", "half") in rig.live.status()["problems"]["unexplained"]
        assert (await rig.cni("DEL", "old-0"))[0] == 200
        changed = {action for action, count in rig.calls().items() if count != calls.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}
        rig.kernel.remove_netns("/run/netns/half")
        await rig.ready(30)
        await rig.add("next")
        await rig.stop()

    run_virtual(scenario())


def test_a_plugin_of_the_original_that_is_still_at_work_delays_adds_and_fails_none():
    """Its last process wires after us: the veth is there, its address comes a second later."""

    async def scenario():
        rig = await with_predecessor(2)
        free = secondaries(rig)[3]
        live_as_original(rig, "late", free, cached=False)
        rig.kernel.lose_routes(free)
        rig.kernel.lose_inside(free)
        await rig.start()
        add = asyncio.get_running_loop().create_task(rig.cni("ADD", "new"))
        await asyncio.sleep(3)
        rig.kernel.remove_netns("/run/netns/late")
        live_as_original(rig, "late", free)
        status, answer = await add
        assert status == 200, answer
        assert rig.held("late").bindings[0].address == free
        await rig.stop()

    run_virtual(scenario())


def test_a_pod_that_the_original_wires_after_our_start_is_found_by_its_interface():
    async def scenario():
        rig = await with_predecessor(2)
        await rig.start()
        await rig.ready(120)
        await asyncio.sleep(10)
        free = next(one for one in secondaries(rig) if one not in rig.state.by_address)
        live_as_original(rig, "late", free)
        await asyncio.sleep(5)
        assert rig.held("late").bindings[0].address == free
        await rig.stop()

    run_virtual(scenario())


def test_the_checkpoint_is_at_most_a_second_behind_and_exact_after_the_stop():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        for number in range(5):
            address = await rig.add(f"pod-{number}")
            await asyncio.sleep(1.0)
            assert exported(rig)[address] == f"pod-{number}"
        await rig.cni("DEL", "pod-0")
        last = await rig.add("last")
        await rig.stop()
        assert exported(rig) == {
            lease.bindings[0].address: lease.key.container_id for lease in rig.state.leases.values()
        }
        assert exported(rig)[last] == "last"

    run_virtual(scenario())


def test_many_adds_do_not_write_the_checkpoint_each():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        before = rig.checkpoints.writes
        for number in range(6):
            await rig.add(f"pod-{number}")
        await asyncio.sleep(2)
        assert 1 <= rig.checkpoints.writes - before <= 4
        await rig.stop()

    run_virtual(scenario())


def test_an_old_log_that_is_brought_back_is_compared_with_what_lives():
    """1. A copy of the log is taken.  2. More pods come.  3. The copy is put in place of the log."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        rig.runtime.is_readable = True
        await rig.add("before")
        copy = list(rig.store.events)
        later = {f"later-{number}": await rig.add(f"later-{number}") for number in range(3)}
        await rig.stop()
        rig.store.events[:] = copy
        rig.store.snapshots.clear()
        await rig.start()
        await rig.ready(60)
        assert {pod: rig.held(pod).bindings[0].address for pod in later} == later
        assert rig.state.survey.why in ("older_log", "unknown_veth")
        await asyncio.sleep(MINUTE)
        assert not {await rig.add(f"new-{number}") for number in range(3)} & set(later.values())
        await rig.stop()

    run_virtual(scenario())


def test_an_export_that_somebody_has_removed_is_there_again_when_the_agent_ends():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        await rig.add("pod")
        await asyncio.sleep(MINUTE)
        rig.live.export.wake()  # Nothing has happened since the last export.
        await asyncio.sleep(2)
        rig.checkpoints.files.clear()
        await rig.stop()
        assert set(exported(rig).values()) == {"pod"}

    run_virtual(scenario())


def test_an_old_log_without_an_export_is_told_by_the_interfaces_that_it_does_not_know():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        copy = list(rig.store.events)
        address = await rig.add("later")
        await rig.stop()
        rig.store.events[:] = copy
        rig.store.snapshots.clear()
        rig.checkpoints.files.clear()
        await rig.start()
        await rig.ready(60)
        assert rig.held("later").bindings[0].address == address
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("has_booted", [False, True], ids=["in the same boot", "after a reboot"])
def test_a_log_whose_export_is_gone_may_be_an_old_copy_until_ec2_lists_its_addresses(has_booted):
    """A bug: a copy came back without its export, and what had been given back since was assigned."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        await rig.stop()
        rig.checkpoints.files.clear()
        if has_booted:  # A reboot takes the export away, and the log is as good as it was.
            rig.clock.boot_id = "boot-2"
        await rig.start()
        await asyncio.sleep(0.01)
        kinds = rig.kinds()
        assert ("cidr_suspected" in kinds, kinds.count("node_surveyed")) == (
            (False, 1) if has_booted else (True, 2)
        )
        await rig.ready(60)
        await rig.add("next")
        await rig.stop()

    run_virtual(scenario())


def test_after_a_reboot_an_export_that_cannot_be_read_says_nothing_for_the_log():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        await rig.stop()
        rig.checkpoints.is_readable = False
        rig.clock.boot_id = "boot-2"
        await rig.start()
        await asyncio.sleep(0.01)
        assert rig.state.survey.why == "no_checkpoint"
        await rig.stop()

    run_virtual(scenario())


def test_after_another_agent_whose_file_a_reboot_took_away_ec2_is_to_list_the_addresses_first():
    """A bug: it had changed the pool, the node was booted, and the books of before were believed."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        rig.predecessor.is_alive = True
        await asyncio.sleep(5)
        assert rig.state.other_agent is not None
        await rig.stop()
        rig.predecessor.is_alive = False
        rig.checkpoints.files.clear()
        rig.clock.boot_id = "boot-2"
        await rig.start()
        await asyncio.sleep(0.01)
        assert rig.state.survey.why == "another_agent"
        assert "cidr_suspected" in rig.kinds()
        await rig.stop()

    run_virtual(scenario())


def test_a_good_log_is_not_searched_for():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        await rig.add("pod")
        await rig.stop()
        rig.kernel.survey_refusal = "Operation not permitted [EPERM]"
        await rig.start()
        await rig.ready(1)
        assert rig.kinds().count("node_surveyed") == 1
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("mode", ["hangs", "is down", "is stale"])
def test_an_api_server_that_is_away_delays_no_recovery(mode):
    from tests.fakes.kubernetes import FakeKubernetesNode

    class Hanging(FakeKubernetesNode):
        async def pods(self):
            await asyncio.sleep(3600)
            return ()

    async def scenario():
        rig = await with_predecessor(5)
        rig.kubernetes = Hanging() if mode == "hangs" else FakeKubernetesNode()
        rig.kubernetes.is_down = mode == "is down"
        rig.region.latency_s["*"] = 0.15  # three calls follow each other, and do not wait for the search
        async with asyncio.timeout(0.8):
            await rig.start()
            await rig.ready()
        assert len(rig.state.leases) == 5
        assert "cidr_suspected" not in rig.kinds(), "EC2 was read a moment ago"
        await rig.stop()

    run_virtual(scenario())


def test_handing_back_waits_for_imds_and_freezes_ec2():
    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        await rig.add("pod")
        reply = await rig.live.set_mode(b'{"mode": "hand_back"}')
        assert reply.status == 200
        async with asyncio.timeout(30):
            while not rig.live.status()["hand_back"]["is_ready"]:
                await asyncio.sleep(0.5)
        assert rig.state.mode == "hand_back"
        calls = rig.calls()
        for number in range(12):
            await rig.cni("ADD", f"more-{number}")
        await asyncio.sleep(5 * MINUTE)
        changed = {action for action, count in rig.calls().items() if count != calls.get(action)}
        assert not {action for action in changed if not action.startswith("Describe")}
        assert rig.live.readiness.refusal() is None
        await rig.kill()
        await rig.start()
        await rig.ready(30)
        assert rig.live.status()["mode"] == "hand_back", "a restart does not forget it"
        assert (await rig.live.set_mode(b'{"mode": "serve"}')).status == 200
        assert rig.live.status()["hand_back"] is None
        await rig.stop()

    run_virtual(scenario())


@pytest.mark.parametrize("body", [b"", b"{}", b'{"mode": "handed_back"}', b'{"mode": 7}', b"[1]"])
def test_a_mode_that_does_not_exist_is_refused(body):
    async def scenario():
        rig = await Rig().up(settle_s=1)
        reply = await rig.live.set_mode(body)
        assert reply.status == 400
        assert msgspec.json.decode(reply.body)["reason"] == "bad_request"
        await rig.stop()

    run_virtual(scenario())


def test_who_came_while_we_were_down_is_found_and_exported_also_while_imds_is_silent():
    """1. IMDS has never answered.  2. The original serves; its file is gone.  3. We start with our log."""

    async def scenario():
        rig = Rig()
        rig.region.imds.inject(ImdsFault(kind="status", times=FOR_EVER))
        await rig.start()
        await asyncio.sleep(5)
        assert rig.state.survey is not None
        assert rig.state.instance is None
        await rig.kill()
        rig.checkpoints.files.clear()
        live_as_original(rig, "theirs", "10.0.0.77")
        await rig.start()
        assert rig.held("theirs").bindings[0].address == "10.0.0.77"
        await asyncio.sleep(5)
        assert set(exported(rig)) == {"10.0.0.77"}
        await rig.stop()

    run_virtual(scenario())


def test_a_search_in_the_middle_of_which_another_agent_appears_does_not_make_the_node_ours():
    """1. An unknown interface makes us search the node. 2. The original starts. 3. The search comes to its end."""

    async def scenario():
        rig = await Rig().up(settle_s=MINUTE)
        address = next(each for each in secondaries(rig) if each not in rig.state.by_address)
        survey, has_begun, may_end = rig.kernel.survey, asyncio.Event(), asyncio.Event()

        async def held_up(*arguments):
            has_begun.set()
            await may_end.wait()
            return await survey(*arguments)

        rig.kernel.survey = held_up  # type: ignore[method-assign]
        live_as_original(rig, "late", address)
        await has_begun.wait()
        rig.predecessor.is_alive = True
        async with asyncio.timeout(30):
            while rig.state.other_agent is None:
                await asyncio.sleep(0.01)
        may_end.set()
        changed = rig.kernel.applied_count
        for _ in range(2000):
            assert rig.live.readiness.hold is not None
            await asyncio.sleep(0.01)
        assert rig.kernel.applied_count == changed
        await rig.stop()

    run_virtual(scenario())


def test_our_export_of_another_boot_and_anothers_old_file_say_nothing():
    async def scenario():
        rig = await Rig().up(settle_s=1)
        await rig.stop()
        mark = Mark(log_id=rig.state.log_id, seq=10**6, boot_id="boot-0")
        rig.checkpoints.put(render_checkpoint([row("ghost", secondaries(rig)[0], rig)], mark))
        await rig.start()
        await rig.ready(10)
        assert rig.lease("ghost") is None
        await rig.stop()

    run_virtual(scenario())


def test_aliases_are_those_of_the_sandboxes():
    """What the tests above build on."""
    assert alias_of(key_of("pod")) == "vpccni:pod:eth0"


def test_a_del_that_comes_before_the_search_has_an_end_is_carried_out_after_it():
    """It was answered with success, and the search that was under way opened the lease again."""

    async def scenario():
        rig = await with_predecessor(3)
        rig.kernel.survey_refusal = "Operation not permitted [EPERM]"
        await rig.start()
        assert (await rig.cni("DEL", "old-1"))[0] == 200
        assert len(await rig.spool.entries()) == 1
        rig.kernel.survey_refusal = ""
        await rig.ready(30)
        assert rig.lease("old-1") is None
        assert rig.lease("old-0") is not None
        await rig.stop()

    run_virtual(scenario())
