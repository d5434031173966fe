"""The node's network stack for tests is the simulator's."""

from vpccni.lab.sim.kernel import FakeInterface, FakeKernel, FakeNetns

__all__ = ["FakeInterface", "FakeKernel", "FakeNetns"]
