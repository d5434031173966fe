"""How many ADDs a second become durable, with the wiring of pods left out."""

from __future__ import annotations

import asyncio
import statistics
from typing import Final

from bench.machine import fdatasync_ms
from bench.report import Result, compared
from bench.stage import FULL_NODE_ADDRESSES, Bench, on_node, raise_failures, stage

CALLERS: Final = (1, 8, 110)
ADDS: Final = 220
"""In one measurement: nearly all addresses of the node."""


async def durable(quick: bool) -> list[Result]:
    """ADDs at the socket by 1, 8 and 110 callers, as many times the rate of ``fdatasync`` on the log's disk."""
    rounds = 1 if quick else 7
    rates: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    synced: list[float] = []
    async with stage("durable") as lab:
        lab.agent_program = ("-m", "bench.unwired")
        async with on_node(lab, "node", addresses=FULL_NODE_ADDRESSES) as bench:
            for turn in range(-1, rounds):
                for callers in CALLERS:
                    rate = await _rate(bench, callers, f"pod-{callers}-{turn + 1}")
                    if turn >= 0:
                        rates[callers].append(rate)
                synced += fdatasync_ms(bench.node.places.events.parent, 50)
    syncs = 1000.0 / statistics.median(synced)
    results = [
        compared(f"durable_adds_{callers}_callers", rates[callers], syncs, "1/s", against="fdatasync")
        for callers in CALLERS
    ]
    one, many = ([1000.0 / rate for rate in rates[callers]] for callers in (CALLERS[0], CALLERS[-1]))
    results.append(
        compared("durable_add_110_callers_ms_each", many, one, "ms", against="1 caller", ratio_limit=0.25)
    )
    return results


async def _free(bench: Bench) -> None:
    """Wait until the addresses can be given again: the sweep takes seconds to see that no veth is left."""
    while (status := await bench.status())["standing_veths"] or status["pool"]["free"] < ADDS:
        await asyncio.sleep(0.1)


async def _rate(bench: Bench, callers: int, prefix: str) -> float:
    """ADDs a second."""
    names = [f"{prefix}-{number}" for number in range(ADDS)]
    socket = str(bench.node.places.socket)
    added = await bench.ask("callers", socket=socket, verb="ADD", names=names, at_once=callers)
    raise_failures("ADD", [added])
    ended = await bench.ask("callers", socket=socket, verb="DEL", names=names, at_once=110)
    raise_failures("DEL", [ended])
    await _free(bench)
    return ADDS / float(added["seconds"])
