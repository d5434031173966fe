"""The note that a standing lab leaves for command lines outside of its world: where it is, and how to end it.

Standard library and msgspec alone: a command line reads it before it knows whether there is a lab at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

FILE_NAME: Final = "standing.json"


class StandingNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as seen from outside. ``netns`` is a path inside the lab's world."""

    name: str
    instance_id: str
    instance_type: str
    netns: str
    socket: str
    directory: str
    events: str
    log: str


class StandingLab(msgspec.Struct, frozen=True, kw_only=True):
    """A lab that was left running.

    Attributes:
        phase: ``booting`` until its nodes are ready.
        message: What it is doing while it boots.
        supervisor_pid: The world's supervisor; SIGTERM ends the lab.
        supervisor_start: Its start time in clock ticks since boot, so that a reused PID is not mistaken for it.
        run_directory: Sockets and spools.
        directory: Files of the nodes.
        control: The lab's own socket.
    """

    phase: Literal["booting", "ready"]
    supervisor_pid: int
    supervisor_start: int
    run_directory: str
    directory: str
    message: str = ""
    control: str = ""
    nodes: tuple[StandingNode, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether its supervisor still lives."""
        return start_time_of(self.supervisor_pid) == self.supervisor_start

    def node(self, name: str) -> StandingNode | None:
        """A node by name."""
        return next((node for node in self.nodes if node.name == name), None)


def write(directory: Path, lab: StandingLab) -> None:
    """Leave the note, in place of the one before."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{FILE_NAME}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(lab), indent=2) + b"\n")
    temporary.replace(directory / FILE_NAME)


def read(directory: Path) -> StandingLab | None:
    """The note, whether or not the lab still lives; None when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / FILE_NAME).read_bytes(), type=StandingLab)
    except (OSError, msgspec.DecodeError):
        return None


def remove(directory: Path) -> None:
    """Take the note away."""
    (directory / FILE_NAME).unlink(missing_ok=True)


def start_time_of(pid: int) -> int:
    """When a process was started, in clock ticks since boot (``proc(5)``, field 22); 0 when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
