"""The demo: a region, two nodes, pods, bursts, a kill in the middle of one, and what is left of it all."""

from __future__ import annotations

import asyncio
import datetime
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from vpccni.lab import audit
from vpccni.lab.agent_client import AgentAwayError
from vpccni.lab.ec2 import REALISTIC_LATENCY_S, Timing
from vpccni.lab.lab import Lab, LabError, scaled_timing
from vpccni.lab.ledger import Ledger, Sandbox
from vpccni.lab.progress import Progress
from vpccni.lab.report import DemoReport, percentile
from vpccni.lab.runtime import CniError, Runtime

NODES: Final = (("a", "m5.large", 0), ("b", "m5.xlarge", 1))
"""Name, instance type and subnet: 27 and 56 pod addresses."""

PODS_MIN: Final = 4
PODS_MAX: Final = 40
"""With so many, the bursts still fit onto the nodes."""

STEPS: Final = {
    "region": "region",
    "agents": "agents",
    "pods": "pods",
    "ping": "ping",
    "burst": "burst",
    "kill": "kill",
    "delete": "delete",
    "shrink": "shrink",
    "replay": "replay",
}

_ON_A_MAX: Final = 15  # of the first pods, so that the second burst fits onto the small node
_BURST: Final = 30
_KILL_BURST: Final = 12
# The agent dies when some leases are acknowledged, some addresses are still free, and calls to EC2 are under way.
_KILL_AFTER: Final = 3
_KILL_GAP_S: Final = 0.03
_AWAY_S: Final = 0.4  # as long as a kubelet needs to notice, about
_SHRINK_TIMEOUT_S: Final = 45.0
_SETTLE_TIMEOUT_S: Final = 15.0
_REPLAYS_AT_ONCE: Final = 2  # each is a process of its own


class DemoPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo does.

    Attributes:
        pods: How many pods it starts first, over both nodes (`PODS_MIN` to `PODS_MAX`).
        speed: EC2's latencies are divided by this.
        warm_ip_target, minimum_ip_target, cooldown_s: The agents' settings.
    """

    pods: int = 24
    speed: float = 1.0
    warm_ip_target: int = 5
    minimum_ip_target: int = 8
    cooldown_s: int = 5

    @property
    def latency_s(self) -> Mapping[str, float]:
        """EC2's latencies."""
        return {action: seconds / self.speed for action, seconds in REALISTIC_LATENCY_S.items()}

    @property
    def timing(self) -> Timing:
        """What follows an attach or detach."""
        return scaled_timing(self.speed)

    @property
    def environment(self) -> dict[str, str]:
        """The agents' settings, short enough for a demo."""
        return {
            "WARM_IP_TARGET": str(self.warm_ip_target),
            "MINIMUM_IP_TARGET": str(self.minimum_ip_target),
            "IP_COOLDOWN_PERIOD": str(self.cooldown_s),
        }


class _StepFailedError(Exception):
    """A step could not be carried out; those after it need it."""


class Demo:
    """One run of the demo over an open, empty lab.

    Args:
        lab: Made with the plan's latencies.
        plan: What to do.
        progress: Where it says how far it is; its steps are `STEPS`.

    Attributes:
        ledger: What the runtimes saw.
        report: The figures, as far as it got.
    """

    def __init__(self, lab: Lab, plan: DemoPlan, progress: Progress) -> None:
        self.lab = lab
        self.ledger = Ledger()
        self.report = DemoReport()
        self.runtimes: dict[str, Runtime] = {}
        self._plan = plan
        self._progress = progress
        self._unreached: frozenset[str] = frozenset()
        self._first: list[Sandbox] = []

    async def run(self, until: str = "replay") -> DemoReport:
        """Do every step up to ``until``, checking as it goes.

        A step that fails outright ends the run; that is in the report, and nothing is raised for it.
        """
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._progress.watch(self.lab), name="watch the demo")
            try:
                await self._steps(until)
                self.report.is_complete = True
            except _StepFailedError:
                pass  # it is in the report
            finally:
                watching.cancel()
        self._count()
        self.report.took_s = round(time.monotonic() - began, 1)
        return self.report

    async def _steps(self, until: str) -> None:
        carried_out = {
            "region": self._boot_region,
            "agents": self._start_agents,
            "pods": self._start_pods,
            "ping": self._ping,
            "burst": self._burst,
            "kill": self._kill_in_a_burst,
            "delete": self._delete_all,
            "shrink": self._watch_it_shrink,
            "replay": self._ask_replay,
        }
        for key in STEPS:
            await carried_out[key]()
            if key == until:
                return

    # -- steps ------------------------------------------------------------------------------------

    async def _boot_region(self) -> None:
        async with self._step("region") as say:
            for name, instance_type, subnet in NODES:
                node = await self.lab.add_node(name, instance_type, subnet)
                self.runtimes[name] = Runtime(self.lab, node, self.ledger)
            kinds = " and ".join(f"{name} ({kind})" for name, kind, _ in NODES)
            say(f"{self.lab.region.name}: two subnets, an internet, nodes {kinds}")

    async def _start_agents(self) -> None:
        async with self._step("agents") as say:
            began = time.monotonic()
            for node in self.lab.nodes.values():
                await self.lab.start_agent(node, self._plan.environment)
            for node in self.lab.nodes.values():
                await self.lab.wait_ready(node)
            say(f"both ready {time.monotonic() - began:.1f} s after their start, with empty logs")

    async def _start_pods(self) -> None:
        async with self._step("pods") as say:
            on_a = min(self._plan.pods // 2, _ON_A_MAX)
            wanted = {"a": on_a, "b": self._plan.pods - on_a}
            started = await self._add({name: (f"web-{name}", count) for name, count in wanted.items()})
            self._check("pods started", len(started) == self._plan.pods, self._failures())
            latencies = [sandbox.latency_ms for sandbox in started]
            self._first = started
            say(f"{len(started)} of {self._plan.pods} pods, ADD p50 {percentile(latencies, 0.5):.0f} ms")

    async def _ping(self) -> None:
        async with self._step("ping") as say:
            say(await self._ping_everything())

    async def _burst(self) -> None:
        async with self._step("burst") as say:
            node = self.lab.nodes["b"]
            free = (await node.client.get("/v1/status"))["pool"]["free"]
            started = await self._add({"b": ("burst", _BURST)})
            self._check("burst started", len(started) == _BURST, self._failures())
            slowest = max((sandbox.latency_ms for sandbox in started), default=0.0) / 1000
            say(
                f"{len(started)} ADDs at once on b, {free} addresses were free; the last took {slowest:.1f} s"
            )

    async def _kill_in_a_burst(self) -> None:
        """Fire a burst, SIGKILL the agent when some ADDs are answered, start it again; nothing may be lost."""
        async with self._step("kill") as say:
            node = self.lab.nodes["a"]
            before = {sandbox.container_id for sandbox in self.ledger.live.values()}
            async with asyncio.TaskGroup() as group:
                adding = group.create_task(self._add({"a": ("late", _KILL_BURST)}, _KILL_GAP_S), name="burst")
                acknowledged = await self._wait_answered(before, adding)
                await self.lab.kill_agent(node, signal.SIGKILL)
                say(f"SIGKILL after {acknowledged} of {_KILL_BURST} answers")
                await asyncio.sleep(_AWAY_S)
                restarted_at = time.time()
                await self.lab.start_agent(node)
            started = adding.result()
            await self.lab.wait_ready(node)
            self._check("ADDs outlive the kill", len(started) == _KILL_BURST, self._failures())
            after = [s.added_at for s in self.ledger.on_node("a") if s.added_at >= restarted_at]
            self.report.restart_to_first_add_ms = (
                round((min(after) - restarted_at) * 1000, 1) if after else 0.0
            )
            lost = {
                line.partition(":")[0]: line
                for line in await audit.lost_leases(node, self.ledger.live.values())
            }
            pinged = await self._ping_everything()
            for sandbox in self.ledger.on_node("a"):
                if sandbox.address in self._unreached:
                    lost.setdefault(f"a/{sandbox.pod} {sandbox.address}", f"a/{sandbox.pod} is unreachable")
            self.report.lost_leases += len(lost)
            self._check("no lease lost", not lost, "; ".join(lost.values()))
            astray = audit.strays(self.lab, self.ledger.live.values())
            self._check("EC2 owns every address", not astray, "; ".join(astray[:3]))
            say(
                f"killed after {acknowledged} answers; next ADD "
                f"{self.report.restart_to_first_add_ms:.0f} ms after the restart; {len(lost)} lost; {pinged}"
            )

    async def _delete_all(self) -> None:
        async with self._step("delete") as say:
            live = list(self.ledger.live.values())
            for name, runtime in self.runtimes.items():
                await runtime.delete_many([sandbox for sandbox in live if sandbox.node == name])
            self._check("pods deleted", not self.ledger.live, self._failures())
            left = [len(await node.client.get("/v1/pods")) for node in self.lab.nodes.values()]
            self._check("no lease left", not any(left), f"leases left: {left}")
            say(f"{len(live)} pods; their addresses rest for {self._plan.cooldown_s} s")

    async def _watch_it_shrink(self) -> None:
        async with self._step("shrink") as say:
            before, began = self._owned(), time.monotonic()
            target = max(self._plan.warm_ip_target, self._plan.minimum_ip_target)
            while not all(count <= target for count in self._owned().values()):
                if time.monotonic() - began > _SHRINK_TIMEOUT_S:
                    break
                say(f"{_counts(before)} addresses, now {_counts(self._owned())}")
                await asyncio.sleep(0.2)
            now = self._owned()
            self._check(
                "pool shrank",
                all(count <= target for count in now.values()),
                f"wanted at most {target} a node, EC2 says {_counts(now)}",
            )
            await audit.wait_settled(self.lab, _SETTLE_TIMEOUT_S)
            orphans = await audit.orphan_enis(self.lab)
            self.report.orphan_enis = len(orphans)
            self._check("no orphan ENI", not orphans, "; ".join(orphans))
            say(f"{_counts(before)} → {_counts(now)} addresses in {time.monotonic() - began:.0f} s")

    async def _ask_replay(self) -> None:
        async with self._step("replay") as say:
            first = self._first
            await self._verify_logs()
            wrong = await self._ask_for_each(first)
            self._check("replay knows the dead", not wrong, "; ".join(wrong[:2]))
            last = first[-1] if first else None
            example = f"; {last.address} was default/{last.pod}'s" if last is not None else ""
            say(f"{len(first) - len(wrong)} of {len(first)} dead pods named by address and moment{example}")

    async def _ask_for_each(self, dead: list[Sandbox]) -> list[str]:
        """Ask replay who held each address in the middle of its pod's life; return the wrong answers."""
        limit, wrong = asyncio.Semaphore(_REPLAYS_AT_ONCE), list[str]()
        ended_at = {lease.sandbox.container_id: lease.ended_at for lease in self.ledger.past}

        async def ask(sandbox: Sandbox) -> None:
            middle = (sandbox.added_at + ended_at[sandbox.container_id]) / 2
            at = datetime.datetime.fromtimestamp(middle, datetime.UTC).isoformat()
            async with limit:
                status, said = await self._replay(sandbox, "whohad", sandbox.address, "--at", at)
            holder = said.get("holder") if isinstance(said, dict) else None
            if status != 0 or not holder or holder.get("container_id") != sandbox.container_id:
                wrong.append(f"{sandbox.address} was {sandbox.pod}'s at {at}, replay says {str(said)[:120]}")

        async with asyncio.TaskGroup() as group:
            for sandbox in dead:
                if sandbox.container_id in ended_at:
                    group.create_task(ask(sandbox), name=f"whohad {sandbox.address}")
        return wrong

    async def _verify_logs(self) -> None:
        verified, said = [], []
        for node in self.lab.nodes.values():
            status, answer = await audit.replay(node.places.events, "verify")
            whole = status == 0 and isinstance(answer, dict) and answer.get("ok") is True
            verified.append(whole)
            if not whole:
                said.append(f"{node.name}: {str(answer)[:300]}")
            self.report.events += (await node.client.get("/v1/status"))["log"]["head"]
        self.report.chain_ok = all(verified)
        self._check("chain whole", all(verified), "; ".join(said))

    # -- pieces -----------------------------------------------------------------------------------

    async def _add(self, wanted: Mapping[str, tuple[str, int]], gap_s: float = 0.0) -> list[Sandbox]:
        """Start pods at once (or ``gap_s`` after each other), per node ``(name, count)``; return who started."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self.runtimes[node].add_many([f"{name}-{n}" for n in range(1, count + 1)], gap_s=gap_s),
                    name=f"add on {node}",
                )
                for node, (name, count) in wanted.items()
            ]
        self.report.pods += sum(count for _, count in wanted.values())
        return [one for task in tasks for one in task.result() if isinstance(one, Sandbox)]

    async def _wait_answered(self, before: set[str], adding: asyncio.Task[Any]) -> int:
        while True:
            answered = len(self.ledger.live.keys() - before)
            if answered >= _KILL_AFTER or adding.done():
                return answered
            await asyncio.sleep(0.002)

    async def _ping_everything(self) -> str:
        sandboxes = list(self.ledger.live.values())
        await self.lab.settle()
        between = await audit.ping_each_other(self.lab, sandboxes)
        outside = await audit.ping_internet(self.lab, sandboxes)
        self.report.pings_ok += between.ok
        self.report.pings_total += between.total
        self.report.internet_ok += outside.ok
        self.report.internet_total += outside.total
        self._unreached = between.unreached
        self._check("every pod reaches every pod", between.ok == between.total, "; ".join(between.failed))
        self._check("every pod reaches the internet", outside.ok == outside.total, "; ".join(outside.failed))
        return f"{between.ok}/{between.total} pings, {outside.ok}/{outside.total} to the internet"

    async def _replay(self, sandbox: Sandbox, *arguments: str) -> tuple[int, Any]:
        return await audit.replay(self.lab.nodes[sandbox.node].places.events, *arguments)

    def _owned(self) -> dict[str, int]:
        return {node.name: len(audit.secondaries(self.lab, node)) for node in self.lab.nodes.values()}

    def _failures(self) -> str:
        return "; ".join(
            f"{failure.verb} {failure.node}/{failure.pod}: {failure.message}"
            for failure in self.ledger.failures[-3:]
        )

    def _check(self, name: str, ok: bool, detail: str = "") -> None:
        self.report.check(name, ok, "" if ok else detail)

    def _count(self) -> None:
        report, latencies = self.report, self.ledger.latencies_ms
        report.nodes = len(self.lab.nodes)
        report.adds = len(latencies)
        report.add_p50_ms = round(percentile(latencies, 0.50), 1)
        report.add_p99_ms = round(percentile(latencies, 0.99), 1)
        report.failed_adds = sum(failure.verb == "ADD" for failure in self.ledger.failures)
        report.duplicate_addresses = len(self.ledger.duplicates)
        report.ec2_calls = len(self.lab.region.journal)
        self._check(
            "no address doubled",
            not self.ledger.duplicates,
            "; ".join(
                f"{double.address}: {double.before.pod} and {double.after.pod}"
                for double in self.ledger.duplicates[:3]
            ),
        )

    @asynccontextmanager
    async def _step(self, key: str) -> AsyncIterator[Callable[[str], None]]:
        """Carry out a step: the callable says what it does or found. It ends as failed if a check in it failed."""
        self._progress.begin(key)
        checked = len(self.report.checks)
        try:
            yield lambda note: self._progress.note(key, note)
        except (LabError, AgentAwayError, CniError, TimeoutError) as error:
            self._fail(key, error)
        except BaseExceptionGroup as group:
            expected, unforeseen = group.split((LabError, AgentAwayError, CniError, TimeoutError))
            if expected is None or unforeseen is not None:
                raise
            self._fail(key, _first_of(expected))
        failed = [check for check in self.report.checks[checked:] if not check.ok]
        note = self._progress.steps[key].note
        if failed:
            note = f"{failed[0].name}: NO. {failed[0].detail}"
        self._progress.end(key, not failed, note)

    def _fail(self, key: str, error: BaseException) -> None:
        self._check(f"step {key}", False, str(error))
        self._progress.end(key, False, str(error))
        raise _StepFailedError from error


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _counts(owned: Mapping[str, int]) -> str:
    return " + ".join(str(count) for count in owned.values())


def new_progress(on_step: Callable[[Any], None] = lambda _: None) -> Progress:
    """A progress with the demo's steps."""
    return Progress(dict(STEPS), on_step)


__all__ = ["NODES", "PODS_MAX", "PODS_MIN", "STEPS", "Demo", "DemoPlan", "new_progress"]
