"""Incidents that nodes in the field have had: ours comes through, the original's rule would not."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim import original
from tests.sim.stage import Stage, play
from vpccni.lab.ec2 import Fault, ImdsFault
from vpccni.lab.sim.sandbox import Sandbox

CHANGES = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
)


def _addresses(sandboxes) -> dict[str, str]:
    return {sandbox.address: sandbox.container_id for sandbox in sandboxes}


def test_an_eni_whose_set_up_fails_at_boot_and_is_adopted_later_keeps_its_pods():
    """W1. 1. Pods on two ENIs. 2. The agent restarts, one ENI's link is not there. 3. New pods. 4. It comes."""

    async def scenario(stage: Stage):
        node = await stage.started()
        pods = await stage.pods(node, 12)
        second = stage.eni_of(pods[-1])
        on_second = {pod.address for pod in pods} & set(second.secondaries)
        assert second is not stage.primary_of(node)
        node.kernel.unplug(second.mac)
        node.kill(restart_s=1.0)
        await asyncio.sleep(5)
        await stage.ready(node)
        pods += await stage.pods(node, 3)
        node.kernel.plug(second.mac, "ens6")
        await asyncio.sleep(30)
        pods += await stage.pods(node, 5)
        await stage.again(node, *pods)
        assert len(_addresses(pods)) == 20

        # The original: what is on the ENI that failed is thrown out of the file, and free when it comes back.
        primary = stage.primary_of(node)
        at_boot = {primary.id: primary.secondaries}
        kept = original.restored_allocations(_addresses(pods[:12]), at_boot)
        free = original.free_after_reconcile(at_boot | {second.id: second.secondaries}, kept)
        assert free & on_second

    play(scenario)


def test_imds_that_is_stale_right_after_a_restart_brings_no_address_back():
    """W2. 1. Addresses are given back. 2. The agent restarts while IMDS still lists them."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large", {"WARM_IP_TARGET": "2"})
        pods = await stage.pods(node, 9)
        await asyncio.sleep(5)
        before = stage.owned(node)
        stage.region.imds.lag_s = 120.0
        await stage.delete(node, *pods[2:])
        while not stage.calls("UnassignPrivateIpAddresses"):
            await asyncio.sleep(0.5)
        await asyncio.sleep(1)
        stale = before - stage.owned(node)
        assert stale
        node.kill(restart_s=0.5)
        await asyncio.sleep(1)
        await stage.ready(node)
        more = await stage.pods(node, 8)
        assert not {pod.address for pod in more} & stale

        assert original.pool_at_start({"imds": before}) & stale

    play(scenario)


def test_an_eni_that_one_reading_of_imds_leaves_out_keeps_its_pods():
    """W4. The reading is short for as long as ten minutes; EC2 lists the ENI all the while."""

    async def scenario(stage: Stage):
        node = await stage.started()
        pods = await stage.pods(node, 14)
        hidden = stage.eni_of(pods[-1])
        assert hidden is not stage.primary_of(node)
        stage.region.imds.inject(
            ImdsFault(kind="missing_eni", instance_id=node.instance.id, eni_id=hidden.id)
        )
        await asyncio.sleep(600)
        assert not stage.state(node).enis[hidden.id].suspected
        stage.region.imds.clear()
        await asyncio.sleep(60)
        await stage.again(node, *pods)

        holders = {pod.container_id: stage.eni_of(pod).id for pod in pods}
        listed = set(node.instance.enis) - {hidden.id}
        assert original.pods_that_survive_a_reading(holders, listed) != set(holders)

    play(scenario)


@pytest.mark.parametrize(
    "tuning",
    [{"WARM_IP_TARGET": "1"}, {"MINIMUM_IP_TARGET": "1"}, {"WARM_ENI_TARGET": "0"}],
    ids=["warm-ip", "minimum", "no-warm-eni"],
)
def test_addresses_in_use_stay_when_the_targets_change(tuning):
    """1. Pods on every ENI. 2. The targets shrink to nothing, the agent restarts. 3. One ENI's link comes late.

    4. What is not in use goes back, when it has rested.
    """

    async def scenario(stage: Stage):
        from vpccni.settings import read_settings

        node = await stage.started("m5.xlarge")
        pods = await stage.pods(node, 40)
        await stage.delete(node, *pods[::3])
        alive = [pod for pod in pods if not pod.is_given_up]
        late = stage.eni_of(alive[-1])
        assert late is not stage.primary_of(node)
        set_up = {eni.id: set(eni.secondaries) for eni in node.instance.enis.values() if eni is not late}
        owned, resting = stage.owned(node), {pod.address for pod in pods[::3]}
        node.kernel.unplug(late.mac)
        node.settings = read_settings(tuning)
        node.stop(1.0)
        await asyncio.sleep(2)
        await stage.ready(node)
        await asyncio.sleep(10)
        assert resting <= stage.owned(node)
        node.kernel.plug(late.mac, "ens9")
        await asyncio.sleep(400)
        assert {pod.address for pod in alive} <= stage.owned(node)
        assert stage.owned(node) < owned
        await stage.again(node, *alive)

        # The original: what it forgot of the late ENI's pods, and what rests, is unused to it.
        kept = original.restored_allocations(_addresses(alive), set_up)
        unused = original.given_back_as_unused(owned, kept)
        assert unused & {pod.address for pod in alive}
        assert unused & resting

    play(scenario)


def test_an_eni_in_use_is_not_deleted_after_a_restart():
    """1. A detach of an empty ENI is intended. 2. The agent dies. 3. EC2 is away, pods come. 4. EC2 is back.

    The open intent is the only thing that may still happen to the ENI: no pod is put on it.
    """

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        pods = await stage.pods(node, 12)
        await asyncio.sleep(70)
        await stage.delete(node, *pods)
        stage.region.faults.inject(Fault(action="DetachNetworkInterface", kind="hang"))
        while not any(
            intent.intended.kind == "detach"
            for intent in (stage.state(node).intents.values() if node.agent else ())
        ):
            await asyncio.sleep(0.2)
        leaving = next(
            intent.intended.eni
            for intent in stage.state(node).intents.values()
            if intent.intended.kind == "detach"
        )
        listed = list(node.instance.enis)
        node.kill(restart_s=1.0)
        stage.region.faults.inject(Fault(action="*", kind="dropped_request", times=20))
        await asyncio.sleep(2)
        await stage.ready(node)
        held = await stage.pods(node, 8)
        assert leaving not in {stage.eni_of(pod).id for pod in held}
        await asyncio.sleep(300)
        await stage.again(node, *held)
        assert not stage.state(node).intents
        assert leaving not in node.instance.enis

        assert leaving in original.enis_for_pods_at_start(listed)

    play(scenario)


def test_a_restart_does_not_shorten_a_cooldown():
    """1. All addresses are in use. 2. Pods are deleted, the agent dies. 3. A pod comes at once: it waits."""

    async def scenario(stage: Stage):
        node = await stage.started("t3.small")
        full = await stage.pods(node, 9)
        await stage.delete(node, *full)
        ended = stage.loop.time()
        owned = stage.owned(node)
        node.kill(restart_s=0.5)
        await asyncio.sleep(1)
        (pod,) = await stage.pods(node, 1)
        assert stage.loop.time() - ended >= 25
        assert pod.address in owned

        # The original: seconds after its last pod ended.
        assert pod.address in original.assignable_after_restart(owned, allocated=())

    play(scenario)


def test_a_full_node_that_reboots_does_not_storm_ec2():
    """Every address rests when it comes back; the pods that come wait for that, and EC2 is asked for nothing."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        full = await stage.pods(node, 27)
        await asyncio.sleep(30)
        before = {action: stage.calls(action) for action in CHANGES}
        ended = stage.loop.time()
        stage.strike(node, kind="reboot", seconds=5.0)
        await asyncio.sleep(6)
        await stage.ready(node)
        again = await stage.pods(node, 27)
        assert stage.loop.time() - ended >= 30
        await asyncio.sleep(60)
        assert {action: stage.calls(action) for action in CHANGES} == before

        # The original has no file of before the reboot: what a pod had six seconds ago is free.
        free = original.assignable_after_restart(stage.owned(node), allocated=())
        assert free & {pod.address for pod in full} & {pod.address for pod in again}

    play(scenario)


def test_a_reboot_does_not_shorten_a_cooldown():
    """Addresses that rested already when the node went down: what passed in the old boot counts, and no more."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        full = await stage.pods(node, 27)
        ended = stage.loop.time()
        await stage.delete(node, *full, how="netns first")
        await asyncio.sleep(5)
        stage.strike(node, kind="reboot", seconds=2.0)
        await asyncio.sleep(4)
        await stage.ready(node)
        await stage.pods(node, 27)
        assert 30 <= stage.loop.time() - ended < 60

    play(scenario)


@pytest.mark.parametrize("point", ["ec2_sent", "ec2_applied", "ec2_answered"])
@pytest.mark.parametrize("action", ["CreateNetworkInterface", "AttachNetworkInterface"])
def test_an_agent_that_dies_between_create_and_attach_leaves_no_orphan(action, point):
    """Killed at each boundary of each of the two calls, the request having left or not."""

    async def scenario(stage: Stage):
        for flags in ((), ("sent",)):
            node = await stage.started("m5.large")
            calls, began = stage.calls(action), stage.loop.time()
            made = asyncio.get_running_loop().create_task(stage.pods(node, 12))
            while stage.calls(action) == calls and not node.crash_wanted:
                await asyncio.sleep(0.01)
                sent = any(
                    intent.intended.kind == ("create" if action.startswith("Create") else "attach")
                    for intent in stage.state(node).intents.values()
                )
                if sent:
                    stage.strike(node, kind="crash", action=point, count=1, seconds=0.5, flag=flags)
            pods = await made
            await asyncio.sleep(200)
            assert node.starts == 2
            assert not stage.state(node).intents
            assert all(eni.attachment for eni in stage.region.world.enis.values())
            assert len(node.instance.enis) == 3
            await stage.again(node, *pods)
            assert not original.is_left_behind_deleted(age_s=stage.loop.time() - began)

    play(scenario)


@pytest.mark.parametrize("torn", [True, False], ids=["in the log", "lost"])
def test_an_agent_that_dies_between_attach_and_log_goes_on_with_the_eni(torn):
    """EC2 has attached it, and the record of that is or is not on the disk."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.large")
        attached = stage.calls("AttachNetworkInterface")
        made = asyncio.get_running_loop().create_task(stage.pods(node, 12))
        while stage.calls("AttachNetworkInterface") == attached:
            await asyncio.sleep(0.01)
        flags = ("sent", "torn") if torn else ("sent",)
        stage.strike(node, kind="crash", action="commit", count=1, seconds=0.5, flag=flags)
        pods = await made
        await asyncio.sleep(100)
        assert node.starts == 2
        assert not stage.state(node).intents
        assert set(stage.state(node).enis) == set(node.instance.enis)
        # It dies with the machine, although another process attached it: no orphan in the VPC.
        attachments = [eni.attachment for eni in node.instance.enis.values()]
        assert all(attachment and attachment.delete_on_termination for attachment in attachments)
        await stage.again(node, *pods)

        assert not original.is_kept_safe(set_by_process=node.starts, attached_by_process=1)

    play(scenario)


def test_a_detach_that_is_throttled_does_not_keep_adds_waiting():
    """W24. 1. An ENI is empty and is to go, EC2 throttles that for minutes. 2. More pods come than there is room for.

    3. They get their addresses as fast as EC2 makes them.
    """

    async def scenario(stage: Stage):
        node = await stage.started("m5.xlarge", {"WARM_IP_TARGET": "2"})
        pods = await stage.pods(node, 30)
        await asyncio.sleep(70)
        last = list(node.instance.enis)[-1]
        empty = [pod for pod in pods if stage.eni_of(pod).id == last]
        throttled = Fault(action="DetachNetworkInterface", kind="throttle", times=1000)
        stage.region.faults.inject(throttled)
        await stage.delete(node, *empty)
        while not stage.calls("DetachNetworkInterface"):
            await asyncio.sleep(0.5)
        began = stage.loop.time()
        await stage.pods(node, 14)
        assert stage.loop.time() - began < 5
        await asyncio.sleep(60)
        assert last in node.instance.enis

        # The original's loop sits in the detach for longer than an ADD may wait.
        assert original.throttled_detach_s() > 3 * node.settings.add_wait_s

    play(scenario)


def test_give_backs_that_hang_do_not_keep_adds_waiting():
    """W24. 1. Two ENIs give addresses back, EC2 does not answer. 2. Pods come. 3. Growth does not queue."""

    async def scenario(stage: Stage):
        node = await stage.started("m5.4xlarge", {"WARM_IP_TARGET": "5", "EC2_PARALLEL_MAX": "2"})
        pods = await stage.pods(node, 70)
        await asyncio.sleep(5)
        on_eni: dict[str, list[Sandbox]] = {}
        for pod in pods:
            on_eni.setdefault(stage.eni_of(pod).id, []).append(pod)
        async with asyncio.TaskGroup() as group:
            for held in sorted(on_eni.values(), key=len)[-2:]:
                for pod in held[5:]:
                    group.create_task(stage.delete(node, pod))
        stage.region.faults.inject(Fault(action="UnassignPrivateIpAddresses", kind="hang", times=50))
        while sum(i.intended.kind == "unassign" for i in stage.state(node).intents.values()) < 2:
            await asyncio.sleep(0.1)
        began = stage.loop.time()
        await stage.pods(node, 20)
        assert stage.loop.time() - began < 5

        assert original.throttled_detach_s() > node.settings.add_wait_s

    play(scenario)


def test_a_log_baked_into_a_machine_image_hands_out_nothing_of_the_other_node():
    """1. Node A has pods. 2. Its disk becomes the image of node B. 3. IMDS is silent when B boots."""

    async def scenario(stage: Stage):
        a = await stage.started("m5.large")
        pods = await stage.pods(a, 14)
        await asyncio.sleep(70)
        await stage.delete(a, *pods[9:])
        await asyncio.sleep(40)
        b = stage.machine("m5.large")
        b.bake(a)
        stage.checker.on_disk_changed(b)
        silence = ImdsFault(kind="hang", instance_id=b.instance.id)
        stage.region.imds.inject(silence)
        before = {action: stage.calls(action) for action in CHANGES}
        b.start()
        await asyncio.sleep(40)
        assert b.agent is not None
        refused = b.agent.readiness.refusal()
        assert refused is not None
        assert refused.reason == "not_the_same_machine"
        assert {action: stage.calls(action) for action in CHANGES} == before
        stage.region.imds.clear()
        await stage.ready(b)
        ours = await stage.pods(b, 12)
        await asyncio.sleep(120)
        assert {pod.address for pod in ours} <= stage.owned(b)
        await stage.again(a, *pods[:9])

        assert original.pool_of_an_image(_addresses(pods)) - stage.owned(b)

    play(scenario)
