"""TCP connections of pods that live through a test: whether a byte was lost, and what the kernel sent again.

Each end has a thread of its own, so that whatever else the test does, blocking or not, the data goes on. A client
sends a message with its number, waits for its echo, compares, and pauses for two milliseconds: so at most one
packet is under way, and an interruption costs one retransmission for each 0.2 s that it lasts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.namespaces import Namespace

MESSAGE_BYTES = 128
PAUSE_S = 0.002
PATIENCE_S = 10.0
"""A connection that has brought nothing for so long is taken for dead."""
_TCP_INFO = struct.Struct("8B24I")
"""``struct tcp_info`` of linux/tcp.h, up to ``tcpi_total_retrans``."""


class FlowError(Exception):
    """A connection broke off, stood still, or brought other bytes than were sent."""


class Flow:
    """One connection. Made by :meth:`Flows.connect`.

    Attributes:
        name: Which, for messages.
        exchanges: Messages that came back.
        longest_s: The longest time between a message and its echo since the phase began.
    """

    def __init__(self, name: str, client: socket.socket, server: socket.socket) -> None:
        self.name = name
        self.exchanges = 0
        self.longest_s = 0.0
        self._client, self._server = client, server
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(PATIENCE_S)
        self._is_over = threading.Event()
        self._problem = ""
        self._echoed = 0
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"flow {name}", daemon=True)
            for work in (self._ask, self._echo)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def retransmissions(self) -> tuple[int, int]:
        """Of the client and of the server, since the connection began.

        A lost echo makes both send again: it has acknowledged the message, too.
        """
        return _total_retrans(self._client), _total_retrans(self._server)

    def check(self) -> None:
        """Raises FlowError if it is broken."""
        if self._problem:
            raise FlowError(f"{self.name}: {self._problem}")

    def wait_exchanges(self, count: int = 3) -> None:
        """Wait until so many more messages have come back.

        Raises:
            FlowError: they did not.
        """
        wanted, deadline = self.exchanges + count, time.monotonic() + PATIENCE_S
        while self.exchanges < wanted:
            self.check()
            if time.monotonic() > deadline:
                raise FlowError(f"{self.name}: nothing has come back for {PATIENCE_S} s")
            time.sleep(PAUSE_S)

    def close(self) -> int:
        """End it in order, and return how many bytes went there and back.

        Raises:
            FlowError: it was broken, or the other end has not read all that was sent.
        """
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()
        self.check()
        sent = self.exchanges * MESSAGE_BYTES
        if self._echoed != sent:
            raise FlowError(f"{self.name}: {sent} bytes were sent, and {self._echoed} came to the other end")
        return sent

    # -- on the threads ---------------------------------------------------------------------------

    def _guarded(self, work) -> None:
        try:
            work()
        except (OSError, FlowError) as error:
            self._problem = self._problem or f"after {self.exchanges} messages: {error!r}"

    def _ask(self) -> None:
        while not self._is_over.wait(PAUSE_S):
            message = struct.pack("!Q", self.exchanges) * (MESSAGE_BYTES // 8)
            began = time.monotonic()
            self._client.sendall(message)
            if _read(self._client) != message:
                raise FlowError("what came back is not what was sent")
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.exchanges += 1
        self._client.shutdown(socket.SHUT_WR)

    def _echo(self) -> None:
        while message := _read(self._server):
            self._echoed += len(message)
            self._server.sendall(message)


@dataclass
class Flows:
    """Connections that go on while phases pass."""

    flows: list[Flow] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def connect(self, name: str, source: Namespace, target: Namespace, address: str, port: int) -> Flow:
        """Connect from a namespace to an address of another one, and begin to send."""
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(namespaces.listen_in(target, address, port))
            listening.settimeout(PATIENCE_S)
            client = stack.enter_context(namespaces.open_socket_in(source))
            client.settimeout(PATIENCE_S)
            client.connect((address, port))
            server, _ = listening.accept()
            made = Flow(name, client, server)
            stack.pop_all()
        listening.close()
        self.flows.append(made)
        return made

    @contextlib.contextmanager
    def phase(self, name: str, retransmissions_max: int = 1) -> Iterator[None]:
        """A part of the story: after it every connection lives, and hardly anything was sent again."""
        before = {flow.name: flow.retransmissions for flow in self.flows}
        for flow in self.flows:
            flow.longest_s = 0.0
        yield
        for flow in self.flows:
            flow.wait_exchanges()
        again = {flow.name: _differences(before[flow.name], flow.retransmissions) for flow in self.flows}
        longest_ms = max(flow.longest_s for flow in self.flows) * 1000
        self.told.append(
            f"{name}: {sum(map(sum, again.values()))} sent again, longest wait {longest_ms:.0f} ms"
        )
        assert max(map(max, again.values())) <= retransmissions_max, f"{name}: {again}; {self.told}"

    def close(self) -> list[int]:
        """End all; how many bytes each has carried."""
        flows, self.flows = self.flows, []
        return [flow.close() for flow in flows]


@contextlib.contextmanager
def open_flows() -> Iterator[Flows]:
    """Connections for the length of the block; what is left of them is ended."""
    made = Flows()
    try:
        yield made
    finally:
        _end(made.flows)


def _end(flows: Iterable[Flow]) -> None:
    for flow in flows:
        with contextlib.suppress(FlowError):
            flow.close()


def _read(end: socket.socket) -> bytes:
    """A whole message; empty at the end of the connection."""
    read = b""
    while len(read) < MESSAGE_BYTES:
        more = end.recv(MESSAGE_BYTES - len(read))
        if not more:
            if read:
                raise FlowError("the connection ended in the middle of a message")
            return b""
        read += more
    return read


def _differences(before: tuple[int, int], after: tuple[int, int]) -> tuple[int, int]:
    return after[0] - before[0], after[1] - before[1]


def _total_retrans(end: socket.socket) -> int:
    return int(_TCP_INFO.unpack(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))[-1])
