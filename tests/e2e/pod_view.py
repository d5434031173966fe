"""What a kubelet gives a container, made of mounts: a root of its own, volumes, capabilities.

A root is a tmpfs in a mount namespace of the process's own, into which the machine's directories are bound, so
that Python and this checkout are found where they are; ``/var``, ``/run`` and what only the manifest names are
the container's. Nothing of it is seen outside, and it goes with the process.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
_OWN = frozenset({"host", "opt", "run", "var"})
"""Top directories that the container does not share with the machine, but for the program's own files below."""


def command_in_view(
    root: Path,
    volumes: Mapping[str, Path],
    command: Sequence[str],
    *,
    container: Mapping[str, Any] | None = None,
) -> list[str]:
    """The command line that runs ``command`` with another view of the file system. To be run as root.

    Args:
        root: An empty directory, the mount point of the new root.
        volumes: What lies at a path, by that path.
        command: What is run; its first word is looked up on PATH.
        container: The manifest's container: its mounts' options and its security context apply. Without it
            the view is the node's own, with every right.
    """
    mounts = (
        {} if container is None else {each["mountPath"]: each for each in container.get("volumeMounts", [])}
    )
    security = {} if container is None else container["securityContext"]
    lines = [f"mount -t tmpfs root {shlex.quote(str(root))}", f"cd {shlex.quote(str(root))}"]
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            lines.append(f"ln -s {entry.readlink()} .{entry}")
        elif entry.is_dir() and entry.name not in _OWN:
            lines.append(f"mkdir .{entry}; mount --rbind {entry} .{entry}")
    lines.append("mkdir -p run var/lib; ln -s ../run var/run")  # relative: it is followed before the chroot
    for needed in (CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)):
        if needed.parts[1] in _OWN:
            lines.append(f"mkdir -p .{needed}; mount --rbind {needed} .{needed}")
    for inside, outside in volumes.items():
        lines += _volume(f".{inside}", outside, mounts.get(inside, {}))
    if container is not None and not security.get("privileged", False):
        lines.append("mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys")
    lines.append(f"exec chroot . {shlex.join([*_rights(security), *command])}")
    return ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", "\n".join(lines)]


def _volume(inside: str, outside: Path, mount: Mapping[str, Any]) -> list[str]:
    target, source = shlex.quote(inside), shlex.quote(str(outside))
    made = f"mkdir -p $(dirname {target}); touch {target}" if outside.is_file() else f"mkdir -p {target}"
    lines = [f"{made}; mount --rbind {source} {target}"]
    if mount.get("mountPropagation") == "HostToContainer":
        lines.append(f"mount --make-rslave {target}")
    if mount.get("readOnly", False):
        lines.append(f"mount -o remount,bind,ro {target}")
    return lines


def _rights(security: Mapping[str, Any]) -> list[str]:
    """The program that takes away every capability but those granted, before it becomes the command."""
    if not security or security.get("privileged", False):
        return []
    asked = security["capabilities"]
    if asked["drop"] != ["ALL"]:
        raise ValueError("only containers that drop all capabilities are modelled")
    granted = ",".join(["-all", *(f"+{name.lower()}" for name in asked.get("add", []))])
    flags = [f"--bounding-set={granted}", f"--inh-caps={granted}"]
    if not security.get("allowPrivilegeEscalation", True):
        flags.append("--no-new-privs")
    return ["setpriv", *flags, "--"]


def command_like_exec(pid: int, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` where process ``pid`` runs, as an exec probe does."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--root", "--", *command]
