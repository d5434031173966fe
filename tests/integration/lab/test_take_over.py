"""``vpccni take-over --check`` beside a living original: what it finds and refuses, and that it changes nothing."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network

import pytest

from tests.original.stage import original_stage, said
from vpccni.cli.looking import _told
from vpccni.lab.ec2 import ImdsFault

pytestmark = [pytest.mark.netns, pytest.mark.slow]


async def test_an_ordinary_node_can_be_taken_over_and_is_left_as_it_was():
    async with original_stage(pods=("web-0", "web-1", "db-0")) as stage:
        before = await stage.picture()
        done = await stage.check("--json", KUBECONFIG=str(stage.kubeconfig))
        assert await stage.picture() ^ before == set()
        assert (done.returncode, done.stderr) == (0, b"")
        told = said(done)
        assert told["can_be_taken_over"] is True
        assert told["original"].endswith("ipamd.sock answers")
        assert told["sources"] == dict.fromkeys(
            ("kernel", "runtime_cache", "checkpoint", "imds", "api_server", "policy_endpoints"), "read"
        ) | {"bpf": "absent"}
        found = {(one["name"], one["address"], one["becomes"], one["host_ifname"]) for one in told["found"]}
        assert found == {(name, pod.address, "lease", pod.host_ifname) for name, pod in stage.pods.items()}
        for one in told["found"]:
            assert set(one["sources"]) >= {"kernel", "runtime_cache", "checkpoint"}
        assert (told["objections"], told["cautions"], told["gaps"]) == ([], [], [])

        done = await stage.check(KUBECONFIG=str(stage.kubeconfig))
        text = done.stdout.decode()
        assert done.returncode == 0
        for words in (
            "This node can be taken over.",
            "3 leases",
            "default/web-0",
            "ipamd.sock answers",
            "3 pods",
        ):
            assert words in text


async def test_everything_that_stands_in_the_way_is_told_at_once_with_the_pods():
    async with original_stage(pods=("web-0", "web-1", "db-0")) as stage:
        made = stage.perform("AssignPrivateIpAddresses", NetworkInterfaceId=stage.enis[1], Ipv4PrefixCount=1)
        prefix = ip_network(made["AssignedIpv4Prefixes"][0]["Ipv4Prefix"])
        stage.original.stop()
        stage.start_original()
        await stage.add_pod("in-prefix", device=1, address=str(prefix[5]))
        stage.annotations["web-0"] = {"vpc.amazonaws.com/pod-eni": '[{"eniId":"eni-1"}]'}
        rows = json.loads(stage.original.checkpoint_path.read_text())
        rows["allocations"] = [row for row in rows["allocations"] if row["metadata"]["k8sPodName"] == "db-0"]
        stage.original.checkpoint_path.with_name("ipam-nic-1.json").write_text(json.dumps(rows))
        programs = stage.bpf / "globals" / "aws" / "programs"
        programs.mkdir(parents=True)
        (programs / "web@default_handle_ingress").touch()
        stage.policies = ["web-x2x"]

        before = await stage.picture()
        done = await stage.check("--json", KUBECONFIG=str(stage.kubeconfig), ENABLE_MULTI_NIC="true")
        assert await stage.picture() ^ before == set()
        assert done.returncode == 1
        told = said(done)
        assert told["can_be_taken_over"] is False
        assert {one["kind"]: one["pods"] for one in told["objections"]} == {
            "settings": [],
            "branch_enis": ["default/web-0"],
            "other_cards": ["default/db-0"],
            "prefixes": ["default/in-prefix"],
            "network_policies": ["default/web-0", "default/web-1"],
        }
        for one in told["objections"]:
            assert one["reason"] == (
                "feature_not_supported" if one["kind"] == "settings" else "take_over_refused"
            )
            assert one["next_action"]
        assert len(told["found"]) == 4

        done = await stage.check(KUBECONFIG=str(stage.kubeconfig))
        assert done.returncode == 1
        text = done.stdout.decode()
        for words in (
            "This node cannot be taken over: 4 things stand in the way.",
            "take_over_refused: 1 pod has a branch ENI (security groups for pods), which vpccni cannot serve yet: "
            "default/web-0.",
            "ipam-nic-1.json",
        ):
            assert words in text


async def test_a_pod_with_a_branch_eni_shows_without_the_api_server():
    """1. Its host veth begins otherwise where security groups are strict. 2. The kernel alone tells."""
    async with original_stage(pods=("web-0",)) as stage:
        veth = stage.pods["web-0"].host_ifname.replace("eni", "vlan")
        await stage.lab.fabric.exec_in(stage.node.namespace, ["ip", "link", "add", veth, "type", "veth"])
        done = await stage.check("--json")
        assert done.returncode == 1
        told = said(done)
        (objection,) = told["objections"]
        assert (objection["kind"], objection["pods"]) == ("branch_enis", ["default/web-0"])
        assert told["sources"]["api_server"] == "absent"


async def test_without_imds_nobody_says_that_the_node_can_be_taken_over():
    async with original_stage(pods=("web-0",)) as stage:
        stage.lab.region.imds.inject(ImdsFault(kind="status", status=503))
        done = await stage.check("--json")
        assert done.returncode == 2
        told = said(done)
        assert told["can_be_taken_over"] is None
        assert len(told["gaps"]) == 1
        assert told["sources"]["imds"].startswith("unreadable")
        text = (await stage.check()).stdout.decode()
        assert "Whether this node can be taken over is not known." in text


async def test_an_api_server_that_is_away_is_told_of_and_hides_no_pod():
    async with original_stage(pods=("web-0",)) as stage:
        await stage.runner.cleanup()
        done = await stage.check("--json", KUBECONFIG=str(stage.kubeconfig))
        assert done.returncode == 0
        told = said(done)
        assert [one["name"] for one in told["found"]] == ["web-0"]
        assert told["sources"]["api_server"].startswith("unreadable")
        assert told["sources"]["policy_endpoints"].startswith("unreadable")
        assert "sources" in [one["kind"] for one in told["cautions"]]


async def test_a_source_that_never_answers_is_given_up():
    answer, status = await _told(asyncio.Event().wait(), 0.01)
    assert (answer, status) == (None, "unreadable: no answer in 0.01 s")
