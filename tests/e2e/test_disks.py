"""The real daemon and executable on a disk that is full, read-only, slow or does not sync, and a clock that jumps."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta

import pytest

from tests.e2e.disk import DIRECTORY
from tests.e2e.preload.build import preload
from vpccni.lab.audit import lost_leases, ping_internet, replay
from vpccni.lab.ec2 import Timing
from vpccni.lab.lab import Lab
from vpccni.lab.runtime import CniError, Runtime

pytestmark = [pytest.mark.netns, pytest.mark.slow]

DISK_MIB = 20
PATIENCE_S = 40
LATENCY_S = {"*": 0.05}
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
SETTINGS = {"WARM_IP_TARGET": "6", "MINIMUM_IP_TARGET": "12", "IP_COOLDOWN_PERIOD": "1"}


@asynccontextmanager
async def one_node(name):
    """A node on which no agent was started yet."""
    async with Lab(name, directory=DIRECTORY, latency_s=LATENCY_S, timing=TIMING) as lab:
        yield lab, await lab.add_node("a", "m5.large")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


@contextmanager
def small_disk(place, image, kinds=("ext4", "tmpfs")):
    """A filesystem of its own at a directory: the first kind that this user may mount.

    Its mount is the world's, and seen by nobody else.
    """
    refusals = []
    for kind in kinds:
        try:
            if kind == "tmpfs":
                run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "small", place)
            else:
                image.write_bytes(b"")
                os.truncate(image, DISK_MIB << 20)
                run("mkfs.ext4", "-q", "-m", "0", image)
                run("mount", "-o", "loop", image, place)
            break
        except OSError as error:
            refusals.append(str(error))
    else:
        pytest.skip(f"no filesystem of one's own can be mounted here: {'; '.join(refusals)}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        image.unlink(missing_ok=True)


def fill(path):
    """A file that takes the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


async def refusal_of(runtime):
    """Start and stop pods until one is refused: the room that the log has already is used up first."""
    for number in range(100):
        more = await runtime.add_many([f"more-{number}-{each}" for each in range(6)])
        refused = [each for each in more if isinstance(each, CniError)]
        for pod in more:
            if not isinstance(pod, CniError):
                await runtime.delete(pod)
        if refused:
            return refused[0]
    pytest.fail("a full disk took 600 ADDs and DELs")


async def readiness(node):
    status, said = await node.client.ask("/readyz")
    return status, said.get("reason", "")


async def check_whole(lab, node, standing):
    """Every standing pod, and no other, has its lease and works; the log is whole."""
    assert await lost_leases(node, standing) == []
    assert {pod["uid"] for pod in await node.client.get("/v1/pods")} == {pod.uid for pod in standing}
    assert (await ping_internet(lab, standing)).failed == ()
    status, said = await replay(node.places.events, "verify")
    assert status == 0, said


# A full disk


async def test_on_a_full_disk_adds_are_refused_dels_go_on_and_space_heals_it(tmp_path):
    """1. Pods run, the disk fills up. 2. ADDs are refused, and DELs are taken: the reserve is for them. 3. There is
    space again: ADDs go on, without a restart."""
    async with one_node("full") as (lab, node):
        with small_disk(node.places.state, tmp_path / "disk"):
            await lab.start_agent(node, SETTINGS)
            await lab.wait_ready(node)
            runtime = Runtime(lab, node)
            pods = [await runtime.add(f"pod-{number}") for number in range(6)]
            fill(node.places.state / "filler")

            assert (await refusal_of(runtime)).reason == "log_disk_full"
            assert await readiness(node) == (503, "log_disk_full")
            assert not (node.places.state / "events.sqlite.reserve").exists()
            for pod in pods[:2]:
                await runtime.delete(pod)
            await check_whole(lab, node, pods[2:])
            with pytest.raises(CniError, match="log_disk_full"):
                await runtime.add("not-yet")

            agent = node.agent.pid
            (node.places.state / "filler").unlink()
            await lab.wait_ready(node)
            pods = [*pods[2:], await runtime.add("after")]
            await check_whole(lab, node, pods)
            assert node.agent.pid == agent
            assert await lab.kill_agent(node, signal.SIGTERM) == 0


async def why_it_ended(node):
    """Wait until the agent ends because its log takes nothing; what it said last."""
    async with asyncio.timeout(PATIENCE_S):
        assert await node.agent.wait() == 1
    said = str(node.places.log.read_text().splitlines()[-1])
    assert "log_write_failed" in said
    return said


def check_unacknowledged(adding):
    """It was refused with the reason, or waits for the next agent."""
    if adding.done():
        (refused,) = adding.result()
        assert isinstance(refused, CniError)
        assert refused.reason in ("log_write_failed", ""), refused


# A disk that is read-only


async def test_on_a_read_only_disk_no_agent_starts_and_after_it_all_is_there(tmp_path):
    """1. The agent is killed. 2. The disk comes back read-only: the agent says so and ends; DELs lie in the spool.
    3. It is writable again."""
    async with one_node("read-only") as (lab, node):
        with small_disk(node.places.state, tmp_path / "disk", ("tmpfs",)):
            await lab.start_agent(node, SETTINGS)
            await lab.wait_ready(node)
            runtime = Runtime(lab, node)
            pods = [await runtime.add(f"pod-{number}") for number in range(4)]
            await lab.kill_agent(node)
            before = {path.name: path.read_bytes() for path in node.places.state.iterdir()}
            run("mount", "-o", "remount,ro", node.places.state)

            agent = await lab.start_agent(node)
            assert await agent.wait() == 1
            assert "log_unusable" in node.places.log.read_text().splitlines()[-1]
            await runtime.delete(pods.pop())
            assert {path.name: path.read_bytes() for path in node.places.state.iterdir()} == before

            run("mount", "-o", "remount,rw", node.places.state)
            await lab.start_agent(node)
            await lab.wait_ready(node)
            pods.append(await runtime.add("after"))
            await check_whole(lab, node, pods)


@pytest.mark.root
async def test_a_disk_that_becomes_read_only_under_the_agent_loses_nothing(tmp_path):
    """1. ext4 gives up, as after an error of the disk. 2. No ADD is acknowledged, DELs lie in the spool, the agent
    ends and says why. 3. The disk is repaired."""
    async with one_node("abort") as (lab, node):
        image = tmp_path / "disk"
        with small_disk(node.places.state, image, ("ext4",)):
            await lab.start_agent(node, SETTINGS)
            await lab.wait_ready(node)
            runtime = Runtime(lab, node)
            pods = [await runtime.add(f"pod-{number}") for number in range(4)]
            subprocess.run(
                ["mount", "-o", "remount,abort", node.places.state], check=False, capture_output=True
            )
            with pytest.raises(OSError, match="Read-only"):
                (node.places.state / "trial").touch()

            async with asyncio.TaskGroup() as group:
                adding = group.create_task(runtime.add_many(["meanwhile"]), name="add")
                assert "Read-only" in await why_it_ended(node)
                await runtime.delete(pods.pop())
                assert len(list(node.places.spool.glob("*.json"))) > 0
                check_unacknowledged(adding)

                run("umount", node.places.state)
                subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True)
                run("mount", "-o", "loop", image, node.places.state)
                await lab.start_agent(node)
                await lab.wait_ready(node)
            pods += [pod for pod in adding.result() if not isinstance(pod, CniError)]
            pods.append(await runtime.add("after"))
            await check_whole(lab, node, pods)


# A disk that fails to sync, or takes long to


def faulty(tmp_path):
    """The settings under which the log's syncs do what the files in ``tmp_path / "faults"`` say."""
    faults = tmp_path / "faults"
    faults.mkdir()
    return faults, {**SETTINGS, "LD_PRELOAD": str(preload("faults", tmp_path)), "VPCCNI_FAULTS": str(faults)}


def syncs(faults):
    """Each sync of the log: inode and outcome."""
    return [tuple(line.split()) for line in (faults / "syncs").read_text().splitlines()]


async def test_a_sync_that_fails_once_is_not_tried_again_on_the_same_file(tmp_path):
    """The -wal is written anew and synced as a file of its own; then the ADD is decided again, and answered."""
    faults, settings = faulty(tmp_path)
    async with one_node("eio-once") as (lab, node):
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        runtime = Runtime(lab, node)
        pods = [await runtime.add("before")]
        for number in range(3):
            (faults / "eio-once").touch()
            pods.append(await runtime.add(f"pod-{number}"))
            assert not (faults / "eio-once").exists()
        told = syncs(faults)
        failed = [number for number, (_, outcome) in enumerate(told) if outcome == "EIO"]
        assert len(failed) == 3
        for number in failed:
            assert told[number + 1][0] != told[number][0], "a failed sync was tried again"
            assert told[number + 1][1] == "ok"
        await check_whole(lab, node, pods)
        assert await lab.kill_agent(node) == -signal.SIGKILL
        await lab.start_agent(node)
        await lab.wait_ready(node)
        await check_whole(lab, node, pods)


async def test_while_no_sync_succeeds_nothing_is_acknowledged_and_dels_lie_in_the_spool(tmp_path):
    """1. Each sync fails. 2. No ADD is acknowledged; the agent says why and ends, and so does each one after it.
    3. The disk is well: what was acknowledged is there, the spooled DEL is carried out."""
    faults, settings = faulty(tmp_path)
    async with one_node("eio") as (lab, node):
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        runtime = Runtime(lab, node)
        pods = [await runtime.add(f"pod-{number}") for number in range(4)]
        (faults / "eio").touch()
        before = len(syncs(faults))
        async with asyncio.TaskGroup() as group:
            adding = group.create_task(runtime.add_many(["meanwhile"]), name="add")
            await why_it_ended(node)
            await lab.start_agent(node)
            await why_it_ended(node)
            assert {outcome for _, outcome in syncs(faults)[before:]} == {"EIO"}
            await runtime.delete(pods.pop())
            assert len(list(node.places.spool.glob("*.json"))) > 0
            check_unacknowledged(adding)

            (faults / "eio").unlink()
            await lab.start_agent(node)
            await lab.wait_ready(node)
        pods += [pod for pod in adding.result() if not isinstance(pod, CniError)]
        pods.append(await runtime.add("after"))
        await check_whole(lab, node, pods)


async def test_on_a_slow_disk_an_add_waits_for_its_sync_and_the_agent_answers(tmp_path):
    faults, settings = faulty(tmp_path)
    async with one_node("slow") as (lab, node):
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        runtime = Runtime(lab, node)
        await runtime.add("before")
        (faults / "slow").write_text("2000")
        async with asyncio.TaskGroup() as group:
            adding = [group.create_task(runtime.add(f"pod-{number}"), name="add") for number in range(3)]
            while not all(task.done() for task in adding):
                assert (await node.client.ask("/healthz"))[0] == 200
                await asyncio.sleep(0.05)
        (faults / "slow").unlink()
        pods = [task.result() for task in adding]
        assert min(pod.latency_ms for pod in pods) >= 2000
        await check_whole(lab, node, [*runtime.ledger.live.values()])


# A clock that jumps

DAY_S = 86_400
COOLDOWN_S = 2


async def test_a_wall_clock_that_jumps_ends_no_rest_and_no_lease(tmp_path):
    """Every address is a pod's, so that an ADD gets the one that rests, and only when its rest is over."""
    clock = tmp_path / "clock"

    def jump(seconds):
        new = clock.with_name("new")
        new.write_text(str(seconds))
        new.rename(clock)

    environment = {"LD_PRELOAD": str(preload("clock", tmp_path)), "VPCCNI_CLOCK": str(clock)}
    settings = {"WARM_IP_TARGET": "2", "MAX_ENI": "1", "IP_COOLDOWN_PERIOD": str(COOLDOWN_S)}
    async with one_node("clock") as (lab, node):
        await lab.start_agent(node, settings | environment)
        await lab.wait_ready(node)
        runtime = Runtime(lab, node)
        pods = [await runtime.add(f"pod-{number}") for number in range(9)]

        async def replace(name):
            asked = time.clock_gettime(time.CLOCK_BOOTTIME)
            gone = pods.pop(0)
            await runtime.delete(gone)
            yield
            new = await runtime.add(name)
            assert new.address == gone.address
            assert time.clock_gettime(time.CLOCK_BOOTTIME) - asked >= COOLDOWN_S
            pods.append(new)

        for seconds, restarts in ((DAY_S, False), (-DAY_S, True), (3650 * DAY_S, True)):
            replacing = replace(f"after-{seconds}")
            await anext(replacing)
            jump(seconds)
            if restarts:
                await lab.kill_agent(node)
                await lab.start_agent(node)
                await lab.wait_ready(node)
            await anext(replacing, None)
            await check_whole(lab, node, pods)
        times = [datetime.fromisoformat(event["time"]) async for event in _events(node)]
        assert max(times) - min(times) > timedelta(days=3650)  # the agent did see the jumps


async def _events(node):
    async for event in node.client.follow():
        yield event
        if event["seq"] >= (await node.client.get("/v1/status"))["log"]["head"]:
            return
