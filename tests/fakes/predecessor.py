"""The predecessor for tests is the simulator's."""

from vpccni.lab.sim.predecessor import FakePredecessor

__all__ = ["FakePredecessor"]
