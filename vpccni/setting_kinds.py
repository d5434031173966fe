"""How the text of an environment variable becomes a value: types, ranges, parsers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

Complain = Callable[[str], None]
"""Takes a sentence about a part of a value that was left out."""

SHOWN_MAX: Final = 80
"""A value is cut to that many characters in messages: a screen line is enough to recognise it."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How the text of one variable becomes a value.

    Attributes:
        type: What a reader of the documentation sees.
        range: What is allowed, completing "must be …".
        parse: Text to value; raises ``ValueError`` for anything that is not in range.
        takes_empty: Whether set-but-empty is a value like another. Otherwise it counts as unset, for
            that is what a template with nothing to fill in leaves behind.
    """

    type: str
    range: str
    parse: Callable[[str, Complain], Any]
    takes_empty: bool = False


_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""The spellings of Go's ``strconv.ParseBool``; no other is a boolean there, nor here."""


def _parse_boolean(text: str, _complain: Complain) -> bool:
    if text not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text]


def _parse_true(text: str, complain: Complain) -> bool:
    if not _parse_boolean(text, complain):
        raise ValueError(text)
    return True


def integer(low: int, high: int) -> Kind:
    """A decimal integer from ``low`` to ``high``."""

    def parse(text: str, _complain: Complain) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    upper = f" to {high}" if high < _ANY else " or more"
    return Kind(type="integer", range=f"a decimal integer, {low}{upper}", parse=parse)


def choice(*values: str, takes_empty: bool = False) -> Kind:
    """One of these words, in any case."""

    def parse(text: str, _complain: Complain) -> str:
        if text.lower() not in values:
            raise ValueError(text)
        return text.lower()

    return Kind(type="choice", range="one of " + ", ".join(values), parse=parse, takes_empty=takes_empty)


def _matching(pattern: str, *, type: str, range: str, takes_empty: bool = False) -> Kind:
    def parse(text: str, _complain: Complain) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(text)
        return text

    return Kind(type=type, range=range, parse=parse, takes_empty=takes_empty)


def _parse_mark(text: str, _complain: Complain) -> int:
    # Go's base 0 takes a leading zero for octal, which Python refuses.
    value = int(text, 8) if re.fullmatch(r"0[0-7]+", text) else int(text, 0)
    if not 1 <= value < 1 << 32:
        raise ValueError(text)
    return value


def _parse_cidrs(text: str, complain: Complain) -> tuple[str, ...]:
    """IPv4 CIDRs, comma separated, as network addresses in the given order without doubles."""
    good: dict[str, None] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            good[str(ipaddress.IPv4Network(item, strict=False))] = None
        except ValueError:
            complain(f"{shown(item)} is not an IPv4 CIDR and was left out")
    return tuple(good)


def _parse_tags(text: str, complain: Complain) -> dict[str, str]:
    """Tags that EC2 will take; ours and AWS's own keys cannot be set from outside."""
    try:
        tags = msgspec.json.decode(text, type=dict[str, str] | None) or {}
    except msgspec.DecodeError as error:
        raise ValueError(text) from error
    good = {}
    for key, value in tags.items():
        if "k8s.amazonaws.com" in key or key.lower().startswith("aws:"):
            complain(f"the key {shown(key)} is reserved and was left out")
        elif not 1 <= len(key) <= 128 or len(value) > 256:
            complain(f"the tag {shown(key)} is longer than EC2 takes (128 and 256) and was left out")
        else:
            good[key] = value
    return good


_ANY: Final = 1 << 31
BOOLEAN: Final = Kind(type="boolean", range="true or false (1, t, 0, f, …)", parse=_parse_boolean)
TRUE: Final = Kind(
    type="boolean", range="true: without IPv6 there is nothing else to give", parse=_parse_true
)
TEXT: Final = _matching(r".*", type="text", range="any text")
PATH: Final = _matching(r"/.+", type="path", range="an absolute path")
COUNT: Final = integer(0, _ANY)
MTU: Final = integer(576, 9001)  # RFC 791's least, and what a VPC carries
LOG_LEVEL: Final = choice("debug", "info", "warn", "error", "fatal")
CIDRS: Final = Kind(type="list", range="IPv4 CIDRs, separated by commas", parse=_parse_cidrs)
MARK: Final = Kind(type="integer", range="1 to 0xffffffff", parse=_parse_mark)
TAGS: Final = Kind(type="JSON", range="a JSON object of texts", parse=_parse_tags)
VETH_PREFIX: Final = _matching(
    r"(?!(eth|vlan|lo|\.\.?)\Z)[!-.0-9;-~]{1,4}",  # without the slash and the colon
    type="text",
    range="1 to 4 printable characters other than eth, vlan, lo",
)
PLUGIN_LOG: Final = _matching(
    r"(?!stdout\Z).*", type="path", range="a path or stderr, not stdout", takes_empty=True
)


def without_password(text: str) -> str:
    """The text without the user and the password of a URL in it."""
    return re.sub(r"//[^/@]*@", "//", text)


def shown(text: str) -> str:
    """The text as messages quote it: short, and without a password."""
    text = without_password(text)
    cut = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return repr(cut)
