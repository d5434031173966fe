"""The composition root: the only place that names the real adapters.

Order: settings, log, kernel, books recognized, spool drained, socket open; then the loops, and with them the
heavy clients of EC2 and the API server. ADDs are answered before EC2's client is even imported. With a new log the
loops recognize: the node is searched for living pods while IMDS and EC2 are asked.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import resource
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import structlog

from vpccni import __version__
from vpccni.adapters import cni_files
from vpccni.adapters.beat import until_beat
from vpccni.adapters.checkpoint import CheckpointFiles
from vpccni.adapters.clock import SystemClock
from vpccni.adapters.cni_versions import ask_versions
from vpccni.adapters.imds import ImdsV2
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.adapters.node_lock import NodeLock
from vpccni.adapters.predecessor import VpcCni
from vpccni.adapters.ready_marker import ReadyMarker
from vpccni.adapters.runtime import LibcniCache
from vpccni.adapters.spool import DirectorySpool
from vpccni.api.http import SocketServer
from vpccni.api.views import enis_view, event_view, pods_view, pool_view
from vpccni.errors import PermanentError, Reason, VpccniError, sentence
from vpccni.events.codec import Record
from vpccni.flags import Paths, parser, paths_of
from vpccni.loops.agent import Agent, Ports
from vpccni.loops.keep_marker import unmarked_when_unusable
from vpccni.loops.serve_cni import Reply
from vpccni.model import Seq
from vpccni.pool_sentence import policy_sentence
from vpccni.ports import Ec2, KubernetesNode
from vpccni.settings import Settings, read_settings

_log = structlog.get_logger("app")

STOP_DEADLINE_S: Final = 4.0
"""Less than half of terminationGracePeriodSeconds (10): what is not answered by then is asked again."""
LOCK_PATIENCE_S: Final = 10.0
"""The agent before us may still be finishing."""
LOCK_LOOK_S: Final = 2.0
FILES_MAX: Final = 8192
"""Open files: twice what the socket's backlog and the requests in flight can be together."""
_FOLLOW_PAGE: Final = 500
_FOLLOW_BEAT_S: Final = 15.0


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent until SIGTERM or SIGINT. Returns the exit code: 0 after a stop, 1 after a failure."""
    options = parser().parse_args(arguments)
    if options.check_config:
        from vpccni.check_config import main as check_config

        return check_config(arguments, environ)
    if options.json:
        parser().error("--json goes with --check-config")
    try:
        settings = read_settings(environ)
    except PermanentError as refused:
        print(f"vpccni agent: {sentence(refused.reason, refused.detail)}", file=sys.stderr)  # noqa: T201 - no log yet
        return 2
    # The log names containers and pods, and its directory need not be the agent's own. What others must read (the
    # conflist, the executable) is given its mode by name.
    os.umask(0o077)
    _set_up_log(settings, options.log_format)
    _allow_many_files()
    for warning in settings.warnings:
        _log.warning("setting", detail=warning)
    _log.info("warm_pool", policy=policy_sentence(settings))
    try:
        asyncio.run(_run(settings, options))
    except (VpccniError, BaseExceptionGroup) as stopped:
        for error in _leaves(stopped):
            if not isinstance(error, VpccniError):
                raise
            _log.error(
                "stopped",
                reason=error.reason,
                detail=error.detail,
                message=sentence(error.reason, error.detail),
            )
        return 1
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def _set_up_log(settings: Settings, form: str) -> None:
    import logging

    levels = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "fatal": 50}
    is_text = form == "text" or (form == "auto" and sys.stdout.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if is_text else structlog.processors.JSONRenderer(msgspec_dumps)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(levels.get(settings.log_level.lower(), 20)),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.disable(logging.WARNING)  # The libraries' own; their errors come to us as exceptions.


def msgspec_dumps(value: Any, **_: Any) -> str:
    """JSON for log lines: anything that is not data is shown by its ``repr``."""
    return msgspec.json.encode(value, enc_hook=repr).decode()


class Clients:
    """The heavy clients, opened when first asked for and closed at the end."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._opening = asyncio.Lock()
        self._ec2: Any = None
        self._kubernetes: KubernetesNode | None = None
        self._is_kubernetes_known = False
        self.observed_region: Callable[[], str] = str
        """What IMDS said of the region; empty while nothing is known. For nodes that are told of none."""

    async def ec2(self) -> Ec2:
        """The EC2 client. Raises ``TransientError`` while it cannot be opened."""
        async with self._opening:
            if self._ec2 is None:
                from vpccni.adapters.ec2 import AwsEc2

                self._ec2 = AwsEc2(
                    region=self._settings.region,
                    endpoint=self._settings.ec2_endpoint,
                    timeout_s=max(10.0, float(self._settings.http_timeout_s)),
                )
                self._stack.push_async_callback(self._ec2.close)
            self._ec2.use_region(self.observed_region())
        client: Ec2 = self._ec2
        return client

    async def kubernetes(self) -> KubernetesNode | None:
        """The API server, as far as this node is told of one."""
        async with self._opening:
            if not self._is_kubernetes_known:
                from vpccni.adapters.kubernetes import open_node

                self._kubernetes = await open_node(
                    self._settings.node_name, endpoint=self._settings.cluster_endpoint
                )
                self._is_kubernetes_known = True
                if self._kubernetes is not None:
                    self._stack.push_async_callback(self._kubernetes.close)
        return self._kubernetes

    def calls(self) -> dict[str, int]:
        """EC2 calls made so far, by action."""
        return dict(self._ec2.calls) if self._ec2 is not None else {}


def _allow_many_files() -> None:
    """Each connection is one: a burst of ADDs on a large node is more than the 1,024 usually given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(settings: Settings, options: argparse.Namespace) -> None:
    paths = paths_of(settings, options)
    settings = msgspec.structs.replace(settings, backing_store=str(paths.checkpoint))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        lock = NodeLock(paths.run, f"pid {os.getpid()}, log {paths.log}")
        stack.callback(lock.close)
        # We are the only agent of ours on this node.
        if not await _patiently(lock.take, Reason.ANOTHER_AGENT, stop):
            return
        clock = SystemClock(paths.boot_id)
        log = SqliteLog(paths.log, volatile_ok=options.volatile_log)
        stack.push_async_callback(log.close)
        kernel = await NetlinkKernel.open()
        stack.push_async_callback(kernel.close)
        imds = ImdsV2(settings.imds_endpoint)
        stack.push_async_callback(imds.close)
        clients = Clients(settings, stack)
        spool = DirectorySpool(paths.spool)
        stack.push_async_callback(spool.close)
        marker = ReadyMarker.beside(paths.socket, clock.boot_id)
        ports = Ports(
            log=log,
            clock=clock,
            ec2=clients.ec2,
            imds=imds,
            kubernetes=clients.kubernetes,
            kernel=kernel,
            runtime=LibcniCache(paths.cni_results),
            spool=spool,
            checkpoints=CheckpointFiles(paths.checkpoint),
            predecessor=VpcCni(paths.run),
            mark_ready=marker.mark,
        )
        agent = Agent(settings, ports, random.Random(options.seed))  # noqa: S311 - jitter, no secret
        clients.observed_region = agent.observed_region
        stack.push_async_callback(agent.stop)
        with unmarked_when_unusable(marker.mark):
            if not await _patiently(agent.start, Reason.LOG_IN_USE, stop):
                return
        for note in log.notes:
            _log.warning("log_opened", detail=note)
        site = Site(agent, clients, log)
        server = SocketServer(site, paths.socket)
        await server.start()
        stack.push_async_callback(server.stop)
        _write_pid(paths.pid)
        gc.freeze()  # Everything imported stays: later collections need not look at it.
        gc.enable()
        await _serve(agent, server, site, settings, options, paths, lock, stop)


async def _patiently(
    attempt: Callable[[], Awaitable[None] | None], held: Reason, stop: asyncio.Event
) -> bool:
    """Try again for a while when it fails by ``held``: the agent before us is finishing. False when stopped."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_PATIENCE_S
    while True:
        try:
            work = attempt()
            if work is not None:
                await work
        except PermanentError as error:
            if error.reason is not held or loop.time() > deadline:
                raise
            if stop.is_set():
                return False
            await asyncio.sleep(0.05)
        else:
            return True


async def _serve(
    agent: Agent,
    server: SocketServer,
    site: Site,
    settings: Settings,
    options: argparse.Namespace,
    paths: Paths,
    lock: NodeLock,
    stop: asyncio.Event,
) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(agent.run(), name="agent")
        helpers: list[asyncio.Task[Any]] = [
            group.create_task(server.keep_listening(), name="keep listening"),
            group.create_task(_keep_lock(lock), name="keep the node"),
        ]
        if options.install_conf is not None or options.install_bin is not None:
            helpers.append(
                group.create_task(_install_when_ready(agent, settings, options, paths), name="conflist")
            )
        await stop.wait()
        _log.info("stopping")
        site.begin_stop()
        agent.begin_stop()
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await agent.cni.wait_idle()
        except TimeoutError:
            _log.warning("stopped_with_requests_under_way")
        for task in (running, *helpers):
            task.cancel()


async def _install_when_ready(
    agent: Agent, settings: Settings, options: argparse.Namespace, paths: Paths
) -> None:
    """The conflist makes the node Ready, so it comes when ADDs can be served, and not before."""
    # Nothing is put in place before it is known who lives here: until then the node is somebody else's.
    while not agent.recovery.is_done:  # noqa: ASYNC110 - once, at start
        await asyncio.sleep(0.05)
    if options.install_bin is not None:
        cni_files.install_plugin(options.install_bin, options.plugin)
    if options.install_conf is None:
        return
    while agent.readiness.refusal() is not None:  # noqa: ASYNC110 - once, at start
        await asyncio.sleep(0.05)
    installed = await cni_files.install_conflist_off_loop(
        options.install_conf,
        settings,
        partial(ask_versions, options.install_bin or Path(settings.cni_bin_dir)),
        socket=str(paths.socket),
        spool=str(paths.spool),
    )
    agent.cni.refuses_host_ports = not installed.serves_host_ports
    for note in installed.notes:
        (_log.warning if note.is_warning else _log.info)(note.name, detail=note.detail)
    if installed.is_changed:
        _log.info("conflist_installed", directory=str(options.install_conf), versions=installed.versions)


async def _keep_lock(lock: NodeLock) -> NoReturn:
    """Somebody may remove the lock's file: then it is made again, or another agent has it and we end."""
    while True:
        await asyncio.sleep(until_beat(LOCK_LOOK_S))
        lock.take()


def _write_pid(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{os.getpid()}\n")


class Site:
    """What the socket serves (see ``vpccni.api.http.Handlers``)."""

    def __init__(self, agent: Agent, clients: Clients, log: SqliteLog) -> None:
        self._agent = agent
        self._clients = clients
        self._log = log
        self._followers: list[asyncio.Event] = []
        self.is_stopping = False

    async def cni(self, body: bytes) -> Reply:
        """One CNI request."""
        return await self._agent.cni.handle(body)

    async def set_mode(self, body: bytes) -> Reply:
        """Hand the node back, or serve it again: ``{"mode": "hand_back" | "serve"}``."""
        return await self._agent.set_mode(body)

    def view(self, name: str) -> Any:
        """The durable state, as data."""
        state, now = self._agent.writer.state, self._agent.now()
        cooldown_s = self._agent.settings.ip_cooldown_s
        if name == "pods":
            return pods_view(state, now)
        if name == "enis":
            return enis_view(state, now, cooldown_s)
        return self._agent.status() | {
            "pool": pool_view(state, now, cooldown_s),
            "ec2_calls": self._clients.calls(),
            "pid": os.getpid(),
        }

    def is_healthy(self) -> tuple[bool, Any]:
        """Alive: this answer needs the loop and nothing else."""
        return True, {"status": "ok", "version": __version__}

    def is_ready(self) -> tuple[bool, Any]:
        """Ready: ADDs are served."""
        refused = self._agent.readiness.refusal()
        broken = self._agent.writer.state.broken
        if refused is None and broken is not None:
            said = sentence(Reason.INVARIANT_BROKEN, f"{broken.name}: {broken.detail}")
            return True, {"status": "ready", "reason": str(Reason.INVARIANT_BROKEN), "message": said}
        if refused is None:
            return True, {"status": "ready"}
        return False, {
            "status": "not ready",
            "reason": str(refused.reason),
            "detail": refused.detail,
            "message": sentence(refused.reason, refused.detail),
        }

    def begin_stop(self) -> None:
        """Let the followers go: they would hold up the end of the socket."""
        self.is_stopping = True
        for news in self._followers:
            news.set()

    async def events(self, after: int, limit: int, follow: bool) -> AsyncGenerator[bytes, None]:
        """Records as lines of JSON, from the log itself; then, when followed, as they become durable."""
        news = asyncio.Event()

        def tell(_: Sequence[Record]) -> None:
            news.set()

        forget = self._agent.writer.subscribe(tell)
        self._followers.append(news)
        try:
            position, sent = after, 0
            while (follow or sent < limit) and not self.is_stopping:
                news.clear()
                page = await self._log.read(
                    Seq(position), min(_FOLLOW_PAGE, limit if follow else limit - sent)
                )
                for record in page:
                    yield msgspec.json.encode(event_view(record)) + b"\n"
                    position = record.seq
                sent += len(page)
                if page:
                    continue
                if not follow:
                    return
                try:
                    async with asyncio.timeout(_FOLLOW_BEAT_S):
                        await news.wait()
                except TimeoutError:
                    yield b"\n"  # Finds out whether the follower is still there.
        finally:
            self._followers.remove(news)
            forget()
