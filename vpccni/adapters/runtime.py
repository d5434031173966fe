"""The runtime port: libcni's cache of results, in which a container runtime keeps what it was given.

libcni, which containerd and CRI-O call plugins through, writes ``<network>-<container id>-<ifname>`` at the
end of an ADD and removes it at the end of a DEL.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

RESULTS: Final = Path("/var/lib/cni/results")


class LibcniCache:
    """The ``RuntimeCache`` port over libcni's directory; only names are looked at, never content."""

    def __init__(self, results: Path = RESULTS) -> None:
        """Remember where it is; it may not be there, or come later."""
        self._results = results
        self._was_used = False

    async def is_known(self, network: str, container_id: str, ifname: str) -> bool | None:
        """Whether there is a cached result for the key; ``None`` when the directory cannot be read.

        A directory in which nothing was ever seen is no cache either: a runtime that keeps its cache elsewhere
        leaves it so, and absence from there is evidence of nothing.
        """
        name = f"{network}-{container_id}-{ifname}"
        if "/" in name or "\0" in name:
            return None
        try:
            names = await asyncio.to_thread(os.listdir, self._results)
        except OSError:
            return None
        self._was_used = self._was_used or bool(names)
        return name in names if self._was_used else None
