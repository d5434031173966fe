"""A client for the few calls of the container runtime interface (CRI v1) that kubelet makes for a pod.

gRPC is HTTP/2 with one message each way, and these messages are strings within messages: so this speaks both
itself, and the test needs neither ``crictl`` (not in Debian 12) nor a gRPC library. What it leaves out: it does
not decode headers. A call that fails has no message, and why it failed stands in the runtime's log.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

Message = dict[int, "Field"]
Field = str | int | Message | list[str]
"""A message by field numbers: text, number, message, repeated text."""

Decoded = dict[int, list["bytes | int"]]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4


class CriError(Exception):
    """The runtime refused the call, or hung up. Its log says why."""


class Cri:
    """The runtime behind a socket. One connection a call: nothing is kept open."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def call(self, service: str, method: str, message: Message, *, timeout_s: float = 30.0) -> Decoded:
        """Call ``runtime.v1.<service>/<method>`` and return the answer's fields.

        Raises:
            CriError: it was refused.
            OSError: nobody listens.
            TimeoutError: no answer in time.
        """
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(self.socket)
            try:
                return _decode(await _exchange(reader, writer, f"/runtime.v1.{service}/{method}", message))
            except asyncio.IncompleteReadError as error:
                raise CriError(f"{method}: the runtime hung up") from error
            finally:
                writer.close()
                await writer.wait_closed()

    async def runtime(self, method: str, message: Message, *, timeout_s: float = 30.0) -> Decoded:
        """Call the RuntimeService."""
        return await self.call("RuntimeService", method, message, timeout_s=timeout_s)

    async def is_network_ready(self) -> bool:
        """Whether the runtime has a network configuration. False while it does not listen yet."""
        try:
            status = message_at(await self.runtime("Status", {}), 1)
        except (CriError, OSError):
            return False
        conditions = [_decode(condition) for condition in status.get(1, []) if isinstance(condition, bytes)]
        return any(text_at(each, 1) == "NetworkReady" and each.get(2) == [1] for each in conditions)

    async def exec(self, container: str, *command: str, timeout_s: int = 10) -> tuple[int, str]:
        """Run a command in a container; return its exit status and what it printed."""
        ended = await self.runtime(
            "ExecSync", {1: container, 2: list(command), 3: timeout_s}, timeout_s=timeout_s + 5.0
        )
        status = ended.get(3, [0])[0]
        return int(status), text_at(ended, 1) + text_at(ended, 2)


def text_at(message: Decoded, number: int) -> str:
    """The text of a field; empty if it is absent."""
    value = message.get(number, [b""])[0]
    if not isinstance(value, bytes):
        raise TypeError(f"field {number} is a number")
    return value.decode()


def message_at(message: Decoded, number: int) -> Decoded:
    """The message in a field; empty if it is absent."""
    value = message.get(number, [b""])[0]
    if not isinstance(value, bytes):
        raise TypeError(f"field {number} is a number")
    return _decode(value)


# -- HTTP/2 (RFC 9113), as much as one unary call needs ---------------------------------------------------


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, message: Message
) -> bytes:
    body = _encode(message)
    writer.write(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, _headers(path))
        + _frame(_DATA, _END_STREAM, 1, struct.pack("!BI", 0, len(body)) + body)
    )
    answer, is_over = b"", False
    while not is_over:
        head = await reader.readexactly(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF
        payload = await reader.readexactly(int.from_bytes(head[:3]))
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA:
            answer += payload
        elif kind in (_RST_STREAM, _GOAWAY):
            raise CriError(f"{path}: the runtime broke the call off")
        is_over = stream == 1 and kind in (_DATA, _HEADERS) and bool(flags & _END_STREAM)
    if len(answer) < 5:
        raise CriError(f"{path} was refused")
    return answer[5 : 5 + int.from_bytes(answer[1:5])]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers(path: str) -> bytes:
    """Literal fields that are not indexed (RFC 7541, 6.2.2); none is longer than 126 bytes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in fields.items()
    )


# -- protocol buffers: numbers, and bytes with their length -----------------------------------------------


def _encode(message: Message) -> bytes:
    return b"".join(_encode_field(number, value) for number, value in message.items())


def _encode_field(number: int, value: Field) -> bytes:
    if isinstance(value, list):
        return b"".join(_encode_field(number, each) for each in value)
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    raw = value.encode() if isinstance(value, str) else _encode(value)
    return _number(number << 3 | 2) + _number(len(raw)) + raw


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _decode(raw: bytes) -> Decoded:
    fields: Decoded = {}
    octets = iter(raw)
    for octet in octets:
        key = _read_number(octets, octet)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value: bytes | int = _read_number(octets, next(octets))
        elif kind == 2:
            length = _read_number(octets, next(octets))
            value = bytes(next(octets) for _ in range(length))
        else:
            raise CriError(f"field {number} has wire type {kind}, which no message used here has")
        fields.setdefault(number, []).append(value)
    return fields


def _read_number(octets: Iterator[int], octet: int) -> int:
    value, shift = octet & 0x7F, 0
    while octet & 0x80:
        octet, shift = next(octets), shift + 7
        value |= (octet & 0x7F) << shift
    return value
