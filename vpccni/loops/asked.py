"""A command on its way through the writer, and who waits for its answer."""

from __future__ import annotations

import asyncio

import msgspec

from vpccni.errors import Reason, VpccniError
from vpccni.planner import commands as c


class AddRefusedError(VpccniError):
    """An ADD was refused; ``reason`` says why.

    Attributes:
        request: The sequence number of its ``AddRequested``; 0 when that is not recorded.
    """

    request = 0


class Asked(msgspec.Struct):
    """A command that was asked.

    Attributes:
        future: Who waits for the answer; ``None`` for nobody.
        deadline: How long an ADD may be parked, on the loop's clock.
        parked_for, parked_reason: What a parked ADD waits for.
        is_second_try: The log failed once; it is not asked a third time.
    """

    command: c.Command
    future: asyncio.Future[c.Decision] | None
    deadline: float = 0.0
    parked_for: str = ""
    parked_reason: Reason = Reason.NO_ADDRESS
    is_second_try: bool = False


def refuse(asked: Asked, error: VpccniError) -> None:
    """Answer with an error, if somebody still waits."""
    if isinstance(error, AddRefusedError) and isinstance(asked.command, c.Add):
        error.request = asked.command.request
    if asked.future is not None and not asked.future.done():
        asked.future.set_exception(error)
