"""The Unix socket: aiohttp around handlers that know nothing of it.

Bounded in size (1 MiB), in time (a head must come within 15 s, its body within 10 s more), and in number (of
requests by the CNI service, of followers here). A client that goes away cancels its request. Only uid 0 is
answered: asked of the kernel (``SO_PEERCRED``), whatever the file's mode is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from vpccni.adapters.beat import until_beat
from vpccni.errors import PermanentError, Reason, sentence

_log = structlog.get_logger("api")

BODY_MAX: Final = 1024 * 1024
BODY_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 15.0
"""From connecting, or from the last answer, to the end of the next request's head."""
LINGERING_S: Final = 1.0
"""So long the rest of a refused body is read, so that its sender reads the refusal before the end."""
LOOK_S: Final = 2.0
"""How often it is seen whether the socket is still there."""
STOP_STEP_S: Final = 1.0
"""Requests under way at the end have this long to finish, and as long again after they were cancelled."""
POSITION_MAX: Final = 2**63 - 1
BACKLOG: Final = 2048
FOLLOWERS_MAX: Final = 32
EVENTS_MAX: Final = 10_000
_PATH_MAX: Final = 107


class Answer(Protocol):
    """What a CNI request is answered with."""

    @property
    def status(self) -> int:
        """HTTP status; 0 to hang up without an answer."""

    @property
    def body(self) -> bytes:
        """JSON."""


class Handlers(Protocol):
    """What the socket serves."""

    async def cni(self, body: bytes) -> Answer:
        """``POST /v1/cni``."""

    def view(self, name: str) -> Any:
        """``GET /v1/{status,pods,enis}``: plain data."""

    async def set_mode(self, body: bytes) -> Answer:
        """``POST /v1/mode``: hand the node back, or serve it again."""

    def is_healthy(self) -> tuple[bool, Any]:
        """``GET /healthz``."""

    def is_ready(self) -> tuple[bool, Any]:
        """``GET /readyz``."""

    def events(self, after: int, limit: int, follow: bool) -> AsyncGenerator[bytes, None]:
        """``GET /v1/events``: lines of JSON."""


_POSTED: Final = ("/v1/cni", "/v1/mode")
_VIEWS: Final = ("status", "pods", "enis")


class SocketServer:
    """Serves handlers on a Unix socket, mode 0600."""

    def __init__(self, handlers: Handlers, path: Path) -> None:
        self._handlers = handlers
        self._path = path
        self._runner: web.ServerRunner | None = None
        self._site: web.SockSite | None = None
        self._inode = 0
        self._followers = 0

    async def start(self) -> None:
        """Listen. A socket left by a dead agent is replaced (the log's lock says that it is dead).

        Raises:
            PermanentError: ``bad_setting``: the path cannot be used.
        """
        if len(os.fsencode(self._path)) > _PATH_MAX:
            raise PermanentError(
                Reason.BAD_SETTING,
                f"socket path of over {_PATH_MAX} bytes: {self._path}; give a shorter --run-dir",
            )
        server = _Server(self._handle, request_factory=_request, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=STOP_STEP_S)
        await self._runner.setup()
        await self._listen(self._runner)

    async def keep_listening(self) -> NoReturn:
        """Listen anew when somebody removed the socket: else every ADD would wait for an agent that runs."""
        while True:
            await asyncio.sleep(until_beat(LOOK_S))
            try:
                is_there = self._path.stat().st_ino == self._inode
            except OSError:
                is_there = False
            if is_there or self._runner is None:
                continue
            _log.warning("socket_gone", path=str(self._path), detail="listening anew")
            try:
                await self._listen(self._runner)
            except PermanentError as error:
                _log.error("socket_gone", reason=error.reason, detail=error.detail)

    async def _listen(self, runner: web.ServerRunner) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            # Under this mask the socket is 0600 from its first instant.
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            listener.close()
            raise PermanentError(Reason.BAD_SETTING, f"cannot listen on {self._path}: {error}") from error
        gone, self._site = self._site, web.SockSite(runner, listener, backlog=BACKLOG)
        await self._site.start()
        if gone is not None:
            await gone.stop()

    async def stop(self) -> None:
        """Accept nothing more and wait for the answers under way, at most two seconds."""
        if self._runner is not None:
            self._path.unlink(missing_ok=True)
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if _peer_uid(request) != 0:
            return _json(403, _problem(Reason.NOT_ALLOWED))
        path, method = request.path, request.method
        if path in _POSTED:
            if method != "POST":
                return _json(405, _problem(Reason.BAD_REQUEST, "only POST here"))
            return await self._post(request)
        if method not in ("GET", "HEAD"):
            return _json(405, _problem(Reason.BAD_REQUEST, "only GET here"))
        name = path.removeprefix("/v1/")
        if name in _VIEWS and path.startswith("/v1/"):
            return _json(200, msgspec.json.encode(self._handlers.view(name)))
        if path == "/v1/events":
            return await self._events(request)
        if path in ("/healthz", "/readyz"):
            good, said = self._handlers.is_healthy() if path == "/healthz" else self._handlers.is_ready()
            return _json(200 if good else 503, msgspec.json.encode(said))
        known = [*_POSTED, *(f"/v1/{view}" for view in _VIEWS), "/v1/events", "/healthz", "/readyz"]
        return _json(404, msgspec.json.encode({"reason": "bad_request", "known_paths": known}))

    async def _post(self, request: web.BaseRequest) -> web.Response:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _json(413, _problem(Reason.TOO_LARGE, f"at most {BODY_MAX} bytes"))
        except TimeoutError:
            return _json(408, _problem(Reason.BAD_REQUEST, f"no whole body within {BODY_TIMEOUT_S:.0f} s"))
        except web.RequestPayloadError as error:
            return _last(400, _problem(Reason.BAD_REQUEST, _first_line(error)))
        serve = self._handlers.cni if request.path == "/v1/cni" else self._handlers.set_mode
        answer = await serve(body)
        if not answer.status and request.transport is not None:
            request.transport.abort()
        return _json(answer.status or 503, answer.body)

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            after = int(request.query.get("after", "0"))
            limit = min(int(request.query.get("limit", "1000")), EVENTS_MAX)
        except ValueError:
            after = limit = -1
        if after > POSITION_MAX or after < 0:
            return _json(400, _problem(Reason.BAD_REQUEST, "after and limit are whole numbers from 0 on"))
        follow = request.query.get("follow", "") not in ("", "0", "false")
        if follow and self._followers >= FOLLOWERS_MAX:
            return _json(503, _problem(Reason.TOO_BUSY, f"{FOLLOWERS_MAX} followers already"))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        self._followers += follow
        try:
            async with aclosing(self._handlers.events(after, max(1, limit), follow)) as lines:
                async for line in lines:
                    await response.write(line)
        finally:
            self._followers -= follow
        await response.write_eof()
        return response


class _Server(web.Server):
    """Gives each connection a protocol of ours."""

    def __call__(self) -> RequestHandler:
        """The protocol of a new connection."""
        return _Protocol(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # as web.Server passes it on
            keepalive_timeout=IDLE_TIMEOUT_S,
            lingering_time=LINGERING_S,
        )


class _Protocol(RequestHandler):
    """Answers in JSON also what no handler sees.

    aiohttp's own answer to bytes that are no HTTP is plain text, which the executable takes for a lost connection,
    and a traceback in the log, of which any client could make as many as it likes.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what cannot be parsed (400), or to an error of ours (500). The connection ends with it.

        Raises:
            ConnectionError: There is nobody to answer, or half an answer has gone; aiohttp hangs up.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        is_ours = status >= 500
        if is_ours:
            _log.error("answer_failed", method=request.method, path=request.path, exc_info=exc)
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        if is_ours:
            return _last(status, _problem(Reason.INTERNAL, type(exc).__name__ if exc is not None else ""))
        return _last(status, _problem(Reason.BAD_REQUEST, _first_line(message or exc)))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What ends a connection beside our handlers: a body that nobody wanted and that is broken, mostly."""
        _log.debug("connection_failed", error=repr(kw.get("exc_info")))


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_MAX)


def _peer_uid(request: web.BaseRequest) -> int:
    connection = request.transport.get_extra_info("socket") if request.transport is not None else None
    if connection is None:
        return -1
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", packed)[1]
    return uid


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def _last(status: int, body: bytes) -> web.Response:
    """An answer after which nothing that comes on the connection can be understood."""
    response = _json(status, body)
    response.force_close()
    return response


def _first_line(said: object) -> str:
    """What a parser complains of, without the bytes that it complains of."""
    return " ".join(str(said).split("\n\n")[0].split())[:200]


def _problem(reason: Reason, detail: str = "") -> bytes:
    """An error that is also a CNI error, for a caller that printed whatever came back."""
    return msgspec.json.encode(
        {
            "cniVersion": "1.1.0",
            "code": 6 if reason in (Reason.BAD_REQUEST, Reason.TOO_LARGE) else 103,
            "msg": sentence(reason, detail),
            "details": f"reason={reason}",
            "reason": str(reason),
        }
    )
