"""Prints ``vpccni/instance_types.txt`` from what moto recorded of ``DescribeInstanceTypes`` (`make docs`).

moto is a test dependency and carries EC2's own answers for every public type. A figure that is wrong here is wrong
there; the agent on a node asks EC2 itself and never reads this table.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEAD = """\
# Limits of every public instance type. Printed by scripts/instance_types.py (`make docs`); do not edit.
# Source: DescribeInstanceTypes, as moto {version} packages it.
# type | ENIs on each network card, n*k for k cards with n | IPv4 per ENI | IPv6 per ENI | hypervisor or metal |
# vCPUs | memory in MiB | architectures
"""


def recorded() -> dict[str, Any]:
    """Each type as EC2 described it to moto, by name."""
    import moto.ec2

    path = Path(moto.ec2.__file__).parent / "resources" / "instance_types.json.gz"
    with gzip.open(path, "rt") as file:
        types: dict[str, Any] = json.load(file)
    return types


def _cards(network: Mapping[str, Any], name: str) -> str:
    """ENIs by card: ``15*4`` for four cards with 15 each, ``8,7`` where they differ; card 0 is the default."""
    cards = network["NetworkCards"]
    indexes = [card["NetworkCardIndex"] for card in cards]
    if indexes != list(range(len(cards))) or network["DefaultNetworkCardIndex"] != 0:
        raise ValueError(f"{name}: cards {indexes}, default {network['DefaultNetworkCardIndex']}")
    runs = itertools.groupby(card["MaximumNetworkInterfaces"] for card in cards)
    counted = [(enis, len(list(run))) for enis, run in runs]
    return ",".join(str(enis) if count == 1 else f"{enis}*{count}" for enis, count in counted)


def line(described: Mapping[str, Any]) -> str:
    """One row of the table.

    Raises:
        KeyError, ValueError: The description lacks a limit, or numbers its cards as none has done so far.
    """
    network, name = described["NetworkInfo"], described["InstanceType"]
    cells = (
        name,
        _cards(network, name),
        network["Ipv4AddressesPerInterface"],
        network["Ipv6AddressesPerInterface"] if network["Ipv6Supported"] else 0,
        "metal" if described["BareMetal"] else described["Hypervisor"],
        described["VCpuInfo"]["DefaultVCpus"],
        described["MemoryInfo"]["SizeInMiB"],
        ",".join(described["ProcessorInfo"]["SupportedArchitectures"]),
    )
    return " ".join(str(cell) for cell in cells)


def table(types: Iterable[Mapping[str, Any]], version: str) -> str:
    """The whole file."""
    return HEAD.format(version=version) + "".join(f"{text}\n" for text in sorted(map(line, types)))


if __name__ == "__main__":
    import moto

    sys.stdout.write(table(recorded().values(), moto.__version__))
