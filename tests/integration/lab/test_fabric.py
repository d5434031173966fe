"""The fabric behaves as a VPC does, on the real kernel."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from tests.netns import shell
from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS, Fabric
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY, Namespace
from vpccni.lab.fabric.ping import PingPair
from vpccni.lab.fabric.plugs import Drops, EniPlug, FabricError
from vpccni.lab.fabric.router import ROUTER_MAC

pytestmark = pytest.mark.netns

QUIET_S = 0.2  # how long a ping that must fail is waited for: one that works takes a millisecond

A0 = EniPlug(
    eni_id="eni-a0", mac="02:00:00:00:0a:00", device_index=0, subnet_cidr="10.0.1.0/24", primary="10.0.1.10",
    addresses=("10.0.1.16/28",),
)  # fmt: skip
A1 = EniPlug(
    eni_id="eni-a1", mac="02:00:00:00:0a:01", device_index=1, subnet_cidr="10.0.1.0/24", primary="10.0.1.11",
    addresses=tuple(f"10.0.1.{n}" for n in range(32, 48)),
)  # fmt: skip
B0 = EniPlug(
    eni_id="eni-b0", mac="02:00:00:00:0b:00", device_index=0, subnet_cidr="10.0.2.0/24", primary="10.0.2.10",
    addresses=("10.0.2.16/28",),
)  # fmt: skip
B1 = EniPlug(
    eni_id="eni-b1", mac="02:00:00:00:0b:01", device_index=1, subnet_cidr="10.0.2.0/24", primary="10.0.2.11",
    addresses=tuple(f"10.0.2.{n}" for n in range(32, 48)),
)  # fmt: skip


def c0(like: EniPlug, primary: str) -> EniPlug:
    """The first ENI of a third node, in the subnet of another ENI."""
    return msgspec.structs.replace(
        like, eni_id="eni-c0", mac="02:00:00:00:0c:00", primary=primary, addresses=(), public_ip=None
    )


@pytest.fixture
async def nodes(fabric):
    """Two nodes in two subnets, each with its primary ENI plugged."""
    a, b = await fabric.add_node("a"), await fabric.add_node("b")
    await fabric.plug(a, A0)
    await fabric.plug(b, B0)
    return a, b


def set_up_second_eni(node: Namespace, eni: EniPlug) -> None:
    """As an agent does for every ENI but the first: table 2, and nothing in main."""
    shell(
        node,
        f"""
        ip link set ens6 up
        ip addr add {eni.primary}/24 dev ens6
        ip route replace {eni.gateway} dev ens6 scope link table 2
        ip route replace default via {eni.gateway} dev ens6 table 2
        ip route del {eni.subnet_cidr} dev ens6
        ip rule add pref 32765 from {eni.primary} lookup 2
        """,
    )


async def wire_pod(
    fabric: Fabric, node: Namespace, name: str, address: str, *, table: int = 254
) -> Namespace:
    """Wire a pod by hand, as an agent does."""
    pod = await fabric.add_namespace(name)
    rule = f"ip rule add pref 1536 from {address} lookup {table}" if table != 254 else ""
    shell(
        node,
        f"""
        ip link add name h{name} type veth peer name eth0 netns {pod.name}
        ip link set h{name} up mtu 9001
        ip -n {pod.name} link set lo up
        ip -n {pod.name} link set eth0 up mtu 9001
        ip -n {pod.name} route replace 169.254.1.1 dev eth0 scope link
        ip -n {pod.name} route add default via 169.254.1.1 dev eth0
        ip -n {pod.name} addr add {address}/32 dev eth0
        mac=$(ip -o link show h{name} | sed 's/.*link.ether //; s/ .*//')
        ip -n {pod.name} neigh replace 169.254.1.1 dev eth0 nud permanent lladdr $mac
        ip route replace {address} dev h{name} scope link
        ip rule add pref 512 to {address} lookup main
        {rule}
        """,
    )
    return pod


async def reaches(
    fabric: Fabric, source: Namespace, target: str, *, source_address: str | None = None
) -> bool:
    """Whether a ping is answered: on a path that works, within milliseconds."""
    (result,) = await fabric.ping_all([PingPair(source, target, source_address)], timeout_s=2.0)
    return result.ok


async def is_silent(
    fabric: Fabric, source: Namespace, target: str, *, source_address: str | None = None
) -> bool:
    (result,) = await fabric.ping_all([PingPair(source, target, source_address)], timeout_s=QUIET_S)
    return not result.ok


async def test_nodes_in_two_subnets_reach_each_other_with_full_frames(fabric, nodes):
    a, b = nodes
    results = await fabric.ping_all([PingPair(a, B0.primary), PingPair(b, A0.primary)], size=9001 - 28)
    assert [r.ok for r in results] == [True, True]
    (too_big,) = await fabric.ping_all([PingPair(a, B0.primary)], size=9001 - 27, timeout_s=QUIET_S)
    assert not too_big.ok
    assert too_big.error == "Message too long"


async def test_twenty_four_pods_on_both_enis_of_two_nodes_all_reach_each_other(fabric, nodes):
    pods: dict[str, Namespace] = {}
    for node, first, second in ((nodes[0], A0, A1), (nodes[1], B0, B1)):
        await fabric.plug(node, second)
        set_up_second_eni(node, second)
        subnet = first.subnet_cidr.removesuffix("0/24")
        for n in range(6):
            pods[f"{subnet}{16 + n}"] = await wire_pod(
                fabric, node, f"{node.name[-1]}{n}", f"{subnet}{16 + n}"
            )
            there = f"{subnet}{32 + n}"
            pods[there] = await wire_pod(fabric, node, f"{node.name[-1]}s{n}", there, table=2)
    pairs = [PingPair(source, target) for source in pods.values() for target in pods]
    results = await fabric.ping_all(pairs, timeout_s=3.0)
    assert [(r.pair.source.name, r.pair.target) for r in results if not r.ok] == []
    assert len(results) == 24 * 24
    for eni in (A0, A1, B0, B1):
        assert await fabric.drops(eni.eni_id) == Drops()


async def test_a_source_that_the_eni_does_not_own_is_dropped_and_counted(fabric, nodes):
    a, _ = nodes
    shell(a, "ip addr add 10.0.1.77/32 dev lo")
    assert await is_silent(fabric, a, B0.primary, source_address="10.0.1.77")
    drops = await fabric.drops("eni-a0")
    assert drops.spoofed >= 1
    assert (drops.unowned, drops.unmapped) == (0, 0)
    assert await fabric.drops("eni-b0") == Drops()


async def test_a_packet_that_leaves_by_the_wrong_eni_is_dropped(fabric, nodes):
    """The pod's address is on the second ENI; without a from-rule its packets go out of the first."""
    a, _ = nodes
    await fabric.plug(a, A1)
    set_up_second_eni(a, A1)
    pod = await wire_pod(fabric, a, "pod", "10.0.1.40")
    assert await is_silent(fabric, pod, B0.primary)
    assert (await fabric.drops("eni-a0")).spoofed >= 1
    shell(a, "ip rule add pref 1536 from 10.0.1.40 lookup 2")
    assert await reaches(fabric, pod, B0.primary)


async def test_only_a_mapped_source_reaches_the_internet(fabric, nodes):
    a, _ = nodes
    pod = await wire_pod(fabric, a, "pod", "10.0.1.20")
    assert await reaches(fabric, a, INTERNET_ADDRESS)
    assert await is_silent(fabric, pod, INTERNET_ADDRESS)
    assert (await fabric.drops("eni-a0")).unmapped >= 1
    shell(a, "nft 'add table ip t; add chain ip t post { type nat hook postrouting priority srcnat; };"
             f" add rule ip t post oifname ens5 ip daddr != 10.0.0.0/16 snat to {A0.primary}'")  # fmt: skip
    assert await reaches(fabric, pod, INTERNET_ADDRESS)


async def test_the_internet_sees_the_public_address_and_can_open_connections_to_it(fabric, nodes):
    a, b = nodes
    await fabric.set_public(A0.primary, "203.0.113.200")
    program = (
        "import socket, sys\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)\n"
        "s.sendall(b'x' * 200000)\n"
        "n = 0\n"
        "while n < 200000: n += len(s.recv(65536)) or sys.exit('cut short')\n"
    )
    async with fabric.echo_server() as echo:
        done = await fabric.exec_in(a, [sys.executable, "-Sc", program, echo.address, str(echo.port)])
        assert done.returncode == 0, done.stderr
        assert echo.sources == ["203.0.113.200"]
    assert await reaches(fabric, fabric.internet, "203.0.113.200")
    public_of_b = await fabric.public_of(B0.primary)
    assert public_of_b is not None
    assert await reaches(fabric, fabric.internet, public_of_b)
    assert await reaches(fabric, a, public_of_b)
    await fabric.set_public(B0.primary, None)
    assert await is_silent(fabric, fabric.internet, public_of_b)
    assert await is_silent(fabric, b, INTERNET_ADDRESS)
    with pytest.raises(FabricError, match=r"203\.0\.113\.200 maps to 10\.0\.1\.10"):
        await fabric.set_public(B0.primary, "203.0.113.200")


async def test_the_internet_cannot_reach_a_private_address(fabric, nodes):
    assert await is_silent(fabric, fabric.internet, A0.primary)


async def test_an_address_that_nobody_owns_is_answered_by_arp_and_by_nothing_else(fabric, nodes):
    a, _ = nodes
    assert await is_silent(fabric, a, "10.0.1.99")
    assert await is_silent(fabric, a, "10.0.9.9")
    assert (await fabric.drops("eni-a0")).unowned >= 2
    assert ROUTER_MAC in shell(a, "ip neigh show 10.0.1.99 dev ens5")


async def test_neighbours_of_one_subnet_and_the_gateway_are_answered_by_the_router(fabric, nodes):
    a, _ = nodes
    c = await fabric.add_node("c")
    await fabric.plug(c, c0(A0, "10.0.1.12"))
    assert await reaches(fabric, a, "10.0.1.12")
    assert await reaches(fabric, a, B0.primary)
    for neighbour in ("10.0.1.12", "10.0.1.1"):
        assert ROUTER_MAC in shell(a, f"ip neigh show {neighbour} dev ens5")


async def test_further_enis_appear_down_and_bare_with_their_mac_and_take_a_late_name(fabric, nodes):
    a, _ = nodes
    assert await fabric.plug(a, A1) == "ens6"
    shown = shell(a, "ip -o link show ens6; ip -o -4 addr show ens6")
    assert A1.mac in shown
    assert "state DOWN" in shown
    assert "mtu 9001" in shown
    assert "inet" not in shown
    await fabric.rename("eni-a1", "eth1")
    assert A1.mac in shell(a, "ip -o link show eth1")
    assert await fabric.public_of(A1.primary) is None


async def test_an_unplugged_eni_is_gone_and_can_be_plugged_into_another_node(fabric, nodes):
    a, b = nodes
    await fabric.plug(a, A1)
    set_up_second_eni(a, A1)
    assert await reaches(fabric, b, A1.primary)
    await fabric.unplug("eni-a1")
    assert "ens6" not in shell(a, "ip -o link")
    assert await is_silent(fabric, b, A1.primary)
    with pytest.raises(FabricError, match="eni-a1 is not plugged"):
        await fabric.drops("eni-a1")
    await fabric.plug(b, A1, configure=True)
    assert await reaches(fabric, a, A1.primary)


async def test_a_link_that_the_node_deleted_can_still_be_unplugged(fabric, nodes):
    a, _ = nodes
    await fabric.plug(a, A1)
    shell(a, "ip link del ens6")
    await fabric.unplug("eni-a1")
    await fabric.plug(a, A1)


async def test_a_refused_plug_changes_nothing(fabric, nodes):
    a, _ = nodes
    ports = shell(fabric.vpc, "ip -o link")
    with pytest.raises(FabricError, match="ens5"):
        await fabric.plug(a, A1, ifname="ens5")
    with pytest.raises(FabricError, match="already"):
        await fabric.plug(a, A0, ifname="ens9")
    with pytest.raises(ValueError, match="host bits"):
        await fabric.plug(a, msgspec.structs.replace(A1, addresses=("10.0.1.33/28",)))
    with pytest.raises(FabricError, match="maps to"):
        await fabric.plug(a, msgspec.structs.replace(A1, public_ip=await fabric.public_of(A0.primary)))
    assert shell(fabric.vpc, "ip -o link") == ports
    assert "ens6" not in shell(a, "ip -o link")
    assert await fabric.plug(a, A1) == "ens6"


async def test_an_address_that_moves_to_another_eni_moves_at_once(fabric, nodes):
    a, b = nodes
    for node in nodes:
        shell(node, "ip addr add 10.0.3.3/32 dev lo")
    c = await fabric.add_node("c")
    await fabric.plug(
        c,
        c0(B0, "10.0.2.12"),
    )
    assert await is_silent(fabric, c, "10.0.3.3")
    await fabric.set_addresses("eni-a0", ["10.0.3.3"])
    assert await reaches(fabric, c, "10.0.3.3")
    assert await reaches(fabric, a, "10.0.2.12", source_address="10.0.3.3")
    assert await is_silent(fabric, b, "10.0.2.12", source_address="10.0.3.3")
    await fabric.set_addresses("eni-b0", ["10.0.3.3/32"])
    assert await fabric.addresses("eni-a0") == {"10.0.1.10/32"}
    assert await is_silent(fabric, a, "10.0.2.12", source_address="10.0.3.3")
    assert await reaches(fabric, b, "10.0.2.12", source_address="10.0.3.3")
    await fabric.set_addresses("eni-b0", [])
    assert await is_silent(fabric, c, "10.0.3.3")
    assert await reaches(fabric, c, B0.primary)


async def test_only_the_difference_is_written_when_one_of_many_addresses_changes(fabric, nodes):
    many = [f"10.0.4.{n}" for n in range(1, 201)]
    await fabric.set_addresses("eni-a0", many)
    monitor = await fabric.spawn_in(fabric.vpc, ["ip", "-o", "monitor", "route"])
    assert monitor.stdout is not None
    line = b""
    while not line:  # the monitor hears nothing until it listens: change something until it does
        await fabric.set_addresses("eni-b0", ["10.0.5.1"])
        await fabric.set_addresses("eni-b0", [])
        try:
            async with asyncio.timeout(0.05):
                line = await monitor.stdout.readline()
        except TimeoutError:
            continue
    await fabric.set_addresses("eni-a0", [*many[1:], "10.0.4.201"])
    await fabric.set_addresses("eni-b0", ["10.0.5.2"])
    seen = [line]
    while b"10.0.5.2" not in seen[-1]:
        seen.append(await monitor.stdout.readline())
    written = [heard.split()[:2] for heard in seen if b"10.0.4." in heard]
    assert written == [[b"Deleted", b"10.0.4.1"], [b"10.0.4.201", b"via"]]


async def test_a_server_of_this_process_answers_inside_one_node_alone(fabric, nodes):
    a, b = nodes

    async def which(_: web.Request) -> web.Response:
        return web.Response(text="i-a")

    app = web.Application()
    app.router.add_get("/", which)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.SockSite(runner, fabric.listen_in(a, "169.254.169.254", 80)).start()
    program = (
        "import urllib.request as u; print(u.urlopen('http://169.254.169.254/', timeout=3).read().decode())"
    )
    try:
        asked_in_a = await fabric.exec_in(a, [sys.executable, "-c", program])
        asked_in_b = await fabric.exec_in(b, [sys.executable, "-c", program])
    finally:
        await runner.cleanup()
    assert asked_in_a.stdout == b"i-a\n"
    assert b"refused" in asked_in_b.stderr


async def test_a_command_in_a_node_has_its_input_output_status_and_limit(fabric, nodes):
    a, _ = nodes
    done = await fabric.exec_in(
        a, ["sh", "-c", "cat; ip -o link | grep -c ens5; echo no >&2; exit 7"], stdin=b"in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\n1\n", b"no\n")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await fabric.exec_in(a, ["no-such-program"])
    with pytest.raises(TimeoutError, match=r"sleep in test-a took longer than 0\.1 s"):
        await fabric.exec_in(a, ["sleep", "60"], timeout_s=0.1)
    assert namespaces.process_ids(a) == frozenset()


async def test_a_daemon_keeps_its_pid_writes_to_its_file_and_stops(fabric, nodes, tmp_path):
    a, _ = nodes
    log = tmp_path / "daemon.log"
    daemon = await fabric.spawn_in(a, ["sh", "-c", "echo $$; exec sleep 60"], output=log)
    async with asyncio.timeout(5):
        while not log.read_text():
            await asyncio.sleep(0.01)
    assert int(log.read_text()) == daemon.pid
    assert namespaces.process_ids(a) == {daemon.pid}
    assert await daemon.stop() == -15
    assert await daemon.kill() == -15


async def test_a_thread_can_work_inside_a_node(fabric, nodes):
    a, _ = nodes
    assert [name for _, name in await fabric.run_in_thread(a, socket.if_nameindex)] == ["lo", "ens5"]
    assert "ens5" not in [name for _, name in socket.if_nameindex()]


async def test_destroying_a_fabric_leaves_nothing_and_spares_the_other_one():
    before = sorted(os.listdir(NETNS_DIRECTORY)), socket.if_nameindex(), set(os.listdir("/proc/self/fd"))
    async with Fabric(name="other") as other:
        node = await other.add_node("a")
        async with Fabric(name="doomed") as doomed:
            a = await doomed.add_node("a")
            await doomed.plug(a, A0)
            await other.plug(node, A0)
            await doomed.spawn_in(a, ["sleep", "60"])
            await doomed.exec_in(a, ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 </dev/null &"])
            async with asyncio.timeout(5):
                while len(namespaces.process_ids(a)) < 2:
                    await asyncio.sleep(0.01)
        await doomed.destroy()
        assert [entry for entry in _commands() if "sleep" in entry] == []
        assert sorted(os.listdir(NETNS_DIRECTORY)) == ["other-a", "other-internet", "other-vpc"]
        assert await reaches(other, node, INTERNET_ADDRESS)
    assert (
        sorted(os.listdir(NETNS_DIRECTORY)),
        socket.if_nameindex(),
        set(os.listdir("/proc/self/fd")),
    ) == before
    with pytest.raises(RuntimeError, match="not open"):
        await other.add_node("b")


async def test_a_removed_node_takes_its_enis_and_its_name_with_it(fabric, nodes):
    a, b = nodes
    await fabric.remove(a)
    assert await is_silent(fabric, b, A0.primary)
    again = await fabric.add_node("a")
    await fabric.plug(again, A0)
    assert await reaches(fabric, b, A0.primary)


def _commands() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_text())
        except OSError:
            continue
    return found


def test_bare_namespaces_come_and_go_with_a_test(netns_world):
    one, two = netns_world.add("one"), netns_world.add("two", loopback=False)
    assert "UP" in netns_world.sh(one, "ip -o link show lo")
    assert "state DOWN" in netns_world.sh(two, "ip -o link show lo")
    assert netns_world.run_in(two, socket.if_nameindex) == [(1, "lo")]
    with pytest.raises(FileExistsError):
        netns_world.add("one")
    netns_world.close()
    assert not Path(one.path).exists()
