"""The real socket: who may talk, how much, for how long, and what a bad client can do to the others."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import structlog

from tests.sim.node import Node
from tests.unit.api.shapes import check_error
from vpccni.api import http
from vpccni.api.http import SocketServer
from vpccni.errors import PermanentError
from vpccni.loops.serve_cni import Reply

pytestmark = pytest.mark.netns  # only uid 0 is answered: an ordinary user is that inside a world


class Answer(msgspec.Struct):
    status: int
    body: bytes


class Stub:
    """Handlers of our own: every CNI request waits for ``gate``; events come from ``lines``."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.lines: list[bytes] = []
        self.news = asyncio.Event()
        self.bodies: list[int] = []
        self.cancelled = 0
        self.status = 200
        self.sent = 0

    async def cni(self, body):
        self.bodies.append(len(body))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer(self.status, b"{}")

    async def set_mode(self, body: bytes) -> Reply:
        """The body is the mode that is asked for."""
        self.bodies.append(len(body))
        return Reply(200, b"{}")

    def view(self, name):
        return {"view": name}

    def is_healthy(self):
        return True, {"status": "ok"}

    def is_ready(self):
        return False, {"status": "not ready", "reason": "node_not_initialized"}

    async def events(self, after, limit, follow):
        position = after
        while True:
            while position < len(self.lines):
                if not follow and position - after >= limit:
                    return
                yield self.lines[position]
                self.sent += 1
                position += 1
            if not follow:
                return
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def serving(path: Path, handlers=None) -> AsyncIterator[tuple[Stub, Path]]:
    stub = handlers or Stub()
    server = SocketServer(stub, path)
    await server.start()
    try:
        yield stub, path
    finally:
        if isinstance(stub, Stub):
            stub.gate.set()
        await server.stop()


@pytest.fixture
async def site(tmp_path):
    async with serving(tmp_path / "api.sock") as made:
        yield made


async def exchange(path: Path, sent: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes, read until the other side closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(sent)
        await writer.drain()
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(15):
            return await reader.read()
    finally:
        writer.close()


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(path: Path, method: str, target: str, body: bytes = b"", *headers: str):
    """The status and the decoded JSON body."""
    answer = await exchange(path, request(method, target, body, *headers))
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(rest) if rest and method != "HEAD" else rest


# -- who may talk -------------------------------------------------------------------------------------


async def test_the_socket_is_for_root_alone(site):
    _, path = site
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.stat().st_mode)


async def test_a_socket_left_by_a_dead_agent_is_replaced_and_ours_is_removed_at_the_end(tmp_path):
    path = tmp_path / "run" / "api.sock"
    path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with serving(path):
        assert (await ask(path, "GET", "/healthz"))[0] == 200
    assert not path.exists()


@pytest.mark.parametrize("whole", [False, True], ids=["the socket", "its directory"])
async def test_a_socket_that_somebody_removes_is_made_again_and_requests_under_way_go_on(
    tmp_path, monkeypatch, whole
):
    monkeypatch.setattr("vpccni.api.http.LOOK_S", 0.02)
    path = tmp_path / "run" / "api.sock"
    stub = Stub()
    server = SocketServer(stub, path)
    await server.start()
    keeping = asyncio.get_running_loop().create_task(server.keep_listening())
    reader, writer = await asyncio.open_unix_connection(str(path))
    path.unlink()
    if whole:
        path.parent.rmdir()
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (await ask(path, "GET", "/healthz"))[0] == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        writer.write(request("GET", "/healthz"))
        assert b" 200 " in await reader.readline()
    writer.close()
    keeping.cancel()
    await server.stop()
    assert not path.exists()


async def test_a_path_that_cannot_be_a_socket_is_told_by_name(tmp_path):
    for path in (tmp_path / ("x" * 120), Path("/proc/no/such.sock")):
        with pytest.raises(PermanentError) as caught:
            await SocketServer(Stub(), path).start()
        assert caught.value.reason == "bad_setting"
        assert str(path) in caught.value.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_refused_even_when_the_mode_lets_him_connect(site):
    if "4294967295" not in Path("/proc/self/uid_map").read_text():
        pytest.skip("needs real root: in a user namespace there is no other user to become")
    stub, path = site
    path.chmod(0o666)
    for parent in (path.parent, *path.parent.parents[:3]):
        if str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    body = b"{}"
    asked = [request("GET", "/v1/status"), request("POST", "/v1/cni", body), request("GET", "/healthz")]
    for sent in asked:
        answer = await asyncio.to_thread(as_nobody, str(path), sent)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 "), answer
        assert json.loads(rest)["reason"] == "not_allowed"
    assert not stub.bodies


def as_nobody(path: str, sent: bytes) -> bytes:
    """Exchange bytes from a child process with uid 65534."""
    code = (
        "import os,socket,sys; os.setgid(65534); os.setuid(65534); c=socket.socket(socket.AF_UNIX);"
        "c.settimeout(10); c.connect(sys.argv[1]); c.sendall(bytes.fromhex(sys.argv[2]));"
        "d=b''\nwhile True:\n b=c.recv(65536)\n if not b: break\n d+=b\nsys.stdout.buffer.write(d)"
    )
    import subprocess

    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", code, path, sent.hex()], capture_output=True, timeout=20, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- paths and methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "pods", "enis"])
async def test_views_are_json(site, name):
    assert await ask(site[1], "GET", f"/v1/{name}") == (200, {"view": name})


async def test_health_and_readiness_are_told_by_status(site):
    assert (await ask(site[1], "GET", "/healthz"))[0] == 200
    status, answer = await ask(site[1], "GET", "/readyz")
    assert (status, answer["reason"]) == (503, "node_not_initialized")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/cni", 405),
        ("PUT", "/v1/cni", 405),
        ("DELETE", "/v1/pods", 405),
        ("POST", "/v1/status", 405),
        ("POST", "/healthz", 405),
        ("OPTIONS", "*", 405),
        ("GET", "/", 404),
        ("GET", "/status", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1/status/", 404),
        ("GET", "/v1/status%00", 404),
        ("GET", "/v1/" + "x" * 4000, 404),
        ("GET", "/v1/events?after=x", 400),
        ("GET", "/v1/events?limit=1.5", 400),
        ("GET", "/v1/events?after=" + "9" * 30, 400),
        ("GET", "/v1/events?after=-1", 400),
        ("GET", "/v1/events?limit=" + "9" * 5000, 400),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_what_is_not_served_is_refused_in_json_with_a_reason(site, method, target, status):
    got, answer = await ask(site[1], method, target)
    assert got == status
    assert answer["reason"] == "bad_request"


@pytest.mark.parametrize("target", ["/v1/status", "/healthz", "/v1/events", "/v1/events?follow=1"])
async def test_head_is_answered_without_a_body(site, target):
    site[0].lines += [b"{}\n"] * 3
    assert await ask(site[1], "HEAD", target) == (200, b"")


# -- size, time, form ----------------------------------------------------------------------------------


async def test_a_body_of_just_the_limit_is_served_and_one_more_byte_is_413(site):
    stub, path = site
    assert (await ask(path, "POST", "/v1/cni", b"x" * http.BODY_MAX))[0] == 200
    status, answer = await ask(path, "POST", "/v1/cni", b"x" * (http.BODY_MAX + 1))
    assert (status, answer["reason"], answer["code"]) == (413, "too_large", 6)
    check_error(answer)
    assert stub.bodies == [http.BODY_MAX]


async def test_an_endless_chunked_body_is_cut_off(site):
    _, path = site
    _reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"POST /v1/cni HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with pytest.raises(ConnectionError):  # noqa: PT012 - which of them meets the end is chance
        async with asyncio.timeout(30):
            for _ in range(100_000):
                writer.write(chunk)
                await writer.drain()
    writer.close()
    assert not site[0].bodies


async def test_a_body_that_does_not_come_times_out(site, monkeypatch):
    monkeypatch.setattr(http, "BODY_TIMEOUT_S", 0.2)
    sent = b"POST /v1/cni HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\nhalf"
    reader, writer = await asyncio.open_unix_connection(str(site[1]))
    writer.write(sent)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert not site[0].bodies


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 1000,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/cni HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"POST /v1/cni HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/cni HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/cni HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        os.urandom(4096),
    ],
    ids=["nul", "text", "no target", "version", "long header", "many headers", "negative", "smuggling",
         "bad chunk", "tls", "random"],
)  # fmt: skip
async def test_garbage_reaches_no_handler_and_the_next_client_is_served(site, garbage):
    stub, path = site
    try:
        answer = await exchange(path, garbage, half_close=True)
        assert not answer.startswith(b"HTTP/1.1 200")
    except (ConnectionError, TimeoutError):
        pass
    assert not stub.bodies
    assert (await ask(path, "GET", "/healthz"))[0] == 200


BAD_BODY = b"POST /v1/cni HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"G ET / HTTP/1.1\r\n\r\n",
        BAD_BODY + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        BAD_BODY + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nZZZ\r\n",
        BAD_BODY.replace(b"/v1/cni", b"/v1/pods")
        + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["text", "bad method", "gzip that is none", "bad chunk", "a bad body that nobody reads"],
)
async def test_what_cannot_be_parsed_is_refused_as_a_cni_error_and_leaves_no_traceback(site, sent, capfd):
    head, _, rest = (await exchange(site[1], sent)).partition(b"\r\n\r\n")
    assert int(head.split()[1]) in (400, 405)
    check_error(json.loads(rest))
    assert json.loads(rest)["reason"] == "bad_request"
    assert (await ask(site[1], "GET", "/healthz"))[0] == 200
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


async def test_a_failure_of_a_handler_is_one_line_of_the_log_and_a_500_in_json(site, monkeypatch):
    def fail(name):
        raise ArithmeticError(name)

    monkeypatch.setattr(site[0], "view", fail)
    with structlog.testing.capture_logs() as lines:
        status, answer = await ask(site[1], "GET", "/v1/pods")
    assert (status, answer["reason"]) == (500, "internal")
    check_error(answer)
    assert [(line["event"], line["path"]) for line in lines] == [("answer_failed", "/v1/pods")]


async def test_half_a_request_and_a_client_that_leaves_disturb_nobody(site):
    stub, path = site
    whole = request("POST", "/v1/cni", b'{"command":"ADD"}')
    for cut in range(0, len(whole), 7):
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(whole[:cut])
        writer.close()
    assert (await ask(path, "GET", "/healthz"))[0] == 200
    assert not stub.bodies


async def test_pipelined_requests_are_answered_in_order(site):
    _, path = site
    one = b"GET /v1/%s HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/enis HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await exchange(path, one % b"status" + one % b"pods" + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b'"status"') < answer.index(b'"pods"') < answer.index(b'"enis"')


# -- numbers -------------------------------------------------------------------------------------------


@pytest.fixture
def many_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip("the hard limit of open files is under 4,096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_1024_connections_at_once_are_all_answered(site, many_files):
    stub, path = site
    stub.gate.clear()
    sent = request("POST", "/v1/cni", b"{}")
    connections = []
    for _ in range(1024):  # All connect before the server has had a turn to accept.
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        connection.sendall(sent)
        connection.setblocking(False)
        connections.append(connection)
    async with asyncio.timeout(30):
        while len(stub.bodies) < 1024:
            await asyncio.sleep(0.01)
    assert (await ask(path, "GET", "/healthz"))[0] == 200  # Views are served meanwhile.
    stub.gate.set()
    loop = asyncio.get_running_loop()
    for connection in connections:
        async with asyncio.timeout(30):
            assert (await loop.sock_recv(connection, 100)).startswith(b"HTTP/1.1 200")
        connection.close()


async def test_an_idle_connection_is_closed_and_so_is_one_that_never_ends_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "IDLE_TIMEOUT_S", 0.3)
    async with serving(tmp_path / "api.sock") as (_, path):
        started = [b"", b"GET /v1/status HTTP/1.1\r\nX:", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
        for sent in started:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(sent)
            async with asyncio.timeout(5):
                await reader.read()
            writer.close()


async def test_status_0_hangs_up_without_an_answer(site):
    stub, path = site
    stub.status = 0
    with suppress(ConnectionError):
        assert await exchange(path, request("POST", "/v1/cni", b"{}")) == b""
    stub.status = 200
    assert (await ask(path, "POST", "/v1/cni", b"{}"))[0] == 200


async def test_a_client_that_goes_away_cancels_its_request(site):
    stub, path = site
    stub.gate.clear()
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request("POST", "/v1/cni", b"{}"))
    async with asyncio.timeout(5):
        while not stub.bodies:
            await asyncio.sleep(0.005)
        writer.close()
        while not stub.cancelled:
            await asyncio.sleep(0.005)


# -- events --------------------------------------------------------------------------------------------


async def test_events_are_lines_after_a_position_up_to_a_limit(site):
    stub, path = site
    stub.lines = [b"%d\n" % number for number in range(http.EVENTS_MAX + 50)]
    for query, expected in (
        ("", range(1000)),
        ("after=10040", range(10040, 10050)),
        ("after=5&limit=3", range(5, 8)),
        ("limit=0", range(1)),
        ("after=20000", range(0)),
        ("limit=999999999", range(http.EVENTS_MAX)),
    ):
        # In HTTP/1.0, whose bodies come in no chunks.
        answer = await exchange(path, f"GET /v1/events?{query} HTTP/1.0\r\n\r\n".encode())
        found = [int(line) for line in answer.partition(b"\r\n\r\n")[2].split()]
        assert found == list(expected), query


async def test_followers_are_bounded_and_each_place_is_given_back(site, monkeypatch):
    monkeypatch.setattr(http, "FOLLOWERS_MAX", 3)
    stub, path = site
    stub.lines = [b"{}\n"]
    following = request("GET", "/v1/events?follow=1")
    writers = []
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(following)
        await reader.readuntil(b"{}")
        writers.append(writer)
    status, answer = await ask(path, "GET", "/v1/events?follow=true")
    assert (status, answer["reason"]) == (503, "too_busy")
    assert (await exchange(path, request("GET", "/v1/events?follow=0"))).startswith(b"HTTP/1.1 200")
    for writer in writers:
        writer.close()
    async with asyncio.timeout(10):
        while True:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(following)
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            if b" 200 " in head:
                break
            await asyncio.sleep(0.02)


async def test_a_follower_that_stops_reading_holds_up_nobody_and_is_fed_no_further(site):
    stub, path = site
    stub.lines = [b"x" * 1000 + b"\n"] * 100
    _, writer = await asyncio.open_unix_connection(str(path), limit=1)
    writer.write(request("GET", "/v1/events?follow=1"))
    for _ in range(50):
        stub.lines += [b"x" * 1000 + b"\n"] * 1000
        stub.news.set()
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)
    assert 0 < stub.sent < 5000  # Of 50,100: what socket and transport buffer, and not what there is.
    assert (await ask(path, "GET", "/v1/status"))[0] == 200
    writer.close()


async def test_a_stop_with_followers_and_requests_under_way_takes_little_more_than_two_seconds(tmp_path):
    path = tmp_path / "api.sock"
    stub = Stub()
    stub.gate.clear()
    server = SocketServer(stub, path)
    await server.start()
    writers = []
    for sent in (request("GET", "/v1/events?follow=1"), request("POST", "/v1/cni", b"{}")):
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(sent)
        writers.append(writer)
    await asyncio.sleep(0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await server.stop()
    assert loop.time() - began < 3
    assert not path.exists()
    for writer in writers:
        writer.close()


# -- the service behind it ------------------------------------------------------------------------------


class Site:
    """The CNI service of a node in memory, behind the socket."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def cni(self, body):
        assert self._node.agent is not None
        return await self._node.agent.cni.handle(body)

    def view(self, name):
        return {}

    def is_healthy(self):
        return True, {}

    def is_ready(self):
        return True, {}

    async def events(self, after, limit, follow):
        for line in list[bytes]():
            yield line


async def test_a_client_that_leaves_in_the_middle_of_an_add_leaves_no_lease(tmp_path):
    node = Node("m5.large")
    await node.start()
    await node.ready()
    assert node.agent is not None
    node.kernel.add_netns("/run/netns/web")
    body = json.dumps(
        {
            "command": "ADD",
            "containerId": "web",
            "netns": "/run/netns/web",
            "ifname": "eth0",
            "config": {"cniVersion": "1.1.0", "name": "aws-cni"},
        }
    ).encode()
    async with serving(tmp_path / "api.sock", Site(node)) as (_, path):
        node.kernel.latency_s = 0.2
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request("POST", "/v1/cni", body))
        async with asyncio.timeout(5):
            while not node.agent.writer.state.leases:
                await asyncio.sleep(0.005)
            writer.close()
            while node.agent.writer.state.leases or node.agent.writer.state.standing:
                await asyncio.sleep(0.02)
        assert not any(link.alias for link in node.kernel.state.links.values())
        node.kernel.latency_s = 0.0
        status, answer = await ask(path, "POST", "/v1/cni", body)
        assert status == 200, answer
        for junk in (b"", b"{}", b"[" * 100_000, b"\x00", body[:-1]):
            status, answer = await ask(path, "POST", "/v1/cni", junk or b" ")
            assert status == 400
            check_error(answer)
    await node.stop()
