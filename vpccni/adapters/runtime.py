"""The runtime port: libcni's cache of results, in which a container runtime keeps what it was given.

libcni, which containerd and CRI-O call plugins through, writes ``<network>-<container id>-<ifname>`` at the
end of an ADD and removes it when every plugin's DEL has succeeded. It does not write atomically, so a reader may
meet a part of an entry. Entries outlive a reboot. Other programs (Multus, podman) keep entries in the same place.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import ipaddress
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from vpccni.adapters.foreign_file import read_foreign_file, why
from vpccni.checkpoint import is_made_up
from vpccni.evidence import ABSENT, READ, CachedResult, CacheEvidence
from vpccni.model import Address, PodRef, SandboxKey

RESULTS: Final = Path("/var/lib/cni/results")
ENTRIES_MAX: Final = 10_000
"""Entries that are read, the newest first. Living sandboxes have some hundreds; what DELs left behind may add up."""
ENTRY_BYTES_MAX: Final = 1 << 20
"""Of one entry. One with a long chain of plugins takes some kilobytes."""
COMPLAINTS_MAX: Final = 100
_KIND: Final = "cniCacheV1"
_NAME_BYTES_MAX: Final = 255
"""Linux ``NAME_MAX``: a longer key has no entry, whatever the runtime knows."""
_DUMMY: Final = re.compile(r"dummy[0-9a-f]{11}")
"""An interface in the original's results that does not exist: it carries numbers for the original's DEL."""


class _Interface(msgspec.Struct):
    name: str = ""
    sandbox: str | None = None


class _Ip(msgspec.Struct):
    address: str
    interface: int | None = None


class _Result(msgspec.Struct):
    interfaces: list[_Interface] | None = None
    ips: list[_Ip] | None = None


class _Entry(
    msgspec.Struct,
    rename={
        "container_id": "containerId",
        "ifname": "ifName",
        "network": "networkName",
        "cni_args": "cniArgs",
    },
):
    """What we read of an entry."""

    kind: str
    container_id: str
    ifname: str
    network: str
    config: str | None = None
    cni_args: list[tuple[str, str]] | None = None
    netns: str | None = None
    result: _Result | None = None


class _Plugin(msgspec.Struct):
    type: str = ""


class _Conflist(msgspec.Struct):
    """A list of plugins, or the configuration of a single one."""

    plugins: list[_Plugin] | None = None
    type: str = ""


class LibcniCache:
    """The ``RuntimeCache`` port over libcni's directory."""

    def __init__(self, results: Path = RESULTS) -> None:
        """Remember where it is; it may not be there, or come later."""
        self._results = results
        self._networks_seen: set[str] = set()

    async def is_known(self, network: str, container_id: str, ifname: str) -> bool | None:
        """Whether there is a cached result for the key; ``None`` when the cache cannot tell.

        It can say no only if it would have said yes: so not for a made-up key, and not before an entry of the
        same network was seen in it. A runtime that keeps its cache elsewhere leaves the directory without one,
        and entries of other programs do not change that. What was seen is remembered while the process lives;
        after a restart the entries of the pods that live are there to be seen.
        """
        key = SandboxKey(network, container_id, ifname)
        name = f"{network}-{container_id}-{ifname}"
        if is_made_up(key) or "/" in name or "\0" in name or len(os.fsencode(name)) > _NAME_BYTES_MAX:
            return None
        try:
            names = await asyncio.to_thread(os.listdir, self._results)
        except OSError:
            return None
        if name in names:
            self._networks_seen.add(network)
            return True
        if network not in self._networks_seen and any(_is_of(network, other) for other in names):
            self._networks_seen.add(network)
        return False if network in self._networks_seen else None

    async def read(self) -> CacheEvidence:
        """Every entry of the cache, by content. Never raises: what cannot be read is told in the answer."""
        found = await asyncio.to_thread(_read_all, self._results)
        self._networks_seen.update(entry.key.network for entry in found.entries)
        return found


def _is_of(network: str, name: str) -> bool:
    """Whether a file's name is that of an entry of the network.

    Container ids and interface names have no dash in practice, network names do: ``aws-cni-<id>-eth0`` is no
    entry of a network ``aws``.
    """
    return name.startswith(f"{network}-") and name.count("-") == network.count("-") + 2


def _read_all(directory: Path) -> CacheEvidence:
    try:
        modified_ns = directory.stat().st_mtime_ns
        with os.scandir(directory) as listing:
            dated = [(_modified_ns(item), item.name) for item in listing]
    except FileNotFoundError:
        return CacheEvidence(status=ABSENT)
    except OSError as error:
        return CacheEvidence(status=f"unreadable: {why(error)}")
    entries: list[CachedResult] = []
    complaints: list[str] = []
    for _, file_name in sorted(heapq.nlargest(ENTRIES_MAX, dated), key=lambda each: each[1]):
        name = os.fsencode(file_name).decode(errors="replace")  # it goes into events and answers
        try:
            content, file_ns = read_foreign_file(directory / file_name, ENTRY_BYTES_MAX)
        except FileNotFoundError:
            continue  # its DEL came meanwhile
        except (OSError, ValueError) as error:
            complaints.append(f"{name}: {why(error)}")
            continue
        entry = _parse_entry(name, content, file_ns, complaints)
        if entry is not None:
            entries.append(entry)
    if len(complaints) > COMPLAINTS_MAX:
        complaints[COMPLAINTS_MAX:] = [f"and {len(complaints) - COMPLAINTS_MAX} more"]
    if len(dated) > ENTRIES_MAX:
        complaints.insert(0, f"only the newest {ENTRIES_MAX} of {len(dated)} entries were read")
    return CacheEvidence(
        status=READ, entries=tuple(entries), unreadable=tuple(complaints), modified_ns=modified_ns
    )


def _modified_ns(item: os.DirEntry[str]) -> int:
    try:
        return item.stat(follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0  # gone meanwhile, as reading it will show


def _parse_entry(name: str, content: bytes, modified_ns: int, complaints: list[str]) -> CachedResult | None:
    """One entry, or ``None`` and a complaint when it cannot be read (a part of one, or another program's file).

    Args:
        name: The file's name, for messages.
        content: Its bytes.
        modified_ns: Its modification time, nanoseconds since the epoch.
        complaints: Takes one sentence for what is wrong.
    """
    try:
        entry = msgspec.json.decode(content, type=_Entry)
    except (ValueError, RecursionError) as error:
        complaints.append(f"{name}: {error}" if content else f"{name}: it is empty")
        return None
    if entry.kind != _KIND or not entry.container_id:
        complaints.append(f"{name}: it is no entry of libcni's cache (kind {entry.kind[:40]!r})")
        return None
    interfaces = (entry.result.interfaces if entry.result is not None else None) or []
    ips = (entry.result.ips if entry.result is not None else None) or []
    own = {index for index, each in enumerate(interfaces) if each.name == entry.ifname and each.sandbox}
    addresses: list[Address] = []
    for ip in ips:
        if own and ip.interface in range(len(interfaces)) and ip.interface not in own:
            continue  # of another interface of the sandbox
        try:
            addresses.append(Address(str(ipaddress.ip_interface(ip.address).ip)))
        except ValueError:
            complaints.append(f"{name}: {ip.address[:60]!r} is no address")
    arguments = dict(entry.cni_args or ())
    return CachedResult(
        file=name,
        key=SandboxKey(entry.network, entry.container_id, entry.ifname),
        pod=PodRef(
            arguments.get("K8S_POD_NAMESPACE", ""),
            arguments.get("K8S_POD_NAME", ""),
            arguments.get("K8S_POD_UID", ""),
        ),
        netns=entry.netns or _netns_of([interfaces[index] for index in sorted(own)]),
        addresses=tuple(dict.fromkeys(addresses)),
        host_ifnames=tuple(
            each.name
            for each in interfaces
            if each.name and not each.sandbox and _DUMMY.fullmatch(each.name) is None
        ),
        modified_ns=modified_ns,
        plugin_types=_plugin_types(entry.config or ""),
    )


def _netns_of(own: list[_Interface]) -> str:
    """The namespace that the result names; libcni before 1.2 keeps it nowhere else."""
    for each in own:
        if each.sandbox is not None and each.sandbox.startswith("/"):
            return each.sandbox
    return ""


def _plugin_types(config: str) -> tuple[str, ...]:
    """The types of the plugins in a configuration (base64); none when it cannot be read: it is no evidence."""
    try:
        conflist = msgspec.json.decode(base64.b64decode(config), type=_Conflist)
    except (ValueError, RecursionError):
        return ()
    if conflist.plugins is None:
        return (conflist.type,) if conflist.type else ()
    return tuple(plugin.type for plugin in conflist.plugins)
