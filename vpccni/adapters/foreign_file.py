"""Reading a file that another program writes, or that somebody put in the place of one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_foreign_file(path: Path, bytes_max: int) -> tuple[bytes, int]:
    """Content and modification time (nanoseconds since the epoch) of a regular file.

    Never blocks on what is no regular file (a FIFO, a device), follows no link, and reads a bounded amount.

    Raises:
        FileNotFoundError: there is nothing under that name.
        OSError: it cannot be read.
        ValueError: it is a link, is not a regular file, or is larger than ``bytes_max``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a symbolic link") from error
        raise
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"it is larger than {bytes_max} bytes")
    return content, status.st_mtime_ns


def why(error: OSError | ValueError) -> str:
    """The cause in a few words, without the path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
