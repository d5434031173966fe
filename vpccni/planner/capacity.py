"""How many pods a node can have addresses for: the one formula, for kubelet, for provisioners and for the agent.

A node has ENIs, an ENI has slots, and a slot holds one address or a /28 of sixteen. An ENI's own address is not for
pods. Only the default network card counts: pods get addresses of another one by asking, and beside this one. Two pods
more than there are addresses can run, because the agent and kube-proxy use the host's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from vpccni.model import InstanceLimits

HOST_NETWORK_PODS: Final = 2
"""The agent and kube-proxy run on every node and need no address."""
PREFIX_SIZE: Final = 16
"""Addresses in the /28 that a slot can hold."""

PODS_OF_SMALL: Final = 110
PODS_OF_LARGE: Final = 250
VCPUS_OF_SMALL: Final = 30
"""110 pods a node is what Kubernetes recommends at most, 250 what EKS has tested on nodes with more vCPUs than this:
so do its max-pods calculator (``files/max-pods-calculator.sh`` of awslabs/amazon-eks-ami) and managed node groups."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a node can carry.

    Attributes:
        enis: ENIs of the default card that serve pods.
        slots_per_eni: Slots of each, beside its own address.
        addresses_per_slot: 1; 16 with prefixes; 0 with IPv6, where addresses do not end.
        addresses: Pods that can have an address at the same time; ``None`` where addresses do not end.
        addressable: Pods that can run: those, and two on the host's network; ``None`` as before.
        ceiling: What a node with so many vCPUs should run at most; 0 when the vCPUs are not known.
        recommended: The smaller of the two.
        max_pods: What to tell kubelet. With single addresses all that can run, as EKS does; with prefixes and IPv6,
            where that would be thousands, the recommended number.
    """

    enis: int
    slots_per_eni: int
    addresses_per_slot: int
    addresses: int | None
    addressable: int | None
    ceiling: int
    recommended: int
    max_pods: int


def capacity_of(
    limits: InstanceLimits,
    *,
    vcpus: int = 0,
    max_eni: int = 0,
    prefixes: bool = False,
    custom_networking: bool = False,
    ipv6: bool = False,
) -> Capacity:
    """The capacity of a node.

    Args:
        limits: Of its instance type.
        vcpus: Of its instance type; 0 when not known, there is no ceiling then.
        max_eni: ``MAX_ENI``; 0 for what the type allows.
        prefixes: Slots hold /28s; taken for False where the type cannot (neither Nitro nor bare metal).
        custom_networking: The primary ENI serves no pods.
        ipv6: Pods get IPv6 addresses, of one /80.
    """
    enis = min(limits.enis_max, max_eni) if max_eni else limits.enis_max
    enis = max(enis - custom_networking, 0)
    slots = max(limits.ipv4_per_eni - 1, 0)
    ceiling = _ceiling(vcpus)
    if ipv6:
        top = ceiling or PODS_OF_LARGE
        return Capacity(
            enis=enis,
            slots_per_eni=slots,
            addresses_per_slot=0,
            addresses=None,
            addressable=None,
            ceiling=ceiling,
            recommended=top,
            max_pods=top,
        )
    per_slot = PREFIX_SIZE if prefixes and limits.is_nitro else 1
    addresses = enis * slots * per_slot
    addressable = addresses + HOST_NETWORK_PODS
    recommended = min(addressable, ceiling or addressable)
    return Capacity(
        enis=enis,
        slots_per_eni=slots,
        addresses_per_slot=per_slot,
        addresses=addresses,
        addressable=addressable,
        ceiling=ceiling,
        recommended=recommended,
        max_pods=addressable if per_slot == 1 else recommended,
    )


def _ceiling(vcpus: int) -> int:
    if not vcpus:
        return 0
    return PODS_OF_LARGE if vcpus > VCPUS_OF_SMALL else PODS_OF_SMALL
