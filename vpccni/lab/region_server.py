"""The region's HTTP ends, where a node's programs look for them: inside each node's own network namespace."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from vpccni.lab.ec2 import Region
from vpccni.lab.ec2.http import ec2_app, imds_app
from vpccni.lab.fabric.namespaces import Namespace, listen_in
from vpccni.lab.fabric.wiring import EC2_ENDPOINT_ADDRESS, IMDS_ADDRESS

EC2_ENDPOINT: Final = f"http://{EC2_ENDPOINT_ADDRESS}"
"""What ``AWS_ENDPOINT_URL_EC2`` says on a node of the lab. IMDS is at its real address."""

_SHUTDOWN_S: Final = 0.2  # the agents are gone by then; what still hangs was asked to hang


class RegionServer:
    """Serves one region to its nodes. An async context manager; the region's clock is wall time.

    Args:
        region: The model. It must be served by one server at a time, on one event loop.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._stack = AsyncExitStack()
        self._ec2: web.AppRunner | None = None

    async def __aenter__(self) -> RegionServer:
        self._ec2 = await self._run(ec2_app(self._region, time.time))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def add_node(self, node: Namespace, instance_id: str) -> None:
        """Let a node reach the EC2 API, and the metadata of its own instance."""
        if self._ec2 is None:
            raise RuntimeError("the region server is not open: use it as an async context manager")
        await web.SockSite(self._ec2, listen_in(node, EC2_ENDPOINT_ADDRESS, 80)).start()
        imds = await self._run(imds_app(self._region, instance_id, time.time))
        await web.SockSite(imds, listen_in(node, IMDS_ADDRESS, 80)).start()

    async def _run(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S, handler_cancellation=True)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        return runner
