"""What ``lab sim`` shows: a line of progress on a terminal, and what came of the simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vpccni.cli.output import console, print_json
from vpccni.cli.problems import NOT_GOOD, USAGE, CommandError
from vpccni.lab.sim import command


def run(
    *,
    seed: int | None,
    operations: int,
    nodes: int,
    trace: Path | None,
    faults: Path | None,
    out: Path,
    is_shrinking: bool,
    as_json: bool,
) -> int:
    """Simulate and show it; return the exit code.

    Raises:
        CommandError: a file cannot be read or written.
    """
    chosen = seed if seed is not None else command.fresh_seed()
    screen = console(stderr=True)
    if seed is None and not as_json:
        # At once: of a run that is interrupted the seed must be known, too.
        sys.stdout.write(f"seed {chosen} (a fresh one)\n")
        sys.stdout.flush()
    bar = Progress(
        TextColumn(f"seed {chosen}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("operations"),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
        disable=as_json or not screen.is_terminal,
    )
    try:
        with bar:
            task = bar.add_task("", total=operations)
            report = command.run(
                chosen,
                operations,
                nodes,
                trace=trace,
                faults=faults,
                out=out,
                is_shrinking=is_shrinking,
                progress=lambda done: bar.update(task, completed=min(done, operations)),
                tell=lambda what: screen.print(what, markup=False, highlight=False, soft_wrap=True),
            )
    except OSError as error:
        raise CommandError(f"{error.filename or trace or out}: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise CommandError(f"{faults} is no list of faults: {error}.", USAGE) from error
    if as_json:
        print_json(command.json_of(report))
    else:
        sys.stdout.write(command.words_of(report))
    return 0 if report.is_good else NOT_GOOD
