"""What an operator does to a node, or what happens to its disk: who runs there when, and on which log.

A node may begin its life under the original, which then is replaced by us. The original may come back: after us,
beside us, or after a hand-back that was asked for. The log may be lost, an old one or another machine's, always
while nobody runs, and sources may go wrong in that same moment.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import msgspec

from vpccni.adapters.log_format import opened
from vpccni.checkpoint import parse_checkpoint
from vpccni.events.node import LogCreated
from vpccni.evidence import READ
from vpccni.lab.sim.faults import Fault
from vpccni.lab.sim.loop import VirtualLoop
from vpccni.lab.sim.misleading import mislead
from vpccni.lab.sim.node import SimNode

DOWN_S: Final = 6.0
"""SIGTERM takes this long at most."""
GRACE_S: Final = 10.0
"""The termination grace period of the original's pod; it uses it up."""
READY_S: Final = 300.0
"""How long an operator waits until a hand-back is ready."""
LOOK_S: Final = 1.0


class Birth(msgspec.Struct, frozen=True):
    """A node that begins under the original.

    Attributes:
        lives_s: For so long.
        gap_s: From its end to our start.
        ways: Sources that go wrong in between.
    """

    lives_s: float
    gap_s: float
    ways: tuple[str, ...]


class Rollout:
    """Everybody's comings and goings. It is the world's: it outlives every agent."""

    def __init__(self, loop: VirtualLoop, nodes: Sequence[SimNode]) -> None:
        self._loop = loop
        self._nodes = nodes
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._is_over = False

    def begin_with_original(self, node: SimNode, birth: Birth, rng: random.Random) -> None:
        """The node's first life is the original's."""
        node.original.start()
        self._begin(node, self._first_take_over(node, birth, rng))

    def lose_log(self, fault: Fault, node: SimNode) -> None:
        """The agent ends, its log is lost or another one, and an agent starts."""
        self._begin(node, self._lose_log(fault, node))

    def bring_original(self, fault: Fault, node: SimNode) -> None:
        """The original serves for a while, and then we do again."""
        work = self._beside(fault, node) if fault.how == "beside" else self._interlude(fault, node)
        self._begin(node, work)

    def heal(self) -> None:
        """Whatever is under way is over: we serve everywhere."""
        self._is_over = True
        for task in self._busy.values():
            task.cancel()
        for node in self._nodes:
            node.original.stop()
            self._begin(node, self._serve(node), is_last=True)

    # -- one at a time ----------------------------------------------------------------------------

    def _begin(self, node: SimNode, work: object, *, is_last: bool = False) -> None:
        before = self._busy.get(node.name)
        if not asyncio.iscoroutine(work):
            raise TypeError("work is a coroutine")
        if not is_last and (self._is_over or node.is_dormant or (before is not None and not before.done())):
            work.close()
            return
        self._busy[node.name] = self._loop.create_task(work, name=f"rollout on {node.name}")

    def is_busy(self, node: SimNode) -> bool:
        """Whether somebody else decides just now who runs on the node."""
        task = self._busy.get(node.name)
        return task is not None and not task.done()

    async def _end_ours(self, node: SimNode, how: str) -> None:
        if how == "kill" or node.agent is None:
            node.kill(restart_s=-1)
            return
        node.stop(-1)
        async with asyncio.timeout(DOWN_S):
            while not node.is_idle:  # noqa: ASYNC110 - virtual time, and once
                await asyncio.sleep(0.05)

    async def _ended(self, node: SimNode, how: str) -> None:
        try:
            await self._end_ours(node, how)
        except TimeoutError:
            node.kill(restart_s=-1)

    @staticmethod
    async def _end_original(node: SimNode) -> None:
        """SIGTERM, and SIGKILL at the end of its grace period."""
        node.original.terminate()
        await asyncio.sleep(GRACE_S)
        node.original.stop()

    # -- what happens -----------------------------------------------------------------------------

    async def _first_take_over(self, node: SimNode, birth: Birth, rng: random.Random) -> None:
        await asyncio.sleep(birth.lives_s)
        await self._replace_original(node, birth.gap_s, birth.ways, rng)

    async def _replace_original(
        self, node: SimNode, gap_s: float, ways: Sequence[str], rng: random.Random
    ) -> None:
        while not node.original.is_running:  # noqa: ASYNC110 - virtual time, and once
            await asyncio.sleep(LOOK_S)  # The machine is down, and starts with it.
        await self._end_original(node)
        await asyncio.sleep(gap_s / 2)
        for way in ways:
            mislead(node, way, rng, self._nodes)
        await asyncio.sleep(gap_s / 2)
        if node.is_idle:
            node.start()

    async def _lose_log(self, fault: Fault, node: SimNode) -> None:
        await self._ended(node, fault.action)
        boot = node.clock.boots
        await asyncio.sleep(fault.seconds / 2)
        if not node.is_idle:
            return  # Started anew by a reboot.
        self._change_log(fault, node)
        rng = random.Random(f"{fault.count} {fault.at}")
        for way in fault.flag:
            mislead(node, way, rng, self._nodes)
        await asyncio.sleep(fault.seconds / 2)
        if node.is_idle and node.clock.boots == boot:
            node.start()

    def _change_log(self, fault: Fault, node: SimNode) -> None:
        exported = _exported_seq(node)
        if fault.how == "old" and exported:  # Without our export nothing tells that it is old.
            taken = node.store.rewind(self._loop.time() - fault.count, exported)
            node.trace(f"{node.name} log of {fault.count} s ago: {taken} events less")
        elif fault.how == "foreign":
            others = [other for other in self._nodes if other is not node and _has_own_log(other)]
            if not others:
                return
            node.bake(others[fault.count % len(others)])
        else:
            node.trace(f"{node.name} log lost")
            node.store.lose(is_marker_left=fault.how == "marker_left")
        node.watcher.on_disk_changed(node)

    async def _interlude(self, fault: Fault, node: SimNode) -> None:
        if node.agent is None:
            return
        if fault.how == "hand_back":
            await self._hand_back(node)
            if node.handed_back_at is None:
                await self._serve(node)
                return
        await self._ended(node, "kill" if fault.how == "kill" else "stop")
        if not node.is_idle:
            return
        node.original.start()
        await asyncio.sleep(fault.seconds)
        node.handed_back_at = None
        rng = random.Random(f"{fault.count} {fault.at}")
        await self._replace_original(node, rng.choice((0.2, 3.0, 20.0)), fault.flag, rng)

    async def _beside(self, fault: Fault, node: SimNode) -> None:
        """Two DaemonSets at once, until somebody sees it."""
        if node.agent is None:
            return
        node.original.start()
        await asyncio.sleep(fault.seconds)
        await self._end_original(node)
        if node.is_idle:
            node.start()  # After a reboot in between.

    async def _hand_back(self, node: SimNode) -> None:
        """Ask for it, and wait until it is said to be ready. An agent that has forgotten it is asked again."""
        boot, until = node.clock.boots, self._loop.time() + READY_S
        while self._loop.time() < until and node.clock.boots == boot:
            agent = node.agent
            if agent is not None:
                progress = agent.hand_back.progress()
                if progress is None:
                    await self._ask_for(node, "hand_back")
                elif progress["is_ready"]:
                    node.trace(f"{node.name} handed back")
                    node.handed_back_at = self._loop.time()
                    return
            await asyncio.sleep(LOOK_S)

    async def _serve(self, node: SimNode) -> None:
        """Whatever was going on before: we serve."""
        while not self._is_served(node):
            if node.is_idle:
                node.start()
            await self._ask_for(node, "serve")
            await asyncio.sleep(LOOK_S)

    @staticmethod
    def _is_served(node: SimNode) -> bool:
        """Whether an agent of ours serves, and not one that is about to end."""
        agent = node.agent
        return agent is not None and not agent.readiness.is_stopping and agent.writer.state.mode == "serve"

    async def _ask_for(self, node: SimNode, mode: str) -> None:
        agent, life = node.agent, node.life
        if agent is None or life is None:
            return
        body = msgspec.json.encode({"mode": mode})
        asked = self._loop.create_task(agent.set_mode(body), name="set mode", context=life.context())
        await asyncio.wait([asked], timeout=10.0)


def _exported_seq(node: SimNode) -> int:
    """The event that our export in the checkpoint file is of; 0 when there is none of this log that can be read."""
    content, _ = node.checkpoints.files.get(0, (b"", 0))
    file = parse_checkpoint(content, path="ipam.json")
    first = opened(node.store.events[0]).event if node.store.events else None
    is_of_this_log = isinstance(first, LogCreated) and file.log_id == first.log_id
    return file.seq if file.status == READ and is_of_this_log else 0


def _has_own_log(node: SimNode) -> bool:
    """A log that is itself a copy is not copied on: no disk comes back in the boot in which it left."""
    return bool(node.store.events) and not node.store.foreign_count
