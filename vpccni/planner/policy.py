"""From the settings and the limits of the instance to the policy that the planner takes."""

from __future__ import annotations

from vpccni.model import InstanceLimits, SubnetId
from vpccni.planner.sizing import PoolPolicy
from vpccni.settings import Settings


def policy_of(
    settings: Settings,
    limits: InstanceLimits,
    *,
    max_pods: int,
    unmanaged_enis: int = 0,
    subnet: SubnetId | None = None,
) -> PoolPolicy:
    """The pool's targets and limits on an instance with these limits.

    Args:
        settings: The agent's.
        limits: Of the instance type.
        max_pods: Pods that the node may run, should ``settings`` not say.
        unmanaged_enis: ENIs that somebody else uses.
        subnet: Where new ENIs are made; ``None`` while it is not known.
    """
    enis_max = min(limits.enis_max, settings.max_eni) if settings.max_eni else limits.enis_max
    return PoolPolicy(
        warm_eni_target=settings.warm_eni_target,
        warm_ip_target=settings.warm_ip_target,
        minimum_ip_target=settings.minimum_ip_target,
        enis_max=enis_max,
        slots_per_eni=limits.ipv4_per_eni - 1,
        max_pods=settings.max_pods or max_pods,
        unmanaged_enis=unmanaged_enis,
        subnet=subnet or SubnetId(""),
    )
