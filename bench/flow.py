"""A TCP connection that must live through what is measured: whether it does, and what the kernel sent again."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Final

from bench.stage import BenchError
from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.namespaces import Namespace

PORT: Final = 7000
PAUSE_S: Final = 0.002
PATIENCE_S: Final = 10.0
_MESSAGE: Final = b"x" * 128
_TCP_INFO: Final = struct.Struct("8B24I")
"""``struct tcp_info`` of linux/tcp.h, up to ``tcpi_total_retrans``, which is its last."""


class Flow:
    """A message goes from one end to the other and back, then the next: one packet is under way at most.

    An interruption so costs one retransmission for each 0.2 s that it lasts.
    """

    def __init__(self, source: Namespace, target: Namespace, address: str) -> None:
        """Connect from a namespace to an address of another one."""
        with namespaces.listen_in(target, address, PORT) as listening:
            listening.settimeout(PATIENCE_S)
            client = namespaces.open_socket_in(source)
            client.settimeout(PATIENCE_S)
            client.connect((address, PORT))
            server, _ = listening.accept()
        self._ends = (client, server)
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(PATIENCE_S)
        self._is_over = threading.Event()
        self._problem = ""
        self.exchanges = 0
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)
        self._thread.start()

    def end(self) -> int:
        """End it. Returns how many packets either end sent again.

        Raises:
            BenchError: it was broken.
        """
        self._is_over.set()
        self._thread.join()
        again = sum(self._sent_again(end) for end in self._ends)
        for end in self._ends:
            end.close()
        if self._problem:
            raise BenchError(f"a connection broke after {self.exchanges} messages: {self._problem}")
        return again

    def _run(self) -> None:
        client, server = self._ends
        try:
            while not self._is_over.wait(PAUSE_S):
                for sender, receiver in ((client, server), (server, client)):
                    sender.sendall(_MESSAGE)
                    if not receiver.recv(len(_MESSAGE), socket.MSG_WAITALL):
                        raise ConnectionError("the other end is gone")
                self.exchanges += 1
        except OSError as error:
            self._problem = repr(error)

    @staticmethod
    def _sent_again(end: socket.socket) -> int:
        info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        return int(_TCP_INFO.unpack(info)[-1])
