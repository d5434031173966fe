"""``vpccni lab sim``: one simulation, what it found, and everything needed to look into it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

import msgspec

from vpccni.adapters.log_format import opened
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.events.codec import Record
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.shrink import gist_of, shrink
from vpccni.lab.sim.world import Outcome, World, plan_of, simulate

OUT: Final = Path("build/sim")
TRIES_MAX: Final = 80
SHRINK_S_MAX: Final = 120.0
_BATCH: Final = 500


def run(
    seed: int,
    operations: int = 2000,
    nodes: int = 3,
    *,
    trace: Path | None = None,
    faults: Path | None = None,
    out: Path = OUT,
    is_shrinking: bool = True,
    say: TextIO | None = None,
) -> int:
    """Simulate; print what came of it.

    Args:
        seed: Same seed and arguments, same trace, byte for byte.
        operations: ADDs and DELs.
        nodes: Machines on the one account.
        trace: Where the trace goes; by default only a failed run leaves one.
        faults: A file of faults (JSON, as a failed run leaves it) in place of the seed's.
        out: Where a failed run leaves its trace, its faults and the logs of its nodes.
        is_shrinking: Look for fewer faults that break the same promise.
        say: Where to print; standard output by default.

    Returns:
        0 when every promise held, 1 when one was broken.
    """
    stream = say if say is not None else sys.stdout
    given = msgspec.json.decode(faults.read_bytes(), type=tuple[Fault, ...]) if faults is not None else None
    began = time.process_time()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        with trace.open("w") as file:
            outcome = simulate(seed=seed, operations=operations, nodes=nodes, faults=given, file=file)
    else:
        outcome = simulate(seed=seed, operations=operations, nodes=nodes, faults=given)
    _summarize(stream, outcome, time.process_time() - began)
    if not outcome.broken:
        return 0
    planned = given if given is not None else plan_of(seed, operations=operations, nodes=nodes)
    culprits = tuple(fault for fault in planned if fault.at <= outcome.broken_at_s)
    if is_shrinking:
        culprits = _fewer(outcome, culprits, operations)
    _leave(stream, outcome, culprits, operations, out)
    return 1


def _summarize(stream: TextIO, outcome: Outcome, cpu_s: float) -> None:
    hours = outcome.virtual_s / 3600.0
    stream.write(
        f"seed {outcome.seed}: {outcome.operations} operations on {outcome.nodes} nodes in {hours:.1f} virtual "
        f"hours, {outcome.faults} faults, {outcome.starts} starts, {outcome.ec2_calls} EC2 calls, "
        f"{outcome.events} events, {outcome.checks} checks\n"
        f"  {cpu_s:.1f} CPU seconds, {outcome.operations / max(cpu_s, 1e-9):.0f} operations a CPU second\n"
        f"  trace sha256 {outcome.digest} ({outcome.lines} lines)\n"
    )
    if outcome.broken:
        stream.write(f"  BROKEN after {outcome.broken_at_s:.1f} s: {outcome.broken}\n")
    else:
        stream.write("  every promise held\n")


def _fewer(outcome: Outcome, faults: Sequence[Fault], operations: int) -> tuple[Fault, ...]:
    """The shrunk list; the whole one when it alone does not break the same promise."""
    gist, began = gist_of(outcome.broken), time.monotonic()

    def still_fails(some: Sequence[Fault]) -> bool:
        if time.monotonic() - began > SHRINK_S_MAX:
            return False
        again = simulate(seed=outcome.seed, operations=operations, nodes=outcome.nodes, faults=some)
        return gist_of(again.broken) == gist

    return shrink(faults, still_fails, tries_max=TRIES_MAX)


def _leave(stream: TextIO, outcome: Outcome, faults: Sequence[Fault], operations: int, out: Path) -> None:
    """Run what is left of the faults once more, and keep everything about it."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"seed-{outcome.seed}"
    listed = stem.with_suffix(".faults.json")
    listed.write_bytes(msgspec.json.format(msgspec.json.encode(faults), indent=1) + b"\n")
    logs: list[tuple[str, list[Record]]] = []

    def keep_logs(world: World) -> None:
        logs.extend((node.name, [opened(one) for one in node.store.events]) for node in world.nodes)

    with stem.with_suffix(".trace").open("w") as file:
        again = simulate(
            seed=outcome.seed,
            operations=operations,
            nodes=outcome.nodes,
            faults=faults,
            file=file,
            look=keep_logs,
        )
    stream.write(f"  with {len(faults)} faults: {again.broken or 'every promise held'}\n")
    for fault in faults:
        stream.write(f"    {_told(fault)}\n")
    for name, records in logs:
        if not again.node or name == again.node:
            path = stem.parent / f"{stem.name}-{name}.db"
            asyncio.run(_write_log(path, records))
            stream.write(f"  log of {name}: {path}\n")
    stream.write(
        f"  trace: {stem}.trace\n"
        f"  again: vpccni lab sim --seed {outcome.seed} --operations {operations} --nodes {outcome.nodes} "
        f"--faults {listed}\n"
    )


def _told(fault: Fault) -> str:
    fields = msgspec.to_builtins(fault)
    return " ".join(f"{name}={value}" for name, value in fields.items())


async def _write_log(path: Path, records: list[Record]) -> None:
    """The records as the agent's own log, so that ``vpccni replay`` can be pointed at it."""
    for stale in path.parent.glob(path.name + "*"):
        stale.unlink()
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    for start in range(0, len(records), _BATCH):
        await log.append(records[start : start + _BATCH])
    await log.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m vpccni.lab.sim``."""
    parser = argparse.ArgumentParser(prog="vpccni lab sim", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(3)), help="default: a fresh one"
    )
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, counted up from the first")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--faults", type=Path, help="a list that a failed run left")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args(arguments)
    code = 0
    for seed in range(options.seed, options.seed + options.runs):
        code |= run(
            seed,
            options.operations,
            options.nodes,
            trace=options.trace,
            faults=options.faults,
            out=options.out,
            is_shrinking=not options.no_shrink,
        )
        sys.stdout.flush()
    return code
