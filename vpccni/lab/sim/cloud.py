"""EC2 as a process of its own: a request that has left is applied, whatever becomes of its sender."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vpccni.lab.ec2 import Ec2Fault, Region, ReplyLost
from vpccni.lab.ec2.model import Call
from vpccni.lab.sim.loop import VirtualLoop
from vpccni.lab.sim.trace import Trace


class Sender(Protocol):
    """The node that calls."""

    name: str

    def pass_point(self, point: str) -> None:
        """Something happened at which a crash may be wanted."""


class Watcher(Protocol):
    """Who looks at what a call changes."""

    def on_call(self, sender: str, action: str, params: Mapping[str, Any]) -> None:
        """A call leaves its sender."""

    def before_call(self, sender: str, action: str, params: Mapping[str, Any], sent_at: float) -> object:
        """Before it is applied; gives what ``after_call`` takes. ``sent_at`` is when it left its sender."""

    def after_call(self, sender: str, action: str, outcome: str, before: object) -> None:
        """After it was applied."""


class _Request:
    __slots__ = ("answer", "call", "is_applied", "is_lost", "sender", "sent_at")

    def __init__(
        self, sender: Sender, call: Call, answer: asyncio.Future[dict[str, Any]], sent_at: float
    ) -> None:
        self.sender = sender
        self.sent_at = sent_at
        self.call = call
        self.answer = answer
        self.is_lost = False
        self.is_applied = False


class Cloud:
    """Takes the calls of all nodes.

    Attributes:
        region: The model.
        is_short: Describe leaves out the last address of each ENI, and the last ENI of a machine.
        last_short_at: When it last did.
    """

    def __init__(self, region: Region, loop: VirtualLoop, trace: Trace, watcher: Watcher) -> None:
        self.region = region
        self.is_short = False
        self.last_short_at = float("-inf")
        self._loop = loop
        self._trace = trace
        self._watcher = watcher
        self._under_way: dict[_Request, None] = {}
        self._alarm: asyncio.TimerHandle | None = None
        region.on_pending(self._set_alarm)

    def line(self, sender: Sender, is_alive: Callable[[], bool]) -> Line:
        """The connection of one process."""
        return Line(self, sender, is_alive)

    def lose_requests(self, sender: Sender) -> None:
        """The sender died before what it has under way left it."""
        for request in self._under_way:
            if request.sender is sender and not request.is_applied:
                request.is_lost = True

    def send(
        self, sender: Sender, action: str, params: Mapping[str, Any], is_alive: Callable[[], bool]
    ) -> asyncio.Future[dict[str, Any]]:
        """Take a request in; the future gets the answer, unless the sender is dead by then."""
        call = self.region.arrive(action, params, self._loop.time())
        request = _Request(sender, call, self._loop.create_future(), self._loop.time())
        self._under_way[request] = None
        self._watcher.on_call(sender.name, action, params)
        sender.pass_point("ec2_sent")
        self._loop.call_outside(call.before_s, self._apply, request, is_alive)
        return request.answer

    def _apply(self, request: _Request, is_alive: Callable[[], bool]) -> None:
        if request.is_lost:
            del self._under_way[request]
            return
        request.is_applied = True
        call, name = request.call, request.sender.name
        before = self._watcher.before_call(name, call.action, call.params, request.sent_at)
        answer = call.apply(self._loop.time())
        # A request that was dropped has no answer to be shortened.
        if self.is_short and not isinstance(answer, Ec2Fault) and "NetworkInterfaces" in answer:
            answer = _shortened(answer)
            self.last_short_at = self._loop.time()
        outcome = answer.code if isinstance(answer, Ec2Fault) else "ok" if call.is_applied else "dropped"
        if call.ending != "reply":
            outcome += f" {call.ending}"
        self._trace(f"{name} ec2 {call.action} {_told(call.params)} {outcome}")
        self._watcher.after_call(name, call.action, outcome, before)
        request.sender.pass_point("ec2_applied")
        self._loop.call_outside(call.after_s, self._answer, request, answer, is_alive)

    def _answer(
        self, request: _Request, answer: dict[str, Any] | Ec2Fault, is_alive: Callable[[], bool]
    ) -> None:
        del self._under_way[request]
        call, future = request.call, request.answer
        if call.ending == "hang" or future.done() or not is_alive():
            return
        if call.ending == "lost":
            future.set_exception(ReplyLost(call.action, applied=call.is_applied))
        elif isinstance(answer, Ec2Fault):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        request.sender.pass_point("ec2_answered")

    # -- what the region does by itself

    def _set_alarm(self) -> None:
        due = self.region.pending_until()
        if due is None:
            return
        if self._alarm is not None:
            if self._alarm.when() <= due:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_outside(max(0.0, due - self._loop.time()), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.region.advance(self._loop.time())


class Line:
    """What the EC2 adapter of one process calls."""

    def __init__(self, cloud: Cloud, sender: Sender, is_alive: Callable[[], bool]) -> None:
        self._cloud = cloud
        self._sender = sender
        self._is_alive = is_alive

    async def call(self, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`vpccni.lab.sim.ec2.Calls`."""
        return await self._cloud.send(self._sender, action, dict(params), self._is_alive)


def _shortened(answer: Mapping[str, Any]) -> dict[str, Any]:
    enis = list(answer["NetworkInterfaces"])
    if len(enis) > 1:
        enis.pop()
    short = [
        {**eni, "PrivateIpAddresses": eni["PrivateIpAddresses"][: max(1, len(eni["PrivateIpAddresses"]) - 1)]}
        for eni in enis
    ]
    return {**answer, "NetworkInterfaces": short}


def _told(params: Mapping[str, Any]) -> str:
    told = [
        str(params[name])
        for name in ("NetworkInterfaceId", "AttachmentId", "SecondaryPrivateIpAddressCount", "DeviceIndex")
        if name in params
    ]
    return ",".join([*told, *params.get("PrivateIpAddresses", ())])
