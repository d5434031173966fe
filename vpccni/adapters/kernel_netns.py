"""Network namespaces by path: opening them safely, working inside them, coming back.

``setns`` is per thread: everything here runs on a worker thread of the kernel adapter, never on the loop's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from vpccni.adapters.netlink import NetlinkSocket
from vpccni.errors import PermanentError, Reason

CLONE_NEWNET: Final = 0x40000000
_NS_GET_NSTYPE: Final = 0xB703
"""``_IO(0xb7, 3)`` of ``linux/nsfs.h``: which kind of namespace a descriptor is of."""
OWN_NETNS: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def setns(descriptor: int) -> None:
    """Move the calling thread into a network namespace. Raises ``OSError``; then nothing has changed."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def open_own() -> int:
    """A descriptor of the calling thread's namespace. The caller closes it."""
    return os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def opened(path: str, *, home: int) -> Iterator[int]:
    """A descriptor of the namespace at ``path``, for the length of the block.

    The path comes from a client, so whatever lies there is looked at before it is opened (a FIFO would
    block, a device would do what devices do).

    Args:
        path: As the runtime gave it (``CNI_NETNS``).
        home: Descriptor of the node's namespace, which no sandbox may be in.

    Raises:
        PermanentError: ``netns_gone`` when nothing is there, ``kernel_refused`` when it is not a network
            namespace, is the node's own, or cannot be opened.
    """
    descriptor = _open(path)
    try:
        if os.fstat(descriptor).st_ino == os.fstat(home).st_ino:
            raise PermanentError(Reason.KERNEL_REFUSED, f"open_netns: {path} is the node's own namespace")
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    if not path or "\0" in path:
        raise PermanentError(Reason.NETNS_GONE, "open_netns: no path was given")
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError) as error:
        raise PermanentError(Reason.NETNS_GONE, f"open_netns: {path}: {error.strerror}") from error
    except OSError as error:
        raise PermanentError(Reason.KERNEL_REFUSED, f"open_netns: {path}: {error.strerror}") from error
    try:
        if os.fstat(handle).st_dev != os.stat(OWN_NETNS).st_dev:
            raise PermanentError(Reason.KERNEL_REFUSED, f"open_netns: {path} is not a network namespace")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(f"/proc/thread-self/fd/{handle}", flags)
        except OSError as error:
            raise PermanentError(Reason.KERNEL_REFUSED, f"open_netns: {path}: {error.strerror}") from error
    finally:
        os.close(handle)
    if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != CLONE_NEWNET:
        os.close(descriptor)
        raise PermanentError(Reason.KERNEL_REFUSED, f"open_netns: {path} is another kind of namespace")
    return descriptor


def socket_in(descriptor: int, *, home: int) -> NetlinkSocket:
    """A netlink socket inside a namespace; the thread is back home when this returns or raises.

    Raises:
        OSError: The namespace cannot be entered; nothing has changed.
    """
    setns(descriptor)
    try:
        return NetlinkSocket()
    finally:
        setns(home)
