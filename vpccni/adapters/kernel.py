"""The node's network stack through rtnetlink and nft: the real :class:`vpccni.ports.Kernel`.

Theory of operation. A netlink send runs the kernel's handler on the calling thread, under one lock for the
whole machine, so nothing is sent from the event loop. Two sets of threads serve: *wirers*, a few, do what a
CNI call waits for (wire, unwire, probe); the *caretaker*, one, does what may be slow (dumps, surveys,
deleting veths, ENIs, nft). Each thread lives in the node's namespace, keeps one socket open there, and visits
a pod's namespace only to open a socket in it.

An operation that has begun is not abandoned: when its caller is cancelled, it is waited for (a millisecond
or so), a sandbox that it has wired is unwired again, and only then the cancellation goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from typing import Final, Self, TypeVar

from vpccni.adapters import kernel_apply, kernel_links, kernel_node, kernel_paths, kernel_survey, nftables
from vpccni.adapters.kernel_apply import Outcome
from vpccni.adapters.kernel_firewall import OriginalFirewall
from vpccni.adapters.kernel_netns import OWN_NETNS, setns
from vpccni.adapters.kernel_survey import Places
from vpccni.adapters.kernel_wiring import Fault, SandboxWirer
from vpccni.adapters.netlink import NetlinkSocket
from vpccni.datapath.objects import (
    Applied,
    Difference,
    LinkChange,
    LinkSeen,
    Observed,
    PathChange,
    PodWiring,
    SandboxSeen,
)
from vpccni.errors import PermanentError, Reason, VpccniError
from vpccni.evidence import KernelEvidence

_WIRERS: Final = 3
"""The kernel's lock serialises most of the work: 110 sandboxes at once take 107 ms with one thread, 103 with
two, 131 with four. Three, so that one that waits for the kernel does not stop the others."""

_VETHS_AT_ONCE: Final = 32
"""How many veths go in one transaction: a bound for how long the kernel's lock is held."""

_PLACES: Final = Places()

T = TypeVar("T")
Work = Callable[[NetlinkSocket, Difference, Outcome], None]


class NetlinkKernel:
    """See :class:`vpccni.ports.Kernel` for the contract. Made by :meth:`open`."""

    def __init__(self, home: int, fault: Fault | None, wirers: int, places: Places) -> None:
        self._home = home
        self._fault = fault
        self._places = places
        self._firewall = OriginalFirewall()
        self._own = threading.local()
        self._sockets: list[NetlinkSocket] = []
        self._ports: list[int] = []
        self._path_listeners: list[socket.socket] = []
        self._sockets_lock = threading.Lock()
        self._is_closed = False
        self._wirers = ThreadPoolExecutor(wirers, "kernel-wirer", self._settle)
        self._caretaker = ThreadPoolExecutor(1, "kernel-caretaker", self._settle)

    @classmethod
    async def open(
        cls,
        netns: str | None = None,
        *,
        fault: Fault | None = None,
        wirers: int = _WIRERS,
        places: Places = _PLACES,
    ) -> Self:
        """Open the network stack of the node.

        Args:
            netns: Path of the node's network namespace; ``None`` for that of the calling thread (which is
                where an agent lives).
            fault: Called with the name of each wiring step before it is done (tests).
            wirers: How many sandboxes are worked on at once.
            places: Where a survey looks for namespaces.

        Raises:
            PermanentError: ``kernel_refused``: the namespace cannot be opened or entered.
        """
        try:
            home = os.open(netns or OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise kernel_node.as_error("open_netns", error) from error
        kernel = cls(home, fault, wirers, places)
        try:
            await kernel._finish(kernel._caretaker.submit(lambda: None))
        except BrokenExecutor as error:
            await kernel.close()
            detail = f"cannot enter the node's namespace {netns or OWN_NETNS}; CAP_SYS_ADMIN is needed"
            raise PermanentError(Reason.KERNEL_REFUSED, detail) from error
        return kernel

    def _settle(self) -> None:
        """First thing on each thread: go to the node's namespace and open the thread's socket there."""
        setns(self._home)
        self._own.host = NetlinkSocket()
        with self._sockets_lock:
            self._sockets.append(self._own.host)
            self._ports.append(self._own.host.take_port())
            for listener in self._path_listeners:
                kernel_paths.leave_out_own(listener, self._ports)

    @property
    def _host(self) -> NetlinkSocket:
        host: NetlinkSocket = self._own.host
        return host

    async def observe(self) -> Observed:
        """Read everything that concerns us: the only dump there is, off the loop.

        Raises:
            PermanentError: ``kernel_refused``.
        """
        return await self._finish(self._caretaker.submit(self._observe))

    def _observe(self) -> Observed:
        try:
            return kernel_node.observe(self._host, nftables.read(), self._firewall.read())
        except OSError as error:
            raise kernel_node.as_error("observe", error) from error

    async def survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        """Look for living sandboxes; see the port. About 0.1 s for 228 pods, off the loop.

        Raises:
            PermanentError: ``kernel_refused``.
        """
        return await self._finish(self._caretaker.submit(self._survey, veth_prefix, tuple(netns_paths)))

    def _survey(self, veth_prefix: str, netns_paths: Sequence[str]) -> KernelEvidence:
        try:
            return kernel_survey.survey(self._host, self._home, veth_prefix, netns_paths, self._places)
        except OSError as error:
            raise kernel_node.as_error("survey", error) from error

    async def apply(self, difference: Difference) -> Applied:
        """Bring the kernel nearer to what is desired; see the port.

        The parts are done in the order of the fields of :class:`Difference`. One that fails does not keep
        the others from being done, but for those of amazon-vpc-cni-k8s, which serve as long as ours do not; the
        first error is raised at the end.

        Raises:
            PermanentError: ``kernel_refused``, ``netns_gone``, ``interface_exists``.
        """
        outcome = Outcome(difference)
        if kernel_apply.has_node_part(difference):
            await self._caretake(kernel_apply.apply_node, difference, outcome)
        if difference.wire:
            await self._wire_all(difference.wire, outcome)
        if difference.nft is not None:
            load = functools.partial(nftables.load, difference.nft)
            await self._finish(self._caretaker.submit(outcome.attempt, "nft", load))
        if difference.original_add:
            await self._caretake(kernel_apply.add_paths_of_original, difference, outcome)
        if difference.routes_delete or difference.rules_delete or difference.purge:
            job = self._wirers.submit(self._on_thread, kernel_apply.apply_deletions, difference, outcome)
            await self._finish(job)
        if difference.veths_delete:
            await self._caretake(kernel_apply.remove_veths, difference, outcome)
        if not outcome.errors and (
            difference.foreign_rules or difference.foreign_routes or difference.firewall
        ):
            await self._caretake(self._remove_foreign, difference, outcome)
        if difference.probe:
            await self._finish(self._wirers.submit(self._probe_all, difference.probe, outcome))
        return outcome.applied()

    async def _caretake(self, work: Work, difference: Difference, outcome: Outcome) -> None:
        await self._finish(self._caretaker.submit(self._on_thread, work, difference, outcome))

    # --- on the threads -------------------------------------------------------------------------------

    def _on_thread(self, work: Work, difference: Difference, outcome: Outcome) -> None:
        work(self._host, difference, outcome)

    def _remove_foreign(self, host: NetlinkSocket, difference: Difference, outcome: Outcome) -> None:
        kernel_apply.remove_foreign(host, self._firewall, difference, outcome)

    def _probe_all(self, pods: tuple[PodWiring, ...], outcome: Outcome) -> None:
        kernel_apply.probe_all(self._host, self._home, pods, outcome)

    def _wire(self, pod: PodWiring) -> tuple[SandboxSeen, SandboxWirer]:
        wirer = SandboxWirer(pod, self._host, self._home, self._fault)
        return wirer.wire(), wirer

    def _take_back(self, wirer: SandboxWirer) -> None:
        wirer.undo_with(self._host)

    # --- from the loop --------------------------------------------------------------------------------

    async def _wire_all(self, pods: tuple[PodWiring, ...], outcome: Outcome) -> None:
        jobs = [(pod, self._wirers.submit(self._wire, pod)) for pod in pods]
        wired: list[SandboxWirer] = []
        is_cancelled = False
        for pod, job in jobs:
            try:
                seen, wirer = await self._finish(job)
                wired.append(wirer)
                outcome.sandboxes[pod.lease] = seen
                outcome.removed += wirer.removed
            except VpccniError as error:
                outcome.errors.append(error)
            except asyncio.CancelledError:
                is_cancelled = True
                for _, other in jobs:
                    other.cancel()
                if not job.cancelled() and job.exception() is None:
                    wired.append(job.result()[1])
        if is_cancelled:
            for wirer in wired:
                await _settled(self._wirers.submit(self._take_back, wirer))
            raise asyncio.CancelledError

    async def _finish(self, job: Future[T]) -> T:
        """The result of a job. If we are cancelled: a job that has not begun is dropped, else waited for."""
        try:
            return await asyncio.shield(asyncio.wrap_future(job))
        except asyncio.CancelledError:
            if not job.cancel():
                await _settled(job)
            raise

    async def link_changes(self) -> AsyncIterator[LinkChange]:
        """Links that appear, change or vanish; those that are there come first, as ``added``."""
        listener = await self._finish(self._caretaker.submit(kernel_links.subscribe))
        async with contextlib.aclosing(kernel_links.changes(listener, self._links)) as told:
            async for change in told:
                yield change

    async def path_changes(self) -> AsyncIterator[PathChange]:
        """Rules, and host routes of main and of the pod table, that others make and remove; see the port."""
        listener = await self._finish(self._caretaker.submit(self._subscribe_to_paths))
        try:
            async with contextlib.aclosing(kernel_paths.changes(listener)) as told:
                async for change in told:
                    yield change
        finally:
            with self._sockets_lock:
                self._path_listeners.remove(listener)

    def _subscribe_to_paths(self) -> socket.socket:
        listener = kernel_paths.subscribe()
        with self._sockets_lock:
            self._path_listeners.append(listener)
            kernel_paths.leave_out_own(listener, self._ports)
        return listener

    async def _links(self) -> list[LinkSeen]:
        return await self._finish(self._caretaker.submit(lambda: kernel_node.links(self._host)))

    async def close(self) -> None:
        """Wait for what is under way, end the threads, close the sockets. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for pool in (self._wirers, self._caretaker):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for pool in (self._wirers, self._caretaker):
            pool.shutdown(wait=True)
        for each in self._sockets:
            each.close()
        os.close(self._home)


async def _settled(job: Future[T]) -> None:
    """Wait until a job has ended, however it ends and however often we are cancelled meanwhile.

    Bounded: every netlink answer and every nft run has its own time limit.
    """
    while not job.done():
        try:
            await asyncio.shield(asyncio.wrap_future(job))
        except asyncio.CancelledError:
            continue
        except (VpccniError, OSError):
            break
