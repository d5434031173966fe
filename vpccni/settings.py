"""Every environment variable, in one typed table, and the one function that reads them.

:data:`TABLE` is the whole truth: a variable that is not in it does nothing, and ``docs/settings.md`` is
printed from it. :func:`read_settings` is called once, at start, with the environment as a mapping;
everybody else is handed the :class:`Settings`.

A node that ran under amazon-vpc-cni-k8s must still run, so what it forgives is forgiven here too: the
default is taken and a warning says so. What made it exit is refused here, all offences in one message.
And what it would do and vpccni cannot do yet is refused by name, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from vpccni.errors import PermanentError, Reason
from vpccni.setting_kinds import BOOLEAN as _BOOLEAN
from vpccni.setting_kinds import CIDRS as _CIDRS
from vpccni.setting_kinds import COUNT as _COUNT
from vpccni.setting_kinds import LOG_LEVEL as _LOG_LEVEL
from vpccni.setting_kinds import MARK as _MARK
from vpccni.setting_kinds import MTU as _MTU
from vpccni.setting_kinds import PATH as _PATH
from vpccni.setting_kinds import PLUGIN_LOG as _PLUGIN_LOG
from vpccni.setting_kinds import TAGS as _TAGS
from vpccni.setting_kinds import TEXT as _TEXT
from vpccni.setting_kinds import TRUE as _TRUE
from vpccni.setting_kinds import VETH_PREFIX as _VETH_PREFIX
from vpccni.setting_kinds import Complain, Kind, shown, without_password
from vpccni.setting_kinds import choice as _choice
from vpccni.setting_kinds import integer as _integer
from vpccni.setting_names import SINCE, advice


class Status(StrEnum):
    """What vpccni does with a variable."""

    SUPPORTED = "supported"
    NO_EFFECT = "accepted_no_effect"
    NOT_BUILT = "not_built"
    PASSED_THROUGH = "passed_through"


class Setting(msgspec.Struct, frozen=True):
    """One row of the table.

    Attributes:
        name: The environment variable.
        field: The field of :class:`Settings`; empty when nobody asks for the value.
        kind: Type, range and parser.
        default: What unset means, as it would be written in the environment.
        does: What it does, and where it matters why it is so.
        unit: Of the value.
        group: Heading in the documentation.
        status: What vpccni does with it.
        built: The values that can be honoured; ``None`` for all. Others are ``feature_not_supported``.
        refuses: Whether a bad value stops the agent; otherwise the default is taken, with a warning.
        warns: Whether a value other than the default deserves a warning that it has no effect.
        since: The release of amazon-vpc-cni-k8s that brought it, or ours; empty when it is not recorded.
    """

    name: str
    field: str
    kind: Kind
    default: str
    does: str
    unit: str = ""
    group: str = ""
    status: Status = Status.SUPPORTED
    built: tuple[Any, ...] | None = None
    refuses: bool = False
    warns: bool = False
    since: str = ""


class Remark(msgspec.Struct, frozen=True):
    """A sentence about one variable."""

    name: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """Why the agent does not start with a variable: ``bad_setting`` or ``feature_not_supported``."""

    name: str
    reason: Reason
    message: str


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """An environment, read whole.

    Attributes:
        values: What is set and in effect, by the field of :class:`Settings`.
        problems: Everything that is refused, in the order of the table.
        warnings: Everything that is forgiven, or that nobody knows.
    """

    values: dict[str, Any]
    problems: tuple[Problem, ...]
    warnings: tuple[Remark, ...]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The effective settings. Units are in the names; 0 switches a target or a limit off.

    Attributes:
        warnings: What was forgiven while reading, one sentence each, in the order of the table.
    """

    node_name: str = ""
    cluster_name: str = ""
    cluster_endpoint: str = ""
    warm_eni_target: int = 1
    warm_ip_target: int = 0
    minimum_ip_target: int = 0
    max_eni: int = 0
    max_pods: int = 0
    ip_cooldown_s: int = 30
    add_wait_s: int = 55
    ec2_parallel_max: int = 8
    http_timeout_s: int = 10
    additional_eni_tags: dict[str, str] = {}
    manage_untagged_eni: bool = True
    disable_leaked_eni_cleanup: bool = False
    eni_mtu: int = 9001
    pod_mtu: int = 9001
    veth_prefix: str = "eni"
    pod_routing: str = "auto"
    external_snat: bool = False
    exclude_snat_cidrs: tuple[str, ...] = ()
    randomize_snat: str = "prng"
    node_port_support: bool = True
    connmark: int = 0x80
    log_level: str = "debug"
    plugin_log_file: str = "/var/log/aws-routed-eni/plugin.log"
    plugin_log_level: str = "debug"
    cni_bin_dir: str = "/host/opt/cni/bin"
    backing_store: str = "/var/run/aws-node/ipam.json"
    region: str = ""
    ec2_endpoint: str = ""
    imds_endpoint: str = ""
    warnings: tuple[str, ...] = ()


def _no_effect(name: str, kind: Kind, default: str, does: str, *, warns: bool = False) -> Setting:
    return Setting(name, "", kind, default, does, status=Status.NO_EFFECT, warns=warns)


def _not_built(name: str, does: str) -> Setting:
    return Setting(name, "", _BOOLEAN, "false", does, status=Status.NOT_BUILT, built=(False,))


def _passed(name: str, does: str, field: str = "") -> Setting:
    return Setting(name, field, _TEXT, "", does, status=Status.PASSED_THROUGH)


def _group(title: str, *rows: Setting) -> tuple[Setting, ...]:
    return tuple(msgspec.structs.replace(row, group=title, since=SINCE.get(row.name, "")) for row in rows)


TABLE: Final[tuple[Setting, ...]] = (
    *_group(
        "The node",
        Setting("MY_NODE_NAME", "node_name", _TEXT, "",
                "Name of our Node object. Without it the API server is not asked for anything."),
        Setting("CLUSTER_NAME", "cluster_name", _TEXT, "",
                "Tags new ENIs with the cluster, as the scoped IAM policy wants."),
        Setting("CLUSTER_ENDPOINT", "cluster_endpoint", _TEXT, "",
                "URL of the API server, where it is not to be reached through kube-proxy."),
        Setting("VPCCNI_MAX_PODS", "max_pods", _integer(0, 10_000), "0",
                "How many pods the node may run, instead of what its Node object says; 0 asks the Node.",
                refuses=True),
        _no_effect("MY_POD_NAME", _TEXT, "", "The pod that events are raised on; none are raised yet."),
        _no_effect("VPC_CNI_VERSION", _TEXT, "", "Suffix of the original's user agents."),
    ),
    *_group(
        "The warm pool",
        Setting("WARM_ENI_TARGET", "warm_eni_target", _COUNT, "1",
                "Keep that many ENIs' worth of free addresses, while no IP target is set."),
        Setting("WARM_IP_TARGET", "warm_ip_target", _COUNT, "0",
                "Keep that many free addresses; 0 is off. Overrides WARM_ENI_TARGET."),
        Setting("MINIMUM_IP_TARGET", "minimum_ip_target", _COUNT, "0",
                "Own at least that many addresses; 0 is off. Overrides WARM_ENI_TARGET."),
        Setting("MAX_ENI", "max_eni", _COUNT, "0",
                "Attach at most that many ENIs, the primary counted in; 0 is what the instance allows."),
        Setting("IP_COOLDOWN_PERIOD", "ip_cooldown_s", _COUNT, "30",
                "How long a released address rests, so that kube-proxy everywhere has forgotten it.",
                unit="s", refuses=True),
        Setting("ADD_WAIT_S", "add_wait_s", _integer(0, 75), "55",
                "How long an ADD waits for an address that growth will bring. The executable waits 85 s "
                "for an answer and kubelet longer, so that it is we who give the reason.",
                unit="s", refuses=True),
        _no_effect("WARM_PREFIX_TARGET", _COUNT, "0", "Counts only with prefix delegation."),
        _no_effect("AWS_MANAGE_ENIS_NON_SCHEDULABLE", _BOOLEAN, "false",
                   "The pool grows and shrinks also while the node takes no new pods, as with true."),
    ),
    *_group(
        "EC2",
        Setting("EC2_PARALLEL_MAX", "ec2_parallel_max", _integer(1, 64), "8",
                "How many EC2 calls may be under way at once; EC2 throttles an account as a whole. Those "
                "that protect a new ENI from outliving its machine come on top, at most a quarter more.",
                refuses=True),
        Setting("HTTP_TIMEOUT", "http_timeout_s", _integer(10, 3600), "10",
                "How long one EC2 request may take; one to IMDS may take 2 s.", unit="s"),
        Setting("ADDITIONAL_ENI_TAGS", "additional_eni_tags", _TAGS, "{}",
                "Further tags for ENIs that we create. Keys with k8s.amazonaws.com are left out."),
        Setting("MANAGE_UNTAGGED_ENI", "manage_untagged_eni", _BOOLEAN, "true",
                "Whether ENIs that somebody else attached, without our tag, serve pods too."),
        Setting("DISABLE_LEAKED_ENI_CLEANUP", "disable_leaked_eni_cleanup", _BOOLEAN, "false",
                "Leave detached ENIs of this instance alone instead of deleting them."),
        _no_effect("ENABLE_SUBNET_DISCOVERY", _BOOLEAN, "true",
                   "New ENIs go to the subnet of the primary ENI, as they do where no subnet is tagged."),
        _no_effect("AWS_EC2_ENDPOINT", _TEXT, "",
                   "Did nothing in the original either; set AWS_ENDPOINT_URL_EC2 instead.", warns=True),
    ),
    *_group(
        "Wiring and routes",
        Setting("AWS_VPC_ENI_MTU", "eni_mtu", _MTU, "9001", "MTU of the ENIs.", unit="byte", refuses=True),
        Setting("POD_MTU", "pod_mtu", _MTU, "",
                "MTU of the pods' links; unset, it is AWS_VPC_ENI_MTU.", unit="byte", refuses=True),
        Setting("AWS_VPC_K8S_CNI_VETHPREFIX", "veth_prefix", _VETH_PREFIX, "eni",
                "How the names of the host ends of pods' links begin.", refuses=True),
        Setting("POD_ROUTING", "pod_routing", _choice("auto", "rules", "map", "legacy"), "auto",
                "How a pod's packets find their ENI: `rules` is one policy rule a pod on a secondary ENI; "
                "`auto` takes the best that is built. `map` and `legacy` are not built yet.",
                built=("auto", "rules"), refuses=True),
        Setting("AWS_VPC_K8S_CNI_EXTERNALSNAT", "external_snat", _BOOLEAN, "false",
                "Leave translation to a NAT gateway: no SNAT on the node."),
        Setting("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "exclude_snat_cidrs", _CIDRS, "",
                "Destinations outside the VPC that are reached without SNAT. Bad items are left out."),
        Setting("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "randomize_snat",
                _choice("prng", "hashrandom", "none"), "prng", "How SNAT chooses source ports."),
        Setting("AWS_VPC_CNI_NODE_PORT_SUPPORT", "node_port_support", _BOOLEAN, "true",
                "Replies of pods to NodePort connections leave by the primary ENI."),
        Setting("AWS_VPC_K8S_CNI_CONNMARK", "connmark", _MARK, "0x80",
                "The mark bit of such connections, also its mask."),
        _no_effect("DISABLE_TCP_EARLY_DEMUX", _BOOLEAN, "false",
                   "Matters only to probes of pods with security groups of their own."),
        _no_effect("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", _BOOLEAN, "true", "Did nothing in the original."),
        _no_effect("ENABLE_NFTABLES", _BOOLEAN, "false", "Did nothing in the original; nftables it is."),
    ),
    *_group(
        "Logs and listeners",
        Setting("AWS_VPC_K8S_CNI_LOGLEVEL", "log_level", _LOG_LEVEL, "debug", "Level of the agent's log."),
        _no_effect("AWS_VPC_K8S_CNI_LOG_FILE", _TEXT, "/host/var/log/aws-routed-eni/ipamd.log",
                   "The agent logs to its standard output, from where `kubectl logs` reads."),
        Setting("AWS_VPC_K8S_PLUGIN_LOG_FILE", "plugin_log_file", _PLUGIN_LOG,
                "/var/log/aws-routed-eni/plugin.log",
                "Goes into the conflist. Our executable keeps no log: the agent has it all. "
                "`stdout` would mix with the CNI result.", refuses=True),
        Setting("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "plugin_log_level", _LOG_LEVEL, "debug",
                "Goes into the conflist, like the path."),
        _no_effect("DISABLE_INTROSPECTION", _BOOLEAN, "false", "Only the Unix socket is served yet."),
        _no_effect("INTROSPECTION_BIND_ADDRESS", _TEXT, "127.0.0.1:61679",
                   "Only the Unix socket is served yet.", warns=True),
        _no_effect("DISABLE_METRICS", _BOOLEAN, "false", "Port 61678 is not served yet."),
    ),
    *_group(
        "Files",
        Setting("AWS_VPC_K8S_CNI_BACKING_STORE", "backing_store", _PATH, "/var/run/aws-node/ipam.json",
                "The file in which the original keeps its leases, so that a node can be taken over from it and "
                "handed back. Ours are in the event log (`vpccni agent --state-dir`).", refuses=True),
        Setting("HOST_CNI_BIN_PATH", "cni_bin_dir", _TEXT, "/host/opt/cni/bin",
                "Where the agent sees the node's CNI executables: portmap goes into the conflist only if it "
                "is there, and each plugin of the conflist is asked which CNI versions it speaks. "
                "`vpccni install --bin` puts ours in place."),
        _no_effect("HOST_CNI_CONFDIR_PATH", _TEXT, "/host/etc/cni/net.d",
                   "Say `--conf` (install) or `--install-conf` (agent).", warns=True),
        _no_effect("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", _TEXT,
                   "/var/log/aws-routed-eni/egress-v4-plugin.log", "There is no egress plugin."),
        _no_effect("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", _TEXT,
                   "/var/log/aws-routed-eni/egress-v6-plugin.log", "There is no egress plugin."),
    ),
    *_group(
        "Features",
        Setting("ENABLE_IPv4", "", _TRUE, "true", "Pods get IPv4 addresses.", refuses=True),
        _not_built("ENABLE_IPv6", "Pods get IPv6 addresses instead."),
        _not_built("ENABLE_PREFIX_DELEGATION", "Allocate /28 prefixes instead of single addresses."),
        _not_built("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "Subnets and groups from ENIConfig objects."),
        _no_effect("ENI_CONFIG_ANNOTATION_DEF", _TEXT, "k8s.amazonaws.com/eniConfig",
                   "Counts only with custom networking."),
        _no_effect("ENI_CONFIG_LABEL_DEF", _TEXT, "k8s.amazonaws.com/eniConfig",
                   "Counts only with custom networking."),
        _not_built("ENABLE_POD_ENI", "Security groups for pods."),
        _no_effect("POD_SECURITY_GROUP_ENFORCING_MODE", _TEXT, "strict",
                   "Counts only with security groups for pods."),
        Setting(name="NETWORK_POLICY_ENFORCING_MODE", field="", default="none", status=Status.NOT_BUILT,
                kind=_choice("none", "standard", "strict", takes_empty=True), built=("none", "standard"),
                refuses=True, does="Network policies are not enforced, so with `strict` pods would start open that "
                "must start closed. `standard` closes nothing by itself, and it stands in the original's manifest "
                "whether policies are used or not."),
        Setting(name="ENABLE_POD_ENCRYPTION", field="", kind=_BOOLEAN, default="false", built=(False,),
                status=Status.NOT_BUILT, refuses=True,
                does="Encrypt what pods of different nodes say to each other."),
        _not_built("ENABLE_MULTI_NIC", "Addresses from network cards other than the first."),
        _not_built("ENABLE_V6_EGRESS", "IPv6 egress for IPv4 pods."),
        _no_effect("ENABLE_V4_EGRESS", _BOOLEAN, "true", "Counts only with IPv6."),
        _not_built("DISABLE_POD_V6", "Switch IPv6 off inside pods, with the tuning plugin."),
        _not_built("ENABLE_BANDWIDTH_PLUGIN", "Shape pods' traffic, with the bandwidth plugin."),
        _not_built("ANNOTATE_POD_IP", "Write each pod's address to an annotation."),
        Setting(name="AWS_EXTERNAL_SERVICE_CIDRS", field="", kind=_CIDRS, default="", built=((),),
                status=Status.NOT_BUILT, does="Reach these destinations through the main routing table."),
        _not_built("DISABLE_NETWORK_RESOURCE_PROVISIONING", "Use what is attached, change nothing."),
        _not_built("ENABLE_IMDS_ONLY_MODE", "Make no EC2 call at all."),
    ),
    *_group(
        "Read by the AWS SDK and the Kubernetes client",
        _passed("AWS_REGION", "The region; unset, IMDS tells.", "region"),
        _passed("AWS_ENDPOINT_URL_EC2", "URL of EC2, where it is not the region's own.", "ec2_endpoint"),
        _passed("AWS_EC2_METADATA_SERVICE_ENDPOINT", "URL of IMDS, where it differs.", "imds_endpoint"),
        _passed("AWS_ACCESS_KEY_ID", "Credentials; unset, the SDK's chain finds them."),
        _passed("AWS_SECRET_ACCESS_KEY", "Credentials."),
        _passed("AWS_SESSION_TOKEN", "Credentials."),
        _passed("AWS_ROLE_ARN", "The role of the service account (IRSA)."),
        _passed("AWS_WEB_IDENTITY_TOKEN_FILE", "Its token."),
        _passed("AWS_CONTAINER_CREDENTIALS_FULL_URI", "Pod Identity."),
        _passed("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "Pod Identity's token."),
        _passed("AWS_CA_BUNDLE", "Certificates that EC2's are checked against."),
        _passed("KUBERNETES_SERVICE_HOST", "The API server, as kubelet tells every pod."),
        _passed("KUBERNETES_SERVICE_PORT", "Its port."),
        _passed("KUBECONFIG", "Access to the API server from outside a pod."),
    ),
)  # fmt: skip


NAMES: Final = frozenset(row.name for row in TABLE)


def examine(environ: Mapping[str, str]) -> Reading:
    """Read every variable of the table, and look for names that only resemble one. Never raises."""
    values: dict[str, Any] = {}
    warnings: list[Remark] = []
    problems: list[Problem] = []
    for row in TABLE:
        text = environ.get(row.name)
        if text is None or (text == "" and not row.kind.takes_empty):
            continue
        asked = f"{row.name}={shown(text)}"
        try:
            value = row.kind.parse(text, _complaint(row.name, warnings))
        except ValueError:
            if row.refuses:
                message = f"{asked} must be {row.kind.range}; correct or unset it"
                problems.append(Problem(row.name, Reason.BAD_SETTING, message))
            else:
                message = f"{asked} must be {row.kind.range}; taken as {row.default or 'unset'}."
                warnings.append(Remark(row.name, message))
            continue
        if row.built is not None and value not in row.built:
            what = row.does.split(". ")[0].rstrip(".")
            message = f"{asked} is not built yet ({what}); {_way_out(row)}"
            problems.append(Problem(row.name, Reason.FEATURE_NOT_SUPPORTED, message))
        elif row.warns and text != row.default:
            warnings.append(Remark(row.name, f"{asked} has no effect. {row.does}"))
        elif row.field:
            values[row.field] = value
    values.setdefault("pod_mtu", values.get("eni_mtu", 9001))
    strangers = ((name, advice(name, NAMES)) for name in sorted(environ) if name not in NAMES)
    warnings += (Remark(name, said) for name, said in strangers if said)
    return Reading(values=values, problems=tuple(problems), warnings=tuple(warnings))


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read every variable of the table.

    Returns:
        The effective settings; what was forgiven is in ``warnings``.

    Raises:
        PermanentError: ``feature_not_supported`` when something is asked for that is not built,
            otherwise ``bad_setting``. The detail names every offending variable, not only the first.
    """
    reading = examine(environ)
    if reading.problems:
        first = sorted(reading.problems, key=lambda one: one.reason is not Reason.FEATURE_NOT_SUPPORTED)
        raise PermanentError(first[0].reason, "; ".join(problem.message for problem in first))
    return Settings(**reading.values, warnings=tuple(remark.message for remark in reading.warnings))


def effective(settings: Settings) -> dict[str, str]:
    """The settings as text by their environment names, for the event log and ``vpccni config``.

    Without credentials, and without account ids: a log must be fit to be passed on as it is.
    """
    shown = {}
    for row in TABLE:
        if row.field:
            value = getattr(settings, row.field)
            if isinstance(value, bool):
                text = str(value).lower()
            elif isinstance(value, dict):
                text = msgspec.json.encode(value, order="sorted").decode()
            else:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
            shown[row.name] = re.sub(r"(?<!\d)\d{12}(?!\d)", "<account>", without_password(text))
    return shown


def _complaint(name: str, warnings: list[Remark]) -> Complain:
    return lambda what: warnings.append(Remark(name, f"{name}: {what}."))


def _way_out(row: Setting) -> str:
    """What to do about a setting that asks for what is not built."""
    rest = [f"set it to {value}" for value in row.built or () if isinstance(value, str)]
    return "unset it" + "".join(f" or {way}" for way in rest)
