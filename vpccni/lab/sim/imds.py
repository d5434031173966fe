"""One instance of the lab's region behind the real adapter, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from vpccni.adapters.imds import ImdsV2
from vpccni.lab.ec2 import Region


def region_imds(
    region: Region,
    instance: str,
    clock_now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> ImdsV2:
    """The IMDS adapter against a region in this process; its lag and its faults apply."""

    async def exchange(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        region.advance(clock_now())
        lower = {name.lower(): value for name, value in headers.items()}
        reply = region.imds.request(instance, method, "/" + path, lower, clock_now())
        if reply.hangs:
            raise TimeoutError
        await sleep(reply.delay_s)
        return reply.status, reply.body

    return ImdsV2(exchange=exchange)
