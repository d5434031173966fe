"""Real packets through what the kernel adapter makes: two ENIs, pods on both, a VPC router and an internet.

The far side filters strictly by source, as the VPC does: a packet that leaves by the wrong ENI, or with an
address that this ENI does not have, is dropped there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from tests.contract.kernel_worlds import RealWorld, sh
from tests.unit.datapath.builders import SETTINGS, VPC, eni, lease
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.kernel_netns import setns
from vpccni.datapath.desired import desired
from vpccni.datapath.difference import difference, wire
from vpccni.datapath.objects import DatapathSettings, LeaseWiring

pytestmark = pytest.mark.netns

T = TypeVar("T")
INTERNET = "8.8.8.8"
IN_VPC = "10.0.9.9"
SERVICE = "172.20.0.1"
WAIT_S = 3.0
SILENCE_S = 0.3


def inside(path: str, call: Callable[[], T]) -> T:
    """Call on a thread in a namespace."""

    def run() -> T:
        with open(path) as netns:
            setns(netns.fileno())
        return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def udp(path: str, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    """A UDP socket in a namespace."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(WAIT_S)
        return made

    return inside(path, make)


def ask(client: socket.socket, server: socket.socket, to: tuple[str, int]) -> str:
    """Send from one to the other and back; the address that the server saw."""
    client.sendto(b"ping", to)
    _, seen = server.recvfrom(100)
    server.sendto(b"pong", seen)
    assert client.recv(100) == b"pong"
    return str(seen[0])


class Node:
    """A node with a primary and a secondary ENI, and one pod on each."""

    def __init__(self, world: RealWorld, kernel: NetlinkKernel) -> None:
        self.world = world
        self.kernel = kernel
        self.on_primary = lease(1, device=0, netns=world.add_netns())
        self.on_secondary = lease(2, device=1, netns=world.add_netns())

    @property
    def leases(self) -> list[LeaseWiring]:
        return [self.on_primary, self.on_secondary]

    async def set_up(self, settings: DatapathSettings = SETTINGS) -> None:
        node, vpc = self.world.node, self.world.outside
        enis = [eni(0), eni(1)]
        for each in enis:
            self.world.plug(each.mac, f"eth{each.device}")
        far = sh(vpc, "ip -br link | grep -o '^far[0-9]*' | sort").split()
        sh(node, "ip addr add 10.0.0.10/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.1")
        script = [f"ip addr add {address}/32 dev lo" for address in (INTERNET, IN_VPC)] + [
            "ip link set lo up"
        ]
        for device, name in enumerate(far):
            script += [
                f"ip link set {name} mtu 9001",
                f"ip addr add 10.0.{device}.1/24 dev {name}",
                f"echo 1 > /proc/sys/net/ipv4/conf/{name}/rp_filter",
                # The VPC knows which ENI has a pod's address; nobody asks by ARP.
                f"ip route add {address_of(self.leases[device])}/32 via 10.0.{device}.10",
            ]
        sh(vpc, "\n".join([*script, "echo 1 > /proc/sys/net/ipv4/ip_forward"]))
        for one in self.leases:
            await self.kernel.apply(wire(one, enis, settings))
        await self.repair(settings)

    async def repair(self, settings: DatapathSettings = SETTINGS) -> None:
        wanted = desired(self.leases, [eni(0), eni(1)], settings, VPC)
        await self.kernel.apply(difference(wanted, await self.kernel.observe()))
        assert difference(wanted, await self.kernel.observe()).is_empty


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    world = RealWorld()
    try:
        yield Node(world, await world.open())
    finally:
        await world.close()


def address_of(one: LeaseWiring) -> str:
    return one.bindings[0].address


@pytest.mark.parametrize("device", [0, 1])
async def test_a_pod_reaches_the_vpc_with_its_own_address(node, device):
    await node.set_up()
    pod = node.leases[device]
    with udp(pod.netns) as client, udp(node.world.outside, IN_VPC, 5000) as server:
        assert ask(client, server, (IN_VPC, 5000)) == address_of(pod)


@pytest.mark.parametrize("device", [0, 1])
async def test_a_pod_reaches_the_internet_with_the_primarys_address(node, device):
    await node.set_up()
    with udp(node.leases[device].netns) as client, udp(node.world.outside, INTERNET, 5000) as server:
        assert ask(client, server, (INTERNET, 5000)) == eni(0).primary


async def test_pods_of_one_node_and_the_node_itself_reach_each_other(node):
    await node.set_up()
    first, second = node.leases
    with udp(second.netns, address_of(second), 5000) as server:
        with udp(first.netns) as client:
            assert ask(client, server, (address_of(second), 5000)) == address_of(first)
        with udp(node.world.node) as probe:
            ask(probe, server, (address_of(second), 5000))


async def test_the_vpc_reaches_a_pod_and_is_answered_by_the_same_eni(node):
    await node.set_up()
    pod = node.on_secondary
    with udp(node.world.outside, IN_VPC, 0) as client, udp(pod.netns, address_of(pod), 5000) as server:
        assert ask(client, server, (address_of(pod), 5000)) == IN_VPC


async def test_a_node_port_answers_by_the_primary_eni(node):
    """1. A client outside the VPC calls the node. 2. kube-proxy sends it to a pod of the secondary ENI."""
    await node.set_up()
    pod = node.on_secondary
    dnat(node.world.node, f"ip daddr 10.0.0.10 udp dport 30000 dnat to {address_of(pod)}:5000")
    with udp(node.world.outside, INTERNET, 0) as client, udp(pod.netns, address_of(pod), 5000) as server:
        assert ask(client, server, ("10.0.0.10", 30000)) == INTERNET


@pytest.mark.parametrize("to_vpc", [True, False])
async def test_a_service_is_classified_by_where_it_leads(node, to_vpc):
    """A service address is in no VPC CIDR: what counts is the address after translation."""
    await node.set_up()
    pod = node.on_secondary
    endpoint = IN_VPC if to_vpc else INTERNET
    dnat(node.world.node, f"ip daddr {SERVICE} udp dport 80 dnat to {endpoint}:5000")
    with udp(pod.netns) as client, udp(node.world.outside, endpoint, 5000) as server:
        assert ask(client, server, (SERVICE, 80)) == (address_of(pod) if to_vpc else eni(0).primary)


async def test_a_pod_cannot_send_with_another_address(node):
    await node.set_up()
    pod = node.on_secondary
    sh(pod.netns, f"ip addr add {address_of(node.on_primary)}/32 dev eth0")
    sh(pod.netns, "ip addr add 10.0.1.77/32 dev eth0")
    with udp(node.world.outside, IN_VPC, 5000) as server:
        server.settimeout(SILENCE_S)
        for forged in (address_of(node.on_primary), "10.0.1.77"):
            with udp(pod.netns, forged) as client:
                client.sendto(b"forged", (IN_VPC, 5000))
        with pytest.raises(TimeoutError):
            server.recv(100)


async def test_with_external_snat_the_pods_own_address_leaves(node):
    settings = DatapathSettings(external_snat=True)
    await node.set_up(settings)
    pod = node.on_secondary
    with udp(pod.netns) as client, udp(node.world.outside, INTERNET, 5000) as server:
        assert ask(client, server, (INTERNET, 5000)) == address_of(pod)


async def test_other_programs_mark_bits_are_kept(node):
    await node.set_up()
    sh(
        node.world.node,
        """nft -f - <<'EOT'
table ip other {
  chain early { type filter hook prerouting priority -140; iifname "eni*" meta mark set 0x01000000; }
  chain late {
    type filter hook postrouting priority 50
    meta mark & 0x01000080 == 0x01000080 counter comment "both"
  }
}
EOT""",
    )
    with udp(node.on_secondary.netns) as client, udp(node.world.outside, INTERNET, 5000) as server:
        ask(client, server, (INTERNET, 5000))
    assert "packets 1 " in sh(node.world.node, "nft list chain ip other late")


async def test_a_repair_does_not_interrupt_a_conversation(node):
    await node.set_up()
    pod = node.on_secondary
    with udp(pod.netns, "0.0.0.0", 4000) as client, udp(node.world.outside, INTERNET, 5000) as server:
        ports = set()
        for damage in (
            "true",
            "ip rule del pref 512",
            "nft flush chain ip vpccni classify",
            "ip route flush table 51200",
            "ip link set eth1 down",
        ):
            sh(node.world.node, damage)
            await node.repair()
            client.sendto(b"ping", (INTERNET, 5000))
            _, seen = await asyncio.to_thread(server.recvfrom, 100)
            server.sendto(b"pong", seen)
            assert client.recv(100) == b"pong"
            ports.add(seen)
    assert len(ports) == 1, "the translation of a living conversation changed"


def dnat(path: str, rule: str) -> None:
    """What a kube-proxy in nftables mode does."""
    chain = "type nat hook prerouting priority -100; policy accept;"
    sh(path, f"nft -f - <<'EOT'\ntable ip proxy {{ chain services {{ {chain} {rule}\n }}\n}}\nEOT")
