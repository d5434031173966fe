"""STATUS as a runtime asks it, over the life of an agent: away is no error on a node that was ready in this boot."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vpccni.adapters.cni_files import PLUGIN_PLACES
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.ledger import Sandbox
from vpccni.lab.places import build_directory
from vpccni.lab.runtime import CniError, Runtime

pytestmark = [pytest.mark.netns, pytest.mark.slow]

TIMEOUT_S = 10.0
SOON_S = 3.0
"""STATUS takes 0.8 s without an agent; the rest is for a machine under load. It was 30 s before."""


class Stage:
    """A node with a pod, and what STATUS says of it."""

    def __init__(self, lab: Lab, node: LabNode, runtime: Runtime, pod: Sandbox) -> None:
        self.lab, self.node = lab, node
        self.marker = node.places.run / "ready"
        self._runtime, self._pod = runtime, pod

    async def status(self) -> CniError | None:
        """What STATUS says; ``None`` is success. It is said soon, whatever it is."""
        began = time.monotonic()
        try:
            await self._runtime.call("STATUS", self._pod)
        except CniError as error:
            return error
        finally:
            assert time.monotonic() - began < SOON_S
        return None

    async def wait_marker(self, *, is_there: bool) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.marker.exists() != is_there:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    if not any(place.is_file() for place in PLUGIN_PLACES):
        pytest.skip("the CNI executable is not built: make plugin")
    build_directory().mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="test-status-", dir=build_directory()) as made:
        async with Lab("s", directory=Path(made), latency_s={}) as lab:
            node = await lab.add_node("a")
            await lab.start_agent(node, {"WARM_IP_TARGET": "2"})
            await lab.wait_ready(node)
            runtime = Runtime(lab, node)
            stage = Stage(lab, node, runtime, await runtime.add("web"))
            await stage.wait_marker(is_there=True)
            yield stage


async def test_while_the_agent_is_away_status_is_good_in_this_boot_and_an_error_in_the_next():
    async with staged() as stage:
        lab, node = stage.lab, stage.node
        assert await stage.status() is None
        for farewell in (signal.SIGTERM, signal.SIGKILL):
            await lab.kill_agent(node, farewell)
            assert stage.marker.exists()
            assert await stage.status() is None
            await lab.start_agent(node)
            await lab.wait_ready(node)
            assert await stage.status() is None
        await lab.kill_agent(node)

        node.places.boot_id.write_text(f"{uuid.uuid4()}\n")
        refused = await stage.status()
        assert refused is not None
        assert refused.code == 50
        assert "does not hold the id of this boot" in str(refused)
        await lab.start_agent(node)
        await lab.wait_ready(node)
        await stage.wait_marker(is_there=True)
        async with asyncio.timeout(TIMEOUT_S):
            while stage.marker.read_text() != node.places.boot_id.read_text():
                await asyncio.sleep(0.02)
        await lab.kill_agent(node)
        assert await stage.status() is None


async def test_an_agent_that_is_stopped_in_the_middle_of_everything_is_away_too():
    async with staged() as stage:
        assert stage.node.agent is not None
        stage.node.agent.signal(signal.SIGSTOP)
        assert await stage.status() is None
        stage.node.agent.signal(signal.SIGCONT)
        assert await stage.status() is None


async def test_an_agent_that_is_not_ready_takes_the_marker_away_and_status_is_an_error_from_then_on():
    """Its log is gone, and IMDS, which would say whose machine this is, does not answer."""
    async with staged() as stage:
        lab, node = stage.lab, stage.node
        await lab.kill_agent(node)
        for path in node.places.state.iterdir():
            path.unlink()
        await lab.start_agent(node, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"})
        await stage.wait_marker(is_there=False)
        said = await stage.status()
        assert said is not None
        assert said.code == 50
        assert said.reason  # it is the agent's own word
        await lab.kill_agent(node)
        refused = await stage.status()
        assert refused is not None
        assert refused.code == 50
        assert f"{stage.marker}: No such file or directory" in str(refused)


async def test_an_agent_that_cannot_read_its_log_takes_the_marker_away():
    async with staged() as stage:
        lab, node = stage.lab, stage.node
        await lab.kill_agent(node)
        for path in node.places.state.glob("*.sqlite*"):
            path.write_bytes(b"no database" * 1000)
        agent = await lab.start_agent(node)
        assert await agent.wait() == 1
        refused = await stage.status()
        assert refused is not None
        assert refused.code == 50
        assert not stage.marker.exists()
