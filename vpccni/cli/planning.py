"""``vpccni plan``: what the planner would do on a node of that type with so many pods, and why. Touches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
import typer

from vpccni.cli.assumptions import SetOption, TypeOption, environment_of, instance_type_of
from vpccni.cli.output import print_json
from vpccni.cli.problems import USAGE, CommandError
from vpccni.cli.where import JsonOption
from vpccni.errors import VpccniError, sentence
from vpccni.instance_types import InstanceType
from vpccni.planner.capacity import Capacity, capacity_of
from vpccni.planner.rehearsal import Outcome, Turn, rehearse
from vpccni.pool_sentence import policy_sentence
from vpccni.settings import Settings, read_settings

PODS_MAX: Final = 2000
"""No node runs as many, and a rehearsal is not to take minutes."""

PodsOption = Annotated[
    int, typer.Option("--pods", "-p", min=0, max=PODS_MAX, help="How many pods arrive that need an address.")
]
OneByOneOption = Annotated[
    bool,
    typer.Option("--one-by-one", help="Each pod arrives when the node has settled; otherwise all at once."),
]


def plan(
    instance_type: TypeOption,
    pods: PodsOption,
    assumed: SetOption = None,
    one_by_one: OneByOneOption = False,
    as_json: JsonOption = False,
) -> None:
    """Try a warm-pool policy: the ENIs, addresses and EC2 calls that it leads to, and why.

    A new node of that type starts, the pods arrive, and it is watched for a quarter of an hour. The planner is the
    agent's own; EC2 is not asked, and always says yes. Nothing is changed anywhere.

    [bold]Examples[/bold]
      vpccni plan -t m5.xlarge --pods 40
      vpccni plan -t m5.xlarge --pods 40 --set WARM_IP_TARGET=5 --set MINIMUM_IP_TARGET=20
      vpccni plan -t m5.xlarge --pods 40 --set WARM_IP_TARGET=1 --one-by-one   [dim]# what each pod costs[/dim]
    """
    kind = instance_type_of(instance_type)
    environ = environment_of(assumed)
    settings = _settings(environ)
    room = capacity_of(kind.limits, vcpus=kind.vcpus, max_eni=settings.max_eni)
    _check_room(kind, room, settings, pods)
    outcome = rehearse(settings, kind.limits, pods=pods, max_pods=room.max_pods, one_by_one=one_by_one)
    if as_json:
        print_json(_data(environ, kind, settings, pods, outcome))
    else:
        print("\n".join([_size_line(kind, room), *_lines(settings, pods, outcome)]))


def _settings(environ: Mapping[str, str]) -> Settings:
    """The agent's settings.

    Raises:
        CommandError: the agent would refuse to start with them, or forgive something: a plan for what was not meant
            would mislead.
    """
    try:
        settings = read_settings(environ)
    except VpccniError as refused:
        raise CommandError(sentence(refused.reason, refused.detail), USAGE) from None
    if settings.warnings:
        raise CommandError(" ".join(settings.warnings), USAGE)
    return settings


def _check_room(kind: InstanceType, room: Capacity, settings: Settings, pods: int) -> None:
    """Refuse more pods than the node can have addresses for, or may run.

    Raises:
        CommandError: both numbers, and where they come from.
    """
    addresses = room.addresses if room.addresses is not None else pods
    if pods > addresses:
        raise CommandError(
            f"{pods} pods do not fit: {kind.name} has addresses for {addresses} ({room.enis} ENIs x "
            f"{room.slots_per_eni}). `vpccni capacity -t {kind.name}` explains the number.",
            USAGE,
        )
    if settings.max_pods and pods > settings.max_pods:
        raise CommandError(f"{pods} pods are more than VPCCNI_MAX_PODS={settings.max_pods} lets run.", USAGE)


def _data(
    environ: Mapping[str, str], kind: InstanceType, settings: Settings, pods: int, outcome: Outcome
) -> dict[str, Any]:
    return {
        "instance_type": kind.name,
        "settings": dict(environ),
        "warm_pool": policy_sentence(settings),
        "pods": pods,
        **msgspec.to_builtins(outcome),
        "calls": outcome.calls,
    }


def _size_line(kind: InstanceType, room: Capacity) -> str:
    enis = f"{room.enis} ENI{'s' if room.enis != 1 else ''}"
    return f"{kind.name}: up to {enis} with {room.slots_per_eni} addresses for pods each."


def _lines(settings: Settings, pods: int, outcome: Outcome) -> Iterator[str]:
    yield policy_sentence(settings)
    yield ""
    heads = ("pods", "wait", "EC2 call", "ENI", "addresses", "why")
    yield from _table(heads, _rows(outcome.turns), numbers=(0, 1, 4))
    yield ""
    yield f"Settled: {outcome.reason}" + (
        f" ({', '.join(outcome.constraints)})" if outcome.constraints else ""
    )
    yield ""
    rows = [
        (one.eni, str(one.device), str(one.addresses), str(one.pods), str(one.addresses - one.pods))
        for one in outcome.enis
    ]
    total = [sum(one.addresses for one in outcome.enis), sum(one.pods for one in outcome.enis)]
    rows.append(("together", "", str(total[0]), str(total[1]), str(total[0] - total[1])))
    yield from _table(("ENI", "device", "addresses", "pods", "free"), rows, numbers=(1, 2, 3, 4))
    yield ""
    count = sum(outcome.calls.values())
    each = f", {count / pods:.2f} a pod" if pods else ""
    by_action = ", ".join(f"{action} {times}" for action, times in outcome.calls.items())
    yield f"EC2 calls that change something: {count}{each}" + (f" ({by_action})" if by_action else "")
    yield from (f"Refused: {times} pods, {reason}." for reason, times in outcome.refused.items())


def _rows(turns: Sequence[Turn]) -> Iterator[tuple[str, ...]]:
    for turn in turns:
        why = turn.reason or "A new ENI is brought into service."
        if turn.constraints:
            why += f" ({', '.join(turn.constraints)})"
        for place, call in enumerate(turn.calls):
            first = (str(turn.pods), str(turn.waiting)) if place == 0 else ("", "")
            yield (*first, call.action, call.eni, str(call.count or ""), why if place == 0 else "")
    if not turns:
        yield ("0", "0", "none", "", "", "")


def _table(
    heads: Sequence[str],
    rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]],
    *,
    numbers: Sequence[int],
) -> Iterator[str]:
    cells = [tuple(heads), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        shown = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(shown).rstrip()
