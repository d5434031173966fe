"""Results: what they hold, how they are shown and where they are written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

REPORT: Final = Path(__file__).parents[1] / "build" / "bench" / "report.json"

Unit = Literal["ms", "s", "MiB", "count", "1/min", "1/s"]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report.

    Attributes:
        name: Stable; says what was measured.
        ours: The median (or the count) of ours.
        peer: The same of what it is compared with; ``None`` where there is nothing to compare with.
        ratio: ``ours / peer``.
        n: How many measurements of ours.
        against: What ``peer`` is.
        ours_p99, peer_p99: Only with enough measurements to have one.
        limit: What was asked for, at most: of the ratio where ``limit_of`` says so, else of ``ours``.
    """

    name: str
    ours: float | None
    unit: Unit
    n: int
    peer: float | None = None
    ratio: float | None = None
    against: str = ""
    ours_p99: float | None = None
    peer_p99: float | None = None
    limit: float | None = None
    limit_of: Literal["ratio", "ours"] = "ours"

    @property
    def is_met(self) -> bool | None:
        """Whether it is within its limit; ``None`` where none is set or nothing was measured."""
        value = self.ratio if self.limit_of == "ratio" else self.ours
        return None if self.limit is None or value is None else value <= self.limit


def compared(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float] | float | None,
    unit: Unit,
    *,
    against: str,
    ratio_limit: float | None = None,
    limit: float | None = None,
) -> Result:
    """Medians of two series, or of one against a number, and their ratio.

    Args:
        name: Of the result.
        ours: Measurements; empty gives a result without values.
        peer: Measurements, one number, or ``None`` when there is no peer here.
        unit: Of both.
        against: What the peer is.
        ratio_limit: What the ratio may be at most.
        limit: What ours may be at most, instead.
    """
    series = [peer] if isinstance(peer, (int, float)) else list(peer or ())
    mine = _median(ours)
    other = _median(series)
    return Result(
        name=name,
        ours=mine,
        peer=other,
        ratio=round(mine / other, 4) if mine is not None and other else None,
        unit=unit,
        n=len(ours),
        against=against,
        ours_p99=p99(ours),
        peer_p99=p99(series),
        limit=limit if ratio_limit is None else ratio_limit,
        limit_of="ours" if ratio_limit is None else "ratio",
    )


def counted(
    name: str, ours: float, *, n: int, unit: Unit = "count", limit: float | None = None, against: str = ""
) -> Result:
    """One number of ours that is compared with nothing."""
    return Result(name=name, ours=round(ours, 4), unit=unit, n=n, limit=limit, against=against)


def p99(values: Sequence[float]) -> float | None:
    """The 99th percentile, of at least 20 measurements; of fewer than 100 that is the largest."""
    if len(values) < 20:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4)


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def as_data(results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """The report: one entry a result, and ``machine``."""
    return {
        **{
            result.name: {
                "ours": result.ours,
                "peer": result.peer,
                "ratio": result.ratio,
                "unit": result.unit,
                "n": result.n,
                "ours_p99": result.ours_p99,
                "peer_p99": result.peer_p99,
                "against": result.against,
                "limit": result.limit,
                "limit_of": result.limit_of,
                "met": result.is_met,
            }
            for result in results
        },
        "machine": machine,
    }


def write(results: Sequence[Result], machine: dict[str, Any], path: Path = REPORT) -> None:
    """Write the report as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(as_data(results, machine)), indent=2) + b"\n")
    draft.replace(path)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table, as text: name, ours, p99, compared with, ratio, n, limit, verdict."""
    return [
        (
            result.name,
            _shown(result.ours, result.unit),
            _shown(result.ours_p99, result.unit),
            _shown(result.peer, result.unit),
            result.against,
            "" if result.ratio is None else f"{result.ratio:.2f}",
            str(result.n),
            "" if result.limit is None else f"{result.limit_of} ≤ {result.limit:g}",
            {True: "ok", False: "MISSED", None: ""}[result.is_met],
        )
        for result in results
    ]


HEADINGS: Final = ("what", "ours", "p99", "other", "which is", "ratio", "n", "asked", "")


def _shown(value: float | None, unit: Unit) -> str:
    if value is None:
        return ""
    if unit == "count":
        return f"{value:g}"
    return f"{value:.4g} {unit}"
