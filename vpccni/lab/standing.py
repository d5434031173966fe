"""A lab that stays: nodes with agents, and a socket over which a command line starts and stops pods.

The socket speaks HTTP with JSON bodies (``GET /status``, ``POST /add`` …). It is the lab's, not the agent's:
whoever may open it may do anything in the lab, and nothing outside of it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from vpccni.lab import audit, standing_file
from vpccni.lab.agent_client import AgentAwayError
from vpccni.lab.lab import Lab, LabError, LabNode
from vpccni.lab.ledger import Ledger, Sandbox
from vpccni.lab.runtime import CniError, Runtime
from vpccni.lab.standing_file import StandingLab, StandingNode

CONTROL_NAME: Final = "lab.sock"

_PODS_AT_ONCE: Final = 200


class World(msgspec.Struct, frozen=True):
    """The supervisor of the world that the lab is in, as the machine outside knows it."""

    supervisor_pid: int
    supervisor_start: int


class _AddBody(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    pod: str
    count: int = 1


class _DeleteBody(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    pod: str = ""


class _NodeBody(msgspec.Struct, forbid_unknown_fields=True):
    node: str


Handler = Callable[[Any], Awaitable[Any]]


class Standing:
    """Serves an open lab until it is told to stop.

    Args:
        lab: Open; nodes may have been added.
        world: Written into the note for command lines outside.
        note_directory: Where the note lies.
        ledger: The runtimes' ledger; sandboxes in it are the lab's pods.
        runtimes: By node; further ones are made for nodes that have none.
    """

    def __init__(
        self,
        lab: Lab,
        world: World,
        note_directory: Path,
        *,
        ledger: Ledger | None = None,
        runtimes: Mapping[str, Runtime] | None = None,
    ) -> None:
        self._lab = lab
        self._world = world
        self._note_directory = note_directory
        self._ledger = Ledger() if ledger is None else ledger
        self._runtimes = dict(runtimes or {})

    async def boot(self, count: int, instance_type: str, env: Mapping[str, str]) -> None:
        """Add nodes a, b, c … in turn to the region's subnets, and start an agent on each.

        Raises:
            LabError: an agent ended at once.
            TimeoutError: an agent was not ready in time.
        """
        subnets = len(self._lab.region.world.subnets)
        for number in range(count):
            name = chr(ord("a") + number)
            self.write_note("booting", f"node {name}")
            node = await self._lab.add_node(name, instance_type, number % subnets)
            await self._lab.start_agent(node, env)
        for node in self._lab.nodes.values():
            self.write_note("booting", f"waiting for the agent of {node.name}")
            await self._lab.wait_ready(node)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve the control socket until ``stop`` is set; the note is there meanwhile, and then gone."""
        control = self._lab.run_directory / CONTROL_NAME
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.2, handler_cancellation=True)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(control)).start()
            self.write_note("ready", control=str(control))
            await stop.wait()
        finally:
            self.remove_note()
            await runner.cleanup()

    def remove_note(self) -> None:
        """Take the note away: nobody should find this lab any more."""
        standing_file.remove(self._note_directory)

    def write_note(self, phase: str, message: str = "", control: str = "") -> None:
        """Say where the lab is and how far."""
        note = StandingLab(
            phase="ready" if phase == "ready" else "booting",
            message=message,
            supervisor_pid=self._world.supervisor_pid,
            supervisor_start=self._world.supervisor_start,
            run_directory=str(self._lab.run_directory),
            directory=str(self._lab.directory),
            control=control,
            nodes=tuple(_note_of(node) for node in self._lab.nodes.values()),
        )
        standing_file.write(self._note_directory, note)

    # -- the control socket -----------------------------------------------------------------------

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/status", _handler(None, self._status))
        app.router.add_get("/pods", _handler(None, self._pods))
        app.router.add_post("/add", _handler(_AddBody, self._add))
        app.router.add_post("/delete", _handler(_DeleteBody, self._delete))
        app.router.add_post("/ping", _handler(None, self._ping))
        app.router.add_post("/kill", _handler(_NodeBody, self._kill))
        app.router.add_post("/start", _handler(_NodeBody, self._start))
        return app

    async def _status(self, _: None) -> Any:
        nodes = []
        for node in self._lab.nodes.values():
            said = await node.client.readiness() if node.is_running else "it is not running"
            nodes.append(
                {
                    "name": node.name,
                    "instance_type": node.instance_type,
                    "instance_id": node.instance_id,
                    "agent": "ready" if said is None else said,
                    "enis": len(audit.enis_of(self._lab, node)),
                    "addresses": len(audit.secondaries(self._lab, node)),
                    "pods": len(self._ledger.on_node(node.name)),
                    "socket": str(node.places.socket),
                    "log": str(node.places.log),
                    "events": str(node.places.events),
                }
            )
        return {
            "region": self._lab.region.name,
            "ec2_calls": len(self._lab.region.journal),
            "nodes": nodes,
            "directory": str(self._lab.directory),
        }

    async def _pods(self, _: None) -> Any:
        return [_pod(sandbox) for sandbox in self._ledger.live.values()]

    async def _add(self, body: _AddBody) -> Any:
        if not 1 <= body.count <= _PODS_AT_ONCE:
            raise LabError(f"count is 1 to {_PODS_AT_ONCE}, not {body.count}")
        taken = {sandbox.pod for sandbox in self._ledger.on_node(body.node)}
        names = [body.pod] if body.count == 1 else [f"{body.pod}-{n}" for n in range(1, body.count + 1)]
        doubled = [name for name in names if name in taken]
        if doubled:
            raise LabError(f"{body.node} runs {doubled[0]} already: give another name, or delete it first")
        results = await self._runtime(body.node).add_many(names)
        return {
            "started": [_pod(one) for one in results if isinstance(one, Sandbox)],
            "failed": [
                {"pod": name, "message": one.message, "reason": one.reason}
                for name, one in zip(names, results, strict=True)
                if isinstance(one, CniError)
            ],
        }

    async def _delete(self, body: _DeleteBody) -> Any:
        runtime = self._runtime(body.node)
        chosen = [s for s in self._ledger.on_node(body.node) if body.pod in ("", s.pod)]
        if body.pod and not chosen:
            raise LabError(f"no pod {body.pod} on {body.node}; `vpccni lab status` lists them")
        results = await runtime.delete_many(chosen)
        return {
            "deleted": [s.pod for s, r in zip(chosen, results, strict=True) if not isinstance(r, CniError)],
            "failed": [
                {"pod": sandbox.pod, "message": one.message, "reason": one.reason}
                for sandbox, one in zip(chosen, results, strict=True)
                if isinstance(one, CniError)
            ],
        }

    async def _ping(self, _: None) -> Any:
        sandboxes = list(self._ledger.live.values())
        between = await audit.ping_each_other(self._lab, sandboxes)
        outside = await audit.ping_internet(self._lab, sandboxes)
        return {
            "pings_ok": between.ok,
            "pings_total": between.total,
            "internet_ok": outside.ok,
            "internet_total": outside.total,
            "failed": [*between.failed, *outside.failed],
        }

    async def _kill(self, body: _NodeBody) -> Any:
        return {"status": await self._lab.kill_agent(self._node(body.node), signal.SIGKILL)}

    async def _start(self, body: _NodeBody) -> Any:
        node = self._node(body.node)
        await self._lab.start_agent(node)
        await self._lab.wait_ready(node)
        return {"pid": node.agent.pid if node.agent is not None else 0}

    def _node(self, name: str) -> LabNode:
        if name not in self._lab.nodes:
            raise LabError(f"no node {name}; there are {', '.join(self._lab.nodes)}")
        return self._lab.nodes[name]

    def _runtime(self, name: str) -> Runtime:
        node = self._node(name)
        if name not in self._runtimes:
            self._runtimes[name] = Runtime(self._lab, node, self._ledger)
        return self._runtimes[name]


def _handler(body_type: Any, call: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Decode the body, call, encode; what is wrong becomes a 400 with a sentence."""

    async def handle(request: web.Request) -> web.Response:
        try:
            body = None if body_type is None else msgspec.json.decode(await request.read(), type=body_type)
            return _json(200, await call(body))
        except (LabError, AgentAwayError, CniError, TimeoutError, msgspec.DecodeError) as error:
            return _json(400, {"message": str(error)})

    return handle


def _json(status: int, said: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(said), content_type="application/json")


def _pod(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "node": sandbox.node,
        "pod": sandbox.pod,
        "address": sandbox.address,
        "netns": sandbox.netns.path,
        "container_id": sandbox.container_id,
        "latency_ms": round(sandbox.latency_ms, 1),
    }


def _note_of(node: LabNode) -> StandingNode:
    return StandingNode(
        name=node.name,
        instance_id=node.instance_id,
        instance_type=node.instance_type,
        netns=node.namespace.path,
        socket=str(node.places.socket),
        directory=str(node.places.root),
        events=str(node.places.events),
        log=str(node.places.log),
    )
