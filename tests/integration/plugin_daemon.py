"""The CNI executable with what surrounds it: a runtime that calls it and a fake daemon on a Unix socket.

A *behaviour* handles one connection; the fake takes them from its script in order and repeats the last one.
The request was read whole before the behaviour runs, unless the behaviour has ``reads = False``.
"""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ENVIRONMENT = {
    "CNI_CONTAINERID": "0a1b2c",
    "CNI_NETNS": "/var/run/netns/cni-x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
    "CNI_PATH": "/opt/cni/bin",
}
SANITIZERS = {"ASAN_OPTIONS": "exitcode=99:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
Behaviour = Callable[[socket.socket], None]


def http(body: bytes, *, status: str = "200 OK", headers: Sequence[str] | None = None) -> bytes:
    """One whole HTTP answer; without ``headers`` it has a true Content-Length."""
    lines = [f"Content-Length: {len(body)}"] if headers is None else headers
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def send(raw: bytes) -> Behaviour:
    """Send these bytes as they are and close."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(raw)

    return behave


def answer(body: Any, *, status: str = "200 OK") -> Behaviour:
    """Answer with a JSON body."""
    return send(http(json.dumps(body).encode(), status=status))


def trickle(raw: bytes, pause_s: float = 0.0) -> Behaviour:
    """Send one byte at a time."""

    def behave(connection: socket.socket) -> None:
        for byte in raw:
            connection.sendall(bytes([byte]))
            time.sleep(pause_s)

    return behave


def hold_open(raw: bytes) -> Behaviour:
    """Send these bytes, then keep the connection open until the caller goes away."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(raw)
        connection.recv(1)

    return behave


def die(connection: socket.socket) -> None:
    """Close without a word, as a daemon that is killed after it read the request."""


class RefusesUnread:
    """Answers and closes before it reads the request, as a server that knows early that it is too big."""

    reads = False

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(self._raw)


class FakeDaemon:
    """Listens on ``path`` while the ``with`` block lasts; afterwards no thread, connection or socket is left.

    ``requests`` are the whole requests in the order in which they came, as (head, body).
    """

    def __init__(self, path: Path, *script: Behaviour, backlog: int = 1024) -> None:
        self.path = path
        self.requests: list[tuple[bytes, bytes]] = []
        self._script = script
        self._backlog = backlog
        self._taken = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of ``requests``, decoded."""
        return [json.loads(body) for _, body in self.requests]

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(self._backlog)
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()
        self.path.unlink()

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the with block is over
                return
            with self._lock:
                behaviour = self._script[min(self._taken, len(self._script) - 1)]
                self._taken += 1
                self._open.add(connection)
            self._spawn(self._serve, connection, behaviour)

    def _serve(self, connection: socket.socket, behaviour: Behaviour) -> None:
        with contextlib.suppress(OSError):  # the caller may go away, or the with block end, at any moment
            if getattr(behaviour, "reads", True):
                request = read_request(connection)
                with self._lock:
                    self.requests.append(request)
            behaviour(connection)
        with self._lock:
            self._open.discard(connection)
            connection.close()


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one request by its Content-Length; raise ``OSError`` if the caller breaks it off."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += _more(connection)
    head, _, body = raw.partition(b"\r\n\r\n")
    (length,) = (
        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    )
    parts = [body]
    have = len(body)
    while have < length:
        parts.append(_more(connection))
        have += len(parts[-1])
    return head, b"".join(parts)


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionError("the caller closed before its request was whole")
    return piece


@contextlib.contextmanager
def appearing_after(seconds: float, daemon: FakeDaemon) -> Iterator[FakeDaemon]:
    """Let ``daemon`` start to listen only after a while."""
    started = threading.Event()

    def start() -> None:
        time.sleep(seconds)
        daemon.__enter__()
        started.set()

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    try:
        yield daemon
    finally:
        thread.join(10)
        if started.is_set():
            daemon.__exit__()


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Kill the process when the block fails: ``Popen`` alone would wait for ever for one that hangs."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: bytes
    elapsed_s: float

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error that was printed; there must be one."""
        assert self.code == 1
        error = json.loads(self.stdout)
        assert set(error) == {"cniVersion", "code", "msg", "details"}
        return dict(error)


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """The executable with a directory of its own. Socket, marker and spool of the daemon are in there."""

    binary: Path
    home: Path

    @property
    def socket(self) -> Path:
        return self.home / "d.sock"

    @property
    def ready(self) -> Path:
        """The marker that the daemon was ready in this boot, where the executable looks for it."""
        return self.home / "ready"

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    def config(self, **members: Any) -> dict[str, Any]:
        return {"cniVersion": "1.1.0", "socket": str(self.socket), "spool": str(self.spool)} | members

    def start(self, command: str | None, config: Any, env: Mapping[str, Any], **options: Any) -> Any:
        """Start it; ``config`` is its stdin if it is a descriptor. A variable that is None is unset."""
        variables = {**ENVIRONMENT, "CNI_COMMAND": command, **SANITIZERS, **env}
        return subprocess.Popen(
            [self.binary],
            env={name: value for name, value in variables.items() if value is not None},
            stdin=config if isinstance(config, int) else subprocess.PIPE,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            **options,
        )

    def run(
        self, command: str | None, config: Any = None, env: Mapping[str, Any] | None = None, **options: Any
    ) -> Outcome:
        """Run to the end with ``config`` (bytes as they are, a descriptor, or something for JSON) as stdin.

        Nothing may appear on stderr, where sanitizers write, and no signal may end it.
        """
        config = self.config() if config is None else config
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        started = time.monotonic()
        with ended(self.start(command, config, env or {}, **options)) as process:
            out, err = process.communicate(None if isinstance(config, int) else stdin, timeout=20)
        assert err == b""
        assert process.returncode in (0, 1)
        return Outcome(process.returncode, out or b"", time.monotonic() - started)

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted(self.spool.glob("*.json"))]
