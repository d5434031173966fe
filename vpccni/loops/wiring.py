"""From the books to what the datapath needs of a lease or an ENI."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vpccni.datapath.objects import EniWiring, LeaseWiring, RemovedObject, SandboxSeen
from vpccni.events.adoption import ForeignObjectRemoved
from vpccni.events.sandbox import SandboxLink, SandboxWired
from vpccni.model import Binding, LeaseId, Mac, PodRef, SandboxKey
from vpccni.planner import commands as c
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
    *,
    is_found: bool = False,
) -> LeaseWiring:
    made = LeaseWiring(lease=lease, key=key, pod=pod, netns=netns, bindings=bindings, is_found=is_found)
    if wired is None:
        return made
    link = wired.links[0]
    return msgspec.structs.replace(
        made,
        host_ifname=link.host_ifname,
        host_ifindex=link.host_ifindex,
        alias=link.alias,
        host_mac=Mac(link.host_mac),
        pod_mac=Mac(link.pod_mac),
    )


def lease_wiring(lease: Lease, netns: str = "") -> LeaseWiring:
    """An open lease; ``netns`` where the runtime just named another namespace for it."""
    return _wiring(
        lease.id,
        lease.key,
        lease.pod,
        netns or lease.netns,
        lease.bindings,
        lease.wired,
        is_found=lease.origin != "add",
    )


def rest_wiring(rest: Rest) -> LeaseWiring:
    """A lease that has ended, whose veth may still stand."""
    return _wiring(
        rest.lease, rest.key, rest.pod, rest.netns, rest.bindings, rest.wired, is_found=rest.is_found
    )


def sandbox_wired(lease: Lease, seen: SandboxSeen, netns: str) -> SandboxWired:
    """What the log is to say of a sandbox that was just wired."""
    link = SandboxLink(
        ifname=lease.key.ifname,
        host_ifname=seen.host_ifname,
        host_ifindex=seen.host_ifindex,
        alias=seen.alias,
        host_mac=seen.host_mac,
        pod_mac=seen.pod_mac,
    )
    return SandboxWired(lease=lease.id, links=(link,), netns=netns, netns_inode=seen.netns_inode)


def note_removed(removed: Sequence[RemovedObject]) -> c.Note | None:
    """What of amazon-vpc-cni-k8s was removed, for the log; ``None`` for nothing."""
    if not removed:
        return None
    return c.Note(events=tuple(ForeignObjectRemoved(kind=one.kind, text=one.text) for one in removed))


def is_handing_back(state: State) -> bool:
    """Whether each pod is to be wired for amazon-vpc-cni-k8s, too."""
    return state.mode == "hand_back"


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
