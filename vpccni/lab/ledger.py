"""What the runtimes saw with their own eyes: the outside view against which an agent's word is checked."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from vpccni.lab.fabric.namespaces import Namespace


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A pod sandbox whose ADD was answered with success.

    Attributes:
        node: The node's name.
        pod: The pod's name.
        namespace: Its Kubernetes namespace.
        uid: Its UID.
        container_id: The sandbox's id.
        netns: Its network namespace.
        address: The IPv4 address that the result names.
        result: The whole CNI result.
        added_at: Wall time, in seconds since the epoch, of the answer.
        latency_ms: Of the ADD, from the start of the executable to its end.
    """

    node: str
    pod: str
    namespace: str
    uid: str
    container_id: str
    netns: Namespace
    address: str
    result: dict[str, Any]
    added_at: float
    latency_ms: float


class PastLease(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that was deleted: from the answer to its ADD until its DEL was asked for (wall seconds)."""

    sandbox: Sandbox
    ended_at: float


class Duplicate(msgspec.Struct, frozen=True):
    """An address that was given to a sandbox while another one had it."""

    address: str
    before: Sandbox
    after: Sandbox


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An ADD or DEL that was answered with an error, or not at all."""

    node: str
    verb: str
    pod: str
    message: str
    latency_ms: float


class Ledger:
    """Every ADD and DEL of a lab's runtimes, as they were answered.

    A sandbox has its address from the answer to its ADD until the answer to its DEL.
    """

    def __init__(self) -> None:
        self.live: dict[str, Sandbox] = {}
        self.past: list[PastLease] = []
        self.duplicates: list[Duplicate] = []
        self.failures: list[Failure] = []
        self.latencies_ms: list[float] = []
        self._holders: dict[str, Sandbox] = {}

    def record_add(self, sandbox: Sandbox) -> None:
        """An ADD was answered with success."""
        self.latencies_ms.append(sandbox.latency_ms)
        before = self._holders.get(sandbox.address)
        if before is not None:
            self.duplicates.append(Duplicate(sandbox.address, before, sandbox))
        self._holders[sandbox.address] = sandbox
        self.live[sandbox.container_id] = sandbox

    def record_del(self, sandbox: Sandbox, asked_at: float | None = None) -> None:
        """A DEL was answered with success."""
        if self.live.pop(sandbox.container_id, None) is None:
            return
        if self._holders.get(sandbox.address) is sandbox:
            del self._holders[sandbox.address]
        self.past.append(PastLease(sandbox=sandbox, ended_at=time.time() if asked_at is None else asked_at))

    def record_failure(self, failure: Failure) -> None:
        """An ADD or a DEL failed."""
        self.failures.append(failure)

    def on_node(self, node: str) -> list[Sandbox]:
        """The live sandboxes of a node, oldest first."""
        return [sandbox for sandbox in self.live.values() if sandbox.node == node]
