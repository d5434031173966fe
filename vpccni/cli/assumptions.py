"""What a command that touches nothing is told of the node: its type, and settings as ``--set NAME=VALUE``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from vpccni.cli.problems import USAGE, CommandError
from vpccni.instance_types import InstanceType, instance_types, nearest
from vpccni.setting_names import nearest as nearest_setting
from vpccni.settings import NAMES, TABLE, Setting

TypeOption = Annotated[
    str,
    typer.Option("--instance-type", "-t", metavar="TYPE", help="The EC2 instance type, or limits as 4x15."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="An environment variable of the agent; as often as you like."
    ),
]

_LIMITS: Final = re.compile(r"([1-9][0-9]?)x([1-9][0-9]?)")


def instance_type_of(name: str) -> InstanceType:
    """The type of that name; for a type that the table lacks, one made of ``ENIs x IPv4 addresses of an ENI``.

    Raises:
        CommandError: it is neither.
    """
    found = instance_types().get(name)
    if found is not None:
        return found
    given = _LIMITS.fullmatch(name)
    if given is not None:
        return _of_limits(name, enis=int(given[1]), addresses=int(given[2]))
    like = nearest(name)
    hint = f" Did you mean {' or '.join(like)}?" if like else ""
    raise CommandError(
        f"The table of instance types has no {name!r}.{hint} A type that it lacks can be given by its limits: "
        "4x15 is 4 ENIs with 15 IPv4 addresses each.",
        USAGE,
    )


def _of_limits(name: str, *, enis: int, addresses: int) -> InstanceType:
    return InstanceType(
        name=name,
        enis_by_card=(enis,),
        ipv4_per_eni=addresses,
        ipv6_per_eni=addresses,
        hypervisor="nitro",
        vcpus=0,
        memory_mib=0,
        architectures=(),
    )


def environment_of(assignments: Sequence[str] | None) -> dict[str, str]:
    """The environment that ``--set`` describes.

    Raises:
        CommandError: one of them is no assignment, or names no setting. All such are told at once.
    """
    environ: dict[str, str] = {}
    wrong: list[str] = []
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            wrong.append(f"--set takes NAME=VALUE, not {assignment!r}.")
        elif name not in NAMES:
            like = nearest_setting(name, NAMES)
            wrong.append(f"{name} is not a setting." + (f" Did you mean {like}?" if like else ""))
        else:
            environ[name] = value
    if wrong:
        raise CommandError(" ".join(wrong), USAGE)
    return environ


def values_of(environ: Mapping[str, str]) -> dict[str, Any]:
    """The value of each variable by its name, also of those that the agent cannot honour yet.

    Raises:
        CommandError: a value is out of range. All such are told at once.
    """
    rows = {row.name: row for row in TABLE}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, text in environ.items():
        try:
            values[name] = _value_of(rows[name], text)
        except ValueError:
            wrong.append(f"{name}={text!r} must be {rows[name].kind.range}.")
    if wrong:
        raise CommandError(" ".join(wrong), USAGE)
    return values


def _value_of(row: Setting, text: str) -> Any:
    if text == "" and not row.kind.takes_empty:
        text = row.default
    return row.kind.parse(text, lambda _: None)
