"""Who is told what happens on a node, and who checks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vpccni.datapath.objects import Difference
from vpccni.events.envelope import Stored
from vpccni.lab.sim.original import OriginalWatcher

if TYPE_CHECKING:
    from vpccni.lab.sim.node import SimNode


class Observer(Protocol):
    """Who is told what happens on a node."""

    def on_commit(self, node: SimNode, batch: Sequence[Stored]) -> None:
        """A batch reached the disk."""

    def on_start(self, node: SimNode) -> None:
        """An agent has read its log and accepts requests."""

    def on_exit(self, node: SimNode, error: BaseException | None) -> None:
        """An agent ended by itself."""


class NodeWatcher(OriginalWatcher, Protocol):
    """Who checks what happens on a node."""

    def on_end(self, node: SimNode, *, is_clean: bool) -> None:
        """An agent is about to be gone: killed, or it has come to its end after SIGTERM."""

    def on_disk_changed(self, node: SimNode) -> None:
        """The log is another one from now on: lost, an old one, or another machine's."""

    def on_exported(self, node: SimNode, content: bytes, *, is_allowed: bool) -> None:
        """The agent has replaced the checkpoint file."""

    def on_kernel_change(self, node: SimNode, difference: Difference) -> None:
        """The agent changes the kernel."""
