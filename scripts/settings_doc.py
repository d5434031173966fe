"""Prints ``docs/settings.md`` from the table of settings (`make docs`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from vpccni.settings import TABLE, Setting, Status

HEAD = """\
# Settings

Environment variables of the agent. This page is printed from `vpccni/settings.py` by `make docs`; edit there.

They have the names and the meaning that they have in amazon-vpc-cni-k8s. Set-but-empty counts as unset.
Booleans are `1 t T TRUE true True` and `0 f F FALSE false False`, integers are decimal.

- **supported**: works. A bad value stops the agent where the table says *or refused*; elsewhere the default
  is taken and the agent's log warns.
- **no effect**: accepted, changes nothing.
- **not built**: values other than those in the range column stop the agent with `feature_not_supported`.
- **passed through**: for the libraries that we use.

All offending variables are named at once, and names that only resemble a setting are answered with the one that may
be meant. `vpccni config` shows what is in effect; `vpccni agent --check-config` looks at an environment and tells
everything that is wrong with it, without starting anything.

*Since* is a release of amazon-vpc-cni-k8s, or of vpccni where the name is ours; empty where it is not recorded.
"""

STATUS = {
    Status.SUPPORTED: "supported",
    Status.NO_EFFECT: "no effect",
    Status.NOT_BUILT: "not built",
    Status.PASSED_THROUGH: "passed through",
}


def _range(row: Setting) -> str:
    if row.status is Status.PASSED_THROUGH or row.kind.range == "any text":
        return ""
    only = [_written(value) for value in row.built or ()]
    text = "only " + " or ".join(only) if only else row.kind.range
    return f"{text}, or refused" if row.refuses else text


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value else "empty"


def _lines() -> Iterable[str]:
    yield HEAD
    group = ""
    for row in TABLE:
        if row.group != group:
            group = row.group
            yield f"## {group}\n"
            yield "| Variable | Default | Unit | Range | Status | | Since |"
            yield "|---|---|---|---|---|---|---|"
        default = f"`{row.default}`" if row.default else ""
        cells = (f"`{row.name}`", default, row.unit, _range(row), STATUS[row.status], row.does, row.since)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if row is TABLE[-1] or TABLE[TABLE.index(row) + 1].group != group:
            yield ""


def markdown() -> str:
    """The whole page, ending in one newline."""
    return "\n".join(_lines()).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
