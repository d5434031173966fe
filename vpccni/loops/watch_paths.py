"""Notice within a second what somebody else does to rules and host routes, without minding our own doing.

Each ADD and DEL of ours makes such changes, too, and a kernel port need not leave them out. So a change is not
judged when it is heard, but a moment later, when what we did is on record: then it agrees with the leases. What
does not is worth a look at the whole kernel.
However much is changed, there are no two such looks within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from vpccni.datapath.objects import PathChange, Route, Rule
from vpccni.datapath.watch import is_amiss
from vpccni.errors import InvariantBrokenError
from vpccni.loops.wiring import attached_enis, is_handing_back
from vpccni.loops.write import Writer
from vpccni.model import Address
from vpccni.ports import Kernel

SETTLE_S: Final = 0.2
"""What we did ourselves is on record by then, and a plugin that is at work has made its next object."""
SPACING_S: Final = 1.0
"""A look costs some 40 ms: storms of other people's changes shall not cost more than that a second."""
KEPT_MAX: Final = 4096
"""Changes that wait to be judged; more count as lost."""


class PathWatch:
    """Follows what the kernel tells of rules and host routes."""

    def __init__(self, *, writer: Writer, kernel: Kernel, on_amiss: Callable[[], None]) -> None:
        self._writer = writer
        self._kernel = kernel
        self._on_amiss = on_amiss
        self._heard: dict[tuple[Rule | None, Route | None], PathChange] = {}
        self._news = asyncio.Event()

    def hear(self, change: PathChange) -> None:
        """A change, to be judged soon. One without rule and route leads to a look in any case."""
        if len(self._heard) >= KEPT_MAX:
            self._heard = {}
            change = PathChange()
        # Of what appears and vanishes again only the last counts.
        self._heard[change.rule, change.route] = change
        self._news.set()

    async def run(self) -> NoReturn:
        """Listen and judge, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="hear paths")
            group.create_task(self._judge(), name="judge paths")
        raise InvariantBrokenError("nobody follows the kernel's rules and routes any more")

    async def _listen(self) -> NoReturn:
        async for change in self._kernel.path_changes():
            self.hear(change)
        raise InvariantBrokenError("the kernel's rule and route changes ended")

    async def _judge(self) -> NoReturn:
        while True:
            await self._news.wait()
            await asyncio.sleep(SETTLE_S)
            self._news.clear()
            heard, self._heard = self._heard, {}
            if self._is_any_amiss(heard):
                self._on_amiss()
                await asyncio.sleep(SPACING_S)

    def _is_any_amiss(self, heard: dict[tuple[Rule | None, Route | None], PathChange]) -> bool:
        state = self._writer.state
        subnets = tuple({eni.subnet_cidr for eni in attached_enis(state)})
        as_original = is_handing_back(state)
        return any(
            is_amiss(change, self._table_of, subnets, as_original=as_original) for change in heard.values()
        )

    def _table_of(self, address: Address) -> int | None:
        """The routing table of the open lease of an address."""
        state = self._writer.state
        lease = state.leases.get(state.by_address[address]) if address in state.by_address else None
        bindings = lease.bindings if lease is not None else ()
        return next((binding.table for binding in bindings if binding.address == address), None)
