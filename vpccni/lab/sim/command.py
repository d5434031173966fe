"""``vpccni lab sim``: one simulation, what it found, and everything needed to look into it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vpccni.adapters.log_format import opened
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.events.codec import Record
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.shrink import gist_of, shrink
from vpccni.lab.sim.world import Outcome, World, plan_of, simulate

OUT: Final = Path("build/sim")
OPERATIONS: Final = 2000
NODES: Final = 3
TRIES_MAX: Final = 80
SHRINK_S_MAX: Final = 120.0
_BATCH: Final = 500


def fresh_seed() -> int:
    """One that nobody has chosen, short enough to be typed."""
    return int.from_bytes(os.urandom(3))


class Report(msgspec.Struct, kw_only=True):
    """A simulation, and what a failed one left.

    Attributes:
        outcome: What it came to.
        cpu_s: CPU seconds of the simulation itself.
        again: The command line that repeats it.
        culprits: Faults that break the same promise, as few as were found; empty when every promise held.
        with_culprits: What those few break; empty when by themselves they break nothing.
        left: Files that were written, by what they are.
    """

    outcome: Outcome
    cpu_s: float
    again: str
    culprits: tuple[Fault, ...] = ()
    with_culprits: str = ""
    left: dict[str, str] = {}

    @property
    def is_good(self) -> bool:
        """Whether every promise held."""
        return not self.outcome.broken

    @property
    def operations_per_cpu_s(self) -> float:
        """Speed of the simulator."""
        return self.outcome.operations / max(self.cpu_s, 1e-9)


def run(
    seed: int,
    operations: int = OPERATIONS,
    nodes: int = NODES,
    *,
    trace: Path | None = None,
    faults: Path | None = None,
    out: Path = OUT,
    is_shrinking: bool = True,
    progress: Callable[[int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Simulate, and keep what is needed to look into a broken promise.

    Args:
        seed: Same seed and arguments, same trace, byte for byte.
        operations: ADDs and DELs.
        nodes: Machines on the one account.
        trace: Where the trace goes; by default only a failed run leaves one.
        faults: A file of faults (JSON, as a failed run leaves it) in place of the seed's.
        out: Where a failed run leaves its trace, its faults and the logs of its nodes.
        is_shrinking: Look for fewer faults that break the same promise.
        progress: Called now and then with the operations so far.
        tell: Called as soon as a promise is broken, with what and with the command that repeats the run.

    Raises:
        OSError: a file cannot be read or written.
        msgspec.DecodeError: ``faults`` is no list of faults.
    """
    given = msgspec.json.decode(faults.read_bytes(), type=tuple[Fault, ...]) if faults is not None else None
    out.mkdir(parents=True, exist_ok=True)  # Rather now than when there is something to keep.
    with contextlib.ExitStack() as stack:
        file = None
        if trace is not None:
            trace.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(trace.open("w"))
        began = time.process_time()
        outcome = simulate(
            seed=seed, operations=operations, nodes=nodes, faults=given, file=file, progress=progress
        )
        cpu_s = time.process_time() - began
    report = Report(outcome=outcome, cpu_s=cpu_s, again=command_of(outcome, operations, faults))
    if trace is not None:
        report.left["trace"] = str(trace)
    if outcome.broken:
        planned = given if given is not None else plan_of(seed, operations=operations, nodes=nodes)
        culprits = tuple(fault for fault in planned if fault.at <= outcome.broken_at_s)
        if tell is not None:
            tell(f"BROKEN after {outcome.broken_at_s:.1f} s: {outcome.broken}\nagain: {report.again}")
        report.culprits = culprits
        if is_shrinking:
            with contextlib.suppress(KeyboardInterrupt):  # Enough of looking: all of them, then.
                report.culprits = _fewer(outcome, culprits, operations)
        _leave(report, operations, out)
    return report


def words_of(report: Report) -> str:
    """A report for people."""
    outcome = report.outcome
    lines = [
        f"seed {outcome.seed}: {outcome.operations} operations on {outcome.nodes} nodes in "
        f"{outcome.virtual_s / 3600.0:.1f} virtual hours, {outcome.faults} faults, {outcome.starts} starts, "
        f"{outcome.ec2_calls} EC2 calls, {outcome.events} events, {outcome.checks} checks",
        f"  {report.cpu_s:.1f} CPU seconds, {report.operations_per_cpu_s:.0f} operations a CPU second",
        f"  trace sha256 {outcome.digest} ({outcome.lines} lines)",
    ]
    if report.is_good:
        lines.append("  every promise held")
        return "\n".join(lines) + "\n"
    lines.append(f"  BROKEN after {outcome.broken_at_s:.1f} s: {outcome.broken}")
    lines.append(f"  with {len(report.culprits)} faults: {report.with_culprits or 'every promise held'}")
    lines += [f"    {_told(fault)}" for fault in report.culprits]
    lines += [f"  {what}: {path}" for what, path in report.left.items()]
    lines.append(f"  again: {report.again}")
    return "\n".join(lines) + "\n"


def json_of(report: Report) -> dict[str, Any]:
    """A report for machines."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    return {
        "ok": report.is_good,
        **plain.pop("outcome"),
        "operations_per_cpu_s": round(report.operations_per_cpu_s, 1),
        **plain,
    }


def command_of(outcome: Outcome, operations: int, faults: Path | None = None) -> str:
    """The command line that repeats a run."""
    command = f"vpccni lab sim --seed {outcome.seed} --operations {operations} --nodes {outcome.nodes}"
    return f"{command} --faults {faults}" if faults is not None else command


def _fewer(outcome: Outcome, faults: Sequence[Fault], operations: int) -> tuple[Fault, ...]:
    """The shrunk list; the whole one when it alone does not break the same promise."""
    gist, began = gist_of(outcome.broken), time.monotonic()

    def still_fails(some: Sequence[Fault]) -> bool:
        if time.monotonic() - began > SHRINK_S_MAX:
            return False
        again = simulate(seed=outcome.seed, operations=operations, nodes=outcome.nodes, faults=some)
        return gist_of(again.broken) == gist

    return shrink(faults, still_fails, tries_max=TRIES_MAX)


def _leave(report: Report, operations: int, out: Path) -> None:
    """Run what is left of the faults once more, and keep everything about it."""
    outcome = report.outcome
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"seed-{outcome.seed}"
    listed, traced = stem.with_suffix(".faults.json"), stem.with_suffix(".trace")
    listed.write_bytes(msgspec.json.format(msgspec.json.encode(report.culprits), indent=1) + b"\n")
    logs: list[tuple[str, list[Record]]] = []

    def keep_logs(world: World) -> None:
        logs.extend((node.name, [opened(one) for one in node.store.events]) for node in world.nodes)

    with traced.open("w") as file:
        again = simulate(
            seed=outcome.seed,
            operations=operations,
            nodes=outcome.nodes,
            faults=report.culprits,
            file=file,
            look=keep_logs,
        )
    report.with_culprits = again.broken
    report.left |= {"faults": str(listed), "trace": str(traced)}
    for name, records in logs:
        if not again.node or name == again.node:
            path = stem.parent / f"{stem.name}-{name}.db"
            asyncio.run(_write_log(path, records))
            report.left[f"log of {name}"] = str(path)
    report.again = command_of(outcome, operations, listed)


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
    """``python -m vpccni.lab.sim``: many seeds in turn, without the libraries of the command line."""
    parser = argparse.ArgumentParser(prog="python -m vpccni.lab.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=fresh_seed(), help="default: a fresh one")
    parser.add_argument("--operations", type=int, default=OPERATIONS)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, counted up from the first")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--faults", type=Path, help="a list that a failed run left")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args(arguments)
    is_good = True
    for seed in range(options.seed, options.seed + options.runs):
        report = run(
            seed,
            options.operations,
            options.nodes,
            trace=options.trace,
            faults=options.faults,
            out=options.out,
            is_shrinking=not options.no_shrink,
        )
        is_good &= report.is_good
        sys.stdout.write(words_of(report))
        sys.stdout.flush()
    return 0 if is_good else 1
