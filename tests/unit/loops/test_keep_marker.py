"""The marker by which STATUS is answered while the agent is away: when it is set and when it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from vpccni.errors import Reason, Refused, TransientError
from vpccni.lab.sim.loop import run_virtual
from vpccni.loops.keep_marker import FIRST_LOOK_S, LOOK_S, keep_marker

STARTING = Refused(Reason.NODE_NOT_INITIALIZED, "the agent is starting")


class Node:
    """What the loop sees and does."""

    def __init__(self, *, refused: Refused | None, is_marked: bool = False) -> None:
        self.refused = refused
        self._is_marked = is_marked
        self.problem = ""

    def is_marked(self) -> bool:
        return self._is_marked

    def remove(self) -> None:
        self._is_marked = False

    def refusal(self) -> Refused | None:
        return self.refused

    def mark(self, is_ready: bool) -> None:
        if self.problem:
            raise TransientError(Reason.INTERNAL, self.problem)
        self._is_marked = is_ready

    @asynccontextmanager
    async def looked_after(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(keep_marker(self.refusal, self.mark))
            yield
            task.cancel()


def scene(node: Node, script: Callable[[], Awaitable[None]]) -> None:
    """Run a script while the loop runs."""

    async def scenario() -> None:
        async with node.looked_after():
            await asyncio.sleep(FIRST_LOOK_S / 2)
            await script()

    run_virtual(scenario())


def test_the_marker_comes_when_adds_can_be_served_and_not_before():
    node = Node(refused=STARTING)

    async def script():
        await asyncio.sleep(60)
        assert not node.is_marked()
        node.refused = None
        await asyncio.sleep(FIRST_LOOK_S)
        assert node.is_marked()

    scene(node, script)


def test_the_marker_of_an_agent_before_this_one_goes_when_this_one_is_not_ready():
    node = Node(refused=STARTING, is_marked=True)

    async def script():
        assert not node.is_marked()

    scene(node, script)


@pytest.mark.parametrize("reason", [each for each in Reason if each is not Reason.STOPPING])
def test_the_marker_goes_when_no_add_is_served_any_more_and_comes_again(reason):
    node = Node(refused=None)

    async def script():
        assert node.is_marked()
        node.refused = Refused(reason)
        await asyncio.sleep(LOOK_S)
        assert not node.is_marked()
        node.refused = None
        await asyncio.sleep(FIRST_LOOK_S)
        assert node.is_marked()

    scene(node, script)


@pytest.mark.parametrize("is_marked", [True, False], ids=["was ready", "was not"])
def test_an_agent_that_stops_leaves_the_marker_as_it_is(is_marked):
    node = Node(refused=Refused(Reason.STOPPING), is_marked=is_marked)

    async def script():
        await asyncio.sleep(2 * LOOK_S)
        assert node.is_marked() == is_marked

    scene(node, script)


def test_a_marker_that_somebody_removed_comes_again():
    node = Node(refused=None)

    async def script():
        node.remove()
        await asyncio.sleep(LOOK_S)
        assert node.is_marked()

    scene(node, script)


@pytest.mark.parametrize("refused", [None, STARTING], ids=["ready", "not ready"])
def test_a_marker_that_cannot_be_changed_is_told_once_and_tried_again(refused):
    node = Node(refused=refused, is_marked=refused is not None)
    node.problem = "read-only"

    async def script():
        await asyncio.sleep(10 * LOOK_S)
        told = [line for line in lines if line["event"] == "ready_marker"]
        assert [(line["log_level"], line["detail"]) for line in told] == [("warning", "read-only")]
        node.problem = ""
        await asyncio.sleep(LOOK_S)
        assert node.is_marked() == (refused is None)
        node.problem = "read-only"
        await asyncio.sleep(LOOK_S)
        assert len([line for line in lines if line["event"] == "ready_marker"]) == 2

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))  # conftest.py undoes it
    with structlog.testing.capture_logs() as lines:
        scene(node, script)
