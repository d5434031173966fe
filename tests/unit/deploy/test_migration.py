"""What docs/migrate.md says of the cluster's objects is true of ours and of those of amazon-vpc-cni-k8s."""

import json
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.deploy_manifest import DEPLOY, deploy_manifest
from tests.strategic_merge import apply

FACTS = json.loads((Path(__file__).parents[2] / "data" / "stock-manifest.json").read_text())
INIT = "aws-vpc-cni-init"
POLICY_AGENT = "aws-eks-nodeagent"


def stock_object(kind):
    (found,) = [each for each in FACTS["objects"] if each["kind"] == kind]
    return found


def stock_container(name):
    facts = FACTS["containers"][name]
    env = []
    for variable, text in facts["env"].items():
        if text.startswith("fieldRef "):
            source = {"fieldRef": {"fieldPath": text.removeprefix("fieldRef ")}}
            env.append({"name": variable, "valueFrom": source})
        else:
            env.append({"name": variable, "value": text})
    told = {
        key: facts[key]
        for key in ("args", "securityContext", "livenessProbe", "readinessProbe", "ports")
        if key in facts
    }
    mounts = [{"name": volume, "mountPath": path} for volume, path in facts["mounts"].items()]
    return {"name": name, "image": f"stock/{name}", "env": env, "volumeMounts": mounts, **told}


def stock_daemon_set():
    facts = stock_object("DaemonSet")
    spec = {
        **facts["pod"],
        "initContainers": [stock_container(INIT)],
        "containers": [stock_container("aws-node"), stock_container(POLICY_AGENT)],
        "volumes": [{"name": name, "hostPath": host_path} for name, host_path in FACTS["volumes"].items()],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "aws-node", "namespace": "kube-system", "labels": facts["labels"]},
        "spec": {
            "selector": facts["selector"],
            "updateStrategy": facts["updateStrategy"],
            "template": {"metadata": {"labels": facts["podLabels"]}, "spec": spec},
        },
    }


def pod_spec(daemon_set):
    return daemon_set["spec"]["template"]["spec"]


def named(things):
    return {each["name"]: each for each in things}


def set_env(daemon_set, name, value):
    """As ``kubectl set env`` does: the object is changed, and what ``apply`` remembers of it is not."""
    changed = deepcopy(daemon_set)
    named(pod_spec(changed)["containers"])["aws-node"]["env"].append({"name": name, "value": value})
    return changed


OURS = deploy_manifest()["DaemonSet"]
STOCK = stock_daemon_set()


# -- why not apply ------------------------------------------------------------------------------------


def test_apply_over_an_add_on_or_a_helm_release_keeps_the_originals_containers():
    merged = pod_spec(apply(STOCK, OURS))
    assert set(named(merged["containers"])) == {"aws-node", POLICY_AGENT}
    # It would put the original's executable over ours before each start of the agent.
    assert set(named(merged["initContainers"])) == {"ip-forward", INIT}


def test_apply_over_an_add_on_or_a_helm_release_keeps_the_originals_settings_and_its_mounts():
    merged = named(pod_spec(apply(STOCK, OURS))["containers"])["aws-node"]
    ours = named(pod_spec(OURS)["containers"])["aws-node"]
    kept = set(named(merged["env"])) - set(named(ours["env"]))
    assert {"NETWORK_POLICY_ENFORCING_MODE", "ENABLE_PREFIX_DELEGATION", "VPC_CNI_VERSION"} <= kept
    assert merged["ports"] == [{"containerPort": 61678, "name": "metrics"}]
    assert "log-dir" in named(merged["volumeMounts"])


def test_apply_over_an_applied_manifest_keeps_what_kubectl_set_env_has_added():
    live = set_env(STOCK, "MINIMUM_IP_TARGET", "8")
    merged = pod_spec(apply(live, OURS, STOCK))
    assert set(named(merged["containers"])) == {"aws-node"}
    assert "MINIMUM_IP_TARGET" in named(named(merged["containers"])["aws-node"]["env"])


def test_the_api_server_would_not_refuse_that():
    """The selector, which must not change, is the same."""
    assert apply(STOCK, OURS)["spec"]["selector"] == STOCK["spec"]["selector"]


def test_applying_ours_over_ours_changes_nothing():
    assert apply(OURS, OURS, OURS) == OURS
    assert apply(OURS, OURS) == OURS


# -- why delete and create works ----------------------------------------------------------------------


@pytest.mark.parametrize(("controller", "other"), [(OURS, STOCK), (STOCK, OURS)], ids=["there", "back"])
def test_each_adopts_the_pods_that_the_other_has_left(controller, other):
    """A DaemonSet takes the pods without an owner that its selector matches, and replaces them by its own."""
    wanted = controller["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= other["spec"]["template"]["metadata"]["labels"].items()
    assert controller["metadata"]["namespace"] == other["metadata"]["namespace"]
    assert pod_spec(controller) != pod_spec(other)


def test_both_run_on_the_same_nodes():
    for field in ("affinity", "tolerations", "hostNetwork", "priorityClassName"):
        assert pod_spec(OURS)[field] == pod_spec(STOCK)[field]


def test_what_create_finds_there_already_is_good_enough():
    """``kubectl create`` says AlreadyExists of account, role and binding: the original's allow all that we ask."""
    ours = deploy_manifest()
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
        assert stock_object(kind)["name"] == ours[kind]["metadata"]["name"]
    assert stock_object("ClusterRoleBinding")["roleRef"] == ours["ClusterRoleBinding"]["roleRef"]
    assert stock_object("ClusterRoleBinding")["subjects"] == ours["ClusterRoleBinding"]["subjects"]
    assert allowed(ours["ClusterRole"]["rules"]) <= allowed(stock_object("ClusterRole")["rules"])


def test_our_role_is_not_enough_for_the_original():
    """So it must not be applied while the original runs on a node, or may come back."""
    assert not allowed(stock_object("ClusterRole")["rules"]) <= allowed(
        deploy_manifest()["ClusterRole"]["rules"]
    )


# -- the page's own commands --------------------------------------------------------------------------

PAGE = (DEPLOY.parent / "docs" / "migrate.md").read_text()


def command(start):
    (found,) = [line for line in PAGE.splitlines() if line.startswith(start)]
    return found


def test_the_page_creates_our_daemon_set_so_that_each_node_waits_to_be_told(tmp_path):
    """Only the strategy differs, which ``OnDelete`` has without parameters."""
    script = command("sed ").replace("deploy/aws-node.yaml", str(DEPLOY / "aws-node.yaml"))
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True)
    made = {
        each["kind"]: each for each in yaml.safe_load_all((tmp_path / "aws-node-on-delete.yaml").read_text())
    }
    assert made["DaemonSet"]["spec"].pop("updateStrategy") == {"type": "OnDelete"}
    ours = deploy_manifest()
    strategy = ours["DaemonSet"]["spec"].pop("updateStrategy")
    assert made == ours

    patched = json.loads(shlex.split(command("kubectl patch "))[-1])
    assert apply({"type": "OnDelete"}, patched["spec"]["updateStrategy"]) == strategy


def test_the_page_deletes_daemon_sets_without_their_pods_and_applies_none():
    deletes = [line for line in PAGE.splitlines() if line.startswith("kubectl delete daemonset")]
    assert deletes == ["kubectl delete daemonset aws-node -n kube-system --cascade=orphan"] * 2
    applied = [line for line in PAGE.splitlines() if line.startswith("kubectl apply")]
    assert applied == [
        f"kubectl apply -f deploy/{name}.yaml" for name in ("take-over-check", "hand-back-finish")
    ]


def test_the_page_names_what_apply_would_keep():
    for name in (POLICY_AGENT, INIT, "kubectl set env"):
        assert name in PAGE


def allowed(rules):
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
    }
