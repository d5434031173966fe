"""Processes inside a network namespace: one that is waited for, and one that stays.

They start through ``nsenter --net=``, which enters the namespace in the child and then becomes the program:
the PID is the program's own, and the parent's threads are not involved. That none outlives the lab is the PID
namespace's doing (see `enter`); that none outlives its fabric is `Fabric.destroy`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.namespaces import Namespace

STOP_GRACE_S = 5.0
"""How long a daemon may take to end after SIGTERM: half of what a DaemonSet of the original grants."""


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """A process that has ended. A negative ``returncode`` is the signal that ended it."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Daemon:
    """A long-running process inside a namespace. Leaving it as an ``async with`` block stops it."""

    def __init__(self, process: asyncio.subprocess.Process, argv: Sequence[str]) -> None:
        self._process = process
        self.argv = tuple(argv)

    @property
    def pid(self) -> int:
        """The program's own PID (not a wrapper's), as seen inside the world."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self._process.returncode

    @property
    def stdin(self) -> asyncio.StreamWriter | None:
        """Its standard input, if `spawn_in` was asked for a pipe."""
        return self._process.stdin

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """Its standard output, unless that goes to a file. To be read, or it stops when the pipe is full."""
        return self._process.stdout

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait until it has ended and return its exit status."""
        return await self._process.wait()

    async def kill(self) -> int:
        """SIGKILL it and wait for its end."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return await self._process.wait()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> int:
        """SIGTERM it, SIGKILL it after ``grace_s``; return its exit status."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                return await self._process.wait()
        except TimeoutError:
            return await self.kill()

    async def __aenter__(self) -> Daemon:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def exec_in(
    namespace: Namespace,
    argv: Sequence[str],
    *,
    timeout_s: float = 30.0,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Completed:
    """Run a command inside the namespace to its end.

    Args:
        namespace: Where it runs; only its network differs from the caller's.
        argv: The command; its first word is looked up on PATH and the sbin directories.
        timeout_s: After this it is killed.
        stdin: What it reads.
        env: Its whole environment; by default the caller's.
        cwd: Its working directory; by default the caller's.

    Raises:
        FileNotFoundError: there is no such program; nothing was started.
        TimeoutError: it took longer than ``timeout_s`` and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command_in(namespace, argv),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        raise TimeoutError(
            f"{argv[0]} in {namespace.name} took longer than {timeout_s} s and was killed"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode is None:
        raise RuntimeError(f"{argv[0]} ended without a status")
    return Completed(returncode=process.returncode, stdout=stdout, stderr=stderr)


async def spawn_in(
    namespace: Namespace,
    argv: Sequence[str],
    *,
    output: Path | None = None,
    stdin: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Daemon:
    """Start a daemon inside the namespace. The caller stops it (`Fabric.spawn_in` does so by itself).

    Args:
        namespace: Where it runs.
        argv: The command.
        output: A file to which stdout and stderr are appended; without it stdout is a pipe and stderr the
            caller's.
        stdin: Whether its standard input is a pipe; otherwise it is empty.
        env: Its whole environment; by default the caller's.
        cwd: Its working directory; by default the caller's.

    Raises:
        FileNotFoundError: there is no such program; nothing was started.
    """
    handle = (
        None
        if output is None
        else os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    )
    try:
        process = await asyncio.create_subprocess_exec(
            *command_in(namespace, argv),
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if handle is None else handle,
            stderr=handle,
            env=env,
            cwd=cwd,
        )
    finally:
        if handle is not None:
            os.close(handle)
    return Daemon(process, argv)


def command_in(namespace: Namespace, argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` inside the namespace, for who starts it in a way of their own.

    Raises:
        FileNotFoundError: there is no such program.
    """
    nsenter, program = find_program("nsenter"), find_program(argv[0])
    if nsenter is None or program is None:
        raise FileNotFoundError(f"no such program: {argv[0] if program is None else 'nsenter (util-linux)'}")
    return [nsenter, f"--net={namespace.path}", "--", program, *argv[1:]]
