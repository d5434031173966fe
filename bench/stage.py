"""A lab with nodes whose agents run, and a launcher on each."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from vpccni.conflist import PLUGIN_NAME
from vpccni.lab.ec2 import Timing
from vpccni.lab.fabric.processes import Daemon, spawn_in
from vpccni.lab.lab import Lab, LabNode

ROOT: Final = Path(__file__).parents[1]
PEER_PLACES: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
PEER: Final = "ptp+host-local"
POOL_TIMEOUT_S: Final = 60.0
NO_LATENCY: Final[Mapping[str, float]] = {}
ISSUE_LATENCY_S: Final = {
    "CreateNetworkInterface": 0.6,
    "AttachNetworkInterface": 1.2,
    "AssignPrivateIpAddresses": 0.5,
    "UnassignPrivateIpAddresses": 0.5,
    "DescribeNetworkInterfaces": 0.1,
    "DescribeInstances": 0.1,
    "DescribeInstanceTypes": 0.1,
    "DescribeSubnets": 0.1,
}
"""Seconds by EC2 action; what is not named answers at once."""
FULL_NODE: Final = "m5.4xlarge"
FULL_NODE_ADDRESSES: Final = 232
FILLED: Final = {
    "MINIMUM_IP_TARGET": str(FULL_NODE_ADDRESSES),
    "WARM_IP_TARGET": "1",
    "IP_COOLDOWN_PERIOD": "0",
    "VPCCNI_MAX_PODS": "234",
}
"""All eight ENIs of an m5.4xlarge with 29 addresses each, and no rest between two pods."""


class BenchError(Exception):
    """A measurement could not be made."""


def peer_directory() -> Path | None:
    """Where Debian's reference plugins are; ``None`` when they are not installed."""
    for place in PEER_PLACES:
        if (place / "ptp").exists() and (place / "host-local").exists():
            return place
    return None


class Bench:
    """One node under measurement. Names of pods need only be unique on it.

    Attributes:
        is_hanging: Somebody listens there who never answers.
    """

    def __init__(self, lab: Lab, node: LabNode, launcher: Daemon) -> None:
        self.lab = lab
        self.node = node
        self.is_hanging = False
        self._launcher = launcher
        self._turn = asyncio.Lock()

    async def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Have the launcher do something and wait for its answer.

        Raises:
            BenchError: it died.
        """
        async with self._turn:
            stdin, stdout = self._launcher.stdin, self._launcher.stdout
            if stdin is None or stdout is None:
                raise BenchError("the launcher has no pipes")
            stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
        if not line:
            raise BenchError(f"the launcher on {self.node.name} died doing {do}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def add_pods(self, names: list[str]) -> None:
        """Start pods of ours, a few at once, and let them stay.

        Raises:
            BenchError: one of the ADDs failed.
        """
        await self.ask("make", names=names)
        for first in range(0, len(names), 16):
            answer = await self.ask("together", verb="ADD", side="ours", names=names[first : first + 16])
            if answer["failed"]:
                raise BenchError(f"setting the stage on {self.node.name}: {answer['failed'][0]}")

    async def delete_pods(self, names: list[str]) -> None:
        """Stop pods of ours."""
        for first in range(0, len(names), 16):
            await self.ask("together", verb="DEL", side="ours", names=names[first : first + 16])
        await self.ask("drop", names=names)

    async def status(self) -> dict[str, Any]:
        """The agent's own view."""
        status: dict[str, Any] = await self.node.client.get("/v1/status")
        return status

    async def wait_addresses(self, count: int, timeout_s: float = POOL_TIMEOUT_S) -> None:
        """Wait until the agent owns that many addresses and every ENI's link is set up.

        Raises:
            BenchError: it does not get there.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = await self.status()
            pool = status["pool"]
            usable = pool["free"] + pool["assigned"] + pool["resting"]
            if usable >= count and not status["open_intents"]:
                return
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{self.node.name} has {usable} addresses of {count}; see {self.node.places.log}"
                )
            await asyncio.sleep(0.05)

    async def restart(self, environment: Mapping[str, str] | None = None) -> None:
        """SIGKILL the agent and start it again, ready or not."""
        await self.lab.kill_agent(self.node)
        await self.lab.start_agent(self.node, environment)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file that the agent exports."""
        set_to = self.node.environment.get("AWS_VPC_K8S_CNI_BACKING_STORE")
        return Path(set_to) if set_to else self.node.places.run / "ipam.json"

    def signal(self, number: int) -> None:
        """Send the agent a signal that it lives through."""
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """The agent's process id.

        Raises:
            BenchError: it is not running.
        """
        if self.node.agent is None or not self.node.is_running:
            raise BenchError(f"the agent of {self.node.name} is gone; see {self.node.places.log}")
        return self.node.agent.pid


@asynccontextmanager
async def stage(
    name: str, *, latency_s: Mapping[str, float] = NO_LATENCY, timing: Timing | None = None
) -> AsyncIterator[Lab]:
    """A lab of one's own under ``build/bench``; its EC2 answers at once unless said otherwise."""
    directory = ROOT / "build" / "bench" / "labs"
    directory.mkdir(parents=True, exist_ok=True)
    lab = Lab(name, directory=directory, latency_s=latency_s, timing=timing or Timing())
    async with lab:
        yield lab
    shutil.rmtree(directory / name, ignore_errors=True)


@asynccontextmanager
async def on_node(
    lab: Lab,
    name: str,
    instance_type: str = FULL_NODE,
    environment: Mapping[str, str] = FILLED,
    *,
    addresses: int = 0,
) -> AsyncIterator[Bench]:
    """Add a node, start its agent, wait until it serves (and owns so many addresses), put a launcher there."""
    node = await lab.add_node(name, instance_type)
    await lab.start_agent(node, environment)
    await lab.wait_ready(node)
    async with launcher_on(lab, node, node) as bench:
        if addresses:
            await bench.wait_addresses(addresses)
        yield bench


@asynccontextmanager
async def launcher_on(lab: Lab, node: LabNode, like: LabNode) -> AsyncIterator[Bench]:
    """Put a launcher on a node, and kill the node's agent at the end.

    Args:
        lab: Whose node it is.
        node: Where.
        like: A node whose agent has installed its conflist: the node itself, or, when no agent has run there yet,
            another one.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", dir=node.places.root) as scratch:
        launcher = await spawn_in(
            node.namespace,
            [sys.executable, "-m", "bench.launcher", scratch, json.dumps(_sides(node, Path(scratch), like))],
            stdin=True,
            cwd=ROOT,
        )
        async with launcher:
            yield Bench(lab, node, launcher)
            if node.agent is not None:
                await lab.kill_agent(node)
            if launcher.stdin is not None:
                launcher.stdin.close()


def numbered(prefix: str, count: int, start: int = 0) -> list[str]:
    """Names of pods."""
    return [f"{prefix}-{number}" for number in range(start, start + count)]


def raise_failures(what: str, answers: Iterable[dict[str, Any]]) -> None:
    """A measurement in which a call failed is none.

    Raises:
        BenchError: with what the first of them said.
    """
    for answer in answers:
        if answer["failed"]:
            raise BenchError(f"{what}: {answer['failed'][0]}")


def _sides(node: LabNode, scratch: Path, like: LabNode) -> dict[str, Any]:
    installed = next(iter(sorted(like.places.conf.glob("*.conflist")))).read_text()
    conflist = json.loads(installed.replace(str(like.places.run), str(node.places.run)))
    ours = {
        **conflist["plugins"][0],
        "name": conflist["name"],
        "cniVersion": "1.1.0",
        "bootIdPath": str(node.places.boot_id),
    }
    ours.pop("capabilities", None)
    sides = {
        "ours": {
            "executable": str(like.places.bin / PLUGIN_NAME),
            "path": str(like.places.bin),
            "config": ours,
        }
    }
    directory = peer_directory()
    if directory is not None:
        data = scratch / "host-local"
        data.mkdir()
        sides["peer"] = {
            "executable": str(directory / "ptp"),
            "path": str(directory),
            "config": {
                "cniVersion": "0.4.0",
                "name": "peer",
                "type": "ptp",
                "ipMasq": False,
                "ipam": {"type": "host-local", "subnet": "10.200.0.0/16", "dataDir": str(data)},
            },
        }
    return sides
