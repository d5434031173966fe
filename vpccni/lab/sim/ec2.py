"""The real EC2 adapter over a region in this process, with the SDK's client replaced: it runs on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from vpccni.adapters.ec2 import AwsEc2
from vpccni.lab.ec2 import Ec2Fault, InProcessEc2, Region, ReplyLost


class Calls(Protocol):
    """Whatever takes EC2 calls; raises as :meth:`InProcessEc2.call`."""

    async def call(self, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make one call."""


class _RegionClient:
    """What the adapter uses of the SDK's client, over a region in this process."""

    def __init__(self, calls: Calls, before_send: Callable[[], Awaitable[None]]) -> None:
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
    return adapter_over(InProcessEc2(region, clock_now, sleep), region.name, **settings)


def adapter_over(calls: Calls, region_name: str, **settings: Any) -> AwsEc2:
    """The EC2 adapter over whatever takes its calls."""

    async def opener(*, before_send: Callable[[], Awaitable[None]], **_: Any) -> _RegionClient:
        return _RegionClient(calls, before_send)

    return AwsEc2(region=region_name, opener=opener, **settings)
