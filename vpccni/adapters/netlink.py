"""rtnetlink in the form that the ADD path can afford: one socket, one message, one answer.

pyroute2's message classes take 0.16 ms of the interpreter for a route and 0.44 ms for a veth (measured); a
sandbox needs a dozen messages, and link notifications are decoded on the event loop. The few messages that
we need are therefore packed here, after ``linux/netlink.h`` and ``linux/rtnetlink.h``.

A netlink socket stays in the network namespace in which it was opened. A send runs the kernel's handler
synchronously, under a lock that all namespaces share: use a :class:`NetlinkSocket` on worker threads only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_NETLINK_ROUTE: Final = 0

_NLMSGHDR: Final = struct.Struct("=IHHII")
_NLATTR: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")
U32: Final = struct.Struct("=I")
_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF
_NLMSGERR_ATTR_MSG: Final = 1

_ANSWER_S_MAX: Final = 20
"""The kernel answers within microseconds, or, while many namespaces are torn down, within seconds."""
_BUFFER_BYTES: Final = 65536
"""The kernel fills at most 32 KiB of one read with dump messages."""
_DUMP_TRIES_MAX: Final = 8

_SO_ATTACH_FILTER: Final = 26
_BPF: Final = struct.Struct("=HBBI")
_BPF_LOAD_WORD: Final = 0x20
_BPF_JUMP_EQUAL: Final = 0x15
_BPF_RETURN: Final = 0x06
_PORT_OFFSET: Final = 12
"""Of ``nlmsg_pid``: in a notification the port of who asked for the change, 0 for the kernel itself."""

Attributes = dict[int, memoryview]


class NetlinkError(OSError):
    """The kernel refused a message. ``errno`` is its code, ``strerror`` says more when the kernel did."""


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(payload)
    return _NLATTR.pack(length, kind) + payload + b"\0" * (-length & 3)


def attr_u32(kind: int, number: int) -> bytes:
    """One attribute that holds a 32-bit number."""
    return _NLATTR.pack(8, kind) + U32.pack(number)


def attr_text(kind: int, text: str) -> bytes:
    """One attribute that holds a zero-terminated text."""
    return attr(kind, text.encode() + b"\0")


def nest(kind: int, *parts: bytes) -> bytes:
    """One attribute that holds attributes."""
    payload = b"".join(parts)
    return _NLATTR.pack(4 + len(payload), kind | _NLA_F_NESTED) + payload


def attributes(data: memoryview) -> Attributes:
    """The attributes of a message (or nest) by type; of a repeated one the last."""
    found: Attributes = {}
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _NLATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def number_of(found: Attributes, kind: int, default: int = 0) -> int:
    """A 32-bit attribute."""
    payload = found.get(kind)
    return default if payload is None or len(payload) < 4 else int(U32.unpack_from(payload)[0])


def text_of(found: Attributes, kind: int) -> str:
    """A zero-terminated text attribute; empty when absent."""
    payload = found.get(kind)
    return "" if payload is None else bytes(payload).split(b"\0", 1)[0].decode(errors="replace")


def messages(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """The messages of one read: type, flags, sequence number, payload."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, offset)
        if length < 16 or offset + length > end:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def leave_out(listener: socket.socket, ports: Sequence[int]) -> None:
    """Let a socket that hears of changes hear no more of those that these sockets make (see ``take_port``).

    It is a filter in the kernel (classic BPF): what it drops wakes nobody. Replaces an earlier one.

    Raises:
        OSError: the kernel takes no filter; the socket hears what it heard before.
    """
    # A filter loads numbers as a network has them, and a netlink header has them as this machine has.
    wanted = [int.from_bytes(U32.pack(port), "big") for port in ports]
    load = _BPF.pack(_BPF_LOAD_WORD, 0, 0, _PORT_OFFSET)
    drop_at = [len(wanted) - place for place in range(len(wanted))]
    compare = [_BPF.pack(_BPF_JUMP_EQUAL, drop, 0, port) for drop, port in zip(drop_at, wanted, strict=True)]
    code = b"".join(
        [load, *compare, _BPF.pack(_BPF_RETURN, 0, 0, 0xFFFFFFFF), _BPF.pack(_BPF_RETURN, 0, 0, 0)]
    )
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // _BPF.size, ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class NetlinkSocket:
    """A netlink socket in the namespace of the thread that makes it. For one thread at a time."""

    def __init__(self, protocol: int = _NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            with contextlib.suppress(OSError):  # kernels before 4.12 give less text with an error
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        timeout = struct.pack("@ll", _ANSWER_S_MAX, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def take_port(self) -> int:
        """The number by which the kernel names this socket in what it tells others of its changes."""
        # Without this the socket gets its number with the first message.
        self._socket.bind((0, 0))
        port, _ = self._socket.getsockname()
        return int(port)

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Send one changing message and wait for its acknowledgement.

        Raises:
            NetlinkError: The kernel refused it.
        """
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)
        while True:
            for reply, reply_flags, reply_sequence, payload in self._receive():
                if reply_sequence == sequence and reply == NLMSG_ERROR:
                    _check(reply_flags, payload)
                    return

    def get(self, kind: int, body: bytes) -> bytes:
        """Ask for one object; its message without the header. Raises as ``change`` (``ENODEV``, …)."""
        sequence = self._send(kind, NLM_F_REQUEST, body)
        while True:
            for reply, reply_flags, reply_sequence, payload in self._receive():
                if reply_sequence != sequence:
                    continue
                if reply == NLMSG_ERROR:
                    _check(reply_flags, payload)
                    continue
                return bytes(payload)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Ask for all objects of a kind. A dump that was overtaken by a change is taken again."""
        found, is_whole = self._dump_once(kind, body)
        for _ in range(_DUMP_TRIES_MAX):
            if is_whole:
                break
            found, is_whole = self._dump_once(kind, body)
        # Changes keep coming: what was read last is as good as any answer can be.
        return found

    def filter_dumps(self) -> None:
        """Let the kernel leave out of a dump what its body does not name (4.20 and later; else no effect)."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def first(self, kind: int, body: bytes, count_max: int) -> list[bytes]:
        """As :meth:`dump`, but no more than so many objects, and taken once.

        For a namespace whose owner may make any number of them. Not whole: close the socket afterwards.
        """
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        found: list[bytes] = []
        while True:
            for reply, flags, reply_sequence, payload in self._receive():
                if reply_sequence != sequence:
                    continue
                if reply == NLMSG_ERROR:
                    _check(flags, payload)
                if reply == NLMSG_DONE or len(found) == count_max:
                    return found
                found.append(bytes(payload))

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        sequence = self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
        found: list[bytes] = []
        is_whole = True
        while True:
            for reply, flags, reply_sequence, payload in self._receive():
                if reply_sequence != sequence:
                    continue
                if flags & NLM_F_DUMP_INTR:
                    is_whole = False
                if reply == NLMSG_DONE:
                    return found, is_whole
                if reply == NLMSG_ERROR:
                    _check(flags, payload)
                found.append(bytes(payload))

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        header = _NLMSGHDR.pack(16 + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        return self._sequence

    def _receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        try:
            size, (sender, _) = self._socket.recvfrom_into(self._buffer)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, f"the kernel did not answer in {_ANSWER_S_MAX} s") from None
        # Whoever has NET_ADMIN in a pod can send to our socket there; the kernel's own number is 0.
        return messages(self._view[: 0 if sender else size])


def _check(flags: int, payload: memoryview) -> None:
    code = -int(_ERROR.unpack_from(payload)[0])
    if code == 0:
        return
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS and flags & _NLM_F_CAPPED:
        said = text_of(attributes(payload[20:]), _NLMSGERR_ATTR_MSG)
        text = f"{text}: {said}" if said else text
    raise NetlinkError(code, text)
