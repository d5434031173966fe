"""The clocks of a simulated machine."""

from __future__ import annotations

from typing import Final

from vpccni.lab.sim.loop import VirtualLoop
from vpccni.model import Stamp

EPOCH_NS: Final = 1_780_000_000 * 10**9


class VirtualClock:
    """Wall and boot time that follow the loop."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self.boots = 0
        self.wall_offset_ns = EPOCH_NS
        self._steps: list[tuple[float, int, float]] = []
        self._booted_at_ns = -10 * 10**9
        self.boot_id = ""
        self.boot()

    def boot(self) -> None:
        """The machine starts anew."""
        self.boots += 1
        self.boot_id = f"{self._name}-boot-{self.boots}"
        if self.boots > 1:
            self._booted_at_ns = int(self._loop.time() * 1e9) - 5 * 10**9

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall_offset_ns += int(seconds * 1e9)
        self._steps.append((self._loop.time(), self.boots, seconds))

    def was_set_forward_over(self, boot_id: str) -> bool:
        """Whether time since that boot can only be measured by a wall clock that was set forward meanwhile."""
        boots = int(boot_id.rpartition("-")[2])
        return self.boots > boots and any(seconds > 0 and step >= boots for _, step, seconds in self._steps)

    def was_set_since(self, at_s: float) -> bool:
        """Whether somebody has set the wall clock since that virtual second."""
        return any(at >= at_s for at, _, _ in self._steps)

    def now(self) -> Stamp:
        """See ``Clock.now``."""
        passed = int(self._loop.time() * 1e9)
        return Stamp(self.wall_offset_ns + passed, passed - self._booted_at_ns, self.boot_id)
