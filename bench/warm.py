"""Warm pods: one at a time, many at once, and ten thousand."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec

from bench.report import Result, compared, counted
from bench.stage import (
    FULL_NODE_ADDRESSES,
    PEER,
    Bench,
    BenchError,
    numbered,
    on_node,
    peer_directory,
    raise_failures,
    stage,
)

LEVELS = (1, 100, 228)
BURSTS = (50, 110)


async def one_at_a_time(quick: bool) -> list[Result]:
    """ADD and DEL through the whole executable, on nodes with few and with many pods, in turns.

    A round is one life of a pod on each node and of each side, so that whatever else the machine does meets all
    of them alike.
    """
    rounds = 6 if quick else 80
    sides = ["ours", "peer"] if peer_directory() else ["ours"]
    times: dict[tuple[int, str, str], list[float]] = {}
    async with stage("warm") as lab, AsyncExitStack() as nodes:
        benches: dict[int, Bench] = {}
        for level in LEVELS:
            bench = await nodes.enter_async_context(
                on_node(lab, f"pods-{level}", addresses=FULL_NODE_ADDRESSES)
            )
            await bench.add_pods(numbered("stay", level))
            benches[level] = bench
        for turn in range(-2, rounds):
            for level in LEVELS[turn % 3 :] + LEVELS[: turn % 3]:
                bench = benches[level]
                for side in sides if turn % 2 else reversed(sides):
                    answer = await bench.ask("cycle", side=side)
                    raise_failures(f"{side} with {level} pods", [answer])
                    if turn >= 0:
                        for verb in ("add", "del"):
                            times.setdefault((level, side, verb), []).append(answer[verb])
    return _one_at_a_time_results(times)


def _one_at_a_time_results(times: dict[tuple[int, str, str], list[float]]) -> list[Result]:
    results = []
    for verb, most in (("add", 0.5), ("del", 0.1)):
        results += [
            compared(
                f"warm_{verb}_with_{level}_pods",
                times[level, "ours", verb],
                times.get((level, "peer", verb)),
                "ms",
                against=PEER,
                ratio_limit=most,
            )
            for level in LEVELS
        ]
        flat, few = times[LEVELS[-1], "ours", verb], times[LEVELS[0], "ours", verb]
        results.append(
            compared(f"warm_{verb}_flatness", flat, few, "ms", against="ours with 1 pod", ratio_limit=1.1)
        )
        tails = [sorted(times[level, "ours", verb]) for level in LEVELS]
        together = [value for series in tails for value in series]
        tail = compared(
            f"warm_{verb}_p99_over_p50",
            [sorted(together)[int(len(together) * 0.99)]],
            together,
            "ms",
            against="p50",
            ratio_limit=2.0,
        )
        results.append(msgspec.structs.replace(tail, n=len(together), peer_p99=None))
    return results


async def at_once(quick: bool) -> list[Result]:
    """50 and 110 ADDs at the same moment: the time to the last one."""
    rounds = 1 if quick else 5
    sides = ["ours", "peer"] if peer_directory() else ["ours"]
    results = []
    failures = count = 0
    async with stage("burst") as lab, on_node(lab, "warm", addresses=FULL_NODE_ADDRESSES) as bench:
        for burst in BURSTS:
            last: dict[str, list[float]] = {"ours": [], "peer": []}
            for turn in range(-1, rounds):
                for side in sides if turn % 2 else reversed(sides):
                    answer = await _burst(bench, side, numbered(f"{side}-{turn + 1}", burst))
                    if side == "ours":
                        failures, count = failures + int(answer["failures"]), count + burst
                    elif answer["failures"]:
                        raise BenchError(f"{PEER}: {answer['failed'][0]}")
                    if turn >= 0:
                        last[side].append(answer["last_ms"])
            results.append(
                compared(
                    f"warm_{burst}_at_once_last",
                    last["ours"],
                    last["peer"] or None,
                    "ms",
                    against=PEER,
                    ratio_limit=0.7,
                )
            )
    return [*results, counted("warm_at_once_failed", failures, n=count, limit=0)]


async def _burst(bench: Bench, side: str, names: list[str]) -> dict[str, Any]:
    await bench.ask("make", names=names)
    answer = await bench.ask("together", verb="ADD", side=side, names=names)
    await bench.ask("together", verb="DEL", side=side, names=names)
    await bench.ask("drop", names=names)
    return answer


async def soak(quick: bool) -> list[Result]:
    """Ten thousand pods, fifty at a time."""
    windows, width = (12, 50) if quick else (200, 50)
    async with stage("soak") as lab, on_node(lab, "soak", addresses=FULL_NODE_ADDRESSES) as bench:
        failures = 0
        for _ in range(windows // 4):
            answer = await bench.ask("soak", side="ours", windows=4, width=width)
            failures += answer["failures"]
    return [counted("soak_failed", failures, n=windows * width, limit=0)]
