"""Asking CNI executables which versions of the specification they speak.

Each is run with ``CNI_COMMAND=VERSION`` (CNI spec, §2), as the runtime would run it, all of them at once. They are
other people's programs: each gets a limited time, a limited answer is read, and nothing of our environment but
``PATH`` is passed on.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, cast

import msgspec

from vpccni.conflist import Executable

TIMEOUT_S: Final = 3.0
"""A plugin answers in milliseconds. A cold disk and a busy node at boot are allowed for, and a stop of the agent
that falls into it still ends within the pod's grace period."""

PARALLEL_MAX: Final = 8
"""A conflist has two to five plugins."""

_ANSWER_MAX: Final = 1 << 16
_CONFIG: Final = b'{"cniVersion":"1.1.0"}'
# VERSION needs none of these, but old plugins look at them for every verb.
_ENVIRONMENT: Final = {
    "CNI_COMMAND": "VERSION",
    "CNI_CONTAINERID": "version",
    "CNI_NETNS": "/var/run/netns/version",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


class _Answer(msgspec.Struct, frozen=True):
    supported: list[str] = msgspec.field(name="supportedVersions")


def ask_versions(
    bin_dir: Path, names: Iterable[str], *, timeout_s: float = TIMEOUT_S
) -> dict[str, Executable]:
    """Ask each executable for its versions. Blocks for at most little more than ``timeout_s``; never raises.

    Args:
        bin_dir: Where they are.
        names: Their names, as they stand in a conflist: a name that is a path is not run.
        timeout_s: How long each may take.
    """
    asked = sorted(names)
    with ThreadPoolExecutor(PARALLEL_MAX, thread_name_prefix="cni version") as threads:
        answers = threads.map(lambda name: _ask(bin_dir, name, timeout_s), asked)
        return dict(zip(asked, answers, strict=True))


def _ask(bin_dir: Path, name: str, timeout_s: float) -> Executable:
    path = bin_dir / name
    if "/" in name or name in (".", ".."):
        return Executable(is_there=False, problem=f"{name[:80]!r} is not the name of an executable")
    try:
        is_there = path.is_file() and os.access(path, os.X_OK)
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if not is_there:
        return Executable(is_there=False, problem=f"There is no executable {path}")
    try:
        content = _run(path, timeout_s)
    except TimeoutError:
        return Executable(is_there=True, problem=f"{path} did not say its versions within {timeout_s:g} s")
    except OSError as error:
        return Executable(is_there=True, problem=f"{path} cannot be run here ({error.strerror or error})")
    try:
        versions = frozenset(msgspec.json.decode(content, type=_Answer).supported)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        versions = frozenset()
    problem = "" if versions else f"{path} did not say its versions, but {content[:80]!r}"
    return Executable(is_there=True, versions=versions, problem=problem)


def _run(path: Path, timeout_s: float) -> bytes:
    """What the executable prints, up to a limit.

    Raises:
        TimeoutError: it did not end its answer in time; it was killed, with what it started.
        OSError: it cannot be run.
    """
    deadline = time.monotonic() + timeout_s
    with (
        _config_file() as config,
        subprocess.Popen(
            [path],
            stdin=config,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT | {"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
            start_new_session=True,
        ) as process,
    ):
        try:
            return _read(cast("IO[bytes]", process.stdout).fileno(), deadline)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _config_file() -> IO[bytes]:
    """A configuration for the executable's standard input. Not a pipe: it need not read it."""
    file = os.fdopen(os.memfd_create("config"), "w+b")
    file.write(_CONFIG)
    file.seek(0)
    return file


def _read(descriptor: int, deadline: float) -> bytes:
    content = b""
    poll = select.poll()  # not select(): the agent may have thousands of files open
    poll.register(descriptor, select.POLLIN)
    while len(content) < _ANSWER_MAX:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, _ANSWER_MAX - len(content))
        if not chunk:
            break
        content += chunk
    return content
