"""From the settings to the warm-pool policy: as the planner takes it, and as one sentence."""

from __future__ import annotations

from vpccni.model import InstanceLimits
from vpccni.planner.sizing import PoolPolicy
from vpccni.settings import Settings


def policy_of(
    settings: Settings, limits: InstanceLimits, *, max_pods: int, unmanaged_enis: int = 0
) -> PoolPolicy:
    """The pool's targets and limits on an instance with these limits.

    Args:
        settings: The agent's.
        limits: Of the instance type.
        max_pods: Pods that the node may run, should ``settings`` not say.
        unmanaged_enis: ENIs that somebody else uses.
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
    )


def policy_sentence(settings: Settings) -> str:
    """What the pool will be kept at, in one plain sentence: which targets count, and which do not."""
    return f"The pool {_targets(settings)}, on {_places(settings)}; {_rest(settings)}."


def _targets(settings: Settings) -> str:
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    if warm and least:
        return (
            f"keeps {_addresses(warm)} free (WARM_IP_TARGET) and owns at least {least} (MINIMUM_IP_TARGET; "
            "WARM_ENI_TARGET does not count beside them)"
        )
    if warm:
        return f"keeps {_addresses(warm)} free (WARM_IP_TARGET; WARM_ENI_TARGET does not count beside it)"
    if least:
        return (
            f"owns at least {_addresses(least)} (MINIMUM_IP_TARGET; WARM_ENI_TARGET does not count beside it) "
            "and keeps none free beyond that, so that each further pod waits for EC2"
        )
    enis = settings.warm_eni_target
    if not enis:
        return "keeps one address free (WARM_ENI_TARGET is 0)"
    whole = "a whole ENI holds" if enis == 1 else f"{enis} whole ENIs hold"
    return f"keeps as many addresses free as {whole} (WARM_ENI_TARGET)"


def _places(settings: Settings) -> str:
    if not settings.max_eni:
        return "as many ENIs as the instance type allows"
    return f"at most {settings.max_eni} ENI{'s' if settings.max_eni > 1 else ''} (MAX_ENI)"


def _rest(settings: Settings) -> str:
    if not settings.ip_cooldown_s:
        return "a released address is used again at once"
    return f"a released address rests for {settings.ip_cooldown_s} s"


def _addresses(count: int) -> str:
    return f"{count} address{'es' if count > 1 else ''}"
