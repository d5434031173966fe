"""The script that plays amazon-vpc-cni-k8s leaves behind what the original's documentation says."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.netns import NetnsWorld
from tests.original import checkpoint, host, wiring
from tests.original.checkpoint import FatalCheckpointError, Row
from tests.original.host import Eni, Settings
from tests.original.node import AwayError, NoAddressError, OriginalNode

pytestmark = pytest.mark.netns

ENI_0 = Eni(
    mac="02:00:00:00:01:00",
    device=0,
    primary="10.0.0.10",
    subnet="10.0.0.0/24",
    addresses=("10.0.0.20", "10.0.0.21"),
)
ENI_1 = Eni(
    mac="02:00:00:00:01:01",
    device=1,
    primary="10.0.1.10",
    subnet="10.0.1.0/24",
    addresses=("10.0.1.20", "10.0.1.21"),
)
SETTINGS = Settings(vpc_cidrs=("10.0.0.0/16", "100.64.0.0/16"), excluded_cidrs=("192.168.0.0/24",))
VETH = "eni0d7763386da"
"""Of default/web-0."""


class Scene:
    """A node with two ENIs, and the original on it."""

    def __init__(self, world: NetnsWorld, run_directory: Path) -> None:
        self._world = world
        self.node = world.add("node")
        self._vpc = world.add("vpc")
        for number, eni in enumerate((ENI_0, ENI_1)):
            peer = f"peer name far{number} netns {self._vpc.path}"
            self.sh(f"ip link add eth{number} address {eni.mac} type veth {peer}")
            world.sh(self._vpc, f"ip link set far{number} up")
        self.sh(
            "ip address add 10.0.0.10/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.1"
        )
        self.run_directory = run_directory

    def original(self, settings: Settings = SETTINGS) -> OriginalNode:
        return OriginalNode(
            self.node.path, enis=[ENI_0, ENI_1], run_directory=self.run_directory, settings=settings
        )

    def sandbox(self, name: str) -> str:
        return self._world.add(name).path

    def sh(self, script: str) -> str:
        return self._world.sh(self.node, script)

    def rules(self) -> list[str]:
        """The rules of the node but those that every node has, as words."""
        lines = [" ".join(line.split()) for line in self.sh("ip rule list").splitlines()]
        return [line for line in lines if int(line.partition(":")[0]) not in (0, 32766, 32767)]

    def routes(self, table: str) -> list[str]:
        text = self.sh(f"ip route show table {table} 2>/dev/null || :")
        return [" ".join(line.replace(" linkdown", "").split()) for line in text.splitlines()]

    def chain(self, table: str, *, flavour: str = "nft") -> list[str]:
        """The rules of a table, as ``iptables -S`` tells them, policies left out."""
        lines = self.sh(f"iptables-{flavour} -t {table} -S").splitlines()
        return [line.strip() for line in lines if not line.startswith("-P")]


@pytest.fixture
def scene(netns_world: NetnsWorld, tmp_path: Path) -> Scene:
    return Scene(netns_world, tmp_path)


@pytest.fixture
def original(scene: Scene) -> Iterator[OriginalNode]:
    """As of today, with everything that it makes."""
    need_programs(SETTINGS)
    with scene.original().running() as made:
        yield made


@pytest.fixture
def lean(scene: Scene) -> Iterator[OriginalNode]:
    """Without iptables, which costs it most of its start."""
    with scene.original(replace(SETTINGS, iptables="")).running() as made:
        yield made


def need_programs(settings: Settings) -> None:
    lacking = host.missing_program(settings)
    if lacking:
        pytest.skip(f"{lacking} is not installed")


SNAT = [
    "-N AWS-SNAT-CHAIN-0",
    '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
    '-A AWS-SNAT-CHAIN-0 -d 192.168.0.0/24 -m comment --comment "AWS SNAT CHAIN EXCLUSION" -j RETURN',
    '-A AWS-SNAT-CHAIN-0 -d 100.64.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN',
    '-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN',
    '-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL'
    " -j SNAT --to-source 10.0.0.10 --random-fully",
]
MANGLE = [
    '-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL'
    " --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80",
    '-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark'
    " --nfmask 0x80 --ctmask 0x80",
    '-A PREROUTING -i vlan+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark'
    " --nfmask 0x80 --ctmask 0x80",
]
CONNMARK = [
    "-N AWS-CONNMARK-CHAIN-0",
    '-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0',
    '-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark'
    " --nfmask 0x80 --ctmask 0x80",
    '-A AWS-CONNMARK-CHAIN-0 -d 192.168.0.0/24 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN',
    '-A AWS-CONNMARK-CHAIN-0 -d 100.64.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN',
    '-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN',
    '-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80',
]
CONNMARK_NFT = [
    "chain snat-mark {",
    "counter ip daddr 10.0.0.0/16 return",
    "counter ip daddr 100.64.0.0/16 return",
    "counter ip daddr 192.168.0.0/24 return",
    "counter ct mark set ct mark | 0x00000080",
    "}",
    "chain nat-prerouting {",
    "type nat hook prerouting priority -90; policy accept;",
    "fib daddr type local return",
    'iifname "eni*" counter jump snat-mark',
    "counter meta mark set ct mark & 0x00000080",
    "}",
]


def nft_table(scene: Scene) -> list[str]:
    """The lines of the connmark table, without counts."""
    text = scene.sh("nft list table ip aws-cni")
    lines = [re.sub(r"counter packets \d+ bytes \d+", "counter", line.strip()) for line in text.splitlines()]
    lines = [line.replace("dstnat + 10", "-90") for line in lines if line]
    assert (lines[0], lines[-1]) == ("table ip aws-cni {", "}")
    return lines[1:-1]


def test_its_start_leaves_the_chains_of_its_documentation(scene, original):
    assert scene.chain("nat") == SNAT
    assert scene.chain("mangle") == MANGLE
    assert nft_table(scene) == CONNMARK_NFT


def test_its_start_leaves_the_rules_and_routes_of_its_documentation(scene, original):
    assert scene.rules() == [
        "1024: from all fwmark 0x80/0x80 lookup main",
        "32765: from 10.0.1.10 lookup 2",
    ]
    assert scene.routes("2") == ["default via 10.0.1.1 dev eth1", "10.0.1.1 dev eth1 scope link"]
    assert not any("10.0.1.0/24" in route for route in scene.routes("main"))
    (link,) = json.loads(scene.sh("ip -j address show dev eth1"))
    assert (link["mtu"], "UP" in link["flags"]) == (9001, True)
    assert [
        (each["local"], each["prefixlen"]) for each in link["addr_info"] if each["scope"] == "global"
    ] == [("10.0.1.10", 24)]


def test_starting_again_leaves_the_same(scene, original):
    def seen() -> tuple[Any, ...]:
        tables = [scene.chain(table) for table in ("nat", "mangle")]
        return (*tables, nft_table(scene), scene.rules(), scene.routes("2"), scene.routes("main"))

    before = seen()
    original.stop()
    original.start()
    assert seen() == before


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_an_older_one_marks_connections_with_iptables(scene, flavour):
    settings = replace(SETTINGS, iptables=flavour, connmark="iptables")
    need_programs(settings)
    older = scene.original(settings)
    if flavour == "legacy":
        refused = scene.sh("iptables-legacy -w -t nat -S >/dev/null 2>&1 || echo refused")
        if refused:
            pytest.skip("this kernel has no iptables-legacy")
    scene.sh(f"nft -f - <<'end'\n{host.nft_text(SETTINGS)}end")
    with older.running():
        assert sorted(scene.chain("nat", flavour=flavour)) == sorted(SNAT + CONNMARK)
        order = [line for line in scene.chain("nat", flavour=flavour) if "AWS-SNAT" not in line]
        assert order == CONNMARK
        assert scene.chain("mangle", flavour=flavour) == MANGLE
    assert "aws-cni" not in scene.sh("nft list tables")


def test_the_newer_one_takes_the_olders_chain_away(scene):
    need_programs(SETTINGS)
    with scene.original(replace(SETTINGS, connmark="iptables")).running():
        pass
    with scene.original().running():
        assert scene.chain("nat") == SNAT
        assert nft_table(scene) == CONNMARK_NFT


def test_with_external_snat_nothing_translates_and_node_ports_still_work(scene, original):
    original.stop()
    original.settings = replace(SETTINGS, external_snat=True)
    with original.running():
        assert scene.chain("nat") == ["-N AWS-SNAT-CHAIN-0"]
        assert scene.chain("mangle") == MANGLE
        assert "aws-cni" not in scene.sh("nft list tables")
        assert "1024: from all fwmark 0x80/0x80 lookup main" in scene.rules()
    original.settings = replace(SETTINGS, external_snat=True, node_port=False)
    with original.running():
        assert scene.chain("mangle") == []
        assert scene.rules() == ["32765: from 10.0.1.10 lookup 2"]


def test_services_outside_the_vpc_get_a_rule_and_lose_it(scene, original):
    original.stop()
    original.settings = replace(SETTINGS, external_service_cidrs=("198.51.100.0/24", "203.0.113.7/32"))
    with original.running():
        assert [rule for rule in scene.rules() if rule.startswith("1535:")] == [
            "1535: from all to 198.51.100.0/24 lookup main",
            "1535: from all to 203.0.113.7 lookup main",
        ]
    original.settings = SETTINGS
    with original.running():
        assert not any(rule.startswith("1535:") for rule in scene.rules())


# --- pods ---------------------------------------------------------------------------------------------


def test_a_pod_of_a_secondary_eni_is_wired_as_documented(scene, lean):
    sandbox = scene.sandbox("web")
    pod = lean.add("default", "web-0", netns=sandbox, container_id="c1", address="10.0.1.20")
    assert (pod.host_ifname, pod.table, pod.device) == (VETH, 2, 1)
    assert f"10.0.1.20 dev {VETH} scope link" in scene.routes("main")
    rules = scene.rules()
    assert rules[0] == "512: from all to 10.0.1.20 lookup main"
    assert rules[-2] == "1536: from 10.0.1.20 lookup 2"
    (link,) = json.loads(scene.sh(f"ip -j -d link show {VETH}"))
    assert (link["mtu"], link["linkinfo"]["info_kind"]) == (9001, "veth")
    assert "ifalias" not in link
    assert wiring.run_in(sandbox, "ip route").splitlines() == [
        "default via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope link ",
    ]
    (inside,) = json.loads(wiring.run_in(sandbox, "ip -j -4 address show dev eth0"))
    assert [(each["local"], each["prefixlen"]) for each in inside["addr_info"]] == [("10.0.1.20", 32)]
    neighbours = wiring.run_in(sandbox, "ip neighbour show nud permanent")
    assert neighbours.split() == ["169.254.1.1", "dev", "eth0", "lladdr", link["address"], "PERMANENT"]
    assert pod.result == {
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": VETH},
            {"name": "eth0", "mac": "2", "sandbox": sandbox},
            {"name": "dummy0d7763386da", "mac": "0", "sandbox": "1"},
        ],
        "ips": [{"version": "4", "interface": 1, "address": "10.0.1.20/32"}],
        "dns": {},
    }


def test_a_pod_reaches_another_of_the_node(netns_world, scene, lean):
    first, second = netns_world.add("one"), netns_world.add("two")
    lean.add("default", "one", netns=first.path, container_id="c1", address="10.0.0.20")
    lean.add("default", "two", netns=second.path, container_id="c2", address="10.0.1.20")
    scene.sh("echo 1 >/proc/sys/net/ipv4/ip_forward")

    def listen() -> socket.socket:
        return socket.create_server(("10.0.1.20", 5000))

    def connect() -> socket.socket:
        return socket.create_connection(("10.0.1.20", 5000), timeout=10)

    with netns_world.run_in(second, listen) as server, netns_world.run_in(first, connect):
        accepted, peer = server.accept()
        accepted.close()
    assert peer[0] == "10.0.0.20"


def test_a_del_takes_everything_back_but_the_veth(scene, lean):
    before = (scene.rules(), scene.routes("main"))
    lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    lean.delete("c1")
    lean.delete("c1")
    lean.delete("never")
    assert (scene.rules(), scene.routes("main")) == before
    assert VETH in scene.sh("ip link")
    assert json.loads(lean.checkpoint_path.read_text())["allocations"] == []


@pytest.mark.parametrize("until", ["create_veth", "to_rule", "done"])
def test_an_add_that_dies_at_any_step_keeps_its_address(scene, lean, until):
    pod = lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", until=until)
    assert [row["ipv4"] for row in allocations(lean)] == [pod.address] == ["10.0.0.20"]
    done = wiring.WIRING[: wiring.WIRING.index(until)]
    assert (VETH in scene.sh("ip link")) == ("create_veth" in done)
    assert ("512: from all to 10.0.0.20 lookup main" in scene.rules()) == ("to_rule" in done)
    assert (f"10.0.0.20 dev {VETH} scope link" in scene.routes("main")) == ("host_route" in done)


def test_an_add_whose_wiring_fails_gives_its_address_back(scene, lean):
    with pytest.raises(RuntimeError):
        lean.add("default", "web-0", netns="/nowhere", container_id="c1")
    assert allocations(lean) == []


def test_the_same_call_again_has_the_same_address(scene, lean):
    sandbox = scene.sandbox("web")
    first = lean.add("default", "web-0", netns=sandbox, container_id="c1")
    assert lean.add("default", "web-0", netns=sandbox, container_id="c1").address == first.address
    assert len(allocations(lean)) == 1


def test_a_full_pool_refuses(scene, lean):
    for number in range(4):
        lean.add("default", f"web-{number}", netns=scene.sandbox(f"s{number}"), container_id=f"c{number}")
    assert sorted(row["ipv4"] for row in allocations(lean)) == [
        "10.0.0.20",
        "10.0.0.21",
        "10.0.1.20",
        "10.0.1.21",
    ]
    with pytest.raises(NoAddressError):
        lean.add("default", "web-4", netns=scene.sandbox("s4"), container_id="c4")


# --- the file and the socket --------------------------------------------------------------------------


def allocations(original: OriginalNode) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(original.checkpoint_path.read_text())["allocations"]
    return found


def test_its_file_is_as_documented(scene, lean):
    assert not lean.checkpoint_path.exists()
    lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1")
    text = lean.checkpoint_path.read_text()
    assert text.count("\n") == 1
    found = json.loads(text)
    (row,) = found.pop("allocations")
    assert found == {"version": "vpc-cni-ipam/1"}
    assert row.pop("allocationTimestamp") > 10**18
    assert row == {
        "networkName": "aws-cni",
        "containerID": "c1",
        "ifName": "eth0",
        "ipv4": "10.0.0.20",
        "metadata": {"k8sPodNamespace": "default", "k8sPodName": "web-0", "interfacesCount": 1},
    }
    assert lean.checkpoint_path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in scene.run_directory.iterdir() if ".tmp" in each.name] == []


def test_it_answers_on_its_socket_while_it_lives(scene, lean):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(lean.socket_path))
    lean.stop()
    assert lean.socket_path.is_socket()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(lean.socket_path))
    with pytest.raises(AwayError):
        lean.add("default", "web-0", netns="/nowhere", container_id="c1")


def test_a_restart_knows_its_pods(scene, lean):
    lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    before = (lean.checkpoint_path.read_text(), scene.rules(), scene.routes("main"))
    lean.stop()
    lean.start()
    assert (lean.checkpoint_path.read_text(), scene.rules(), scene.routes("main")) == before
    lean.delete("c1")
    assert not any("10.0.1.20" in rule for rule in scene.rules())


def test_a_row_without_its_link_is_dropped_with_its_rules(scene, lean):
    pod = lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    scene.sh(f"ip link del {pod.host_ifname}")
    assert any("10.0.1.20" in rule for rule in scene.rules())
    lean.stop()
    lean.start()
    assert allocations(lean) == []
    assert not any("10.0.1.20" in rule for rule in scene.rules())


def test_a_row_whose_address_imds_does_not_list_is_dropped_and_its_wiring_stays(scene, lean):
    lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    lean.stop()
    lean.enis[1] = replace(ENI_1, addresses=("10.0.1.21",))
    lean.start()
    assert allocations(lean) == []
    assert any("10.0.1.20" in rule for rule in scene.rules())


def test_a_row_on_an_eni_without_a_link_is_dropped(scene, lean):
    lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    lean.stop()
    scene.sh("ip link del eth1")
    lean.start()
    assert allocations(lean) == []


def test_it_dies_of_two_rows_with_one_address_and_of_another_version(scene, lean):
    lean.stop()
    twice = [Row(container_id=each, address="10.0.1.20") for each in ("c1", "c2")]
    checkpoint.write(lean.checkpoint_path, twice)
    with pytest.raises(FatalCheckpointError, match=r"10\.0\.1\.20"):
        lean.start()
    for text in ('{"version": "vpc-cni-ipam/2", "allocations": []}', "{"):
        lean.checkpoint_path.write_text(text)
        with pytest.raises(FatalCheckpointError):
            lean.start()
    assert not lean.is_running


def test_keys_of_others_are_lost_and_a_row_without_a_key_reads_as_unassigned(scene, lean):
    lean.stop()
    checkpoint.write(
        lean.checkpoint_path,
        [
            Row(container_id="", network="", ifname="", address="10.0.1.20"),
            Row(container_id="c1", address="10.0.1.21"),
        ],
    )
    found = json.loads(lean.checkpoint_path.read_text())
    lean.checkpoint_path.write_text(json.dumps({**found, "vpccni": {"log": "abc"}}))
    lean.start()
    assert lean.rows.keys() == {("aws-cni", "c1", "eth0")}
    assert "vpccni" not in json.loads(lean.checkpoint_path.read_text())


# --- on a node that somebody else served ---------------------------------------------------------------


def test_its_start_makes_no_wiring_for_pods(scene, lean):
    """It restores a row of another agent, and neither route nor rule of its own for it."""
    lean.stop()
    scene.sh(f"ip link add {VETH} type veth peer name near; ip link set {VETH} up")
    checkpoint.write(
        lean.checkpoint_path,
        [Row(container_id="c1", address="10.0.1.20", namespace="default", name="web-0")],
    )
    lean.start()
    assert lean.rows.keys() == {("aws-cni", "c1", "eth0")}
    assert not any("10.0.1.20" in line for line in scene.rules() + scene.routes("main"))


def test_its_start_replaces_every_rule_whose_source_begins_with_a_pods_address(scene, lean):
    lean.stop()
    scene.sh(f"ip link add {VETH} type veth peer name near")
    scene.sh(
        "ip rule add pref 1536 from 10.0.1.16/28 lookup 7; ip rule add pref 1400 from 10.0.1.20 lookup 5"
    )
    rows = [Row(container_id="c1", address="10.0.1.20", namespace="default", name="web-0")]
    rows += [Row(container_id="c2", address="10.0.1.16")]
    checkpoint.write(lean.checkpoint_path, rows)
    lean.enis[1] = replace(ENI_1, addresses=("10.0.1.16", "10.0.1.20"))
    lean.start()
    assert [rule for rule in scene.rules() if "10.0.1." in rule and "32765" not in rule] == [
        "1536: from 10.0.1.20 lookup 5",
        "1536: from 10.0.1.16 lookup 7",
    ]


def test_its_start_takes_the_addresses_of_a_secondary_link_away_for_a_moment(scene, lean):
    """With its last address a link loses all its routes; those that it did not make do not come back."""
    lean.stop()
    scene.sh("ip address add 10.0.1.200/32 dev eth1; ip route add 10.9.0.0/16 via 10.0.1.1 dev eth1 table 2")
    lean.start()
    assert "10.0.1.200" not in scene.sh("ip address show dev eth1")
    assert scene.routes("2") == ["default via 10.0.1.1 dev eth1", "10.0.1.1 dev eth1 scope link"]


def test_its_del_without_a_daemon_needs_its_own_result(scene, lean):
    pod = lean.add("default", "web-0", netns=scene.sandbox("web"), container_id="c1", address="10.0.1.20")
    lean.stop()
    wired = [line for line in scene.rules() + scene.routes("main") if "10.0.1.20" in line]
    assert len(wired) == 3
    ours = {**pod.result, "interfaces": pod.result["interfaces"][:2]}
    for result in (None, {}, ours):
        lean.delete("c1", prev_result=result)
        assert [line for line in scene.rules() + scene.routes("main") if "10.0.1.20" in line] == wired
    lean.delete("c1", prev_result=pod.result)
    assert not any("10.0.1.20" in line for line in scene.rules() + scene.routes("main"))
    assert [row["ipv4"] for row in allocations(lean)] == ["10.0.1.20"]
