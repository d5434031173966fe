"""What an ADD is made of: a call of the executable, a commit, the wiring."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from bench.machine import fdatasync_ms
from bench.report import Result, compared
from bench.stage import ROOT, Bench, on_node, raise_failures, stage
from vpccni.adapters.clock import SystemClock
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.datapath.difference import unwire, wire
from vpccni.datapath.objects import DatapathSettings, EniWiring, LeaseWiring
from vpccni.events.codec import Record
from vpccni.events.sandbox import AddRequested, AddressAssigned
from vpccni.lab.fabric import namespaces
from vpccni.model import (
    Address,
    Binding,
    Cidr,
    EniId,
    LeaseId,
    Mac,
    PodRef,
    SandboxKey,
    Seq,
)

_ENI = EniId("eni-0a1b2c3d4e5f60718")


async def pieces(quick: bool) -> list[Result]:
    """Each by itself: their sum is about one ADD."""
    count = 50 if quick else 400
    async with stage("pieces") as lab, on_node(lab, "pieces", "m5.large", {}) as bench:
        results = [await _executable(bench, count)]
        results.append(await _commit(bench, count))
        results.append(await _wiring(bench, count // 4))
    return results


async def _executable(bench: Bench, count: int) -> Result:
    answer = await bench.ask("status", side="ours", count=count)
    raise_failures("STATUS", [answer])
    return compared("piece_exec_connect_request", answer["ms"], None, "ms", against="a STATUS call")


async def _commit(bench: Bench, count: int) -> Result:
    """Two events, as an ADD's, in one durable append; against what the disk takes for a sync."""
    clock = SystemClock(bench.node.places.boot_id)
    with tempfile.TemporaryDirectory(dir=ROOT / "build" / "bench") as directory:
        synced = fdatasync_ms(Path(directory), count)
        log = SqliteLog(Path(directory) / "events.sqlite", volatile_ok=True)
        await log.open()
        taken = []
        try:
            for number in range(count):
                records = _records(number * 2, clock)
                began = time.perf_counter_ns()
                await log.append(records)
                taken.append((time.perf_counter_ns() - began) / 1e6)
                await asyncio.sleep(0.001)
        finally:
            await log.close()
    return compared("piece_durable_append", taken, synced, "ms", against="write + fdatasync")


def _records(head: int, clock: SystemClock) -> tuple[Record, ...]:
    key = SandboxKey("aws-cni", uuid.uuid4().hex * 2, "eth0")
    pod = PodRef("bench", "pod", str(uuid.uuid4()))
    stamp = clock.now()
    binding = Binding(family=4, address=Address("10.0.3.7"), eni=_ENI, card=0, device=0, table=0)
    assigned = AddressAssigned(key=key, pod=pod, bindings=(binding,), netns="/run/netns/pod", netns_inode=0)
    return (
        Record(Seq(head + 1), stamp, AddRequested(key=key, pod=pod), 0),
        Record(Seq(head + 2), stamp, assigned, head + 1),
    )


async def _wiring(bench: Bench, count: int) -> Result:
    """One sandbox through the kernel port, on an ENI of its own table, in a namespace with nothing else."""
    home = namespaces.create(f"wiring-{uuid.uuid4().hex[:8]}")
    settings = DatapathSettings()
    eni = EniWiring(
        eni=_ENI,
        mac=Mac("0a:00:00:00:00:01"),
        primary=Address("10.0.3.6"),
        subnet_cidr=Cidr("10.0.0.0/19"),
        table=2,
        card=0,
        device=1,
        is_primary=False,
    )
    kernel = await NetlinkKernel.open(home.path)
    taken = []
    try:
        for number in range(count):
            netns = namespaces.create(f"wired-{uuid.uuid4().hex[:8]}")
            lease = LeaseWiring(
                lease=LeaseId(number + 1),
                key=SandboxKey("aws-cni", uuid.uuid4().hex * 2, "eth0"),
                pod=PodRef("bench", f"pod-{number}", ""),
                netns=netns.path,
                bindings=(
                    Binding(
                        family=4,
                        address=Address(f"10.0.4.{number % 250 + 1}"),
                        eni=_ENI,
                        card=0,
                        device=1,
                        table=2,
                    ),
                ),
            )
            began = time.perf_counter_ns()
            await kernel.apply(wire(lease, [eni], settings))
            taken.append((time.perf_counter_ns() - began) / 1e6)
            await kernel.apply(unwire(lease))
            await asyncio.to_thread(namespaces.remove, netns)
            await asyncio.sleep(0.02)  # the namespace's end holds the kernel's lock for a while
    finally:
        await kernel.close()
        namespaces.remove(home)
    shutil.rmtree(f"/run/netns/{home.name}", ignore_errors=True)
    return compared("piece_kernel_wiring", taken, None, "ms", against="")
