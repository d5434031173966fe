"""Named network namespaces, and how to do something inside one without leaving one's own.

A thread enters a namespace, not a process: everything here uses short-lived threads, and what they open (a
socket, a netlink handle) stays in the namespace in which it was opened. Processes enter through ``nsenter``,
not ``ip netns exec``, which mounts another ``/sys`` and so hides the control groups from a container runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from vpccni.lab.fabric.enter import require_inside, set_loopback_up

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
"""Where ``ip netns`` looks; inside a world a private tmpfs."""

BACKLOG = 128
"""Waiting connections of a listening socket: an agent opens a handful at once."""

_KILL_TIMEOUT_S = 5.0  # a killed process is gone in milliseconds unless the kernel holds it in I/O
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

_CLONE_NEWNET, _MS_BIND, _MNT_DETACH = 0x40000000, 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace(msgspec.Struct, frozen=True):
    """A network namespace with a name. ``path`` is what CNI_NETNS and ``nsenter --net=`` take."""

    name: str
    path: str


def create(name: str) -> Namespace:
    """Make a namespace, its loopback still down, visible to ``ip netns`` as ``name``.

    Raises:
        NoWorldError: not inside a world.
        ValueError: the name cannot be a file name.
        FileExistsError: the name is taken.
    """
    require_inside()
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name for a network namespace: {name!r}")
    path = NETNS_DIRECTORY / name
    path.touch(exist_ok=False)

    def unshare_and_pin() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        _check(_libc.mount(b"/proc/thread-self/ns/net", bytes(path), None, _MS_BIND, None))

    try:
        _on_thread(unshare_and_pin)
    except OSError:
        path.unlink()
        raise
    return Namespace(name=name, path=str(path))


def remove(namespace: Namespace) -> None:
    """Kill what still runs inside and remove the namespace and its links. Nothing happens if it is gone."""
    path = Path(namespace.path)
    if not path.exists():
        return
    kill_processes(namespace)
    with contextlib.suppress(OSError):  # a name whose mount somebody removed already
        _check(_libc.umount2(bytes(path), _MNT_DETACH))
    path.unlink(missing_ok=True)


def kill_processes(namespace: Namespace) -> None:
    """SIGKILL every process (but this one) that lives in the namespace, and wait until none is left.

    Raises:
        TimeoutError: some did not die within five seconds.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while pids := process_ids(namespace):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(pids)} in {namespace.name} survive SIGKILL")
        time.sleep(0.002)


def process_ids(namespace: Namespace) -> frozenset[int]:
    """Processes, this one excepted, whose main thread is in the namespace. Zombies do not count."""
    identity = os.stat(namespace.path)
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            status = os.stat(f"/proc/{entry}/ns/net")
            if (status.st_dev, status.st_ino) == (identity.st_dev, identity.st_ino):
                found.add(int(entry))
    return frozenset(found)


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """Let the calling *thread* be in the namespace at ``path`` for the length of the block.

    Not on a thread that runs an event loop with other work in it: whatever that opened meanwhile would be
    inside too.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        move_thread(path)
        try:
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET))
    finally:
        os.close(home)


def move_thread(path: str) -> None:
    """Move the calling thread into the namespace at ``path``, for good."""
    target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(target, _CLONE_NEWNET))
    finally:
        os.close(target)


def run_in(namespace: Namespace, call: Callable[[], T]) -> T:
    """Call ``call()`` on a short-lived thread inside the namespace; return or raise what it does. Blocks."""

    def inside() -> T:
        move_thread(namespace.path)
        return call()

    return _on_thread(inside)


def open_socket_in(
    namespace: Namespace,
    family: socket.AddressFamily = socket.AF_INET,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    protocol: int = 0,
) -> socket.socket:
    """Open a socket that lives in the namespace, whichever thread uses it. The caller closes it."""
    return run_in(namespace, lambda: socket.socket(family, kind, protocol))


def listen_in(namespace: Namespace, address: str, port: int) -> socket.socket:
    """Open a non-blocking TCP socket that listens on ``address:port`` inside the namespace.

    For ``aiohttp.web.SockSite`` and ``asyncio.start_server(sock=…)``. The caller closes it.

    Raises:
        OSError: the address is not one of the namespace, or the port is taken.
    """
    opened = open_socket_in(namespace)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened


def write_sysctls(namespace: Namespace, settings: dict[str, str]) -> None:
    """Write sysctls below ``net/`` (such as ``ipv4/ip_forward``) inside the namespace.

    Raises:
        OSError: the kernel does not know one of them or refuses the value; those before it are written.
    """
    run_in(namespace, lambda: write_sysctls_here(settings))


def write_sysctls_here(settings: dict[str, str]) -> None:
    """Write sysctls below ``net/`` in the namespace of the calling thread."""
    for key, value in settings.items():
        Path("/proc/sys/net", key).write_text(value)


def set_lo_up(namespace: Namespace) -> None:
    """Set loopback up inside the namespace, as a container runtime does for a pod."""
    run_in(namespace, set_loopback_up)


def _on_thread(call: Callable[[], T]) -> T:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="namespace") as thread:
        return thread.submit(call).result()


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
