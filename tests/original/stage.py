"""A node of the lab that amazon-vpc-cni-k8s serves, with living pods, and an API server that knows them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import yaml
from aiohttp import web

from tests.libcni import cache_entry, write_entry
from tests.original.host import Eni, Settings
from tests.original.node import OriginalNode, Pod
from vpccni.adapters.cni_files import PLUGIN_PLACES
from vpccni.lab.ec2 import Ec2Fault, Timing
from vpccni.lab.fabric.enter import set_loopback_up
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.fabric.processes import Completed
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.places import build_directory

API_PORT: Final = 8001
NO_FIREWALL: Final = Settings(vpc_cidrs=("10.0.0.0/16",), iptables="")
"""Without iptables, which costs the original most of its start."""
TIMING: Final = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
_PODS: Final = "/api/v1/pods"
_POLICIES: Final = "/apis/networking.k8s.aws/v1alpha1/policyendpoints"


class OriginalStage:
    """A node with two ENIs, and the original on it.

    Attributes:
        pods: Those that it has wired, by name; all in the namespace ``default``.
        annotations, policies: What the API server tells besides: annotations by pod, PolicyEndpoints by name.
        bpf: Stands for ``/sys/fs/bpf``.
    """

    def __init__(self, lab: Lab, node: LabNode, settings: Settings) -> None:
        self.lab, self.node, self.settings = lab, node, settings
        self.pods: dict[str, Pod] = {}
        self.sandboxes: dict[str, Namespace] = {}
        self.annotations: dict[str, dict[str, str]] = {}
        self.policies: list[str] = []
        self.bpf = node.places.root / "bpf"
        self.bpf.mkdir()
        self.kubeconfig = node.places.root / "kubeconfig"
        self.enis: dict[int, str] = {}
        self.original: OriginalNode
        self.runner: web.AppRunner

    # -- what is there ----------------------------------------------------------------------------

    async def furnish(self, addresses: int) -> None:
        """Attach a second ENI, give both so many addresses, and start the original."""
        region, now = self.lab.region, time.time()
        world = region.world
        primary = world.instances[self.node.instance_id].primary_eni
        made = self.perform("CreateNetworkInterface", SubnetId=primary.subnet.id)
        second = made["NetworkInterface"]["NetworkInterfaceId"]
        self.perform(
            "AttachNetworkInterface",
            NetworkInterfaceId=second,
            InstanceId=self.node.instance_id,
            DeviceIndex=1,
        )
        self.enis = {0: primary.id, 1: second}
        for eni in self.enis.values():
            self.perform(
                "AssignPrivateIpAddresses", NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=addresses
            )
        region.advance(now + 1)
        await self.lab.settle()
        self.start_original()

    def start_original(self) -> None:
        """Start its daemon, which learns of the ENIs as IMDS lists them now."""
        self.original = OriginalNode(
            self.node.namespace.path,
            enis=[self._eni(device) for device in self.enis],
            run_directory=self.node.places.run,
            settings=self.settings,
        )
        self.original.start()

    def perform(self, action: str, **params: Any) -> Any:
        """Call EC2 as anybody may, and see that it succeeds."""
        answer = self.lab.region.perform(action, params, time.time())
        assert not isinstance(answer, Ec2Fault), answer
        return answer

    def _eni(self, device: int) -> Eni:
        eni = self.lab.region.world.enis[self.enis[device]]
        return Eni(
            mac=eni.mac,
            device=device,
            primary=eni.primary,
            subnet=str(eni.subnet.cidr),
            addresses=(*eni.secondaries, *eni.prefixes),
        )

    # -- pods -------------------------------------------------------------------------------------

    async def add_pod(self, name: str, *, device: int = 0, address: str = "") -> Pod:
        """A living pod, wired by the original, with the runtime's cached result."""
        sandbox = await self.lab.fabric.add_namespace(name)
        await self.lab.fabric.run_in_thread(sandbox, set_loopback_up)
        container_id = hashlib.sha256(name.encode()).hexdigest()
        address = address or self.free_address(device)
        pod = self.original.add(
            "default", name, netns=sandbox.path, container_id=container_id, address=address
        )
        entry = cache_entry(container_id, result=pod.result, netns=sandbox.path, pod=name)
        write_entry(self.node.places.results, entry)
        self.pods[name], self.sandboxes[name] = pod, sandbox
        return pod

    def free_address(self, device: int) -> str:
        """An address of an ENI that the original has not given to anybody."""
        taken = {pod.address for pod in self.pods.values()}
        taken |= {row.address for row in self.original.rows.values()}
        return next(one for one in self._eni(device).addresses if one not in taken)

    # -- the API server ---------------------------------------------------------------------------

    async def serve_api(self) -> None:
        """Serve what there is, on the node's loopback; ``kubeconfig`` says where."""
        app = web.Application()
        app.router.add_get(_PODS, self._answer_pods)
        app.router.add_get(_POLICIES, self._answer_policies)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listening = self.lab.fabric.listen_in(self.node.namespace, "127.0.0.1", API_PORT)
        await web.SockSite(runner, listening).start()
        cluster = {"server": f"http://127.0.0.1:{API_PORT}"}
        self.kubeconfig.write_text(
            yaml.safe_dump({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "lab", "cluster": cluster}],
                "users": [{"name": "node", "user": {}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "node"}}],
                "current-context": "lab",
            })
        )  # fmt: skip
        self.runner = runner

    async def _answer_pods(self, request: web.Request) -> web.Response:
        items = [
            {
                "metadata": {
                    "name": name,
                    "namespace": "default",
                    "uid": f"uid-{name}",
                    "annotations": self.annotations.get(name, {}),
                },
                "spec": {},
                "status": {"phase": "Running", "podIPs": [{"ip": pod.address}]},
            }
            for name, pod in self.pods.items()
        ]
        return web.json_response({"kind": "PodList", "metadata": {}, "items": items})

    async def _answer_policies(self, request: web.Request) -> web.Response:
        items = [{"metadata": {"name": name, "namespace": "default"}} for name in self.policies]
        return web.json_response({"kind": "PolicyEndpointList", "metadata": {}, "items": items})

    # -- commands ---------------------------------------------------------------------------------

    def paths(self) -> dict[str, str]:
        """Where the node's places lie in the lab, by where they lie on a node."""
        places = self.node.places
        return {
            "/var/run/aws-node": str(places.run),
            "/var/lib/aws-node": str(places.state),
            "/var/lib/cni/results": str(places.results),
            "/sys/fs/bpf": str(self.bpf),
            "/opt/cni/bin": str(places.bin),
            "/etc/cni/net.d": str(places.conf),
        }

    async def vpccni(self, *arguments: str, **environment: str) -> Completed:
        """Run a command on the node, as root there."""
        return await self.lab.fabric.exec_in(
            self.node.namespace,
            [sys.executable, "-m", "vpccni", *arguments],
            env=self.lab.agent_environment(self.node) | environment,
        )

    async def check(self, *arguments: str, **environment: str) -> Completed:
        """``vpccni take-over --check`` on the node."""
        places = self.node.places
        return await self.vpccni(
            "take-over", "--check",
            "--run-dir", str(places.run),
            "--checkpoint", str(places.run / "ipam.json"),
            "--cni-results-dir", str(places.results),
            "--bpf-dir", str(self.bpf),
            "--boot-id-path", str(places.boot_id),
            *arguments,
            **environment,
        )  # fmt: skip

    # -- what must not change ---------------------------------------------------------------------

    async def picture(self) -> set[str]:
        """Everything that a look must leave as it is: files with their times, the kernel of node and pods."""
        told = await self.kernel()
        for root in (self.node.places.root, self.node.places.run):
            for path in sorted(root.rglob("*")):
                status = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                told.add(f"{path} {status.st_mode:o} {status.st_uid} {status.st_mtime_ns} {content}")
        return told

    async def kernel(self) -> set[str]:
        """The kernel of the node and of each pod, a line for each object."""
        told: set[str] = set()
        script = "; ".join(
            [
                # Not IPv6: the kernel is still looking for duplicates of its link-local addresses.
                *(f"ip -4 -d -o {what} show" for what in ("link", "address", "rule")),
                "ip -4 neighbour show nud permanent",
                "ip -4 route show table all",
                "nft list ruleset",
                "sysctl -a --pattern '^net[.]' 2>/dev/null | grep -v conntrack_count || :",
            ]
        )
        for namespace in (self.node.namespace, *self.sandboxes.values()):
            done = await self.lab.fabric.exec_in(
                namespace, ["sh", "-ec", script], env={"PATH": os.environ["PATH"]}
            )
            assert done.returncode == 0, done.stderr.decode()
            told |= {f"{namespace.name}: {line}" for line in done.stdout.decode().splitlines()}
        return told


@asynccontextmanager
async def original_stage(
    *, addresses: int = 4, pods: tuple[str, ...] = (), settings: Settings = NO_FIREWALL
) -> AsyncIterator[OriginalStage]:
    """A lab with one node that the original serves. Pods alternate between its two ENIs."""
    if not any(place.is_file() for place in PLUGIN_PLACES):
        pytest.skip("the CNI executable is not built: make plugin")
    # One place for all: what a test that was killed has left there and in /tmp goes with the next one.
    directory = build_directory() / "original"
    async with Lab("o", directory=directory, latency_s={}, timing=TIMING) as lab:
        stage = OriginalStage(lab, await lab.add_node("a", "m5.large"), settings)
        await stage.furnish(addresses)
        await stage.serve_api()
        try:
            for number, name in enumerate(pods):
                await stage.add_pod(name, device=number % 2)
            yield stage
        finally:
            stage.original.stop()
            await stage.runner.cleanup()


def said(done: Completed) -> dict[str, Any]:
    """The JSON that a command has printed."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found
