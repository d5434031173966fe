"""While the node is handed back: is everything there that the original needs in order to take it over?

The original knows the addresses that IMDS lists, and drops the row of every other. So it may be started only
when IMDS lists each leased address, and when no call to EC2 is open that would change that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NoReturn

import structlog

from vpccni.errors import VpccniError
from vpccni.loops.write import Writer
from vpccni.ports import Imds

_log = structlog.get_logger("hand_back")

PERIOD_S: Final = 2.0
_NOT_ASKED: Final = "the first answer of IMDS"


class HandBack:
    """The loop of the hand-back; it does nothing in any other mode."""

    def __init__(self, *, writer: Writer, imds: Imds, behind: Callable[[], str]) -> None:
        """Remember the parts.

        Args:
            writer: Whose state is compared.
            imds: Who must list the addresses.
            behind: What of the kernel or of the checkpoint file is not in place yet; empty when all is.
        """
        self._writer = writer
        self._imds = imds
        self._behind = behind
        self._wake = asyncio.Event()
        self._missing: list[str] = []
        self._problem = _NOT_ASKED

    def wake(self) -> None:
        """The mode has changed."""
        self._problem = _NOT_ASKED
        self._wake.set()

    def progress(self) -> dict[str, Any] | None:
        """What is still missing, as data; ``None`` while the node is not being handed back."""
        state = self._writer.state
        if state.mode != "hand_back":
            return None
        intended = [intent.intended for intent in state.intents.values()]
        waits = [f"{one.kind} of {one.eni or 'a new ENI'}" for one in intended]
        problem = self._problem or self._behind()
        return {
            "is_ready": not (self._missing or waits or problem),
            "not_in_imds": self._missing,
            "open_intents": waits,
            "problem": problem,
        }

    async def run(self) -> NoReturn:
        """Look while it is wanted."""
        while True:
            if self._writer.state.mode == "hand_back":
                await self._look()
            try:
                async with asyncio.timeout(PERIOD_S if self._writer.state.mode == "hand_back" else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _look(self) -> None:
        state = self._writer.state
        leased: dict[str, set[str]] = {}
        for lease in state.leases.values():
            for binding in lease.bindings:
                leased.setdefault(binding.eni, set()).add(binding.address)
        missing: list[str] = sorted(leased.pop("", ()))
        try:
            for eni_id, addresses in leased.items():
                held = next((one for one in state.enis.values() if one.facts.id == eni_id), None)
                listed = set(await self._imds.addresses(held.facts.mac)) if held is not None else set()
                missing += sorted(addresses - listed)
        except VpccniError as error:
            self._problem = f"IMDS: {error.detail or error.reason}"
            return
        self._missing, self._problem = missing, ""
