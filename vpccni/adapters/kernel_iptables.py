"""Which chains and rules of an iptables table amazon-vpc-cni-k8s made, and the script that takes them away.

Its own are: chains called ``AWS-SNAT-CHAIN-<n>`` and ``AWS-CONNMARK-CHAIN-<n>`` with all that is in them; every
jump to one of them; and rules of PREROUTING with its comments that copy between mark and connection mark. Every
other rule, and each built-in chain, is somebody else's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

TABLES: Final = ("mangle", "nat")
"""Where it has rules, in the order in which they go: a chain of ``nat`` tells that there is something left."""

MARKER_CHAINS: Final = ("AWS-SNAT-CHAIN-0", "AWS-CONNMARK-CHAIN-0")
"""One of these stands in ``nat`` wherever it has run, also with external SNAT."""

_CHAIN: Final = re.compile(r"AWS-(SNAT|CONNMARK)-CHAIN-[0-9]+")
_COMMENTS: Final = {
    "mangle": frozenset({"AWS, primary ENI"}),
    "nat": frozenset({"AWS, CONNMARK", "AWS, outbound connections"}),
}


def originals(saved: str) -> tuple[str, ...]:
    """Its chains and rules in the output of ``iptables-save``, as ``-t <table> -N …`` or ``-t <table> -A …``.

    Chains come before rules, rules in their order. A line that cannot be read is nobody's of interest here.
    """
    table = ""
    chains: list[str] = []
    rules: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and table in TABLES:
            name = line[1:].split(" ", 1)[0]
            if _CHAIN.fullmatch(name):
                chains.append(f"-t {table} -N {name}")
        elif line.startswith("-A ") and table in TABLES and _is_original(table, line):
            rules.append(f"-t {table} {line}")
    return (*chains, *rules)


def removal_script(lines: Sequence[str]) -> str:
    """Input for ``iptables-restore --noflush`` that takes these lines away: a table in one transaction.

    Args:
        lines: From :func:`originals`.
    """
    parts: list[str] = []
    for table in TABLES:
        mine = [line.removeprefix(f"-t {table} ") for line in lines if line.startswith(f"-t {table} ")]
        chains = [line.removeprefix("-N ") for line in mine if line.startswith("-N ")]
        outside = [line for line in mine if line.startswith("-A ") and line.split(" ", 2)[1] not in chains]
        if not mine:
            continue
        parts.append(f"*{table}")
        parts += [f"-D {line.removeprefix('-A ')}" for line in outside]
        # All are emptied before the first goes: they may lead to each other.
        parts += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
        parts.append("COMMIT")
    return "\n".join([*parts, ""]) if parts else ""


def _is_original(table: str, line: str) -> bool:
    try:
        words = shlex.split(line)
    except ValueError:
        return False
    chain, target = words[1], _after(words, "-j") or _after(words, "-g")
    if _CHAIN.fullmatch(chain) or _CHAIN.fullmatch(target):
        return True
    return chain == "PREROUTING" and target == "CONNMARK" and _after(words, "--comment") in _COMMENTS[table]


def _after(words: Sequence[str], option: str) -> str:
    at = words.index(option) + 1 if option in words else 0
    return words[at] if 0 < at < len(words) else ""
