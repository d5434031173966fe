"""A stand-in for a container runtime: it makes pod sandboxes and calls the real CNI executable, as libcni does.

What libcni does, and so this: the configuration is the first ``*.conflist`` of the directory; each plugin gets
its own part of it, with the list's name and the highest common CNI version put in; the result of an ADD is
cached in a file until the DEL; an ADD that failed is followed by a DEL.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vpccni.lab.fabric.enter import set_loopback_up
from vpccni.lab.fabric.namespaces import Namespace
from vpccni.lab.lab import Lab, LabNode
from vpccni.lab.ledger import Failure, Ledger, Sandbox

CNI_VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What this runtime can speak, lowest first."""

ADD_TIMEOUT_S: Final = 110.0
"""The executable gives up after 85 seconds by itself; a runtime waits longer, so that it hears the reason."""

IFNAME: Final = "eth0"


class CniError(Exception):
    """The executable answered with a CNI error, or broke off.

    Attributes:
        code: The CNI error code; 0 when it broke off.
        reason: vpccni's reason code, where the error names one.
        message: The error's text.
    """

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(f"CNI error {code}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class Runtime:
    """One node's container runtime.

    Args:
        lab: The node's lab.
        node: The node; its agent must have installed executable and conflist before the first call.
        ledger: Where answers are recorded; give all runtimes of a lab the same one.
        parallel_max: How many executables run at once; further calls wait (their latency does not count that).
    """

    def __init__(
        self, lab: Lab, node: LabNode, ledger: Ledger | None = None, *, parallel_max: int = 32
    ) -> None:
        self.node = node
        self.ledger = Ledger() if ledger is None else ledger
        self._fabric = lab.fabric
        self._slots = asyncio.Semaphore(parallel_max)
        self._numbers = itertools.count(1)

    async def add(self, pod: str, *, namespace: str = "default", uid: str | None = None) -> Sandbox:
        """Start a pod: make its sandbox and ADD it.

        Raises:
            CniError: the ADD failed; it was undone with a DEL and the sandbox is gone. It is in the ledger.
        """
        netns = await self._make_netns(pod)
        sandbox = Sandbox(
            node=self.node.name,
            pod=pod,
            namespace=namespace,
            uid=uid or str(uuid.uuid4()),
            container_id=uuid.uuid4().hex + uuid.uuid4().hex,
            netns=netns,
            address="",
            result={},
            added_at=0.0,
            latency_ms=0.0,
        )
        async with self._slots:
            began = time.perf_counter()
            try:
                result = await self._run_list("ADD", sandbox)
            except CniError as error:
                self._record_failure("ADD", sandbox, error, began)
                await self._undo(sandbox)
                raise
            latency_ms = (time.perf_counter() - began) * 1000
        added = Sandbox(
            node=sandbox.node,
            pod=pod,
            namespace=namespace,
            uid=sandbox.uid,
            container_id=sandbox.container_id,
            netns=netns,
            address=str(result["ips"][0]["address"]).partition("/")[0],
            result=result,
            added_at=time.time(),
            latency_ms=latency_ms,
        )
        self._cache_path(sandbox).write_text(json.dumps(self._cached(added)))
        self.ledger.record_add(added)
        return added

    async def add_many(
        self, pods: Sequence[str], *, namespace: str = "default", gap_s: float = 0.0
    ) -> list[Sandbox | CniError]:
        """Start pods at once, or each ``gap_s`` after the one before; return, in order, what became of each."""

        async def one(pod: str) -> Sandbox | CniError:
            try:
                return await self.add(pod, namespace=namespace)
            except CniError as error:
                return error

        async with asyncio.TaskGroup() as group:
            tasks = []
            for pod in pods:
                tasks.append(group.create_task(one(pod), name=f"add {pod}"))
                if gap_s > 0:
                    await asyncio.sleep(gap_s)
        return [task.result() for task in tasks]

    async def delete(self, sandbox: Sandbox) -> float:
        """Stop a pod: DEL it and remove its sandbox; return the DEL's latency in milliseconds.

        Raises:
            CniError: the DEL failed. The sandbox is still there, and the call may be repeated.
        """
        async with self._slots:
            began, asked_at = time.perf_counter(), time.time()
            try:
                await self._run_list("DEL", sandbox)
            except CniError as error:
                self._record_failure("DEL", sandbox, error, began)
                raise
            latency_ms = (time.perf_counter() - began) * 1000
        self._cache_path(sandbox).unlink(missing_ok=True)
        self.ledger.record_del(sandbox, asked_at)
        await self._fabric.remove(sandbox.netns)
        return latency_ms

    async def delete_many(self, sandboxes: Sequence[Sandbox]) -> list[float | CniError]:
        """Stop pods at once; return, in their order, what became of each."""

        async def one(sandbox: Sandbox) -> float | CniError:
            try:
                return await self.delete(sandbox)
            except CniError as error:
                return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(sandbox), name=f"delete {sandbox.pod}") for sandbox in sandboxes]
        return [task.result() for task in tasks]

    async def check(self, sandbox: Sandbox) -> None:
        """CHECK a pod.

        Raises:
            CniError: it is not wired as it should be.
        """
        async with self._slots:
            await self._run_list("CHECK", sandbox)

    async def call(self, verb: str, sandbox: Sandbox, **more: Any) -> dict[str, Any]:
        """Run the plugins for one verb without recording anything: for tests of odd cases.

        Args:
            verb: ``ADD``, ``DEL``, ``CHECK``, ``STATUS`` or ``GC``.
            sandbox: Whose ids go into the environment.
            more: Further keys of the configuration.

        Raises:
            CniError: as the executable said.
        """
        return await self._run_list(verb, sandbox, more)

    # -- libcni's part ----------------------------------------------------------------------------

    def conflist(self) -> dict[str, Any]:
        """The network configuration list that the node's directory holds.

        Raises:
            CniError: there is none (yet), as a runtime says it: the node is not ready.
        """
        found = sorted(self.node.places.conf.glob("*.conflist"))
        if not found:
            raise CniError(0, f"no network configuration in {self.node.places.conf}")
        loaded: dict[str, Any] = json.loads(found[0].read_text())
        return loaded

    async def _run_list(
        self, verb: str, sandbox: Sandbox, more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        conflist = self.conflist()
        offered = conflist.get("cniVersions") or [conflist.get("cniVersion", "0.3.1")]
        version = max(known for known in CNI_VERSIONS if known in offered)
        plugins: list[dict[str, Any]] = conflist["plugins"]
        result: dict[str, Any] = sandbox.result if verb in ("DEL", "CHECK") else {}
        for plugin in reversed(plugins) if verb == "DEL" else plugins:
            config = {**plugin, "name": conflist["name"], "cniVersion": version, **(more or {})}
            config.pop("capabilities", None)
            # The one thing of the lab's: nodes share the kernel's boot id, and each has a file of its own.
            config["bootIdPath"] = str(self.node.places.boot_id)
            if result:
                config["prevResult"] = result
            said = await self._run_plugin(verb, str(plugin["type"]), sandbox, config)
            if verb == "ADD":
                result = said
        return result

    async def _run_plugin(
        self, verb: str, kind: str, sandbox: Sandbox, config: dict[str, Any]
    ) -> dict[str, Any]:
        executable = self.node.places.bin / kind
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": sandbox.container_id,
            "CNI_NETNS": sandbox.netns.path,
            "CNI_IFNAME": IFNAME,
            "CNI_ARGS": _cni_args(sandbox),
            "CNI_PATH": str(self.node.places.bin),
        }
        try:
            ended = await self._fabric.exec_in(
                self.node.namespace,
                [str(executable)],
                timeout_s=ADD_TIMEOUT_S,
                stdin=json.dumps(config).encode(),
                env=environment,
            )
        except (TimeoutError, FileNotFoundError) as error:
            raise CniError(0, str(error)) from error
        if ended.returncode == 0:
            return json.loads(ended.stdout) if ended.stdout.strip() else {}
        raise _error_of(ended.returncode, ended.stdout, ended.stderr)

    def _cache_path(self, sandbox: Sandbox) -> Path:
        network = self.conflist()["name"]
        return self.node.places.results / f"{network}-{sandbox.container_id}-{IFNAME}"

    def _cached(self, sandbox: Sandbox) -> dict[str, Any]:
        conflist = self.conflist()
        return {
            "kind": "cniCacheV1",
            "containerId": sandbox.container_id,
            "config": base64.b64encode(json.dumps(conflist).encode()).decode(),
            "ifName": IFNAME,
            "networkName": conflist["name"],
            "netns": sandbox.netns.path,
            "cniArgs": [pair.split("=", 1) for pair in _cni_args(sandbox).split(";")],
            "result": sandbox.result,
        }

    # -- the runtime's part -----------------------------------------------------------------------

    async def _make_netns(self, pod: str) -> Namespace:
        name = wanted = f"{self.node.name}-{pod}"[:40]
        netns: Namespace | None = None
        while netns is None:
            try:
                netns = await self._fabric.add_namespace(name)
            except FileExistsError:  # a pod of that name is still there, as when one is replaced
                name = f"{wanted}-{next(self._numbers)}"
        await self._fabric.run_in_thread(netns, set_loopback_up)
        return netns

    async def _undo(self, sandbox: Sandbox) -> None:
        try:
            await self._run_list("DEL", sandbox)
        except CniError as error:
            self._record_failure("DEL", sandbox, error, time.perf_counter())
        await self._fabric.remove(sandbox.netns)

    def _record_failure(self, verb: str, sandbox: Sandbox, error: CniError, began: float) -> None:
        self.ledger.record_failure(
            Failure(
                node=self.node.name,
                verb=verb,
                pod=sandbox.pod,
                message=str(error),
                latency_ms=(time.perf_counter() - began) * 1000,
            )
        )


def _cni_args(sandbox: Sandbox) -> str:
    return (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE={sandbox.namespace};K8S_POD_NAME={sandbox.pod};"
        f"K8S_POD_INFRA_CONTAINER_ID={sandbox.container_id};K8S_POD_UID={sandbox.uid}"
    )


def _error_of(status: int, stdout: bytes, stderr: bytes) -> CniError:
    try:
        said = json.loads(stdout)
        return CniError(
            int(said["code"]), f"{said['msg']} ({said.get('details', '')})", str(said.get("reason", ""))
        )
    except (ValueError, KeyError, TypeError):
        return CniError(0, f"exit status {status}: {(stdout + stderr).decode(errors='replace')[:400]}")
