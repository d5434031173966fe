"""Waiting until EC2 has detached ENIs: one question a second, however many are on their way.

EC2 accepts a detach at once and takes seconds over it; only then can the ENI be deleted. Whoever finds that the last
answer is a second old asks for all who wait, and the others take what he was told.
"""

from __future__ import annotations

import asyncio
from typing import Final

from vpccni.errors import OutcomeUnknownError, PermanentError, Reason, TransientError, VpccniError
from vpccni.model import EniId
from vpccni.ports import Ec2

POLL_S: Final = 1.0
POLLS_MAX: Final = 40
"""A detach takes some seconds; one that is not done after this is settled like a call without a reply."""


class Detaching:
    """Those who wait for the end of a detach."""

    def __init__(self) -> None:
        self._waiting: dict[EniId, None] = {}
        self._turn = asyncio.Lock()
        self._asked_at = float("-inf")
        self._attached: frozenset[EniId] = frozenset()
        self._error: VpccniError | None = None

    async def wait_detached(self, ec2: Ec2, eni: EniId) -> None:
        """Wait until EC2 no longer shows the ENI as attached.

        Raises:
            OutcomeUnknownError: EC2 did not say how far it is, or it takes too long; it may be detached any time.
        """
        self._waiting[eni] = None
        try:
            for _ in range(POLLS_MAX):
                await asyncio.sleep(POLL_S)
                if eni not in await self._still_attached(ec2):
                    return
        finally:
            self._waiting.pop(eni, None)
        raise OutcomeUnknownError(Reason.EC2_REFUSED, "the ENI is still detaching")

    async def _still_attached(self, ec2: Ec2) -> frozenset[EniId]:
        """Of those who wait. The answer is younger than a second, so that it was asked with all of them."""
        async with self._turn:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at >= POLL_S:
                self._error, self._attached = None, frozenset()
                try:
                    found = await ec2.describe_enis(tuple(self._waiting))
                    self._attached = frozenset(facts.id for facts in found if facts.attachment)
                except (TransientError, PermanentError, OutcomeUnknownError) as error:
                    self._error = error
                self._asked_at = now
        if self._error is not None:
            # Not a failed detach: an ENI on its way out must not count as attached again.
            detail = f"detach accepted, then: {self._error.detail}"
            raise OutcomeUnknownError(self._error.reason, detail) from self._error
        return self._attached
