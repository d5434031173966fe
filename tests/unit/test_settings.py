"""The table of settings, and what reading the environment forgives, refuses and warns of."""

import importlib.util
import json
import re
from pathlib import Path

import msgspec
import pytest

from vpccni.errors import PermanentError, Reason
from vpccni.setting_names import OURS, SINCE, SPELLINGS
from vpccni.settings import TABLE, Settings, Status, effective, examine, read_settings

REPO = Path(__file__).parents[2]

# What the containers of amazon-vpc-cni-k8s v1.23.1 read (all but the CNI_* of the executables).
ORIGINAL_TEXT = """
ADDITIONAL_ENI_TAGS ANNOTATE_POD_IP AWS_EC2_ENDPOINT AWS_EXTERNAL_SERVICE_CIDRS
AWS_MANAGE_ENIS_NON_SCHEDULABLE AWS_VPC_CNI_NODE_PORT_SUPPORT AWS_VPC_ENI_MTU
AWS_VPC_K8S_CNI_BACKING_STORE AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER AWS_VPC_K8S_CNI_CONNMARK
AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS AWS_VPC_K8S_CNI_EXTERNALSNAT
AWS_VPC_K8S_CNI_LOGLEVEL AWS_VPC_K8S_CNI_LOG_FILE AWS_VPC_K8S_CNI_RANDOMIZESNAT
AWS_VPC_K8S_CNI_VETHPREFIX AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE
AWS_VPC_K8S_PLUGIN_LOG_FILE AWS_VPC_K8S_PLUGIN_LOG_LEVEL CLUSTER_ENDPOINT CLUSTER_NAME
DISABLE_INTROSPECTION DISABLE_LEAKED_ENI_CLEANUP DISABLE_METRICS DISABLE_NETWORK_RESOURCE_PROVISIONING
DISABLE_POD_V6 DISABLE_TCP_EARLY_DEMUX ENABLE_BANDWIDTH_PLUGIN ENABLE_IMDS_ONLY_MODE ENABLE_IPv4
ENABLE_IPv6 ENABLE_MULTI_NIC ENABLE_NFTABLES ENABLE_POD_ENI ENABLE_PREFIX_DELEGATION
ENABLE_SUBNET_DISCOVERY ENABLE_V4_EGRESS ENABLE_V6_EGRESS ENI_CONFIG_ANNOTATION_DEF ENI_CONFIG_LABEL_DEF
HOST_CNI_BIN_PATH HOST_CNI_CONFDIR_PATH HTTP_TIMEOUT INTROSPECTION_BIND_ADDRESS IP_COOLDOWN_PERIOD
MANAGE_UNTAGGED_ENI MAX_ENI MINIMUM_IP_TARGET MY_NODE_NAME MY_POD_NAME NETWORK_POLICY_ENFORCING_MODE
POD_MTU POD_SECURITY_GROUP_ENFORCING_MODE VPC_CNI_VERSION WARM_ENI_TARGET WARM_IP_TARGET
WARM_PREFIX_TARGET
"""
ORIGINAL = sorted(ORIGINAL_TEXT.split())

STOCK = json.loads((REPO / "tests" / "data" / "stock-manifest.json").read_text())["containers"]


def stock_environment(container):
    """The environment of a container of the original's own manifest, as a cluster would fill it in."""
    environment = STOCK[container]["env"]
    return {
        name: "ip-10-0-1-7.example" if value.startswith("fieldRef") else value
        for name, value in environment.items()
    }


def refusal(**environ):
    with pytest.raises(PermanentError) as caught:
        read_settings(environ)
    return caught.value


def test_every_variable_that_the_original_reads_is_in_the_table_once():
    names = [row.name for row in TABLE]
    assert set(ORIGINAL) <= set(names)
    assert len(names) == len(set(names))


def test_an_empty_environment_gives_the_defaults_of_the_table():
    assert read_settings({}) == Settings()
    stated = {row.name: row.default for row in TABLE if row.status is Status.SUPPORTED}
    assert read_settings(stated) == Settings()


def test_every_field_has_exactly_one_row():
    fields = [row.field for row in TABLE if row.field]
    assert sorted([*fields, "warnings"]) == sorted(field.name for field in msgspec.structs.fields(Settings))


def test_the_environment_of_the_originals_manifest_runs_without_a_warning():
    environment = stock_environment("aws-node")
    assert len(environment) > 25
    assert environment["NETWORK_POLICY_ENFORCING_MODE"] == "standard"
    assert read_settings(environment) == Settings(node_name="ip-10-0-1-7.example")
    assert read_settings(stock_environment("aws-vpc-cni-init")) == Settings()


@pytest.mark.parametrize("mode", ["none", "standard", "Standard"])
def test_a_policy_mode_that_closes_nothing_by_itself_is_accepted(mode):
    assert read_settings({"NETWORK_POLICY_ENFORCING_MODE": mode}) == Settings()


def test_the_strict_policy_mode_is_refused_and_the_message_says_why_and_what_else():
    detail = refusal(**stock_environment("aws-node") | {"NETWORK_POLICY_ENFORCING_MODE": "strict"}).detail
    assert "pods would start open that must start closed" in detail
    assert "set it to standard" in detail


def test_the_originals_file_of_leases_may_lie_elsewhere():
    assert read_settings({"AWS_VPC_K8S_CNI_BACKING_STORE": "/x/ipam.json"}).backing_store == "/x/ipam.json"


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.status is Status.NOT_BUILT], ids=lambda row: row.name
)
def test_what_is_not_built_is_refused_by_name_and_its_default_is_fine(row):
    assert read_settings({row.name: row.default}) == Settings()
    asked = {"NETWORK_POLICY_ENFORCING_MODE": "Strict", "AWS_EXTERNAL_SERVICE_CIDRS": "192.0.2.0/24"}
    error = refusal(**{row.name: asked.get(row.name, "true")})
    assert error.reason is Reason.FEATURE_NOT_SUPPORTED
    assert row.name in error.detail
    assert "unset it" in error.detail


def test_all_offending_settings_are_named_at_once():
    error = refusal(ENABLE_POD_ENI="true", POD_ROUTING="map", IP_COOLDOWN_PERIOD="soon", POD_MTU="9002")
    assert error.reason is Reason.FEATURE_NOT_SUPPORTED
    for part in (
        "ENABLE_POD_ENI='true'",
        "POD_ROUTING='map'",
        "'soon'",
        "0 or more",
        "POD_MTU='9002'",
        "9001",
    ):
        assert part in error.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_VPC_ENI_MTU", "575"),
        ("AWS_VPC_ENI_MTU", "big"),
        ("POD_MTU", "9002"),
        ("IP_COOLDOWN_PERIOD", "-1"),
        ("IP_COOLDOWN_PERIOD", "1.5"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "longer"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "a/b"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "a:b"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", ".."),
        ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "stdout"),
        ("AWS_VPC_K8S_CNI_BACKING_STORE", "run/ipam.json"),
        ("AWS_VPC_K8S_CNI_BACKING_STORE", "/"),
        ("NETWORK_POLICY_ENFORCING_MODE", ""),
        ("NETWORK_POLICY_ENFORCING_MODE", "lenient"),
        ("ENABLE_IPv4", "false"),
        ("ENABLE_IPv4", "maybe"),
        ("ADD_WAIT_S", "76"),
        ("EC2_PARALLEL_MAX", "0"),
        ("POD_ROUTING", "fast"),
        ("VPCCNI_MAX_PODS", "-1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_range(name, value):
    error = refusal(**{name: value})
    assert error.reason is Reason.BAD_SETTING
    row = next(row for row in TABLE if row.name == name)
    assert f"{name}={value!r} must be {row.kind.range}" in error.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WARM_ENI_TARGET", "-1"),
        ("WARM_IP_TARGET", "ten"),
        ("WARM_IP_TARGET", "٣"),
        ("MINIMUM_IP_TARGET", " 3"),
        ("MAX_ENI", "-5"),
        ("MAX_ENI", "9" * 5000),
        ("HTTP_TIMEOUT", "9"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "dice"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "chatty"),
        ("ADDITIONAL_ENI_TAGS", "{"),
        ("ADDITIONAL_ENI_TAGS", '{"a":1}'),
        ("ENABLE_POD_ENI", "TrUe"),
    ],
)
def test_a_bad_value_that_the_original_forgives_leaves_the_default_and_a_warning(name, value):
    settings = read_settings({name: value})
    assert msgspec.structs.replace(settings, warnings=()) == Settings()
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}='{value[:20]}")
    assert len(warning) < 250


@pytest.mark.parametrize("name", [name for name in ORIGINAL if name != "NETWORK_POLICY_ENFORCING_MODE"])
def test_set_but_empty_is_unset(name):
    expected = Settings(plugin_log_file="") if name == "AWS_VPC_K8S_PLUGIN_LOG_FILE" else Settings()
    assert read_settings({name: ""}) == expected


def test_the_pods_mtu_follows_the_enis_unless_it_is_set():
    assert read_settings({"AWS_VPC_ENI_MTU": "1500"}).pod_mtu == 1500
    assert read_settings({"AWS_VPC_ENI_MTU": "1500", "POD_MTU": "1400"}).pod_mtu == 1400


def test_reserved_tags_are_left_out_with_a_warning():
    settings = read_settings(
        {"ADDITIONAL_ENI_TAGS": '{"team":"net","node.k8s.amazonaws.com/no_manage":"true","AWS:x":"y","":"z"}'}
    )
    assert settings.additional_eni_tags == {"team": "net"}
    assert len(settings.warnings) == 3


def test_bad_cidrs_are_left_out_and_good_ones_become_networks():
    settings = read_settings(
        {"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.1.2.3/16, fd00::/8,,nonsense,192.0.2.1,10.1.0.0/16"}
    )
    assert settings.exclude_snat_cidrs == ("10.1.0.0/16", "192.0.2.1/32")
    assert len(settings.warnings) == 2


@pytest.mark.parametrize(
    ("text", "mark"), [("0x80", 0x80), ("128", 128), ("0200", 128), ("0xffffffff", 0xFFFFFFFF)]
)
def test_the_mark_takes_every_base_that_go_takes(text, mark):
    assert read_settings({"AWS_VPC_K8S_CNI_CONNMARK": text}).connmark == mark


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AWS_VPC_ENI_MUT", "AWS_VPC_ENI_MTU"),
        ("AWS_VPC_K8S_CNI_LOGLEVL", "AWS_VPC_K8S_CNI_LOGLEVEL"),
        ("AWS_VPC_K8S_CNI_WARM_IP_TARGET", "WARM_IP_TARGET"),
        ("AWS_VPC_K8S_EXTERNALSNAT", "AWS_VPC_K8S_CNI_EXTERNALSNAT"),
        ("WARM_IPS_TARGET", "WARM_IP_TARGET"),
        ("WARM_PREFIXES_TARGET", "WARM_PREFIX_TARGET"),
        ("AWS_VPC_K8S_CNI_COFFEE", ""),
    ],
)
def test_a_misspelt_name_of_our_family_is_warned_of_with_the_one_that_may_be_meant(name, meant):
    (warning,) = read_settings({name: "1500", "PATH": "/bin"}).warnings
    assert warning.startswith(f"{name} is not a setting")
    assert warning.endswith(f"Did you mean {meant}?" if meant else "has no effect.")


@pytest.mark.parametrize(("name", "right"), SPELLINGS.items())
def test_a_spelling_that_circulates_is_answered_with_the_right_name_and_not_obeyed(name, right):
    row = next(row for row in TABLE if row.name == right)
    settings = read_settings({name: "true"})
    assert settings.warnings == (f"{name} has no effect; the setting is called {row.name}.",)
    assert msgspec.structs.replace(settings, warnings=()) == Settings()


@pytest.mark.parametrize(
    "name",
    [
        "WARM_CACHE_SERVICE_HOST",
        "WARM_CACHE_SERVICE_PORT",
        "WARM_CACHE_SERVICE_PORT_HTTP",
        "WARM_CACHE_PORT",
        "WARM_CACHE_PORT_80_TCP",
        "WARM_CACHE_PORT_80_TCP_ADDR",
        "AWS_VPC_CNI_METRICS_SERVICE_HOST",
        "AWS_REGION_NAME",
        "LOGLEVEL",
    ],
)
def test_what_kubelet_sets_for_services_and_what_is_not_ours_is_no_misspelling(name):
    assert read_settings({name: "tcp://10.100.0.10:80"}).warnings == ()


@pytest.mark.parametrize("value", ["true", "T", "yes", "TrUe"])
def test_encryption_that_is_asked_for_is_never_taken_for_switched_off(value):
    assert "ENABLE_POD_ENCRYPTION" in refusal(ENABLE_POD_ENCRYPTION=value).detail
    assert read_settings({"ENABLE_POD_ENCRYPTION": "false"}) == Settings()


def test_since_is_known_of_rows_of_the_table_only():
    assert set(SINCE) <= {row.name for row in TABLE}
    since = {row.name: row.since for row in TABLE}
    assert (since["ENABLE_PREFIX_DELEGATION"], since["POD_ROUTING"], since["WARM_ENI_TARGET"]) == (
        "1.9.0",
        OURS,
        "",
    )
    ours = {name for name in since if since[name] == OURS}
    assert not ours & set(ORIGINAL)


def test_an_environment_is_examined_whole_and_without_raising():
    reading = examine(
        {"POD_MTU": "9002", "ENABLE_POD_ENI": "1", "MAX_ENI": "-1", "WARM_X": "", "WARM_IP_TARGET": "4"}
    )
    assert [(one.name, one.reason) for one in reading.problems] == [
        ("POD_MTU", Reason.BAD_SETTING),
        ("ENABLE_POD_ENI", Reason.FEATURE_NOT_SUPPORTED),
    ]
    assert [one.name for one in reading.warnings] == ["MAX_ENI", "WARM_X"]
    assert reading.values["warm_ip_target"] == 4


def test_what_would_mislead_without_a_word_gets_a_warning():
    (warning,) = read_settings({"AWS_EC2_ENDPOINT": "https://user:secret@ec2.example"}).warnings
    assert "AWS_ENDPOINT_URL_EC2" in warning
    assert "secret" not in warning


def test_the_effective_settings_read_back_to_themselves():
    environ = {
        "WARM_IP_TARGET": "5",
        "ADDITIONAL_ENI_TAGS": '{"b":"2","a":"1"}',
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": "T",
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.9.0.0/16,10.8.0.0/16",
        "AWS_REGION": "eu-west-1",
        "POD_MTU": "1400",
        "AWS_VPC_K8S_CNI_CONNMARK": "0x100",
    }
    settings = read_settings(environ)
    assert read_settings(effective(settings)) == settings


def test_neither_secrets_nor_account_ids_are_among_the_effective_settings():
    shown = effective(
        read_settings(
            {
                "AWS_SECRET_ACCESS_KEY": "hush",
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
                "AWS_ENDPOINT_URL_EC2": "http://me:hush@127.0.0.1:1",
                "ADDITIONAL_ENI_TAGS": '{"owner":"123456789012","since":"20240101123456789"}',
            }
        )
    )
    text = str(shown)
    assert "hush" not in text
    assert "123456789012'" not in text
    assert '"owner":"<account>"' in text
    assert "20240101123456789" in text


def test_the_page_about_settings_is_current():
    path = REPO / "scripts" / "settings_doc.py"
    spec = importlib.util.spec_from_file_location("settings_doc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPO / "docs" / "settings.md").read_text() == module.markdown(), "run `make docs`"


def test_every_row_says_something_and_every_status_is_consistent():
    for row in TABLE:
        assert re.fullmatch(r"[A-Z].*\.", row.does), row.name
        assert row.group, row.name
        assert (row.built is not None) or row.status is not Status.NOT_BUILT, row.name
        assert bool(row.field) or row.status is not Status.SUPPORTED or row.name == "ENABLE_IPv4", row.name
