"""Callers of the daemon's socket, many at once, on one thread and cheap: what is measured is the daemon."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

_END_OF_HEAD = b"\r\n\r\n"
TIMEOUT_S = 120.0


class _Caller:
    """One connection; it asks the next question when the last one was answered."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.name = ""
        self._said = b""

    def ask(self, name: str, request: bytes) -> None:
        self.name, self._said = name, b""
        self.socket.sendall(request)

    def answer(self) -> tuple[int, bytes] | None:
        """Status and body of a whole answer, or nothing yet.

        Raises:
            ConnectionError: the daemon hung up.
        """
        got = self.socket.recv(65536)
        if not got:
            raise ConnectionError("the daemon hung up")
        self._said += got
        head, found, body = self._said.partition(_END_OF_HEAD)
        if not found:
            return None
        lines = head.decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        return (int(lines[0].split()[1]), body) if len(body) >= length else None


def ask_all(path: str, requests: list[tuple[str, bytes]], at_once: int) -> dict[str, Any]:
    """Send every request, so many at once.

    Args:
        path: Of the socket.
        requests: A name, for telling what failed, and all bytes of a request.
        at_once: How many connections.

    Returns:
        ``seconds`` from the first request to the last answer, and what ``failed``.

    Raises:
        TimeoutError: not all were answered within ``TIMEOUT_S``.
    """
    waiting = list(reversed(requests))
    callers = [_Caller(path) for _ in range(min(at_once, len(requests)))]
    failed: list[str] = []
    deadline = time.monotonic() + TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        began = time.perf_counter()
        for caller in callers:
            selector.register(caller.socket, selectors.EVENT_READ, caller)
            caller.ask(*waiting.pop())
        busy = len(callers)
        while busy:
            ready = selector.select(deadline - time.monotonic())
            if not ready:
                raise TimeoutError(f"{busy} callers had no answer within {TIMEOUT_S:.0f} s")
            for key, _ in ready:
                caller = key.data
                answer = caller.answer()
                if answer is None:
                    continue
                if answer[0] != 200:
                    failed.append(f"{caller.name}: {answer[0]} {answer[1][:200]!r}")
                if waiting:
                    caller.ask(*waiting.pop())
                else:
                    busy -= 1
        seconds = time.perf_counter() - began
    for caller in callers:
        caller.socket.close()
    return {"seconds": seconds, "failed": failed[:20], "failures": len(failed)}
