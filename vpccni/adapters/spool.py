"""The spool port: a directory of DELs that were written while the agent was away.

An entry is a file ``<boottime, 20 digits>-<pid>.json`` that appears whole and durable, by rename or link:
``{"version":1,"bootId":…,"boottimeNs":…,"request":{…}}``. Names that begin with ``.tmp-`` are drafts, files
that end in ``.bad`` were set aside for a person; both are no entries. The CNI executable writes the same.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import heapq
import os
import re
import stat
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from vpccni.errors import Reason, TransientError
from vpccni.model import Stamp
from vpccni.ports import SpooledDel

ENTRIES_MAX: Final = 10_000
"""At once; the rest comes when these are removed. A node runs at most some hundreds of pods."""
_ENTRY_BYTES_MAX: Final = 1 << 20
"""As much as the API takes in a request."""
_DRAFT_AGE_MAX_S: Final = 3600.0
"""A writer lives for seconds. Its pid says nothing: it may be of another pid namespace than ours."""
_POLL_S: Final = 1.0
"""How often the directory is looked at where the kernel grants no watch."""
_NAME: Final = re.compile(r"\d{20}-\d+\.json")
_MOMENTARY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Our own shortage: it says nothing about the entry."""
_IN_CREATE: Final = 0x100
_IN_MOVED_TO: Final = 0x80
_IN_IGNORED: Final = 0x8000
"""Linux ``inotify(7)``: a name appeared, a name was moved in, the watch has ended with its directory."""


class _Entry(msgspec.Struct, rename="camel"):
    """The content of a file. A version that is not ours cannot be read."""

    version: Literal[1]
    boot_id: str
    boottime_ns: int
    request: msgspec.Raw


class DirectorySpool:
    """The ``Spool`` port over a directory. It is made (0700) by the first write or wait."""

    def __init__(self, directory: Path) -> None:
        """Remember where it is; nothing is touched."""
        self._directory = directory
        self._watch: _Watch | None = None

    async def entries(self) -> list[SpooledDel]:
        """Whole entries, oldest first, at most ``ENTRIES_MAX``; none when there is no directory.

        An entry that cannot be read is set aside under its name with ``.bad``. Old drafts are removed.

        Raises:
            TransientError: ``spool_unreadable``: the directory cannot be listed, or files not be opened, now.
        """
        try:
            return await asyncio.to_thread(_read_all, self._directory)
        except OSError as error:
            raise TransientError(Reason.SPOOL_UNREADABLE, f"{self._directory}: {error}") from error

    async def remove(self, name: str) -> None:
        """Forget an entry. Absent is fine; one that cannot be removed is met again, and is then old news."""
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of an entry")
        try:
            await asyncio.to_thread(os.unlink, self._directory / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise TransientError(Reason.SPOOL_UNREADABLE, f"{self._directory / name}: {error}") from error

    async def write(self, body: bytes, stamp: Stamp) -> None:
        """Write one durably: it is on disk under its name when this returns.

        Raises:
            TransientError: It cannot be written (``log_disk_full`` for want of room). There is no entry, or
                one that may not outlive a power failure.
        """
        try:
            await asyncio.to_thread(_write, self._directory, body, stamp)
        except OSError as error:
            is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            reason = Reason.LOG_DISK_FULL if is_full else Reason.INTERNAL
            raise TransientError(reason, f"the spool {self._directory} cannot be written: {error}") from error

    async def wait_changed(self) -> None:
        """Wait until an entry may have been added since the last call; the first call returns at once.

        Costs nothing while it waits. For one task at a time.
        """
        if self._watch is None or self._watch.is_over:
            if self._watch is not None:
                self._watch.close()
            await asyncio.to_thread(_make_directory, self._directory)
            self._watch = _Watch(self._directory)
            return
        await self._watch.wait()

    async def close(self) -> None:
        """End the watch. Idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()


class _Watch:
    """An inotify watch of a directory in the running loop, or a slow look at it where there is none."""

    def __init__(self, directory: Path) -> None:
        self.is_over = False
        self._directory = directory
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fd = _inotify(directory)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    async def wait(self) -> None:
        if self._fd >= 0:
            await self._changed.wait()
            self._changed.clear()
        else:
            before = await asyncio.to_thread(_modified_ns, self._directory)
            while await asyncio.to_thread(_modified_ns, self._directory) == before:  # noqa: ASYNC110  # no event
                await asyncio.sleep(_POLL_S)

    def close(self) -> None:
        self.is_over = True
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._changed.set()

    def _read(self) -> None:
        try:
            events = os.read(self._fd, 65_536)
        except BlockingIOError:
            return
        self._changed.set()
        at = 0
        while at + 16 <= len(events):  # struct inotify_event: wd, mask, cookie, len, then len bytes of name
            mask = int.from_bytes(events[at + 4 : at + 8], "little")
            self.is_over = self.is_over or bool(mask & _IN_IGNORED)
            at += 16 + int.from_bytes(events[at + 12 : at + 16], "little")


def _inotify(directory: Path) -> int:
    """A non-blocking descriptor that tells of new names in the directory; -1 where the kernel grants none."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd >= 0 and int(libc.inotify_add_watch(fd, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO)) < 0:
        os.close(fd)
        return -1
    return fd


def _modified_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return -1


def _read_all(directory: Path) -> list[SpooledDel]:
    try:
        listing = os.scandir(directory)
    except FileNotFoundError:
        return []
    with listing:
        names = heapq.nsmallest(ENTRIES_MAX, _entry_names(listing))
    found: list[tuple[int, SpooledDel]] = []
    for name in names:
        read = _read_entry(directory, name)
        if read is not None:
            found.append(read)
    # Boot times of two boots do not compare; boots come in the order of their files' wall time.
    began: dict[str, int] = {}
    for modified_ns, entry in found:
        began[entry.boot_id] = min(modified_ns, began.get(entry.boot_id, modified_ns))
    entries = [entry for _, entry in found]
    return sorted(entries, key=lambda entry: (began[entry.boot_id], entry.boottime_ns, entry.name))


def _entry_names(listing: os._ScandirIterator[str]) -> list[str]:
    """The names of entries in a listing; drafts that nobody will finish are removed on the way."""
    names = []
    for item in listing:
        if _NAME.fullmatch(item.name):
            names.append(item.name)
        elif item.name.startswith(".tmp-"):
            _remove_old_draft(item.path)
    return names


def _remove_old_draft(path: str) -> None:
    try:
        if time.time() - os.lstat(path).st_mtime > _DRAFT_AGE_MAX_S:
            os.unlink(path)
    except OSError:
        return  # litter at worst; the next look tries again


def _read_entry(directory: Path, name: str) -> tuple[int, SpooledDel] | None:
    """An entry with its file's time of change; ``None`` when it is gone or had to be set aside.

    Raises:
        OSError: We are short of something, so that nothing can be said about the entry.
    """
    path = directory / name
    try:
        content, modified_ns = _read_file(path)
        entry = msgspec.json.decode(content, type=_Entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        if isinstance(error, OSError) and error.errno in _MOMENTARY:
            raise
        _set_aside(path)
        return None
    body = bytes(entry.request)
    if not body.startswith(b"{"):
        _set_aside(path)
        return None
    return modified_ns, SpooledDel(name=name, boot_id=entry.boot_id, boottime_ns=entry.boottime_ns, body=body)


def _read_file(path: Path) -> tuple[bytes, int]:
    """Content and time of change of a regular file of bounded size; never follows a link, never blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _ENTRY_BYTES_MAX:
            raise ValueError("not a regular file of a likely size")
        return file.read(_ENTRY_BYTES_MAX), status.st_mtime_ns


def _set_aside(path: Path) -> None:
    try:
        path.rename(path.with_name(path.name + ".bad"))
    except OSError:
        return  # it stays, and is left out again by the next look


def _write(directory: Path, body: bytes, stamp: Stamp) -> None:
    _make_directory(directory)
    head = b'{"version":1,"bootId":%s,"boottimeNs":%d,"request":'
    content = head % (msgspec.json.encode(stamp.boot_id), stamp.boottime_ns) + body + b"}\n"
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        draft = f".tmp-{os.getpid()}-{time.monotonic_ns()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            _link_under_free_name(folder, draft, stamp.boottime_ns)
        finally:
            os.unlink(draft, dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _link_under_free_name(folder: int, draft: str, boottime_ns: int) -> None:
    """Give the draft its name; a rename would replace an entry of the same instant, a link does not."""
    while True:
        name = f"{boottime_ns:020}-{os.getpid()}.json"
        try:
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileExistsError:
            boottime_ns += 1
        else:
            return


def _make_directory(directory: Path) -> None:
    """Make what is missing of the path, each folder durable in its parent before it is used."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
