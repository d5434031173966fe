"""The lock by which two agents of ours on one node notice each other, whatever their state directories are.

It is a file in the run directory, locked with flock(2): the kernel lets go of it when its process ends, however
that happens. Each event log has a lock of its own; that one keeps two writers from one log, this one keeps two
agents with two logs from one node.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from vpccni.adapters.foreign_file import why
from vpccni.errors import PermanentError, Reason

LOCK_NAME: Final = "vpccni.lock"
_NOTE_BYTES_MAX: Final = 400
_TRIES_MAX: Final = 10
"""How often somebody may replace the file between our opening and locking it."""


class NodeLock:
    """The lock in one run directory. Not for use from several threads."""

    def __init__(self, run_dir: Path, holder: str) -> None:
        """Remember where it is; nothing is touched.

        Args:
            run_dir: The directory that all agents of a node share; made (0755) when it is not there.
            holder: What the other agent shall say of us: pid and state directory, on one line.
        """
        self._path = run_dir / LOCK_NAME
        self._holder = holder
        self._fd = -1

    def take(self) -> None:
        """Take the lock, or make sure that it is still ours: somebody may have removed the file. Never waits.

        Call it at the start, and then from time to time.

        Raises:
            PermanentError: ``another_agent``: another process has it. ``bad_setting``: the run directory cannot hold
                the file. A lock that was ours before stays as it was.
        """
        try:
            if self._fd >= 0 and self._is_in_place(self._fd):
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_TRIES_MAX):
                if self._try_once():
                    return
        except OSError as error:
            raise PermanentError(Reason.BAD_SETTING, f"--run-dir: {self._path}: {why(error)}") from error
        raise PermanentError(Reason.ANOTHER_AGENT, f"{self._path} is replaced again and again")

    def close(self) -> None:
        """Give the lock back. The file stays: to remove it would let two agents hold one each. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _try_once(self) -> bool:
        """Lock the file that is there now; false when it was replaced meanwhile, so that the lock means nothing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                note = os.pread(fd, _NOTE_BYTES_MAX, 0).decode(errors="replace").strip()
                detail = f"{self._path} is locked by {note or 'another process'}"
                raise PermanentError(Reason.ANOTHER_AGENT, detail) from error
            if not self._is_in_place(fd):
                return False
            with suppress(OSError):  # only a courtesy to whoever meets the lock
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{self._holder}\n".encode()[:_NOTE_BYTES_MAX], 0)
            fd, self._fd = self._fd, fd
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _is_in_place(self, fd: int) -> bool:
        """Whether the open file is the one that the next agent would find."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        held = os.fstat(fd)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
