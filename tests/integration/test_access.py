"""Who may talk to the agent, where it listens, what it shows, and who may read what it writes."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.fuzz.nonsense import VERBS, post, request
from tests.fuzz.socket import LATENCY_S, TIMING, Connection
from tests.integration.test_api_socket import as_nobody
from tests.integration.test_api_socket import request as http_request
from tests.unit.api.shapes import check_error
from vpccni.lab.ec2 import small_region
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.places import build_directory

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SETTINGS = {"WARM_IP_TARGET": "3"}
CONTAINER = "f00dfeed" * 8
VIEWS = ("/v1/status", "/v1/pods", "/v1/enis", "/healthz", "/readyz", "/v1/nothing", "/v1/cni", "/")


@asynccontextmanager
async def one_node(name: str, settings: dict[str, str]) -> AsyncIterator[tuple[Lab, LabNode]]:
    """A lab with one node whose agent is ready, and a pod on it."""
    region = small_region(1, latency_s=LATENCY_S, timing=TIMING)
    async with Lab(name, directory=build_directory() / "access", region=region) as lab:
        node = await lab.add_node("a")
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        netns = await lab.fabric.add_namespace("pod")
        assert (await ask(node, "ADD", netns.path))[0] == 200
        yield lab, node


async def ask(node: LabNode, verb: str, netns: str):
    body = request(verb, (CONTAINER, "eth0"), netns) | {"args": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"}
    async with Connection(node.places.socket) as connection:
        await connection.send(post(json.dumps(body).encode()))
        answer = await connection.answer()
    assert answer is not None
    return answer


# -- who may talk -------------------------------------------------------------------------------------


def needs_other_users() -> None:
    if "4294967295" not in Path("/proc/self/uid_map").read_text():
        pytest.skip("needs real root: in a user namespace there is no other user to become")


async def test_only_root_is_answered_also_through_a_socket_whose_mode_somebody_loosened():
    needs_other_users()
    async with one_node("peers", SETTINGS) as (_, node):
        path = node.places.socket
        for parent in list(path.parents)[:2]:
            parent.chmod(0o755)
        with pytest.raises(AssertionError, match="PermissionError"):
            as_nobody(str(path), b"")
        path.chmod(0o666)
        verbs = [json.dumps(request(verb, (CONTAINER, "eth0"), "/run/netns/x")).encode() for verb in VERBS]
        asked = [http_request("POST", "/v1/cni", body) for body in verbs]
        asked += [http_request("GET", target) for target in (*VIEWS, "/v1/events", "/v1/events?follow=1")]
        for sent in asked:
            head, _, body = as_nobody(str(path), sent).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 403 "), sent
            check_error(json.loads(body))
            assert json.loads(body)["reason"] == "not_allowed"
        assert len(await node.client.get("/v1/pods")) == 1  # the DEL of a stranger ended nothing


# -- where it listens ---------------------------------------------------------------------------------


def listeners(pid: int) -> set[str]:
    """Where a process takes what strangers send: TCP that listens, UDP without a peer, raw and packet sockets."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            is_open = fields[3] == "0A" if kind.startswith("tcp") else set(fields[2]) <= {"0", ":"}
            if fields[9] in inodes and is_open:
                found.add(f"{kind} {fields[1]}")
    for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]:
        if line.split()[-1] in inodes:
            found.add("packet")
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            found.add(f"unix {fields[7] if len(fields) > 7 else ''}")
    return found


@contextmanager
def opened(*sockets: socket.socket) -> Iterator[None]:
    try:
        yield
    finally:
        for each in sockets:
            each.close()


def test_a_listener_is_seen(tmp_path):
    before = listeners(os.getpid())
    tcp, udp, udp6, unix = (
        socket.create_server(("127.0.0.1", 0)),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX),
    )
    with opened(tcp, udp, udp6, unix):
        udp.bind(("127.0.0.1", 0))
        udp6.bind(("::", 0))
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        kinds = {each.split()[0] for each in listeners(os.getpid()) - before}
    assert kinds == {"tcp", "udp", "udp6", "unix"}


async def test_it_listens_on_its_socket_and_nowhere_else_whatever_the_settings_say_of_ports():
    """docs/settings.md: introspection and metrics are not served yet, whichever address is named for them."""
    async with one_node("ports", SETTINGS) as (lab, node):
        for settings in (
            {},
            {"INTROSPECTION_BIND_ADDRESS": "0.0.0.0:61679", "DISABLE_METRICS": "false"},
            {"INTROSPECTION_BIND_ADDRESS": "[::]:61679", "DISABLE_INTROSPECTION": "false"},
            {"INTROSPECTION_BIND_ADDRESS": "unix:/run/vpccni-introspection.sock"},
            {"DISABLE_INTROSPECTION": "true", "DISABLE_METRICS": "true"},
        ):
            await lab.kill_agent(node)
            await lab.start_agent(node, SETTINGS | settings)
            await lab.wait_ready(node)
            assert node.agent is not None
            assert listeners(node.agent.pid) == {f"unix {node.places.socket}"}, settings


# -- what it shows ------------------------------------------------------------------------------------


async def test_no_view_shows_a_container_id():
    """The events are the log itself, which names the containers; they are for root alone, as everything here is."""
    async with one_node("shows", SETTINGS) as (_, node):
        for target in VIEWS:
            status, said = await node.client.ask(target)
            assert status in (200, 404, 405), target
            assert CONTAINER[:12] not in json.dumps(said), target
        assert len(await node.client.get("/v1/pods")) == 1
        assert CONTAINER[:12] not in node.places.log.read_text()


# -- what it writes -----------------------------------------------------------------------------------


async def test_what_it_writes_is_roots_alone_under_any_umask():
    before = os.umask(0)
    try:
        async with one_node("modes", SETTINGS) as (_, node):
            places = node.places
            modes = {
                str(path.relative_to(top)): stat.S_IMODE(path.lstat().st_mode)
                for top in (places.state, places.run)
                for path in top.rglob("*")
            }
            assert {
                "events.sqlite",
                "events.sqlite-wal",
                "events.sqlite.lock",
                "vpccni.sock",
                "vpccni.pid",
            } <= set(modes)
            assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
            assert modes["vpccni.sock"] == 0o600
            # What a runtime has to read; there is no secret in it, and no kubeconfig beside it.
            read_by_others = {
                path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in places.conf.iterdir()
            }
            assert read_by_others == {"10-aws.conflist": "0o644"}
            assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in places.bin.iterdir()} == {
                "aws-cni": "0o755"
            }
            owners = {path.lstat().st_uid for path in places.root.rglob("*")} | {places.socket.stat().st_uid}
            assert owners == {0}
    finally:
        os.umask(before)
