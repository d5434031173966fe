"""How the warm pool will be kept, as one plain sentence: for the log's first line, and wherever a policy is shown."""

from __future__ import annotations

from vpccni.settings import Settings


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
