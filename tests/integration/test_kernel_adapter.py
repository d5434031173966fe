"""What only the real kernel adapter can get wrong: paths, threads, descriptors, overruns, missing programs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.kernel_worlds import RealWorld, sh
from tests.integration.test_kernel_datapath import inside
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.adapters import kernel_links, kernel_node, kernel_paths, netlink
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, probe, unwire, wire
from vpccni.datapath.objects import LinkChange, PathChange, Rule
from vpccni.errors import PermanentError, Reason
from vpccni.model import Cidr

pytestmark = pytest.mark.netns


@pytest.fixture
async def world() -> AsyncIterator[RealWorld]:
    made = RealWorld()
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("what", ["regular file", "fifo", "directory", "device", "other namespace", "own"])
async def test_a_path_that_is_no_sandbox_is_refused_without_waiting(world, tmp_path, what):
    path = tmp_path / "it"
    if what == "regular file":
        path.touch()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    target = {"device": "/dev/zero", "other namespace": "/proc/self/ns/uts", "own": world.node}.get(
        what, path
    )
    kernel = await world.open()
    one = lease(1, netns=str(target))
    async with asyncio.timeout(5):
        with pytest.raises(PermanentError) as caught:
            await kernel.apply(wire(one, [], SETTINGS))
        assert caught.value.reason == Reason.KERNEL_REFUSED
        assert caught.value.detail.startswith("open_netns: ")
        assert (await kernel.apply(probe(one, SETTINGS))).probed[one.lease].netns_inode == 0


async def test_a_node_namespace_that_is_not_there_is_told_at_once():
    with pytest.raises(PermanentError) as caught:
        await NetlinkKernel.open("/nowhere")
    assert caught.value.reason == Reason.KERNEL_REFUSED


async def test_closing_leaves_no_thread_and_no_descriptor(world):
    before = descriptors()
    kernel = await NetlinkKernel.open(world.node)
    leases = [lease(number, netns=world.add_netns()) for number in range(4)]
    async with asyncio.TaskGroup() as group:
        for one in leases:
            group.create_task(kernel.apply(wire(one, [], SETTINGS)))
    changes: Any = kernel.link_changes()
    async for _ in changes:
        break
    await changes.aclose()
    paths: Any = kernel.path_changes()
    hearing = asyncio.get_running_loop().create_task(anext(paths))
    for priority in range(3000, 4000):  # Until it listens, and then hears of what another one does.
        if hearing.done():
            break
        sh(world.node, f"ip rule add pref {priority} from 192.0.2.1 lookup main")
        await asyncio.sleep(0.01)
    await hearing
    await paths.aclose()
    await kernel.observe()
    await kernel.close()
    await kernel.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("kernel-")] == []
    assert descriptors() - len(leases) == before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_worker_threads_come_home_from_every_sandbox(world):
    """The agent's own thread, and each worker after a failure inside a sandbox, stay where they belong."""
    failing = True

    def fail(step: str) -> None:
        if failing and step == "pod_neighbour":
            raise OSError(5, "Input/output error")

    before = os.stat("/proc/thread-self/ns/net").st_ino
    kernel = await world.open(fail)
    one = lease(1, netns=world.add_netns())
    for _ in range(8):
        with pytest.raises(PermanentError):
            await kernel.apply(wire(one, [], SETTINGS))
    failing = False
    await kernel.apply(wire(one, [], SETTINGS))
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    names = {link.ifname for link in (await kernel.observe()).links}
    assert len(names) == 2, "the node has its loopback and the veth"


async def test_no_dump_is_made_on_the_way_of_an_add_or_a_del(world, monkeypatch):
    kernel = await world.open()
    one = lease(1, netns=world.add_netns())
    await kernel.observe()

    def dump(*_: object) -> None:
        raise AssertionError("a dump")

    monkeypatch.setattr(netlink.NetlinkSocket, "dump", dump)
    await kernel.apply(wire(one, [], SETTINGS))
    await kernel.apply(unwire(one))


async def test_lost_notifications_are_made_good_by_reading_again(world):
    """1. The socket overruns while 60 links come and one goes. 2. All of that is told nevertheless."""
    world.plug("02:00:00:00:ee:01", "early0")
    kernel = await world.open()
    listener = inside(world.node, kernel_links.subscribe)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    changes = kernel_links.changes(listener, kernel._links)
    known: dict[str, LinkChange] = {}

    async def until(done) -> None:
        async with asyncio.timeout(10):
            async for change in changes:
                known[change.link.ifname] = change
                if done():
                    return

    await until(lambda: "early0" in known)
    script = [f"link add late{number} type veth peer name back{number}" for number in range(30)]
    sh(world.node, "ip -batch - <<'EOT'\n" + "\n".join([*script, "link del early0"]) + "\nEOT")
    wanted = {f"{end}{number}" for end in ("late", "back") for number in range(30)}
    await until(lambda: wanted <= known.keys() and known["early0"].kind == "removed")
    await changes.aclose()


async def test_a_node_that_may_not_route_says_so_and_goes_on(world, monkeypatch, tmp_path):
    kernel = await world.open()
    monkeypatch.setattr(kernel_node, "IP_FORWARD", Path("/proc/sys/net/ipv4/not_there"))
    change = difference(desired([], [], SETTINGS, ()), await kernel.observe())
    assert not change.ip_forward, "what cannot be read is not changed"
    monkeypatch.setattr(kernel_node, "IP_FORWARD", tmp_path)
    (note,) = (await kernel.apply(type(change)(ip_forward=True))).notes
    assert "ip_forward" in note


async def test_a_missing_nft_names_the_package_and_spares_the_rest(world, monkeypatch):
    kernel = await world.open()
    world.plug(eni(0).mac, "eth0")
    monkeypatch.setenv("PATH", "/nonexistent")
    wanted = desired([], [eni(0)], SETTINGS, VPC)
    with pytest.raises(PermanentError) as caught:
        await kernel.apply(difference(wanted, await kernel.observe()))
    assert "Debian package nftables" in caught.value.detail
    left = difference(wanted, await kernel.observe())
    assert left.nft is not None
    assert left.rules_add == ()


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush chain ip vpccni source_nat",
        "nft flush set ip vpccni direct",
        "nft add rule ip vpccni classify drop",
        "nft delete table ip vpccni",
        "nft flush ruleset",
    ],
)
async def test_a_tampered_table_is_seen_and_mended(world, damage):
    kernel = await world.open()
    world.plug(eni(0).mac, "eth0")
    wanted = desired([], [eni(0)], SETTINGS, VPC)
    await kernel.apply(difference(wanted, await kernel.observe()))
    whole = sh(world.node, "nft list ruleset")
    sh(world.node, damage)
    assert difference(wanted, await kernel.observe()).nft is not None
    await kernel.apply(difference(wanted, await kernel.observe()))
    assert sh(world.node, "nft list ruleset") == whole


async def test_other_peoples_tables_survive_a_reload(world):
    kernel = await world.open()
    world.plug(eni(0).mac, "eth0")
    sh(world.node, "nft add table ip other; nft add chain ip other theirs")
    wanted = desired([], [eni(0)], SETTINGS, VPC)
    await kernel.apply(difference(wanted, await kernel.observe()))
    assert "chain theirs" in sh(world.node, "nft list table ip other")


async def test_the_loop_goes_on_while_the_kernel_works(world):
    """A veth's deletion takes the kernel 10 ms and more; the loop must not notice."""
    kernel = await world.open()
    leases = [lease(number, netns=world.add_netns()) for number in range(5)]
    for one in leases:
        await kernel.apply(wire(one, [], SETTINGS))
    turns = 0
    async with asyncio.TaskGroup() as group:
        stale = difference(desired([], [], SETTINGS, (), ended=leases), await kernel.observe())
        assert len(stale.veths_delete) == 5
        task = group.create_task(kernel.apply(stale))
        while not task.done():
            await asyncio.sleep(0.0005)
            turns += 1
    assert turns >= 2


async def test_lost_changes_of_paths_are_told_as_one_that_may_have_been_anything(world):
    """1. The socket overruns while 400 rules are made. 2. One change tells. 3. What comes later is told again."""
    listener = inside(world.node, kernel_paths.subscribe)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    changes = kernel_paths.changes(listener)
    script = [
        f"rule add pref 512 to 10.9.{number // 200}.{number % 200} lookup main" for number in range(400)
    ]
    sh(world.node, "ip -batch - <<'EOT'\n" + "\n".join(script) + "\nEOT")
    told: list[PathChange] = []
    async with asyncio.timeout(10):
        async for change in changes:
            told.append(change)
            if change == PathChange():
                break
        sh(world.node, "ip rule del pref 512 to 10.9.0.0 lookup main")
        last = PathChange(is_removed=True, rule=Rule(priority=512, table=254, dst=Cidr("10.9.0.0/32")))
        async for change in changes:
            if change == last:
                break
    await changes.aclose()
    assert len(told) < 400


async def test_routes_that_cannot_be_a_pods_are_not_told(world):
    """Whoever speaks BGP on the node changes thousands of them."""
    world.plug(eni(0).mac, "eth0")
    sh(world.node, "ip addr add 10.0.0.10/24 dev eth0; ip link set eth0 up")
    changes = kernel_paths.changes(inside(world.node, kernel_paths.subscribe))
    script = """
        ip route add 100.64.1.0/24 dev eth0
        ip route add 100.64.1.1/32 dev eth0 table 30400
        ip route add 100.64.1.2/32 dev eth0 metric 7
        ip route add blackhole 100.64.1.3/32
        ip route add 100.64.1.4/32 dev eth0
        ip route add 100.64.1.5/32 dev eth0 table 51200
    """
    sh(world.node, script)
    told: list[tuple[int, str]] = []
    async with asyncio.timeout(10):
        async for change in changes:
            assert change.route is not None
            told.append((change.route.table, change.route.dst))
            if change.route.table == 51200:
                break
    await changes.aclose()
    assert told == [(254, "100.64.1.4/32"), (51200, "100.64.1.5/32")]
