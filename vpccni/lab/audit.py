"""Checks from outside: what the emulated EC2, the runtimes' ledger and the kernel say, against the agents' books."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from vpccni.lab.agent_client import AgentAwayError
from vpccni.lab.ec2.entities import Eni
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.lab.fabric.ping import PingPair, PingResult
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.ledger import Sandbox

PING_TIMEOUT_S: Final = 4.0
REPLAY_TIMEOUT_S: Final = 60.0


class Pings(msgspec.Struct, frozen=True, kw_only=True):
    """What became of pings. ``failed`` says of a few who did not reach whom; ``unreached`` are addresses."""

    ok: int
    total: int
    failed: tuple[str, ...] = ()
    unreached: frozenset[str] = frozenset()


async def ping_each_other(lab: Lab, sandboxes: Sequence[Sandbox]) -> Pings:
    """Ping every sandbox from every other one."""
    pairs = [(a, b) for a in sandboxes for b in sandboxes if a is not b]
    return await _ping(lab, [(a, b.address, f"{b.node}/{b.pod} {b.address}") for a, b in pairs])


async def ping_internet(lab: Lab, sandboxes: Sequence[Sandbox]) -> Pings:
    """Ping the internet host from every sandbox."""
    return await _ping(lab, [(a, INTERNET_ADDRESS, f"the internet, {INTERNET_ADDRESS}") for a in sandboxes])


async def _ping(lab: Lab, asked: Sequence[tuple[Sandbox, str, str]]) -> Pings:
    results = await lab.fabric.ping_all(
        [PingPair(source=source.netns, target=target) for source, target, _ in asked],
        timeout_s=PING_TIMEOUT_S,
    )
    failed = [_failure(*ask, result) for ask, result in zip(asked, results, strict=True) if not result.ok]
    reached = {result.pair.target for result in results if result.ok}
    return Pings(
        ok=len(asked) - len(failed),
        total=len(asked),
        failed=tuple(failed[:5]),
        unreached=frozenset(target for _, target, _ in asked) - reached,
    )


def _failure(source: Sandbox, _: str, whom: str, result: PingResult) -> str:
    why = f" ({result.error})" if result.error else ""
    return f"{source.node}/{source.pod} {source.address} does not reach {whom}{why}"


async def lost_leases(node: LabNode, sandboxes: Iterable[Sandbox]) -> list[str]:
    """Say which acknowledged sandboxes of a node its agent no longer knows under their address."""
    pods = await node.client.get("/v1/pods")
    known = {pod["uid"]: pod["addresses"] for pod in pods}
    return [
        f"{node.name}/{sandbox.pod} {sandbox.address}: the agent has {known.get(sandbox.uid, 'no lease')}"
        for sandbox in sandboxes
        if sandbox.node == node.name and sandbox.address not in known.get(sandbox.uid, [])
    ]


async def wait_settled(lab: Lab, timeout_s: float) -> None:
    """Wait until no agent has an open intent and no waiting ADD, or ``timeout_s`` are over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        statuses = [await node.client.get("/v1/status") for node in lab.nodes.values()]
        if not any(status["open_intents"] or status["waiting_adds"] for status in statuses):
            return
        await asyncio.sleep(0.1)


async def orphan_enis(lab: Lab) -> list[str]:
    """Say which ENIs of the region hang nowhere, or are in no agent's books. To be asked when settled."""
    books = {
        node.instance_id: {row["eni"] for row in await node.client.get("/v1/enis")}
        for node in lab.nodes.values()
    }
    found = []
    for eni in lab.region.world.enis.values():
        if eni.instance is None:
            found.append(f"{eni.id} is {eni.status}, attached to nothing")
        elif eni.id not in books.get(eni.instance.id, ()):
            found.append(f"{eni.id} hangs on {eni.instance.id}, and its agent does not know it")
    return found


def strays(lab: Lab, sandboxes: Iterable[Sandbox]) -> list[str]:
    """Say which sandboxes have an address that EC2 does not give to their node."""
    owned = {node.name: set(secondaries(lab, node)) for node in lab.nodes.values()}
    return [
        f"{sandbox.node}/{sandbox.pod} has {sandbox.address}, which no ENI of the node owns"
        for sandbox in sandboxes
        if sandbox.address not in owned[sandbox.node]
    ]


def secondaries(lab: Lab, node: LabNode) -> list[str]:
    """The secondary addresses that EC2 gives to a node."""
    return [address for eni in enis_of(lab, node) for address in eni.secondaries]


def enis_of(lab: Lab, node: LabNode) -> list[Eni]:
    """The ENIs that hang on a node, says EC2."""
    return list(lab.region.world.instances[node.instance_id].enis.values())


async def replay(log: Path, *arguments: str) -> tuple[int, Any]:
    """Run ``vpccni replay LOG … --json`` as an engineer would; return exit status and JSON (or its text)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vpccni", "replay", str(log), *arguments, "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(REPLAY_TIMEOUT_S):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    status = process.returncode if process.returncode is not None else -1
    try:
        return status, json.loads(stdout)
    except ValueError:
        return status, (stderr or stdout).decode(errors="replace").strip()[-400:]


async def is_alive(node: LabNode) -> bool:
    """Whether the agent answers at all."""
    try:
        status, _ = await node.client.ask("/healthz")
    except AgentAwayError:
        return False
    return status == 200
