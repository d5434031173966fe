"""The spool for tests is the simulator's."""

from vpccni.lab.sim.spool import FakeSpool

__all__ = ["FakeSpool"]
