"""What only the real survey can get wrong: where namespaces are found, hostile sandboxes, races with the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.contract.kernel_worlds import RealWorld, sh
from vpccni.adapters import kernel_survey
from vpccni.adapters import netlink_route as messages
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.kernel_netns import opened, setns, socket_in
from vpccni.adapters.kernel_survey import Places, Search
from vpccni.adapters.netlink import NetlinkError, NetlinkSocket
from vpccni.datapath.survey import host_veth
from vpccni.errors import PermanentError, Reason
from vpccni.evidence import HostVeth
from vpccni.model import PodRef

pytestmark = pytest.mark.netns

T = TypeVar("T")

POD = PodRef("default", "web-0")
ADDRESS = "10.0.1.77"
NOWHERE = Places(directories=(), proc="")


@pytest.fixture
async def world() -> AsyncIterator[RealWorld]:
    made = RealWorld()
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def surveyor(world: RealWorld, places: Places) -> AsyncIterator[NetlinkKernel]:
    kernel = await NetlinkKernel.open(world.node, places=places)
    try:
        yield kernel
    finally:
        await kernel.close()


async def only_veth(world: RealWorld, places: Places, *paths: str) -> HostVeth:
    async with surveyor(world, places) as kernel:
        (veth,) = (await kernel.survey("eni", paths)).veths
    return veth


def in_netns(path: str, call: Callable[[], T]) -> T:
    """Call on a thread inside the namespace."""
    answers: list[T] = []

    def inside() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        setns(descriptor)
        os.close(descriptor)
        answers.append(call())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return answers[0]


@contextlib.contextmanager
def process_in(path: str) -> Iterator[int]:
    """A process that lives in the namespace."""
    process = subprocess.Popen(
        ["nsenter", f"--net={path}", "--", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


# --- where namespaces are found -----------------------------------------------------------------------


async def test_a_namespace_that_only_a_process_shows_is_found(world, tmp_path):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    places = Places(directories=(str(tmp_path),))
    with process_in(path) as pid:
        # This process holds the namespace open and is in another: a descriptor is no place to look.
        veth = await only_veth(world, places)
        assert veth.netns == f"/proc/{pid}/ns/net"
        assert (veth.netns_inode, veth.inside) == (world.inode(path), (ADDRESS,))
    assert (await only_veth(world, places)).netns == ""


async def test_processes_are_not_looked_at_when_all_is_found(world, tmp_path):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    trap = tmp_path / "proc" / "1" / "ns"
    trap.mkdir(parents=True)
    (trap / "net").touch()
    places = Places(directories=(str(world.directory),), proc=str(tmp_path / "proc"))
    async with surveyor(world, places) as kernel:
        assert (await kernel.survey("eni", [])).unreadable == ()
        world.hide(path)
        found = await kernel.survey("eni", [])
    assert found.unreadable == (f"{trap}/net is not a network namespace",)


async def test_what_is_no_namespace_is_told_only_when_one_is_missing(world, tmp_path):
    """Files whose mounts are gone lie about for ever; they matter when they may be what is searched for."""
    (tmp_path / "a-file").touch()
    os.mkfifo(tmp_path / "b-fifo")
    (tmp_path / "c-loop").symlink_to("c-loop")
    (tmp_path / "d-own").symlink_to(world.node)
    (tmp_path / "e-uts").symlink_to("/proc/self/ns/uts")
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    places = Places(directories=(str(tmp_path), str(world.directory), str(tmp_path / "absent")), proc="")
    async with surveyor(world, places) as kernel, asyncio.timeout(10):
        found = await kernel.survey("eni", [])
        assert (found.veths[0].inside, found.unreadable) == ((ADDRESS,), ())
        world.hide(path)
        found = await kernel.survey("eni", ["/dev/zero", "/nowhere", ""])
    assert found.veths[0].netns == ""
    assert found.unreadable == (
        "/dev/zero is not a network namespace",
        f"{tmp_path}/a-file is not a network namespace",
        f"{tmp_path}/b-fifo is not a network namespace",
        f"{tmp_path}/c-loop: Too many levels of symbolic links",
        f"{tmp_path}/e-uts is another kind of namespace",
    )


async def test_a_directory_without_its_mounts_does_not_fill_the_log(world, tmp_path):
    for number in range(100):
        (tmp_path / f"cni-{number:03}").touch()
    world.plug("02:00:00:00:ee:04", "eni0123456789a")
    async with surveyor(world, Places(directories=(str(tmp_path),), proc="")) as kernel:
        found = await kernel.survey("eni", [])
    assert len(found.unreadable) == 21
    assert found.unreadable[-1] == "and 80 more"


async def test_a_directory_under_two_names_is_read_once(world, tmp_path):
    (tmp_path / "a-file").touch()
    again = tmp_path.parent / f"{tmp_path.name}-again"
    again.symlink_to(tmp_path)
    world.plug("02:00:00:00:ee:04", "eni0123456789a")
    async with surveyor(world, Places(directories=(str(tmp_path), str(again)), proc="")) as kernel:
        found = await kernel.survey("eni", [])
    assert found.unreadable == (f"{tmp_path}/a-file is not a network namespace",)


async def test_a_directory_that_cannot_be_listed_is_told(world, tmp_path):
    (tmp_path / "a-file").touch()
    world.plug("02:00:00:00:ee:04", "eni0123456789a")
    places = Places(directories=(str(tmp_path / "a-file"),), proc=str(tmp_path / "a-file"))
    async with surveyor(world, places) as kernel:
        found = await kernel.survey("eni", [])
    assert found.unreadable == (f"{tmp_path}/a-file: Not a directory",) * 2


async def test_a_named_path_is_told_before_a_found_one(world):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    places = Places(directories=(str(world.directory),), proc="")
    assert (await only_veth(world, places, path)).netns == path
    assert (await only_veth(world, places)).netns == str(world.directory / Path(path).name)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Directories that were listed and namespaces that were opened."""
    told: list[str] = []
    listdir = os.listdir

    def listed(path: str) -> list[str]:
        told.append(path)
        return listdir(path)

    def opening(path: str, *, home: int) -> contextlib.AbstractContextManager[int]:
        told.append(path)
        return opened(path, home=home)

    monkeypatch.setattr("vpccni.adapters.kernel_survey.os.listdir", listed)
    monkeypatch.setattr("vpccni.adapters.kernel_survey.opened", opening)
    return told


async def test_nothing_is_looked_into_once_all_is_found(world, looked_at):
    path, other = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    async with surveyor(world, Places(directories=(str(world.directory),))) as kernel:
        await kernel.survey("vet", [path, other])
        assert looked_at == []
        await kernel.survey("eni", [path, other])
    assert looked_at == [path]


async def test_processes_are_not_listed_when_all_is_found(world, looked_at):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    async with surveyor(world, Places(directories=(str(world.directory),))) as kernel:
        await kernel.survey("eni", [])
    assert looked_at == [str(world.directory), str(world.directory / Path(path).name)]


async def test_a_namespace_is_opened_once_under_however_many_names(world, looked_at):
    path, lost = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    world.wire_as_original(PodRef("default", "web-1"), lost, "10.0.1.78")
    world.hide(lost)
    async with surveyor(world, Places(directories=(str(world.directory),))) as kernel:
        with process_in(path), process_in(path):
            found = await kernel.survey("eni", [path, path])
            inodes = [os.stat(each).st_ino for each in looked_at if each.endswith("/ns/net")]
    assert [veth.netns for veth in found.veths] == [path, ""]
    assert [each for each in looked_at if each == path] == [path]
    assert world.inode(path) not in inodes
    assert len(set(inodes)) == len(inodes)


# --- hostile sandboxes --------------------------------------------------------------------------------


async def test_a_namespace_that_cannot_be_entered_is_known_and_the_others_serve(world, monkeypatch):
    shut, other = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, shut, ADDRESS)
    world.wire_as_original(PodRef("default", "web-1"), other, "10.0.1.78")

    def refuse(descriptor: int, *, home: int) -> NetlinkSocket:
        if os.fstat(descriptor).st_ino == world.inode(shut):
            raise PermissionError(1, "setns: Operation not permitted")
        return socket_in(descriptor, home=home)

    monkeypatch.setattr(kernel_survey, "socket_in", refuse)
    async with surveyor(world, NOWHERE) as kernel:
        found = await kernel.survey("eni", [shut, other])
    assert found.unreadable == (f"{shut} cannot be entered: setns: Operation not permitted",)
    first, second = found.veths
    assert (first.netns, first.netns_inode, first.inside) == (shut, world.inode(shut), ())
    assert (second.netns, second.inside) == (other, ("10.0.1.78",))


@pytest.mark.parametrize(
    "error", [NetlinkError(105, "No buffer space available"), KeyError(1), ValueError("x")]
)
async def test_nonsense_from_inside_does_not_fail_the_survey(world, monkeypatch, error):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)

    def refuse(inside: NetlinkSocket, ifindex: int) -> tuple[str, ...]:
        raise error

    monkeypatch.setattr(kernel_survey, "_addresses", refuse)
    async with surveyor(world, NOWHERE) as kernel:
        found = await kernel.survey("eni", [path])
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith(f"{path} cannot be read: ")
    assert (found.veths[0].netns, found.veths[0].inside, found.veths[0].routed) == (path, (), (ADDRESS,))


async def test_an_interface_whose_name_is_no_text_is_told(world):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    sh(path, "ip link set eth0 down; ip link set eth0 name \"$(printf '\\377\\001x')\"")
    veth = await only_veth(world, NOWHERE, path)
    assert (veth.pod_ifname, veth.inside) == ("\ufffd\x01x", (ADDRESS,))


async def test_as_many_addresses_as_a_pod_likes_to_have_are_not_all_read(world):
    """Neither on another link, which the kernel leaves out of the dump, nor on its own."""
    path = world.add_netns()
    sh(path, "ip link add crowd type veth peer name crowd1; ip link set crowd up")
    many = "\n".join(f"address add 10.9.{each // 250}.{each % 250 + 1}/32 dev crowd" for each in range(1500))
    sh(path, f"ip -batch - <<'end'\n{many}\nend")
    world.wire_as_original(POD, path, ADDRESS)
    assert (await only_veth(world, NOWHERE, path)).inside == (ADDRESS,)
    many = "\n".join(f"address add 10.8.{each // 250}.{each % 250 + 1}/32 dev eth0" for each in range(1500))
    sh(path, f"ip -batch - <<'end'\n{many}\nend")
    inside = (await only_veth(world, NOWHERE, path)).inside
    assert len(inside) == 64
    assert ADDRESS in inside


async def test_an_address_that_is_good_on_its_link_only_is_not_told(world):
    path = world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    sh(
        path,
        "ip address add 10.0.1.50/32 dev eth0 scope link; ip address add 10.0.1.51/32 dev eth0 scope host",
    )
    assert (await only_veth(world, NOWHERE, path)).inside == (ADDRESS,)


async def test_an_interface_that_the_pod_moved_is_found_where_it_is(world):
    """A pod with NET_ADMIN puts its interface into a namespace of its own and a veth of its own in its place."""
    path, nested = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    sh(path, f"ip link set eth0 netns {nested}; ip link add eth0 type veth peer name eth1")
    sh(path, "ip address add 10.0.1.99/32 dev eth0")
    sh(nested, "ip address add 10.0.1.98/32 dev eth0")
    veth = await only_veth(world, NOWHERE, path)
    assert (veth.has_peer, veth.netns, veth.inside) == (True, "", ())
    veth = await only_veth(world, NOWHERE, path, nested)
    assert (veth.netns, veth.inside) == (nested, ("10.0.1.98",))


async def test_what_a_pod_sends_to_our_socket_is_not_taken_for_the_kernels_word(world):
    """Who has NET_ADMIN in a namespace may send to any netlink socket there, under any sequence number."""
    path = world.add_netns()
    ours = in_netns(path, NetlinkSocket)
    theirs = in_netns(path, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    with contextlib.closing(ours), theirs:
        lie = struct.pack("=BxHiII", 0, 0, 4711, 0, 0)
        message = struct.pack("=IHHII", 16 + len(lie), messages.RTM_NEWLINK, 0, 1, 0) + lie
        ours._socket.bind((0, 0))
        port = ours._socket.getsockname()[0]
        assert theirs.sendto(message, (port, 0)) == len(message)
        told = messages.parse_link(ours.get(messages.RTM_GETLINK, messages.one_link(ifname="lo")))
    assert (told.ifindex, told.ifname) == (1, "lo")


# --- races with the kernel ----------------------------------------------------------------------------


def test_a_number_that_was_given_anew_does_not_lead_to_another_pod(world):
    """1. The links are read. 2. A pod ends, another gets its namespace's number. 3. Its namespace is entered."""
    gone, other = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, gone, ADDRESS)
    world.wire_as_original(PodRef("default", "web-1"), other, "10.0.1.78")

    def surveyed() -> tuple[HostVeth, HostVeth]:
        with contextlib.closing(NetlinkSocket()) as host, open(world.node) as home:
            found = host.dump(messages.RTM_GETLINK, messages.all_links())
            links = {messages.parse_link(each).ifname: each for each in found}
            mine, theirs = (links[name] for name in ("eni0d7763386da", _name_of(links)))
            number = struct.pack("=i", messages.parse_peer_netns(theirs))
            attribute = struct.pack("=HH", 8, 37)
            at = mine.index(attribute + struct.pack("=i", messages.parse_peer_netns(mine))) + 4
            search = Search(host, home.fileno())
            search.want(mine[:at] + number + mine[at + 4 :])
            search.want(theirs)
            search.run([other], NOWHERE)
            veths = [host_veth(messages.parse_link(each), (), has_peer=True) for each in (mine, theirs)]
            first, second = (search.completed(veth) for veth in veths)
            return first, second

    first, second = in_netns(world.node, surveyed)
    assert (first.netns, first.inside) == ("", ())
    assert (second.netns, second.inside) == (other, ("10.0.1.78",))


def test_an_interface_that_moves_away_meanwhile_is_not_found(world, tmp_path):
    """1. The links are read. 2. The pod moves its interface elsewhere. 3. Its namespace is entered."""
    path, nested = world.add_netns(), world.add_netns()
    world.wire_as_original(POD, path, ADDRESS)
    (tmp_path / "a-file").touch()

    def surveyed() -> tuple[HostVeth, tuple[str, ...]]:
        with contextlib.closing(NetlinkSocket()) as host, open(world.node) as home:
            found = host.get(messages.RTM_GETLINK, messages.one_link(ifname="eni0d7763386da"))
            search = Search(host, home.fileno())
            search.want(found)
            sh(path, f"ip link set eth0 netns {nested}")
            search.run([path], Places(directories=(str(tmp_path),), proc=""))
            veth = search.completed(host_veth(messages.parse_link(found), (), has_peer=True))
            return veth, search.unreadable()

    veth, unreadable = in_netns(world.node, surveyed)
    assert (veth.netns, veth.netns_inode, veth.pod_ifname) == ("", 0, "")
    assert unreadable == (f"{tmp_path}/a-file is not a network namespace",)


def _name_of(links: dict[str, bytes]) -> str:
    return next(name for name in links if name.startswith("eni") and name != "eni0d7763386da")


async def test_a_node_that_cannot_be_read_is_no_empty_node(world, monkeypatch):
    def refuse(self: NetlinkSocket, kind: int, body: bytes) -> list[bytes]:
        raise NetlinkError(1, "Operation not permitted")

    async with surveyor(world, NOWHERE) as kernel:
        monkeypatch.setattr(NetlinkSocket, "dump", refuse)
        with pytest.raises(PermanentError) as caught:
            await kernel.survey("eni", [])
    assert caught.value.reason == Reason.KERNEL_REFUSED
    assert caught.value.detail == "survey: Operation not permitted [EPERM]"


async def test_a_survey_leaves_its_thread_at_home_and_no_descriptor(world):
    paths = [world.add_netns() for _ in range(3)]
    for number, path in enumerate(paths):
        world.wire_as_original(PodRef("default", f"web-{number}"), path, f"10.0.1.{30 + number}")
    async with surveyor(world, Places(directories=(str(world.directory),), proc="/proc")) as kernel:
        await kernel.survey("eni", paths)
        before = len(os.listdir("/proc/self/fd"))
        first = await kernel.survey("eni", [*paths, "/nowhere", "/dev/zero"])
        assert await kernel.survey("eni", paths) == first
        assert len(os.listdir("/proc/self/fd")) == before
        links = {link.ifname for link in (await kernel.observe()).links}
        assert {veth.ifname for veth in first.veths} <= links
