"""Where a lab keeps its files: what must last on the checkout's disk, what must have a short path in /tmp."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

_CHECKOUT: Final = Path(__file__).parents[2]


def build_directory() -> Path:
    """Where labs and demos leave files: ``build`` of the checkout, whose disk also serves for a log's fsync.

    Outside of a checkout, or in one that this user may not write to, the user's own state directory.
    """
    build = _CHECKOUT / "build"
    if (_CHECKOUT / "pyproject.toml").exists() and os.access(build if build.exists() else _CHECKOUT, os.W_OK):
        return build
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "vpccni")


def lab_directory() -> Path:
    """Where labs lie by default."""
    return build_directory() / "lab"


SOCKET_NAME: Final = "vpccni.sock"
LOCK_NAME: Final = ".lock"

_VOLATILE: Final = frozenset({"tmpfs", "ramfs", "overlay"})


class NodePlaces(msgspec.Struct, frozen=True, kw_only=True):
    """The directories and files of one node.

    Attributes:
        root: On a disk; holds the others but ``run``.
        run: Socket, pid file and spool: a short path, for a Unix socket's has 107 bytes at most.
        boot_id: A file with the node's own boot id, for all nodes share the kernel's.
        results: The runtime's cached CNI results, under libcni's names.
        log: What the agent prints.
    """

    root: Path
    run: Path

    @property
    def state(self) -> Path:
        """The agent's ``--state-dir``."""
        return self.root / "state"

    @property
    def bin(self) -> Path:
        """CNI executables."""
        return self.root / "bin"

    @property
    def conf(self) -> Path:
        """CNI configuration."""
        return self.root / "conf"

    @property
    def spool(self) -> Path:
        """DELs that wait for the agent."""
        return self.run / "spool"

    @property
    def socket(self) -> Path:
        """The agent's socket."""
        return self.run / SOCKET_NAME

    @property
    def results(self) -> Path:
        """What libcni keeps below ``/var/lib/cni/results``."""
        return self.root / "results"

    @property
    def boot_id(self) -> Path:
        """In place of ``/proc/sys/kernel/random/boot_id``."""
        return self.root / "boot_id"

    @property
    def log(self) -> Path:
        """The agent's output, of all its lives."""
        return self.root / "log.txt"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.state / "events.sqlite"

    def make(self) -> None:
        """Make every directory, empty."""
        shutil.rmtree(self.root, ignore_errors=True)
        for directory in (self.state, self.bin, self.conf, self.results, self.run):
            directory.mkdir(parents=True, exist_ok=True)


def lock(directory: Path) -> int | None:
    """Take a lab's directory, making it if need be; return the descriptor that holds it, None if it is taken."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def is_in_use(directory: Path) -> bool:
    """Whether a running lab holds the directory."""
    if not (directory / LOCK_NAME).exists():
        return False
    handle = lock(directory)
    if handle is not None:
        os.close(handle)
    return handle is None


def volatile_filesystem(path: Path) -> str:
    """Name the filesystem of an existing path if it forgets (tmpfs, overlay), else return empty text.

    Read from ``/proc/self/mountinfo``, by device number: the agent asks the kernel for the same.
    """
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == device:
            kind = after.split()[0]
            return kind if kind in _VOLATILE else ""
    return ""
