"""The manifests that run a command on every node, at their word: their mounts and their rights are enough."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import yaml

from tests.deploy_manifest import DEPLOY, agent_environment
from tests.e2e.containerd import share_netns_directory
from tests.e2e.pod_view import CHECKOUT, command_in_view
from tests.original.stage import OriginalStage, original_stage
from vpccni.datapath.numbers import POD_TABLE
from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY
from vpccni.lab.fabric.processes import Completed

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]


@pytest.fixture(autouse=True)
def netns_directory():
    if find_program("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    share_netns_directory(shared=True)
    yield
    share_netns_directory(shared=False)


async def run_manifest(stage: OriginalStage, name: str, **environment: str) -> Completed:
    """Run what a manifest runs on each node, as its container."""
    spec = yaml.safe_load((DEPLOY / f"{name}.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = spec["initContainers"]
    places = stage.node.places
    root, cache = places.root / f"view-{name}", places.root / "cni"
    root.mkdir()
    shutil.copytree(places.results, cache / "results", dirs_exist_ok=True)
    lies = {
        "/var/run/aws-node": places.run,
        "/var/lib/aws-node": places.state,
        "/run/netns": NETNS_DIRECTORY,
        "/var/lib/cni": cache,
        "/sys/fs/bpf": stage.bpf,
    }
    host_paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    volumes = {each["mountPath"]: lies[host_paths[each["name"]]] for each in container["volumeMounts"]}
    return await stage.lab.fabric.exec_in(
        stage.node.namespace,
        command_in_view(root, volumes, container["command"], container=container),
        env={"PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"} | environment,
    )


async def test_the_check_finds_every_pod_and_changes_nothing():
    async with original_stage(pods=("web-0", "web-1")) as stage:
        before = await stage.picture()
        environment = agent_environment(nodeName="a", name="vpccni-take-over-check-x7k2p")
        done = await run_manifest(stage, "take-over-check", **environment)
        shutil.rmtree(stage.node.places.root / "cni")
        (stage.node.places.root / "view-take-over-check").rmdir()
        assert {line for line in await stage.picture() ^ before if "/view-" not in line} == set()
        said = done.stdout.decode()
        assert done.returncode == 0, said + done.stderr.decode()
        for words in ("2 leases", "default/web-0", "default/web-1", "ipamd.sock answers"):
            assert words in said
        assert said.count("kernel, runtime's cache, ipam.json") == 2
        assert "could not be read" not in said


async def test_the_end_of_handing_back_takes_nothing_before_the_original_serves_and_everything_after():
    async with original_stage(pods=("web-0", "web-1")) as stage:
        stage.original.stop()
        await stage.lab.start_agent(stage.node)
        await stage.lab.wait_ready(stage.node)
        done = await stage.vpccni("hand-back", "--socket", str(stage.node.places.socket))
        assert done.returncode == 0, done.stderr.decode()
        await stage.lab.kill_agent(stage.node, signal.SIGTERM)

        before = await stage.kernel()
        done = await run_manifest(stage, "hand-back-finish")
        assert (done.returncode, b"does not serve this node" in done.stderr) == (1, True)
        assert await stage.kernel() ^ before == set()
        (stage.node.places.root / "view-hand-back-finish").rmdir()

        stage.start_original()
        done = await run_manifest(stage, "hand-back-finish")
        assert done.returncode == 0, done.stderr.decode()
        left = "\n".join(await stage.kernel())
        for ours in (f"lookup {POD_TABLE}", f"table {POD_TABLE}", "vpccni"):
            assert ours not in left
