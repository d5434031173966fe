"""SIGKILL at random instants, under load, on a real disk: what was acknowledged is kept, nothing is left behind.

``VPCCNI_KILLS`` and ``VPCCNI_KILLS_SEED`` choose the number of kills (50) and the draws. The long form, with a
thousand kills, is ``make crash``.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from tests.e2e.crash import CHANGES, Tally, crash, one_node
from tests.e2e.load import Load
from vpccni.lab.audit import ping_internet

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

KILLS = int(os.environ.get("VPCCNI_KILLS", "50"))
SEED = int(os.environ.get("VPCCNI_KILLS_SEED", "1"))

RESTARTS = 4
RESTART_SETTINGS = {"WARM_IP_TARGET": "20", "IP_COOLDOWN_PERIOD": "1"}


async def test_fifty_kills_under_load_lose_double_and_leave_behind_nothing():
    print(f"seed {SEED}, {KILLS} kills")
    tally = Tally(seed=SEED)
    await crash(tally, KILLS, "kills")
    print(tally)

    assert tally.wrong == []
    assert tally.kills == KILLS
    if KILLS >= 50:  # the test was one: enough was under way
        assert tally.adds > 3 * KILLS, tally
        assert min(tally.met[what] for what in ("DELs spooled", "ADD killed", "DEL killed")) > 0, tally
        assert min(tally.calls[action] for action in CHANGES) > 0, tally
        assert tally.reuses > 0, tally


async def test_adds_and_dels_that_arrive_during_a_restart_wait_and_none_fails():
    chance = random.Random(SEED)
    async with one_node("restarts", RESTART_SETTINGS, SEED) as (lab, node):
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
