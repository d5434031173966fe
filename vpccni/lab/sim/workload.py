"""What a kubelet and its container runtime ask of a node, and how badly they sometimes do it.

Creates, deletes, retries with new container ids, repeated and concurrent requests, a DEL that overtakes its ADD,
DELs that never come or come late, callers that go away, an executable that is killed, a DEL that is spooled while
the agent is away, a key that is used again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from vpccni.errors import VpccniError
from vpccni.evidence import CachedResult, PodSeen
from vpccni.lab.sim.invariants import Checker
from vpccni.lab.sim.node import AwayError, SimNode
from vpccni.lab.sim.sandbox import NAMESPACE, NETWORK, Sandbox
from vpccni.model import PodRef

CONNECT_S: Final = 30.0
DEL_CONNECT_S: Final = 2.0
ADD_ANSWER_S: Final = 85.0
DEL_ANSWER_S: Final = 20.0
SANDBOX_TRIES: Final = 4
DEL_TRIES: Final = 5
PLUGINS: Final = ("aws-cni", "egress-cni", "portmap")
"""What both conflists name."""
PROBE_S: Final = 5.0
"""Of a pod on a node at rest: even if an ENI has to be made for it."""

ENDINGS: Final = (
    (40, "plain"),
    (20, "netns first"),
    (6, "dropped"),
    (8, "twice"),
    (6, "both at once"),
    (6, "killed"),
    (5, "late"),
    (9, "key again"),
    (4, "spooled"),
    (2, "spooled and sent"),
)


class Kubelet:
    """The pods of one node.

    Args:
        node: Where they run.
        checker: Told of what is acknowledged and given up.
        seed: Of their lives.
        count: Called for each ADD or DEL that is sent.
        gc_forgets: The runtime's GC leaves out sandboxes that are alive.
    """

    def __init__(
        self,
        node: SimNode,
        checker: Checker,
        seed: str,
        count: Callable[[], None],
        *,
        gc_forgets: bool = False,
    ) -> None:
        self._node = node
        self._checker = checker
        self._seed = seed
        self._gc_forgets = gc_forgets
        self._count = count
        self._pods = 0
        self._sandboxes = 0
        self._refusal = ""
        self._is_closing = asyncio.Event()
        self._alive: dict[Sandbox, None] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}

    # -- life -------------------------------------------------------------------------------------

    async def run(self, pods_max: int) -> None:
        """Create pods, now fast, now slowly, until ``close``."""
        rng = random.Random(f"{self._seed} {self._node.name}")
        pace_s, pace_left = 8.0, 0
        while not self._is_closing.is_set():
            if pace_left <= 0:
                pace_s, pace_left = rng.choice((1.0, 4.0, 8.0, 15.0, 40.0)), rng.randint(3, 25)
            burst = rng.choice((1, 1, 1, 1, 2, 3, 8))
            for _ in range(min(burst, pods_max - len(self._alive))):
                self._begin(self._pod(rng.choice((3.0, 30.0, 200.0, 900.0))))
            if rng.random() < 0.03:
                self._begin(self._gc(rng.choice((0, 0, 1, 3)) if self._gc_forgets else 0))
            pace_left -= burst
            await self._pause(rng.expovariate(1.0 / (pace_s * burst)))

    async def close(self) -> None:
        """No new pods; about half of those that run are deleted; what is under way comes to its end."""
        self._is_closing.set()
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def probe(self) -> None:
        """When everything is well again a pod gets its address at once, or the reason why there is none."""
        sandbox = self._new_sandbox(f"{self._node.name}-probe")
        began = self._node.loop.time()
        if not await self._add(sandbox):
            if self._refusal not in ("subnet_exhausted", "instance_full", "max_pods_reached"):
                self._checker.report(f"{sandbox.told}: a node at rest refused an ADD: {self._refusal}")
        elif self._node.loop.time() - began > PROBE_S:
            self._checker.report(
                f"{sandbox.told}: a node at rest took {self._node.loop.time() - began:.1f} s"
            )
        await self._delete(sandbox, "plain", random.Random(0))

    def reboot(self) -> None:
        """The runtime and all sandboxes are gone with the machine."""
        for task in list(self._tasks):
            task.cancel()
        self._alive.clear()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="pod")
        self._tasks[task] = None
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            self._checker.report(f"the workload itself failed: {task.exception()!r}")

    async def _pause(self, seconds: float) -> None:
        """Sleep, less long when everything is to end."""
        if self._is_closing.is_set():
            await asyncio.sleep(min(seconds, 1.0))
            return
        try:
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()
        except TimeoutError:
            return

    # -- one pod ----------------------------------------------------------------------------------

    async def _pod(self, lives_s: float) -> None:
        # A generator of its own: what happens to one pod does not change what the others do.
        self._pods += 1
        pod = f"{self._node.name}-pod-{self._pods}"
        rng = random.Random(f"{self._seed} {pod}")
        self._node.kube.uids.add(f"uid-{pod}")
        sandbox = None
        for _ in range(SANDBOX_TRIES):
            sandbox = self._new_sandbox(pod)
            if await self._create(sandbox, rng):
                break
            await self._delete(
                sandbox, rng.choice(("plain", "plain", "netns first", "dropped", "killed")), rng
            )
            sandbox = None
            await self._pause(rng.uniform(10.0, 16.0))
            if self._is_closing.is_set():
                break
        while sandbox is not None:
            await self._pause(rng.expovariate(1.0 / lives_s))
            if (
                rng.random() < 0.2
                and not sandbox.is_given_up
                and sandbox.served_by == self._node.plugin == "ours"
            ):
                await self._repeat(sandbox, rng.choice(("ADD", "ADD", "CHECK")))
            if self._is_closing.is_set() and rng.random() < 0.5:
                return
            ending = rng.choices([name for _, name in ENDINGS], [weight for weight, _ in ENDINGS])[0]
            if rng.random() < 0.5:
                self._node.kube.uids.discard(sandbox.uid)
            is_over = await self._delete(sandbox, ending, rng)
            is_spooled = ending.startswith("spooled") and rng.random() < 0.6
            is_reused = is_over and (ending == "key again" or is_spooled)
            sandbox = await self._again(sandbox, rng) if is_reused else None
        self._node.kube.uids.discard(f"uid-{pod}")

    def _new_sandbox(self, pod: str, container_id: str = "") -> Sandbox:
        self._sandboxes += 1
        number = f"{self._node.name}-{self._sandboxes}"
        sandbox = Sandbox(
            node=self._node.name,
            container_id=container_id or f"c{number}",
            pod=pod,
            uid=f"uid-{pod}",
            netns=f"/run/netns/{number}",
        )
        self._node.kernel.add_netns(sandbox.netns)
        self._alive[sandbox] = None
        return sandbox

    async def _again(self, before: Sandbox, rng: random.Random) -> Sandbox | None:
        """The runtime uses the key of a deleted sandbox once more."""
        sandbox = self._new_sandbox(before.pod, before.container_id)
        self._node.kube.uids.add(sandbox.uid)
        if await self._create(sandbox, rng):
            return sandbox
        await self._delete(sandbox, "plain", rng)
        return None

    async def _create(self, sandbox: Sandbox, rng: random.Random) -> bool:
        """ADD, in one of its ways. Whether it was acknowledged and the sandbox lives."""
        roll = rng.random()
        if roll < 0.04:
            await self._add_and_go_away(sandbox, rng.choice((0.001, 0.004, 0.05, 1.0, 10.0)) * rng.random())
            return False
        if roll < 0.07:
            await self._add_and_delete(sandbox, rng.choice((0.0, 0.002, 0.01, 0.5)) * rng.random())
            return False
        return await self._add(sandbox)

    async def _add_and_go_away(self, sandbox: Sandbox, after_s: float) -> None:
        try:
            async with asyncio.timeout(after_s):
                await self._add(sandbox)
        except TimeoutError:
            self._node.trace(f"{sandbox.told} caller went away")
        self._give_up(sandbox)

    async def _add_and_delete(self, sandbox: Sandbox, after_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._add(sandbox), name="add")
            await asyncio.sleep(after_s)
            self._give_up(sandbox)
            await self._del(sandbox)

    # -- requests ---------------------------------------------------------------------------------

    async def _ask(self, sandbox: Sandbox, verb: str, body: bytes) -> tuple[int, dict[str, Any]]:
        is_del = verb == "DEL"
        if verb in ("ADD", "DEL"):
            self._count()
        self._node.trace(f"{sandbox.told} {verb}")
        if self._node.plugin == "original":
            return await self._ask_original(sandbox, verb)
        agent = self._node.agent
        try:
            status, answer = await self._node.exchange(
                body, DEL_CONNECT_S if is_del else CONNECT_S, DEL_ANSWER_S if is_del else ADD_ANSWER_S
            )
        except AwayError:
            if verb == "ADD" and agent is not None and agent is self._node.agent:
                self._checker.report(f"{sandbox.told}: an agent that lives gave an ADD no answer")
            raise
        told = answer.get("reason") or ",".join(ip["address"] for ip in answer.get("ips", ()))
        self._node.trace(f"{sandbox.told} {verb} {status} {told}")
        self._refusal = str(answer.get("reason", ""))
        if status != 200:
            self._checker.on_refused(sandbox, verb, answer)
        return status, answer

    async def _ask_original(self, sandbox: Sandbox, verb: str) -> tuple[int, dict[str, Any]]:
        """The runtime calls the original's executable. A killed one is cancelled here, in the middle of its work."""
        status, answer = 200, dict[str, Any]()
        if verb == "ADD":
            sandbox.served_by = "original"
            status, answer = await self._node.original.add(sandbox)
        elif verb == "DEL":
            await self._node.original.delete(sandbox)
        told = answer.get("reason") or ",".join(ip["address"] for ip in answer.get("ips", ()))
        self._node.trace(f"{sandbox.told} {verb} by the original {status} {told}")
        self._refusal = str(answer.get("reason", ""))
        return status, answer

    async def _add(self, sandbox: Sandbox) -> bool:
        try:
            status, answer = await self._ask(sandbox, "ADD", sandbox.request("ADD"))
        except AwayError:
            return False
        if status != 200 or sandbox.is_given_up:
            return False
        sandbox.address = answer["ips"][0]["address"].removesuffix("/32")
        sandbox.interfaces = tuple(answer["interfaces"])
        self._remember(sandbox)
        if sandbox.served_by == "ours":
            self._checker.on_acked(self._node, sandbox)
        else:
            self._checker.on_original_acked(self._node, sandbox)
        return True

    def _remember(self, sandbox: Sandbox) -> None:
        """The runtime keeps the result, and the pod's status gets its address."""
        node = self._node
        pod = PodRef(NAMESPACE, sandbox.pod, sandbox.uid)
        node.cache.put(
            CachedResult(
                file=f"{NETWORK}-{sandbox.container_id}-eth0",
                key=sandbox.key,
                pod=pod,
                netns=sandbox.netns,
                addresses=(sandbox.address,),
                host_ifnames=tuple(
                    each["name"]
                    for each in sandbox.interfaces
                    if not str(each.get("sandbox", "")).startswith("/")
                ),
                modified_ns=node.clock.now().wall_ns,
                plugin_types=PLUGINS,
            )
        )
        if sandbox.uid in node.kube.uids:
            node.kube.put(PodSeen(pod=pod, addresses=(sandbox.address,)))

    def _forget(self, sandbox: Sandbox) -> None:
        """The runtime has finished a DEL."""
        self._node.cache.drop(sandbox.key, self._node.clock.now().wall_ns)

    async def _repeat(self, sandbox: Sandbox, verb: str) -> None:
        """The same ADD once more, or a CHECK."""
        try:
            status, answer = await self._ask(sandbox, verb, sandbox.request(verb))
        except AwayError:
            return
        if status == 200 and verb == "ADD" and not sandbox.is_given_up:
            self._checker.on_repeated(self._node, sandbox, answer["ips"][0]["address"].removesuffix("/32"))

    async def _del(self, sandbox: Sandbox) -> bool:
        """One DEL as the executable makes it: spooled when no agent answers."""
        is_ours = self._node.plugin == "ours"
        try:
            status, _ = await self._ask(sandbox, "DEL", self._del_body(sandbox))
            if status == 200 and is_ours:
                self._checker.on_deleted(self._node, sandbox)
        except AwayError:
            return await self._spool(sandbox)
        if status == 200:
            self._forget(sandbox)
        return status == 200

    def _del_body(self, sandbox: Sandbox) -> bytes:
        """A DEL comes with the result of its ADD, if the runtime still has that."""
        if sandbox.address and (NETWORK, sandbox.container_id, "eth0") in self._node.cache.known:
            return sandbox.request("DEL", prevResult=sandbox.result)
        return sandbox.request("DEL")

    async def _spool(self, sandbox: Sandbox) -> bool:
        """The executable writes the DEL down. The original's has no spool."""
        if self._node.plugin == "original":
            await self._node.original.delete(sandbox)
            self._forget(sandbox)
            return True
        try:
            await self._node.spool.write(self._del_body(sandbox), self._node.clock.now())
        except VpccniError:
            return False
        self._node.trace(f"{sandbox.told} DEL spooled")
        self._forget(sandbox)
        return True

    async def _gc(self, forgotten: int) -> None:
        """The runtime's GC: it lists what it has, and sometimes forgets some."""
        listed = list(self._alive)[forgotten:]
        valid = [{"containerID": each.container_id, "ifname": "eth0"} for each in listed]
        anybody = Sandbox(self._node.name, "gc", "", "", "")
        try:
            await self._ask(anybody, "GC", anybody.request("GC", **{"cni.dev/valid-attachments": valid}))
        except AwayError:
            return

    # -- the end of a sandbox ---------------------------------------------------------------------

    def _give_up(self, sandbox: Sandbox) -> None:
        if not sandbox.is_given_up:
            sandbox.is_given_up = True
            self._checker.on_released(self._node, sandbox)

    def _end_netns(self, sandbox: Sandbox) -> None:
        self._node.kernel.remove_netns(sandbox.netns)
        self._alive.pop(sandbox, None)

    async def _delete(self, sandbox: Sandbox, ending: str, rng: random.Random) -> bool:
        """Take a sandbox down in one of many ways. Whether a DEL was answered with success."""
        self._give_up(sandbox)
        is_over = False
        if ending in ("netns first", "dropped", "late"):
            self._end_netns(sandbox)
        match ending:
            case "dropped":
                self._forget(sandbox)
            case "spooled":
                # The executable did not get through although the agent runs.
                self._count()
                is_over = await self._spool(sandbox)
            case "spooled and sent":
                await self._spool(sandbox)
                is_over = await self._del_patiently(sandbox)
            case "late":
                await self._pause(rng.uniform(5.0, 400.0))
                is_over = await self._del_patiently(sandbox)
            case "twice":
                await self._del_patiently(sandbox)
                is_over = await self._del_patiently(sandbox)
            case "both at once":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._del_patiently(sandbox), name="del")
                    is_over = await self._del_patiently(sandbox)
            case "killed":
                try:
                    async with asyncio.timeout(rng.choice((0.001, 0.005, 0.5)) * rng.random()):
                        await self._del(sandbox)
                except TimeoutError:
                    self._node.trace(f"{sandbox.told} DEL killed")
                is_over = await self._del_patiently(sandbox)
            case _:
                is_over = await self._del_patiently(sandbox)
        if sandbox in self._alive:
            await asyncio.sleep(rng.choice((0.0, 0.01, 1.0, 5.0)))
            self._end_netns(sandbox)
        return is_over

    async def _del_patiently(self, sandbox: Sandbox) -> bool:
        for _ in range(DEL_TRIES):
            if await self._del(sandbox):
                return True
            await asyncio.sleep(2.0)
        return False
