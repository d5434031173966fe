"""The kernel in memory as a node of the simulator has it: watched, and a place where an agent may die."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vpccni.datapath.objects import Applied, Difference
from vpccni.evidence import KernelEvidence
from vpccni.lab.sim.kernel import FakeKernel

if TYPE_CHECKING:
    from vpccni.lab.sim.node import SimNode

KERNEL_LATENCY_S: Final = 0.002


class SimKernel(FakeKernel):
    """The node's kernel; tells what the agent changes, and the instants at which it may die."""

    def __init__(self, node: SimNode) -> None:
        super().__init__(latency_s=KERNEL_LATENCY_S, fault=node.on_wiring)
        self._node = node

    async def apply(self, difference: Difference) -> Applied:
        """See ``Kernel.apply``."""
        self._node.watcher.on_kernel_change(self._node, difference)
        self._node.pass_point("changing")
        return await super().apply(difference)

    async def survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        """See ``Kernel.survey``."""
        self._node.pass_point("searching")
        found = await super().survey(veth_prefix, netns_paths)
        self._node.pass_point("searching")
        return found
