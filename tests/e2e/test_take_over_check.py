"""deploy/take-over-check.yaml at its word: with its mounts and its rights the check sees what it must."""

from __future__ import annotations

import os
import shutil

import pytest
import yaml

from tests.deploy_manifest import DEPLOY, agent_environment
from tests.e2e.containerd import share_netns_directory
from tests.e2e.pod_view import CHECKOUT, command_in_view
from tests.original.stage import original_stage
from vpccni.lab.fabric.enter import find_program
from vpccni.lab.fabric.namespaces import NETNS_DIRECTORY

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.slow]

SPEC = yaml.safe_load((DEPLOY / "take-over-check.yaml").read_text())["spec"]["template"]["spec"]
(CHECK,) = SPEC["initContainers"]


async def test_the_manifests_container_finds_every_pod_and_changes_nothing():
    if find_program("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed")
    share_netns_directory(shared=True)
    try:
        async with original_stage(pods=("web-0", "web-1")) as stage:
            places = stage.node.places
            cache, root = places.root / "cni", places.root / "view"
            shutil.copytree(places.results, cache / "results")
            root.mkdir()
            lies = {
                "/var/run/aws-node": places.run,
                "/run/netns": NETNS_DIRECTORY,
                "/var/lib/cni": cache,
                "/sys/fs/bpf": stage.bpf,
            }
            host_paths = {volume["name"]: volume["hostPath"]["path"] for volume in SPEC["volumes"]}
            volumes = {each["mountPath"]: lies[host_paths[each["name"]]] for each in CHECK["volumeMounts"]}
            before = await stage.picture()
            done = await stage.lab.fabric.exec_in(
                stage.node.namespace,
                command_in_view(root, volumes, CHECK["command"], container=CHECK),
                env={"PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"}
                | agent_environment(nodeName="a", name="vpccni-take-over-check-x7k2p"),
            )
            assert await stage.picture() ^ before == set()
            said = done.stdout.decode()
            assert done.returncode == 0, said + done.stderr.decode()
            assert "2 leases" in said
            for name in stage.pods:
                assert f"default/{name}" in said
            assert "kernel, runtime's cache, ipam.json" in said
            assert "ipamd.sock answers" in said
            assert "could not be read" not in said
    finally:
        share_netns_directory(shared=False)
