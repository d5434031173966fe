"""How far a demo is, and what its nodes look like just now: written by the demo, read by whoever shows it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, NoReturn

import msgspec

from vpccni.lab.agent_client import AgentAwayError
from vpccni.lab.lab import Lab, LabNode

LOOK_EVERY_S: Final = 0.4
"""How often the agents are asked: often enough to look live, seldom enough not to be what is measured."""

_EVENTS_KEPT: Final = 64
_AWAY_PAUSE_S: Final = 0.1

StepState = Literal["waiting", "running", "ok", "failed"]


class Step(msgspec.Struct, kw_only=True):
    """One step of a demo.

    Attributes:
        title: A few words.
        state: How far it is.
        note: What it is doing, or what came of it.
        took_s: How long it took, once it ended.
    """

    title: str
    state: StepState = "waiting"
    note: str = ""
    took_s: float = 0.0


class NodeView(msgspec.Struct, kw_only=True):
    """What a node's agent last said. ``is_away``: it did not answer."""

    name: str
    instance_type: str
    enis: list[dict[str, Any]] = []
    pool: dict[str, int] = {}
    plan: str = ""
    waiting: int = 0
    is_away: bool = True


class SeenEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a node's log, as its API gave it."""

    node: str
    view: dict[str, Any]


class Progress:
    """Steps, nodes and the last events.

    Args:
        titles: The steps' titles by key, in order.
        on_step: Called when a step begins and when it ends.
    """

    def __init__(self, titles: dict[str, str], on_step: Callable[[Step], None] = lambda _: None) -> None:
        self.steps = {key: Step(title=title) for key, title in titles.items()}
        self.nodes: dict[str, NodeView] = {}
        self.events: deque[SeenEvent] = deque(maxlen=_EVENTS_KEPT)
        self.began = time.monotonic()
        self._on_step = on_step
        self._step_began = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def begin(self, key: str, note: str = "") -> None:
        """A step begins."""
        step = self.steps[key]
        step.state, step.note = "running", note
        self._step_began = time.monotonic()
        self._on_step(step)

    def note(self, key: str, note: str) -> None:
        """Say what a running step is doing."""
        self.steps[key].note = note

    def end(self, key: str, ok: bool, note: str) -> None:
        """A step ended."""
        step = self.steps[key]
        step.state, step.note = "ok" if ok else "failed", note
        step.took_s = time.monotonic() - self._step_began
        self._on_step(step)

    async def watch(self, lab: Lab) -> NoReturn:
        """Look at the lab's nodes until cancelled; a node that is added later is looked at from then on."""
        followed: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                for node in list(lab.nodes.values()):
                    if node.name not in followed:
                        followed.add(node.name)
                        self.nodes[node.name] = NodeView(name=node.name, instance_type=node.instance_type)
                        group.create_task(self._follow(node), name=f"follow {node.name}")
                    await self._look(node)
                await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, node: LabNode) -> None:
        view = self.nodes[node.name]
        try:
            status, enis = await node.client.get("/v1/status"), await node.client.get("/v1/enis")
        except AgentAwayError:
            view.is_away = True
            return
        view.enis, view.pool, view.waiting = enis, status["pool"], status["waiting_adds"]
        view.plan = (status["plan"] or {}).get("reason", "") if status["ready"] else status["message"]
        view.is_away = False

    async def _follow(self, node: LabNode) -> NoReturn:
        position = 0
        while True:
            try:
                async for view in node.client.follow(position):
                    position = view["seq"]
                    self.events.append(SeenEvent(node=node.name, view=view))
            except AgentAwayError:
                await asyncio.sleep(_AWAY_PAUSE_S)
