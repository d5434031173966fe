"""The file by which the CNI executable knows, while nobody answers, that ADDs were served in this boot.

It lies beside the socket and holds the boot id and a newline (see ``plugin/boot.c``). It outlives the agent: a
restart, an upgrade and the slow pull of an image are no reason to call the node not ready.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from vpccni.errors import Reason, TransientError

NAME: Final = "ready"
"""Where the executable looks, in the socket's directory, unless its configuration has a ``readyPath``."""


class ReadyMarker:
    """The marker of one boot. Only the agent that holds the log may use it."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Remember both; nothing is touched."""
        self._path = path
        self._content = f"{boot_id}\n".encode()

    @classmethod
    def beside(cls, socket: Path, boot_id: str) -> Self:
        """The marker that the executable looks for when it knows no more than the socket."""
        return cls(socket.with_name(NAME), boot_id)

    def mark(self, is_ready: bool) -> None:
        """Have the marker there, or not there. Idempotent, and cheap when nothing has to be changed.

        The file is replaced as a whole, so that nobody reads a part of it. It is not synced: after a power loss
        there is another boot id.

        Raises:
            TransientError: the directory cannot be written; the marker is as it was.
        """
        try:
            if not is_ready:
                self._path.unlink(missing_ok=True)
            elif not self._is_there():
                self._write()
        except OSError as error:
            detail = (
                f"{self._path} cannot be {'written' if is_ready else 'removed'}: {error.strerror or error}"
            )
            raise TransientError(Reason.INTERNAL, detail) from error

    def _is_there(self) -> bool:
        try:
            return self._path.read_bytes() == self._content
        except FileNotFoundError:
            return False

    def _write(self) -> None:
        draft = self._path.with_name(f".{self._path.name}.tmp")
        draft.unlink(missing_ok=True)
        draft.write_bytes(self._content)
        os.replace(draft, self._path)
