"""Which socket a command is to ask: the node's own, one that was named, or that of a node of the standing lab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from vpccni.cli.problems import NO_ANSWER, USAGE, CommandError
from vpccni.cli.unix_http import UnixHttp
from vpccni.lab import standing_file
from vpccni.lab.places import lab_directory
from vpccni.lab.standing_file import StandingLab, StandingNode

DEFAULT_SOCKET: Final = Path("/var/run/aws-node/vpccni.sock")

SocketOption = Annotated[
    Path | None, typer.Option("--socket", help=f"The agent's socket (default: {DEFAULT_SOCKET}).")
]
NodeOption = Annotated[str | None, typer.Option("--node", metavar="NAME", help="A node of the standing lab.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        envvar="VPCCNI_LAB_DIRECTORY",
        help="Where labs lie (default: build/lab of the checkout).",
    ),
]


def agent_at(socket: Path | None, node: str | None) -> UnixHttp:
    """The agent that a command is about.

    Raises:
        CommandError: both were given, or there is no such node.
    """
    if socket is not None and node is not None:
        raise CommandError("Give --socket or --node, not both.", USAGE)
    if node is not None:
        place = lab_node(standing_lab(), node)
        hint = f"`vpccni lab start {node}` starts it; what it printed is in {place.log}."
        return UnixHttp(place.socket, whose=f"the agent of {node}", hint=hint)
    hint = "Is the agent running? For a node of the lab, say --node NAME."
    return UnixHttp(str(socket or DEFAULT_SOCKET), hint=hint)


def lab_notes(directory: Path | None = None) -> Path:
    """Where the standing lab's note lies."""
    named = os.environ.get("VPCCNI_LAB_DIRECTORY")
    return directory or (Path(named) if named else lab_directory())


def standing_lab(directory: Path | None = None) -> StandingLab:
    """The lab that was left running.

    Raises:
        CommandError: there is none.
    """
    found = standing_file.read(lab_notes(directory))
    if found is None or not found.is_running:
        raise CommandError("No lab is standing. `vpccni lab up` starts one.", NO_ANSWER)
    return found


def lab_node(lab: StandingLab, name: str) -> StandingNode:
    """A node of the lab by name.

    Raises:
        CommandError: it has none of that name.
    """
    node = lab.node(name)
    if node is None:
        names = ", ".join(node.name for node in lab.nodes)
        raise CommandError(f"The lab has no node {name!r}; it has {names or 'none yet'}.", USAGE)
    return node


def lab_control(lab: StandingLab) -> UnixHttp:
    """The lab's own socket.

    Raises:
        CommandError: it is still booting.
    """
    if lab.phase != "ready":
        raise CommandError(f"The lab is still booting ({lab.message}); try again in a moment.", NO_ANSWER)
    return UnixHttp(lab.control, whose="the lab", hint="`vpccni lab down` clears up what is left of it.")
