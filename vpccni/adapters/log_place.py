"""Whether the files that a log writes are still those at its path, and how the path gets them back.

Removing a file takes its name and leaves it to whoever has it open. SQLite does not mind: batches succeed, and
with the process all of it is gone. So the device and inode of each open file are compared with those at the path.

Putting back goes in this order, so that a process that dies or a machine that stops in between leaves the whole
log at its path, or what the next start finds damaged, never a part that looks like a log:

1. The lock is taken at the path: another agent that holds it by now has the last word. What says that a log
   exists here, and how far it goes, is written anew.
2. The database is copied to ``<log>.new``, the copy checked and synced.
3. What somebody else put at the path is renamed to ``<log>.replaced-...``. Our own -wal and -shm are removed:
   a -wal beside a database that it does not belong to would be read into it. The directory is synced.
4. The copy is renamed to the log's name. The directory is synced.

What is not async blocks, and is called on a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from vpccni.adapters.log_connection import LogConnection
from vpccni.adapters.log_files import Identity, LogFiles, identity_at, identity_of, reading, sync
from vpccni.adapters.log_format import LogDamageError
from vpccni.adapters.log_verify import Head, check_integrity, check_schema, damage_translated, head_of
from vpccni.errors import Reason, TransientError

_NOWHERE: Final[Identity] = (0, 0)
"""No file has it: something else stood at the path when the log was opened."""


class LogPlace:
    """What a log has open, and what is at its path."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._open: dict[Path, Identity] = {}
        self._quick: list[tuple[str, Identity]] = []
        self._had_marker = False
        self._copy_fd = -1
        self._kept: Path | None = None

    # --- looking -----------------------------------------------------------------------------------

    def note_opened(self) -> None:
        """Remember which files SQLite has open now. To be called when it has just opened them."""
        ours = _open_files()
        for path in (self._files.main, self._files.wal, self._files.shm):
            self._open[path] = _NOWHERE
            with contextlib.suppress(OSError):
                found = identity_at(path)
                if found is not None and (not ours or found in ours):
                    self._open[path] = found
        self._had_marker = self._files.marker.exists()
        self._quick = [(str(path), ours) for path, ours in self._open.items()]

    def opened(self) -> dict[Path, Identity]:
        """What ``note_opened`` remembered, to come back to when opening anew fails."""
        return dict(self._open)

    def go_back_to(self, opened: dict[Path, Identity]) -> None:
        """See ``opened``."""
        self._open = opened
        self._quick = [(str(path), ours) for path, ours in opened.items()]

    def missing_data(self) -> tuple[str, ...]:
        """Names of SQLite's files that are gone or replaced. Each batch asks: three calls, 4 microseconds."""
        try:
            for name, ours in self._quick:
                status = os.stat(name)
                if (status.st_dev, status.st_ino) != ours:
                    return self._missing(self._open)
        except OSError:
            return self._missing(self._open)
        return ()

    def is_data_lost(self) -> bool:
        """Whether what is at the path does not hold all events: more than the wal-index is missing."""
        return bool({self._files.main.name, self._files.wal.name} & set(self.missing_data()))

    def missing(self) -> tuple[str, ...]:
        """Names of all files of the log that are gone or replaced."""
        gone = self._missing(self._open | self._files.held())
        if self._had_marker and not self._files.marker.exists():
            gone = (*gone, self._files.marker.name)
        return gone

    @staticmethod
    def _missing(known: dict[Path, Identity]) -> tuple[str, ...]:
        gone = []
        for path, ours in known.items():
            with contextlib.suppress(OSError):  # A disk that does not answer is no proof.
                if identity_at(path) != ours:
                    gone.append(path.name)
        return tuple(gone)

    def wal(self) -> Identity | None:
        """The -wal that is open."""
        return self._open.get(self._files.wal)

    def _is_ours(self, path: Path) -> bool:
        return identity_at(path) == (self._open | self._files.held()).get(path, _NOWHERE)

    # --- putting back ------------------------------------------------------------------------------

    def retake(self, newest: int, *, volatile_ok: bool) -> tuple[str, ...]:
        """Step 1: the directory, the lock, the word that a log exists here, and how far it goes.

        From here on a start that finds no log, or a shorter one, takes it for damaged and not for a new one.

        Args:
            newest: The number of the log's newest event.
            volatile_ok: See ``LogFiles.prepare_directory``.

        Returns:
            The new name of a number that somebody else put there.

        Raises:
            PermanentError: ``log_in_use``, ``log_volatile``.
            OSError: The directory cannot be written to.
        """
        files = self._files
        self._kept = None
        files.prepare_directory(volatile_ok=volatile_ok)
        if files.main.parent.stat().st_nlink == 0:
            # Removed on the host while it is mounted in a container: nothing can be made in it any more.
            raise OSError(f"{files.main.parent} is the mount of a directory that was removed")
        files.acquire()
        files.mark()
        aside = self._set_aside((files.head,))
        files.renew_head(newest)
        return aside

    async def copy_from(self, connection: LogConnection, newest: Head, schema: int) -> tuple[str, ...]:
        """Steps 2 to 4: a copy of the log at its path, whole, synced, and not open yet.

        Args:
            connection: It sees everything that was written into the files that are open.
            newest: The event with which the log ends; its ``hash`` is empty when it may have one more batch.
            schema: The newest schema that we know.

        Returns:
            Names of what was moved aside.

        Raises:
            sqlite3.Error, OSError, LogDamageError, TransientError: Nothing half-made is under the log's name.
        """
        if not await asyncio.to_thread(self.is_data_lost):
            # Only the wal-index is gone. What is in the -wal goes into the file first: it is about to lose it.
            ((is_busy, *_),) = await connection.sql("PRAGMA wal_checkpoint(TRUNCATE)")
            if is_busy:
                raise TransientError(Reason.LOG_REMOVED, "somebody reads the log")
        target = await asyncio.to_thread(self._open_copy)
        try:
            await connection.copy_to(target)
        finally:
            await asyncio.to_thread(target.close)
        await asyncio.to_thread(self._check_copy, newest, schema)
        return await asyncio.to_thread(self._put_in_place)

    def _open_copy(self) -> sqlite3.Connection:
        """An empty database to copy into. Nobody reads it before it was synced as a whole, hence no care here."""
        self._files.remove_new()
        connection = sqlite3.connect(self._files.new, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def _check_copy(self, newest: Head, schema: int) -> None:
        """See that the copy is a whole log, and sync it.

        Raises:
            LogDamageError: It is not what was copied.
        """
        copy = self._files.new
        with damage_translated(), reading(copy) as connection:
            check_schema(connection, schema)
            check_integrity(connection)
            found = head_of(connection)
        if found.seq < newest.seq or (newest.hash and found != newest):
            raise LogDamageError(f"the copy ends with event {found.seq}, the log with event {newest.seq}")
        sync(copy)

    def _put_in_place(self) -> tuple[str, ...]:
        """The copy becomes the log. Names of what was moved aside.

        Raises:
            OSError: It could not be done. The copy is under its own name or, at the very end, in place.
        """
        files = self._files
        if not self.is_data_lost() and files.wal_bytes():
            raise OSError("the files are back")
        aside = self.set_aside()
        for own in (files.wal, files.shm):
            own.unlink(missing_ok=True)
        sync(files.main.parent)
        self.forget_copy()
        # Held, so that its inode is not given to another file if it is removed at once. O_PATH: to close it does
        # not drop SQLite's locks on the file.
        self._copy_fd = os.open(files.new, os.O_PATH | os.O_CLOEXEC)
        files.new.rename(files.main)
        sync(files.main.parent)
        return aside

    def is_copy_open(self) -> bool:
        """Whether what SQLite has opened is the copy that was put in place."""
        return self._open.get(self._files.main) == self._copy()

    def forget_copy(self) -> None:
        """To be called when the copy is the log that is open, or nobody's."""
        if self._copy_fd >= 0:
            os.close(self._copy_fd)
            self._copy_fd = -1

    def _copy(self) -> Identity:
        return identity_of(self._copy_fd) if self._copy_fd >= 0 else _NOWHERE

    def make_way_for_closing(self) -> None:
        """Before SQLite closes a database that is at its path: it would remove a -wal of somebody else's by name."""
        if self._is_ours(self._files.main):
            self._kept = None
            with contextlib.suppress(OSError):
                self.set_aside()

    def set_aside(self) -> tuple[str, ...]:
        """Rename what SQLite would take for the log's and is not ours. The new names.

        Raises:
            OSError: It could not be done, or only for some.
        """
        # The database first: a -wal alone is taken for no log, a database without its -wal for an older one.
        return self._set_aside((self._files.main, self._files.wal, self._files.shm))

    def _set_aside(self, paths: tuple[Path, ...]) -> tuple[str, ...]:
        foreign = [
            path
            for path in paths
            if os.path.lexists(path) and not self._is_ours(path) and identity_at(path) != self._copy()
        ]
        if not foreign:
            return ()
        # One name for all that is moved aside at a time: a database and its -wal still belong together.
        kept = self._kept = self._kept or self._files.free_name("replaced")
        names = {path: kept.name + path.name[len(self._files.main.name) :] for path in foreign}
        for path, name in names.items():
            path.rename(path.with_name(name))
        return tuple(names.values())


def _open_files() -> set[Identity]:
    """What this process has open; empty where that cannot be told."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the directory's own descriptor is closed by now
                found.add(identity_of(int(name)))
    return found
