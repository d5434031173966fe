"""Every environment variable, in one typed table, and the one function that reads them.

:data:`TABLE` is the whole truth: a variable that is not in it does nothing, and ``docs/settings.md`` is
printed from it. :func:`read_settings` is called once, at start, with the environment as a mapping;
everybody else is handed the :class:`Settings`.

A node that ran under amazon-vpc-cni-k8s must still run, so what it forgives is forgiven here too: the
default is taken and a warning says so. What made it exit is refused here, all offences in one message.
And what it would do and vpccni cannot do yet is refused by name, never ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from vpccni.errors import PermanentError, Reason

Complain = Callable[[str], None]
"""Takes a sentence about a part of a value that was left out."""

SHOWN_MAX: Final = 80
"""A value is cut to that many characters in messages: a screen line is enough to recognise it."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How the text of one variable becomes a value.

    Attributes:
        type: What a reader of the documentation sees.
        range: What is allowed, completing "must be …".
        parse: Text to value; raises ``ValueError`` for anything that is not in range.
        takes_empty: Whether set-but-empty is a value like another. Otherwise it counts as unset, for
            that is what a template with nothing to fill in leaves behind.
    """

    type: str
    range: str
    parse: Callable[[str, Complain], Any]
    takes_empty: bool = False


_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""The spellings of Go's ``strconv.ParseBool``; no other is a boolean there, nor here."""


def _parse_boolean(text: str, _complain: Complain) -> bool:
    if text not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text]


def _parse_true(text: str, complain: Complain) -> bool:
    if not _parse_boolean(text, complain):
        raise ValueError(text)
    return True


def _integer(low: int, high: int) -> Kind:
    def parse(text: str, _complain: Complain) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    upper = f" to {high}" if high < _ANY else " or more"
    return Kind(type="integer", range=f"a decimal integer, {low}{upper}", parse=parse)


def _choice(*values: str, takes_empty: bool = False) -> Kind:
    def parse(text: str, _complain: Complain) -> str:
        if text.lower() not in values:
            raise ValueError(text)
        return text.lower()

    return Kind(type="choice", range="one of " + ", ".join(values), parse=parse, takes_empty=takes_empty)


def _matching(pattern: str, *, type: str, range: str, takes_empty: bool = False) -> Kind:
    def parse(text: str, _complain: Complain) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(text)
        return text

    return Kind(type=type, range=range, parse=parse, takes_empty=takes_empty)


def _parse_mark(text: str, _complain: Complain) -> int:
    # Go's base 0 takes a leading zero for octal, which Python refuses.
    value = int(text, 8) if re.fullmatch(r"0[0-7]+", text) else int(text, 0)
    if not 1 <= value < 1 << 32:
        raise ValueError(text)
    return value


def _parse_cidrs(text: str, complain: Complain) -> tuple[str, ...]:
    """IPv4 CIDRs, comma separated, as network addresses in the given order without doubles."""
    good: dict[str, None] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            good[str(ipaddress.IPv4Network(item, strict=False))] = None
        except ValueError:
            complain(f"{_shown(item)} is not an IPv4 CIDR and was left out")
    return tuple(good)


def _parse_tags(text: str, complain: Complain) -> dict[str, str]:
    """Tags that EC2 will take; ours and AWS's own keys cannot be set from outside."""
    try:
        tags = msgspec.json.decode(text, type=dict[str, str] | None) or {}
    except msgspec.DecodeError as error:
        raise ValueError(text) from error
    good = {}
    for key, value in tags.items():
        if "k8s.amazonaws.com" in key or key.lower().startswith("aws:"):
            complain(f"the key {_shown(key)} is reserved and was left out")
        elif not 1 <= len(key) <= 128 or len(value) > 256:
            complain(f"the tag {_shown(key)} is longer than EC2 takes (128 and 256) and was left out")
        else:
            good[key] = value
    return good


_ANY: Final = 1 << 31
_BOOLEAN: Final = Kind(type="boolean", range="true or false (1, t, 0, f, …)", parse=_parse_boolean)
_TRUE: Final = Kind(
    type="boolean", range="true: without IPv6 there is nothing else to give", parse=_parse_true
)
_TEXT: Final = _matching(r".*", type="text", range="any text")
_PATH: Final = _matching(r"/.+", type="path", range="an absolute path")
_COUNT: Final = _integer(0, _ANY)
_MTU: Final = _integer(576, 9001)  # RFC 791's least, and what a VPC carries
_LOG_LEVEL: Final = _choice("debug", "info", "warn", "error", "fatal")
_CIDRS: Final = Kind(type="list", range="IPv4 CIDRs, separated by commas", parse=_parse_cidrs)
_MARK: Final = Kind(type="integer", range="1 to 0xffffffff", parse=_parse_mark)
_TAGS: Final = Kind(type="JSON", range="a JSON object of texts", parse=_parse_tags)
_VETH_PREFIX: Final = _matching(
    r"(?!(eth|vlan|lo|\.\.?)\Z)[!-.0-9;-~]{1,4}",  # without the slash and the colon
    type="text",
    range="1 to 4 printable characters other than eth, vlan, lo",
)
_PLUGIN_LOG: Final = _matching(
    r"(?!stdout\Z).*", type="path", range="a path or stderr, not stdout", takes_empty=True
)


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
    return tuple(msgspec.structs.replace(row, group=title) for row in rows)


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
                "How many EC2 calls may be under way at once; EC2 throttles an account as a whole.",
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


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read every variable of the table.

    Returns:
        The effective settings; what was forgiven is in ``warnings``.

    Raises:
        PermanentError: ``feature_not_supported`` when something is asked for that is not built,
            otherwise ``bad_setting``. The detail names every offending variable, not only the first.
    """
    values: dict[str, Any] = {}
    warnings: list[str] = []
    bad: list[str] = []
    missing: list[str] = []
    for row in TABLE:
        text = environ.get(row.name)
        if text is None or (text == "" and not row.kind.takes_empty):
            continue
        asked = f"{row.name}={_shown(text)}"
        try:
            value = row.kind.parse(text, _complaint(row.name, warnings))
        except ValueError:
            if row.refuses:
                bad.append(f"{asked} must be {row.kind.range}; correct or unset it")
            else:
                warnings.append(f"{asked} must be {row.kind.range}; taken as {row.default or 'unset'}.")
            continue
        if row.built is not None and value not in row.built:
            missing.append(
                f"{asked} is not built yet ({row.does.split('. ')[0].rstrip('.')}); {_way_out(row)}"
            )
        elif row.warns and text != row.default:
            warnings.append(f"{asked} has no effect. {row.does}")
        elif row.field:
            values[row.field] = value
    if bad or missing:
        reason = Reason.FEATURE_NOT_SUPPORTED if missing else Reason.BAD_SETTING
        raise PermanentError(reason, "; ".join(missing + bad))
    values.setdefault("pod_mtu", values.get("eni_mtu", 9001))
    warnings += (
        f"{name} is not a setting of vpccni nor of the original and has no effect."
        for name in sorted(environ)
        if name.startswith("AWS_VPC_") and name not in _NAMES
    )
    return Settings(**values, warnings=tuple(warnings))


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
            shown[row.name] = re.sub(r"(?<!\d)\d{12}(?!\d)", "<account>", _without_password(text))
    return shown


_NAMES: Final = frozenset(row.name for row in TABLE)


def _complaint(name: str, warnings: list[str]) -> Complain:
    return lambda what: warnings.append(f"{name}: {what}.")


def _way_out(row: Setting) -> str:
    """What to do about a setting that asks for what is not built."""
    rest = [f"set it to {value}" for value in row.built or () if isinstance(value, str)]
    return "unset it" + "".join(f" or {way}" for way in rest)


def _without_password(text: str) -> str:
    """The text without the user and the password of a URL in it."""
    return re.sub(r"//[^/@]*@", "//", text)


def _shown(text: str) -> str:
    text = _without_password(text)
    cut = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return repr(cut)
