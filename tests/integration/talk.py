"""A TCP conversation between two namespaces that goes on while a test changes the node between them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final

from tests.integration.test_kernel_datapath import inside

_BEAT_S: Final = 0.004
_PATIENCE_S: Final = 10.0
_TCP_INFO_TOTAL_RETRANS: Final = 8 + 23 * 4
"""Offset of ``tcpi_total_retrans`` in ``struct tcp_info`` (``linux/tcp.h``)."""


class Talk:
    """One connection on which a word is sent every few milliseconds, and sent back.

    A word waits for the one before it. So at most one is under way, and each end sends again once for every 0.2 s
    that the connection is interrupted.

    Attributes:
        name: For messages.
        seen: The client's address, as the server sees it.
        words: How many went there and back so far.
        error: Why it ended; empty while it goes on.
        longest_s: The longest time that a word took there and back; may be set to 0.
    """

    def __init__(
        self, name: str, *, client: str, server: str, address: str, port: int, source: str = ""
    ) -> None:
        self.name = name
        self.error = ""
        self.longest_s = 0.0
        self.words = 0
        self._answered = 0
        self._is_over = threading.Event()
        listener = inside(server, lambda: socket.create_server((address, port)))
        listener.settimeout(_PATIENCE_S)
        with listener:
            self._client = inside(
                client,
                lambda: socket.create_connection((address, port), _PATIENCE_S, (source, 0)),
            )
            self._server, (self.seen, _) = listener.accept()
        for end in (self._client, self._server):
            end.settimeout(_PATIENCE_S)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [
            threading.Thread(target=self._guarded, args=(one,)) for one in (self._ask, self._answer)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work) -> None:
        try:
            work()
        except (OSError, EOFError) as error:
            self.error = self.error or f"{self.name}: {error!r} after {self.words} words"

    def _ask(self) -> None:
        while not self._is_over.is_set():
            word, began = struct.pack("=Q", self.words), time.monotonic()
            self._client.sendall(word)
            if _read(self._client) != word:
                raise OSError("another word came back")
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.words += 1
            time.sleep(_BEAT_S)  # Of a thread of its own: this is the conversation.
        self._client.shutdown(socket.SHUT_WR)

    def _answer(self) -> None:
        while word := _read(self._server):
            self._answered += 1
            self._server.sendall(word)

    def wait_words(self, count: int) -> None:
        """Until so many words in all went there and back."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.words < count and not self.error and time.monotonic() < deadline:
            time.sleep(_BEAT_S)
        assert not self.error, self.error
        assert self.words >= count, f"{self.name} is stuck after {self.words} words"

    def retransmissions(self) -> int:
        """How often either end had to send something again."""
        return sum(self.retransmissions_by_end())

    def retransmissions_by_end(self) -> tuple[int, int]:
        """The same, of the client and of the server. A lost answer makes both send again."""
        client, server = (
            int(
                struct.unpack_from(
                    "=I", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), _TCP_INFO_TOTAL_RETRANS
                )[0]
            )
            for end in (self._client, self._server)
        )
        return client, server

    def finish(self) -> int:
        """End in order: nothing that was sent is lost. How many words went there and back."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self.close()
        assert not self.error, self.error
        assert self._answered == self.words, f"{self.name}: {self._answered} of {self.words} words came"
        return self.words

    def close(self) -> None:
        """Hang up."""
        self._is_over.set()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()


def _read(end: socket.socket) -> bytes:
    """A whole word; empty at the end of the conversation."""
    word = b""
    while len(word) < 8:
        some = end.recv(8 - len(word))
        if not some and word:
            raise EOFError
        if not some:
            return b""
        word += some
    return word


@contextlib.contextmanager
def talking(talks: list[Talk]) -> Iterator[list[Talk]]:
    """Conversations for the length of the block."""
    try:
        yield talks
    finally:
        for talk in talks:
            talk.close()
