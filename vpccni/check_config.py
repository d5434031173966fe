"""``vpccni agent --check-config``: what the agent would make of this environment. Reads, prints, changes nothing.

For a CI job or a Helm hook: exit status 0 when the agent would start, 2 when it would refuse to. Light, for it shares
the agent's path: argparse and plain text.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from vpccni.errors import sentence
from vpccni.flags import parser
from vpccni.pool_sentence import policy_sentence
from vpccni.setting_kinds import SHOWN_MAX, without_password
from vpccni.settings import NAMES, TABLE, Reading, Setting, Settings, Status, examine

WOULD_START: Final = 0
WOULD_REFUSE: Final = 2

_SECRETS: Final = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One variable that is set.

    Attributes:
        value: As set; passwords, credentials and account numbers left out.
        outcome: What the agent makes of it, in a few words.
    """

    name: str
    value: str
    outcome: str
    default: str = ""
    unit: str = ""
    since: str = ""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Everything there is to say about an environment."""

    found: tuple[Found, ...]
    reading: Reading
    warm_pool: str

    @property
    def would_start(self) -> bool:
        """Whether the agent would start with it."""
        return not self.reading.problems


def check(environ: Mapping[str, str]) -> Check:
    """Look at an environment. Never raises."""
    reading = examine(environ)
    return Check(
        found=tuple(_found(environ, reading)),
        reading=reading,
        warm_pool=policy_sentence(Settings(**reading.values)),
    )


def as_data(checked: Check) -> dict[str, Any]:
    """For machines."""
    return {
        "would_start": checked.would_start,
        "settings": msgspec.to_builtins(checked.found),
        "problems": msgspec.to_builtins(checked.reading.problems),
        "warnings": msgspec.to_builtins(checked.reading.warnings),
        "warm_pool": checked.warm_pool,
    }


def as_text(checked: Check) -> str:
    """For people: the table, then what is wrong, then what the agent would do."""
    return "\n".join(_lines(checked)) + "\n"


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print the check; return the exit status."""
    options = parser().parse_args(arguments)
    checked = check(environ)
    text = (
        json.dumps(as_data(checked), indent=2, ensure_ascii=False) + "\n"
        if options.json
        else as_text(checked)
    )
    sys.stdout.write(text)
    return WOULD_START if checked.would_start else WOULD_REFUSE


def _found(environ: Mapping[str, str], reading: Reading) -> Iterator[Found]:
    refused = {problem.name for problem in reading.problems}
    warned = {remark.name for remark in reading.warnings}
    for row in TABLE:
        text = environ.get(row.name)
        if text is None:
            continue
        if row.name in refused:
            outcome = "refused"
        elif row.name in warned:
            outcome = "see the warning"
        else:
            outcome = _outcome(row, text)
        yield Found(
            name=row.name,
            value=_value(row.name, text),
            outcome=outcome,
            default=row.default,
            unit=row.unit,
            since=row.since,
        )
    for name in sorted(warned - NAMES):
        yield Found(name=name, value=_value(name, environ[name]), outcome="unknown, no effect")


def _outcome(row: Setting, text: str) -> str:
    if text == "" and not row.kind.takes_empty:
        return "empty, as if unset"
    match row.status:
        case Status.SUPPORTED:
            return "in effect, the default" if text == row.default else "in effect"
        case Status.PASSED_THROUGH:
            return "for the SDK"
        case Status.NO_EFFECT:
            return "no effect"
        case Status.NOT_BUILT:
            return "switched off"


def _value(name: str, text: str) -> str:
    if name in _SECRETS:
        return "(not shown)"
    text = re.sub(r"(?<!\d)\d{12}(?!\d)", "<account>", without_password(text))
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _lines(checked: Check) -> Iterator[str]:
    found = checked.found
    if found:
        names = max(len("Variable"), *(len(one.name) for one in found))
        values = max(len("Value"), *(len(one.value) for one in found))
        yield f"{'Variable':{names}}  {'Value':{values}}  What comes of it"
        for one in found:
            yield f"{one.name:{names}}  {one.value:{values}}  {one.outcome}"
    else:
        yield "No setting is set."
    for title, said in (
        ("Refused", [problem.message for problem in checked.reading.problems]),
        ("Warnings", [remark.message for remark in checked.reading.warnings]),
    ):
        if said:
            yield f"\n{title}:"
            yield from (f"  {message}" for message in said)
    yield f"\n{checked.warm_pool}"
    if checked.would_start:
        yield "The agent would start."
        return
    reasons = {problem.reason: None for problem in checked.reading.problems}
    yield "The agent would not start. " + " ".join(sentence(reason) for reason in reasons)
