"""The API server for tests is the simulator's."""

from vpccni.lab.sim.kubernetes import FakeKubernetesNode

__all__ = ["FakeKubernetesNode"]
