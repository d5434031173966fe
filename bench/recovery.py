"""An empty log on a node that is full of living pods: how long until somebody gets an address again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from bench.api_server import ADDRESS, ENVIRONMENT, api_server, furnish_run
from bench.cold import LATENCY_S
from bench.flow import Flow
from bench.footprint import cpu_s
from bench.original import Predecessor, in_namespace
from bench.report import Result, compared, counted
from bench.stage import (
    FULL_NODE,
    FULL_NODE_ADDRESSES,
    ROOT,
    Bench,
    BenchError,
    launcher_on,
    numbered,
    on_node,
    raise_failures,
    stage,
)
from bench.start import HANGING_PORT, hanging
from tests.libcni import cache_entry, write_entry
from vpccni.lab.lab import Lab

PODS: Final = 228
ENIS: Final = 8
LIMIT_S: Final = 2.0
QUIET_S: Final = 120.0
"""So long ago somebody last came or went: the cooldown that is counted from there is over."""
SETTINGS: Final = {"MINIMUM_IP_TARGET": str(FULL_NODE_ADDRESSES), "WARM_IP_TARGET": "1"}
"""The defaults but for the pool, which is the whole node, so that nobody waits for it to grow or to shrink."""
API_SERVERS: Final[Mapping[str, Mapping[str, str]]] = {
    "answering": ENVIRONMENT,
    "hanging": {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": str(HANGING_PORT)},
}


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """One start on an empty log.

    Attributes:
        total_s: From the start of the agent to the answer of an ADD that was waiting.
        started_s: Until the agent began to search.
        gathered_s, judged_s, checked_s, recorded_s: The search: reading every source, comparing them, seeing that
            all can be served, and the commit.
        served_s: From there until ADDs are served: the rest of IMDS and EC2, and the kernel brought in line.
        cpu_s: Processor time that the agent had used by the answer: a busy machine hardly changes it.
    """

    total_s: float
    started_s: float
    gathered_s: float
    judged_s: float
    checked_s: float
    recorded_s: float
    served_s: float
    cpu_s: float


STEPS: Final = ("started", "gathered", "judged", "checked", "recorded", "served", "cpu")


async def recovery(quick: bool) -> list[Result]:
    """Our own pods after the loss of the state directory, and the original's; the API server there, and hanging."""
    times = 1 if quick else 3
    furnish_run(ROOT / "build" / "bench" / "labs")
    found: dict[str, list[Recovered]] = {}
    async with stage("recovery", latency_s=LATENCY_S) as lab:
        async with on_node(lab, "empty", FULL_NODE, SETTINGS, addresses=FULL_NODE_ADDRESSES) as empty:
            await _quiet(empty)
            nobody = [await _recover(empty, SETTINGS, {}) for _ in range(times)]
            again: list[int] = []
            for turn in range(times):
                for api in API_SERVERS:
                    name = f"theirs-{api}-{turn}"
                    measured, _ = await _original(lab, name, api, empty, is_with_flows=False)
                    found.setdefault(f"originals_{api}", []).append(measured)
            _, again = await _original(lab, "theirs-flows", "answering", empty, is_with_flows=True)
        async with on_node(lab, "ours", FULL_NODE, SETTINGS, addresses=FULL_NODE_ADDRESSES) as ours:
            good = await _ours(ours, times, found)
    return [*_results(found, nobody, good), _flow_result(again)]


def _results(
    found: Mapping[str, list[Recovered]], nobody: list[Recovered], good: list[float]
) -> list[Result]:
    empty = [one.total_s for one in nobody]
    results = [compared("recover_empty_node", empty, good, "s", against="a good log", limit=LIMIT_S)]
    for name, runs in sorted(found.items()):
        total = [one.total_s for one in runs]
        what = f"recover_{PODS}_{name}"
        results.append(compared(what, total, empty, "s", against="no pods", limit=LIMIT_S))
        results.append(compared(f"{what}_over_good_log", total, good, "s", against="a good log"))
        for step in STEPS:
            taken = [getattr(one, f"{step}_s") * 1000 for one in runs]
            others = [getattr(one, f"{step}_s") * 1000 for one in nobody]
            results.append(compared(f"{what}_{step}", taken, others, "ms", against="no pods"))
    return results


def _flow_result(again: list[int]) -> Result:
    return counted("take_over_sent_again", max(again), n=len(again), limit=1, against="of one TCP connection")


# -- our own pods ---------------------------------------------------------------------------------


async def _ours(bench: Bench, times: int, found: dict[str, list[Recovered]]) -> list[float]:
    """Recoveries after the loss of the state directory; returns what starts with a good log take."""
    living = await _add_pods(bench)
    good = []
    async with api_server(bench.node.namespace, PODS + 6, living), hanging(bench):
        for _ in range(times):
            for api, where in API_SERVERS.items():
                measured = await _recover(bench, {**SETTINGS, **where}, living)
                found.setdefault(f"own_{api}", []).append(measured)
                good.append((await _first_add(bench, {**SETTINGS, **where}, living))[1])
    return good


async def _add_pods(bench: Bench) -> dict[str, str]:
    """Pods of ours, with the runtime's cached results. Address by name."""
    names = numbered("stay", PODS)
    await bench.add_pods(names)
    living = {}
    for first in range(0, len(names), 16):
        kept = await bench.ask("results", names=names[first : first + 16])
        for name, said in kept.items():
            living[name] = said["result"]["ips"][0]["address"].partition("/")[0]
            entry = cache_entry(said["container_id"], result=said["result"], netns=said["netns"], pod=name)
            write_entry(bench.node.places.results, in_namespace(entry))
    return living


# -- the original's -------------------------------------------------------------------------------


async def _original(
    lab: Lab, name: str, api: str, like: Bench, *, is_with_flows: bool
) -> tuple[Recovered, list[int]]:
    """One take-over of a new node; with connections: how many packets each sent again."""
    node = await lab.add_node(name, FULL_NODE)
    theirs = Predecessor(lab, node)
    await theirs.attach(ENIS)
    await asyncio.to_thread(theirs.live, numbered("stay", PODS))
    try:
        async with (
            launcher_on(lab, node, like.node) as bench,
            api_server(node.namespace, PODS + 6, theirs.addresses),
            hanging(bench),
        ):
            flows = await asyncio.to_thread(_connect, theirs, like) if is_with_flows else []
            measured = await _recover(bench, {**SETTINGS, **API_SERVERS[api]}, theirs.addresses)
            if flows:
                await _wait_converted(bench)
            return measured, await asyncio.to_thread(lambda: [flow.end() for flow in flows])
    finally:
        await asyncio.to_thread(theirs.remove)
        await lab.fabric.remove(node.namespace)


def _connect(theirs: Predecessor, peer: Bench) -> list[Flow]:
    """Connections from a pod of each ENI to another node."""
    instance = peer.lab.region.world.instances[peer.node.instance_id]
    address = instance.primary_eni.primary
    flows = []
    for name in list(theirs.sandboxes)[:ENIS]:
        flows.append(Flow(theirs.sandboxes[name], peer.node.namespace, address))
    return flows


async def _wait_converted(bench: Bench) -> None:
    """Until the kernel is as ours wants it, and a second longer."""
    while (await bench.status())["problems"]["kernel"] or not _lines(bench, "foreign_objects_removed"):
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)


# -- one start ------------------------------------------------------------------------------------


async def _recover(bench: Bench, environment: Mapping[str, str], living: Mapping[str, str]) -> Recovered:
    """Take the log away, start the agent, and see what came of it.

    Raises:
        BenchError: an address of a living pod was assigned, or a pod has no lease.
    """
    places = bench.node.places
    if bench.node.is_running:
        await bench.lab.kill_agent(bench.node, signal.SIGTERM)
    shutil.rmtree(places.state)
    places.state.mkdir()
    _age(bench)
    seen = {event: len(_lines(bench, event)) for event in ("searched", "serving")}
    began, total_s, used_s = await _first_add(bench, environment, living)
    searched, serving = (_lines(bench, event)[seen[event]] for event in ("searched", "serving"))
    if searched["claims"] != len(living):
        raise BenchError(f"{searched['claims']} of {len(living)} pods were found; see {places.log}")
    return Recovered(
        total_s=total_s,
        started_s=searched["at"] - searched["elapsed_s"] - began,
        **{f"{step}_s": searched[f"{step}_s"] for step in ("gathered", "judged", "checked", "recorded")},
        served_s=serving["at"] - searched["at"],
        cpu_s=used_s,
    )


async def _first_add(
    bench: Bench, environment: Mapping[str, str], living: Mapping[str, str]
) -> tuple[float, float, float]:
    """When the agent was started, the seconds from there to the answer of an ADD that was waiting, and its CPU time.

    Raises:
        BenchError: it failed, it got an address in use, or a living pod has no lease.
    """
    names = numbered(f"first-{time.monotonic_ns()}", 1)
    await bench.ask("make", names=names)
    if bench.node.is_running:
        await bench.lab.kill_agent(bench.node)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(bench.ask("each", verb="ADD", side="ours", names=names))
        await asyncio.sleep(0.15)
        began, began_ns = time.time(), time.perf_counter_ns()
        await bench.lab.start_agent(bench.node, environment)
    used_s = cpu_s(bench.pid)
    raise_failures("the first ADD", [asked.result()])
    taken_s = (asked.result()["ended_ns"] - began_ns) / 1e9
    (said,) = (await bench.ask("results", names=names)).values()
    given = said["result"]["ips"][0]["address"].partition("/")[0]
    held = {address for pod in await bench.node.client.get("/v1/pods") for address in pod["addresses"]}
    if given in living.values() or not held >= set(living.values()):
        raise BenchError(f"{given} was given; {len(set(living.values()) - held)} living pods have no lease")
    await bench.delete_pods(names)
    await _quiet(bench)
    return began, taken_s, used_s


def _age(bench: Bench) -> None:
    """What tells of the last use of an address did so some time ago."""
    then = time.time() - QUIET_S
    for path in (bench.node.places.results, bench.node.places.run / "ipam.json"):
        if path.exists():
            os.utime(path, (then, then))


async def _quiet(bench: Bench) -> None:
    """Wait until the agent has done what it wanted to do."""
    while True:
        status = await bench.status()
        if not (status["open_intents"] or status["standing_veths"]):
            return
        await asyncio.sleep(0.05)


def _lines(bench: Bench, event: str) -> list[dict[str, Any]]:
    """The agent's log lines of a kind, with their time as seconds since the epoch."""
    found: list[dict[str, Any]] = []
    if not bench.node.places.log.exists():
        return found
    for line in bench.node.places.log.read_text().splitlines():
        if f'"{event}"' in line:
            read = json.loads(line)
            if read.get("event") == event:
                found.append({**read, "at": datetime.fromisoformat(read["time"]).timestamp()})
    return found
