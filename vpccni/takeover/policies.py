"""Are network policies enforced on this node? They would be dropped silently, as vpccni does not enforce any yet.

The original's policy agent pins its programs in the BPF filesystem for each pod that is added while it is switched
on, whether or not a policy selects the pod. A PolicyEndpoint object exists for each policy of the cluster, whether or
not it is enforced on this node. Only both together show that policies are enforced here; ``npa.sock``, which is on
every stock node, shows nothing.

=====================  =========================  ========================  ==============================
pinned programs        PolicyEndpoints            none in the cluster       the API server did not answer
=====================  =========================  ========================  ==============================
on this node           refused: enforced here     a caution: all may pass   refused: may be enforced here
none                   a caution: not here        nothing                   nothing
cannot be looked at    refused: may be enforced   nothing                   a caution
=====================  =========================  ========================  ==============================

Programs without a policy let everything pass (in the mode "standard"; "strict" is refused as a setting). Policies
without a program here are not enforced here today, so nothing that works is taken away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from vpccni.model import PodRef
from vpccni.takeover.findings import some

KIND: Final = "network_policies"
_PIN: Final = re.compile(r"(?:.*/)?([^/]+)_handle_(?:ingress|egress)")


class PolicyFinding(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said of network policies.

    Attributes:
        is_objection: Whether it stands in the way.
        identifiers: Names under which programs of pods are pinned, see :func:`identifier_of`.
    """

    sentence: str
    next_action: str = ""
    is_objection: bool = False
    identifiers: frozenset[str] = frozenset()


def judge_policies(
    pins: tuple[str, ...] | None, policy_endpoints: tuple[str, ...] | None
) -> PolicyFinding | None:
    """What the table above says; ``None`` for nothing.

    Args:
        pins: Names of pinned programs; ``None`` when they cannot be looked at.
        policy_endpoints: ``namespace/name``; ``None`` when the API server did not answer.
    """
    if pins and policy_endpoints:
        return PolicyFinding(
            sentence="Network policies are enforced on this node by the original's policy agent, and vpccni would "
            f"drop them (programs: {some(pins)}; PolicyEndpoints: {some(policy_endpoints)}).",
            next_action="Leave this node to amazon-vpc-cni-k8s. Or enforce the policies with another program, switch "
            "the original's policy agent off, restart the node, and check again.",
            is_objection=True,
            identifiers=_identifiers(pins),
        )
    if pins and policy_endpoints is None:
        return PolicyFinding(
            sentence=f"The original's policy agent has programs on this node ({some(pins)}), and the API server did "
            "not say whether the cluster has policies: they may be enforced here.",
            next_action="Let the API server be asked (KUBECONFIG or the service account aws-node), and check again.",
            is_objection=True,
            identifiers=_identifiers(pins),
        )
    if pins is None and policy_endpoints:
        return PolicyFinding(
            sentence=f"The cluster has network policies ({some(policy_endpoints)}), and the BPF filesystem, which "
            "shows whether they are enforced here, cannot be looked at.",
            next_action="Mount the node's /sys/fs/bpf at its place, and check again.",
            is_objection=True,
        )
    return _caution(pins, policy_endpoints)


def identifier_of(pod: PodRef) -> str:
    """The name under which a pod's programs are pinned; the pods of one controller share it."""
    return f"{pod.name.rpartition('-')[0].replace('.', '_')}@{pod.namespace}"


def _caution(pins: tuple[str, ...] | None, policy_endpoints: tuple[str, ...] | None) -> PolicyFinding | None:
    if pins:
        return PolicyFinding(
            sentence=f"The original's policy agent has programs on this node ({some(pins)}), and the cluster has no "
            "policies: the programs let everything pass, and go with their pods.",
            next_action="A NetworkPolicy that is made later is not enforced here.",
            identifiers=_identifiers(pins),
        )
    if policy_endpoints:
        return PolicyFinding(
            sentence=f"The cluster has network policies ({some(policy_endpoints)}), and the original enforces none "
            "on this node. vpccni does not enforce any either.",
        )
    if pins is None and policy_endpoints is None:
        return PolicyFinding(
            sentence="Whether network policies are enforced here is not known: neither the BPF filesystem nor the "
            "API server could be asked.",
            next_action="vpccni does not enforce any; make sure that nobody relies on them.",
        )
    return None


def _identifiers(pins: Iterable[str]) -> frozenset[str]:
    return frozenset(found.group(1) for pin in pins if (found := _PIN.fullmatch(pin)))
