"""From what was found on a node to what would be taken over, what stands in the way, and what is to be known.

What is refused, and how it shows:

==================  ===========================================================================================
branch ENIs         the pod's annotation; a rule at 1536 that names a VLAN's table; a host veth ``vlan<hash>``
other cards         rows of ``ipam-nic-<card>.json``; a rule at 1536 that names another card's table
IPv6                rows, cached results, namespaces or ``podIPs`` with IPv6 addresses alone; a prefix on an ENI
/28 prefixes        a prefix on an ENI, and a living pod with an address in it
network policies    see :mod:`vpccni.takeover.policies`
==================  ===========================================================================================

What files say from before this boot proves no life and refuses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from vpccni.datapath.names import host_veth_name, is_our_alias
from vpccni.errors import EXPLANATIONS, Reason, Refused
from vpccni.evidence import KERNEL, CachedResult, Claim, Evidence, HostVeth, Verdict
from vpccni.model import (
    Address,
    EniFacts,
    PodRef,
    Stamp,
    address_number,
    cidr_size,
    device_of_table,
    is_inside,
)
from vpccni.takeover.findings import Caution, Findings, Found, Objection, distinct, pod_text, some
from vpccni.takeover.policies import KIND as POLICIES
from vpccni.takeover.policies import identifier_of, judge_policies

BRANCH_VETH_PREFIX: Final = "vlan"
"""How the host veths of pods with a branch ENI begin where security groups are enforced strictly."""
_BRANCH_VETH: Final = re.compile(r"vlan[0-9a-f]{11}")
_BRANCH_TABLES: Final = frozenset(range(101, 4195)) - {253, 254, 255}
"""Routing tables of branch ENIs: VLAN id (1 to 4094) + 100, without ``default``, ``main`` and ``local``."""
_PLUGIN: Final = "aws-cni"
"""The ``type`` of our plugin and of the original's, and the ``name`` of both conflists."""
_BOOT_SLACK_NS: Final = 2 * 10**9
"""Between the wall clock at boot and its first correction, as :mod:`vpccni.recovery` has it."""


def check(
    *,
    evidence: Evidence,
    verdict: Verdict,
    pins: tuple[str, ...] | None,
    policy_endpoints: tuple[str, ...] | None,
    living: str = "",
    now: Stamp | None = None,
    enis: Sequence[EniFacts] | None = None,
    branch_veths: Sequence[HostVeth] = (),
    settings_refused: Refused | None = None,
) -> Findings:
    """Say what would be taken over and what stands in the way. The order of everything is always the same.

    Args:
        evidence: What a search of the node found.
        verdict: What :func:`vpccni.recovery.judge` makes of it.
        pins: Programs that the original's policy agent has pinned; ``None`` when they cannot be looked at.
        policy_endpoints: ``namespace/name`` of PolicyEndpoints; ``None`` when the API server did not answer.
        living: How the original's daemon shows that it lives; empty when it does not.
        now: The instant of the search, by which files from before this boot are told; without it none is.
        enis: The node's ENIs as EC2 or IMDS tell; their ``cidrs`` may hold IPv6 prefixes. ``None``: not known.
        branch_veths: Host veths of a survey for names that begin with ``BRANCH_VETH_PREFIX``; others are passed over.
        settings_refused: Why the settings are refused, when they are.
    """
    examination = _Examination(evidence, verdict, now)
    if settings_refused is not None:
        examination.look_at_settings(settings_refused)
    if evidence.kernel is None:
        examination.miss_the_kernel()
    examination.look_at_branch_enis(branch_veths)
    examination.look_at_cards()
    examination.look_at_ipv6(enis or ())
    examination.look_at_policies(pins, policy_endpoints)
    if enis is not None:
        examination.look_at_enis(enis)
    else:
        examination.miss_the_enis()
    examination.look_at_the_unexplained()
    examination.look_at_sources()
    return examination.findings(living)


class _Examination:
    """One look at everything; each ``look_at`` adds to the lists."""

    def __init__(self, evidence: Evidence, verdict: Verdict, now: Stamp | None) -> None:
        self._evidence = evidence
        self._verdict = verdict
        self._boot_ns = now.wall_ns - now.boottime_ns - _BOOT_SLACK_NS if now is not None else 0
        kernel = evidence.kernel
        veths = kernel.veths if kernel is not None else ()
        ours = [veth for veth in veths if is_our_alias(veth.alias)]
        self._is_our_node = bool(ours)
        self._our_addresses = {address for veth in ours for address in veth.routed or veth.inside}
        self._veths = [veth for veth in veths if not is_our_alias(veth.alias)]
        self._claims = [claim for claim in verdict.claims if claim.address not in self._our_addresses]
        self._cached = [
            cached
            for cached in evidence.cache.entries
            if _is_of_the_plugin(cached) and not self._is_of_before(cached.modified_ns)
        ]
        self._pods = [seen for seen in evidence.pods or () if not (seen.is_host_network or seen.is_finished)]
        self._names = self._names_by_hash()
        self._objections: list[Objection] = []
        self._cautions: list[Caution] = []
        self._gaps: list[str] = []

    def findings(self, living: str) -> Findings:
        """Everything so far."""
        return Findings(
            found=tuple(
                self._found(claim)
                for claim in sorted(self._verdict.claims, key=lambda claim: address_number(claim.address))
            ),
            objections=tuple(self._objections),
            cautions=tuple(self._cautions),
            gaps=tuple(self._gaps),
            living=living,
            sources=self._evidence.sources,
            notes=self._verdict.notes,
        )

    def _found(self, claim: Claim) -> Found:
        return Found(
            address=claim.address,
            pod=claim.pod,
            key=claim.key,
            host_ifname=claim.veth.host_ifname if claim.veth is not None else "",
            sources=claim.evidence,
            is_ours=claim.address in self._our_addresses,
        )

    # -- what is refused --------------------------------------------------------------------------

    def look_at_settings(self, refused: Refused) -> None:
        """The agent would not start with them."""
        said = EXPLANATIONS[refused.reason]
        self._object(
            "settings", f"{said.meaning} ({refused.detail})", said.next_action, reason=refused.reason
        )

    def miss_the_kernel(self) -> None:
        """Without the kernel nothing can be told."""
        why = self._evidence.sources.get(KERNEL, "").removeprefix("unreadable: ") or "no reason given"
        self._gaps.append(f"The kernel could not be read ({why}), so nobody knows which pods live here.")
        self._object(
            "kernel",
            f"The kernel could not be read ({why}).",
            "Run as root on the node, or in a container with hostNetwork, NET_ADMIN and SYS_ADMIN.",
            reason=Reason.KERNEL_REFUSED,
        )

    def look_at_branch_enis(self, branch_veths: Iterable[HostVeth]) -> None:
        """Pods with security groups of their own."""
        pods = [
            pod_text(seen.pod) or f"the pod {seen.pod.uid}"
            for seen in self._pods
            if seen.has_branch_eni and not self._is_all_ours(seen.addresses)
        ]
        pods += [_name_of(claim) for claim in self._claims if claim.table in _BRANCH_TABLES]
        ifnames = [veth.ifname for veth in branch_veths if not is_our_alias(veth.alias)]
        ifnames += [ifname for cached in self._cached for ifname in cached.host_ifnames]
        pods += [self._pod_of(ifname) for ifname in ifnames if _BRANCH_VETH.fullmatch(ifname)]
        if pods:
            self._object(
                "branch_enis",
                f"{_have(pods)} a branch ENI (security groups for pods), which vpccni cannot serve yet",
                "Move such pods to nodes that amazon-vpc-cni-k8s goes on serving, or leave this node to it.",
                pods,
            )

    def look_at_cards(self) -> None:
        """Pods on network cards other than the first."""
        addresses = {
            row.address
            for file in self._evidence.checkpoints
            for row in file.rows
            if row.card > 0 or file.card > 0 or row.interfaces_count > 1
        }
        pods = [
            _name_of(claim)
            for claim in self._claims
            if claim.address in addresses or device_of_table(claim.table)[0] > 0
        ]
        if pods:
            self._object(
                "other_cards",
                f"{_have(pods)} an address on another network card than the first, which vpccni cannot serve yet",
                "Move such pods to nodes that amazon-vpc-cni-k8s goes on serving, or leave this node to it.",
                pods,
            )

    def look_at_ipv6(self, enis: Iterable[EniFacts]) -> None:
        """Nodes of an IPv6 cluster. A pod that has an IPv4 address as well is served by that."""
        pods = [
            pod_text(row.pod) or f"the pod at {row.address}"
            for file in self._evidence.checkpoints
            for row in file.rows
            if ":" in row.address and not self._is_of_before(row.allocated_ns or file.modified_ns)
        ]
        pods += [
            pod_text(cached.pod) or f"sandbox {cached.key.container_id}"
            for cached in self._cached
            if _is_only_ipv6(cached.addresses)
        ]
        pods += [self._pod_of(veth.ifname) for veth in self._veths if _is_only_ipv6(_addresses(veth))]
        pods += [pod_text(seen.pod) for seen in self._pods if _is_only_ipv6(seen.addresses)]
        action = "Leave this node to amazon-vpc-cni-k8s."
        if pods:
            self._object("ipv6", f"{_have(pods)} an IPv6 address; vpccni serves IPv4 only", action, pods)
            return
        prefixes = [cidr for eni in enis for cidr in eni.cidrs if ":" in cidr]
        if prefixes and not self._is_our_node:
            said = f"An ENI of this node has an IPv6 prefix ({some(prefixes)}); vpccni serves IPv4 only."
            self._object("ipv6", said, action)

    def look_at_policies(
        self, pins: tuple[str, ...] | None, policy_endpoints: tuple[str, ...] | None
    ) -> None:
        """Network policies that would be dropped."""
        found = judge_policies(pins, policy_endpoints)
        if found is None:
            return
        pods = [
            _name_of(claim)
            for claim in self._claims
            if claim.pod.name and identifier_of(claim.pod) in found.identifiers
        ]
        # Our own node was asked when we took it; to refuse it now would leave its pods to nobody.
        if found.is_objection and not self._is_our_node:
            self._object(POLICIES, found.sentence, found.next_action, pods)
        else:
            self._caution(POLICIES, found.sentence, found.next_action, pods)

    def look_at_enis(self, enis: Sequence[EniFacts]) -> None:
        """Prefixes, trunks, and addresses that no ENI has."""
        prefixes = [cidr for eni in enis for cidr in eni.cidrs if ":" not in cidr and cidr_size(cidr) > 1]
        pods = [
            _name_of(claim)
            for claim in self._claims
            if any(is_inside(claim.address, cidr) for cidr in prefixes)
        ]
        if pods:
            self._object(
                "prefixes",
                f"{_have(pods)} an address out of a /28 prefix; vpccni cannot take over pods in prefixes yet",
                "Leave this node to amazon-vpc-cni-k8s. Or set ENABLE_PREFIX_DELEGATION=false there, replace the "
                "node, and take over the new one.",
                pods,
            )
        elif prefixes:
            self._caution(
                "prefixes",
                f"An ENI has a /28 prefix ({some(prefixes)}) with no pod of the original in it: its addresses are "
                "used, and it is given back when the pool is too large.",
            )
        if any(eni.type == "trunk" for eni in enis):
            self._caution(
                "trunk",
                "A trunk ENI is attached: the scheduler may send pods with security groups of their own here, and "
                "they would get an ordinary address.",
                "Keep pods that ask for vpc.amazonaws.com/pod-eni away from this node.",
            )
        known = {eni.primary for eni in enis}
        strays = [
            claim.address
            for claim in self._claims
            if claim.address not in known
            and not any(is_inside(claim.address, cidr) for eni in enis for cidr in eni.cidrs)
        ]
        if strays:
            self._caution(
                "without_eni",
                f"No ENI of this node has these addresses, as far as IMDS or EC2 tell, and they are in use here: "
                f"{some(strays)}. They are kept, and given to nobody else.",
                "Restart their pods if they cannot be reached.",
                strays,
            )

    def miss_the_enis(self) -> None:
        """Without the ENIs a pod in a prefix looks like any other."""
        if self._claims:
            self._gaps.append(
                "The node's ENIs are not known, so a pod with an address out of a /28 prefix looks like any other."
            )

    # -- what to know -----------------------------------------------------------------------------

    def look_at_the_unexplained(self) -> None:
        """Interfaces of pods whose address nothing tells."""
        names = [veth.ifname for veth in self._verdict.unexplained if not _is_only_ipv6(_addresses(veth))]
        if names:
            self._caution(
                "unexplained",
                f"Nothing tells the address of the pods of these interfaces: {some(names)}. While that lasts the "
                "agent gives no address to a new pod; it looks again every few seconds.",
                "Delete the pod, or the interface when no pod is behind it (`ip link show NAME`).",
                names,
            )

    def look_at_sources(self) -> None:
        """What could not be read, as a whole or in part."""
        kernel = self._evidence.kernel
        unread = [
            f"{name} ({status.removeprefix('unreadable: ')})"
            for name, status in sorted(self._evidence.sources.items())
            if status.startswith("unreadable") and name != KERNEL
        ]
        if unread:
            self._caution(
                "sources",
                f"Sources that could not be read: {'; '.join(unread)}. The others serve; an address whose sandbox "
                "none of them names is held until that sandbox is gone.",
            )
        parts = [*(kernel.unreadable if kernel is not None else ()), *self._evidence.cache.unreadable]
        parts += [f"{file.path}: {said}" for file in self._evidence.checkpoints for said in file.unreadable]
        if parts:
            self._caution(
                "unreadable", f"What could not be read within a source: {some(parts)}.", names=parts
            )

    # -- common -----------------------------------------------------------------------------------

    def _object(
        self,
        kind: str,
        sentence: str,
        next_action: str,
        pods: Iterable[str] = (),
        reason: Reason = Reason.TAKE_OVER_REFUSED,
    ) -> None:
        names = distinct(pods)
        if names:
            sentence += f" Pods: {some(names)}." if sentence.endswith(".") else f": {some(names)}."
        self._objections.append(
            Objection(reason=reason, kind=kind, sentence=sentence, next_action=next_action, pods=names)
        )

    def _caution(self, kind: str, sentence: str, next_action: str = "", names: Iterable[str] = ()) -> None:
        self._cautions.append(
            Caution(kind=kind, sentence=sentence, next_action=next_action, names=distinct(names))
        )

    def _is_of_before(self, written_ns: int) -> bool:
        """Whether something was written before this boot: no sandbox of then is alive."""
        return 0 < written_ns < self._boot_ns

    def _is_all_ours(self, addresses: Sequence[Address]) -> bool:
        return bool(addresses) and all(address in self._our_addresses for address in addresses)

    def _pod_of(self, ifname: str) -> str:
        return self._names.get(ifname[-11:], f"the pod of {ifname}")

    def _names_by_hash(self) -> dict[str, str]:
        """Pods by the digits that end the name of their host veth, from whichever source names them."""
        pods: list[PodRef] = [seen.pod for seen in self._pods]
        pods += [cached.pod for cached in self._cached]
        pods += [row.pod for file in self._evidence.checkpoints for row in file.rows]
        return {host_veth_name("", pod.namespace, pod.name): pod_text(pod) for pod in pods if pod.name}


def _is_of_the_plugin(cached: CachedResult) -> bool:
    """Whether a cached result is the original's or ours; other programs use the same cache."""
    return _PLUGIN in cached.plugin_types if cached.plugin_types else cached.key.network == _PLUGIN


def _name_of(claim: Claim) -> str:
    return pod_text(claim.pod) or f"the pod at {claim.address}"


def _addresses(veth: HostVeth) -> tuple[Address, ...]:
    return (*veth.routed, *veth.inside)


def _is_only_ipv6(addresses: Sequence[Address]) -> bool:
    return bool(addresses) and all(":" in address for address in addresses)


def _have(pods: Iterable[str]) -> str:
    number = len(distinct(pods))
    return "1 pod has" if number == 1 else f"{number} pods have"
