"""What the agent costs a node that does nothing: memory, imports, CPU, calls."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.api_server import ENVIRONMENT, api_server, furnish_run
from bench.report import Result, compared, counted
from bench.stage import FILLED, FULL_NODE, FULL_NODE_ADDRESSES, ROOT, Bench, numbered, on_node, stage

RSS_LIMIT_MIB: Final = 130.0
CPU_LIMIT_S: Final = 0.035
IMPORTS_SHOWN: Final = 12
AT_REST_S: Final = 18.0
"""After so long an agent that is left alone has loaded what it loads late, and has tidied its log."""
_SCRATCH: Final = ROOT / "build" / "bench" / "labs"


async def footprint(quick: bool) -> list[Result]:
    """An agent on a full node with every client loaded: its memory, and a minute of nothing with 110 pods."""
    seconds = 10.0 if quick else 62.0
    async with _whole_agent("footprint") as bench:
        await asyncio.sleep(AT_REST_S)
        results = [_rss(bench, 0)]
        await bench.add_pods(numbered("pod", 110))
        results.append(_rss(bench, 110))
        await asyncio.sleep(AT_REST_S / 3 if quick else AT_REST_S)
        imds, journal = bench.lab.region.imds, bench.lab.region.journal
        before = (cpu_s(bench.pid), len(journal), imds.request_count)
        await asyncio.sleep(seconds)
        after = (cpu_s(bench.pid), len(journal), imds.request_count)
        await bench.add_pods(numbered("pod", FULL_NODE_ADDRESSES - 110, 110))
        results.append(_rss(bench, FULL_NODE_ADDRESSES))
    cpu, calls, reads = ((late - early) * 60.0 / seconds for early, late in zip(before, after, strict=True))
    return [
        *results,
        counted("idle_cpu_per_minute", cpu, n=1, unit="s", limit=CPU_LIMIT_S),
        counted("idle_ec2_calls_per_minute", calls, n=1, unit="1/min", limit=0),
        counted("idle_imds_reads_per_minute", reads, n=1, unit="1/min", limit=8),
    ]


def _rss(bench: Bench, pods: int) -> Result:
    return counted(f"rss_with_{pods}_pods", rss_mib(bench.pid), n=1, unit="MiB", limit=RSS_LIMIT_MIB)


async def imports(quick: bool) -> list[Result]:
    """What importing the agent costs, whole and by library (its own modules, without what they import)."""
    runs = [_imported() for _ in range(1 if quick else 5)]
    results = [
        compared("import_agent", [run["total_ms"] for run in runs], None, "ms", against=""),
        counted("import_agent_rss", runs[-1]["total_mib"], n=1, unit="MiB"),
    ]
    costly = sorted(runs[0]["packages"], key=lambda name: -runs[0]["packages"][name]["ms"])
    results += [
        compared(
            f"import_{name}",
            [run["packages"].get(name, {"ms": 0.0})["ms"] for run in runs],
            None,
            "ms",
            against=f"{runs[-1]['packages'].get(name, {'mib': 0.0})['mib']:.1f} MiB",
        )
        for name in costly[:IMPORTS_SHOWN]
    ]
    return results


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {pid} has no memory")
    return int(found[1]) / 1024


def cpu_s(pid: int) -> float:
    """CPU time of a process with all its threads, in nanosecond resolution: its own clock (``cpuclock``)."""
    return time.clock_gettime(~pid << 3 | 2)


@asynccontextmanager
async def _whole_agent(name: str) -> AsyncIterator[Bench]:
    """An agent on a full node that has asked EC2, IMDS and an API server."""
    furnish_run(_SCRATCH)
    async with stage(name) as lab, on_node(lab, name, FULL_NODE, FILLED) as bench:
        await bench.wait_addresses(FULL_NODE_ADDRESSES)
        async with api_server(bench.node.namespace, pods=234):
            environment = {**FILLED, **ENVIRONMENT}
            del environment["VPCCNI_MAX_PODS"]
            await bench.restart(environment)
            await lab.wait_ready(bench.node)
            while (await bench.status())["max_pods"] != 234:
                await asyncio.sleep(0.1)
            yield bench


def _imported() -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "import_cost.py")],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    cost: dict[str, Any] = json.loads(ended.stdout)
    return cost
