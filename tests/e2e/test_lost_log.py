"""Pods of a real container runtime live, and the agent's log is lost."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from tests.e2e.cluster import open_cluster
from tests.e2e.flows import open_flows
from tests.e2e.waiting import wait_until
from tests.original import wiring
from vpccni.lab.audit import secondaries
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.lab.fabric.namespaces import Namespace

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

SETTINGS = {"WARM_IP_TARGET": "4", "IP_COOLDOWN_PERIOD": "1"}
NAMES = ("talks", "stays", "goes")


def sandbox_of(runtime, pod):
    """The pod's network namespace, as the runtime's cached result tells it."""
    (cached,) = runtime.results.glob(f"aws-cni-{pod.sandbox}-*")
    result = json.loads(cached.read_text())["result"]
    path = next(one["sandbox"] for one in result["interfaces"] if one.get("sandbox"))
    return Namespace(name=path.rpartition("/")[2], path=path)


async def vpccni(cluster, node, *words):
    """What a command prints that asks the node's agent; it must succeed."""
    command = [sys.executable, "-m", "vpccni", *words, "--socket", str(node.places.socket)]
    environment = cluster.lab.agent_environment(node) | {"COLUMNS": "200"}
    done = await cluster.lab.fabric.exec_in(node.namespace, command, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def paths_of(node, address):
    """Rules and routes that name an address."""
    said = wiring.run_in(node.namespace.path, "ip rule; ip -4 route show table all")
    return [line for line in said.splitlines() if address in line.replace("/", " ").split()]


async def wait_exported(node, pods):
    """The checkpoint is a second behind the log at most."""
    path = node.places.run / "ipam.json"
    await wait_until(lambda: all(pod.sandbox in path.read_text() for pod in pods), "the export")


def lose_the_state(node, runtime):
    """The log and what lies beside it; the directory itself is the volume's mount point."""
    shutil.rmtree(node.places.state)
    node.places.state.mkdir()


def lose_everything(node, runtime):
    """Only the kernel still knows the pods: our marks on their interfaces."""
    lose_the_state(node, runtime)
    shutil.rmtree(runtime.results)
    (node.places.run / "ipam.json").unlink()


@pytest.mark.parametrize(
    ("lose", "evidence", "names_are_known"),
    [
        (lose_the_state, {"kernel", "runtime_cache", "checkpoint"}, True),
        (lose_everything, {"kernel", "alias"}, False),
    ],
    ids=["the state directory", "the state directory, the cached results and the checkpoint"],
)
async def test_pods_outlive_the_log_of_the_agent_that_gave_them_their_addresses(
    lose, evidence, names_are_known
):
    """1. The agent is killed and its log is lost. 2. It starts again: pods that live are found, new ones come.
    3. The runtime deletes the old ones."""
    async with open_cluster(("a",), SETTINGS) as cluster:
        lab, node, runtime = cluster.lab, cluster.nodes[0], cluster.runtimes["a"]
        host = await lab.add_node("host", "m5.large", subnet=1)
        there = lab.region.world.instances[host.instance_id].primary_eni.primary
        old = {name: await runtime.run_pod(name) for name in NAMES}
        with open_flows() as flows:
            talking = sandbox_of(runtime, old["talks"])
            flows.connect("to the VPC", talking, host.namespace, there, 7000)
            flows.connect("from the VPC", host.namespace, talking, old["talks"].address, 7001)
            flows.connect("to the internet", talking, lab.fabric.internet, INTERNET_ADDRESS, 7000)
            await wait_exported(node, old.values())
            calls = len(lab.region.journal)
            with flows.phase("the log is lost"):
                await lab.kill_agent(node)
                lose(node, runtime)
                await cluster.start_agent(node)
            found = json.loads(await vpccni(cluster, node, "pods", "--json"))
            assert {pod["addresses"][0] for pod in found} == {pod.address for pod in old.values()}
            assert {pod["name"] for pod in found} == (set(NAMES) if names_are_known else {""})
            for pod in found:
                assert (pod["origin"], set(pod["evidence"])) == ("recovered", evidence)
            assert "3 leases found on the node, 0 addresses held" in await vpccni(cluster, node, "status")

            with flows.phase("new pods"):
                new = [await runtime.run_pod(f"new-{number}") for number in range(2)]
            assert not {pod.address for pod in new} & {pod.address for pod in old.values()}
            in_use = {pod.address for pod in (*old.values(), *new)}
            assert in_use <= set(secondaries(lab, node))
            changes = {call.action for call in lab.region.journal.calls(after=calls)}
            assert not {"UnassignPrivateIpAddresses", "DetachNetworkInterface"} & changes

            with flows.phase("DELs"):
                for name in ("stays", "goes"):
                    await runtime.remove_pod(old[name])
                    assert paths_of(node, old[name].address) == []
            flows.finish()
        await runtime.remove_pod(old["talks"])
        assert paths_of(node, old["talks"].address) == []
        assert set(await cluster.leases(node)) == {pod.name for pod in new}
        assert (await node.client.get("/v1/status"))["problems"]["datapath"] == []
        for pod in new:
            await cluster.run((node, pod), "ping", "-c", "1", "-W", "2", INTERNET_ADDRESS)
