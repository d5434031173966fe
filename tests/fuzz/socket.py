"""Fuzz the socket of a real agent: a lab's, with real wiring and a real log on a disk.

    python -m tests.fuzz.socket --seed 7 --requests 20000

A dozen workers send well-formed nonsense, bytes that are no HTTP, pipelines, requests whose sender goes away, and
ADDs and DELs that are good; others drip, or connect and say nothing, or follow the events and never read.
Meanwhile a control client has one pod after the other. What each worker sends depends on the seed alone;
how the workers' requests meet is the machine's.

Wrong is: an answer that ``answers`` does not allow; a request that is whole HTTP and gets none; a control client that
is refused or waits; a lease whose ADD nobody was told succeeded; an agent that ends, says a traceback, holds
descriptors in the end that it did not hold before, or grows by more than ``GROWTH_MAX_MIB``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from tests.fuzz.answers import Answer, BadAnswerError, read_one
from tests.fuzz.nonsense import NOWHERE, Nonsense, get, post, request
from tests.unit.api.shapes import check_result
from vpccni.lab.audit import replay
from vpccni.lab.ec2 import Timing, small_region
from vpccni.lab.fabric.enter import enter_world
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.places import build_directory

DIRECTORY: Final = build_directory() / "fuzz"
WORKERS: Final = 12
ANSWER_MAX_S: Final = 60.0
"""No answer takes longer, on a machine that is busy with other things: an ADD waits two seconds at most."""
SETTLE_S: Final = 60.0
"""Connections that say nothing are closed after 15 s; veths are swept some seconds after their DEL."""
GROWTH_MAX_MIB: Final = 64
"""From the end of the warm-up on. A million requests of nonsense cost 41 MiB, 50 bytes each; thousands of good ADDs,
or of ADDs that fail, cost nothing. What keeps it is not known."""
WARM_UP: Final = 0.2
TELL_S: Final = 10.0
"""How often it is said how far it is."""
SETTINGS: Final = {
    "WARM_IP_TARGET": "10",
    "MINIMUM_IP_TARGET": "90",
    "IP_COOLDOWN_PERIOD": "1",
    "ADD_WAIT_S": "2",
    "AWS_VPC_K8S_CNI_LOGLEVEL": "WARN",
}
LATENCY_S: Final = {"*": 0.02}
TIMING: Final = Timing(attach_settle_s=0.1, detach_settle_s=0.1, link_delay_s=0.05)
WRONG_MAX: Final = 5
DAY_S: Final = 86_400
DAWDLERS: Final = 24
FOLLOWERS: Final = 3
"""So many of the dawdlers follow the events and never read them."""

Key = tuple[str, str, str]
"""Network, container id, ifname."""


class Tally(msgspec.Struct, kw_only=True):
    """What a run did and found.

    Attributes:
        sent: Requests, or connections for those that are none, by kind.
        answers: Answers by status.
        reasons: Refusals by reason.
        adds: ADDs that succeeded.
        control: Rounds of the control client.
        control_max_s: Its slowest answer.
        growth_mib: How much the agent's memory grew after the warm-up.
        wrong: What should not be.
    """

    seed: int
    requests: int
    sent: Counter[str] = msgspec.field(default_factory=Counter)
    answers: Counter[int] = msgspec.field(default_factory=Counter)
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    adds: int = 0
    control: int = 0
    control_max_s: float = 0.0
    growth_mib: float = 0.0
    took_s: float = 0.0
    wrong: list[str] = msgspec.field(default_factory=list)

    @property
    def total(self) -> int:
        """Requests sent so far."""
        return self.sent.total()

    def again(self) -> str:
        """How to send the same again."""
        return f"python -m tests.fuzz.socket --seed {self.seed} --requests {self.requests}"

    def __str__(self) -> str:
        counts = (
            f"{dict(self.sent)}\nanswers {dict(self.answers)}, {self.adds} ADDs\nreasons {dict(self.reasons)}"
        )
        control = f"control: {self.control} rounds, slowest answer {self.control_max_s:.2f} s"
        lines = [
            f"{self.total} requests in {self.took_s:.0f} s: {counts}",
            control,
            f"growth {self.growth_mib:.1f} MiB",
        ]
        if self.wrong:
            lines += [f"again: {self.again()}", *(f"WRONG: {each}" for each in self.wrong)]
        return "\n".join(lines)


class Connection:
    """One connection; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self.received = bytearray()

    async def __aenter__(self) -> Connection:
        await self._loop.sock_connect(self._socket, str(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    async def send(self, message: bytes) -> bool:
        """Send all of it, or, as False tells, as much as the other side takes before it hangs up."""
        try:
            await self._loop.sock_sendall(self._socket, message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end(self) -> None:
        """Say that nothing more will come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def more(self) -> bool:
        """Receive something; False at the end."""
        try:
            piece = await self._loop.sock_recv(self._socket, 65536)
        except ConnectionResetError:
            return False
        self.received += piece
        return bool(piece)

    def taken(self) -> Answer | None:
        """Take the first whole answer out of what was received."""
        found = read_one(bytes(self.received)) if self.received else None
        if found is None:
            return None
        del self.received[: found[1]]
        return found[0]

    async def answer(self) -> Answer | None:
        """The next answer; None when the connection ends without it."""
        async with asyncio.timeout(ANSWER_MAX_S):
            while True:
                found = self.taken()
                if found is not None or not await self.more():
                    return found


class Fuzz:
    """One run over an agent that is ready."""

    def __init__(self, lab: Lab, node: LabNode, tally: Tally) -> None:
        self._lab, self._node, self._tally = lab, node, tally
        self._path = node.places.socket
        self._promised: set[Key] = {("aws-cni", "control", "eth0")}
        """Sandboxes that may have a lease: an ADD succeeded, or its sender did not wait."""
        self._is_over = False

    async def run(self, count: int, seconds: float) -> None:
        """Send so many requests, but for no longer than that, and say in the tally what was wrong."""
        tally, agent = self._tally, self._node.agent
        assert agent is not None
        began = time.monotonic()
        netns = [(await self._lab.fabric.add_namespace(f"fuzz-{each}")).path for each in range(WORKERS + 1)]
        await self._control_round(netns[WORKERS])
        files = len(os.listdir(f"/proc/{agent.pid}/fd"))
        timer = asyncio.get_running_loop().call_later(seconds, self._end)
        async with asyncio.TaskGroup() as group:
            control = group.create_task(self._control(netns[WORKERS]), name="control")
            others = [group.create_task(self._dawdle(each), name=f"slow {each}") for each in range(DAWDLERS)]
            watch = group.create_task(self._watch_memory(agent.pid, count), name="memory")
            async with asyncio.TaskGroup() as workers:
                for number in range(WORKERS):
                    share = count // WORKERS + (number < count % WORKERS)
                    workers.create_task(self._work(number, netns[number], share), name=f"worker {number}")
            self._end()
            timer.cancel()
            await control
            await watch
            for each in others:
                each.cancel()
        try:
            await self._aftermath(files)
        except OSError as error:
            self._blame(f"the agent is gone, or going: {error}; see the end of its log")
        tally.took_s = time.monotonic() - began

    def _end(self) -> None:
        self._is_over = True

    def _blame(self, what: str) -> None:
        self._tally.wrong.append(what)
        self._is_over = self._is_over or len(self._tally.wrong) >= WRONG_MAX

    # -- a worker ---------------------------------------------------------------------------------

    async def _work(self, number: int, netns: str, share: int) -> None:
        """Send a share of the requests. The draws depend on the seed and the number alone."""
        chance = random.Random(f"{self._tally.seed}-{number}")
        nonsense = Nonsense(chance, netns, f"w{number}")
        connection = await Connection(self._path).__aenter__()
        sent = 0
        try:
            while sent < share and not self._is_over:
                draw = chance.random()
                if draw < 0.72:
                    bodies = [nonsense.body() for _ in range(chance.choice([1, 1, 3, 12]))]
                    sent += len(bodies)
                    connection = await self._ask(connection, "body", *bodies)
                elif draw < 0.74:
                    sent += await self._pipeline(nonsense, chance)
                elif draw < 0.78:
                    sent += 2
                    connection = await self._live(connection, nonsense, netns)
                elif draw < 0.80:
                    sent += 1
                    await self._abandon(nonsense, netns, chance)
                elif draw < 0.82:
                    sent += 1
                    connection = await self._ask(
                        connection, "view", get(chance.choice(["/v1/status", "/v1/pods"]))
                    )
                else:
                    sent += 1
                    await self._raw(nonsense, chance)
        except OSError as error:
            self._blame(f"the socket does not take a connection: {error}")
        finally:
            connection.close()

    async def _ask(self, connection: Connection, kind: str, *asked: bytes) -> Connection:
        """Send requests that are whole HTTP, all at once, and judge each answer; give the connection for the next.

        Only the first may go unanswered once: the connection may have been idle for too long.
        """
        messages = [each if each.startswith(b"GET ") else post(each) for each in asked]
        self._tally.sent[kind] += len(asked)
        for number, each in enumerate(asked):
            try:
                if number == 0:
                    await connection.send(b"".join(messages))
                answer = await connection.answer()
                if answer is None and number == 0:
                    connection.close()
                    connection = await Connection(self._path).__aenter__()
                    await connection.send(b"".join(messages))
                    answer = await connection.answer()
                self._judge(each, answer)
            except (BadAnswerError, TimeoutError) as error:
                self._blame(f"{error!r} to {each[:2000]!r}")
                answer = None
            if answer is None or answer.closes:
                connection.close()
                return await Connection(self._path).__aenter__()
        return connection

    def _judge(self, body: bytes, answer: Answer | None) -> None:
        if answer is None:
            raise BadAnswerError("hung up without an answer")
        self._count(answer)
        if answer.status != 200 or body.startswith(b"GET "):
            return
        try:
            # What stands in members that nobody reads need not be UTF-8, nor a number that Python takes.
            asked = json.loads(body.decode("utf-8", "replace"), parse_int=float)
        except (ValueError, RecursionError) as error:
            raise BadAnswerError("success for what is no JSON") from error
        if asked["command"] != "ADD":
            if answer.said != {}:
                raise BadAnswerError(f"{asked['command']} answers {answer.said}")
            return
        config = asked["config"]
        try:
            if "prevResult" not in config:
                check_result(answer.said, config.get("cniVersion", "0.3.0"))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise BadAnswerError(f"no result: {answer.said}") from error
        self._tally.adds += 1
        self._promised.add((config["name"], asked["containerId"], asked["ifname"]))

    def _count(self, answer: Answer) -> None:
        self._tally.answers[answer.status] += 1
        if isinstance(answer.said, dict) and answer.status != 200:
            self._tally.reasons[answer.said["reason"]] += 1

    async def _live(self, connection: Connection, nonsense: Nonsense, netns: str) -> Connection:
        """An ADD with nothing wrong, and its DEL."""
        key = nonsense.key()
        for verb in ("ADD", "DEL"):
            connection = await self._ask(connection, "live", json.dumps(request(verb, key, netns)).encode())
        return connection

    async def _abandon(self, nonsense: Nonsense, netns: str, chance: random.Random) -> None:
        """Send a good request, or most of it, and go away."""
        key, verb = nonsense.key(), chance.choice(["ADD", "ADD", "DEL", "CHECK"])
        message = post(json.dumps(request(verb, key, netns)).encode())
        keep = chance.choice([len(message), len(message), chance.randrange(len(message))])
        self._tally.sent["abandoned"] += 1
        self._promised.add(("aws-cni", *key))
        async with Connection(self._path) as connection:
            await connection.send(message[:keep])
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))

    async def _pipeline(self, nonsense: Nonsense, chance: random.Random) -> int:
        """Several whole requests at once; as many answers, in order."""
        targets = ["/healthz", "/readyz", "/v1/pods", "/v1/enis", "/nothing", "/v1/events?limit=2"]
        known = {"/readyz": {200, 503}, "/nothing": {404}}
        count = chance.choice([2, 3, 8, 30])
        asked = [chance.choice(targets) for _ in range(count)]
        stop = json.dumps(request("DEL", nonsense.key(), NOWHERE)).encode()
        self._tally.sent["pipelined"] += count + 1
        try:
            async with Connection(self._path) as connection:
                for piece in nonsense.split(b"".join(map(get, asked)) + post(stop)):
                    await connection.send(piece)
                for target in [*asked, "DEL"]:
                    answer = await connection.answer()
                    if answer is None or answer.status not in known.get(target, {200}):
                        raise BadAnswerError(f"{answer} in a pipeline of {asked}, for {target}")
                    self._count(answer)
        except (BadAnswerError, TimeoutError) as error:
            self._blame(f"{error!r} in a pipeline of {asked}")
        return count + 1

    async def _raw(self, nonsense: Nonsense, chance: random.Random) -> None:
        """Bytes of any kind. There need be no answer; what there is must be good."""
        message, waits, ends = nonsense.message(), chance.random() < 0.5, chance.random() < 0.9
        self._tally.sent["raw"] += 1
        try:
            async with Connection(self._path) as connection:
                for piece in nonsense.split(message):
                    await connection.send(piece)
                    await asyncio.sleep(0)
                if waits:  # only so that there is something to judge: many of them get no answer at all
                    await asyncio.sleep(0.03)  # a receive that is cancelled may take bytes with it
                if not ends:
                    return
                connection.end()
                async with asyncio.timeout(ANSWER_MAX_S):
                    while await connection.more():
                        pass
                while (answer := connection.taken()) is not None:
                    self._count(answer)
        except BadAnswerError as error:
            self._blame(f"{error} to {message[:2000]!r}")
        except TimeoutError:
            self._blame(f"the connection stays open after the end of {message[:2000]!r}")

    # -- beside the workers -----------------------------------------------------------------------

    async def _dawdle(self, number: int) -> None:
        """A client that is slow, silent, or follows and does not read; when it is thrown out, it comes again."""
        messages = (post(b"{" + b" " * 1000), b"GET /v1/status HTTP/1.1\r\nX: " + b"y" * 1000, b"", b"\x00")
        while not self._is_over:
            async with Connection(self._path) as connection:
                if number < FOLLOWERS:
                    await connection.send(get("/v1/events?follow=1"))
                    await asyncio.sleep(3600)
                for byte in messages[number % len(messages)]:
                    if not await connection.send(bytes([byte])):
                        break
                    await asyncio.sleep(0.05)
                while await connection.more():
                    connection.received.clear()

    async def _control(self, netns: str) -> None:
        while not self._is_over:
            await self._control_round(netns)
            await asyncio.sleep(0.2)

    async def _control_round(self, netns: str) -> None:
        """What a runtime does for one pod. Each of these must succeed, in time."""
        key = ("control", "eth0")  # always the same: a namespace is one sandbox's
        for verb in ("STATUS", "ADD", "CHECK", "DEL"):
            body = json.dumps(request(verb, key, netns)).encode()
            began = time.monotonic()
            try:
                async with Connection(self._path) as connection:
                    await connection.send(post(body))
                    answer = await connection.answer()
            except (BadAnswerError, TimeoutError, OSError) as error:
                self._blame(f"control {verb}: {error!r}")
                return
            self._tally.control_max_s = max(self._tally.control_max_s, time.monotonic() - began)
            if answer is None or answer.status != 200:
                self._blame(f"control {verb} {key[0]}: {answer}")
                return
            if verb == "ADD":
                check_result(answer.said, "1.1.0")
        self._tally.control += 1

    async def _watch_memory(self, pid: int, count: int) -> None:
        while self._tally.total < count * WARM_UP and not self._is_over:
            await asyncio.sleep(0.05)
        before = _resident_mib(pid)
        told_at = time.monotonic()
        while not self._is_over:
            await asyncio.sleep(0.5)
            if time.monotonic() - told_at > TELL_S:
                told_at = time.monotonic()
                print(f"{self._tally.total:,} of {count:,} requests", file=sys.stderr, flush=True)
            self._tally.growth_mib = max(self._tally.growth_mib, _resident_mib(pid) - before)
        if self._tally.growth_mib > GROWTH_MAX_MIB:
            self._blame(f"the agent grew by {self._tally.growth_mib:.0f} MiB over {before:.0f}")

    # -- in the end -------------------------------------------------------------------------------

    async def _aftermath(self, files_before: int) -> None:
        """DEL what was promised: no lease may be left, no descriptor, no traceback; the log must be whole."""
        agent = self._node.agent
        assert agent is not None
        if agent.returncode is not None:
            self._blame(f"the agent ended with {agent.returncode}")
            return
        for network, container, ifname in sorted(self._promised):
            made = request("DEL", (container, ifname), NOWHERE)
            made["config"]["name"] = network
            async with Connection(self._path) as connection:
                await connection.send(post(json.dumps(made).encode()))
                answer = await connection.answer()
            if answer is None or answer.status != 200:
                self._blame(f"a DEL in the end: {answer}")
        pods = await self._node.client.get("/v1/pods")
        if pods:
            self._blame(f"leases of which nobody was told: {pods}")
        deadline = time.monotonic() + SETTLE_S
        while (files := len(os.listdir(f"/proc/{agent.pid}/fd"))) > files_before:
            if time.monotonic() > deadline:
                held = sorted(os.readlink(each) for each in Path(f"/proc/{agent.pid}/fd").iterdir())
                self._blame(f"{files} descriptors are open, {files_before} were at first: {held}")
                break
            await asyncio.sleep(0.1)
        if (status := await self._lab.kill_agent(self._node, signal.SIGTERM)) != 0:
            self._blame(f"the agent was asked to stop and ended with {status}")
        said = self._node.places.log.read_text(errors="replace")
        if "Traceback" in said:
            self._blame(f"a traceback: {said[said.index('Traceback') - 500 :][:4000]}")
        verified, report = await replay(self._node.places.events, "verify")
        if verified != 0:
            self._blame(f"the log: {report}")


def _resident_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def fuzz(seed: int, requests: int, seconds: float = DAY_S) -> Tally:
    """Run one seed in a lab of its own, for so long at most. Its files stay when something is wrong."""
    tally = Tally(seed=seed, requests=requests)
    name = f"socket-{seed}"
    region = small_region(seed, latency_s=LATENCY_S, timing=TIMING)
    async with Lab(name, directory=DIRECTORY, region=region) as lab:
        node = await lab.add_node("a", "m5.4xlarge")
        await lab.start_agent(node, SETTINGS)
        await lab.wait_ready(node)
        await Fuzz(lab, node, tally).run(requests, seconds)
    if tally.wrong:
        tally.wrong.append(f"its files: {DIRECTORY / name}")
    else:
        shutil.rmtree(DIRECTORY / name)
    return tally


def main() -> int:
    """Run one seed; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.socket")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=int, default=DAY_S, help="for no longer than that (default: a day)")
    options = parser.parse_args()
    enter_world()
    tally = asyncio.run(fuzz(options.seed, options.requests, options.seconds))
    print(tally)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
