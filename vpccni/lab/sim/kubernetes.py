"""The API server, as far as our own node is concerned."""

from __future__ import annotations

from vpccni.errors import Reason, TransientError


class FakeKubernetesNode:
    """The ``KubernetesNode`` port out of memory.

    Attributes:
        max_pods_value: What the node says; ``None`` when it does not.
        uids: The pods that are bound to the node.
        is_down: Whether every question fails.
        stale: What an API server that is behind answers instead of ``uids``; ``None`` when it is not.
        questions: How many were asked.
    """

    def __init__(self, max_pods: int | None = None, uids: frozenset[str] = frozenset()) -> None:
        self.max_pods_value = max_pods
        self.uids = set(uids)
        self.is_down = False
        self.stale: frozenset[str] | None = None
        self.questions = 0

    async def max_pods(self) -> int | None:
        """See ``KubernetesNode.max_pods``."""
        self._answer()
        return self.max_pods_value

    async def pod_uids(self) -> frozenset[str]:
        """See ``KubernetesNode.pod_uids``."""
        self._answer()
        return frozenset(self.uids) if self.stale is None else self.stale

    async def close(self) -> None:
        """Nothing to release."""

    def _answer(self) -> None:
        self.questions += 1
        if self.is_down:
            raise TransientError(Reason.INTERNAL, "API server: down")
