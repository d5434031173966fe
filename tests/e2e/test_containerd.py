"""Real containers: containerd and runc on two nodes call our executable as our conflist says.

The calls are those of kubelet (CRI), so sandboxes, loopback, portmap, the cached results and the order of a
pod's end are the real ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e.containerd import (
    DEBIAN_PLUGINS,
    PORT,
    Containerd,
    cgroup_directories,
    cgroup_parent,
    container_processes,
    make_image,
    remove_leftovers,
    share_netns_directory,
)
from tests.e2e.cri import CriError
from tests.e2e.disk import DIRECTORY, require_disk
from vpccni.events.sandbox import LeaseEnded
from vpccni.lab.ec2 import Timing, small_region
from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY
from vpccni.lab.lab import Lab
from vpccni.replay.reader import open_log

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

SETTINGS = {"WARM_IP_TARGET": "4"}
LATENCY_S = {"*": 0.05}
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
GONE_TIMEOUT_S = 10.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"
"""The executables run without the lab's own setting here, so they name the machine's boot."""


class Cluster:
    """Two nodes, each with an agent and a containerd."""

    def __init__(self, lab):
        self.lab = lab
        self.nodes = []
        self.runtimes = {}

    async def add_node(self, name, image, stack):
        node = await self.lab.add_node(name, "m5.large", subnet=len(self.nodes))
        require_disk(node.places.state)
        runtime = Containerd(self.lab, node)
        flags = ("--cni-results-dir", str(runtime.results), "--boot-id-path", BOOT_ID)
        self.nodes.append(node)
        self.runtimes[name] = runtime
        runtime.install_plugins()
        await self.start_agent(node, flags)
        stack.push_async_callback(runtime.stop)
        await runtime.start(image)

    async def start_agent(self, node, flags=None):
        flags = flags or node.agent.argv[node.agent.argv.index("--cni-results-dir") :]
        await self.lab.start_agent(node, SETTINGS, arguments=tuple(flags))
        await self.lab.wait_ready(node)

    async def run(self, where, command, *words):
        """Run a command in a pod; it must succeed. Return what it prints."""
        node, pod = where
        status, said = await self.runtimes[node.name].cri.exec(pod.container, command, *words)
        assert status == 0, f"{node.name}/{pod.name}: {command} {' '.join(words)}: {said}"
        return said

    async def wait_without_pod_links(self, node):
        """A veth goes when the kernel has taken its namespace down, a moment after the runtime let go of it."""
        async with asyncio.timeout(GONE_TIMEOUT_S):
            while True:
                listed = await self.lab.fabric.exec_in(node.namespace, ["ip", "-j", "link"])
                if not any(link["ifname"].startswith("eni") for link in json.loads(listed.stdout)):
                    return
                await asyncio.sleep(0.05)

    async def leases(self, node):
        return {pod["name"]: pod for pod in await node.client.get("/v1/pods")}


@pytest.fixture
async def cluster():
    for program in ("containerd", "ctr", "runc", "busybox"):
        if find_program(program) is None:
            pytest.skip(f"{program} is not installed (see scripts/setup.sh test)")
    if not (DEBIAN_PLUGINS / "loopback").exists():
        pytest.skip(f"no loopback plugin in {DEBIAN_PLUGINS}: install containernetworking-plugins")
    share_netns_directory(shared=True)
    try:
        async with AsyncExitStack() as stack:
            region = small_region(latency_s=LATENCY_S, timing=TIMING)
            lab = await stack.enter_async_context(Lab("cri", directory=DIRECTORY, region=region))
            image = DIRECTORY / "image.tar"
            make_image(image)
            made = Cluster(lab)
            for name in ("a", "b"):
                await made.add_node(name, image, stack)
            yield made
    finally:
        try:
            remove_leftovers()
        finally:
            share_netns_directory(shared=False)
    assert container_processes() == {}
    assert cgroup_directories() == []
    assert list(NETNS_DIRECTORY.glob("cni-*")) == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(DIRECTORY) not in mounts
    assert "/run/containerd" not in mounts


@pytest.fixture
def occupied_group():
    """A control group of this world with a process in it, as (directory, process)."""
    top = Path("/sys/fs/cgroup")
    # Version 2 has one hierarchy, version 1 one in each directory.
    hierarchy = next(path for path in (top, *sorted(top.iterdir())) if (path / "cgroup.procs").exists())
    directory = hierarchy / cgroup_parent().name / "pod"
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            directory.mkdir(parents=True)
            (directory / "cgroup.procs").write_text(str(process.pid))
            yield directory, process
        finally:
            process.kill()
    remove_leftovers()


def test_control_groups_are_waited_for_while_a_process_in_them_ends(occupied_group):
    """1. The pod's process is killed.  2. It is out of its network namespace and still in its control group, which
    cannot be removed.  3. It is out of that, too. Here the second step takes long."""
    _, process = occupied_group
    ends = threading.Timer(0.2, process.kill)
    ends.start()
    remove_leftovers()
    assert cgroup_directories() == []
    ends.join()


def test_a_control_group_that_stays_is_named_with_its_processes(occupied_group):
    directory, process = occupied_group
    with pytest.raises(AssertionError, match=rf"{directory} with {process.pid} sleep"):
        remove_leftovers(timeout_s=0.05)


async def test_containers_have_their_leases_addresses_and_reach_each_other_and_the_internet(cluster):
    lab, (a, b) = cluster.lab, cluster.nodes
    pods = []
    for node, name in ((a, "a-1"), (a, "a-2"), (b, "b-1")):
        pods.append((node, await cluster.runtimes[node.name].run_pod(name)))
    chain = json.loads((a.places.conf / "10-aws.conflist").read_text())["plugins"]
    assert [plugin["type"] for plugin in chain] == ["aws-cni", "portmap"]

    for node, pod in pods:
        lease = (await cluster.leases(node))[pod.name]
        assert (lease["namespace"], lease["uid"], lease["addresses"]) == ("default", pod.uid, [pod.address])
        inside = await cluster.run((node, pod), "ip", "-4", "-o", "addr", "show", "dev", "eth0")
        assert f" {pod.address}/32 " in inside

    for source, (_, target) in itertools.permutations(pods, 2):
        said = await cluster.run(source, "wget", "-q", "-O", "-", f"http://{target.address}:{PORT}/")
        assert said == f"{target.name}\n"
    async with lab.fabric.echo_server() as echo:
        for where in pods:
            await cluster.run(where, "ping", "-c", "1", "-W", "2", INTERNET_ADDRESS)
            said = await cluster.run(
                where, "sh", "-c", f"echo hello | nc -w 2 {INTERNET_ADDRESS} {echo.port}"
            )
            assert said == "hello\n"
        assert len(echo.sources) == len(pods)
        assert not set(echo.sources) & {pod.address for _, pod in pods}

    for node, pod in pods:
        await cluster.runtimes[node.name].remove_pod(pod)
    for node in (a, b):
        assert await cluster.leases(node) == {}
        gone = sum(pod_node is node for pod_node, _ in pods)
        assert sum(row["resting"] for row in await node.client.get("/v1/enis")) == gone
        assert causes_of_ends(node.places.events) == ["del"] * gone
        await cluster.wait_without_pod_links(node)
        assert list(cluster.runtimes[node.name].results.glob("aws-cni-*")) == []


async def test_without_portmap_a_pod_with_a_host_port_is_refused_by_name_and_others_run(cluster):
    """What containerd passes on of our conflist, with its own hands."""
    node, runtime = cluster.nodes[0], cluster.runtimes["a"]
    with_port = await runtime.run_pod("with-portmap", host_port=8080)
    (node.places.bin / "portmap").unlink()
    await cluster.lab.kill_agent(node)
    await cluster.start_agent(node)
    async with asyncio.timeout(GONE_TIMEOUT_S):
        while True:  # until the agent has written its conflist, and containerd has seen it
            with pytest.raises(CriError):
                await runtime.run_pod("refused", host_port=8081)
            if "reason=portmap_missing; asked for: 8081/tcp" in runtime.log.read_text():
                break
            await asyncio.sleep(0.1)
    await runtime.run_pod("without-port")
    assert set(await cluster.leases(node)) == {"with-portmap", "without-port"}
    assert (await node.client.get("/v1/status"))["problems"]["host_ports"]
    await runtime.remove_pod(with_port)
    assert set(await cluster.leases(node)) == {"without-port"}


def causes_of_ends(path):
    with open_log(path) as log:
        events = [log.decoded(stored).event for stored in log.records()]
    return [event.cause for event in events if isinstance(event, LeaseEnded)]


@pytest.mark.parametrize("farewell", [signal.SIGTERM, signal.SIGKILL])
async def test_running_containers_do_not_notice_that_the_agent_is_away_and_comes_back(cluster, farewell):
    a, b = cluster.nodes
    here = (a, await cluster.runtimes["a"].run_pod("here"))
    leaves = (a, await cluster.runtimes["a"].run_pod("leaves"))
    there = (b, await cluster.runtimes["b"].run_pod("there"))
    pings = ("ping", "-q", "-i", "0.1", "-c", "50", "-W", "1")

    async with asyncio.TaskGroup() as group:
        inwards = group.create_task(cluster.run(there, *pings, here[1].address), name="inwards")
        outwards = group.create_task(cluster.run(here, *pings, INTERNET_ADDRESS), name="outwards")
        await asyncio.sleep(0.5)
        await cluster.lab.kill_agent(a, farewell)
        await cluster.runtimes["a"].remove_pod(
            leaves[1]
        )  # nobody listens: a DEL gives up after two seconds, and is kept
        entries = [json.loads(path.read_bytes())["request"] for path in a.places.spool.glob("*.json")]
        assert {entry["containerId"] for entry in entries} == {leaves[1].sandbox}
        await cluster.start_agent(a)
        late = (a, await cluster.runtimes["a"].run_pod("late"))

    for said in (inwards.result(), outwards.result()):
        assert "50 packets transmitted, 50 packets received" in said
    assert set(await cluster.leases(a)) == {"here", "late"}
    assert list(a.places.spool.glob("*.json")) == []
    assert (await cluster.leases(a))["here"]["addresses"] == [here[1].address]
    assert late[1].address not in {here[1].address, leaves[1].address}
    await cluster.run(late, "wget", "-q", "-O", "-", f"http://{there[1].address}:{PORT}/")
