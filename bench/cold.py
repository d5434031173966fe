"""Pools that must grow while pods wait, with an EC2 that takes its time."""

from __future__ import annotations

import asyncio
from typing import Final

from bench.report import Result, compared, counted
from bench.stage import FULL_NODE, Bench, BenchError, numbered, on_node, stage

CHAIN_S: Final = 2.1
"""The slowest chain of EC2 calls that 110 pods need: create 0.6, attach 1.2, and what goes with it."""
LATENCY_S: Final = {
    "CreateNetworkInterface": 0.6,
    "AttachNetworkInterface": 1.2,
    "AssignPrivateIpAddresses": 0.5,
    "UnassignPrivateIpAddresses": 0.5,
    "*": 0.1,
}
PODS: Final = 110


async def burst(quick: bool) -> list[Result]:
    """110 ADDs at once on a node whose pool is at the defaults: one new node each time."""
    last, calls, failures, first_failure = [], [], 0, ""
    async with stage("cold", latency_s=LATENCY_S) as lab:
        for turn in range(1 if quick else 3):
            async with on_node(lab, f"cold-{turn}", FULL_NODE, {"VPCCNI_MAX_PODS": "234"}) as bench:
                await _quiet(bench)
                before = len(lab.region.journal)
                names = numbered("burst", PODS)
                await bench.ask("make", names=names)
                answer = await bench.ask("together", verb="ADD", side="ours", names=names)
                await _quiet(bench)
                last.append(answer["last_ms"] / 1000)
                calls.append(float(len(lab.region.journal) - before))
                failures += answer["failures"]
                first_failure = first_failure or (answer["failed"] or [""])[0]
                await bench.ask("together", verb="DEL", side="ours", names=names)
                await bench.ask("drop", names=names)
    n = len(last) * PODS
    return [
        compared("cold_110_at_once_last", last, CHAIN_S, "s", against="EC2's chain", ratio_limit=1.5),
        counted("cold_failed_adds", failures, n=n, limit=0, against=first_failure[:80]),
        compared("cold_ec2_calls", calls, None, "count", against="", limit=18),
    ]


async def churn(quick: bool) -> list[Result]:
    """Four short-lived pods a second, cooldown 30 s, 29 addresses at first."""
    count = 40 if quick else 120
    environment = {"MINIMUM_IP_TARGET": "29", "WARM_IP_TARGET": "1", "VPCCNI_MAX_PODS": "234"}
    async with (
        stage("churn", latency_s=LATENCY_S) as lab,
        on_node(lab, "churn", FULL_NODE, environment, addresses=29) as bench,
    ):
        await _quiet(bench)
        start = (await bench.status())["pool"]["owned"]
        before = len(lab.region.journal)
        names = numbered("short", count)
        answer = await bench.ask("paced", verbs=["ADD", "DEL"], side="ours", names=names, interval_s=0.25)
        adds = answer["ms"]
        pool = (await bench.status())["pool"]
        calls = len(lab.region.journal) - before
        await bench.ask("drop", names=names)
    against = (answer["failed"] or [f"{start} addresses at first, {pool['owned']} then"])[0]
    return [
        counted("churn_failed_adds", answer["failures"], n=count, limit=0, against=against[:80]),
        counted("churn_ec2_calls", calls, n=1),
        compared("churn_call", adds, None, "ms", against=""),
    ]


async def _quiet(bench: Bench) -> None:
    """Until the agent has done what it wanted to do: no open intent for half a second."""
    still = 0
    for _ in range(600):
        still = 0 if (await bench.status())["open_intents"] else still + 1
        if still >= 10:
            return
        await asyncio.sleep(0.05)
    raise BenchError(f"{bench.node.name} does not come to rest; see {bench.node.places.log}")
