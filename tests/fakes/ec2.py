"""EC2 for tests: the lab's region behind the real adapter, and a server that answers what it is told.

``region_ec2`` is the adapter itself with the SDK's client replaced by calls into the region in this
process, so that it runs on virtual time. ``ScriptedEc2`` is an endpoint for the cases that no honest
region produces: resets, half replies, HTML from a proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from vpccni.adapters.ec2 import AwsEc2
from vpccni.lab.ec2 import Ec2Fault, InProcessEc2, Region, ReplyLost


class _RegionClient:
    """What the adapter uses of the SDK's client, over a region in this process."""

    def __init__(self, calls: InProcessEc2, before_send: Callable[[], Awaitable[None]]) -> None:
        self._calls = calls
        self._before_send = before_send

    def __getattr__(self, method: str) -> Any:
        action = "".join(part.capitalize() for part in method.split("_"))

        async def call(**arguments: Any) -> dict[str, Any]:
            from botocore.exceptions import ClientError, ConnectionClosedError

            await self._before_send()
            try:
                return await self._calls.call(action, arguments)
            except Ec2Fault as fault:
                answer = {
                    "Error": {"Code": fault.code, "Message": fault.message},
                    "ResponseMetadata": {"HTTPStatusCode": fault.status, "HTTPHeaders": {}},
                }
                raise ClientError(answer, action) from fault
            except ReplyLost as lost:
                raise ConnectionClosedError(endpoint_url="lab:", error=lost) from lost

        return call

    async def __aexit__(self, *_: object) -> None:
        return


def region_ec2(
    region: Region,
    clock_now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **settings: Any,
) -> AwsEc2:
    """The EC2 adapter against a region in this process; its latencies and faults apply."""

    async def opener(*, before_send: Callable[[], Awaitable[None]], **_: Any) -> _RegionClient:
        return _RegionClient(InProcessEc2(region, clock_now, sleep), before_send)

    return AwsEc2(region=region.name, opener=opener, **settings)


def error_xml(code: str, message: str = "no") -> str:
    """An error as EC2 words it."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code>'
        f"<Message>{message}</Message></Error></Errors><RequestID>5b1f</RequestID></Response>"
    )


class ScriptedEc2:
    """An EC2 endpoint that answers each action as it was told to.

    Attributes:
        script: By action: (status, body, headers), ``"reset"``, ``"hang"`` or a callable of the form.
        seen: The decoded forms of all requests, in order.
        headers: The request headers, in the same order.
    """

    def __init__(self) -> None:
        self.script: dict[str, Any] = {}
        self.seen: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._stopping = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        form = {key: values[0] for key, values in parse_qs((await request.read()).decode()).items()}
        self.seen.append(form)
        self.headers.append(dict(request.headers))
        step = self.script.get(form["Action"], (400, error_xml("InvalidAction"), {}))
        if callable(step):
            step = step(form)
        if step == "hang":
            await self._stopping.wait()
            step = "reset"
        if step == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, body, *headers = step
        return web.Response(
            status=status, text=body, content_type="text/xml", headers=headers[0] if headers else None
        )

    @classmethod
    @asynccontextmanager
    async def serve(cls) -> AsyncIterator[ScriptedEc2]:
        """Serve on a free port of the loopback; ``url`` tells where."""
        fake = cls()
        app = web.Application()
        app.router.add_post("/", fake._answer)
        async with serving(app) as fake.url:
            yield fake
            fake._stopping.set()


@asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve an application on a free port of the loopback; gives its base URL."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"{'https' if tls else 'http'}://{host}:{port}"
    finally:
        await runner.cleanup()
