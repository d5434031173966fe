"""Starts CNI executables in the namespace that it was started in, and times each one's life.

Reads one request a line on stdin, writes one answer a line on stdout, both JSON. A child is started by
``posix_spawn`` (``vfork`` below it), so the size of this process costs it nothing; what is timed is from before
that to the end of the child. Its input is a file, its output an anonymous file in memory: nobody has to keep up
with a pipe while the clock runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Final

from bench.callers import ask_all
from vpccni.lab.fabric import namespaces
from vpccni.lab.fabric.enter import set_loopback_up
from vpccni.lab.fabric.namespaces import Namespace

Answer = dict[str, Any]

SETTLE_S: Final = 10.0
"""A removed namespace takes its veth along within some 50 ms; more means that something is wrong."""
QUIET_S: Final = 0.03
"""After that the kernel is still busy with the namespace, and whoever comes next should not pay for it."""
_MNT_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Side:
    """One CNI plugin: executable, configuration (in a file), and how its calls look."""

    def __init__(self, spec: dict[str, Any], scratch: Path, name: str) -> None:
        self.executable: str = spec["executable"]
        self.cni_path: str = spec["path"]
        self.config = scratch / f"{name}.json"
        self.config.write_text(json.dumps(spec["config"]))


class Child:
    """A started executable."""

    def __init__(self, verb: str, side: Side, pod: Pod | None) -> None:
        self._output = os.memfd_create("cni")
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.container_id if pod else "",
            "CNI_NETNS": pod.netns.path if pod else "",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": pod.arguments if pod else "",
            "CNI_PATH": side.cni_path,
            "PATH": os.defpath,
        }
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(side.config), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._output, 1),
        ]
        self.began_ns = time.perf_counter_ns()
        self.pid = os.posix_spawn(side.executable, [side.executable], environment, file_actions=actions)

    def wait(self) -> None:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        self.ended(status)

    def ended(self, status: int) -> None:
        """Note its end, which is now."""
        self.ended_ns = time.perf_counter_ns()
        self.status = os.waitstatus_to_exitcode(status)
        with open(self._output, "rb") as said:
            said.seek(0)
            self.said = said.read()

    @property
    def ms(self) -> float:
        """How long it lived."""
        return (self.ended_ns - self.began_ns) / 1e6

    @property
    def failure(self) -> str:
        """What it said when it failed; empty after success."""
        return "" if self.status == 0 else f"exit {self.status}: {self.said.decode(errors='replace')[:300]}"


class Pod:
    """A sandbox with its network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.netns: Namespace = namespaces.create(f"{name}-{uuid.uuid4().hex[:8]}")
        namespaces.run_in(self.netns, set_loopback_up)
        self.container_id = uuid.uuid4().hex + uuid.uuid4().hex
        self.host_ifname = ""
        self.result: dict[str, Any] = {}
        self.arguments = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID={uuid.uuid4()}"
        )

    def learn(self, child: Child) -> None:
        """Remember an ADD's result, and the host's end of the veth from it."""
        if child.status == 0:
            self.result = json.loads(child.said)
            self.host_ifname = self.result["interfaces"][0]["name"]

    def remove(self) -> None:
        """Remove the namespace; nothing runs in it."""
        _libc.umount2(self.netns.path.encode(), _MNT_DETACH)
        Path(self.netns.path).unlink(missing_ok=True)

    def is_gone(self) -> bool:
        """Whether the kernel has taken the veth away."""
        return not self.host_ifname or not _is_link(self.host_ifname)


class Launcher:
    """Pods and what is done to them. Each public method serves the request of its name."""

    def __init__(self, sides: dict[str, Any], scratch: Path) -> None:
        self._sides = {name: Side(spec, scratch, name) for name, spec in sides.items()}
        self._pods: dict[str, Pod] = {}

    def make(self, names: list[str]) -> Answer:
        """Make sandboxes."""
        for name in names:
            self._pods[name] = Pod(name)
        return {}

    def drop(self, names: list[str]) -> Answer:
        """Remove sandboxes and wait until the kernel is done with them."""
        pods = [self._pods.pop(name) for name in names]
        for pod in pods:
            pod.remove()
        return {"settled": _settle(pods)}

    def each(self, verb: str, side: str, names: list[str]) -> Answer:
        """Call one after the other."""
        return _answer([self._call(verb, side, self._pods[name]) for name in names])

    def together(self, verb: str, side: str, names: list[str]) -> Answer:
        """Call all at once; ``last_ms`` is from before the first start to the last end."""
        pods = {}
        children: dict[int, Child] = {}
        began = time.perf_counter_ns()
        for name in names:
            child = Child(verb, self._sides[side], self._pods[name])
            children[child.pid], pods[child.pid] = child, self._pods[name]
        for _ in range(len(names)):
            pid, status = os.waitpid(-1, 0)
            children[pid].ended(status)
        last = max(child.ended_ns for child in children.values())
        if verb == "ADD":
            for pid, child in children.items():
                pods[pid].learn(child)
        return {**_answer(list(children.values())), "last_ms": (last - began) / 1e6}

    def results(self, names: list[str]) -> Answer:
        """What the ADDs of these pods were answered, as a runtime would keep it."""
        pods = {name: self._pods[name] for name in names}
        return {
            name: {"container_id": pod.container_id, "netns": pod.netns.path, "result": pod.result}
            for name, pod in pods.items()
        }

    def cycle(self, side: str) -> Answer:
        """One pod's whole life: the times of its ADD and its DEL; nothing is left when this returns."""
        pod = Pod("cycle")
        add = self._call("ADD", side, pod)
        delete = self._call("DEL", side, pod)
        pod.remove()
        settled = _settle([pod])
        time.sleep(QUIET_S)
        return {
            "add": add.ms,
            "del": delete.ms,
            "failed": _failures([add, delete]),
            "settled": settled,
        }

    def soak(self, side: str, windows: int, width: int) -> Answer:
        """Window after window of pods: all ADDs at once, then all DELs at once. Only failures are told."""
        failed: list[str] = []
        for window in range(windows):
            names = [f"soak-{window}-{number}" for number in range(width)]
            self.make(names)
            failed += self.together("ADD", side, names)["failed"]
            failed += self.together("DEL", side, names)["failed"]
            for name in names:
                self._pods.pop(name).remove()
        return {"failed": failed[:20], "failures": len(failed)}

    def paced(self, verbs: list[str], side: str, names: list[str], interval_s: float) -> Answer:
        """A new pod every ``interval_s``, whatever became of those before; each goes through the verbs."""
        self.make(names)
        began = time.monotonic()
        children: list[Child] = []

        def live(pod: Pod, at: float) -> None:
            time.sleep(max(0.0, at - time.monotonic()))
            children.extend(self._call(verb, side, pod) for verb in verbs)

        threads = [
            threading.Thread(target=live, args=(self._pods[name], began + place * interval_s))
            for place, name in enumerate(names)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _answer(children)

    def status(self, side: str, count: int) -> Answer:
        """Ask STATUS: a whole call of the executable that makes the agent do nothing."""
        answers = []
        for _ in range(count):
            child = Child("STATUS", self._sides[side], None)
            child.wait()
            answers.append(child)
        return _answer(answers)

    def callers(self, socket: str, verb: str, names: list[str], at_once: int) -> Answer:
        """Speak with the daemon directly: as many connections at once, each asks again when it was answered."""
        config = self._sides["ours"].config.read_text()
        bodies = [(name, _request(verb, name, config)) for name in names]
        return ask_all(socket, bodies, at_once)

    def _call(self, verb: str, side: str, pod: Pod) -> Child:
        child = Child(verb, self._sides[side], pod)
        child.wait()
        if verb == "ADD":
            pod.learn(child)
        return child


def _request(verb: str, name: str, config: str) -> bytes:
    """What the executable would send for a pod of that name, whose namespace nobody looks into."""
    container_id = hashlib.sha256(name.encode()).hexdigest()
    body = json.dumps(
        {
            "command": verb,
            "containerId": container_id,
            "netns": f"/run/netns/{name}",
            "ifname": "eth0",
            "args": f"K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name};K8S_POD_UID={uuid.uuid4()}",
            "config": json.loads(config),
        }
    )
    head = f"POST /v1/cni HTTP/1.1\r\nHost: vpccni\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def _answer(children: list[Child]) -> Answer:
    return {
        "ms": [round(child.ms, 4) for child in children],
        "failed": _failures(children)[:20],
        "failures": sum(child.status != 0 for child in children),
        "ended_ns": max((child.ended_ns for child in children), default=0),
    }


def _failures(children: list[Child]) -> list[str]:
    return [child.failure for child in children if child.status != 0]


def _settle(pods: list[Pod]) -> bool:
    deadline = time.monotonic() + SETTLE_S
    while not all(pod.is_gone() for pod in pods):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _is_link(name: str) -> bool:
    return bool(_libc.if_nametoindex(name.encode()))


def main() -> None:
    """Serve requests until stdin ends."""
    scratch, sides = Path(sys.argv[1]), json.loads(sys.argv[2])
    launcher = Launcher(sides, scratch)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        name = request.pop("do")
        print(json.dumps(getattr(launcher, name)(**request)), flush=True)


if __name__ == "__main__":
    main()
