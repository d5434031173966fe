"""What the agent's socket may answer, judged from the bytes: HTTP, JSON, the shape of a CNI error, a known reason."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from tests.unit.api.shapes import check_error
from vpccni.errors import Reason

# Who says HTTP/0.9 or HTTP/2.0 is answered under that name.
_STATUS_LINE: Final = re.compile(rb"HTTP/(?:1\.[01]|0\.9|2\.0) (\d{3}) [ -~]*\Z")
_HEADER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t -~\x80-\xff]*\Z")
_STATUSES: Final = frozenset({200, 400, 404, 405, 408, 413, 503})
"""Nothing that a client sends is 500 or 504."""
EVENTS: Final = b"application/x-ndjson"
_CUT: Final = -1


class BadAnswerError(Exception):
    """The agent said what it must not say."""


class Answer(NamedTuple):
    """One answer. ``said`` is its JSON: a list of lines for events, None where there is no body."""

    status: int
    said: Any
    closes: bool


def read_one(raw: bytes) -> tuple[Answer, int] | None:
    """The first answer in ``raw`` and its length; None while it is not whole.

    A body that is promised and for which the next answer, or nothing, stands there is that of a HEAD.

    Raises:
        BadAnswerError: It is no HTTP, no JSON, or not of a shape that is promised.
    """
    head, found, rest = raw.partition(b"\r\n\r\n")
    if not found:
        if len(raw) > 65536 or not b"HTTP/".startswith(raw[:5]):
            raise BadAnswerError(f"no HTTP: {raw[:200]!r}")
        return None
    first, *lines = head.split(b"\r\n")
    line = _STATUS_LINE.match(first)
    if line is None or not all(_HEADER.match(each) for each in lines):
        raise BadAnswerError(f"no HTTP: {head[:300]!r}")
    status = int(line[1])
    if status == 100:
        after = read_one(rest)
        return after and (after[0], after[1] + len(head) + 4)
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(b":") for each in lines)}
    body, length = _body(headers, rest)
    if length == _CUT:
        return None
    closes = headers.get(b"connection") == b"close" or not first.startswith(b"HTTP/1.1")
    return Answer(status, _said(status, headers, body), closes), len(head) + 4 + length


def _body(headers: dict[bytes, bytes], rest: bytes) -> tuple[bytes, int]:
    if headers.get(b"transfer-encoding") == b"chunked":
        return _chunks(rest)
    if b"content-length" not in headers:
        if headers.get(b"content-type") != EVENTS:
            raise BadAnswerError(f"a body without an end: {headers}")
        if rest.startswith(b"HTTP/"):
            return b"", 0
        return rest, len(rest)  # none, for a HEAD; to the end of the connection, for HTTP/1.0
    length = int(headers[b"content-length"])
    if length and rest.startswith(b"HTTP/"):
        return b"", 0
    return (rest[:length], length) if len(rest) >= length else (b"", _CUT)


def _chunks(rest: bytes) -> tuple[bytes, int]:
    at, parts = 0, []
    if rest.startswith(b"HTTP/"):
        return b"", 0
    while True:
        end = rest.find(b"\r\n", at)
        if end < 0:
            return b"", _CUT
        size = int(rest[at:end], 16)
        start, at = end + 2, end + 4 + size
        if len(rest) < at:
            return b"", _CUT
        if rest[at - 2 : at] != b"\r\n":
            raise BadAnswerError(f"a chunk is not as long as it says: {rest[end - 10 : end + 10]!r}")
        parts.append(rest[start : start + size])
        if not size:
            return b"".join(parts), at


def _said(status: int, headers: dict[bytes, bytes], body: bytes) -> Any:
    kind = headers.get(b"content-type", b"")
    if not body:
        return None
    try:
        if kind == EVENTS:
            said: Any = [json.loads(line) for line in body.splitlines() if line]
        else:
            said = json.loads(body)
    except ValueError as error:
        raise BadAnswerError(f"{status} without JSON: {body[:300]!r}") from error
    if status not in _STATUSES:
        raise BadAnswerError(f"status {status}: {body[:300]!r}")
    if status != 200:
        _check_refusal(status, said)
    return said


def _check_refusal(status: int, said: Any) -> None:
    try:
        reason = Reason(said["reason"])
        # A 404 lists what there is, and readiness is no CNI answer.
        if not (status == 404 and "known_paths" in said) and said.get("status") != "not ready":
            check_error(said)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise BadAnswerError(f"{status} is no CNI error with a known reason: {said!r}") from error
    if reason is Reason.INTERNAL:
        raise BadAnswerError(f"something unforeseen: {said!r}")
