"""The container runtime's cache in memory."""

from __future__ import annotations

from vpccni.checkpoint import is_made_up
from vpccni.evidence import ABSENT, READ, CachedResult, CacheEvidence
from vpccni.model import SandboxKey

Key = tuple[str, str, str]
"""Network, container id, interface name."""


class FakeRuntimeCache:
    """The ``RuntimeCache`` port.

    Attributes:
        known: The keys of the entries that are there.
        results: What an entry says, by its key; one that is not here says its key and no more. To let the cache
            lie, put something false.
        modified_ns: When the directory was last changed, as ``put`` and ``drop`` tell.
        is_readable: Whether the cache can be read at all.
        is_absent: There is no such directory.
        torn: Keys of entries that were not written to their end.
        stale: What it shows in place of ``known``; ``None`` when it is not behind.
    """

    def __init__(self) -> None:
        self.known: set[Key] = set()
        self.results: dict[Key, CachedResult] = {}
        self.modified_ns = 0
        self.is_readable = True
        self.is_absent = False
        self.torn: set[Key] = set()
        self.stale: frozenset[Key] | None = None
        self._networks_seen: set[str] = set()

    def put(self, result: CachedResult) -> None:
        """The runtime has finished an ADD: the entry is there, whole, since ``result.modified_ns``."""
        key = (result.key.network, result.key.container_id, result.key.ifname)
        self.known.add(key)
        self.torn.discard(key)
        self.results[key] = result
        self.modified_ns = max(self.modified_ns, result.modified_ns)

    def drop(self, key: SandboxKey, now_ns: int = 0) -> None:
        """The runtime has finished a DEL. Absent is fine."""
        self.known.discard((key.network, key.container_id, key.ifname))
        self.modified_ns = max(self.modified_ns, now_ns)

    def has_shown(self, network: str) -> bool:
        """Whether the agent that has it open has seen an entry of a network."""
        return network in self._networks_seen

    def reopen(self) -> None:
        """A new agent opens it: what the one before has seen is forgotten."""
        self._networks_seen.clear()

    async def is_known(self, network: str, container_id: str, ifname: str) -> bool | None:
        """See ``RuntimeCache.is_known``."""
        is_name = not {"/", "\0"} & set(network + container_id + ifname)
        if is_made_up(SandboxKey(network, container_id, ifname)) or not is_name:
            return None
        shown = self._shown()
        if shown is None:
            return None
        self._networks_seen.update(key[0] for key in shown)
        if (network, container_id, ifname) in shown:
            return True
        return False if network in self._networks_seen else None

    async def read(self) -> CacheEvidence:
        """See ``RuntimeCache.read``."""
        shown = self._shown()
        if shown is None:
            return CacheEvidence(status=ABSENT if self.is_absent else "unreadable: Input/output error")
        entries, unreadable = [], []
        for key in sorted(shown):
            name = "-".join(key)
            if key in self.torn:
                unreadable.append(f"{name}: Input data was truncated")
            else:
                entries.append(self.results.get(key) or CachedResult(file=name, key=SandboxKey(*key)))
        self._networks_seen.update(entry.key.network for entry in entries)
        return CacheEvidence(
            status=READ,
            entries=tuple(entries),
            unreadable=tuple(unreadable),
            modified_ns=self.modified_ns,
        )

    def _shown(self) -> frozenset[Key] | None:
        """The entries that are seen; ``None`` when none can be."""
        if self.is_absent or not self.is_readable:
            return None
        return frozenset(self.known) if self.stale is None else self.stale
