"""EC2 for tests: the lab's region behind the real adapter, and a server that answers what it is told.

``region_ec2`` is the simulator's. ``ScriptedEc2`` is an endpoint for the cases that no honest region produces:
resets, half replies, HTML from a proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from vpccni.lab.sim.ec2 import region_ec2

__all__ = ["ScriptedEc2", "error_xml", "region_ec2", "serving"]


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
