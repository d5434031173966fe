"""What a demo looks like: one live screen in a terminal, plain lines elsewhere, and one closing table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vpccni.cli.event_line import clock_of, style_of, words_of
from vpccni.cli.output import eni_table
from vpccni.lab.ec2.types import INSTANCE_TYPES
from vpccni.lab.progress import NodeView, Progress, Step
from vpccni.lab.report import DemoReport

_REFRESH_PER_S: Final = 5
_MARKS: Final = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "ok": ("✓", "green"),
    "failed": ("✗", "red"),
}


class DemoScreen:
    """Renders a progress as one screen, of the same height however far it is."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console

    def __rich__(self) -> RenderableType:
        width, height = self._console.size
        parts: list[RenderableType] = [self._head()]
        used = 1
        for node in self._progress.nodes.values():
            table, lines = self._node(node, width)
            parts += [Text(), table]
            used += lines + 1
        parts += [Text(), self._steps(), self._note()]
        used += 3
        parts += [Text("─" * width, style="dim"), *self._events(height - used - 1, width)]
        return Group(*parts)

    def _head(self) -> Text:
        head = Text("vpccni", style="bold") + Text(
            " · an emulated region, two nodes, real kernel networking   "
        )
        return head + Text(f"{self._progress.elapsed_s:5.1f} s", style="dim")

    def _node(self, node: NodeView, width: int) -> tuple[RenderableType, int]:
        slots = INSTANCE_TYPES[node.instance_type].enis
        title = Text(f"node {node.name} ", style="bold") + Text(node.instance_type, style="dim")
        if node.is_away:
            title += Text("   agent away", style="bold red")
        elif node.pool:
            pool = node.pool
            title += Text(
                f"   {pool['assigned']} pods · {pool['owned']} addresses: {pool['assigned']} assigned, "
                f"{pool['resting']} resting, {pool['free']} free"
            )
        if node.waiting and not node.is_away:
            title += Text(f" · {node.waiting} waiting", style="bold yellow")
        title.no_wrap, title.overflow = True, "ellipsis"
        table = eni_table(node.enis[:slots], width, rows_min=slots, more=_bar)
        return Group(title, table), slots + 2

    def _steps(self) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for step in self._progress.steps.values():
            mark, style = _MARKS[step.state]
            line.append(f"{mark} {step.title}  ", style=style)
        return line

    def _note(self) -> Text:
        running = [step for step in self._progress.steps.values() if step.state == "running"]
        ended = [step for step in self._progress.steps.values() if step.state in ("ok", "failed")]
        step = running[-1] if running else ended[-1] if ended else None
        note = "" if step is None else f"  {step.title}: {step.note}"
        if running and not running[-1].note and ended:
            note = f"  {ended[-1].title}: {ended[-1].note}"
        return Text(note, style="italic", no_wrap=True, overflow="ellipsis")

    def _events(self, count: int, width: int) -> list[Text]:
        shown = list(self._progress.events)[-max(0, count) :] if count > 0 else []
        lines = []
        for event in shown:
            line = Text(f"{event.node} {event.view['seq']:>4} {clock_of(event.view)} ", style="dim")
            line.append(words_of(event.view), style=style_of(event.view))
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return lines


def _bar(eni: dict[str, Any]) -> Text:
    """An ENI's addresses, one sign each: assigned, resting, free."""
    return (
        Text("█" * eni["assigned"], style="green")
        + Text("▒" * eni["resting"], style="yellow")
        + Text("░" * eni["free"], style="dim")
    )


@contextmanager
def live_screen(progress: Progress, console: Console) -> Iterator[None]:
    """Show the progress on the terminal's other screen while the block runs; the usual one comes back after."""
    with Live(
        DemoScreen(progress, console),
        console=console,
        screen=True,
        refresh_per_second=_REFRESH_PER_S,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield


def step_line(step: Step) -> Text:
    """A step that ended, as a line that stays."""
    mark, style = _MARKS[step.state]
    return Text(f"{mark} {step.title:<8}{step.took_s:5.1f} s  ", style=style) + Text(step.note)


def closing_table(report: DemoReport) -> Table:
    """The one table at the end."""
    table = Table(
        title="what came of it", title_style="bold", title_justify="left", box=None, show_header=False
    )
    table.add_column(justify="left", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for label, value, held in _figures(report):
        ok = None if held and not report.is_complete else held  # what was not looked at has not held
        mark = Text("" if ok is None else "✓" if ok else "✗", style="green" if ok else "bold red")
        table.add_row(label, value, mark)
    return table


def _figures(report: DemoReport) -> list[tuple[str, str, bool | None]]:
    return [
        ("nodes, pods started", f"{report.nodes}, {report.pods}", None),
        ("ADDs answered, failed", f"{report.adds}, {report.failed_adds}", report.failed_adds == 0),
        ("ADD p50, p99 (growth waited for)", f"{report.add_p50_ms:.0f}, {report.add_p99_ms:.0f} ms", None),
        (
            "pings between pods",
            f"{report.pings_ok} of {report.pings_total}",
            report.pings_ok == report.pings_total > 0,
        ),
        (
            "pings to the internet",
            f"{report.internet_ok} of {report.internet_total}",
            report.internet_ok == report.internet_total > 0,
        ),
        ("agent killed: restart to next ADD", f"{report.restart_to_first_add_ms:.0f} ms", None),
        ("leases lost", str(report.lost_leases), report.lost_leases == 0),
        ("addresses given twice", str(report.duplicate_addresses), report.duplicate_addresses == 0),
        ("orphan ENIs", str(report.orphan_enis), report.orphan_enis == 0),
        ("EC2 calls", str(report.ec2_calls), None),
        ("events, chain whole", f"{report.events}, {'yes' if report.chain_ok else 'no'}", report.chain_ok),
        ("took", f"{report.took_s:.0f} s", None),
    ]
