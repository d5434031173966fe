"""The trace: one line for everything that happened, and one hash over all lines."""

from __future__ import annotations

import hashlib
from typing import TextIO

from vpccni.lab.sim.loop import VirtualLoop


class Trace:
    """Lines of ``time steps what``.

    ``steps`` counts everything that the loop was ever asked to run: two runs whose traces are equal took the
    same steps in between, too.
    """

    def __init__(self, loop: VirtualLoop, file: TextIO | None = None) -> None:
        self._loop = loop
        self._file = file
        self._hash = hashlib.sha256()
        self.lines = 0

    def __call__(self, what: str) -> None:
        """Write one line."""
        line = f"{self._loop.time():.6f} {self._loop.steps} {what}\n"
        self._hash.update(line.encode())
        self.lines += 1
        if self._file is not None:
            self._file.write(line)

    def digest(self) -> str:
        """SHA-256 of all lines so far, in hexadecimal."""
        return self._hash.hexdigest()
