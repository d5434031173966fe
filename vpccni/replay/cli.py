"""``vpccni replay LOG …``: questions to an event log, from the file alone.

Exit codes: 0 answered (and good), 1 the log is damaged or not good, 2 wrong usage or nothing readable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vpccni.errors import EXPLANATIONS, PermanentError, Reason
from vpccni.events.codec import Record
from vpccni.model import parse_address
from vpccni.replay import report
from vpccni.replay.checks import verify
from vpccni.replay.history import holdings_of, story_of
from vpccni.replay.past import past_at, unheld_at
from vpccni.replay.reader import LogFile, open_log
from vpccni.replay.text import plain
from vpccni.replay.when import FORMS, BadMomentError, clock_text, iso_text, moment_of

GOOD: Final = 0
NOT_GOOD: Final = 1
UNUSABLE: Final = 2

_LIMIT: Final = 50

_SUBJECTS: Final = ("address", "cidr", "eni", "pod", "uid", "container", "lease", "intent")


class UsageError(ValueError):
    """The question cannot be meant so; the message says what to write instead."""


def main(arguments: Sequence[str]) -> int:
    """Answer one question. Returns the exit code."""
    options = _parser().parse_args(_joined(arguments))
    try:
        with open_log(Path(options.log)) as log:
            answer: Callable[[LogFile, argparse.Namespace], int] = options.answer
            return answer(log, options)
    except (UsageError, BadMomentError) as error:
        return _complain(str(error), UNUSABLE)
    except PermanentError as error:
        return _complain(_advice(error), UNUSABLE)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except KeyboardInterrupt:
        return 130


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--at -15m`` as one word: argparse would take the second for an option."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] == "--at" and word.startswith("-") and word[1:2].isdecimal():
            joined[-1] = f"--at={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpccni replay",
        description="Ask an event log who held an address when, and why anything happened. The log may be in"
        " use by an agent, or be a copy; it is never changed.",
        epilog=f"A moment T is {FORMS}. Exit codes: 0 good, 1 the log is damaged, 2 wrong usage or unreadable.",
    )
    parser.add_argument("log", metavar="LOG", help="the file, on a node /var/lib/aws-node/events.sqlite")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="one JSON document instead of text")
    moment = argparse.ArgumentParser(add_help=False)
    moment.add_argument("--at", metavar="T", help="a moment; quote #123 for the shell")

    def add(name: str, answer: Callable[[LogFile, argparse.Namespace], int], text: str, *parents: Any) -> Any:
        command = commands.add_parser(name, help=text, description=text, parents=[shared, *parents])
        command.set_defaults(answer=answer)
        return command

    add("whohad", _whohad, "every lease of an address, or who held it at a moment", moment).add_argument(
        "address", metavar="IP"
    )
    add("pod", _pod, "the story of a pod, in order").add_argument("pod", metavar="NAMESPACE/NAME")
    add("state", _state, "the whole state at a moment (default: at the end)", moment)
    add("verify", _verify, "check the chain, every event, and every snapshot against the fold")
    events = add("events", _events, "list events (default: the last ones)")
    events.add_argument("--kind", help="only this kind, as stored: address_assigned, …")
    events.add_argument("--subject", metavar="KIND=ID", help=f"only about this; KIND: {', '.join(_SUBJECTS)}")
    events.add_argument("--after", type=int, metavar="SEQ", help="the first ones that follow this event")
    events.add_argument(
        "--limit", type=int, default=_LIMIT, metavar="N", help="at most (default: %(default)s)"
    )
    return parser


# -- answers ----------------------------------------------------------------------------------------


def _whohad(log: LogFile, options: argparse.Namespace) -> int:
    try:
        address = parse_address(options.address)
    except ValueError:
        raise UsageError(f"{options.address!r} is no IP address; write one like 10.0.3.7") from None
    holdings = holdings_of(log, address)
    if options.at is None:
        every = {
            "address": address,
            "leases": [holding.as_json() for holding in holdings.found],
            "damage": holdings.damage,
        }
        _show(options, every, lambda: report.whohad_text(address, holdings))
        return _end(log, holdings.damage)
    moment = moment_of(log, options.at)
    holding = next((one for one in holdings.found if one.covers(moment.seq)), None)
    data: dict[str, Any] = {"address": address, "at": iso_text(moment.stamp.wall_ns), "seq": moment.seq}
    if holding is not None:
        shown = f"{address} at {clock_text(moment.stamp.wall_ns)} UTC was held by:\n\n"
        shown += report.holding_text(holding)
        _show(options, data | {"holder": holding.as_json(), "note": moment.note}, lambda: shown, moment.note)
        return _end(log, holdings.damage)
    past = past_at(log, moment.seq)
    unheld = unheld_at(past, address, moment.stamp)
    _show(
        options,
        data | {"holder": None, **unheld.as_json(), "note": moment.note},
        lambda: report.unheld_text(address, moment, unheld),
        moment.note,
    )
    return _end(log, holdings.damage or past.problem)


def _pod(log: LogFile, options: argparse.Namespace) -> int:
    namespace, slash, name = options.pod.partition("/")
    if not (namespace and slash and name):
        raise UsageError(f"{options.pod!r} names no pod; write NAMESPACE/NAME, like shop/cart-7d4b9")
    story = story_of(log, options.pod)
    data = {"pod": options.pod, **report.events_json(story.records, story.damage)}
    _show(options, data, lambda: report.story_text(plain(options.pod), story))
    return _end(log, story.damage)


def _state(log: LogFile, options: argparse.Namespace) -> int:
    moment = moment_of(log, options.at)
    past = past_at(log, moment.seq)
    _show(options, report.state_json(past, moment), lambda: report.state_text(past, moment), moment.note)
    return _end(log, past.problem)


def _verify(log: LogFile, options: argparse.Namespace) -> int:
    progress = _Progress() if sys.stderr.isatty() else None
    verdict = verify(log, progress)
    if progress is not None:
        progress.clear()
    _show(options, report.verdict_json(verdict), lambda: report.verdict_text(verdict))
    return GOOD if verdict.ok else NOT_GOOD


def _events(log: LogFile, options: argparse.Namespace) -> int:
    if options.limit < 1:
        raise UsageError("--limit must be at least 1")
    kind, equals, subject = (options.subject or "").partition("=")
    if options.subject is not None and not (kind in _SUBJECTS and equals and subject):
        raise UsageError(f"--subject takes KIND=ID with KIND one of {', '.join(_SUBJECTS)}")
    after = options.after or 0
    if options.after is None and options.subject is None and options.kind is None:
        head, _ = log.head()
        after = max(0, head - options.limit)
    # With --after the first ones that follow, otherwise the last ones.
    found: deque[Record] = deque(maxlen=options.limit)
    damage = ""
    try:
        source = log.by_subject(kind, subject) if options.subject is not None else log.records(after)
        for stored in source:
            if stored.seq <= after or options.kind not in (None, stored.kind):
                continue
            found.append(log.decoded(stored))
            if options.after is not None and len(found) == options.limit:
                break
    except PermanentError as error:
        damage = error.detail
    records = list(found)
    _show(options, report.events_json(records, damage), lambda: report.events_text(records))
    return _end(log, damage)


# -- output -----------------------------------------------------------------------------------------


class _Progress:
    """One line on a terminal, written over and over."""

    _WORDS: Final = {"chain": "checking the chain", "fold": "folding"}

    def __call__(self, what: str, seq: int, last: int) -> None:
        """Show how far it is."""
        sys.stderr.write(f"\r\x1b[K{self._WORDS[what]}: event {seq:,} of {last:,}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal as it was."""
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _show(options: argparse.Namespace, data: dict[str, Any], text: Callable[[], str], note: str = "") -> None:
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n")
    else:
        sys.stdout.write(text() + "\n")
        if note:
            sys.stdout.write(f"Note: {note}.\n")
    sys.stdout.flush()


def _end(log: LogFile, damage: str) -> int:
    """The exit code of an answer, and what to say when it is only a part of one."""
    if not damage:
        return GOOD
    return _complain(
        f"the answer is not whole: {damage}. It holds what is readable before that;"
        f" `vpccni replay {log.path} verify` says more",
        NOT_GOOD,
    )


def _advice(error: PermanentError) -> str:
    """What is wrong with the file, and what to do."""
    advice = {
        Reason.LOG_IN_USE: "Try again: another program locks the file.",
        Reason.LOG_DAMAGED: "Name the log itself (events.sqlite) and copy its -wal along with it;"
        " a damaged one is read as far as SQLite can open it.",
    }
    return f"{error.detail}. {advice.get(error.reason) or EXPLANATIONS[error.reason].next_action}"


def _complain(words: str, code: int) -> int:
    sys.stderr.write(f"vpccni replay: {plain(words)}\n")
    return code
