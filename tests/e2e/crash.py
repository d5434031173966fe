"""SIGKILLs under load, on a real disk, and what is wrong afterwards: shared by the test and ``make crash``.

Everything is judged from outside: what the executables answered, what the emulated EC2 has, what the kernel
carries, and the log file. As a program this is the long form: so many kills for each of several seeds, and a
table. A seed chooses the draws, not the instants, which are the machine's. The files of a seed that failed stay
in ``build/e2e/crash-SEED``::

    python -m tests.e2e.crash --kills 200 --seeds 1 2 3 4 5
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from tests.e2e.disk import DIRECTORY, require_disk
from tests.e2e.load import Load, Wrong, kill_an_executable
from vpccni.lab.audit import orphan_enis, ping_each_other, ping_internet, replay, secondaries, strays
from vpccni.lab.ec2 import Fault, Timing, small_region
from vpccni.lab.fabric.enter import enter_world
from vpccni.lab.lab import Lab, LabNode

COOLDOWN_S = 2
SETTINGS = {
    "WARM_IP_TARGET": "4",
    "MINIMUM_IP_TARGET": "26",
    "IP_COOLDOWN_PERIOD": str(COOLDOWN_S),
    "MAX_ENI": "4",
}
LATENCY_S = {
    "CreateNetworkInterface": 0.1,
    "AttachNetworkInterface": 0.2,
    "AssignPrivateIpAddresses": 0.1,
    "UnassignPrivateIpAddresses": 0.1,
    "*": 0.03,
}
TIMING = Timing(attach_settle_s=0.1, detach_settle_s=0.2, link_delay_s=0.05)
FAULTS = (
    Fault(action="*", kind="throttle"),
    Fault(action="*", kind="lost_reply"),
    Fault(action="*", kind="dropped_request"),
    Fault(action="*", kind="error", code="InternalError"),
)
SHORT_LIFE_S = (0.0, 0.5)
LONG_LIFE_S = (2.6, 4.0)
SETTLE_S = 30.0
CHANGES = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
)
TIDES = (8, 32, 2, 38, 2, 30, 2, 38, 2, 24)
"""How many pods there should be, one after the other: the pool grows by ENIs, and shrinks again."""
TELL_EVERY = 25
KINDS = ("lost", "doubled", "orphan", "chain", "other")


class Tally(msgspec.Struct, kw_only=True):
    """What a run did and found.

    Attributes:
        adds: ADDs acknowledged.
        dels: DELs acknowledged.
        reuses: Addresses that were given a second time.
        met: What the kills met.
        calls: Changing calls to EC2, by action.
        wrong: What should not be.
    """

    seed: int
    kills: int = 0
    adds: int = 0
    dels: int = 0
    reuses: int = 0
    took_s: float = 0.0
    met: Counter[str] = msgspec.field(default_factory=Counter)
    calls: dict[str, int] = msgspec.field(default_factory=dict)
    wrong: list[Wrong] = msgspec.field(default_factory=list)

    def count(self, kind: str) -> int:
        """How many things of a kind are wrong."""
        return sum(each.kind == kind for each in self.wrong)


@asynccontextmanager
async def one_node(name: str, settings: Mapping[str, str], seed: int) -> AsyncIterator[tuple[Lab, LabNode]]:
    """A lab on the checkout's disk with one node whose agent is ready."""
    region = small_region(seed, latency_s=LATENCY_S, timing=TIMING)
    async with Lab(name, directory=DIRECTORY, region=region) as lab:
        node = await lab.add_node("a", "m5.xlarge")
        require_disk(node.places.state)
        await lab.start_agent(node, settings)
        await lab.wait_ready(node)
        yield lab, node


def broken_entries(spool: Path) -> list[str]:
    """Entries of the spool that are not whole. Drafts have other names, and nobody takes them for entries."""
    found = []
    for path in spool.glob("*"):
        if path.name.startswith(".tmp-"):
            continue
        try:
            entry = json.loads(path.read_bytes())
            whole = entry["version"] == 1 and entry["request"]["command"] == "DEL" and entry["bootId"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError):
            whole = False
        if not whole:
            found.append(f"{path.name}: {path.read_bytes()[:200]!r}")
    return found


class Killer:
    """Kills the agent again and again, looks whether anything was lost, and counts what it met."""

    def __init__(self, lab: Lab, node: LabNode, load: Load, chance: random.Random, tally: Tally) -> None:
        self.lab, self.node, self.load, self.chance, self.tally = lab, node, load, chance, tally

    async def run(self, kills: int) -> None:
        """Kill so many times. Every fifth time at any point of a start, else a while after it was ready."""
        tides = itertools.cycle(TIDES)
        for number in range(kills):
            if number % 5 == 0:
                self.load.target = next(tides)
            if number % 5 == 4:
                await asyncio.sleep(self.chance.uniform(0.0, 1.0))
            else:
                await self.lab.wait_ready(self.node)
                await self._look(f"before kill {number}")
                # It takes half a second to load the EC2 client, and two more to settle what was under way.
                await asyncio.sleep(self.chance.uniform(*LONG_LIFE_S if number % 6 == 2 else SHORT_LIFE_S))
            await self._kill(number, is_long=number % 16 == 7)
            if number % TELL_EVERY == TELL_EVERY - 1:
                load, wrong = self.load, len(self.tally.wrong)
                print(f"  {number + 1} kills, {load.adds} ADDs, {load.dels} DELs, {wrong} wrong", flush=True)
        await self.lab.wait_ready(self.node)

    async def _kill(self, number: int, *, is_long: bool) -> None:
        """Kill and start again; ``is_long``: not before some DELs have given up waiting and are spooled."""
        when, met = f"kill {number}", self.tally.met
        if not self.node.is_running:
            self._note("other", f"{when}: the agent had ended by itself")
        self._maybe_kill_an_executable()
        status = await self.lab.kill_agent(self.node, signal.SIGKILL)
        self.tally.kills += status == -signal.SIGKILL
        self._maybe_kill_an_executable()
        if is_long:
            async with asyncio.TaskGroup() as group:
                for pod in self.load.standing()[:3]:
                    group.create_task(self.load.delete(pod), name=f"delete {pod.pod}")
        spool = self.node.places.spool
        met["DELs spooled"] += len(list(spool.glob("*.json")))
        for entry in broken_entries(spool):
            self._note("other", f"{when}: half an entry: {entry}")
        await self.lab.start_agent(self.node)

    def _maybe_kill_an_executable(self) -> None:
        if self.chance.random() < 0.6:
            verb = kill_an_executable(self.node, self.chance, prefer=self.chance.choice(("ADD", "DEL")))
            self.tally.met[f"{verb} killed"] += bool(verb)

    async def _look(self, when: str) -> None:
        for wrong in await self.load.discrepancies():
            self._note(wrong.kind, f"{when}: {wrong.what}")

    def _note(self, kind: str, what: str) -> None:
        self.tally.wrong.append(Wrong(kind, what))


async def wait_until_nothing_is_open(lab: Lab, node: LabNode) -> list[str]:
    """Return what still is, after ``SETTLE_S``."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        status = await node.client.get("/v1/status")
        owned = {cidr for row in await node.client.get("/v1/enis") for cidr in row["cidrs"]}
        beliefs = owned ^ {f"{address}/32" for address in secondaries(lab, node)}
        open_ = [
            *map(str, status["open_intents"]),
            *await orphan_enis(lab),
            *sorted(beliefs),
            *broken_entries(node.places.spool),
        ]
        open_ += [path.name for path in node.places.spool.glob("*.json")]
        if not open_ or time.monotonic() > deadline:
            return open_
        await asyncio.sleep(0.2)


async def crash(tally: Tally, kills: int, name: str) -> None:
    """Kill so often under load, let everything settle, and write into ``tally`` what happened and what is wrong.

    Args:
        tally: With its seed.
        kills: How often.
        name: The lab's; its files stay in ``DIRECTORY / name``.
    """
    began = time.monotonic()
    chance = random.Random(tally.seed)
    async with one_node(name, SETTINGS, tally.seed) as (lab, node):
        before = await wait_until_nothing_is_open(lab, node)
        tally.wrong += [Wrong("other", f"before the first kill: {each}") for each in before]
        lab.region.faults.randomize(tally.seed, 0.06, FAULTS)
        load = Load(lab, node, chance, workers=12)
        killer = Killer(lab, node, load, chance, tally)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(), name="load")
                try:
                    await killer.run(kills)
                finally:
                    load.end()
        finally:
            tally.adds, tally.dels, tally.reuses = load.adds, load.dels, len(load.reuses)
            tally.calls = {action: lab.region.journal.count_by_action[action] for action in CHANGES}
        lab.region.faults.clear()
        tally.wrong += load.wrong(COOLDOWN_S)
        tally.wrong += await _aftermath(lab, node, load)
    tally.took_s = time.monotonic() - began


async def _aftermath(lab: Lab, node: LabNode, load: Load) -> list[Wrong]:
    """What is wrong when nothing happens any more. The agent is stopped by it."""
    found = [Wrong("orphan", f"in the end: {each}") for each in await wait_until_nothing_is_open(lab, node)]
    found += await load.discrepancies()
    standing = load.standing()
    uids = {pod.uid for pod in standing}
    found += [
        Wrong("orphan", f"{pod['name']} has a lease and does not stand")
        for pod in await node.client.get("/v1/pods")
        if pod["uid"] not in uids
    ]
    found += [Wrong("lost", each) for each in strays(lab, standing)]
    found += [Wrong("other", each) for each in (await ping_each_other(lab, standing[:12])).failed]
    found += [Wrong("other", each) for each in (await ping_internet(lab, standing)).failed]
    if (status := await lab.kill_agent(node, signal.SIGTERM)) != 0:
        found.append(Wrong("other", f"the agent was asked to stop and ended with {status}"))
    verified, said = await replay(node.places.events, "verify")
    if verified != 0:
        found.append(Wrong("chain", str(said)))
    return found


def print_table(tallies: list[Tally]) -> None:
    """One line a seed, and their sums."""
    print(
        f"{'seed':>6} {'kills':>6} {'ADDs':>7} {'DELs':>7} {'reuses':>7} {'spooled':>8} {'lost':>6} {'doubled':>8}",
        end="",
    )
    print(f" {'orphans':>8} {'chain':>8} {'other':>6} {'minutes':>8}")
    for tally in tallies:
        _print_row(str(tally.seed), [tally])
    _print_row("sum", tallies)


def _print_row(name: str, tallies: list[Tally]) -> None:
    kills, adds, dels = (sum(getattr(each, what) for each in tallies) for what in ("kills", "adds", "dels"))
    reuses, spooled = sum(each.reuses for each in tallies), sum(each.met["DELs spooled"] for each in tallies)
    lost, doubled, orphans, chain, other = (sum(each.count(kind) for each in tallies) for kind in KINDS)
    minutes = sum(each.took_s for each in tallies) / 60
    whole = "broken" if chain else "whole"
    print(f"{name:>6} {kills:>6} {adds:>7} {dels:>7} {reuses:>7} {spooled:>8} {lost:>6} {doubled:>8}", end="")
    print(f" {orphans:>8} {whole:>8} {other:>6} {minutes:>8.1f}")


def main() -> int:
    """Run all seeds; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="for each seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="(default: 1 to 5)")
    options = parser.parse_args()
    enter_world()
    tallies = []
    for seed in options.seeds:
        print(f"seed {seed}: {options.kills} kills", flush=True)
        tally, name = Tally(seed=seed), f"crash-{seed}"
        tallies.append(tally)
        try:
            asyncio.run(crash(tally, options.kills, name))
        except Exception:  # the next seed has its turn; this one failed
            tally.wrong.append(Wrong("other", traceback.format_exc()))
        if tally.kills != options.kills:
            tally.wrong.append(Wrong("other", f"{tally.kills} kills instead of {options.kills}"))
        print(f"  {dict(tally.met)} {tally.calls}")
        for wrong in tally.wrong:
            print(f"  WRONG ({wrong.kind}): {wrong.what}", flush=True)
        if tally.wrong:
            print(f"  its files: {DIRECTORY / name}")
        else:
            shutil.rmtree(DIRECTORY / name)
    print_table(tallies)
    return 1 if any(tally.wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
