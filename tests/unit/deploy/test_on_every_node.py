"""The manifests that run a command once on every node: where, as whom, with which view and which rights."""

import shlex

import pytest
import yaml

from tests.deploy_manifest import DEPLOY, container, pod_spec
from vpccni.settings import read_settings

CHECK, FINISH = "take-over-check", "hand-back-finish"
MANIFESTS = {name: yaml.safe_load((DEPLOY / f"{name}.yaml").read_text()) for name in (CHECK, FINISH)}
PAGE = (DEPLOY.parent / "docs" / "migrate.md").read_text()
both = pytest.mark.parametrize("name", MANIFESTS)


def spec_of(name):
    return MANIFESTS[name]["spec"]["template"]["spec"]


def runs(name):
    (found,) = spec_of(name)["initContainers"]
    return found


def mounted(spec, each):
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    return {mount["mountPath"]: paths[mount["name"]] for mount in each["volumeMounts"]}


@both
def test_it_runs_where_the_agent_runs(name):
    for field in ("affinity", "tolerations", "hostNetwork"):
        assert spec_of(name)[field] == pod_spec()[field]


@both
def test_it_is_no_pod_of_the_original(name):
    """Else the original's DaemonSet, and ours, would adopt it."""
    labels = MANIFESTS[name]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS[name]["spec"]["selector"]["matchLabels"] == labels
    assert labels["k8s-app"] != "aws-node"


@both
def test_the_image_is_the_agents(name):
    images = {each["image"] for each in spec_of(name)["initContainers"] + spec_of(name)["containers"]}
    assert images == {container("aws-node")["image"]}


@both
def test_it_looks_where_the_agent_looks_and_writes_no_file(name):
    assert mounted(spec_of(name), runs(name)).items() <= mounted(pod_spec(), container("aws-node")).items()
    assert all(mount["readOnly"] for mount in runs(name)["volumeMounts"])
    assert not any("type" in volume["hostPath"] for volume in spec_of(name)["volumes"])


@pytest.mark.parametrize(("name", "rights"), [(CHECK, ["SYS_ADMIN"]), (FINISH, ["NET_ADMIN", "SYS_ADMIN"])])
def test_it_gets_no_right_that_it_does_not_need(name, rights):
    (waits,) = spec_of(name)["containers"]
    for each, added in ((runs(name), rights), (waits, [])):
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert each["securityContext"]["capabilities"].get("add", []) == added


def test_the_check_may_ask_what_the_original_may_ask_and_the_end_asks_nobody():
    assert spec_of(CHECK)["serviceAccountName"] == pod_spec()["serviceAccountName"]
    assert "serviceAccountName" not in spec_of(FINISH)
    assert spec_of(FINISH)["automountServiceAccountToken"] is False


def test_the_settings_that_are_checked_are_the_agents():
    assert runs(CHECK)["env"] == container("aws-node")["env"]
    read_settings({each["name"]: each.get("value", "x") for each in runs(CHECK)["env"]})


@both
def test_its_commands_are_those_of_the_page(name):
    text = (DEPLOY / f"{name}.yaml").read_text()
    commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   kubectl")]
    assert len(commands) == 4
    for command in commands:
        assert shlex.split(command)
        assert command in PAGE
