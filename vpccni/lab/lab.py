"""The lab: an emulated region, the kernel-real fabric, and nodes on which real agents run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal as signals
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Self

from vpccni.lab.agent_client import POLL_S, AgentClient
from vpccni.lab.cabling import Cabling
from vpccni.lab.ec2 import REALISTIC_LATENCY_S, Region, Timing, small_region
from vpccni.lab.fabric.enter import require_inside
from vpccni.lab.fabric.fabric import Fabric
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.fabric.processes import Daemon
from vpccni.lab.places import NodePlaces, lab_directory, lock, volatile_filesystem
from vpccni.lab.region_server import EC2_ENDPOINT, RegionServer

REALISTIC_TIMING: Final = Timing(attach_settle_s=0.5, detach_settle_s=1.5, link_delay_s=0.2)
"""What follows an attach or detach on a Nitro instance, in round figures."""


def scaled_timing(speed: float) -> Timing:
    """The realistic timing, so many times as fast."""
    return Timing(
        attach_settle_s=REALISTIC_TIMING.attach_settle_s / speed,
        detach_settle_s=REALISTIC_TIMING.detach_settle_s / speed,
        link_delay_s=REALISTIC_TIMING.link_delay_s / speed,
    )


READY_TIMEOUT_S: Final = 30.0
"""A new agent is ready after some two seconds of EC2 calls; this is for a loaded machine."""

_RUN_PREFIX: Final = "/tmp/vpccni-"  # noqa: S108 - mkdtemp makes the rest of the name, and the mode
"""A short path, for sockets; the directory itself is closed to others."""


class LabError(Exception):
    """The lab was asked for what cannot be. Nothing was changed."""


class LabNode:
    """One node: an instance of the region, its namespace, its files, and the agent on it.

    Attributes:
        name: As Kubernetes would name it.
        instance_id: EC2's id.
        instance_type: EC2's type.
        namespace: Its network namespace.
        places: Its files.
        agent: The agent's process; None before the first start.
        client: The agent's API.
    """

    def __init__(
        self, *, name: str, instance_id: str, instance_type: str, namespace: Namespace, places: NodePlaces
    ) -> None:
        self.name = name
        self.instance_id = instance_id
        self.instance_type = instance_type
        self.namespace = namespace
        self.places = places
        self.agent: Daemon | None = None
        self.client = AgentClient(places.socket)
        self.environment: dict[str, str] = {}

    @property
    def is_running(self) -> bool:
        """Whether the agent's process is there."""
        return self.agent is not None and self.agent.returncode is None


class Lab:
    """An emulated region with nodes. An async context manager, to be opened inside a world (``enter``).

    ::

        async with Lab("mine") as lab:
            node = await lab.add_node("a", "m5.large")
            await lab.start_agent(node, {"WARM_IP_TARGET": "4"})
            await lab.wait_ready(node)
            sandbox = await Runtime(lab, node).add("web-1")

    Files lie in ``<directory>/<name>/<node>/`` (see ``NodePlaces``) and stay there for who wants to look at
    them until the next lab of that name; processes, namespaces and sockets are gone when the block ends.

    Args:
        name: One lab of a name at a time in a directory. It also begins the names of the namespaces.
        directory: On a disk, where logs are to be durable; by default ``build/lab`` of the checkout.
        region: A region of one's own, with at least one subnet; by default one VPC with two /20 subnets.
        latency_s: Seconds by EC2 action, for the default region.
        timing: What follows an attach or detach, for the default region.
        seed: Of the default region's ids and addresses.

    Attributes:
        agent_program: What Python is given to run an agent, before the agent's flags.
        region: The emulated EC2. It may be called directly, on this event loop, with ``time.time()``.
        fabric: The namespaces.
        nodes: By name, in the order in which they were added.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        directory: Path | None = None,
        region: Region | None = None,
        latency_s: Mapping[str, float] = REALISTIC_LATENCY_S,
        timing: Timing = REALISTIC_TIMING,
        seed: int | str = 0,
    ) -> None:
        self.name = name
        self.directory = (directory or lab_directory()).absolute() / name
        self.region = region or small_region(seed, latency_s=latency_s, timing=timing)
        self.fabric = Fabric(
            name=name, vpc_cidrs=[cidr for vpc in self.region.world.vpcs.values() for cidr in vpc.cidrs]
        )
        self.agent_program: tuple[str, ...] = ("-m", "vpccni", "agent")
        self.nodes: dict[str, LabNode] = {}
        self.run_directory = Path()
        self._namespaces: dict[str, Namespace] = {}
        self._stack = AsyncExitStack()
        self._server = RegionServer(self.region)
        self._cabling: Cabling | None = None

    async def __aenter__(self) -> Self:
        require_inside()
        async with AsyncExitStack() as stack:
            self._lock(stack)
            await stack.enter_async_context(self.fabric)
            self._cabling = Cabling(self.region, self.fabric, self._namespaces.get)
            stack.callback(self._cabling.stop)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            carrying = group.create_task(self._cabling.run(), name="cabling")
            stack.callback(carrying.cancel)
            await stack.enter_async_context(self._server)
            stack.push_async_callback(self._kill_agents)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # -- nodes ------------------------------------------------------------------------------------

    async def add_node(
        self, name: str, instance_type: str = "m5.large", subnet: int | str = 0, *, now: float | None = None
    ) -> LabNode:
        """Launch an instance: its primary ENI is plugged when this returns. No agent runs on it yet.

        Args:
            name: A short name, unique in the lab.
            instance_type: One of ``lab.ec2.types.INSTANCE_TYPES``.
            subnet: A subnet's id, or its place in the order of creation.
            now: The instant of the launch; by default now.

        Raises:
            LabError: the name is taken.
            KeyError: the instance type is not modelled.
        """
        if name in self.nodes:
            raise LabError(f"there is a node {name} already")
        namespace = await self.fabric.add_node(name)
        subnet_id = list(self.region.world.subnets)[subnet] if isinstance(subnet, int) else subnet
        places = NodePlaces(root=self.directory / name, run=self.run_directory / name)
        places.make()
        places.boot_id.write_text(f"{uuid.uuid4()}\n")
        launched_at = time.time() if now is None else now
        instance = self.region.launch_instance(subnet_id, instance_type, now=launched_at, tags={"Name": name})
        self._namespaces[instance.id] = namespace  # in the same turn: the cabling has the plug event queued
        await self.settle()
        await self._server.add_node(namespace, instance.id)
        node = LabNode(
            name=name,
            instance_id=instance.id,
            instance_type=instance_type,
            namespace=namespace,
            places=places,
        )
        self.nodes[name] = node
        return node

    async def settle(self) -> None:
        """Wait until the fabric has carried out everything that the region told so far."""
        await self._the_cabling().wait_idle()

    # -- agents -----------------------------------------------------------------------------------

    async def start_agent(
        self, node: LabNode, env: Mapping[str, str] | None = None, *, arguments: tuple[str, ...] = ()
    ) -> Daemon:
        """Start the agent on a node, as a DaemonSet would: it is told of an endpoint, and of no lab.

        Args:
            node: Where.
            env: Settings, besides names, region and endpoint. Without it, those of the start before.
            arguments: Further flags.

        Raises:
            LabError: it runs already.
        """
        if node.is_running:
            raise LabError(f"the agent of {node.name} runs already")
        if env is not None:
            node.environment = dict(env)
        places = node.places
        volatile = ["--volatile-log"] if volatile_filesystem(places.state) else []
        command = [
            sys.executable, *self.agent_program,
            "--state-dir", str(places.state),
            "--run-dir", str(places.run),
            "--socket", str(places.socket),
            "--spool", str(places.spool),
            "--boot-id-path", str(places.boot_id),
            "--cni-results-dir", str(places.results),
            "--install-bin", str(places.bin),
            "--install-conf", str(places.conf),
            *volatile, *arguments,
        ]  # fmt: skip
        node.agent = await self.fabric.spawn_in(
            node.namespace, command, output=places.log, env=self.agent_environment(node)
        )
        return node.agent

    def agent_environment(self, node: LabNode) -> dict[str, str]:
        """The whole environment of a node's agent. Credentials come from IMDS, by the SDK's chain."""
        interpreter = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
        return {
            **interpreter,  # how this program itself was found
            "PATH": os.environ.get("PATH", os.defpath),
            "MY_NODE_NAME": node.name,
            "CLUSTER_NAME": self.name,
            "AWS_REGION": self.region.name,
            "AWS_ENDPOINT_URL_EC2": EC2_ENDPOINT,
            **node.environment,
        }

    async def kill_agent(self, node: LabNode, signal: int = signals.SIGKILL) -> int:
        """Send the agent a signal that ends it and wait for its end; return its exit status (-9 for SIGKILL).

        Raises:
            LabError: no agent was started.
        """
        if node.agent is None:
            raise LabError(f"no agent was started on {node.name}")
        node.agent.signal(signal)
        return await node.agent.wait()

    async def wait_ready(self, node: LabNode, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the agent serves ADDs and has installed its conflist, which a runtime waits for too.

        Raises:
            LabError: the agent ended instead.
            TimeoutError: it did neither in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not node.is_running:
                status = None if node.agent is None else node.agent.returncode
                raise LabError(
                    f"no agent runs on {node.name} (exit status {status}): {_last_line(node.places.log)}; "
                    f"see {node.places.log}"
                )
            said = await node.client.readiness()
            if said is None and any(node.places.conf.glob("*.conflist")):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the agent of {node.name} is not ready after {timeout_s} s: {said}; see {node.places.log}"
                )
            await asyncio.sleep(POLL_S)

    async def _kill_agents(self) -> None:
        for node in self.nodes.values():
            if node.agent is not None:
                await node.agent.kill()

    def _lock(self, stack: AsyncExitStack) -> None:
        """Take the name, and make the run directory; one that a killed lab of the name left is removed."""
        handle = lock(self.directory)
        if handle is None:
            raise LabError(f"another lab named {self.name} runs in {self.directory.parent}")
        stack.callback(os.close, handle)
        left = os.pread(handle, 4096, 0).decode()
        if left.startswith(_RUN_PREFIX) and "/" not in left.removeprefix(_RUN_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
        self.run_directory = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX))
        stack.callback(shutil.rmtree, self.run_directory, ignore_errors=True)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(self.run_directory).encode(), 0)

    def _the_cabling(self) -> Cabling:
        if self._cabling is None:
            raise RuntimeError("the lab is not open: use it as an async context manager")
        return self._cabling


def _last_line(path: Path) -> str:
    """The last line that a program printed, shortened; it mostly says why it ended."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it printed nothing"
    return lines[-1][:300] if lines else "it printed nothing"
