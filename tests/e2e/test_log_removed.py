"""The files of the log removed under the real daemon: noticed, put back, and whole after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.disk import DIRECTORY
from vpccni.lab.agent_client import AgentAwayError
from vpccni.lab.audit import lost_leases, ping_internet, replay
from vpccni.lab.ec2 import Timing
from vpccni.lab.lab import Lab
from vpccni.lab.runtime import CniError, Runtime

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PATIENCE_S = 40
NOTICED_WITHIN_S = 10
"""It takes two seconds on an idle machine; the tests may share theirs."""
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
SETTINGS = {"WARM_IP_TARGET": "6", "MINIMUM_IP_TARGET": "12", "IP_COOLDOWN_PERIOD": "1"}
NAME = "events.sqlite"


@asynccontextmanager
async def one_node(name):
    """A node with an agent that serves."""
    async with Lab(name, directory=DIRECTORY, latency_s={"*": 0.05}, timing=TIMING) as lab:
        node = await lab.add_node("a", "m5.large")
        await lab.start_agent(node, SETTINGS)
        await lab.wait_ready(node)
        yield lab, node


def rm_database(state: Path) -> None:
    (state / NAME).unlink()


def rm_wal(state: Path) -> None:
    (state / f"{NAME}-wal").unlink()


def rm_files(state: Path) -> None:
    for path in state.iterdir():
        path.unlink()


def rm_directory(state: Path) -> None:
    shutil.rmtree(state)


def replace_database(state: Path) -> None:
    """Another program's database, put there by a rename."""
    other = state.with_name("other")
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE photo (name TEXT)")
        database.commit()
    other.rename(state / NAME)


async def problem_of(node) -> str:
    return str((await node.client.get("/v1/status"))["problems"]["log"])


async def wait_put_back(node, times: int) -> float:
    """Wait until it says so; after how many seconds it did."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            said = await problem_of(node)
            if "put back" in said and ("times" not in said if times == 1 else f"{times} times" in said):
                return time.monotonic() - began
            await asyncio.sleep(0.05)


async def restored_events(node):
    """The events that tell of it; the first comes a moment after ``status`` does."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found:
            head = (await node.client.get("/v1/status"))["log"]["head"]
            async for event in node.client.follow():
                if event["kind"] == "log_restored":
                    found.append(event["event"])
                if event["seq"] >= head:
                    break
    return found


async def check_whole(lab, node, standing):
    """Every standing pod, and no other, has its lease and works; the log is whole."""
    assert await lost_leases(node, standing) == []
    assert {pod["uid"] for pod in await node.client.get("/v1/pods")} == {pod.uid for pod in standing}
    assert (await ping_internet(lab, standing)).failed == ()
    status, said = await replay(node.places.events, "verify")
    assert status == 0, said


async def test_removed_files_are_put_back_within_seconds_and_a_kill_then_loses_nothing():
    """For each way in which they can go: noticed with nobody asking for anything, then SIGKILL, then a start."""
    async with one_node("removed") as (lab, node):
        runtime = Runtime(lab, node)
        pods = [await runtime.add(f"pod-{number}") for number in range(4)]
        for remove in (rm_wal, rm_directory, replace_database):
            pods.append(await runtime.add(f"before-{remove.__name__}".replace("_", "-")))
            await runtime.delete(pods.pop(0))
            remove(node.places.state)
            assert await wait_put_back(node, 1) < NOTICED_WITHIN_S, remove.__name__
            assert await problem_of(node)
            assert (await node.client.ask("/readyz"))[0] == 200
            events = await restored_events(node)
            assert events[-1]["missing"][0].startswith(NAME)
            assert events[-1]["events"] > 0
            assert await lab.kill_agent(node) == -signal.SIGKILL
            await lab.start_agent(node)
            await lab.wait_ready(node)
            assert await problem_of(node) == ""
            await check_whole(lab, node, pods)
        (kept,) = node.places.state.glob(f"{NAME}.replaced-*Z")
        with contextlib.closing(sqlite3.connect(kept)) as database:
            assert database.execute("SELECT count(*) FROM photo").fetchall() == [(0,)]


async def test_what_is_acknowledged_while_files_go_at_any_moment_is_there_after_a_kill():
    """1. Pods come and go, without a pause. 2. Meanwhile somebody removes files of the log again and again. 3. The
    agent is killed as soon as it has answered the last request."""
    async with one_node("vandal") as (lab, node):
        runtime, chance = Runtime(lab, node), random.Random(1)
        standing = {}
        gone, enough = 0, asyncio.Event()

        async def vandal() -> None:
            nonlocal gone
            while not enough.is_set():
                with contextlib.suppress(OSError):
                    chance.choice((rm_files, rm_directory, rm_database, rm_wal))(node.places.state)
                    gone += 1
                await asyncio.sleep(chance.uniform(0, 0.3))

        async with asyncio.TaskGroup() as group:
            group.create_task(vandal(), name="vandal")
            for burst in range(10):
                for pod in await runtime.add_many([f"pod-{burst}-{each}" for each in range(4)]):
                    if not isinstance(pod, CniError):
                        standing[pod.uid] = pod
                ending = [standing[uid] for uid in chance.sample(sorted(standing), k=len(standing) // 4)]
                for pod, done in zip(ending, await runtime.delete_many(ending), strict=True):
                    if not isinstance(done, CniError):
                        del standing[pod.uid]
            enough.set()
        assert gone >= 3  # How often depends on how fast the machine is.
        assert standing
        # What was answered before the last removal may wait for the next look.
        async with asyncio.timeout(PATIENCE_S):
            while not (node.places.events.exists() and (await node.client.ask("/readyz"))[0] == 200):
                await asyncio.sleep(0.05)
        last = await runtime.add("last")
        assert await lab.kill_agent(node) == -signal.SIGKILL
        await lab.start_agent(node)
        await lab.wait_ready(node)
        await check_whole(lab, node, [*standing.values(), last])


async def test_files_that_go_just_before_the_end_are_put_back_before_the_agent_ends():
    async with one_node("last") as (lab, node):
        runtime = Runtime(lab, node)
        pods = [await runtime.add(f"pod-{number}") for number in range(3)]
        rm_files(node.places.state)
        assert await lab.kill_agent(node, signal.SIGTERM) == 0
        with pytest.raises(AgentAwayError):
            await problem_of(node)
        await lab.start_agent(node)
        await lab.wait_ready(node)
        await check_whole(lab, node, pods)
