"""Pods that come and go on one node, as kubelet would have it, with every answer written down.

Words: an ADD or DEL is *asked* when its executable is first started, and *acknowledged* when that ended with
success. An executable that was killed acknowledged nothing: its DEL is asked again, as kubelet does, until it
is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from vpccni.lab.fabric import namespaces
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.ledger import Ledger, Sandbox
from vpccni.lab.runtime import CniError, Runtime

ASK_AGAIN_S = 0.02
KILLED = f"exit status -{int(signal.SIGKILL)}"


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """An address that was given again ``rested_s`` after the DEL of the pod before was asked for."""

    address: str
    before: str
    after: str
    rested_s: float


class Wrong(NamedTuple):
    """Something that should not be: lost, doubled, orphan, chain or other, and a sentence."""

    kind: str
    what: str


class PatientRuntime(Runtime):
    """A runtime that repeats the DEL after a failed ADD until it is acknowledged."""

    async def _undo(self, sandbox: Sandbox) -> None:
        while True:
            try:
                await self._run_list("DEL", sandbox)
                break
            except CniError as error:
                self._record_failure("DEL", sandbox, error, time.perf_counter())
                await asyncio.sleep(ASK_AGAIN_S)
        await self._fabric.remove(sandbox.netns)


class Load:
    """Workers that start and stop pods until told to end.

    Args:
        lab: Where the node is.
        node: On which node.
        chance: Draws what is done next.
        workers: How many ADDs and DELs are under way at once, at most.

    Attributes:
        target: How many pods there should be; the workers go there, with detours.
        asked: When the first DEL of a sandbox was asked for (wall seconds), by container id.
        doubled: ADDs acknowledged with an address of a pod whose DEL was not asked for.
        reuses: Every address given a second time.
    """

    def __init__(self, lab: Lab, node: LabNode, chance: random.Random, *, workers: int) -> None:
        self.runtime = PatientRuntime(lab, node, Ledger())
        self.ledger = self.runtime.ledger
        self.target = 0
        self.adds = 0
        self.dels = 0
        self.asked: dict[str, float] = {}
        self.doubled: list[str] = []
        self.reuses: list[Reuse] = []
        self._node = node
        self._chance = chance
        self._workers = workers
        self._is_over = False
        self._last: dict[str, Sandbox] = {}

    def standing(self) -> list[Sandbox]:
        """Pods whose ADD was acknowledged and whose DEL was not asked for: whatever happens, these live."""
        return [pod for pod in self.ledger.live.values() if pod.container_id not in self.asked]

    async def run(self) -> None:
        """Work until ``end`` was called and everything under way is acknowledged."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(number), name=f"worker {number}")

    def end(self) -> None:
        """Start nothing new."""
        self._is_over = True

    def unexpected_failures(self) -> list[str]:
        """Answers that say failure, other than those of executables that were killed."""
        return [
            f"{failed.verb} {failed.pod} after {failed.latency_ms:.0f} ms: {failed.message}"
            for failed in self.ledger.failures
            if KILLED not in failed.message
        ]

    def wrong(self, cooldown_s: float) -> list[Wrong]:
        """What the answers themselves contradict, whatever the agent says."""
        return [
            *(Wrong("doubled", told) for told in self.doubled),
            *(
                Wrong("doubled", f"before its rest: {each}")
                for each in self.reuses
                if each.rested_s < cooldown_s
            ),
            *(Wrong("other", told) for told in self.unexpected_failures()),
        ]

    async def discrepancies(self) -> list[Wrong]:
        """What the agent's pods and the acknowledgements contradict each other in.

        A standing pod has its lease, under its address; a pod whose DEL was acknowledged has none, unless that
        lies in the spool; no address has two. (What is under way may be either.)
        """
        standing, spooled = self.standing(), self._spooled()
        ended = {past.sandbox.uid for past in self.ledger.past if past.sandbox.container_id not in spooled}
        pods = await self._node.client.get("/v1/pods")
        known = {pod["uid"]: pod["addresses"] for pod in pods}
        addresses = Counter(address for pod in pods for address in pod["addresses"])
        return [
            *(
                Wrong("doubled", f"{address} has two leases")
                for address, count in addresses.items()
                if count > 1
            ),
            *(
                Wrong("orphan", f"{pod['name']} has a lease after its DEL")
                for pod in pods
                if pod["uid"] in ended
            ),
            *(
                Wrong("lost", f"{pod.pod} {pod.address}: the agent has {known.get(pod.uid, 'no lease')}")
                for pod in standing
                if pod.container_id not in self.asked and known.get(pod.uid) != [pod.address]
            ),
        ]

    def _spooled(self) -> str:
        """The spool's entries; one that is taken out meanwhile has been carried out."""
        found = []
        for path in self._node.places.spool.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append(path.read_text(errors="replace"))
        return "\n".join(found)

    async def _work(self, number: int) -> None:
        pods = 0
        while not self._is_over:
            standing = self.standing()
            wants_more = len(standing) < self.target
            if self._chance.random() < 0.25:
                wants_more = not wants_more
            if wants_more or not standing:
                pods += 1
                await self._add(f"w{number}-{pods}")
            else:
                await self.delete(self._chance.choice(standing))
            await asyncio.sleep(self._chance.uniform(0.0, 0.1))

    async def _add(self, name: str) -> None:
        try:
            pod = await self.runtime.add(name)
        except CniError:
            return  # it stands in the ledger
        self.adds += 1
        before, self._last[pod.address] = self._last.get(pod.address), pod
        if before is None:
            return
        asked_at = self.asked.get(before.container_id)
        if asked_at is None:
            self.doubled.append(f"{pod.address}: {before.pod} has it, {pod.pod} got it")
            return
        self.reuses.append(
            Reuse(address=pod.address, before=before.pod, after=pod.pod, rested_s=pod.added_at - asked_at)
        )

    async def delete(self, pod: Sandbox) -> None:
        """Stop a pod, however often it must be asked."""
        self.asked[pod.container_id] = time.time()
        while True:
            try:
                await self.runtime.delete(pod)
                break
            except CniError:
                await asyncio.sleep(ASK_AGAIN_S)
        self.dels += 1


def kill_an_executable(node: LabNode, chance: random.Random, prefer: str) -> str:
    """SIGKILL one CNI executable that is at work on the node; return its verb, or empty text if none was.

    Args:
        node: On which node.
        chance: Draws which one.
        prefer: ADD or DEL: such a one, if there is one.
    """
    pids = sorted(namespaces.process_ids(node.namespace))
    chance.shuffle(pids)
    at_work = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.readlink(f"/proc/{pid}/exe") != str(node.places.bin / "aws-cni"):
                continue
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            # A process that is about to be gone still has its link to the executable, and no environment any more.
            for value in variables:
                if value.startswith(b"CNI_COMMAND="):
                    verb = value[12:].decode()
                    at_work.append((verb != prefer, pid, verb))
    for _, pid, verb in sorted(at_work, key=lambda found: found[0]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return verb
    return ""
