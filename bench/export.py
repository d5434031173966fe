"""What the file for the original, kept up to date all the time, costs an ADD."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Final

from bench.api_server import furnish_run
from bench.report import Result, compared
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
from vpccni.loops.export import PERIOD_S

PODS: Final = 228
RATIO_MAX: Final = 1.02
BLOCK: Final = 10
"""Lives of pods between two switches: a second or so, in which the file is written twice."""
IN_MEMORY: Final = Path("/run/bench-ipam.json")
"""A node's ``/var/run`` is a tmpfs, and so is this world's ``/run``; the lab's run directories are on the disk."""


async def export(quick: bool) -> list[Result]:
    """ADDs on a node with 228 pods, in one agent whose export is switched off and on in turns.

    With the file in memory, as on a node, and with the file on the disk that the log is on.
    """
    furnish_run(ROOT / "build" / "bench" / "labs")
    blocks = 2 if quick else 20
    results = []
    async with stage("export") as lab:
        lab.agent_program = ("-m", "bench.switched")
        for name, settings in (
            ("export_add", {"AWS_VPC_K8S_CNI_BACKING_STORE": str(IN_MEMORY)}),
            ("export_add_file_on_disk", {}),
        ):
            node = name.replace("_", "-")
            async with on_node(
                lab, node, environment={**FILLED, **settings}, addresses=FULL_NODE_ADDRESSES
            ) as bench:
                await bench.add_pods(numbered("stay", PODS))
                with_it, without = await _in_turns(bench, blocks)
            # On a node the file is in memory. With the file on the log's disk it is told, not judged.
            limit = RATIO_MAX if settings else None
            results.append(
                compared(name, with_it, without, "ms", against="export switched off", ratio_limit=limit)
            )
    return results


async def _in_turns(bench: Bench, blocks: int) -> tuple[list[float], list[float]]:
    """Milliseconds of ADDs with the export on and off, as many blocks of each."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(-1, 2 * blocks):
        is_on = turn % 4 in (0, 3)  # on, off, off, on: what drifts meets both alike
        bench.signal(signal.SIGUSR2 if is_on else signal.SIGUSR1)
        await asyncio.sleep(2 * PERIOD_S)  # a write that was under way is over
        before = _written(bench)
        for _ in range(BLOCK):
            answer = await bench.ask("cycle", side="ours")
            raise_failures("a pod", [answer])
            if turn >= 0:
                taken[is_on].append(answer["add"])
        if (_written(bench) != before) != is_on:
            raise BenchError(
                "the checkpoint file was " + ("not written" if is_on else "written all the same")
            )
    return taken[True], taken[False]


def _written(bench: Bench) -> tuple[int, int]:
    status = bench.checkpoint.stat()
    return status.st_ino, status.st_mtime_ns
