"""After SIGTERM ``ipam.json`` says what the log says: the last acknowledged ADD and the last ended lease included."""

from __future__ import annotations

import asyncio
import json
import random
import signal

import pytest

from tests.e2e.crash import one_node
from tests.e2e.load import Load
from vpccni.lab.audit import replay

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SEED = 7
ROUNDS = 4
SETTINGS = {"WARM_IP_TARGET": "20", "IP_COOLDOWN_PERIOD": "1"}


def exported(node):
    """Container id, pod and time by address, as the file says; and its mark."""
    written = json.loads((node.places.run / "ipam.json").read_bytes())
    rows = {
        row["ipv4"]: (row["containerID"], row["metadata"]["k8sPodName"], row["allocationTimestamp"])
        for row in written["allocations"]
    }
    assert len(rows) == len(written["allocations"])
    return rows, written["vpccni"]


async def logged(node):
    """The same, as the log says at its end."""
    status, said = await replay(node.places.events, "state")
    assert status == 0, said
    rows = {
        binding["address"]: (lease["key"]["container_id"], lease["pod"]["name"], lease["opened"][0])
        for lease in said["state"]["leases"].values()
        for binding in lease["bindings"]
    }
    here = said["state"]["node"]
    return rows, {"logId": here["log_id"], "seq": said["seq"], "bootId": here["boot_id"]}


async def test_after_sigterm_under_load_the_checkpoint_says_what_the_log_says():
    """1. ADDs and DELs go on all the time. 2. SIGTERM: what is in flight is answered, or asks the next agent."""
    chance = random.Random(SEED)
    async with one_node("export", SETTINGS, SEED) as (lab, node):
        load = Load(lab, node, chance, workers=8)
        load.target = 16
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(), name="load")
            try:
                for _ in range(ROUNDS):
                    done = load.adds + load.dels
                    while load.adds + load.dels < done + 20:
                        await asyncio.sleep(chance.uniform(0.0, 0.02))
                    assert await lab.kill_agent(node, signal.SIGTERM) == 0
                    acknowledged = {pod.address: pod.container_id for pod in load.standing()}
                    rows, mark = exported(node)
                    assert (rows, mark) == await logged(node)
                    assert {address: rows[address][0] for address in acknowledged} == acknowledged
                    await lab.start_agent(node)
                    await lab.wait_ready(node)
            finally:
                load.end()
        assert load.wrong(cooldown_s=1) == []
