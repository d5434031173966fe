"""The firewall of amazon-vpc-cni-k8s: finding it, and taking it away once ours stands.

It is in ``iptables`` (one of its two kinds) and, of late, also in an nftables table. iptables rules are read and
removed with the tools of their own kind, since nobody else can tell their matches: ``iptables-nft-save`` and
``iptables-legacy-save`` with their ``-restore`` (Debian package ``iptables``). Whether there is anything to look
for costs three netlink messages at each look; the tools run only then.

The functions block; they run on a worker thread in the node's namespace, which a child inherits.
"""

from __future__ import annotations

import errno
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

from vpccni.adapters.kernel_iptables import MARKER_CHAINS, TABLES, originals, removal_script
from vpccni.adapters.netlink import NetlinkError, NetlinkSocket, attr_text
from vpccni.datapath.numbers import NFT_FAMILY
from vpccni.datapath.objects import FirewallPart, FirewallSeen

ORIGINAL_TABLE: Final = "aws-cni"

LEGACY_TABLES: Final = Path("/proc/thread-self/net/ip_tables_names")
"""Which tables of iptables-legacy exist in the thread's namespace."""
LOCK: Final = Path("/run/xtables.lock")
"""Without it, iptables-legacy would write over what kube-proxy writes at the same moment."""
STATUS: Final = Path("/proc/thread-self/status")
_CAP_NET_RAW: Final = 13

_RUN_S_MAX: Final = 20
_LEGACY_PERIOD_S: Final = 50.0
"""iptables-legacy keeps no names that could be asked for, and 10,000 rules take 30 ms to read. What was seen to be
clean is read again at the regular looks, and not at those that follow somebody's changes of rules and routes."""

_NETLINK_NETFILTER: Final = 12
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_GETTABLE, _NFT_MSG_GETCHAIN = 1, 4
_NFTA_TABLE_NAME: Final = 1
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME = 1, 3
_NFPROTO_IPV4: Final = 2
_NFGENMSG: Final = struct.Struct("=BBH")

NFT: Final = "iptables-nft"
LEGACY: Final = "iptables-legacy"


class FirewallError(Exception):
    """A tool could not do what was asked: one sentence. What it was to do is not done."""


class OriginalFirewall:
    """Looks for it and removes it. For one thread at a time."""

    def __init__(self) -> None:
        self._legacy_clean_at = float("-inf")

    def read(self) -> FirewallSeen:
        """What there is of it. Never raises: what cannot be read is told."""
        parts: list[FirewallPart] = []
        problems: list[str] = []
        for look in (self._iptables_nft, self._iptables_legacy, self._nft):
            try:
                parts += look()
            except FirewallError as error:
                problems.append(str(error))
        return FirewallSeen(parts=tuple(parts), problems=tuple(problems))

    def remove(self, part: FirewallPart) -> None:
        """Take a part away, in one transaction.

        Raises:
            FirewallError: It stands as before.
        """
        if part.tool == "nft":
            _run(["nft", "delete", "table", NFT_FAMILY, ORIGINAL_TABLE])
            return
        wait = ["--wait", "5"] if part.tool == LEGACY else []
        _run([_tool(f"{part.tool}-restore"), "--noflush", *wait], removal_script(part.lines))

    # --- the three places -----------------------------------------------------------------------------

    def _iptables_nft(self) -> list[FirewallPart]:
        if not any(_exists(_NFT_MSG_GETCHAIN, "nat", chain) for chain in MARKER_CHAINS):
            return []
        parts = _saved(NFT, TABLES)
        if not parts:
            raise FirewallError(
                "chains of amazon-vpc-cni-k8s stand in table nat, and iptables-nft-save hides them"
            )
        return parts

    def _iptables_legacy(self) -> list[FirewallPart]:
        tables = _legacy_tables()
        if not tables or time.monotonic() - self._legacy_clean_at < _LEGACY_PERIOD_S:
            return []
        obstacle = _legacy_obstacle()
        if obstacle:
            raise FirewallError(
                f"iptables-legacy is in use on this node, and rules of amazon-vpc-cni-k8s may stand in it: {obstacle}"
            )
        parts = _saved(LEGACY, tables)
        if not parts:
            self._legacy_clean_at = time.monotonic()
        return parts

    @staticmethod
    def _nft() -> list[FirewallPart]:
        if not _exists(_NFT_MSG_GETTABLE, ORIGINAL_TABLE):
            return []
        table = _run(["nft", "list", "table", NFT_FAMILY, ORIGINAL_TABLE]).strip()
        return [FirewallPart(tool="nft", lines=(table,))]


def _saved(tool: str, tables: tuple[str, ...]) -> list[FirewallPart]:
    """Its chains and rules in each of these tables; ``mangle`` before ``nat``, whose chains tell of the rest."""
    save = _tool(f"{tool}-save")
    found = [originals(_run([save, "-t", table])) for table in tables]
    return [FirewallPart(tool=tool, lines=lines) for lines in found if lines]


def _exists(kind: int, table: str, chain: str = "") -> bool:
    """Whether an nftables table, or a chain in it, exists: one message instead of a listing of everything."""
    body = _NFGENMSG.pack(_NFPROTO_IPV4, 0, 0)
    body += (
        attr_text(_NFTA_CHAIN_TABLE, table) + attr_text(_NFTA_CHAIN_NAME, chain)
        if chain
        else attr_text(_NFTA_TABLE_NAME, table)
    )
    asking = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        asking.get(_NFNL_SUBSYS_NFTABLES << 8 | kind, body)
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):  # The latter: no nftables at all.
            return False
        raise FirewallError(f"nftables cannot be asked: {error.strerror}") from error
    finally:
        asking.close()
    return True


def _legacy_tables() -> tuple[str, ...]:
    try:
        names = LEGACY_TABLES.read_text().split()
    except OSError:  # No such kind of iptables in this kernel.
        return ()
    return tuple(table for table in TABLES if table in names)


def _legacy_obstacle() -> str:
    """Why iptables-legacy cannot be used here; empty when it can."""
    for program in (f"{LEGACY}-save", f"{LEGACY}-restore"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian package iptables)"
    if not LOCK.exists():
        return f"{LOCK} of the node is not mounted here"
    effective = next(
        (int(line.split()[1], 16) for line in STATUS.read_text().splitlines() if line.startswith("CapEff:")),
        0,
    )
    return "" if effective >> _CAP_NET_RAW & 1 else "the capability NET_RAW is missing"


def _tool(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise FirewallError(
            f"rules of amazon-vpc-cni-k8s stand in iptables, and {program} is not installed: "
            "install the Debian package iptables"
        )
    return found


def _run(command: list[str], text: str = "") -> str:
    name = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_RUN_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FirewallError(f"{name} did not end within {_RUN_S_MAX} s") from error
    except OSError as error:
        raise FirewallError(f"{name}: {error.strerror}") from error
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "no message")
        raise FirewallError(f"{name}: {said}")
    return done.stdout
