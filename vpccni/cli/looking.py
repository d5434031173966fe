"""Looking at a node that somebody else serves: every source is read, and nothing is changed.

Used by ``vpccni take-over --check``. An agent reads the same sources by itself (:mod:`vpccni.loops.recover`). This
asks IMDS, the BPF filesystem and the API server in any case, waits for each of them, and needs no log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from vpccni.adapters.checkpoint import CheckpointFiles
from vpccni.adapters.clock import SystemClock
from vpccni.adapters.imds import ImdsV2
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.adapters.kubernetes import open_node
from vpccni.adapters.predecessor import VpcCni
from vpccni.adapters.runtime import LibcniCache
from vpccni.errors import Refused, VpccniError
from vpccni.evidence import (
    ABSENT,
    API_SERVER,
    CHECKPOINT,
    KERNEL,
    READ,
    RUNTIME_CACHE,
    CacheEvidence,
    CheckpointFile,
    Evidence,
    HostVeth,
    KernelEvidence,
    PodSeen,
    Verdict,
)
from vpccni.loops.imds_enis import imds_enis
from vpccni.model import EniFacts
from vpccni.projections.state import State
from vpccni.recovery import judge
from vpccni.settings import Settings
from vpccni.takeover import BRANCH_VETH_PREFIX, Findings, check

IMDS: Final = "imds"
POLICIES: Final = "policy_endpoints"
PINS: Final = "bpf"
PATIENCE_S: Final = 5.0
"""For the kernel, IMDS and the BPF filesystem, each."""
API_PATIENCE_S: Final = 3.0
"""For a question to the API server, which only adds names and policies."""
_MOUNTS: Final = Path("/proc/self/mountinfo")

T = TypeVar("T")


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where things lie on the node.

    Attributes:
        run_dir: Where the original has its socket.
        checkpoint: Its checkpoint file, that of network card 0.
        results: The runtime's cached results.
        bpf: Where the BPF filesystem is mounted.
        boot_id: File with the id of this boot.
    """

    run_dir: Path
    checkpoint: Path
    results: Path
    bpf: Path
    boot_id: Path


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a look came to, and how much each source told."""

    findings: Findings
    counts: dict[str, str]


async def look(settings: Settings, places: Places, settings_refused: Refused | None = None) -> Look:
    """Read every source and come to an answer. What cannot be read is told of in the findings."""
    cache = await LibcniCache(places.results).read()
    files = await CheckpointFiles(places.checkpoint).read()
    paths = sorted({one.netns for one in cache.entries if one.netns})
    predecessor = VpcCni(places.run_dir, places.bpf / "globals" / "aws" / "programs")
    async with asyncio.TaskGroup() as group:
        surveying = group.create_task(_told(_survey(settings.veth_prefix, paths)), name="kernel")
        asking_imds = group.create_task(_told(_enis(settings.imds_endpoint)), name="IMDS")
        asking_cluster = group.create_task(_ask_cluster(settings), name="API server")
        pinning = group.create_task(_told(predecessor.enforced_policies()), name="pins")
        living = group.create_task(predecessor.living(), name="predecessor")
    seen, kernel_status = surveying.result()
    kernel, branch_veths = seen if seen is not None else (None, ())
    enis, imds_status = asking_imds.result()
    (pods, pods_status), (policies, policies_status) = asking_cluster.result()
    pins, pins_status = pinning.result()
    if not pins and pins_status == READ and not _is_bpf_mounted(places.bpf):
        pins, pins_status = None, ABSENT
    sources = {KERNEL: kernel_status, RUNTIME_CACHE: cache.status}
    sources |= {source_of(file): file.status for file in files}
    sources |= {IMDS: imds_status, API_SERVER: pods_status, POLICIES: policies_status, PINS: pins_status}
    evidence = Evidence(kernel=kernel, cache=cache, checkpoints=files, pods=pods, sources=sources)
    now = SystemClock(places.boot_id).now()
    findings = check(
        evidence=evidence,
        verdict=judge(State(), evidence, now, settings.veth_prefix) if kernel is not None else Verdict(),
        pins=pins,
        policy_endpoints=policies,
        living=living.result(),
        now=now,
        enis=enis,
        branch_veths=branch_veths,
        settings_refused=settings_refused,
    )
    return Look(findings=findings, counts=_counts(kernel, cache, files, pods, enis, pins, policies))


async def _told(question: Awaitable[T], patience_s: float = PATIENCE_S) -> tuple[T | None, str]:
    """The answer and ``read``, or ``None`` and why there is none."""
    try:
        async with asyncio.timeout(patience_s):
            return await question, READ
    except TimeoutError:
        return None, f"unreadable: no answer in {patience_s:g} s"
    except VpccniError as error:
        return None, f"unreadable: {error.detail or error.reason}"


async def _survey(
    veth_prefix: str, netns_paths: Sequence[str]
) -> tuple[KernelEvidence, tuple[HostVeth, ...]]:
    """The search of the kernel, and the host veths of pods with a branch ENI, whose names begin otherwise."""
    kernel = await NetlinkKernel.open()
    try:
        found = await kernel.survey(veth_prefix, netns_paths)
        return found, (await kernel.survey(BRANCH_VETH_PREFIX, ())).veths
    finally:
        await kernel.close()


async def _enis(endpoint: str) -> tuple[EniFacts, ...]:
    imds = ImdsV2(endpoint)
    try:
        return await imds_enis(imds)
    finally:
        await imds.close()


async def _ask_cluster(
    settings: Settings,
) -> tuple[tuple[tuple[PodSeen, ...] | None, str], tuple[tuple[str, ...] | None, str]]:
    """The pods of this node and the cluster's policies; both absent when no API server is known."""
    node = await open_node(settings.node_name, endpoint=settings.cluster_endpoint, environ=os.environ)
    if node is None:
        return (None, ABSENT), (None, ABSENT)
    try:
        pods = await _told(node.pods(), API_PATIENCE_S)
        return pods, await _told(node.policy_endpoints(), API_PATIENCE_S)
    finally:
        await node.close()


def _is_bpf_mounted(place: Path) -> bool:
    """Whether a BPF filesystem is mounted there. A container without the mount sees an empty directory."""
    for line in _MOUNTS.read_text().splitlines():
        mounted, _, source = line.partition(" - ")
        fields, kind = mounted.split(), source.split()[:1]
        if kind == ["bpf"] and len(fields) > 4 and place.is_relative_to(fields[4]):
            return True
    return False


def _counts(
    kernel: KernelEvidence | None,
    cache: CacheEvidence,
    files: Sequence[CheckpointFile],
    pods: tuple[PodSeen, ...] | None,
    enis: tuple[EniFacts, ...] | None,
    pins: tuple[str, ...] | None,
    policies: tuple[str, ...] | None,
) -> dict[str, str]:
    """How much each source told, in words, for those that were read."""
    told = {
        RUNTIME_CACHE: counted(len(cache.entries), "result"),
        **{source_of(file): counted(len(file.rows), "row") for file in files},
    }
    for name, found, what in (
        (KERNEL, kernel.veths if kernel is not None else None, "host interface"),
        (API_SERVER, pods, "pod"),
        (IMDS, enis, "ENI"),
        (PINS, pins, "program of network policies"),
        (POLICIES, policies, "network policy"),
    ):
        if found is not None:
            told[name] = counted(len(found), what)
    return told


def source_of(file: CheckpointFile) -> str:
    """The name of a checkpoint file as a source."""
    return CHECKPOINT if not file.card else f"{CHECKPOINT}_nic_{file.card}"


def counted(number: int, what: str) -> str:
    """A number and what is counted, in the plural where that is right."""
    if number == 1:
        return f"1 {what}"
    noun, of, rest = what.partition(" of ")
    return f"{number} {noun.removesuffix('y')}{'ies' if noun.endswith('y') else 's'}{of}{rest}"
