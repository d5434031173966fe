"""From leases, ENIs and settings to what the kernel should hold."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from vpccni.datapath.names import alias_of, host_mac_of, pod_mac_of, veth_name_of
from vpccni.datapath.numbers import (
    POD_GATEWAY,
    POD_TABLE,
    PRIORITY_FROM_ENI,
    PRIORITY_FROM_POD,
    PRIORITY_MARK,
    PRIORITY_TO_POD,
    RP_FILTER_LOOSE,
    RP_FILTER_STRICT,
    needs_from_rule,
)
from vpccni.datapath.objects import (
    DatapathSettings,
    Desired,
    EniSetup,
    EniWiring,
    LeaseWiring,
    NftPolicy,
    PodWiring,
    Rule,
)
from vpccni.errors import PermanentError, Reason
from vpccni.model import MAIN_TABLE, Address, Binding, Cidr, Mac, address_at, cidr_span, host_cidr


def desired(
    leases: Sequence[LeaseWiring],
    enis: Sequence[EniWiring],
    settings: DatapathSettings,
    vpc_cidrs: Sequence[Cidr],
) -> Desired:
    """How the node should look with these leases and ENIs.

    Args:
        leases: All open leases.
        enis: All ENIs whose addresses may be assigned, the primary included.
        settings: The node's settings.
        vpc_cidrs: All CIDRs of the VPC; empty while unknown, then the nft table is left alone.

    Raises:
        PermanentError: ``feature_not_supported``: a binding of a kind that is not built yet.
    """
    pods = tuple(pod_wiring(lease, settings) for lease in sorted(leases, key=lambda lease: lease.lease))
    setups = tuple(eni_setup(eni, settings) for eni in sorted(enis, key=lambda eni: eni.eni))
    rules = {Rule(priority=PRIORITY_TO_POD, table=POD_TABLE)}
    if settings.node_port or not settings.external_snat:
        mark = settings.connmark
        rules.add(Rule(priority=PRIORITY_MARK, table=MAIN_TABLE, mark=mark, mask=mark))
    for pod in pods:
        rules.update(from_rules(pod.address, pod.table))
    for setup in setups:
        rules.update(eni_rules(setup))
    primary = next((eni for eni in enis if eni.is_primary), None)
    return Desired(
        pods=pods,
        enis=setups,
        rules=tuple(sorted(rules)),
        nft=_nft_policy(primary, settings, vpc_cidrs),
        subnets=collapse([eni.subnet_cidr for eni in enis]),
        primary_mac=primary.mac if primary is not None else "",
        ip_forward=settings.manage_sysctls,
    )


def pod_wiring(lease: LeaseWiring, settings: DatapathSettings) -> PodWiring:
    """The wiring of one lease; the names that the log knows win over computed ones. Raises as ``desired``."""
    binding = _only_binding(lease)
    return PodWiring(
        lease=lease.lease,
        netns=lease.netns,
        ifname=lease.key.ifname,
        host_ifname=lease.host_ifname or veth_name_of(settings.veth_prefix, lease.key, lease.pod),
        alias=lease.alias or alias_of(lease.key),
        address=binding.address,
        gateway=Address(POD_GATEWAY),
        host_mac=host_mac_of(lease.key),
        pod_mac=pod_mac_of(lease.key, binding.address),
        mtu=settings.pod_mtu,
        table=binding.table,
        # The veth has no address of its own, and its pod's address is routed to it by rule 512: the
        # strict reverse look-up finds it, and whatever else the pod sends is dropped.
        rp_filter=RP_FILTER_STRICT if settings.manage_sysctls else -1,
        host_ifindex=lease.host_ifindex,
    )


def eni_setup(eni: EniWiring, settings: DatapathSettings) -> EniSetup:
    """The set-up of one ENI."""
    return EniSetup(
        eni=eni.eni,
        mac=Mac(eni.mac.lower()),
        primary=eni.primary,
        prefix_length=int(eni.subnet_cidr.partition("/")[2]),
        subnet_cidr=eni.subnet_cidr,
        gateway=gateway_of(eni.subnet_cidr),
        table=eni.table,
        mtu=settings.eni_mtu,
        # Strict filtering would drop what comes in here and is answered elsewhere (marked connections).
        rp_filter=RP_FILTER_LOOSE if settings.manage_sysctls else -1,
        owns_address=not eni.is_primary,
    )


def from_rules(address: Address, table: int) -> tuple[Rule, ...]:
    """The rule that sends a pod's packets to its ENI's table; none for pods of the primary ENI."""
    if not needs_from_rule(table):
        return ()
    return (Rule(priority=PRIORITY_FROM_POD, table=table, src=host_cidr(address)),)


def eni_rules(setup: EniSetup) -> tuple[Rule, ...]:
    """The rule that sends packets with an ENI's own address to its table; none for the primary ENI."""
    if not setup.owns_address:
        return ()
    return (Rule(priority=PRIORITY_FROM_ENI, table=setup.table, src=host_cidr(setup.primary)),)


def gateway_of(subnet: Cidr) -> Address:
    """The VPC router of an IPv4 subnet: its second address (VPC user guide, reserved addresses)."""
    return address_at(cidr_span(subnet)[0] + 1)


def collapse(cidrs: Iterable[Cidr]) -> tuple[Cidr, ...]:
    """IPv4 CIDRs without overlaps, sorted (an nft interval set takes no overlap). IPv6 ones are left out."""
    networks = [ipaddress.IPv4Network(cidr, strict=False) for cidr in cidrs if cidr and ":" not in cidr]
    return tuple(Cidr(str(network)) for network in sorted(ipaddress.collapse_addresses(networks)))


def _only_binding(lease: LeaseWiring) -> Binding:
    if len(lease.bindings) != 1:
        raise PermanentError(
            Reason.FEATURE_NOT_SUPPORTED, f"lease {lease.lease} has {len(lease.bindings)} addresses, not one"
        )
    binding = lease.bindings[0]
    if binding.family != 4 or binding.kind != "pool":
        raise PermanentError(
            Reason.FEATURE_NOT_SUPPORTED,
            f"lease {lease.lease} has an IPv{binding.family} address of kind {binding.kind}",
        )
    return binding


def _nft_policy(
    primary: EniWiring | None, settings: DatapathSettings, vpc_cidrs: Sequence[Cidr]
) -> NftPolicy | None:
    if primary is None or not vpc_cidrs:
        return None
    return NftPolicy(
        veth_prefix=settings.veth_prefix,
        direct=collapse([*vpc_cidrs, *settings.exclude_snat_cidrs]),
        snat_to=Address("") if settings.external_snat else primary.primary,
        random_snat=settings.random_snat,
        node_port=settings.node_port,
        connmark=settings.connmark,
    )
