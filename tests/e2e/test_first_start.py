"""The agent on a node that is not its own (yet): what it must leave as it is, and what it says."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.waiting import wait_until
from tests.libcni import ORIGINAL_CONFLIST
from tests.original import wiring
from tests.original.stage import OriginalStage, original_stage
from vpccni.datapath.names import host_veth_name
from vpccni.lab.runtime import CniError, Runtime

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SETTINGS = {"MAX_ENI": "2", "IP_COOLDOWN_PERIOD": "1"}
BPF = Path("/sys/fs/bpf")
PODS = ("web-0", "web-1", "db-0")


_AGENT = """
import sys
from vpccni.loops import recover
recover.LOOK_PERIOD_S, recover.QUIET_S, recover.NAMES_PATIENCE_S = 0.3, 1.0, 10.0
from vpccni.__main__ import main
sys.argv[0] = "vpccni"
sys.exit(main())
"""
"""The agent, which looks more often, and waits until an API server on a loaded machine has answered."""


class Foreign:
    """The files of somebody else on a node, and what the kernel and EC2 have, as they were."""

    def __init__(self, stage: OriginalStage) -> None:
        self.stage = stage
        places = stage.node.places
        self.executable, self.conflist = places.bin / "aws-cni", places.conf / "10-aws.conflist"
        self.executable.write_bytes(b"#!/bin/sh\necho the original's plugin\n")
        self.executable.chmod(0o755)
        self.conflist.write_text(json.dumps(ORIGINAL_CONFLIST, indent=2) + "\n")
        self._calls = 0
        self._files: dict[Path, tuple[int, int, bytes]] = {}
        self._kernel: set[str] = set()

    async def remember(self) -> None:
        """Everything is as it should stay."""
        self._files, self._kernel = self._read(), await self.stage.kernel()
        self._calls = len(self.stage.lab.region.journal)

    def _read(self) -> dict[Path, tuple[int, int, bytes]]:
        """Inode, time and content of each file."""
        places = self.stage.node.places
        paths = [*places.bin.iterdir(), *places.conf.iterdir(), self.stage.original.checkpoint_path]
        return {
            path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(paths)
        }

    async def check_untouched(self) -> None:
        """Executable, conflist, ``ipam.json``, kernel and EC2 are as they were remembered."""
        assert self._read() == self._files
        assert await self.stage.kernel() ^ self._kernel == set()
        calls = self.stage.lab.region.journal.calls(after=self._calls)
        assert [call.action for call in calls if not call.action.startswith("Describe")] == []

    async def wait_taken_over(self) -> None:
        """Until our executable and our conflist have taken the places."""
        await self.stage.lab.wait_ready(self.stage.node)
        await wait_until(lambda: "vpccni" in self.conflist.read_text(), "our conflist is there")
        assert self.executable.read_bytes()[:4] == b"\x7fELF"
        await wait_until(
            lambda: "vpccni" in json.loads(self.stage.original.checkpoint_path.read_bytes()), "our export"
        )


@asynccontextmanager
async def foreign_node() -> AsyncIterator[Foreign]:
    async with original_stage(pods=PODS) as stage:
        stage.lab.agent_program = ("-c", _AGENT, "agent")
        yield Foreign(stage)


async def start_agent(stage: OriginalStage, **settings: str) -> None:
    await stage.lab.start_agent(stage.node, SETTINGS | {"KUBECONFIG": str(stage.kubeconfig)} | settings)


async def wait_reason(stage: OriginalStage, reason: str) -> str:
    """Wait until the agent is not ready for this reason; how it says so."""
    found = ""

    async def is_told() -> bool:
        nonlocal found
        if not stage.node.places.socket.exists():
            return False
        status = await stage.node.client.get("/v1/status")
        found = status["message"]
        return bool(status["reason"] == reason)

    await wait_until(is_told, f"the reason {reason}")
    return found


async def refused_add(stage: OriginalStage, name: str) -> str:
    """Why an ADD is refused that comes to our agent all the same."""
    sandbox = await stage.lab.fabric.add_namespace(name)
    call = {
        "command": "ADD",
        "containerId": f"{name:0<64}",
        "netns": sandbox.path,
        "ifname": "eth0",
        "config": {"cniVersion": "1.1.0", "name": "aws-cni", "type": "aws-cni"},
    }
    connector = aiohttp.UnixConnector(str(stage.node.places.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post("http://agent/v1/cni", json=call) as reply,
    ):
        return str((await reply.json(content_type=None))["reason"])


async def status_text(stage: OriginalStage) -> str:
    """What ``vpccni status`` shows of an agent that is not ready."""
    done = await stage.vpccni("status", "--socket", str(stage.node.places.socket), COLUMNS="200")
    assert done.returncode == 1, done.stdout.decode()
    return done.stdout.decode()


async def wait_looked_again(stage: OriginalStage) -> None:
    """Until our agent has asked twice whether the original lives: one look began and ended in between."""
    stage.original.callers()
    looks = 0

    def has_looked() -> bool:
        nonlocal looks
        looks += stage.original.callers()
        return looks >= 2

    await wait_until(has_looked, "two looks at the original's socket")


# --- beside a living original -------------------------------------------------------------------------------


async def test_beside_a_living_original_the_agent_changes_nothing_and_says_so():
    """1. Our agent starts. 2. The original goes on. 3. Our agent ends. 4. The original ends, and ours serves."""
    async with foreign_node() as foreign:
        stage = foreign.stage
        await foreign.remember()
        await start_agent(stage)
        assert "ipamd.sock answers" in await wait_reason(stage, "another_agent")
        await wait_looked_again(stage)
        await foreign.check_untouched()
        assert await refused_add(stage, "new") == "another_agent"
        assert await stage.node.client.get("/v1/pods") == []
        shown = await status_text(stage)
        assert "another_agent" in shown
        assert "another agent lives here" in shown

        await stage.add_pod("more", device=1)
        await foreign.remember()
        await wait_looked_again(stage)
        await foreign.check_untouched()
        assert await stage.lab.kill_agent(stage.node, signal.SIGTERM) == 0
        await foreign.check_untouched()

        await start_agent(stage)
        await wait_reason(stage, "another_agent")
        stage.original.stop()
        await foreign.wait_taken_over()
        assert {pod["name"] for pod in await stage.node.client.get("/v1/pods")} == {*PODS, "more"}


async def test_an_original_that_comes_back_under_our_agent_has_the_node_for_itself():
    """Nobody asked us to hand back: somebody has put the original's DaemonSet beside ours."""
    async with foreign_node() as foreign:
        stage = foreign.stage
        stage.original.stop()
        await start_agent(stage)
        await foreign.wait_taken_over()
        runtime = Runtime(stage.lab, stage.node)
        ours = await runtime.add("ours")
        await wait_until(
            lambda: ours.container_id in stage.original.checkpoint_path.read_text(), "the export"
        )

        stage.start_original()
        assert {row.name for row in stage.original.rows.values()} == {*PODS, "ours"}
        await wait_reason(stage, "another_agent")
        await stage.add_pod("theirs")
        await foreign.remember()
        await wait_looked_again(stage)
        with pytest.raises(CniError, match="another_agent"):
            await runtime.add("refused")
        await foreign.check_untouched()

        stage.original.stop()
        await stage.lab.wait_ready(stage.node)
        names = {pod["name"]: pod["addresses"][0] for pod in await stage.node.client.get("/v1/pods")}
        assert names.keys() == {*PODS, "ours", "theirs"}
        assert (await runtime.add("next")).address not in names.values()


# --- what cannot be served yet ------------------------------------------------------------------------------


@contextmanager
def pinned_program(stage: OriginalStage, name: str) -> Iterator[None]:
    """The original's policy agent has pinned a program, and there is a policy. In the mounts of this world alone."""
    if not BPF.is_dir():
        pytest.skip(f"this kernel has no {BPF}")
    programs = stage.bpf / "globals" / "aws" / "programs"
    programs.mkdir(parents=True)
    (programs / name).touch()
    stage.policies = ["web-x2x"]
    subprocess.run(["mount", "--bind", stage.bpf, BPF], check=True)
    try:
        yield
    finally:
        stage.policies = []
        subprocess.run(["umount", BPF], check=True)


@contextmanager
def branch_annotation(stage: OriginalStage, pod: str) -> Iterator[None]:
    """A pod has a security group of its own, says the API server."""
    stage.annotations[pod] = {"vpc.amazonaws.com/pod-eni": '[{"eniId":"eni-1"}]'}
    yield
    del stage.annotations[pod]


@contextmanager
def branch_veth(stage: OriginalStage, pod: str) -> Iterator[None]:
    """Another pod has one, enforced strictly: its host veth begins otherwise, and the API server does not answer."""
    node, veth = stage.node.namespace.path, host_veth_name("vlan", "default", pod)
    wiring.run_in(node, f"ip link add {veth} type veth peer name far")
    stage.kubeconfig.rename(stage.kubeconfig.with_name("hidden"))
    yield
    wiring.run_in(node, f"ip link del {veth}")


@pytest.mark.parametrize(
    ("obstacle", "argument", "words"),
    [
        (branch_annotation, "web-1", ["branch ENI", "default/web-1"]),
        (branch_veth, "secured", ["branch ENI"]),
        (pinned_program, "web@default_handle_ingress", ["etwork policies are enforced"]),
    ],
    ids=["an annotation of a branch ENI", "an interface of a branch ENI", "an enforced network policy"],
)
async def test_a_node_that_cannot_be_served_is_left_as_it_is_until_it_can(obstacle, argument, words):
    """1. The original is stopped, our agent refuses. 2. What stood in the way is gone: it takes the node over."""
    async with foreign_node() as foreign:
        stage = foreign.stage
        stage.original.stop()
        with obstacle(stage, argument):
            await foreign.remember()
            await start_agent(stage)
            told = await wait_reason(stage, "take_over_refused")
            shown = await status_text(stage)
            for word in words:
                assert word in told
                assert word in shown.replace("\n", " ")
            assert await refused_add(stage, "new") == "take_over_refused"
            await foreign.check_untouched()
            assert await stage.lab.kill_agent(stage.node, signal.SIGTERM) == 0
            await foreign.check_untouched()
            await start_agent(stage)
            await wait_reason(stage, "take_over_refused")
        await foreign.wait_taken_over()
        assert {pod["name"] for pod in await stage.node.client.get("/v1/pods")} == set(PODS)
