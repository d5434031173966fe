"""The DaemonSet's manifest, taken at its word: its commands, environment, mounts and rights are those used here.

What a cluster adds to a pod is added: an image's PATH, and the lab's EC2 endpoint where AWS has its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.deploy_manifest import agent_environment, container, pod_spec
from tests.e2e.containerd import share_netns_directory
from tests.e2e.disk import DIRECTORY, require_disk
from tests.e2e.pod_view import CHECKOUT, command_in_view, command_like_exec
from vpccni.lab.ec2 import Timing, small_region
from vpccni.lab.fabric.enter import find_program, set_loopback_up
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY
from vpccni.lab.fabric.ping import PingPair
from vpccni.lab.lab import READY_TIMEOUT_S, Lab
from vpccni.lab.region_server import EC2_ENDPOINT

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
IMAGE_ENVIRONMENT = {"PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"}


class Host:
    """A node of the lab, and where the manifest's host paths lie on it."""

    def __init__(self, lab, node):
        self.lab, self.node = lab, node
        places = node.places
        self.paths = {
            "/var/lib/aws-node": places.state,
            "/var/run/aws-node": places.run,
            "/opt/cni/bin": places.bin,
            "/etc/cni/net.d": places.conf,
            "/run/netns": NETNS_DIRECTORY,
            "/var/lib/cni": places.root / "cni",
            "/sys/fs/bpf": places.root / "bpf",
            "/run/xtables.lock": places.root / "xtables.lock",
        }
        self.paths["/run/xtables.lock"].touch()
        for path in ("/var/lib/cni", "/sys/fs/bpf"):
            self.paths[path].mkdir()
        self.environment = IMAGE_ENVIRONMENT | {"AWS_ENDPOINT_URL_EC2": EC2_ENDPOINT}
        self._views = 0

    def view(self, command, *, of=None):
        """The command line that runs a command in a container of the manifest, or on the node itself."""
        self._views += 1
        root = self.node.places.root / f"view-{self._views}"
        root.mkdir()
        if of is None:
            volumes = {path: self.paths[path] for path in ("/var/run/aws-node", "/opt/cni/bin", "/run/netns")}
        else:
            host_paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod_spec()["volumes"]}
            volumes = {
                mount["mountPath"]: self.paths[host_paths[mount["name"]]]
                for mount in of.get("volumeMounts", [])
            }
        return command_in_view(root, volumes, command, container=of)

    async def run(self, command, **options):
        return await self.lab.fabric.exec_in(self.node.namespace, command, **options)

    async def run_init_containers(self):
        for each in pod_spec()["initContainers"]:
            ended = await self.run(self.view(each["command"], of=each), env=self.environment)
            assert ended.returncode == 0, f"{each['name']}: {ended.stderr.decode()}"

    async def start_agent(self, agent):
        self.node.agent = await self.lab.fabric.spawn_in(
            self.node.namespace,
            self.view(agent["command"], of=agent),
            output=self.node.places.log,
            env=self.environment | agent_environment(nodeName="a", name="aws-node-x7k2p"),
        )

    async def probe(self, name):
        """Run one of the agent's probes; return its exit status and what it says."""
        command = container("aws-node")[name]["exec"]["command"]
        ended = await self.run(command_like_exec(self.node.agent.pid, command), env=self.environment)
        return ended.returncode, ended.stderr.decode()

    async def cni(self, verb, netns, result=None, **more):
        """Call the installed executable as the installed conflist says; return its exit status and answer."""
        conflist = json.loads((self.node.places.conf / "10-aws.conflist").read_text())
        plugin = conflist["plugins"][0]
        config = plugin | {"name": conflist["name"], "cniVersion": conflist["cniVersion"]} | more
        if result is not None:
            config["prevResult"] = result
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c0ffee",
            "CNI_NETNS": netns.path,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1",
            "CNI_PATH": "/opt/cni/bin",
        }
        command = self.view([f"/opt/cni/bin/{plugin['type']}"])
        ended = await self.run(
            command, env=IMAGE_ENVIRONMENT | environment, stdin=json.dumps(config).encode()
        )
        said = (ended.stdout or ended.stderr).decode()
        return ended.returncode, json.loads(ended.stdout) if ended.stdout else said


@pytest.fixture
async def host():
    if find_program("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    share_netns_directory(shared=True)
    try:
        region = small_region(latency_s={"*": 0.05}, timing=TIMING)
        async with Lab("ds", directory=DIRECTORY, region=region) as lab:
            node = await lab.add_node("a", "m5.large")
            require_disk(node.places.state)
            yield Host(lab, node)
    finally:
        share_netns_directory(shared=False)


async def test_the_manifest_makes_a_node_on_which_pods_get_addresses(host):
    lab, node, agent = host.lab, host.node, container("aws-node")
    forwarding = ["cat", "/proc/sys/net/ipv4/ip_forward"]
    assert (await host.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])).returncode == 0

    await host.run_init_containers()
    assert (await host.run(forwarding)).stdout == b"1\n"
    assert list(node.places.bin.iterdir()) == list(node.places.conf.iterdir()) == []

    await host.start_agent(agent)
    await lab.wait_ready(node)
    assert await host.probe("readinessProbe") == (0, "")
    assert await host.probe("livenessProbe") == (0, "")
    assert node.places.events.exists()
    assert [path.name for path in node.places.bin.iterdir()] == ["aws-cni"]
    granted = sum(1 << number for number in (12, 13, 21))  # NET_ADMIN, NET_RAW, SYS_ADMIN
    rights = dict(
        line.split(":\t") for line in Path(f"/proc/{node.agent.pid}/status").read_text().splitlines()
    )
    assert int(rights["CapEff"], 16) == int(rights["CapBnd"], 16) == granted
    assert rights["NoNewPrivs"] == "1"

    # There is no portmap here.
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not (await node.client.get("/v1/status"))["problems"]["host_ports"]:
            await asyncio.sleep(0.02)

    # Made after the agent started, so it shows only if mounts are handed on.
    netns = await lab.fabric.add_namespace("web")
    await lab.fabric.run_in_thread(netns, set_loopback_up)
    mapped = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
    status, refused = await host.cni("ADD", netns, **mapped)
    assert (status, refused["reason"]) == (1, "portmap_missing")
    status, result = await host.cni("ADD", netns)
    assert status == 0, result
    (pod,) = await node.client.get("/v1/pods")
    assert [address["address"] for address in result["ips"]] == [f"{pod['addresses'][0]}/32"]
    (ping,) = await lab.fabric.ping_all([PingPair(source=netns, target=INTERNET_ADDRESS)])
    assert ping.ok, ping.error
    assert await host.cni("CHECK", netns, result) == (0, "")

    assert await lab.kill_agent(node, signal.SIGTERM) == 0
    chained = chain(node.places.conf / "10-aws.conflist", {"type": "mesh-cni", "options": {"a": [1, None]}})
    await host.start_agent(agent)
    await lab.wait_ready(node)
    await wait_until(lambda: "cni_executable_missing" in node.places.log.read_text())
    assert chained.read_text().startswith("{\n")
    assert json.loads(chained.read_text())["plugins"][1] == {"type": "mesh-cni", "options": {"a": [1, None]}}
    assert await host.cni("DEL", netns, result) == (0, "")
    assert await node.client.get("/v1/pods") == []


def chain(path, entry):
    """Put an entry of somebody else into the conflist, on one line, so that the agent writes it anew."""
    conflist = json.loads(path.read_text())
    path.write_text(json.dumps(conflist | {"plugins": [*conflist["plugins"], entry]}))
    return path


async def wait_until(is_true):
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not is_true():
            await asyncio.sleep(0.02)


async def test_the_readiness_probe_says_why_and_the_liveness_probe_is_content_while_there_is_no_ec2(host):
    host.environment["AWS_ENDPOINT_URL_EC2"] = "http://127.0.0.1:9"
    await host.run_init_containers()
    await host.start_agent(container("aws-node"))
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not host.node.places.socket.exists():
            assert host.node.is_running, host.node.places.log.read_text()
            await asyncio.sleep(0.02)
    status, said = await host.probe("readinessProbe")
    assert status == 1
    assert json.loads(said)["reason"] == "node_not_initialized"
    assert await host.probe("livenessProbe") == (0, "")
    assert list(host.node.places.conf.iterdir()) == []
