"""The agent as a process of its own in a private network namespace: how it starts, waits, refuses and stops."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpccni.lab.places import build_directory, volatile_filesystem

pytestmark = [pytest.mark.netns, pytest.mark.slow]

NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: refused at once, as on a node whose IMDS is switched off."""


class Place:
    """Directories and a namespace for agents, and the agents that were started there."""

    def __init__(self, root: Path, netns: str) -> None:
        self.root = root
        self.netns = netns
        self.socket = root / "run" / "vpccni.sock"
        self.started: list[subprocess.Popen[str]] = []
        (root / "boot_id").write_text("3f0a8f8e-0000-4000-8000-000000000001\n")

    def start(self, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start an agent; flags given here win over the usual ones."""
        usual = {
            "--state-dir": self.root / "state",
            "--run-dir": self.root / "run",
            "--boot-id-path": self.root / "boot_id",
            "--cni-results-dir": self.root / "results",
            "--log-format": "json",
        }
        arguments = [str(part) for pair in usual.items() if pair[0] not in flags for part in pair]
        agent = subprocess.Popen(
            [
                "nsenter",
                f"--net={self.netns}",
                "--",
                sys.executable,
                "-m",
                "vpccni",
                "agent",
                *arguments,
                *flags,
            ],
            env={
                "PATH": os.environ["PATH"],
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": NOWHERE,
                "AWS_ENDPOINT_URL_EC2": NOWHERE,
                "AWS_REGION": "lab-1",
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
            }
            | (env or {}),
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(agent)
        return agent

    def ended(self, agent: subprocess.Popen[str], timeout_s: float = 20) -> tuple[int, str]:
        """Its exit code and all that it said."""
        said, _ = agent.communicate(timeout=timeout_s)
        return agent.returncode, said

    def serving(self, agent: subprocess.Popen[str]) -> None:
        """Wait until its socket answers."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if agent.poll() is not None:
                pytest.fail(f"the agent ended: {self.ended(agent)}")
            with contextlib.suppress(OSError):
                if self.ask("GET", "/healthz")[0] == 200:
                    return
            time.sleep(0.02)
        pytest.fail("the agent did not serve within 15 s")

    def ask(self, method: str, target: str, body: bytes = b"", timeout_s: float = 30):
        """The status and the JSON; (0, None) when it hangs up without an answer."""
        with self.send(method, target, body, timeout_s) as connection:
            return answer_of(connection)

    def send(self, method: str, target: str, body: bytes = b"", timeout_s: float = 30) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        lines = (
            f"{method} {target} HTTP/1.1",
            "Host: x",
            "Connection: close",
            f"Content-Length: {len(body)}",
        )
        try:
            connection.connect(str(self.socket))
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        except OSError:
            connection.close()
            raise
        return connection


def answer_of(connection: socket.socket):
    """As ``Place.ask``, for a request that was sent before."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    head, _, rest = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(rest)) if head else (0, None)


@pytest.fixture
def place(netns_world) -> Iterator[Place]:
    """On a real disk where there is one: the log is refused elsewhere."""
    build_directory().mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="agent-", dir=build_directory()))
    if volatile_filesystem(root):
        shutil.rmtree(root)
        pytest.skip("no disk here")
    node = netns_world.add("node")
    made = Place(root, str(node.path))
    try:
        yield made
    finally:
        for agent in made.started:
            if agent.poll() is None:
                agent.kill()
            agent.communicate()
        shutil.rmtree(root)


def add(pod: str, **changes) -> bytes:
    request = {
        "command": "ADD",
        "containerId": pod,
        "netns": f"/run/netns/{pod}",
        "ifname": "eth0",
        "config": {"cniVersion": "1.1.0", "name": "aws-cni"},
    }
    return json.dumps(request | changes).encode()


# -- starting -----------------------------------------------------------------------------------------


def test_without_imds_it_serves_its_socket_and_says_what_it_waits_for(place):
    agent = place.start()
    place.serving(agent)
    deadline = time.monotonic() + 10
    while True:
        status, answer = place.ask("GET", "/readyz")
        assert status == 503
        if answer["reason"] == "imds_unreachable" or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert answer["reason"] == "imds_unreachable"
    status, answer = place.ask("POST", "/v1/cni", add("", command="STATUS", containerId="", netns=""))
    assert (status, answer["code"], answer["reason"]) == (503, 50, "imds_unreachable")
    assert place.ask("POST", "/v1/cni", add("never-seen", command="DEL")) == (200, {})
    status, answer = place.ask("GET", "/v1/status")
    assert answer["ready"] is False
    assert answer["problems"]["imds"]
    assert (place.root / "run" / "vpccni.pid").read_text().strip() == str(answer["pid"])
    assert place.socket.stat().st_mode & 0o777 == 0o600
    agent.send_signal(signal.SIGTERM)
    code, said = place.ended(agent)
    assert code == 0, said
    assert not place.socket.exists()


def test_with_the_environment_of_the_originals_manifest_it_starts_and_serves_its_socket(place):
    """On every cluster: nobody edits settings when one image takes the place of another."""
    data = Path(__file__).parents[1] / "data" / "stock-manifest.json"
    stock = json.loads(data.read_text())["containers"]["aws-node"]["env"]
    environment = {name: "node-7" if value.startswith("fieldRef") else value for name, value in stock.items()}
    agent = place.start(env=environment)
    place.serving(agent)
    status, answer = place.ask("GET", "/v1/status")
    assert status == 200
    assert answer["problems"]["settings"] == []
    agent.send_signal(signal.SIGTERM)
    code, said = place.ended(agent)
    assert code == 0, said
    assert '"event":"setting"' not in said


def test_the_probe_tells_live_from_ready(place):
    agent = place.start()
    place.serving(agent)

    def probe(what):
        return subprocess.run(
            [sys.executable, "-m", "vpccni", "probe", what, "--socket", str(place.socket), "--timeout", "3"],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=Path(__file__).parents[2],
        )

    assert probe("live").returncode == 0
    ready = probe("ready")
    assert ready.returncode == 1
    assert "not ready" in ready.stderr
    agent.kill()
    agent.wait()
    gone = probe("live")
    assert gone.returncode == 1
    assert "no answer" in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"ADD_WAIT_S": "soon", "AWS_VPC_ENI_MTU": "99999999"},
        {"ENABLE_POD_ENI": "true", "NETWORK_POLICY_ENFORCING_MODE": "strict"},
    ],
    ids=["not meant", "not built"],
)
def test_settings_that_cannot_be_meant_or_are_not_built_stop_it_with_2_and_all_their_names(place, settings):
    code, said = place.ended(place.start(env=settings))
    assert code == 2
    for name in settings:
        assert name in said
    assert "Traceback" not in said
    assert not (place.root / "state").exists()


def test_a_log_on_a_tmpfs_is_refused_unless_that_was_meant(place):
    memory = tempfile.mkdtemp(dir="/dev/shm")
    try:
        if not volatile_filesystem(Path(memory)):
            pytest.skip("/dev/shm is no tmpfs")
        code, said = place.ended(place.start("--state-dir", memory))
        assert code == 1
        assert "log_volatile" in said
        assert "--volatile-log" in said
        assert "Traceback" not in said
        agent = place.start("--state-dir", memory, "--volatile-log")
        place.serving(agent)
    finally:
        for agent in place.started:
            if agent.poll() is None:
                agent.kill()
                agent.wait()
        shutil.rmtree(memory)


@pytest.mark.parametrize("flag", ["--state-dir", "--run-dir", "--socket", "--spool"])
def test_a_directory_that_cannot_be_used_is_named_in_a_sentence(place, flag):
    in_the_way = place.root / "a-file"
    in_the_way.write_text("")
    agent = place.start(flag, str(in_the_way / "below"))
    if flag == "--spool":
        place.serving(agent)  # It is the executable's to write; ADDs are served without.
        return
    code, said = place.ended(agent)
    assert code == 1
    assert str(in_the_way) in said
    assert "Traceback" not in said


def test_a_boot_id_that_cannot_be_read_is_named_in_a_sentence(place):
    code, said = place.ended(place.start("--boot-id-path", str(place.root / "nothing")))
    assert code == 1
    assert str(place.root / "nothing") in said
    assert "Traceback" not in said


def test_it_takes_as_many_files_as_it_may(place):
    """1,024 connections are more than the 1,024 files that a process is usually given."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4096:
        pytest.skip("the hard limit of open files is under 4,096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        agent = place.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    try:
        place.serving(agent)
        waiting = [place.send("POST", "/v1/cni", add(f"pod-{number}")) for number in range(1100)]
        deadline = time.monotonic() + 20
        while place.ask("GET", "/v1/status", timeout_s=10)[1]["waiting_adds"] <= 1000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for connection in waiting:
            connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# -- two agents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "reason"),
    [("", "another_agent"), ("--state-dir", "another_agent"), ("--run-dir", "log_in_use")],
    ids=["of the same directories", "with a log of its own", "with a socket of its own"],
)
def test_a_second_agent_waits_for_the_first_and_then_says_what_it_has(place, flag, reason):
    first = place.start()
    place.serving(first)
    began = time.monotonic()
    second = place.start(*([flag, str(place.root / "other")] if flag else []))
    code, said = place.ended(second, timeout_s=40)
    assert code == 1
    assert reason in said
    assert "Traceback" not in said
    assert 8 < time.monotonic() - began < 25
    assert place.ask("GET", "/healthz")[0] == 200  # The first one is undisturbed, its socket too.


def test_a_second_agent_takes_over_when_the_first_one_ends(place):
    first = place.start()
    place.serving(first)
    second = place.start()
    time.sleep(1)
    first.send_signal(signal.SIGTERM)
    assert place.ended(first)[0] == 0
    place.serving(second)
    assert place.ask("GET", "/v1/status")[1]["pid"] != first.pid


def test_a_second_agent_that_is_stopped_while_it_waits_ends_at_once_and_leaves_the_first_alone(place):
    first = place.start()
    place.serving(first)
    second = place.start()
    time.sleep(2)
    assert second.poll() is None
    second.send_signal(signal.SIGTERM)
    code, said = place.ended(second, timeout_s=3)
    assert code == 0, said
    assert "Traceback" not in said
    assert place.ask("GET", "/healthz")[0] == 200


# -- stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_with_adds_followers_and_half_requests_under_way_is_quick_and_clean(place, number):
    agent = place.start()
    place.serving(agent)
    waiting = [place.send("POST", "/v1/cni", add(f"pod-{each}")) for each in range(20)]
    follower = place.send("GET", "/v1/events?follow=1")
    half = socket.socket(socket.AF_UNIX)
    half.connect(str(place.socket))
    half.sendall(b"POST /v1/cni HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    deadline = time.monotonic() + 10
    while place.ask("GET", "/v1/status")[1]["waiting_adds"] < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    agent.send_signal(number)
    for connection in waiting:
        with connection:
            assert answer_of(connection) == (0, None)  # The executable asks the next agent.
    code, said = place.ended(agent)
    took = time.monotonic() - began
    assert code == 0, said
    assert "Traceback" not in said
    assert took < 4, said
    follower.close()
    half.close()
    again = place.start()
    place.serving(again)
    assert place.ask("GET", "/v1/pods") == (200, [])


def test_after_a_kill_the_next_agent_takes_the_log_and_the_socket_at_once(place):
    first = place.start()
    place.serving(first)
    first.kill()
    first.wait()
    began = time.monotonic()
    second = place.start()
    place.serving(second)
    assert time.monotonic() - began < 5
    events = place.root / "state" / "events.sqlite"
    assert events.exists()
    with events.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
