"""What the checks know of each node, from outside: from its disk's bytes, its runtime and its clock."""

from __future__ import annotations

from collections import deque

import msgspec

from vpccni.events.codec import Record
from vpccni.events.effect import EffectIntended
from vpccni.lab.sim.node import SimNode
from vpccni.lab.sim.sandbox import Sandbox
from vpccni.model import Address, IntentId, LeaseId, SandboxKey, Stamp
from vpccni.projections.state import State


class OpenLease(msgspec.Struct):
    """A lease or a hold that the disk has.

    Attributes:
        key: Without container id for a hold.
        told_at: When a search or another log told of it; minus infinity for one that our agent gave.
        is_shown: Our agent gave it, or the kernel showed its sandbox: not only a file speaks of it.
        is_located: Its ENI is known.
    """

    address: Address
    key: SandboxKey
    lease: LeaseId
    boot_id: str
    boottime_ns: int
    origin: str = "add"
    told_at: float = float("-inf")
    is_shown: bool = True
    is_located: bool = True


class NodeBook(msgspec.Struct):
    """One node.

    Attributes:
        generation: Counts the logs that it has had.
        leases, by_address: What the disk says.
        imaged: Leases of another machine's log.
        acked: Living sandboxes, by key.
        lease_sets: How the leases changed lately: virtual second, and container id by address.
        may_export_since: Since when the agent has been allowed to write the checkpoint file; infinite when not.
        trace_at: The latest use of any address of which a source told when the node was last searched.
        left: How our agent ended last (``clean``, ``killed``), and when.
        had_lost_log: The log was lost once: an ENI that only it knew is found by the hourly look.
    """

    node: SimNode
    generation: int = 1
    leases: dict[LeaseId, OpenLease] = {}
    imaged: frozenset[LeaseId] = frozenset()
    by_address: dict[Address, LeaseId] = {}
    acked: dict[SandboxKey, Sandbox] = {}
    intents: dict[IntentId, EffectIntended] = {}
    calls: deque[float] = msgspec.field(default_factory=deque)
    audit: State = msgspec.field(default_factory=State)
    records: list[Record] = []
    folds: dict[int, State] = {}
    idle: tuple[str, int] = ("", 0)
    plans: list[float] = []
    boots: int = 1
    lease_sets: deque[tuple[float, dict[Address, str]]] = msgspec.field(default_factory=deque)
    may_export_since: float = float("inf")
    trace_at: float = float("-inf")
    is_searched: bool = False
    left: tuple[str, float, bool] = ("", 0.0, False)
    had_lost_log: bool = False
    ready_since: float = float("inf")


class Rested(msgspec.Struct):
    """The end of a lease: when it reached the disk, its record's stamp, and on which log of which node."""

    at: float
    stamp: Stamp
    book: NodeBook
    generation: int


class LastUse(msgspec.Struct):
    """When the runtime gave up the sandbox that had an address, and on which node in which boot."""

    at: float
    book: NodeBook
    boots: int
