"""From the start of the agent to the first answer, whatever the log holds and whoever does not answer."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from bench.api_server import ADDRESS, furnish_run
from bench.footprint import cpu_s
from bench.history import lengthen
from bench.report import Result, compared, counted
from bench.stage import (
    FILLED,
    FULL_NODE_ADDRESSES,
    ROOT,
    Bench,
    BenchError,
    numbered,
    on_node,
    raise_failures,
    stage,
)
from vpccni.lab.fabric.namespaces import listen_in
from vpccni.lab.fabric.wiring import IMDS_ADDRESS

HANGING_PORT: Final = 9
REFUSING_PORT: Final = 10
LONG: Final = 100_000
LONGEST: Final = 1_000_000
MILLION_RATIO: Final = 1.5
PODS: Final = 228
LIMIT_MS: Final = 1000.0
QUICK: Final = (("short", 0, "answering"), ("short", PODS, "hanging"), ("long", PODS, "refusing"))


def _outage(port: int) -> dict[str, str]:
    """An environment in which EC2, IMDS and the API server are at a port where nobody answers."""
    return {
        **FILLED,
        "AWS_ENDPOINT_URL_EC2": f"http://{ADDRESS}:{port}",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{IMDS_ADDRESS}:{port}/",
        "KUBERNETES_SERVICE_HOST": ADDRESS,
        "KUBERNETES_SERVICE_PORT": str(port),
    }


OUTAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "answering": FILLED,
    "refusing": _outage(REFUSING_PORT),
    "hanging": _outage(HANGING_PORT),
}


async def starts(quick: bool) -> list[Result]:
    """Short and long log, no pods and many, EC2 and IMDS and API server there, refusing, hanging."""
    times = 1 if quick else 3
    furnish_run(ROOT / "build" / "bench" / "labs")
    results: list[Result] = []
    cpus: list[float] = []
    async with stage("start") as lab, AsyncExitStack() as stack:
        small = await stack.enter_async_context(on_node(lab, "few", "m5.large", {"IP_COOLDOWN_PERIOD": "0"}))
        big = await stack.enter_async_context(on_node(lab, "many", addresses=FULL_NODE_ADDRESSES))
        await big.add_pods(numbered("stay", PODS))
        for length in ("short", "long"):
            for bench, pods in ((small, 0), (big, PODS)):
                wanted = [name for name in OUTAGES if not quick or (length, pods, name) in QUICK]
                if not wanted:
                    continue
                await stack.enter_async_context(hanging(bench))
                if length == "long":
                    await _lengthen(bench)
                for name in wanted:
                    taken = []
                    for _ in range(times):
                        wall, cpu = await _start(bench, OUTAGES[name])
                        taken.append(wall)
                        cpus.append(cpu)
                    results.append(
                        compared(
                            f"start_{length}_log_{pods}_pods_{name}",
                            taken,
                            None,
                            "ms",
                            against=f"{(await bench.status())['log']['head']} events",
                            limit=LIMIT_MS,
                        )
                    )
    return [*results, compared("start_cpu_to_first_add", cpus, None, "ms", against="of all these")]


async def million(quick: bool) -> list[Result]:
    """A log as no node has one: what a start costs must not depend on how long the history is."""
    times = 1 if quick else 7
    furnish_run(ROOT / "build" / "bench" / "labs")
    taken: dict[int, list[float]] = {}
    async with (
        stage("million") as lab,
        on_node(lab, "node", "m5.large", {"IP_COOLDOWN_PERIOD": "0"}) as bench,
    ):
        for events in (0, LONG if quick else LONGEST):
            if events:
                await _lengthen(bench, events)
            head = (await bench.status())["log"]["head"]
            taken[head] = [(await _start(bench, FILLED))[0] for _ in range(times)]
    (few, short), (many, long) = sorted(taken.items())
    return [
        compared(
            f"start_with_{many}_events", long, short, "ms", against=f"{few} events", ratio_limit=MILLION_RATIO
        )
    ]


async def _lengthen(bench: Bench, events: int = LONG) -> None:
    status = await bench.status()
    if status["standing_veths"]:
        await asyncio.sleep(5.0)  # the sweep of what the last pod left
    await bench.lab.kill_agent(bench.node, signal.SIGTERM)
    await lengthen(bench.node.places.events, bench.node.places.boot_id, events)
    await bench.lab.start_agent(bench.node, FILLED)
    await bench.lab.wait_ready(bench.node)


async def _start(bench: Bench, environment: Mapping[str, str]) -> tuple[float, float]:
    """SIGKILL the agent, let an ADD knock, start the agent.

    Returns:
        Milliseconds from the start to the answer, and the agent's CPU time by then.
    """
    pods = numbered(f"first-{time.monotonic_ns()}", 1)
    await bench.ask("make", names=pods)
    await bench.lab.kill_agent(bench.node)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(bench.ask("each", verb="ADD", side="ours", names=pods))
        await asyncio.sleep(0.15)
        began_ns = time.perf_counter_ns()
        await bench.lab.start_agent(bench.node, environment)
    cpu_ms = cpu_s(bench.pid) * 1000
    answer = asked.result()
    raise_failures("the first ADD", [answer])
    taken_ms = float(answer["ended_ns"] - began_ns) / 1e6
    await bench.delete_pods(pods)
    await asyncio.sleep(0.5)
    return taken_ms, cpu_ms


@asynccontextmanager
async def hanging(bench: Bench) -> AsyncIterator[None]:
    """Listen where nobody answers, on both link-local addresses; connections are made by the kernel alone."""
    if bench.is_hanging:
        yield
        return
    listeners = [
        listen_in(bench.node.namespace, address, HANGING_PORT) for address in (ADDRESS, IMDS_ADDRESS)
    ]
    bench.is_hanging = True
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()


async def restarts(quick: bool) -> list[Result]:
    """ADDs arrive fifty a second while the agent is stopped, and killed, and started again."""
    rounds = 1 if quick else 3
    failures = count = 0
    worst: list[float] = []
    async with stage("restart") as lab, on_node(lab, "node", addresses=FULL_NODE_ADDRESSES) as bench:
        for turn in range(rounds):
            for number in (signal.SIGTERM, signal.SIGKILL):
                pods = numbered(f"{number.name.lower()}-{turn}", 80)
                async with asyncio.TaskGroup() as group:
                    asked = group.create_task(
                        bench.ask("paced", verbs=["ADD"], side="ours", names=pods, interval_s=0.02)
                    )
                    await asyncio.sleep(0.5)
                    await lab.kill_agent(bench.node, number)
                    await lab.start_agent(bench.node)
                answer = asked.result()
                failures, count = failures + int(answer["failures"]), count + len(pods)
                worst.append(max(answer["ms"]))
                if len(answer["ms"]) != len(pods):
                    raise BenchError("some ADDs were never made")
                await bench.delete_pods(pods)
                await lab.wait_ready(bench.node)
    return [
        counted("restart_failed_adds", failures, n=count, limit=0),
        compared("restart_longest_add", worst, None, "ms", against=""),
    ]
