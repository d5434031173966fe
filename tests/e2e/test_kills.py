"""SIGKILL at random instants, under load, on a real disk: what was acknowledged is kept, nothing is left behind.

Everything is judged from outside: what the executables answered, what the emulated EC2 has, what the kernel
carries, and the log file. ``VPCCNI_KILLS`` and ``VPCCNI_KILLS_SEED`` choose the number of kills (50) and the
draws (not the instants, which are the machine's). A long form is to be run inside a world, where no time limit
of the test-suite stands above it::

    VPCCNI_KILLS=1000 python vpccni/lab/fabric/enter.py -- python -m pytest -s tests/e2e/test_kills.py
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from tests.e2e.disk import DIRECTORY, require_disk
from tests.e2e.load import Load, kill_an_executable
from vpccni.lab.audit import orphan_enis, ping_each_other, ping_internet, replay, secondaries, strays
from vpccni.lab.ec2 import Fault, Timing, small_region
from vpccni.lab.lab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

KILLS = int(os.environ.get("VPCCNI_KILLS", "50"))
SEED = int(os.environ.get("VPCCNI_KILLS_SEED", "1"))

COOLDOWN_S = 2
SETTINGS = {
    "WARM_IP_TARGET": "4",
    "MINIMUM_IP_TARGET": "26",
    "IP_COOLDOWN_PERIOD": str(COOLDOWN_S),
    "MAX_ENI": "4",
}
LATENCY_S = {
    "CreateNetworkInterface": 0.1,
    "AttachNetworkInterface": 0.2,
    "AssignPrivateIpAddresses": 0.1,
    "UnassignPrivateIpAddresses": 0.1,
    "*": 0.03,
}
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
FAULTS = (
    Fault(action="*", kind="throttle"),
    Fault(action="*", kind="lost_reply"),
    Fault(action="*", kind="dropped_request"),
    Fault(action="*", kind="error", code="InternalError"),
)
SHORT_LIFE_S = (0.0, 0.5)
LONG_LIFE_S = (2.6, 4.0)
SETTLE_S = 30.0
RESTARTS = 4
CHANGES = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
)
TIDES = (8, 32, 2, 38, 2, 30, 2, 38, 2, 24)
"""How many pods there should be, one after the other: the pool grows by ENIs, and shrinks again."""


@asynccontextmanager
async def one_node(name, settings):
    region = small_region(SEED, latency_s=LATENCY_S, timing=TIMING)
    async with Lab(name, directory=DIRECTORY, region=region) as lab:
        node = await lab.add_node("a", "m5.xlarge")
        require_disk(node.places.state)
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        yield lab, node


def broken_entries(spool):
    """Entries of the spool that are not whole. Drafts have other names, and nobody takes them for entries."""
    found = []
    for path in spool.glob("*"):
        if path.name.startswith(".tmp-"):
            continue
        try:
            entry = json.loads(path.read_bytes())
            whole = entry["version"] == 1 and entry["request"]["command"] == "DEL" and entry["bootId"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError):
            whole = False
        if not whole:
            found.append(f"{path.name}: {path.read_bytes()[:200]!r}")
    return found


class Killer:
    """Kills the agent again and again, looks whether anything was lost, and counts what it met."""

    def __init__(self, lab, node, load, chance):
        self.lab, self.node, self.load, self.chance = lab, node, load, chance
        self.met: Counter[str] = Counter()
        self.wrong = []
        self.restart_s = []

    async def run(self, kills):
        tides = itertools.cycle(TIDES)
        for number in range(kills):
            if number % 5 == 0:
                self.load.target = next(tides)
            starts = number % 5 == 4  # while it starts, at any point of it
            if starts:
                await asyncio.sleep(self.chance.uniform(0.0, 1.0))
            else:
                await self.lab.wait_ready(self.node)
                await self.look(f"before kill {number}")
                # It takes half a second to load the EC2 client, and two more to settle what was under way.
                await asyncio.sleep(self.chance.uniform(*LONG_LIFE_S if number % 6 == 2 else SHORT_LIFE_S))
            await self.kill(number, is_long=number % 16 == 7)
        await self.lab.wait_ready(self.node)

    async def kill(self, number, *, is_long):
        """Kill and start again; ``is_long``: not before some DELs have given up waiting and are spooled."""
        if not self.node.is_running:
            self.wrong.append(f"kill {number}: the agent had ended by itself")
        self.maybe_kill_an_executable()
        status = await self.lab.kill_agent(self.node, signal.SIGKILL)
        self.met[f"agent ended with {status}"] += 1
        self.maybe_kill_an_executable()
        if is_long:
            async with asyncio.TaskGroup() as group:
                for pod in self.load.standing()[:3]:
                    group.create_task(self.load.delete(pod), name=f"delete {pod.pod}")
        spool = self.node.places.spool
        self.met["DELs spooled"] += len(list(spool.glob("*.json")))
        self.wrong += [f"kill {number}: half an entry: {entry}" for entry in broken_entries(spool)]
        await self.lab.start_agent(self.node)

    def maybe_kill_an_executable(self):
        if self.chance.random() < 0.6:
            verb = kill_an_executable(self.node, self.chance, prefer=self.chance.choice(("ADD", "DEL")))
            self.met[f"{verb} killed"] += bool(verb)

    async def look(self, when):
        self.wrong += [f"{when}: {told}" for told in await self.load.discrepancies()]


async def wait_until_nothing_is_open(lab, node):
    """Return what still is, after ``SETTLE_S``."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        status = await node.client.get("/v1/status")
        owned = {cidr for row in await node.client.get("/v1/enis") for cidr in row["cidrs"]}
        beliefs = owned ^ {f"{address}/32" for address in secondaries(lab, node)}
        open_ = [
            *status["open_intents"],
            *await orphan_enis(lab),
            *sorted(beliefs),
            *broken_entries(node.places.spool),
        ]
        open_ += [path.name for path in node.places.spool.glob("*.json")]
        if not open_ or time.monotonic() > deadline:
            return open_
        await asyncio.sleep(0.2)


async def test_fifty_kills_under_load_lose_double_and_leave_behind_nothing():
    print(f"seed {SEED}, {KILLS} kills")
    chance = random.Random(SEED)
    async with one_node("kills", SETTINGS) as (lab, node):
        assert await wait_until_nothing_is_open(lab, node) == []
        lab.region.faults.randomize(SEED, 0.06, FAULTS)
        load = Load(lab, node, chance, workers=12)
        killer = Killer(lab, node, load, chance)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(), name="load")
            try:
                await killer.run(KILLS)
            finally:
                load.end()
        lab.region.faults.clear()
        calls = lab.region.journal.count_by_action
        report = f"{load.adds} ADDs, {load.dels} DELs, {len(load.reuses)} reuses, {killer.met}, {calls}"
        print(report)

        assert killer.wrong == []
        assert load.unexpected_failures() == []
        assert load.doubled == []
        assert [reuse for reuse in load.reuses if reuse.rested_s < COOLDOWN_S] == []

        assert await wait_until_nothing_is_open(lab, node) == []
        assert await load.discrepancies() == []
        standing = load.standing()
        assert {pod["uid"] for pod in await node.client.get("/v1/pods")} == {pod.uid for pod in standing}
        assert strays(lab, standing) == []
        assert (await ping_each_other(lab, standing[:12])).failed == ()
        assert (await ping_internet(lab, standing)).failed == ()

        assert await lab.kill_agent(node, signal.SIGTERM) == 0
        status, said = await replay(node.places.events, "verify")
        assert status == 0, said

        assert killer.met["agent ended with -9"] == KILLS
        if KILLS >= 50:  # the test was one: enough was under way
            assert load.adds > 3 * KILLS, report
            assert min(killer.met[what] for what in ("DELs spooled", "ADD killed", "DEL killed")) > 0, report
            assert min(calls[action] for action in CHANGES) > 0, report
            assert len(load.reuses) > 0, report


async def test_adds_and_dels_that_arrive_during_a_restart_wait_and_none_fails():
    chance = random.Random(SEED)
    async with one_node("restarts", {"WARM_IP_TARGET": "20", "IP_COOLDOWN_PERIOD": "1"}) as (lab, node):
        load = Load(lab, node, chance, workers=8)
        load.target = 16
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(), name="load")
            try:
                for _ in range(RESTARTS):
                    await asyncio.sleep(chance.uniform(0.3, 0.8))
                    assert await lab.kill_agent(node, signal.SIGTERM) == 0
                    await lab.start_agent(node)
                    await lab.wait_ready(node)
                    assert await load.discrepancies() == []
            finally:
                load.end()
        waited = sum(latency_ms > 250 for latency_ms in load.ledger.latencies_ms)
        report = f"{load.adds} ADDs, {load.dels} DELs, {waited} of them waited for more than 250 ms"
        print(report)

        assert load.ledger.failures == [], report
        assert waited >= RESTARTS, report
        assert load.doubled == []
        assert await load.discrepancies() == []
        assert (await ping_internet(lab, load.standing())).failed == ()
