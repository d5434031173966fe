"""``python -m bench``: run every section, print the table, write ``build/bench/report.json``."""

from __future__ import annotations

import argparse
import asyncio
import compileall
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vpccni.lab.fabric.enter import enter_world, why_impossible

Section = Callable[[bool], Awaitable[list[Any]]]


def sections() -> dict[str, Section]:
    """Name and measurement, in the order in which they run. Imported late: a world is entered before."""
    from bench import cold, durable, export, footprint, pieces, recovery, start, warm

    return {
        "warm": warm.one_at_a_time,
        "at-once": warm.at_once,
        "soak": warm.soak,
        "start": start.starts,
        "million": start.million,
        "restart": start.restarts,
        "recovery": recovery.recovery,
        "export": export.export,
        "cold": cold.burst,
        "churn": cold.churn,
        "footprint": footprint.footprint,
        "imports": footprint.imports,
        "durable": durable.durable,
        "pieces": pieces.pieces,
    }


SECTIONS = (
    "warm",
    "at-once",
    "soak",
    "start",
    "million",
    "restart",
    "recovery",
    "export",
    "cold",
    "churn",
    "footprint",
    "imports",
    "durable",
    "pieces",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when everything was measured, 1 when a section broke, 2 when nothing can be measured here."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="run this section; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="few measurements: does it run, roughly how fast"
    )
    parser.add_argument("--json", action="store_true", help="print the report instead of the table")
    options = parser.parse_args(arguments)
    reason = why_impossible()
    if reason is not None:
        print(f"bench: {reason.message}", file=sys.stderr)
        return 2
    enter_world()
    return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    import msgspec

    from bench import machine, report, stage

    if not (stage.ROOT / "build" / "plugin" / "aws-cni").exists():
        print("bench: there is no build/plugin/aws-cni; run `make plugin`", file=sys.stderr)
        return 2
    if stage.peer_directory() is None:
        _say("containernetworking-plugins is not installed: nothing to compare with")
    # As the image has it. Otherwise, where Python may write no bytecode, each start would compile the sources.
    compileall.compile_dir(str(stage.ROOT / "vpccni"), quiet=2)
    report.REPORT.parent.mkdir(parents=True, exist_ok=True)
    facts = {**machine.describe(report.REPORT.parent), "quick": options.quick}
    _say(machine.one_line(facts))
    results: list[report.Result] = []
    broken: dict[str, str] = {}
    began = time.monotonic()
    for name, measure in sections().items():
        if options.only and name not in options.only:
            continue
        _say(f"[{time.monotonic() - began:4.0f} s] {name}")
        try:
            found = await measure(options.quick)
        except Exception as error:
            broken[name] = _reason(error)
            _say(f"         broke: {broken[name]}")
            continue
        results += found
        report.write(results, facts)  # what was measured so far survives an interruption
    facts |= {"seconds": round(time.monotonic() - began, 1), "broken": broken}
    report.write(results, facts)
    if options.json:
        print(msgspec.json.format(report.REPORT.read_bytes(), indent=2).decode())
    else:
        _show(report.rows(results), report.HEADINGS, machine.one_line(facts))
        print(f"{report.REPORT}; {facts['seconds']:.0f} s")
    for name, reason in broken.items():
        print(f"bench: {name} broke: {reason}", file=sys.stderr)
    return 1 if broken else 0


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(rows: list[tuple[str, ...]], headings: tuple[str, ...], caption: str) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headings, caption=caption, header_style="bold")
        for row in rows:
            table.add_row(*row, style="red" if row[-1] == "MISSED" else "")
        Console().print(table)
        return
    print(caption)
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
