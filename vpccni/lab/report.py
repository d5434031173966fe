"""What a demo found: the figures that are written down, and the checks that decide the exit status."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must be true. ``detail`` says what was found, also when it is."""

    name: str
    ok: bool
    detail: str = ""


class DemoReport(msgspec.Struct, kw_only=True):
    """A demo's figures, each counted from outside of the agents.

    Attributes:
        nodes: Nodes.
        pods: Pods that were started, over all steps.
        pings_ok, pings_total: Between pods, over all rounds.
        internet_ok, internet_total: From pods to the internet host.
        adds: ADDs that were answered with success.
        add_p50_ms, add_p99_ms: Of those, from the start of the executable to its end; growth is waited for in it.
        lost_leases: Acknowledged ADDs without DEL that, after the kill, the agent did not know under the same
            address, or that could not be reached.
        duplicate_addresses: Addresses that two live sandboxes had.
        orphan_enis: ENIs that at the end hang nowhere or are in no agent's books.
        restart_to_first_add_ms: From the start of the new agent to the next answered ADD.
        ec2_calls: Calls that reached the emulated EC2.
        events: In all logs together.
        chain_ok: Whether replay verifies every log.
        failed_adds: ADDs that were answered with an error.
        took_s: Seconds, set-up included.
        is_complete: Whether every step was carried out, well or not.
        checks: What decided.
    """

    nodes: int = 0
    pods: int = 0
    pings_ok: int = 0
    pings_total: int = 0
    internet_ok: int = 0
    internet_total: int = 0
    adds: int = 0
    add_p50_ms: float = 0.0
    add_p99_ms: float = 0.0
    lost_leases: int = 0
    duplicate_addresses: int = 0
    orphan_enis: int = 0
    restart_to_first_add_ms: float = 0.0
    ec2_calls: int = 0
    events: int = 0
    chain_ok: bool = False
    failed_adds: int = 0
    took_s: float = 0.0
    is_complete: bool = False
    checks: list[Check] = []

    @property
    def ok(self) -> bool:
        """Whether every check held; a demo that checked nothing has not held."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def check(self, name: str, ok: bool, detail: str = "") -> bool:
        """Note a check; return whether it held."""
        self.checks = [*self.checks, Check(name=name, ok=ok, detail=detail)]
        return ok

    def write(self, path: Path) -> None:
        """Write it as JSON, in place of an older one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        temporary.replace(path)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)
    return ordered[min(place, len(ordered) - 1)]
