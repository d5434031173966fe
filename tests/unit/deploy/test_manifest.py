"""The manifest asks for what the agent needs, no less and no more, under the original's names."""

import importlib.util
import inspect
import itertools
import json
import re
from pathlib import Path

import pytest

from tests.deploy_manifest import (
    DEPLOY,
    agent_command,
    agent_environment,
    container,
    deploy_manifest,
    pod_spec,
)
from tests.fakes.ec2 import region_ec2
from vpccni.adapters.ec2 import AwsEc2
from vpccni.adapters.ec2.sdk import OPERATIONS
from vpccni.adapters.predecessor import PINS
from vpccni.conflist import SOCKET_DEFAULT, SPOOL_DEFAULT
from vpccni.flags import parser
from vpccni.lab.ec2 import small_region
from vpccni.model import InstanceId
from vpccni.settings import TABLE, Settings, Status, read_settings

REPO = DEPLOY.parent
LOCK = Path("/run/xtables.lock")
ENVIRONMENT = agent_environment(nodeName="node-1", name="aws-node-x")
CONTAINERS = ["ip-forward", "aws-node"]


def mounts(name):
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod_spec()["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in container(name).get("volumeMounts", [])}


def flag(command, name):
    return command[command.index(name) + 1]


def test_it_takes_the_originals_place():
    documents = deploy_manifest()
    assert set(documents) == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"}
    for kind, document in documents.items():
        assert document["metadata"]["name"] == "aws-node"
        if not kind.startswith("Cluster"):
            assert document["metadata"]["namespace"] == "kube-system"
    daemon_set = documents["DaemonSet"]["spec"]
    assert daemon_set["selector"]["matchLabels"] == {"k8s-app": "aws-node"}
    assert daemon_set["template"]["metadata"]["labels"]["k8s-app"] == "aws-node"
    assert daemon_set["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "10%"},
    }
    spec = pod_spec()
    assert spec["hostNetwork"] is True
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["terminationGracePeriodSeconds"] == 10
    assert spec["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    assert documents["ClusterRoleBinding"]["roleRef"]["name"] == documents["ClusterRole"]["metadata"]["name"]


def test_every_variable_is_in_the_table_and_has_an_effect_or_is_a_name():
    rows = {row.name: row for row in TABLE}
    assert set(ENVIRONMENT) <= set(rows)
    idle = {name for name in ENVIRONMENT if rows[name].status is Status.NO_EFFECT}
    assert idle <= {"MY_POD_NAME"}


def test_its_environment_is_the_defaults_and_warns_of_nothing():
    assert read_settings(ENVIRONMENT) == Settings(node_name="node-1", log_level="info")


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_path_of_a_command_is_mounted(name):
    spec = container(name)
    probes = [
        spec[probe]["exec"]["command"] for probe in ("livenessProbe", "readinessProbe") if probe in spec
    ]
    for word in [part for command in [spec["command"], *probes] for part in command]:
        if word.startswith("/"):
            assert any(Path(word).is_relative_to(path) for path in mounts(name)), word


def test_what_the_host_and_the_agent_name_alike_lies_at_the_same_place():
    alike = mounts("aws-node")
    for path in ("/var/run/aws-node", "/run/netns"):
        assert alike[path] == path
    assert alike["/var/run/netns"] == "/run/netns"
    run_dir = flag(agent_command(), "--run-dir")
    assert Path(SOCKET_DEFAULT).is_relative_to(run_dir)
    assert Path(SPOOL_DEFAULT).is_relative_to(run_dir)


def test_the_log_is_on_the_nodes_disk_and_not_in_the_run_directory():
    state_dir = flag(agent_command(), "--state-dir")
    assert mounts("aws-node")[state_dir] == "/var/lib/aws-node"


def test_namespaces_that_are_mounted_later_are_seen():
    for mount in container("aws-node")["volumeMounts"]:
        if mount["name"] == "netns-dir":
            assert mount["mountPropagation"] == "HostToContainer"


def test_what_is_only_looked_at_is_read_only():
    read_only = {each["mountPath"] for each in container("aws-node")["volumeMounts"] if each.get("readOnly")}
    assert read_only == {"/var/lib/cni", "/sys/fs/bpf"}


def test_the_pins_of_network_policies_are_seen_where_the_adapter_looks():
    """Without the mount a container's /sys/fs/bpf is empty, and nothing would stand in the way of a take-over."""
    mount_path = "/sys/fs/bpf"
    assert PINS.is_relative_to(mount_path)
    assert mounts("aws-node")[mount_path] == mount_path


def test_the_executable_and_the_conflist_go_where_the_runtime_looks():
    assert mounts("aws-node")[flag(agent_command(), "--install-bin")] == "/opt/cni/bin"
    assert mounts("aws-node")[flag(agent_command(), "--install-conf")] == "/etc/cni/net.d"
    assert mounts("aws-node")[read_settings(ENVIRONMENT).cni_bin_dir] == "/opt/cni/bin"


def test_nothing_but_the_agent_writes_to_the_node():
    """An init container runs before the agent has asked who lives here."""
    for each in pod_spec()["initContainers"]:
        assert "volumeMounts" not in each
    assert {each["name"] for each in pod_spec()["initContainers"] + pod_spec()["containers"]} == set(
        CONTAINERS
    )


def test_every_volume_is_mounted_and_every_mount_has_a_volume():
    names = {volume["name"] for volume in pod_spec()["volumes"]}
    assert {mount["name"] for mount in container("aws-node")["volumeMounts"]} == names


def test_the_lock_of_iptables_is_the_nodes():
    assert mounts("aws-node")[str(LOCK)] == str(LOCK)


def test_only_the_line_that_writes_to_proc_is_privileged():
    for name in CONTAINERS:
        assert container(name)["securityContext"].get("privileged", False) is (name == "ip-forward")
    assert container("aws-node")["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"],
    }


def test_the_probes_ask_the_socket_that_the_agent_serves():
    socket = f"{flag(agent_command(), '--run-dir')}/vpccni.sock"
    for probe, question, delay in (("livenessProbe", "live", 60), ("readinessProbe", "ready", 1)):
        asked = container("aws-node")[probe]
        assert asked["exec"]["command"] == ["vpccni", "probe", question, "--socket", socket]
        assert (asked["initialDelaySeconds"], asked["timeoutSeconds"]) == (delay, 10)


def test_the_agent_takes_the_commands_flags():
    program, verb, *flags = agent_command()
    assert (program, verb) == ("vpccni", "agent")
    options = parser().parse_args(flags)
    assert (options.state_dir, options.run_dir) == (Path("/var/lib/aws-node"), Path("/var/run/aws-node"))
    assert options.install_conf == Path("/host/etc/cni/net.d")
    assert not options.volatile_log
    assert any(options.cni_results_dir.is_relative_to(path) for path in mounts("aws-node"))


def test_the_cluster_role_allows_what_the_kubernetes_adapter_asks():
    rules = deploy_manifest()["ClusterRole"]["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {
        ("", "nodes", "get"),
        ("", "pods", "list"),
        ("networking.k8s.aws", "policyendpoints", "list"),
    }


def policy_script():
    specification = importlib.util.spec_from_file_location("iam_policy", REPO / "scripts" / "iam_policy.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_policy_is_the_one_that_make_docs_prints():
    assert (DEPLOY / "iam-policy.json").read_text() == policy_script().document()


def allowed_actions(document):
    return {action.removeprefix("ec2:") for each in document["Statement"] for action in each["Action"]}


def test_the_policy_grants_no_wildcard_and_no_tag_on_anything_but_interfaces():
    document = json.loads((DEPLOY / "iam-policy.json").read_text())
    assert not any("*" in action for action in allowed_actions(document))
    (tagging,) = [each for each in document["Statement"] if "ec2:CreateTags" in each["Action"]]
    assert tagging["Action"] == ["ec2:CreateTags"]
    assert tagging["Resource"].endswith(":network-interface/*")
    assert allowed_actions(policy_script().policy({"DescribeSubnets"})) == {"DescribeSubnets"}
    assert allowed_actions(policy_script().policy({"CreateNetworkInterface"})) == {
        "CreateNetworkInterface",
        "CreateTags",
    }


class Watched:
    """Notes which methods of the adapter were called."""

    def __init__(self, ec2):
        self._ec2 = ec2
        self.called = set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self._ec2, name)


async def test_the_policy_allows_exactly_the_calls_that_the_ec2_adapter_makes():
    """Every method of the adapter is called against a region, which writes down what reaches it."""
    region = small_region()
    subnet = next(iter(region.world.subnets.values()))
    instance = InstanceId(region.launch_instance(subnet.id, "m5.large", now=0.0).id)
    now = itertools.count(1)
    ec2 = Watched(region_ec2(region, lambda: float(next(now)) * 60))
    await ec2.describe_limits("m5.large")
    await ec2.describe_subnet(subnet.id)
    made = await ec2.create_eni(
        subnet=subnet.id, groups=(), secondary_count=1, description="d", tags={"a": "b"}, token="t"
    )
    await ec2.tag_eni(made.id, {"c": "d"})
    await ec2.describe_left_behind(instance)
    attachment = await ec2.attach_eni(made.id, instance, device=1, card=0)
    await ec2.set_delete_on_termination(made.id, attachment)
    await ec2.describe_attached(instance)
    given = await ec2.assign_addresses(made.id, 2)
    await ec2.unassign_addresses(made.id, given)
    await ec2.describe_eni(made.id)
    await ec2.describe_enis([made.id])
    await ec2.detach_eni(attachment)
    await ec2.delete_eni(made.id)
    await ec2.close()

    public = {
        name
        for name, member in inspect.getmembers(AwsEc2, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert public - ec2.called == {"open"}
    reached = set(region.journal.count_by_action)
    assert set(region.journal.count_by_outcome) == {"ok"}
    assert reached == OPERATIONS
    assert allowed_actions(json.loads((DEPLOY / "iam-policy.json").read_text())) == reached


def test_the_image_carries_what_it_needs_and_names_no_registry():
    text = (DEPLOY / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) == {"python:3.11-slim"}
    (installed,) = re.findall(r"no-install-recommends (iptables.*?) \\\n", text)
    assert installed.split() == ["iptables", "nftables"]
    for name in CONTAINERS:
        assert container(name)["image"] == "vpccni:0.1.0"
    assert "/_plugin/aws-cni" in text
    assert "/_migrations" in text


def test_no_lock_file_names_an_index_or_a_host():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (REPO / name).read_text()
        assert "://" not in text
        assert "--index" not in text
        assert not re.search(r"^[a-z0-9._\[\]-]+==(?!.*\\$)", text, re.MULTILINE), "a pin without a hash"
