"""Short ways to write wirings down in tests."""

from __future__ import annotations

from vpccni.datapath.objects import DatapathSettings, EniWiring, LeaseWiring
from vpccni.model import (
    Address,
    Binding,
    Cidr,
    EniId,
    LeaseId,
    Mac,
    PodRef,
    SandboxKey,
    route_table_of,
)

SETTINGS = DatapathSettings()
VPC = (Cidr("10.0.0.0/16"),)


def lease(
    number: int,
    *,
    address: str = "",
    device: int = 1,
    netns: str = "",
    container: str = "",
    pod: str = "",
    ifindex: int = 0,
) -> LeaseWiring:
    """A lease of one address on the ENI with this device index."""
    binding = Binding(
        family=4,
        address=Address(address or f"10.0.{device}.{number % 200 + 20}"),
        eni=EniId(f"eni-{device}"),
        card=0,
        device=device,
        table=route_table_of(0, device),
    )
    return LeaseWiring(
        lease=LeaseId(number),
        key=SandboxKey("aws-cni", container or f"{number:064x}", "eth0"),
        pod=PodRef("default", pod or f"pod-{number}"),
        netns=netns or f"/run/netns/{number}",
        bindings=(binding,),
        host_ifindex=ifindex,
    )


def eni(device: int, *, subnet: str = "") -> EniWiring:
    """The ENI with this device index; 0 is the primary."""
    return EniWiring(
        eni=EniId(f"eni-{device}"),
        mac=Mac(f"02:00:00:00:01:{device:02x}"),
        primary=Address(f"10.0.{device}.10"),
        subnet_cidr=Cidr(subnet or f"10.0.{device}.0/24"),
        table=route_table_of(0, device),
        card=0,
        device=device,
        is_primary=device == 0,
    )
