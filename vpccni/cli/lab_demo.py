"""What runs inside the world for ``lab demo`` and ``lab up``: the event loop around the lab."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from rich.console import Console

from vpccni.cli.demo_screen import closing_table, live_screen, step_line
from vpccni.cli.lab_life import LAB_NAME, SUPERVISOR_START_VARIABLE
from vpccni.cli.output import console, print_json
from vpccni.cli.problems import NOT_GOOD, CommandError
from vpccni.lab.demo import Demo, DemoPlan, new_progress
from vpccni.lab.ec2 import REALISTIC_LATENCY_S
from vpccni.lab.fabric.enter import supervisor_pid
from vpccni.lab.lab import Lab, LabError, scaled_timing
from vpccni.lab.places import build_directory, volatile_filesystem
from vpccni.lab.progress import Progress, Step
from vpccni.lab.report import DemoReport
from vpccni.lab.standing import Standing, World

DEMO_NAME: Final = "demo"
FAST: Final = 10.0


def run(*, pods: int, fast: bool, keep: bool, report: Path | None, directory: Path, as_json: bool) -> int:
    """Run the demo and show it; return the exit code.

    Raises:
        CommandError: it could not begin.
    """
    plan = DemoPlan(pods=pods, speed=FAST, cooldown_s=1) if fast else DemoPlan(pods=pods)
    out = console(stderr=as_json)
    is_live = out.is_terminal and not as_json and not out.is_dumb_terminal
    progress = new_progress((lambda _: None) if is_live else (lambda step: _print_step(out, step)))
    target = report or build_directory() / "demo" / "report.json"
    try:
        return asyncio.run(_run(plan, progress, out, is_live, keep, target, directory, as_json))
    except LabError as error:
        raise CommandError(f"{error}.") from error


async def _run(
    plan: DemoPlan,
    progress: Progress,
    out: Console,
    is_live: bool,
    keep: bool,
    target: Path,
    directory: Path,
    as_json: bool,
) -> int:
    name = LAB_NAME if keep else DEMO_NAME
    async with Lab(name, directory=directory, latency_s=plan.latency_s, timing=plan.timing) as lab:
        volatile = volatile_filesystem(lab.directory)
        if volatile:
            out.print(
                f"note: {lab.directory} is on {volatile}: what is durable here outlives kills, not power."
            )
        demo = Demo(lab, plan, progress)
        screen: AbstractContextManager[None] = live_screen(progress, out) if is_live else nullcontext()
        with screen:
            report = await demo.run()
        report.write(target)
        if is_live:
            for step in progress.steps.values():
                _print_step(out, step)
        _show(report, out, target, lab)
        if as_json:
            print_json({name: getattr(report, name) for name in report.__struct_fields__ if name != "checks"})
        if keep:
            out.print("The region stands. Ctrl-C here or `vpccni lab down` elsewhere ends it.")
            standing = Standing(lab, _world(), directory, ledger=demo.ledger, runtimes=demo.runtimes)
            await standing.serve(_stop_event())
    return 0 if report.ok else NOT_GOOD


def _print_step(out: Console, step: Step) -> None:
    if step.state in ("ok", "failed"):
        out.print(step_line(step))


def _show(report: DemoReport, out: Console, target: Path, lab: Lab) -> None:
    out.print()
    out.print(closing_table(report))
    out.print()
    for check in report.checks:
        if not check.ok:
            out.print(f"✗ {check.name}: {check.detail}", style="red", markup=False)
    if not report.ok:
        out.print(f"The agents' logs: {', '.join(str(node.places.log) for node in lab.nodes.values())}")
    out.print(f"Figures: {target}   Logs: {lab.directory}", style="dim")


def stand(*, nodes: int, instance_type: str, env: dict[str, str], speed: float, directory: Path) -> None:
    """Run a standing lab until SIGTERM or SIGINT.

    Raises:
        CommandError: it did not come up.
    """
    try:
        asyncio.run(_stand(nodes, instance_type, env, speed, directory))
    except (LabError, TimeoutError) as error:
        raise CommandError(f"{error}.") from error
    except ExceptionGroup as group:
        expected, unforeseen = group.split((LabError, TimeoutError))
        if expected is None or unforeseen is not None:
            raise
        raise CommandError(f"{expected.exceptions[0]}.") from group


async def _stand(nodes: int, instance_type: str, env: dict[str, str], speed: float, directory: Path) -> None:
    latency_s = {action: seconds / speed for action, seconds in REALISTIC_LATENCY_S.items()}
    async with Lab(LAB_NAME, directory=directory, latency_s=latency_s, timing=scaled_timing(speed)) as lab:
        standing = Standing(lab, _world(), directory)
        async with asyncio.TaskGroup() as group:
            standing_up = group.create_task(
                _boot_and_serve(standing, nodes, instance_type, env), name="stand"
            )
            stop = _stop_event()
            stopping = group.create_task(_cancel_when(stop, standing_up), name="stop")
            standing_up.add_done_callback(lambda _: stopping.cancel())
    sys.stderr.write("ended\n")


async def _boot_and_serve(standing: Standing, nodes: int, instance_type: str, env: dict[str, str]) -> None:
    try:
        await standing.boot(nodes, instance_type, env)
        await standing.serve(asyncio.Event())  # until cancelled
    finally:
        standing.remove_note()


async def _cancel_when(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    await stop.wait()
    task.cancel()


def _world() -> World:
    return World(supervisor_pid(), int(os.environ.get(SUPERVISOR_START_VARIABLE, "0")))


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
