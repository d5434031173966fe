"""The container runtime's cache for tests is the simulator's."""

from vpccni.lab.sim.runtime import FakeRuntimeCache

__all__ = ["FakeRuntimeCache"]
