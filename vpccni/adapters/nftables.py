"""Loading and reading our one nft table, through the ``nft`` program (Debian package ``nftables``).

The functions block; they run on a worker thread that is in the node's namespace, which a child inherits.
"""

from __future__ import annotations

import subprocess
from typing import Any, Final

import msgspec

from vpccni.datapath.nft import STATE_PREFIX
from vpccni.datapath.numbers import NFT_FAMILY, NFT_TABLE
from vpccni.datapath.objects import NftSeen, NftTable
from vpccni.errors import PermanentError, Reason

_RUN_S_MAX: Final = 20
_MISSING: Final = "nft is not installed: install the Debian package nftables"


class _Listing(msgspec.Struct):
    nftables: list[dict[str, Any]]


def load(table: NftTable) -> None:
    """Replace our table by another (or by none), in one transaction.

    Raises:
        PermanentError: ``kernel_refused``; the old table stands as it was.
    """
    text = table.text or f"table {NFT_FAMILY} {NFT_TABLE}\ndelete table {NFT_FAMILY} {NFT_TABLE}\n"
    done = _run(["nft", "-f", "-"], text)
    if done.returncode != 0:
        raise PermanentError(Reason.KERNEL_REFUSED, f"nft: {_first_line(done.stderr)}")


def read() -> NftSeen:
    """What there is of our table: its digest, and counts that show tampering.

    Where ``nft`` is missing, nothing is there that we could have made: the answer is that of no table, and
    :func:`load` will say what is wrong.
    """
    try:
        done = _run(["nft", "-j", "list", "table", NFT_FAMILY, NFT_TABLE], "")
    except PermanentError:
        return NftSeen()
    if done.returncode != 0:
        return NftSeen()
    return parse_listing(done.stdout.encode())


def parse_listing(text: bytes) -> NftSeen:
    """What a listing (``nft -j list table``, libnftables-json(5)) says of our table."""
    try:
        objects: list[dict[str, Any]] = msgspec.json.decode(text, type=dict[str, list[dict[str, Any]]])[
            "nftables"
        ]
    except msgspec.DecodeError:
        return NftSeen()
    digest = ""
    rules = elements = 0
    for item in objects:
        if "chain" in item:
            name = str(item["chain"].get("name", ""))
            digest = name.removeprefix(STATE_PREFIX) if name.startswith(STATE_PREFIX) else digest
        elif "rule" in item:
            rules += 1
        elif "set" in item:
            elements += len(item["set"].get("elem", []))
    return NftSeen(digest=digest, rules=rules, elements=elements)


def _run(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_RUN_S_MAX, check=False
        )
    except FileNotFoundError as error:
        raise PermanentError(Reason.KERNEL_REFUSED, _MISSING) from error
    except subprocess.TimeoutExpired as error:
        raise PermanentError(Reason.KERNEL_REFUSED, f"nft did not end within {_RUN_S_MAX} s") from error
    except OSError as error:
        raise PermanentError(Reason.KERNEL_REFUSED, f"nft: {error.strerror}") from error


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "no message")
