"""From the books to what the datapath needs of a lease or an ENI."""

from __future__ import annotations

from vpccni.datapath.objects import EniWiring, LeaseWiring
from vpccni.events.sandbox import SandboxWired
from vpccni.model import Binding, LeaseId, PodRef, SandboxKey
from vpccni.projections.enis import Eni
from vpccni.projections.leases import Lease, Rest
from vpccni.projections.state import State


def _wiring(
    lease: LeaseId,
    key: SandboxKey,
    pod: PodRef,
    netns: str,
    bindings: tuple[Binding, ...],
    wired: SandboxWired | None,
) -> LeaseWiring:
    return LeaseWiring(
        lease=lease,
        key=key,
        pod=pod,
        netns=netns,
        bindings=bindings,
        host_ifname=wired.host_ifname if wired else "",
        host_ifindex=wired.host_ifindex if wired else 0,
        alias=wired.alias if wired else "",
    )


def lease_wiring(lease: Lease, netns: str = "") -> LeaseWiring:
    """An open lease; ``netns`` where the runtime just named another namespace for it."""
    return _wiring(lease.id, lease.key, lease.pod, netns or lease.netns, lease.bindings, lease.wired)


def rest_wiring(rest: Rest) -> LeaseWiring:
    """A lease that has ended, whose veth may still stand."""
    return _wiring(rest.lease, rest.key, rest.pod, rest.netns, rest.bindings, rest.wired)


def eni_wiring(held: Eni) -> EniWiring:
    """An attached ENI."""
    facts = held.facts
    return EniWiring(
        eni=facts.id,
        mac=facts.mac,
        primary=facts.primary,
        subnet_cidr=facts.subnet_cidr,
        table=held.table,
        card=held.card,
        device=held.device,
        is_primary=held.is_primary,
    )


def attached_enis(state: State) -> list[EniWiring]:
    """Every managed, attached ENI that the kernel can be set up for, by device."""
    return [
        eni_wiring(held)
        for held in sorted(state.enis.values(), key=lambda held: (held.card, held.device))
        if held.managed and held.phase == "attached" and held.facts.primary and held.facts.subnet_cidr
    ]
