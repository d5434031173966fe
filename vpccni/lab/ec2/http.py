"""The region over HTTP: EC2 in its Query protocol, IMDSv2, and a control end for whoever plays with it.

Credentials and signatures are accepted whatever they are. `ec2_app` also sets an alarm for what the region
does by itself, so exactly one of it runs for a region; `imds_app` is one instance's metadata service, to be
served on a listener of its own. Loopback or a private namespace is where these belong: nothing here is
authenticated.

Control end (JSON): ``GET /lab/state``; ``GET /lab/calls?after=N&action=A``; ``GET``, ``POST`` and ``DELETE``
``/lab/faults`` (a `faults.Fault`); ``POST`` and ``DELETE`` ``/lab/imds-faults`` (an `imds.ImdsFault`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from vpccni.lab.ec2 import wire
from vpccni.lab.ec2.errors import Ec2Fault
from vpccni.lab.ec2.faults import Fault
from vpccni.lab.ec2.imds import ImdsFault
from vpccni.lab.ec2.model import Region

Clock = Callable[[], float]

_HANG_POLL_S: Final = 0.1  # how soon a hanging request notices that its client went away
_BODY_BYTES_MAX: Final = 1 << 20

_STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)


class Alarm:
    """Advances the region when its agenda is due, on the running loop's own clock.

    Start it inside the loop; stop it before the loop ends.
    """

    def __init__(self, region: Region, clock: Clock) -> None:
        self._region = region
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._stop_listening = region.on_pending(self._set)
        self._set()

    def _set(self) -> None:
        due = self._region.pending_until()
        if due == self._due and self._timer is not None:
            return
        self._cancel()
        if due is None:
            return
        self._due = due
        delay_s = max(0.0, due - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._cancel()
        self._region.advance(self._clock())  # calls _set if anything else is pending

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._due = None

    def stop(self) -> None:
        """Let go of the region and of the loop."""
        self._stop_listening()
        self._cancel()


def ec2_app(region: Region, clock: Clock) -> web.Application:
    """Serve the region's EC2 and the control end.

    Args:
        region: The model. Others may call it too, on the same loop.
        clock: Seconds; the same clock for all that touches this region. It should be wall time where replies
            are to show true times.
    """
    server = _Ec2Server(region, clock)
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app[_STOPPING] = asyncio.Event()
    app.on_shutdown.append(_release_hanging)

    async def keep_alarm(_: web.Application) -> AsyncIterator[None]:
        alarm = Alarm(region, clock)
        yield
        alarm.stop()

    app.cleanup_ctx.append(keep_alarm)
    app.router.add_route("POST", "/", server.query)
    app.router.add_route("GET", "/", server.query)
    app.router.add_get("/lab/state", server.state)
    app.router.add_get("/lab/calls", server.calls)
    app.router.add_get("/lab/faults", server.armed)
    app.router.add_post("/lab/faults", server.inject)
    app.router.add_delete("/lab/faults", server.clear)
    app.router.add_post("/lab/imds-faults", server.inject_imds)
    app.router.add_delete("/lab/imds-faults", server.clear_imds)
    return app


def imds_app(region: Region, instance_id: str, clock: Clock) -> web.Application:
    """Serve one instance's metadata service."""
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app[_STOPPING] = asyncio.Event()
    app.on_shutdown.append(_release_hanging)

    async def answer(request: web.Request) -> web.StreamResponse:
        now = clock()
        region.advance(now)
        headers = {name.lower(): value for name, value in request.headers.items()}
        reply = region.imds.request(instance_id, request.method, request.path, headers, now)
        if reply.hangs:
            return await _hang(request)
        if reply.delay_s > 0:
            await asyncio.sleep(reply.delay_s)
        return web.Response(
            status=reply.status, text=reply.body, headers={"Server": "EC2ws", **reply.headers}
        )

    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _release_hanging(app: web.Application) -> None:
    app[_STOPPING].set()


async def _hang(request: web.Request) -> web.StreamResponse:
    """Answer nothing until the client goes away or the server stops; then there is nobody to answer."""
    stopping = request.app[_STOPPING]
    while not stopping.is_set() and request.transport is not None and not request.transport.is_closing():
        try:
            async with asyncio.timeout(_HANG_POLL_S):
                await stopping.wait()
        except TimeoutError:
            continue
    return _break(request)


def _break(request: web.Request) -> web.StreamResponse:
    """Reset the connection; the response returned here goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


class _Ec2Server:
    """The handlers of one region."""

    def __init__(self, region: Region, clock: Clock) -> None:
        self._region = region
        self._clock = clock

    async def query(self, request: web.Request) -> web.StreamResponse:
        form = {str(k): str(v) for k, v in request.query.items()}
        form.update({str(k): v for k, v in (await request.post()).items() if isinstance(v, str)})
        request_id = self._region.world.ids.request_id()
        try:
            action, params = wire.decode_request(form)
        except Ec2Fault as fault:
            self._region.journal.record(self._clock(), form.get("Action", ""), {}, fault.code)
            return _xml(fault.status, wire.encode_fault(fault, request_id))
        call = self._region.arrive(action, params, self._clock())
        if call.before_s > 0:
            await asyncio.sleep(call.before_s)
        answer = call.apply(self._clock())
        if call.ending == "hang":
            return await _hang(request)
        if call.after_s > 0:
            await asyncio.sleep(call.after_s)
        if call.ending == "lost":
            return _break(request)
        if isinstance(answer, Ec2Fault):
            return _xml(answer.status, wire.encode_fault(answer, request_id))
        return _xml(200, wire.encode_reply(action, answer, request_id))

    async def state(self, _: web.Request) -> web.Response:
        region, world = self._region, self._region.world
        region.advance(self._clock())
        calls = {
            "total": len(region.journal),
            "by_action": dict(sorted(region.journal.count_by_action.items())),
        }
        return _json(
            {
                "region": region.name,
                "now": self._clock(),
                "pending_until": region.pending_until(),
                "calls": {**calls, "by_outcome": dict(sorted(region.journal.count_by_outcome.items()))},
                "subnets": [
                    {"id": s.id, "zone": s.zone, "cidr": str(s.cidr), "free": s.addresses.free_count}
                    for s in world.subnets.values()
                ],
                "instances": [
                    {"id": i.id, "type": i.type.name, "state": i.state, "enis": list(i.enis)}
                    for i in world.instances.values()
                ],
                "enis": [_eni_state(eni) for eni in world.enis.values()],
                "faults": region.faults.armed,
            }
        )

    async def calls(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            return _json({"error": f"after is a number, not {after!r}"}, status=400)
        return _json(self._region.journal.calls(after=int(after), action=request.query.get("action")))

    async def armed(self, _: web.Request) -> web.Response:
        return _json(self._region.faults.armed)

    async def inject(self, request: web.Request) -> web.Response:
        try:
            fault = msgspec.json.decode(await request.read(), type=Fault)
        except msgspec.DecodeError as error:
            return _json({"error": str(error)}, status=400)
        self._region.faults.inject(fault)
        return _json(self._region.faults.armed, status=201)

    async def clear(self, _: web.Request) -> web.Response:
        self._region.faults.clear()
        return web.Response(status=204)

    async def inject_imds(self, request: web.Request) -> web.Response:
        try:
            fault = msgspec.json.decode(await request.read(), type=ImdsFault)
        except msgspec.DecodeError as error:
            return _json({"error": str(error)}, status=400)
        self._region.imds.inject(fault)
        return web.Response(status=201)

    async def clear_imds(self, _: web.Request) -> web.Response:
        self._region.imds.clear()
        return web.Response(status=204)


def _eni_state(eni: Any) -> dict[str, Any]:
    attachment = eni.attachment
    return {
        "id": eni.id,
        "status": eni.status,
        "attachment": None if attachment is None else attachment.status,
        "instance": None if attachment is None else attachment.instance.id,
        "device_index": None if attachment is None else attachment.device_index,
        "card": None if attachment is None else attachment.card,
        "mac": eni.mac,
        "addresses": eni.addresses,
        "prefixes": list(eni.prefixes),
        "tags": eni.tags,
    }


def _xml(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="text/xml", charset="UTF-8")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")
