"""The names of settings: since when each exists, how tutorials misspell them, and which one may be meant."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

OURS: Final = "vpccni 0.1"

SINCE: Final = {
    "ADDITIONAL_ENI_TAGS": "1.6.0",
    "ADD_WAIT_S": OURS,
    "ANNOTATE_POD_IP": "1.9.3",
    "AWS_EC2_ENDPOINT": "1.13.0",
    "AWS_EXTERNAL_SERVICE_CIDRS": "1.12.6",
    "AWS_MANAGE_ENIS_NON_SCHEDULABLE": "1.12.6",
    "AWS_VPC_ENI_MTU": "1.6.0",
    "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "1.6.0",
    "CLUSTER_ENDPOINT": "1.12.1",
    "DISABLE_LEAKED_ENI_CLEANUP": "1.13.0",
    "DISABLE_NETWORK_RESOURCE_PROVISIONING": "1.9.1",
    "DISABLE_POD_V6": "1.15.0",
    "DISABLE_TCP_EARLY_DEMUX": "1.7.3",
    "EC2_PARALLEL_MAX": OURS,
    "ENABLE_BANDWIDTH_PLUGIN": "1.10.0",
    "ENABLE_IMDS_ONLY_MODE": "1.19.6",
    "ENABLE_IPv4": "1.10.0",
    "ENABLE_IPv6": "1.10.0",
    "ENABLE_MULTI_NIC": "1.20.0",
    "ENABLE_NFTABLES": "1.12.1",
    "ENABLE_POD_ENCRYPTION": OURS,
    "ENABLE_POD_ENI": "1.7.0",
    "ENABLE_PREFIX_DELEGATION": "1.9.0",
    "ENABLE_SUBNET_DISCOVERY": "1.18.0",
    "ENABLE_V4_EGRESS": "1.15.1",
    "ENABLE_V6_EGRESS": "1.13.0",
    "IP_COOLDOWN_PERIOD": "1.15.0",
    "MINIMUM_IP_TARGET": "1.6.0",
    "NETWORK_POLICY_ENFORCING_MODE": "1.17.1",
    "POD_MTU": "1.16.4",
    "POD_ROUTING": OURS,
    "POD_SECURITY_GROUP_ENFORCING_MODE": "1.11.0",
    "VPCCNI_MAX_PODS": OURS,
    "WARM_PREFIX_TARGET": "1.9.0",
}
"""Releases of amazon-vpc-cni-k8s, or ours. Of a name that is not here it is not recorded."""

SPELLINGS: Final = {
    "AWS_VPC_CNI_LOGLEVEL": "AWS_VPC_K8S_CNI_LOGLEVEL",
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORKING": "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
    "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CONFIG": "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
    "AWS_VPC_K8S_CNI_EXCLUDED_SNAT_CIDRS": "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
    "AWS_VPC_K8S_CNI_EXTERNAL_SNAT": "AWS_VPC_K8S_CNI_EXTERNALSNAT",
    "AWS_VPC_K8S_CNI_LOGFILE": "AWS_VPC_K8S_CNI_LOG_FILE",
    "AWS_VPC_K8S_CNI_LOG_LEVEL": "AWS_VPC_K8S_CNI_LOGLEVEL",
    "AWS_VPC_K8S_CNI_RANDOMIZESSID": "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
    "AWS_VPC_K8S_CNI_RANDOMIZE_SNAT": "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
    "AWS_VPC_K8S_CNI_VETH_PREFIX": "AWS_VPC_K8S_CNI_VETHPREFIX",
    "AWS_VPC_K8S_PLUGIN_LOGFILE": "AWS_VPC_K8S_PLUGIN_LOG_FILE",
    "AWS_VPC_K8S_PLUGIN_LOGLEVEL": "AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
    "ENABLE_IPV4": "ENABLE_IPv4",
    "ENABLE_IPV6": "ENABLE_IPv6",
    "MAX_ENIS": "MAX_ENI",
    "MAX_ENI_TARGET": "MAX_ENI",
    "MINIMUM_IP_TARGETS": "MINIMUM_IP_TARGET",
    "MIN_IP_TARGET": "MINIMUM_IP_TARGET",
    "WARM_MINIMUM_IP_TARGET": "MINIMUM_IP_TARGET",
}
"""Names that circulate, and what they mean. They are answered with the right name and never obeyed: the original
ignores them, and a node that is taken over must not begin to do what its manifest has asked for in vain."""

_FAMILIES: Final = ("AWS_VPC_", "WARM_")
"""What begins like this can only be meant for us."""

_OF_A_SERVICE: Final = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?)")
"""What kubelet sets for each Service of the namespace, whatever that Service is called."""

_COMMON: Final = re.compile(r"AWS_VPC_(K8S_)?(CNI_)?")
"""Says nothing about which setting is meant: nearly all names of the family begin with it."""


def advice(name: str, known: Collection[str]) -> str:
    """A sentence about a variable that is no setting; empty where it may be there for somebody else."""
    right = SPELLINGS.get(name, "")
    if right:
        return f"{name} has no effect; the setting is called {right}."
    if not name.startswith(_FAMILIES) or _OF_A_SERVICE.fullmatch(name):
        return ""
    meant = nearest(name, known)
    hint = f" Did you mean {meant}?" if meant else ""
    return f"{name} is not a setting of vpccni nor of the original and has no effect.{hint}"


def nearest(name: str, known: Collection[str]) -> str:
    """The setting that is most probably meant by an unknown name; empty when none is like it."""
    if name in SPELLINGS:
        return SPELLINGS[name]
    import difflib  # Only a misspelt name pays for it.

    cores = {_core(one): one for one in sorted(known)}
    found = difflib.get_close_matches(_core(name), cores, n=1, cutoff=0.7)
    return cores[found[0]] if found else ""


def _core(name: str) -> str:
    """What tells one name from the others, without regard to case."""
    return _COMMON.sub("", name.upper(), count=1)
