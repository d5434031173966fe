"""The checkpoint port: ``ipam.json`` of amazon-vpc-cni-k8s, which it reads at its start, and which we read and write.

The original keeps one file for each network card: ``ipam.json`` for card 0 and ``ipam-nic-<card>.json`` beside it
for the others. It replaces a file as a whole at every assign and unassign; so do we, and so a reader meets the old
file or the new one, never a part.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from vpccni.adapters.finish import finish
from vpccni.adapters.foreign_file import read_foreign_file, why
from vpccni.checkpoint import card_path, parse_checkpoint
from vpccni.errors import OutcomeUnknownError, Reason, TransientError
from vpccni.evidence import ABSENT, CheckpointFile

DEFAULT_PATH: Final = Path("/var/run/aws-node/ipam.json")
CARDS_MAX: Final = 64
"""Network cards that are looked for. The largest instance type has 32."""
BYTES_MAX: Final = 16 << 20
"""Of a file. A row takes 250 bytes, and no node runs more than some thousands of pods."""


class CheckpointFiles:
    """The ``Checkpoints`` port over the files themselves."""

    def __init__(self, path: Path = DEFAULT_PATH) -> None:
        """Remember where the file of card 0 lies; nothing is touched."""
        self._path = path
        self._turn = asyncio.Lock()

    async def read(self) -> tuple[CheckpointFile, ...]:
        """Every checkpoint file, that of card 0 first, also when it is absent. Never raises: see ``status``."""
        return await asyncio.to_thread(_read_all, self._path)

    async def stamp(self) -> tuple[int, ...]:
        """Inode, size and modification time of the file of card 0; empty when there is none."""
        # On the loop: the names on the path are in memory, for they are looked at every other second.
        return _stamp(self._path)

    async def write(self, content: bytes) -> str:
        """Replace ``ipam.json`` as a whole, synced, mode 0600. Writes follow each other in the order of the calls.

        A write that is cancelled comes to its end first.

        Returns:
            The SHA-256 of the content, in hexadecimal.

        Raises:
            TransientError: ``export_failed``; the old file is as it was.
            OutcomeUnknownError: ``export_failed``; the new file is in its place and may not outlive a power
                failure.
        """
        async with self._turn:  # All writes use the same draft.
            await finish(asyncio.to_thread(_write, self._path, content), "write checkpoint")
        return hashlib.sha256(content).hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _read_all(path: Path) -> tuple[CheckpointFile, ...]:
    found = [_read_one(path, card) for card in range(CARDS_MAX)]
    return tuple(file for file in found if file.card == 0 or file.status != ABSENT)


def _read_one(base: Path, card: int) -> CheckpointFile:
    path = card_path(str(base), card)
    try:
        content, modified_ns = read_foreign_file(Path(path), BYTES_MAX)
    except FileNotFoundError:
        return CheckpointFile(path=path, card=card, status=ABSENT)
    except (OSError, ValueError) as error:
        return CheckpointFile(path=path, card=card, status=f"unreadable: {why(error)}")
    return parse_checkpoint(content, path=path, card=card, modified_ns=modified_ns)


def _write(path: Path, content: bytes) -> None:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        _replace(folder, path, content)
        try:
            os.fsync(folder)
        except OSError as error:
            detail = f"{path} was replaced, but its directory could not be synced: {why(error)}"
            raise OutcomeUnknownError(Reason.EXPORT_FAILED, detail) from error
    finally:
        os.close(folder)


def _replace(folder: int, path: Path, content: bytes) -> None:
    """Put the content under the file's name in the open directory: the whole of it or, with an error, nothing."""
    # The original's drafts are named `<name>.tmp*`, too: tools that skip or clean them up know ours. One fixed
    # name, so that killed attempts leave one file at most.
    draft = f"{path.name}.tmp-vpccni"
    try:
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            with open(os.open(draft, flags, 0o600, dir_fd=folder), "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask is
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(draft, dir_fd=folder)
            raise
    except OSError as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> TransientError:
    return TransientError(Reason.EXPORT_FAILED, f"{path}: {why(error)}")
