"""Plant each bug in a copy of the package and see how soon the simulator finds it.

Looks at 20 seeds at most, each of 1,500 operations on 3 nodes. Exits with 1 when a bug is not found by them, does not
apply or fails otherwise than by breaking a promise, and when the package as it is breaks one with the same seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.sim.mutants.planting import NODES, OPERATIONS, SEEDS, Verdict, apply, copy_package, hunt, patches

SAID_MAX = 110


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="of patches; all of them by default")
    parser.add_argument("--check", action="store_true", help="only try whether every patch applies")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"at most so many for each ({SEEDS})")
    parser.add_argument("--json", action="store_true", help="one document in place of the table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table there, as Markdown")
    options = parser.parse_args(arguments)
    chosen = [path for path in patches() if not options.names or path.stem in options.names]
    unknown = set(options.names) - {path.stem for path in chosen}
    if unknown:
        parser.error(f"no such patch: {', '.join(sorted(unknown))}")
    if options.check:
        return check(chosen)
    verdicts = hunt_all(chosen, options.jobs, options.seeds)
    told = sorted(verdicts, key=lambda verdict: verdict.name)
    with tempfile.TemporaryDirectory() as directory:
        # Whatever found a bug must find nothing in the package as it is.
        control = hunt(None, Path(directory), max(verdict.seed for verdict in told))
    is_good = control.state == "missed" and all(verdict.state == "found" for verdict in told)
    if options.json:
        document = {"ok": is_good, "control": control, "planted": told}
        print(json.dumps(document, default=dataclasses.asdict, indent=1))
    else:
        show(told, control)
    if options.write is not None and is_good:
        options.write.write_text(markdown(told, control))
    return 0 if is_good else 1


def check(chosen: Sequence[Path]) -> int:
    """Whether each applies to the package as it is."""
    troubles = 0
    with tempfile.TemporaryDirectory() as directory:
        copy_package(Path(directory))
        for patch in chosen:
            trouble = apply(patch, Path(directory), "--dry-run")
            if trouble:
                troubles += 1
                print(f"{patch.stem}: does not apply\n{trouble}", file=sys.stderr)
    return 1 if troubles else 0


def hunt_all(chosen: Sequence[Path], jobs: int, seeds: int) -> list[Verdict]:
    """All of them, a few at a time; each that is done is told on stderr."""
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(max(1, jobs)) as pool:
        running = []
        for patch in chosen:
            where = Path(directory) / patch.stem
            where.mkdir()
            running.append(pool.submit(hunt, patch, where, seeds))
        for done in as_completed(running):
            verdict = done.result()
            verdicts.append(verdict)
            place = f"{len(verdicts)}/{len(chosen)}"
            what = f"{verdict.name}: {found_by(verdict)}, {verdict.seconds:.0f} s"
            print(f"[{place}] {what}", file=sys.stderr, flush=True)
    return verdicts


def found_by(verdict: Verdict) -> str:
    if verdict.state == "found":
        return f"seed {verdict.seed}" if verdict.seed else "scenario"
    return "NOT FOUND" if verdict.state == "missed" else verdict.state.upper()


def control_sentence(control: Verdict) -> str:
    if control.state == "missed":
        return f"Without a patch seeds 1 to {control.seed} break nothing in {control.operations:,} operations"
    return f"WITHOUT a patch seed {control.seed}: {control.state}, {control.said}"


def show(verdicts: Sequence[Verdict], control: Verdict) -> None:
    caption = f"At most {SEEDS} seeds, each of {OPERATIONS} operations on {NODES} nodes."
    table = Table(title="Planted bugs", caption=caption, show_lines=True)
    table.add_column("Planted", ratio=4)
    table.add_column("Found by", no_wrap=True)
    table.add_column("Operations", justify="right")
    table.add_column("Seconds", justify="right")
    table.add_column("What was said", ratio=4)
    for verdict in verdicts:
        table.add_row(
            f"[bold]{verdict.name}[/]\n{verdict.rule}",
            found_by(verdict) if verdict.state == "found" else f"[red]{found_by(verdict)}[/]",
            f"{verdict.operations:,}",
            f"{verdict.seconds:.0f}",
            verdict.said[:SAID_MAX].replace("[", "\\["),
        )
    # A table that is read in a file wants a width, too.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"{control_sentence(control)}.", highlight=False)


def markdown(verdicts: Sequence[Verdict], control: Verdict) -> str:
    """The table without times: the same package and patches give the same file."""
    first = sum(verdict.seed == 1 for verdict in verdicts)
    lines = [
        "# Planted bugs",
        "",
        "`make mutants` writes this page. Each patch in `tests/sim/mutants` breaks one rule of the agent.",
        f"The simulator runs seeds 1, 2, 3, … with it, at most {SEEDS}, each of {OPERATIONS:,} operations on",
        f"{NODES} nodes, until a promise is broken. *Operations* are the ADDs and DELs until then, those of the",
        "seeds before included. A patch that concerns what the seeds' regions do not have names a scenario of",
        "`tests/sim` instead.",
        "",
        f"{len(verdicts)} bugs, {first} of them found by the first seed. {control_sentence(control)}.",
        "",
        "| Planted | Found by | Operations | What was said |",
        "|---|---|--:|---|",
    ]
    for verdict in verdicts:
        said = verdict.said if len(verdict.said) <= SAID_MAX else verdict.said[: SAID_MAX - 1] + "…"
        said = said.replace("|", "\\|").replace("`", "'")
        planted = f"**{verdict.name.replace('_', ' ')}**: {verdict.rule}"
        operations = f"{verdict.operations:,}" if verdict.seed else ""
        lines.append(f"| {planted} | {found_by(verdict)} | {operations} | `{said}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
