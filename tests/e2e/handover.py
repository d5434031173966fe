"""A node that goes from the original to vpccni and back, with connections through its pods, seen from outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.flows import Flows, open_flows
from tests.e2e.pod_view import command_in_view
from tests.libcni import ORIGINAL_CONFLIST, cache_entry, write_entry
from tests.original import wiring
from tests.original.host import Settings, missing_program
from tests.original.node import Pod
from tests.original.stage import OriginalStage, original_stage
from vpccni.lab.fabric.enter import set_loopback_up
from vpccni.lab.fabric.fabric import INTERNET_ADDRESS
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY, Namespace
from vpccni.lab.fabric.ping import PingPair
from vpccni.lab.ledger import Sandbox
from vpccni.lab.runtime import CniError, Runtime

DEBIAN_PLUGINS: Final = Path("/usr/lib/cni")
ADDRESSES: Final = 9
"""Of each ENI besides its own: all that an m5.large takes, so that the pool cannot grow."""
FLOWING: Final = ("web-0", "web-1")
"""The pods with connections: one on the primary ENI, one on the second."""

LOOK: Final = "ip rule; ip -4 route show table all; nft list ruleset; ip link"

_QUICK_AGENT: Final = """
import sys
from vpccni.loops import housekeeping
housekeeping.SECOND_SIGHT_S = housekeeping.YOUNG_LEASE_S = 1.0
from vpccni.__main__ import main
sys.argv[0] = "vpccni"
sys.exit(main())
"""
"""The agent, whose lease sweep looks twice within a second instead of a minute."""


class Handover:
    """The node, and a host in another subnet of the VPC with which its pods talk.

    Attributes:
        host: That host: a node on which no agent runs.
        runtime: The node's container runtime, for pods that we serve.
        flows: Connections through the pods ``FLOWING``.
        late: Pods whose plugin is held up in the middle, and the step that comes next, by name.
    """

    def __init__(self, stage: OriginalStage, flows: Flows) -> None:
        self.stage, self.lab, self.node = stage, stage.lab, stage.node
        self.runtime = Runtime(self.lab, self.node)
        self.flows = flows
        self.late: dict[str, tuple[Pod, str]] = {}
        self.host = self.node
        self._views = 0
        self._calls_before = 0

    # -- what is there ----------------------------------------------------------------------------

    async def furnish(self) -> None:
        """Pods of the original on both ENIs, dead ones with rows and rules, half-wired ones, other leftovers."""
        self.host = await self.lab.add_node("b", "m5.large", subnet=1)
        shutil.copy(DEBIAN_PLUGINS / "portmap", self.node.places.bin)
        stub = self.node.places.bin / "egress-cni"
        stub.write_text("#!/bin/sh\ncat >/dev/null\n")
        stub.chmod(0o755)
        for number, name in enumerate((*FLOWING, "db-0", "db-1", "db-2", "db-3", "dead-0", "dead-1")):
            await self.stage.add_pod(name, device=number % 2)
        for name in ("dead-0", "dead-1"):
            await self._end_sandbox(self.stage.pods[name])
        for name, device, until in (("late-0", 0, "create_veth"), ("late-1", 1, "pod_address")):
            await self._add_half(name, device, until)
        # Addresses that nobody has: a pod of before, and one of when the address was on the other ENI.
        leftovers = [f"to {self.stage.free_address(device)} lookup main" for device in (0, 1)]
        script = [f"ip rule add pref 512 {leftover}" for leftover in leftovers]
        script.append(f"ip rule add pref 1536 from {self.stage.free_address(0)} lookup 2")
        wiring.run_in(self.node.namespace.path, "\n".join(script))
        self._calls_before = len(self.lab.region.journal)

    def ec2_changes(self) -> list[str]:
        """The calls that our agent has made since, but for those that only look."""
        calls = self.lab.region.journal.calls(after=self._calls_before)
        return [call.action for call in calls if not call.action.startswith("Describe")]

    async def _add_half(self, name: str, device: int, until: str) -> None:
        sandbox = await self.lab.fabric.add_namespace(name)
        await self.lab.fabric.run_in_thread(sandbox, set_loopback_up)
        address = self.stage.free_address(device)
        pod = self.stage.original.add(
            "default", name, netns=sandbox.path, container_id=f"{name:0<64}", address=address, until=until
        )
        self.stage.pods[name], self.stage.sandboxes[name], self.late[name] = pod, sandbox, (pod, until)

    def connect(self) -> None:
        """From each of the two pods to the VPC and to the internet, and from the VPC to it."""
        fabric = self.lab.fabric
        world = self.lab.region.world
        there = world.instances[self.host.instance_id].primary_eni.primary
        for number, name in enumerate(FLOWING):
            pod, sandbox = self.stage.pods[name], self.stage.sandboxes[name]
            port = 7000 + number
            self.flows.connect(f"{name} to the VPC", sandbox, self.host.namespace, there, port)
            self.flows.connect(f"{name} from the VPC", self.host.namespace, sandbox, pod.address, port)
            self.flows.connect(f"{name} to the internet", sandbox, fabric.internet, INTERNET_ADDRESS, port)

    @asynccontextmanager
    async def phase(self, name: str, *, is_original_at_work: bool = False) -> AsyncIterator[None]:
        """A part of the story. The VPC drops nothing, unless the original sets up its ENIs anew.

        While it does, it takes the second ENI's routes away. How long that takes is a matter of the machine.
        """
        before = await self._drops()
        with self.flows.phase(name, retransmissions_max=4 if is_original_at_work else 1):
            yield
        if not is_original_at_work:
            assert await self._drops() == before, name

    async def _drops(self) -> list[object]:
        return [await self.lab.fabric.drops(eni) for eni in self.stage.enis.values()]

    # -- pods -------------------------------------------------------------------------------------

    async def add(self, prefix: str, count: int) -> list[Sandbox]:
        """New pods, all at once; each must be served, and work."""
        added = await self.runtime.add_many([f"{prefix}-{number}" for number in range(count)])
        failed = [each for each in added if isinstance(each, CniError)]
        assert failed == []
        pods = [each for each in added if not isinstance(each, CniError)]
        await self.check_reachable((pod.netns, pod.address) for pod in pods)
        return pods

    async def check_reachable(self, pods: Iterable[tuple[Namespace, str]]) -> None:
        """Each pod reaches the internet, and the host in the VPC reaches it."""
        pairs = []
        for netns, address in pods:
            pairs.append(PingPair(source=self.host.namespace, target=address))
            pairs.append(PingPair(source=netns, target=INTERNET_ADDRESS))
        failed = [result for result in await self.lab.fabric.ping_all(pairs) if not result.ok]
        assert failed == []

    def finish_late(self, name: str) -> Pod:
        """A plugin that was held up does the rest, and the runtime keeps its result."""
        pod, since = self.late.pop(name)
        wiring.wire(
            self.node.namespace.path,
            "default",
            name,
            netns=pod.netns,
            address=pod.address,
            table=pod.table,
            since=since,
        )
        entry = cache_entry(pod.row.container_id, result=pod.result, netns=pod.netns, pod=name)
        write_entry(self.node.places.results, entry)
        return pod

    async def delete_as_containerd(self, pod: Pod) -> None:
        """DEL of a pod of the original: the live list, and the cached result in the list's version."""
        version = max(self.runtime.conflist()["cniVersions"])
        result: dict[str, Any] = pod.result | {"cniVersion": version}
        result["ips"] = [{key: ip[key] for key in ip if key != "version"} for ip in result["ips"]]
        name = pod.row.name
        await self.runtime.delete(
            Sandbox(
                node=self.node.name,
                pod=name,
                namespace="default",
                uid=f"uid-{name}",
                container_id=pod.row.container_id,
                netns=self.stage.sandboxes.pop(name),
                address=pod.address,
                result=result,
                added_at=0.0,
                latency_ms=0.0,
            )
        )

    async def delete_as_crio(self, pod: Pod) -> None:
        """DEL of a pod of the original: the cached list, without our keys, so that all its plugins are called."""
        for plugin in reversed(ORIGINAL_CONFLIST["plugins"]):
            config = plugin | {
                "name": ORIGINAL_CONFLIST["name"],
                "cniVersion": ORIGINAL_CONFLIST["cniVersion"],
                "prevResult": pod.result,
            }
            done = await self.lab.fabric.exec_in(
                self.node.namespace,
                self._in_view([f"/opt/cni/bin/{plugin['type']}"]),
                stdin=json.dumps(config).encode(),
                env={
                    "PATH": os.environ["PATH"],
                    "CNI_COMMAND": "DEL",
                    "CNI_CONTAINERID": pod.row.container_id,
                    "CNI_NETNS": pod.netns,
                    "CNI_IFNAME": "eth0",
                    "CNI_PATH": "/opt/cni/bin",
                    "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.row.name}",
                },
            )
            assert done.returncode == 0, f"{plugin['type']}: {(done.stdout + done.stderr).decode()}"
        await self._end_sandbox(pod)

    def _in_view(self, command: list[str]) -> list[str]:
        """The command as it is run on a node, where our socket and the executables lie where they always do."""
        places = self.node.places
        self._views += 1
        root = places.root / f"view-{self._views}"
        root.mkdir()
        volumes = {
            "/var/run/aws-node": places.run,
            "/opt/cni/bin": places.bin,
            "/run/netns": NETNS_DIRECTORY,
        }
        return command_in_view(root, volumes, command)

    async def delete_by_original(self, pod: Sandbox) -> None:
        """The original serves the DEL of a pod of ours."""
        self.stage.original.delete(pod.container_id, prev_result=pod.result)
        self._cached(pod.container_id).unlink()
        await self.lab.fabric.remove(pod.netns)

    async def _end_sandbox(self, pod: Pod) -> None:
        self._cached(pod.row.container_id).unlink()
        await self.lab.fabric.remove(self.stage.sandboxes.pop(pod.row.name))

    def _cached(self, container_id: str) -> Path:
        return self.node.places.results / f"aws-cni-{container_id}-eth0"

    # -- looking ----------------------------------------------------------------------------------

    def lines_with(self, word: str, look: str = LOOK) -> list[str]:
        """What the node's kernel shows of something: each line in which the word stands alone."""
        said = wiring.run_in(self.node.namespace.path, look)
        return [line for line in said.splitlines() if word in line.replace("/", " ").split()]

    def paths_of(self, address: str) -> list[str]:
        """The rules and routes that name an address."""
        return self.lines_with(address, "ip rule; ip -4 route show table all")

    def is_ours(self, address: str) -> bool:
        """Whether packets to an address go our way alone."""
        paths = self.paths_of(address)
        return any("table 51200" in path for path in paths) and not any(
            "lookup main" in path for path in paths
        )

    async def pods(self) -> dict[str, Any]:
        """What ``vpccni pods --json`` says, by name."""
        done = await self.command("pods", "--json")
        return {pod["name"]: pod for pod in json.loads(done)}

    async def command(self, *words: str) -> str:
        """Run a command that asks our agent; it must succeed. What it prints."""
        done = await self.stage.vpccni(*words, "--socket", str(self.node.places.socket))
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()

    async def status(self) -> Any:
        """What the agent says of itself."""
        return await self.node.client.get("/v1/status")


@asynccontextmanager
async def handover(settings: Settings) -> AsyncIterator[Handover]:
    """A furnished node that the original serves, and connections through its pods."""
    if not (DEBIAN_PLUGINS / "portmap").exists():
        pytest.skip(f"no portmap plugin in {DEBIAN_PLUGINS}: install containernetworking-plugins")
    lacking = missing_program(settings)
    if lacking:
        pytest.skip(f"{lacking} is not installed")
    async with original_stage(addresses=ADDRESSES, settings=settings) as stage:
        stage.lab.agent_program = ("-c", _QUICK_AGENT, "agent")
        with open_flows() as flows:
            made = Handover(stage, flows)
            await made.furnish()
            made.connect()
            yield made
