"""The checkpoint files for tests are the simulator's."""

from vpccni.lab.sim.checkpoint import FakeCheckpoints

__all__ = ["FakeCheckpoints"]
