"""``vpccni capacity``: how many pods an instance type can run, for kubelet and for provisioners. Touches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import typer

from vpccni.cli.assumptions import SetOption, TypeOption, environment_of, instance_type_of, values_of
from vpccni.cli.output import print_json
from vpccni.cli.problems import USAGE, CommandError
from vpccni.cli.where import JsonOption
from vpccni.instance_types import InstanceType
from vpccni.planner.capacity import HOST_NETWORK_PODS, VCPUS_OF_SMALL, Capacity, capacity_of
from vpccni.settings import examine

NumberOption = Annotated[
    bool, typer.Option("--number", help="Print the number alone, for a kubelet's command line.")
]

PREFIXES: Final = "ENABLE_PREFIX_DELEGATION"
CUSTOM_NETWORKING: Final = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"
IPV6: Final = "ENABLE_IPv6"
_COUNTS: Final = (PREFIXES, CUSTOM_NETWORKING, IPV6, "MAX_ENI", "ENABLE_POD_ENI", "ENABLE_MULTI_NIC")
"""The settings that the number depends on, or that deserve a note about it."""


def capacity(
    instance_type: TypeOption,
    assumed: SetOption = None,
    number: NumberOption = False,
    as_json: JsonOption = False,
) -> None:
    """How many pods an instance type can run, and why: what to tell kubelet and a provisioner.

    With single addresses it is ENIs x (addresses of an ENI - 1) + 2, as EKS has it; with prefixes sixteen times as
    many addresses, but no more than the recommended 110 pods, or 250 with more than 30 vCPUs. Nobody is asked, and
    nothing is changed.

    [bold]Examples[/bold]
      vpccni capacity -t m5.large
      vpccni capacity -t m5.large --set ENABLE_PREFIX_DELEGATION=true --set AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true
      kubelet --max-pods="$(vpccni capacity -t m5.large --number)"
    """
    kind = instance_type_of(instance_type)
    environ = environment_of(assumed)
    values = values_of(environ)
    _check(values, kind)
    found = capacity_of(
        kind.limits,
        vcpus=kind.vcpus,
        max_eni=values.get("MAX_ENI", 0),
        prefixes=values.get(PREFIXES, False),
        custom_networking=values.get(CUSTOM_NETWORKING, False),
        ipv6=values.get(IPV6, False),
    )
    notes = list(_notes(environ, values, kind, found))
    if as_json:
        print_json(_data(environ, kind, found, notes))
    elif number:
        print(found.max_pods)
    else:
        print("\n".join([*_lines(kind, found), *(f"\n{note}" for note in notes)]))


def _check(values: Mapping[str, Any], kind: InstanceType) -> None:
    """Refuse what the agent would refuse together.

    Raises:
        CommandError: all that is wrong with the combination.
    """
    wrong = []
    if values.get(IPV6):
        if values.get(CUSTOM_NETWORKING):
            wrong.append(f"{IPV6} and {CUSTOM_NETWORKING} exclude each other.")
        if not values.get(PREFIXES):
            wrong.append(f"{IPV6} needs {PREFIXES}=true: pods get addresses of a /80 prefix.")
        if not kind.limits.is_nitro or not kind.ipv6_per_eni:
            wrong.append(f"{kind.name} cannot have IPv6 prefixes: that needs Nitro or bare metal.")
    if wrong:
        raise CommandError(" ".join(wrong), USAGE)


def _data(
    environ: Mapping[str, str], kind: InstanceType, found: Capacity, notes: list[str]
) -> dict[str, Any]:
    return {
        "instance_type": kind.name,
        "settings": dict(environ),
        **msgspec.to_builtins(found),
        "host_network_pods": HOST_NETWORK_PODS,
        "vcpus": kind.vcpus,
        "enis_by_card": list(kind.enis_by_card),
        "ipv4_per_eni": kind.ipv4_per_eni,
        "notes": notes,
    }


def _lines(kind: InstanceType, found: Capacity) -> Iterator[str]:
    yield f"{kind.name}: {found.max_pods} pods (kubelet --max-pods={found.max_pods})"
    yield ""
    vcpus = f", {kind.vcpus} vCPUs" if kind.vcpus else ""
    yield f"  limits        {kind.enis_by_card[0]} ENIs with {kind.ipv4_per_eni} IPv4 addresses each{vcpus}"
    if found.addresses is None:
        yield "  addresses     one /80 for all pods: as many as they ask for"
    else:
        product = f"{found.enis} ENIs x {found.slots_per_eni}"
        if found.addresses_per_slot > 1:
            product += f" prefixes x {found.addresses_per_slot}"
        yield f"  addresses     {product} = {found.addresses}; an ENI's own is not for pods"
        yield f"  can run       {found.addresses} + {HOST_NETWORK_PODS} on the host's network = {found.addressable}"
    if not found.ceiling:
        yield "  recommended   depends on the vCPUs, which are not known"
        return
    size = "more than" if kind.vcpus > VCPUS_OF_SMALL else "up to"
    yield f"  recommended   {found.recommended}; at most {found.ceiling} with {size} {VCPUS_OF_SMALL} vCPUs"


def _notes(
    environ: Mapping[str, str], values: Mapping[str, Any], kind: InstanceType, found: Capacity
) -> Iterator[str]:
    if values.get(PREFIXES) and not kind.limits.is_nitro:
        yield f"{kind.name} is neither Nitro nor bare metal and cannot have prefixes: single addresses are counted."
    if not found.enis and found.addresses is not None:
        yield "No ENI is left for pods: with custom networking the primary ENI serves none."
    if values.get("ENABLE_POD_ENI"):
        fewer = found.slots_per_eni * max(found.addresses_per_slot, 1)
        yield (
            "The trunk ENI of security groups for pods takes the place of one ENI where the type can have one: "
            f"{fewer} addresses fewer, which the published numbers do not count."
        )
    if kind.cards > 1:
        others = ", ".join(str(enis) for enis in kind.enis_by_card[1:])
        yield (
            f"{kind.cards - 1} further network card{'s take' if kind.cards > 2 else ' takes'} {others} ENIs; "
            "their addresses go, besides, to pods that ask for them, and do not make room for more pods."
        )
    yield from (
        f"Not built yet: {problem.name}. This vpccni would not start with it."
        for problem in examine(environ).problems
        if problem.name in values
    )
    idle = [name for name in environ if name not in _COUNTS]
    if idle:
        yield f"The number does not depend on {', '.join(idle)}."
