"""The manifest that asks every node: it looks where the agent looks, with its settings, and may change nothing."""

import shlex
from pathlib import Path

import pytest
import yaml

from tests.deploy_manifest import DEPLOY, container, pod_spec
from vpccni.settings import read_settings

MANIFEST = yaml.safe_load((DEPLOY / "take-over-check.yaml").read_text())
SPEC = MANIFEST["spec"]["template"]["spec"]
(CHECK,) = SPEC["initContainers"]
(PASSED,) = SPEC["containers"]


def test_it_runs_where_the_agent_will_run_and_as_the_original():
    for field in ("affinity", "tolerations", "hostNetwork", "serviceAccountName"):
        assert SPEC[field] == pod_spec()[field]


def test_it_is_no_pod_of_the_original():
    """Else the original's DaemonSet would adopt it."""
    labels = MANIFEST["spec"]["template"]["metadata"]["labels"]
    assert MANIFEST["spec"]["selector"]["matchLabels"] == labels
    assert labels["k8s-app"] != "aws-node"


def test_it_checks_the_settings_of_the_agent():
    assert CHECK["env"] == container("aws-node")["env"]
    read_settings({each["name"]: each.get("value", "x") for each in CHECK["env"]})


def test_the_image_is_the_agents():
    assert {CHECK["image"], PASSED["image"]} == {container("aws-node")["image"]}


def test_it_looks_where_the_agent_looks_and_writes_nowhere():
    def mounted(spec, each):
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
        return {mount["mountPath"]: paths[mount["name"]] for mount in each["volumeMounts"]}

    assert mounted(SPEC, CHECK).items() <= mounted(pod_spec(), container("aws-node")).items()
    assert all(mount["readOnly"] for mount in CHECK["volumeMounts"])
    assert not any("type" in volume["hostPath"] for volume in SPEC["volumes"])


@pytest.mark.parametrize("each", [CHECK, PASSED], ids=lambda each: each["name"])
def test_it_gets_no_right_that_it_does_not_need(each):
    security = each["securityContext"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"].get("add", []) == (["SYS_ADMIN"] if each is CHECK else [])


def test_its_commands_are_those_of_docs_migrate():
    text = (DEPLOY / "take-over-check.yaml").read_text()
    commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   kubectl")]
    page = (Path(DEPLOY).parent / "docs" / "migrate.md").read_text()
    assert len(commands) == 4
    for command in commands:
        assert shlex.split(command)
        assert command in page
