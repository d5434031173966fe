"""Links that come and go, as the kernel tells them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from vpccni.adapters.netlink import messages
from vpccni.adapters.netlink_route import RTM_DELLINK, RTM_NEWLINK, parse_link
from vpccni.datapath.objects import LinkChange, LinkSeen

_RTMGRP_LINK: Final = 1
_BUFFER_BYTES: Final = 1 << 20
"""Of the socket: some 500 notifications, several bursts of pods."""
_READ_BYTES: Final = 65536

_GATHER_S: Final = 0.02
"""A pod's wiring makes a handful of notifications; parsing them can wait until the wirer is through."""
_GATHERED_MAX: Final = 256

Dump = Callable[[], Awaitable[list[LinkSeen]]]


def subscribe() -> socket.socket:
    """A non-blocking socket that hears of links in the calling thread's namespace. The caller closes it."""
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
    )
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listener.bind((0, _RTMGRP_LINK))
    except BaseException:
        listener.close()
        raise
    return listener


async def changes(listener: socket.socket, dump: Dump) -> AsyncGenerator[LinkChange, None]:
    """Every change of a link, beginning with the links that are there (as ``added``).

    Notifications that repeat what is known are left out. When the kernel had to drop some (ENOBUFS), all
    links are read again and what differs from before is told, so that no lasting change is ever missed.

    Args:
        listener: From :func:`subscribe`; closed at the end.
        dump: Reads all links.
    """
    loop = asyncio.get_running_loop()
    known: dict[int, LinkSeen] = {}
    try:
        for change in _compare(known, await dump()):
            yield change
        while True:
            try:
                heard = [await loop.sock_recv(listener, _READ_BYTES)]
                await asyncio.sleep(_GATHER_S)
                heard += _rest_of(listener)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                for change in _compare(known, await dump()):
                    yield change
                continue
            for data in heard:
                for kind, _, _, payload in messages(memoryview(data)):
                    told = _one(known, kind, payload)
                    if told is not None:
                        yield told
    finally:
        listener.close()


def _rest_of(listener: socket.socket) -> list[bytes]:
    """What has come meanwhile, without waiting."""
    heard: list[bytes] = []
    while len(heard) < _GATHERED_MAX:
        try:
            heard.append(listener.recv(_READ_BYTES))
        except BlockingIOError:
            break
    return heard


def _one(known: dict[int, LinkSeen], kind: int, payload: memoryview) -> LinkChange | None:
    if kind not in (RTM_NEWLINK, RTM_DELLINK) or payload[0] != 0:
        return None  # another family's view of the link, as a bridge port for instance
    link = parse_link(payload)
    before = known.get(link.ifindex)
    if kind == RTM_DELLINK:
        known.pop(link.ifindex, None)
        return LinkChange(kind="removed", link=link) if before is not None else None
    if link == before:
        return None
    known[link.ifindex] = link
    return LinkChange(kind="added" if before is None else "changed", link=link)


def _compare(known: dict[int, LinkSeen], links: list[LinkSeen]) -> list[LinkChange]:
    found = {link.ifindex: link for link in links}
    told = [LinkChange(kind="removed", link=known[index]) for index in sorted(known.keys() - found.keys())]
    for index, link in found.items():
        if index not in known:
            told.append(LinkChange(kind="added", link=link))
        elif known[index] != link:
            told.append(LinkChange(kind="changed", link=link))
    known.clear()
    known.update(found)
    return told
