"""A client of the region in the same process, with the latencies and faults of a real connection.

For the simulator: the clock and the sleep are given, so that the whole agent can run on virtual time.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vpccni.lab.ec2.errors import Ec2Fault, ReplyLost
from vpccni.lab.ec2.model import Region

_FOR_EVER_S = 10 * 365 * 86_400.0  # longer than any deadline; the caller is expected to cancel


class InProcessEc2:
    """Calls a region as an SDK would.

    Args:
        region: The model.
        clock_now: Seconds, the same clock for everything that touches this region.
        sleep: Waits for that many seconds of that clock.
    """

    def __init__(
        self, region: Region, clock_now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._region = region
        self._now = clock_now
        self._sleep = sleep

    async def call(self, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Make one call; no retries.

        A caller that is cancelled before the call was applied has changed nothing; afterwards, it has.

        Raises:
            Ec2Fault: EC2 refused; nothing was changed.
            ReplyLost: The connection broke; it may have been applied or not.
        """
        call = self._region.arrive(action, dict(params), self._now())
        await self._sleep(call.before_s)
        answer = call.apply(self._now())
        if call.ending == "hang":
            await self._sleep(_FOR_EVER_S)
        await self._sleep(call.after_s)
        if call.ending != "reply":
            raise ReplyLost(action, applied=call.is_applied)
        if isinstance(answer, Ec2Fault):
            raise answer
        return answer
