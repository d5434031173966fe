"""The container runtime's cache in memory."""

from __future__ import annotations


class FakeRuntimeCache:
    """The ``RuntimeCache`` port.

    Attributes:
        known: The keys that the runtime keeps.
        is_readable: Whether the cache can be read at all.
    """

    def __init__(self) -> None:
        self.known: set[tuple[str, str, str]] = set()
        self.is_readable = True

    async def is_known(self, network: str, container_id: str, ifname: str) -> bool | None:
        """See ``RuntimeCache.is_known``."""
        return (network, container_id, ifname) in self.known if self.is_readable else None
