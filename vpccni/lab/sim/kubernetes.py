"""The API server, as far as our own node is concerned."""

from __future__ import annotations

import asyncio

from vpccni.errors import Reason, TransientError
from vpccni.evidence import PodSeen
from vpccni.model import PodRef


class FakeKubernetesNode:
    """The ``KubernetesNode`` port out of memory.

    Attributes:
        max_pods_value: What the node says; ``None`` when it does not.
        uids: The pods that are bound to the node.
        seen: What the API server says of a pod, by its UID; of one that is not here it says the UID alone.
            To let it lie, put something false.
        policies: PolicyEndpoint objects of the cluster, as ``namespace/name``.
        mirrors: Mirror pods, bound to the node too: the UID that the runtime knows, by the mirror pod's own.
        is_down: Whether every question fails.
        is_policy_forbidden: Whether we may not list PolicyEndpoint objects.
        stale: What an API server that is behind answers instead of ``uids``; ``None`` when it is not.
        answer_s: How long every answer takes.
        questions: How many were asked.
    """

    def __init__(self, max_pods: int | None = None, uids: frozenset[str] = frozenset()) -> None:
        self.max_pods_value = max_pods
        self.uids = set(uids)
        self.seen: dict[str, PodSeen] = {}
        self.policies: set[str] = set()
        self.mirrors: dict[str, str] = {}
        self.is_down = False
        self.is_policy_forbidden = False
        self.stale: frozenset[str] | None = None
        self.answer_s = 0.0
        self.questions = 0

    def put(self, pod: PodSeen) -> None:
        """A pod is bound to the node, or its status changes."""
        self.uids.add(pod.pod.uid)
        self.seen[pod.pod.uid] = pod

    async def max_pods(self) -> int | None:
        """See ``KubernetesNode.max_pods``."""
        await self._answer()
        return self.max_pods_value

    async def pod_uids(self) -> frozenset[str]:
        """See ``KubernetesNode.pod_uids``."""
        await self._answer()
        if self.stale is not None:
            return self.stale
        return frozenset(self.uids | self.mirrors.keys() | set(self.mirrors.values()))

    async def pods(self) -> tuple[PodSeen, ...]:
        """See ``KubernetesNode.pods``."""
        await self._answer()
        uids = self.uids if self.stale is None else self.stale
        return tuple(self.seen.get(uid) or PodSeen(pod=PodRef(uid=uid)) for uid in sorted(uids))

    async def policy_endpoints(self) -> tuple[str, ...]:
        """See ``KubernetesNode.policy_endpoints``."""
        await self._answer()
        if self.is_policy_forbidden:
            raise TransientError(Reason.INTERNAL, "API server: GET policyendpoints: HTTP 403")
        return tuple(sorted(self.policies))

    async def close(self) -> None:
        """Nothing to release."""

    async def _answer(self) -> None:
        self.questions += 1
        if self.answer_s:
            await asyncio.sleep(self.answer_s)
        if self.is_down:
            raise TransientError(Reason.INTERNAL, "API server: down")
