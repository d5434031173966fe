"""The IMDS for tests is the simulator's."""

from vpccni.lab.sim.imds import region_imds

__all__ = ["region_imds"]
