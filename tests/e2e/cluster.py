"""Nodes with real containers: each has an agent of ours and a containerd that calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.containerd import (
    DEBIAN_PLUGINS,
    Containerd,
    cgroup_directories,
    container_processes,
    make_image,
    remove_leftovers,
    share_netns_directory,
)
from tests.e2e.disk import DIRECTORY, require_disk
from vpccni.lab.ec2 import Timing, small_region
from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY
from vpccni.lab.lab import Lab

SETTINGS = {"WARM_IP_TARGET": "4"}
LATENCY_S = {"*": 0.05}
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
GONE_TIMEOUT_S = 10.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"
"""The executables run without the lab's own setting here, so they name the machine's boot."""


class Cluster:
    """Nodes, each with an agent and a containerd."""

    def __init__(self, lab, settings):
        self.lab = lab
        self.settings = settings
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
        await self.lab.start_agent(node, self.settings, arguments=tuple(flags))
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


@asynccontextmanager
async def open_cluster(
    names: Sequence[str], settings: Mapping[str, str] = SETTINGS
) -> AsyncIterator[Cluster]:
    """Nodes of these names, each in a subnet of its own. Afterwards nothing of them is left."""
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
            made = Cluster(lab, settings)
            for name in names:
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
