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
    VethRemoval,
)
from vpccni.errors import PermanentError, Reason
from vpccni.model import MAIN_TABLE, Address, Cidr, Mac, address_at, cidr_span, host_cidr


def desired(
    leases: Sequence[LeaseWiring],
    enis: Sequence[EniWiring],
    settings: DatapathSettings,
    vpc_cidrs: Sequence[Cidr],
    *,
    ended: Sequence[LeaseWiring] = (),
    as_original: bool = False,
) -> Desired:
    """How the node should look with these leases and ENIs.

    A lease that cannot be wired here (of a later release, or found without an interface) is left alone, and told.

    Args:
        leases: All open leases.
        enis: All ENIs whose addresses may be assigned, the primary included.
        settings: The node's settings.
        vpc_cidrs: All CIDRs of the VPC; empty while unknown, then the nft table is left alone.
        ended: Leases that have ended, and whose host veth may still stand.
        as_original: Wire each pod for amazon-vpc-cni-k8s, too: the node is being handed back.
    """
    in_order = sorted(leases, key=lambda lease: lease.lease)
    odd = {lease.lease: why for lease in in_order if (why := why_left_alone(lease))}
    pods = tuple(
        pod_wiring(lease, settings, as_original=as_original) for lease in in_order if lease.lease not in odd
    )
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
        veth_prefix=settings.veth_prefix,
        ended=veth_removals(ended, settings.veth_prefix),
        left_alone=tuple(
            binding.address
            for lease in in_order
            if lease.lease in odd
            for binding in lease.bindings
            if binding.family == 4
        ),
        notes=tuple(odd[lease.lease] for lease in in_order if lease.lease in odd and not is_bare_hold(lease)),
        as_original=as_original,
    )


def pod_wiring(lease: LeaseWiring, settings: DatapathSettings, *, as_original: bool = False) -> PodWiring:
    """The wiring of one lease; what the log knows of its interface wins over what would be computed.

    Raises:
        PermanentError: ``feature_not_supported``: see :func:`why_left_alone`.
    """
    why = why_left_alone(lease)
    if why:
        raise PermanentError(Reason.FEATURE_NOT_SUPPORTED, why)
    binding = lease.bindings[0]
    return PodWiring(
        lease=lease.lease,
        netns=lease.netns,
        ifname=lease.key.ifname,
        host_ifname=lease.host_ifname or veth_name_of(settings.veth_prefix, lease.key, lease.pod),
        alias=lease.alias or alias_of(lease.key),
        address=binding.address,
        gateway=Address(POD_GATEWAY),
        host_mac=lease.host_mac or host_mac_of(lease.key),
        pod_mac=lease.pod_mac or pod_mac_of(lease.key, binding.address),
        mtu=settings.pod_mtu,
        table=binding.table,
        # The veth has no address of its own, and its pod's address is routed to it by rule 512: the
        # strict reverse look-up finds it, and whatever else the pod sends is dropped. What was found keeps its
        # own: nobody knows what its pod sends.
        rp_filter=RP_FILTER_STRICT if settings.manage_sysctls and not lease.is_found else -1,
        host_ifindex=lease.host_ifindex,
        is_found=lease.is_found,
        is_unlocated=not binding.eni,
        as_original=as_original,
    )


def why_left_alone(lease: LeaseWiring) -> str:
    """Why a lease cannot be wired here, one sentence; empty when it can."""
    if len(lease.bindings) != 1:
        return f"lease {lease.lease} has {len(lease.bindings)} addresses, not one"
    binding = lease.bindings[0]
    if binding.family != 4 or binding.kind != "pool":
        return f"lease {lease.lease} has an IPv{binding.family} address of kind {binding.kind}"
    if is_bare_hold(lease):
        return f"{binding.address} is held, and its interface is not known"
    return ""


def is_bare_hold(lease: LeaseWiring) -> bool:
    """Whether neither a sandbox nor an interface is known of a lease: all that is known is that it is used."""
    return not lease.key.container_id and not lease.alias


def veth_removals(leases: Sequence[LeaseWiring], veth_prefix: str) -> tuple[VethRemoval, ...]:
    """The host veths of leases, each as narrow as the log can tell it."""
    return tuple(_veth_removal(lease, veth_prefix) for lease in leases)


def _veth_removal(lease: LeaseWiring, veth_prefix: str) -> VethRemoval:
    alias = lease.alias or alias_of(lease.key)
    if lease.host_ifindex and lease.is_found:
        # It may end before it gets our alias: then name and MAC tell.
        return VethRemoval(
            ifindex=lease.host_ifindex, alias=alias, ifname=lease.host_ifname, mac=lease.host_mac
        )
    if lease.host_ifindex:
        return VethRemoval(ifindex=lease.host_ifindex, alias=alias)
    ifname = lease.host_ifname or veth_name_of(veth_prefix, lease.key, lease.pod)
    return VethRemoval(ifindex=0, alias=alias, ifname=ifname, mac=host_mac_of(lease.key))


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
