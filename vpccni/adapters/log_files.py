"""The files of a log: the database with its -wal, and what stands beside them.

========================  ==========================================================================
``<log>``                 the SQLite database
``<log>-wal``, ``-shm``   SQLite's own; the newest events are in the -wal until a checkpoint
``<log>.lock``            held with flock(2) by the one agent that writes
``<log>.exists``          says that a log was created here, so that one that vanished is noticed
``<log>.reserve``         4 MiB of the disk, let go when it is full
``<log>.head``            number of the newest event that was synced, or of one before it
``<log>.quarantine-...``  copies of a log that was found damaged
``<log>.lost-...``        what was left beside a log that was gone
``<log>.replaced-...``    what somebody put in the place of the log's files while an agent had them open
``<log>.new``             a log under construction; never has that name when it is used
========================  ==========================================================================

Every function blocks: the writer calls them on a worker thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import filecmp
import os
import shutil
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final

from vpccni.adapters.log_format import LogDamageError
from vpccni.adapters.log_schema import create_schema
from vpccni.adapters.log_wal import WAL_HEADER_BYTES, lost_transactions
from vpccni.errors import PermanentError, Reason, TransientError

RESERVE_BYTES: Final = 4 * 1024 * 1024
"""Room for about a thousand DELs, with their pages in the -wal."""

VOLATILE: Final = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x794C7630: "overlay"}
"""statfs(2) ``f_type`` of filesystems on which a sync promises nothing, or which die with the container."""

Identity = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_MARKER_TEXT: Final = (
    "An event log was created in this directory. When the log is gone and this file is here, the agent says that\n"
    "it was lost, makes a new one, and recovers the leases from the pods that live on the node.\n"
)


class Missing(Enum):
    """What is missing at the log's place."""

    NOTHING = "nothing"
    NEW = "new"
    """No log was ever made here."""
    LOST = "lost"
    """One was made here, and is gone."""


class LogFiles:
    """Paths of one log, the lock over them, and the care for its surroundings."""

    def __init__(self, path: Path) -> None:
        self.main = path
        self.wal = path.with_name(path.name + "-wal")
        self.shm = path.with_name(path.name + "-shm")
        self.lock = path.with_name(path.name + ".lock")
        self.marker = path.with_name(path.name + ".exists")
        self.reserve = path.with_name(path.name + ".reserve")
        self.head = path.with_name(path.name + ".head")
        self.new = path.with_name(path.name + ".new")
        self._lock_fd = -1
        self._head_fd = -1

    # --- who may write -----------------------------------------------------------------------------

    def acquire(self) -> None:
        """Take the lock that is at its path; again, if the file was removed or replaced. Idempotent.

        Raises:
            PermanentError: ``log_in_use``.
        """
        if self._lock_fd >= 0 and identity_at(self.lock) == identity_of(self._lock_fd):
            return
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._lock_fd >= 0 and identity_of(fd) == identity_of(self._lock_fd):
            os.close(fd)  # It came back just now, and is locked by us.
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise PermanentError(Reason.LOG_IN_USE, f"{self.lock} is locked by another process") from error
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = fd

    def held(self) -> dict[Path, Identity]:
        """The lock and the file with the newest event's number, as far as they are open."""
        both = ((self.lock, self._lock_fd), (self.head, self._head_fd))
        return {path: identity_of(fd) for path, fd in both if fd >= 0}

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._head_fd >= 0:
            os.close(self._head_fd)
            self._head_fd = -1
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- where it lies -----------------------------------------------------------------------------

    def prepare_directory(self, *, volatile_ok: bool) -> None:
        """Make the directory, and see that it is on a disk.

        Raises:
            PermanentError: ``log_volatile``.
        """
        directory = self.main.parent
        if not directory.exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(directory.parent)
        kind = VOLATILE.get(_filesystem_magic(directory))
        if kind and not volatile_ok:
            raise PermanentError(Reason.LOG_VOLATILE, f"{directory} is on {kind}")

    def missing(self) -> Missing:
        """Whether there is a log, and whether one was here before.

        Raises:
            LogDamageError: There is a file in its place that is empty or no database.
        """
        way_out = (
            f"to go on without it, move {self.marker.name} and every other file of the log out of "
            f"{self.main.parent}: the agent then recovers the leases from the pods that live on this node"
        )
        try:
            size = self.main.stat().st_size
        except FileNotFoundError:
            was_here = self.marker.exists() or (self.wal.exists() and self.wal.stat().st_size > 0)
            return Missing.LOST if was_here else Missing.NEW
        if size == 0:
            raise LogDamageError(f"the file is empty; {way_out}")
        with self.main.open("rb") as file:
            if file.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
                raise LogDamageError(f"the file is not an SQLite database; {way_out}")
        return Missing.NOTHING

    def set_aside(self) -> str:
        """Move what is left of a lost log out of the new one's way; nothing is deleted. Returns what was moved."""
        aside = self.free_name("lost")
        moved = []
        for left in (self.wal, self.shm, self.head):
            if left.exists() and left.stat().st_size:
                target = aside.with_name(aside.name + left.name[len(self.main.name) :])
                left.rename(target)
                moved.append(target.name)
        sync(self.main.parent)
        return f"; what was left of it is now {', '.join(moved)}" if moved else ""

    def create(self) -> None:
        """Make an empty log under another name and put it in place when it is durable.

        Raises:
            TransientError: ``log_disk_full``; nothing was put in place.
        """
        self.remove_new()
        try:
            connection = sqlite3.connect(self.new, isolation_level=None)
            try:
                connection.execute("PRAGMA synchronous = OFF")  # synced below, once
                create_schema(connection)
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                connection.close()
            sync(self.new)
        except (sqlite3.Error, OSError) as error:
            self.remove_new()
            if is_no_space(error):
                raise TransientError(Reason.LOG_DISK_FULL, f"no room for a new log: {error}") from error
            raise PermanentError(Reason.LOG_WRITE_FAILED, f"a new log cannot be made: {error}") from error
        # A -wal of nobody would be taken for the new log's own.
        self.wal.unlink(missing_ok=True)
        self.shm.unlink(missing_ok=True)
        self.head.unlink(missing_ok=True)
        self.new.rename(self.main)
        sync(self.main.parent)

    def remove_new(self) -> None:
        """Remove what is left of a log that was being made. Whoever calls holds the lock."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.new.with_name(self.new.name + suffix).unlink(missing_ok=True)

    def mark(self) -> None:
        """Leave the durable word that a log exists here. Idempotent; a full disk is no reason to fail."""
        if self.marker.exists():
            return
        with contextlib.suppress(OSError):
            self.marker.write_text(_MARKER_TEXT, encoding="ascii")
            sync(self.marker)
            sync(self.marker.parent)

    # --- how far it goes ---------------------------------------------------------------------------

    def note_head(self, seq: int) -> None:
        """Write down that the log goes at least so far. Call it when the event is on the disk.

        Nobody waits for this: after a loss of power there may be an older number, never a newer one than the
        log's. A process that dies loses nothing of it.
        """
        with contextlib.suppress(OSError):
            if self._head_fd < 0:
                self._head_fd = os.open(self.head, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            number = f"{seq:020}"
            os.pwrite(self._head_fd, f"{number} {zlib.crc32(number.encode()):08x}\n".encode(), 0)

    def renew_head(self, seq: int) -> None:
        """Write the number into a file that has the right name again; synced. As ``note_head`` otherwise."""
        if self._head_fd >= 0:
            os.close(self._head_fd)
            self._head_fd = -1
        self.note_head(seq)
        if self._head_fd >= 0:
            os.fsync(self._head_fd)

    def check_head(self, seq: int) -> None:
        """See that a log that ends with this event is not shorter than it was.

        SQLite does not miss a -wal that is gone or was cut off, and damage to its last transaction looks like
        one that was torn.

        Raises:
            LogDamageError: Events that were synced are not there.
        """
        try:
            number, _, check = self.head.read_text("ascii").strip().partition(" ")
        except (OSError, UnicodeDecodeError):
            return
        if f"{zlib.crc32(number.encode()):08x}" == check and int(number) > seq:
            raise LogDamageError(
                f"it ends with event {seq} and had event {int(number)}; if an older copy was put here on purpose, "
                f"remove {self.head.name}"
            )

    # --- when the disk is full ---------------------------------------------------------------------

    def restore_reserve(self) -> bool:
        """Whether the reserve is there, after trying to take it (back).

        It is taken only when as much again stays free: DELs come first.
        """
        with contextlib.suppress(OSError):
            if self.reserve.stat().st_size >= RESERVE_BYTES:
                return True
        try:
            space = os.statvfs(self.main.parent)
            if space.f_bavail * space.f_frsize < 2 * RESERVE_BYTES:
                return False
            fd = os.open(self.reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError:
            self.release_reserve()
            return False
        return True

    def release_reserve(self) -> bool:
        """Give the reserve's blocks to the log; whether there was one to give."""
        try:
            self.reserve.unlink()
        except OSError:
            return False
        return True

    # --- when it is damaged ------------------------------------------------------------------------

    def quarantine(self) -> str:
        """Copy the log, with its -wal, durably aside; the originals stay as they are.

        The same damage is copied once only, or a restarting agent would fill the disk.

        Returns:
            What was done, for the message.
        """
        originals = self._originals()
        if not originals:
            return "there was nothing to copy"
        for known in sorted(self.main.parent.glob(f"{self.main.name}.quarantine-*Z*")):
            if not known.name.endswith("-wal") and self._is_copy(known):
                return f"a copy is kept as {known.name}"
        made: list[Path] = []
        try:
            copy = self.free_name("quarantine")
            for original in originals:
                target = copy.with_name(copy.name + original.name[len(self.main.name) :])
                made.append(target)
                shutil.copyfile(original, target)
                sync(target)
            sync(copy.parent)
        except OSError as error:
            for target in made:
                with contextlib.suppress(OSError):
                    target.unlink()
            return f"no copy could be made: {error}"
        return f"a copy is kept as {copy.name}"

    def _originals(self) -> list[Path]:
        return [
            one for one in (self.main, self.wal) if one.exists() and (one == self.main or self.wal_bytes())
        ]

    def free_name(self, word: str) -> Path:
        """A name with the time in it for what is kept aside; nothing has it, with any ending."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        taken = os.listdir(self.main.parent)
        name, count = f"{self.main.name}.{word}-{stamp}", 1
        while any(one.startswith(name) for one in taken):
            count += 1
            name = f"{self.main.name}.{word}-{stamp}.{count}"
        return self.main.with_name(name)

    def _is_copy(self, known: Path) -> bool:
        for original, suffix in ((self.main, ""), (self.wal, "-wal")):
            copy = known.with_name(known.name + suffix)
            is_there = original in self._originals()
            if is_there != copy.exists() or (is_there and not filecmp.cmp(original, copy, shallow=False)):
                return False
        return True

    # --- the -wal ----------------------------------------------------------------------------------

    def wal_bytes(self) -> int:
        """Size of the -wal; 0 when there is none."""
        try:
            return self.wal.stat().st_size
        except FileNotFoundError:
            return 0

    def lengthen_wal(self, step: int, known: Identity | None = None) -> bool:
        """Put zeros behind the end of the -wal, for SQLite to write over. Nobody may be writing to it.

        A sync of blocks that a file has does not wait for the filesystem's journal, hence for whatever else
        goes on there; a sync that makes it longer does. Zeros are no frame: to SQLite the -wal ends where it
        ended ("WAL-mode file format", section 4).

        Args:
            step: Bytes.
            known: The -wal that is meant; another one is left alone.

        Returns:
            Whether it is longer now. Without space for it nothing has changed.
        """
        size = self.wal_bytes()
        if not size:
            return False  # Only behind a header that was synced is a torn end told from damage.
        with contextlib.suppress(OSError), self.wal.open("r+b", buffering=0) as file:
            if known is not None and identity_of(file.fileno()) != known:
                return False
            file.seek(size)
            try:
                is_longer = file.write(bytes(step)) == step
                os.fdatasync(file.fileno())
            except OSError:
                is_longer = False
            if not is_longer:
                file.truncate(size)
            return is_longer
        return False

    def renew_wal(self) -> None:
        """Write the -wal anew, into a file of its own. Nobody may have the database open.

        After a failed sync the kernel takes the pages for clean, so a second sync of the same file promises
        nothing. What is read back here is written and synced for the first time.

        Raises:
            OSError: The disk does not take it; the old -wal is in place.
        """
        if not self.wal_bytes():
            return
        fresh = self.wal.with_name(self.wal.name + ".renewed")
        try:
            shutil.copyfile(self.wal, fresh)
            sync(fresh)
            fresh.rename(self.wal)
        finally:
            fresh.unlink(missing_ok=True)
        sync(self.wal.parent)

    def check_wal(self, held: contextlib.ExitStack) -> bool:
        """See that SQLite took the -wal as far as it was committed. Call while a read transaction is open.

        SQLite passes silently over everything after the first bad frame. One transaction that was torn by
        power loss is allowed there; a second one with its commit proves that the first had been synced, hence
        that a committed frame was damaged. (Damage to the very last transaction looks like a torn one.)

        Args:
            held: Must be closed after the connection is: closing a descriptor of the wal-index drops this
                process's locks on it (fcntl(2)), under which SQLite maps it.

        Returns:
            Whether a torn transaction is there; a checkpoint should clear it away.

        Raises:
            LogDamageError: Committed events are lost.
        """
        size = self.wal_bytes()
        if size <= WAL_HEADER_BYTES:
            return False
        with self.wal.open("rb") as file:
            lost = lost_transactions(file, size, lambda: self._frames_taken(held))
        if lost > 1:
            raise LogDamageError(
                f"a frame of the -wal is damaged: {lost} transactions from it on cannot be read"
            )
        return lost == 1

    def _frames_taken(self, held: contextlib.ExitStack) -> int:
        """``mxFrame`` of the wal-index (SQLite "WAL-mode file format", section 2.1; in native byte order)."""
        fd = os.open(self.shm, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        head = os.pread(fd, 48, 0)
        return int(struct.unpack_from("=I", head, 16)[0]) if len(head) == 48 else 0


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, not even by closing: the -wal is left as it is.

    Without a -wal no file is made beside the database either. The caller holds the lock of the log.
    """
    mode = "mode=ro" if LogFiles(path).wal_bytes() else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA busy_timeout = 250")
        yield connection
    finally:
        connection.close()


def is_no_space(error: BaseException) -> bool:
    """Whether an error of the operating system or of SQLite means a full disk (or quota)."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def identity_of(fd: int) -> Identity:
    """Which file a descriptor has open."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identity_at(path: Path) -> Identity | None:
    """Which file is at a path; ``None`` when there is none.

    Raises:
        OSError: It cannot be told (a disk that fails, a directory that may not be read).
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    return status.st_dev, status.st_ino


def sync(path: Path) -> None:
    """Fsync a file or a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _filesystem_magic(directory: Path) -> int:
    """``f_type`` of statfs(2), which the standard library leaves out."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs is at most 120 bytes
    if libc.statfs(os.fsencode(directory), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(directory))
    # A long on every platform that we build for; the upper half is sign extension on some.
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF
