"""The list of CNI plugins that makes a container runtime call us: what it must say, given what it said before.

No file is touched and no program is run here; ``adapters.cni_files`` does that. The steps are :func:`read_list`,
then ask each of :meth:`FoundList.executables` for its versions, then :func:`merge`.

The file is not ours alone. Service meshes and operators chain plugins into it. So the list that is there is
read, and only what is ours is replaced:

- Our own entry (type ``aws-cni``), at the place where it stood.
- The original's ``egress-cni`` entry, which goes unless it is switched on: there is no such plugin here.
- The versions, and the original's ``disableCheck``: its CHECK tells nothing, ours compares kernel and lease.

Every other entry is *foreign*. It keeps its order and all its keys, and so do top-level keys that we do not know.

A foreign entry stays when its executable is missing. It may lie in another directory that the runtime searches,
or be installed a moment later. If it really is missing, the runtime fails every pod and names the plugin. That
is loud, and one file mends it. Without the entry pods would start without their mesh or their policy, and nobody
would notice.

``portmap`` is the exception, because leaving it out can be made loud for the pods that need it and silent for all
others: when nothing in the list takes host ports, our own entry asks the runtime for them, and the agent refuses
pods that have some. The entry is *set aside* inside ours, so that an operator's options come back together with
the executable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from vpccni.errors import Reason, sentence
from vpccni.settings import Settings

PLUGIN_NAME: Final = "aws-cni"
"""The executable's name, and thereby the plugin's ``type``."""

PORTMAP: Final = "portmap"
"""The reference plugin for host ports. The original brings it to each node; our image does not."""

SOCKET_DEFAULT: Final = "/var/run/aws-node/vpccni.sock"
SPOOL_DEFAULT: Final = "/var/run/aws-node/spool"

CNI_VERSIONS: Final[tuple[str, ...]] = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the CNI specification that vpccni speaks, lowest first."""

VERSION_FOR_ALL: Final = "0.4.0"
"""The original's version: each runtime takes it, and what says nothing of its versions is taken to speak it."""

_EGRESS: Final = "egress-cni"
_SET_ASIDE: Final = "portmapSetAside"
_STOCK_PORTMAP: Final[dict[str, Any]] = {
    "type": PORTMAP,
    "capabilities": {"portMappings": True},
    "snat": True,
}
_NETWORK_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,199}")
"""What ``api.cni`` takes for a network's name."""


class Executable(msgspec.Struct, frozen=True, kw_only=True):
    """What asking one executable brought.

    Attributes:
        is_there: Whether there is a file that can be run.
        versions: The CNI versions that it speaks, as it says; empty when it does not say.
        problem: Why there are none.
    """

    is_there: bool
    versions: frozenset[str] = frozenset()
    problem: str = ""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an operator should read about an installation.

    Attributes:
        name: A constant, the name of the log line.
        detail: One or two plain sentences.
        is_warning: Whether somebody has to do something about it.
    """

    name: str
    detail: str
    is_warning: bool = True


class FoundList(msgspec.Struct, frozen=True, kw_only=True):
    """The list that is there; empty when there is none.

    Attributes:
        problem: Why the file cannot be read as a list; then nothing of it is kept.
        top: Its members other than ``plugins``.
        entries: Its plugins.
    """

    problem: str = ""
    top: dict[str, Any] = {}
    entries: tuple[dict[str, Any], ...] = ()

    def executables(self) -> frozenset[str]:
        """The executables that a new list may name, and that :func:`merge` wants to know of."""
        foreign = {str(entry["type"]) for entry in self.entries if not _is_replaced(entry)}
        return frozenset({PLUGIN_NAME, PORTMAP} | foreign)


class Conflist(msgspec.Struct, frozen=True, kw_only=True):
    """A list to be written.

    Attributes:
        content: The file: JSON that ends in a newline.
        versions: The CNI versions that it offers, lowest first.
        serves_host_ports: Whether a plugin of it serves host ports. If none does, the runtime tells our own entry
            of them, and the agent refuses pods that have some.
        notes: What there is to tell of it.
    """

    content: bytes
    versions: tuple[str, ...]
    serves_host_ports: bool
    notes: tuple[Note, ...] = ()


def read_list(content: bytes | None) -> FoundList:
    """Take apart the file that is there, or ``None`` when there is none. Never raises."""
    if content is None:
        return FoundList()
    try:
        decoded = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return FoundList(problem=f"it is not JSON ({str(error)[:120]})")
    if not isinstance(decoded, dict):
        return FoundList(problem="it is not a JSON object")
    entries = decoded.pop("plugins", None)
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        return FoundList(problem="it has no list `plugins` of objects that each have a `type`")
    return FoundList(top=decoded, entries=tuple(entries))


def merge(
    found: FoundList,
    settings: Settings,
    executables: Mapping[str, Executable],
    *,
    socket: str = SOCKET_DEFAULT,
    spool: str = SPOOL_DEFAULT,
) -> Conflist:
    """The list to be written in place of the one that was found. Doing it again changes nothing.

    Args:
        found: The list that is there.
        settings: Whose veth prefix, MTU and plugin log go into our entry.
        executables: What each of ``found.executables()`` answered.
        socket: The agent's socket as the *host* sees it.
        spool: The directory of spooled DELs as the host sees it.
    """
    ours = _our_entry(settings, socket, spool)
    kept, place = _foreign(found)
    set_aside = _portmap_set_aside(found)
    named = [entry for entry in kept if entry["type"] == PORTMAP]
    if not executables[PORTMAP].is_there:
        place -= sum(entry["type"] == PORTMAP for entry in kept[:place])
        kept = [entry for entry in kept if entry["type"] != PORTMAP]
        set_aside = named or set_aside
        if set_aside:
            ours[_SET_ASIDE] = set_aside
    elif not named:
        wanted = set_aside or ([] if any(_takes_host_ports(entry) for entry in kept) else [_STOCK_PORTMAP])
        kept[place:place] = wanted
    serves_host_ports = any(_takes_host_ports(entry) for entry in kept)
    if not serves_host_ports:
        ours["capabilities"]["portMappings"] = True
    plugins = [*kept[:place], ours, *kept[place:]]
    named_types = dict.fromkeys(str(entry["type"]) for entry in plugins)
    versions = _common_versions(executables[name] for name in named_types)
    notes = list(_notes_on_executables(named_types, executables, versions))
    if not serves_host_ports:
        notes.append(
            Note(name="no_portmap", detail=sentence(Reason.PORTMAP_MISSING, executables[PORTMAP].problem))
        )
    conflist = {
        # A libcni that knows `cniVersions` (1.2) takes the highest that it speaks itself, and speaks it to every
        # plugin of the list; an older one takes `cniVersion`.
        "cniVersion": versions[0],
        "cniVersions": list(versions),
        "name": _network_name(found),
        **_kept_top(found),
        "plugins": plugins,
    }
    return Conflist(
        content=msgspec.json.format(msgspec.json.encode(conflist), indent=2) + b"\n",
        versions=versions,
        serves_host_ports=serves_host_ports,
        notes=tuple(notes),
    )


# -- what was found ---------------------------------------------------------------------------------------


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("type"), str) and bool(entry["type"])


def _is_replaced(entry: Mapping[str, Any]) -> bool:
    """Whether we write this entry, or leave it out, whatever it says."""
    if entry["type"] == _EGRESS:
        # The original's plugin does nothing unless it says "true", a string. It works without the original's
        # daemon, so where it is switched on it stays.
        return entry.get("enabled") not in ("true", True)
    return bool(entry["type"] == PLUGIN_NAME)


def _foreign(found: FoundList) -> tuple[list[dict[str, Any]], int]:
    """The entries that stay, and where among them ours stands: at its old place, or first."""
    place = 0
    kept: list[dict[str, Any]] = []
    is_placed = False
    for entry in found.entries:
        if not _is_replaced(entry):
            kept.append(entry)
        elif entry["type"] == PLUGIN_NAME and not is_placed:
            place, is_placed = len(kept), True
    return kept, place


def _is_the_originals(found: FoundList) -> bool:
    """Whether the original wrote this list. The mark is in each of its lists since v1.11, and in none of ours."""
    return any(entry["type"] == PLUGIN_NAME and "podSGEnforcingMode" in entry for entry in found.entries)


def _kept_top(found: FoundList) -> dict[str, Any]:
    rendered = {"cniVersion", "cniVersions", "name"}
    if _is_the_originals(found):
        rendered.add("disableCheck")
    return {key: value for key, value in found.top.items() if key not in rendered}


def _network_name(found: FoundList) -> str:
    """The name under which the runtime keeps living pods: with another one, their DELs would not be found."""
    name = found.top.get("name")
    is_served_by_us = any(entry["type"] == PLUGIN_NAME for entry in found.entries)
    if is_served_by_us and isinstance(name, str) and _NETWORK_NAME.fullmatch(name):
        return name
    return PLUGIN_NAME


def _portmap_set_aside(found: FoundList) -> list[dict[str, Any]]:
    for entry in found.entries:
        aside = entry.get(_SET_ASIDE) if entry["type"] == PLUGIN_NAME else None
        if isinstance(aside, list):
            return [each for each in aside if _is_entry(each) and each["type"] == PORTMAP]
    return []


def _takes_host_ports(entry: Mapping[str, Any]) -> bool:
    """Whether the runtime gives this plugin the pod's host ports (CNI conventions, ``portMappings``)."""
    capabilities = entry.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


# -- what is written --------------------------------------------------------------------------------------


def _our_entry(settings: Settings, socket: str, spool: str) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "type": PLUGIN_NAME,
        "name": "aws-cni",
        "vethPrefix": settings.veth_prefix,
        "mtu": str(settings.pod_mtu),  # a string in the original's file, so tools expect one
        "pluginLogFile": settings.plugin_log_file,
        "pluginLogLevel": settings.plugin_log_level,
        "capabilities": {"io.kubernetes.cri.pod-annotations": True},
    }
    if socket != SOCKET_DEFAULT:
        ours["socket"] = socket
    if spool != SPOOL_DEFAULT:
        ours["spool"] = spool
    return ours


def _common_versions(named: Iterable[Executable]) -> tuple[str, ...]:
    """The versions that each executable of a list speaks, lowest first; those before 0.4.0 only for want of others.

    An executable that does not say is taken to speak 0.4.0 alone: a version too high fails every pod, a version
    too low costs STATUS and GC.
    """
    common = set(CNI_VERSIONS)
    for executable in named:
        common &= executable.versions or {VERSION_FOR_ALL}
    spoken = [version for version in CNI_VERSIONS if version in common]
    offered = [version for version in spoken if version >= VERSION_FOR_ALL] or spoken[-1:]
    return tuple(offered or [VERSION_FOR_ALL])


# -- what there is to tell --------------------------------------------------------------------------------


def _notes_on_executables(
    names: Iterable[str], executables: Mapping[str, Executable], versions: tuple[str, ...]
) -> Iterable[Note]:
    highest = versions[-1]
    higher = CNI_VERSIONS[CNI_VERSIONS.index(highest) + 1 :]
    for name in names:
        executable = executables[name]
        if not executable.is_there:
            yield Note(
                name="cni_executable_missing",
                detail=f"{executable.problem}. The conflist names {name}, and while the runtime does not find it "
                "either, every pod of the node fails. Install it, or take its entry out of the conflist.",
            )
        elif not executable.versions:
            yield Note(
                name="cni_executable_silent",
                detail=f"{executable.problem}. {name} is taken to speak CNI {VERSION_FOR_ALL} alone.",
            )
        elif highest not in executable.versions:
            yield Note(
                name="cni_versions_differ",
                detail=f"{name} does not speak CNI {highest}, which the conflist must offer for want of a version "
                "that all of its plugins speak: pods may fail. Update the older of them.",
            )
        elif higher and not executable.versions & set(higher):
            yield Note(
                name="cni_version_limited",
                detail=f"{name} speaks CNI up to {highest}, so the runtime is offered no higher one; "
                "STATUS and GC need 1.1.0.",
                is_warning=False,
            )
