"""Where commands print: tables for people, as wide as the terminal, or JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH: Final = 240  # nothing is cut when nobody looks

_STATE_STYLES: Final = {"attached": "green", "retiring": "yellow", "detached": "yellow", "suspected": "red"}


def console(*, stderr: bool = False) -> Console:
    """A console that does not colour what the program prints by itself, and cuts nothing in a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain_table(
    heads: Sequence[str], rows: Iterable[Sequence[str | Text]], *, numbers: Iterable[str] = (), gap: int = 2
) -> Table:
    """A table without lines; the columns named in ``numbers`` are aligned to the right."""
    right = set(numbers)
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def eni_table(
    enis: Sequence[dict[str, Any]],
    width: int,
    *,
    rows_min: int = 0,
    more: Callable[[dict[str, Any]], Text] | None = None,
) -> Table:
    """ENIs as ``/v1/enis`` gives them, with as many columns as ``width`` has room for.

    Args:
        enis: One row each.
        width: Columns of the terminal.
        rows_min: Empty rows make up for missing ones, so that the height stays.
        more: A last column, for a wide terminal.
    """
    is_narrow = width < _WIDE
    left_out = _LEFT_OUT_WHEN_NARROW if is_narrow else frozenset[str]()
    shown = [place for place, head in enumerate(ENI_HEADS) if head not in left_out]
    heads = [ENI_HEADS[place] for place in shown]
    rows = [[row[place] for place in shown] for row in _eni_rows(enis)]
    if more is not None and not is_narrow:
        heads.append("addresses")
        rows = [[*row, more(eni)] for row, eni in zip(rows, enis, strict=True)]
    rows += [[""] * len(heads)] * (rows_min - len(rows))
    return plain_table(heads, rows, numbers=_ENI_NUMBERS, gap=1 if is_narrow else 2)


def _eni_rows(enis: Iterable[dict[str, Any]]) -> list[list[str | Text]]:
    """The columns of `ENI_HEADS` for each ENI."""
    rows: list[list[str | Text]] = []
    for eni in enis:
        device = "-" if eni["device"] is None else str(eni["device"])
        if eni["card"]:
            device = f"{eni['card']}.{device}"
        state = "suspected" if eni["suspected"] else eni["phase"]
        shown = Text(state, style=_STATE_STYLES.get(state, ""))
        if eni["doing"]:
            shown = Text(f"{'+'.join(eni['doing'])}…", style="cyan")
        elif state == "attached" and not eni["usable"]:
            shown = Text("no link" if not eni["link"] else "not ours" if not eni["managed"] else "held back")
        rows.append(
            [device, eni["eni"], eni["link"] or "-", eni["primary"]]
            + [str(eni[count]) for count in ("owned", "assigned", "resting", "free")]
            + [shown]
        )
    return rows


ENI_HEADS: Final = ("dev", "ENI", "link", "primary", "owned", "assigned", "resting", "free", "state")
_ENI_NUMBERS: Final = ("owned", "assigned", "resting", "free")
_LEFT_OUT_WHEN_NARROW: Final = frozenset({"link"})
_WIDE: Final = 100
