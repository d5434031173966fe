"""Policy rules and host routes that come and go, as the kernel tells them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from vpccni.adapters.netlink import leave_out, messages
from vpccni.adapters.netlink_route import (
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    parse_route,
    parse_rule,
)
from vpccni.datapath.numbers import POD_TABLE
from vpccni.datapath.objects import PathChange
from vpccni.model import MAIN_TABLE

_RTMGRP_IPV4_ROUTE: Final = 0x40
_RTMGRP_IPV4_RULE: Final = 0x80
_BUFFER_BYTES: Final = 1 << 20
_READ_BYTES: Final = 65536

_GATHER_S: Final = 0.1
"""Whoever hears of a change waits longer than this before looking; until then the kernel keeps them."""
_GATHERED_MAX: Final = 1024
"""More at once count as lost: one look at the whole costs less than reading them."""

_RTM: Final = struct.Struct("=BBBBBBBBI")
_TABLE_IN_ATTRIBUTE: Final = frozenset({0, 252})
"""``rtm_table`` of a table whose number takes more than a byte."""


def subscribe() -> socket.socket:
    """A non-blocking socket that hears of rules and routes in the thread's namespace. The caller closes it."""
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
    )
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listener.bind((0, _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV4_RULE))
    except BaseException:
        listener.close()
        raise
    return listener


def leave_out_own(listener: socket.socket, ports: Sequence[int]) -> None:
    """Leave out what we do ourselves, by the ports of our sockets: each ADD and DEL would wake the loop for it.

    Without it more is told, and nothing is wrong.
    """
    with contextlib.suppress(OSError):
        leave_out(listener, ports)


async def changes(listener: socket.socket) -> AsyncGenerator[PathChange, None]:
    """Every rule, and every host route of main and of the pod table, that appears or vanishes, by others' doing.

    When the kernel had to drop some (ENOBUFS), or when there are too many to read, one change tells that anything
    may have happened.

    Args:
        listener: From :func:`subscribe`; closed at the end.
    """
    loop = asyncio.get_running_loop()
    try:
        while True:
            heard: list[bytes] = []
            try:
                heard.append(await loop.sock_recv(listener, _READ_BYTES))
                await asyncio.sleep(_GATHER_S)
                is_all = _read_rest(listener, heard)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_all = False
            if not is_all:
                _drain(listener)
                yield PathChange()
                continue
            for data in heard:
                for kind, _, _, payload in messages(memoryview(data)):
                    told = _one(kind, payload)
                    if told is not None:
                        yield told
    finally:
        listener.close()


def _read_rest(listener: socket.socket, heard: list[bytes]) -> bool:
    """What has come meanwhile, without waiting. False when it is too much."""
    while len(heard) < _GATHERED_MAX:
        try:
            heard.append(listener.recv(_READ_BYTES))
        except BlockingIOError:
            return True
    return False


def _drain(listener: socket.socket) -> None:
    """Throw away what waits; for a bounded time, should more keep coming."""
    for _ in range(16 * _GATHERED_MAX):
        try:
            listener.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _one(kind: int, payload: memoryview) -> PathChange | None:
    if len(payload) < _RTM.size or payload[0] != socket.AF_INET:
        return None
    if kind in (RTM_NEWRULE, RTM_DELRULE):
        return PathChange(is_removed=kind == RTM_DELRULE, rule=parse_rule(bytes(payload)))
    if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
        return None
    # Whoever speaks BGP here changes routes by the thousand: what is no host route is not taken apart.
    _, length, _, _, table, _, _, _, _ = _RTM.unpack_from(payload)
    if length != 32 or table not in (MAIN_TABLE, *_TABLE_IN_ATTRIBUTE):
        return None
    route = parse_route(bytes(payload))
    if route is None or route.table not in (POD_TABLE, MAIN_TABLE):
        return None
    return PathChange(is_removed=kind == RTM_DELROUTE, route=route)
