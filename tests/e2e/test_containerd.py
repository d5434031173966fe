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
from pathlib import Path

import pytest

from tests.e2e.cluster import GONE_TIMEOUT_S, open_cluster
from tests.e2e.containerd import (
    PORT,
    cgroup_directories,
    cgroup_parent,
    remove_leftovers,
)
from tests.e2e.cri import CriError
from vpccni.events.sandbox import LeaseEnded
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.replay.reader import open_log

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]


@pytest.fixture
async def cluster():
    async with open_cluster(("a", "b")) as made:
        yield made


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
