"""Sources that are missing, stale, torn, lying or of before the boot: what a search of the node may meet.

Each fault is one source gone wrong, so that no two lie about the same sandbox at once (see ``docs/reliability.md``,
*What is not promised*). What was put into a file stays there until its owner writes it anew; what keeps a source
from being read ends after a while.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from vpccni.checkpoint import CRI_NETWORK, UNKNOWN_IFNAME, parse_checkpoint, render_checkpoint
from vpccni.evidence import READ, CachedResult, Row
from vpccni.lab.sim.sandbox import NAMESPACE, NETWORK
from vpccni.model import Address, PodRef, SandboxKey

if TYPE_CHECKING:
    from vpccni.lab.sim.node import SimNode

_OLD_NS: Final = 3600 * 10**9
"""Older than any boot of the simulation, and than all that happened in it."""

HIDES_LIVING: Final = frozenset({"cache_emptied", "cache_stale", "cache_absent", "checkpoint_foreign"})
"""What makes a source say that a living sandbox is gone: not in worlds in which the kernel says so."""


def mislead(node: SimNode, how: str, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """Let one source go wrong now."""
    node.trace(f"{node.name} {how}")
    node.misled_at = node.loop.time()
    _WAYS[how](node, rng, nodes)


def set_right(node: SimNode) -> None:
    """Every source can be read again, and tells what is there."""
    node.cache.is_readable, node.cache.is_absent, node.cache.stale = True, False, None
    node.cache.torn.clear()
    node.checkpoints.is_readable = node.checkpoints.is_writable = True
    node.checkpoints.stale = None
    node.kernel.hidden.clear()
    node.kernel.sealed.clear()
    node.kernel.survey_refusal = ""
    node.kube.is_down, node.kube.stale, node.kube.answer_s = False, None, 0.0


def drop_made_up(node: SimNode) -> None:
    """The runtime forgets the entries of sandboxes that it never had."""
    for key in [key for key in node.cache.known if key[1].startswith("nobody-")]:
        node.cache.drop(SandboxKey(*key), node.clock.now().wall_ns)


# -- the runtime's cache ----------------------------------------------------------------------------


def _cache_emptied(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    for key in sorted(node.cache.known):
        if rng.random() < 0.5:
            node.cache.drop(SandboxKey(*key), node.clock.now().wall_ns)


def _cache_stale(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.cache.stale = frozenset(rng.sample(sorted(node.cache.known), len(node.cache.known) // 2))


def _cache_absent(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.cache.is_absent = True


def _cache_torn(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    known = sorted(node.cache.known)
    node.cache.torn.update(rng.sample(known, min(len(known), 5)))


def _cache_dead(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """An entry of a sandbox that ended without a DEL, with an address that others may have had since."""
    _put(node, rng, _some_address(node, rng), node.clock.now().wall_ns - rng.randrange(1, 10**12))


def _cache_of_before(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    now = node.clock.now()
    _put(node, rng, _some_address(node, rng), now.wall_ns - now.boottime_ns - _OLD_NS)


def _cache_lying(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """An entry of another sandbox that names an address which a living one has."""
    entries = [one for one in node.cache.results.values() if one.addresses]
    if entries:
        address = rng.choice(sorted(entries, key=lambda one: one.file)).addresses[0]
        _put(node, rng, address, node.clock.now().wall_ns)


def _put(node: SimNode, rng: random.Random, address: Address, modified_ns: int) -> None:
    number = rng.randrange(10**6)
    pod = PodRef(NAMESPACE, f"{node.name}-nobody-{number}", f"uid-nobody-{number}")
    key = SandboxKey(NETWORK, f"nobody-{number}", "eth0")
    node.cache.put(
        CachedResult(
            file=f"{NETWORK}-{key.container_id}-eth0",
            key=key,
            pod=pod,
            netns=f"/run/netns/nobody-{number}",
            addresses=(address,),
            modified_ns=max(1, modified_ns),
            plugin_types=("aws-cni",),
        )
    )


def _some_address(node: SimNode, rng: random.Random) -> Address:
    """One that an ENI of the node has."""
    enis = node.instance.enis.values()
    return Address(rng.choice(sorted(each for eni in enis for each in eni.addresses[1:]) or ["10.0.0.250"]))


# -- the checkpoint file ----------------------------------------------------------------------------


def _rows(node: SimNode) -> list[Row]:
    content, modified_ns = node.checkpoints.files.get(0, (b"", 0))
    found = parse_checkpoint(content, path="ipam.json", modified_ns=modified_ns)
    return list(found.rows) if found.status == READ else []


def _checkpoint_missing(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.checkpoints.files.pop(0, None)


def _checkpoint_torn(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    content, modified_ns = node.checkpoints.files.get(0, (b"{}", 0))
    node.checkpoints.files[0] = (content[: rng.randrange(len(content))], modified_ns)


def _checkpoint_half(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """Rows that lack what makes them rows, between good ones."""
    content, modified_ns = node.checkpoints.files.get(0, (b"", 0))
    try:
        document = json.loads(content)
    except ValueError:
        return
    for row in document.get("allocations", ()):
        if rng.random() < 0.2:
            row.pop(rng.choice(sorted(row)), None)
    node.checkpoints.files[0] = (json.dumps(document).encode(), modified_ns)


def _checkpoint_foreign(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """Another node's file, as somebody who restores a backup may put it here."""
    others = [other for other in nodes if other is not node]
    if others:
        node.checkpoints.put(render_checkpoint(_rows(rng.choice(others)), None))


def _checkpoint_dead(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """Rows of pods that ended while nobody served."""
    _add_row(node, rng, SandboxKey(NETWORK, f"nobody-{rng.randrange(10**6)}", "eth0"), is_of_before=False)


def _checkpoint_of_before(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    _add_row(node, rng, SandboxKey(NETWORK, f"nobody-{rng.randrange(10**6)}", "eth0"), is_of_before=True)


def _checkpoint_made_up(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    """A row that the original once took from the container runtime: only the container id is real."""
    _add_row(
        node,
        rng,
        SandboxKey(CRI_NETWORK, f"nobody-{rng.randrange(10**6)}", UNKNOWN_IFNAME),
        is_of_before=False,
    )


def _add_row(node: SimNode, rng: random.Random, key: SandboxKey, *, is_of_before: bool) -> None:
    content, modified_ns = node.checkpoints.files.get(0, (b"", node.clock.now().wall_ns))
    rows, address = _rows(node), _some_address(node, rng)
    if any(row.address == address for row in rows):
        return
    now = node.clock.now()
    boot_ns = now.wall_ns - now.boottime_ns
    pod = PodRef(NAMESPACE, f"{node.name}-nobody-{rng.randrange(10**6)}")
    allocated_ns = (
        boot_ns - _OLD_NS if is_of_before else now.wall_ns - rng.randrange(1, max(2, now.boottime_ns))
    )
    rows.append(Row(key=key, address=address, pod=pod, allocated_ns=allocated_ns))
    # Its mark, if it has one, stays: whoever adds a row by hand leaves that alone.
    plain = msgspec.json.decode(render_checkpoint(rows, None))
    try:
        mark = json.loads(content).get("vpccni")
    except ValueError:
        mark = None
    if mark is not None:
        plain["vpccni"] = mark
    node.checkpoints.files[0] = (json.dumps(plain).encode() + b"\n", modified_ns)


def _checkpoint_unreadable(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.checkpoints.is_readable = False


def _checkpoint_unwritable(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.checkpoints.is_writable = False


# -- the kernel and the API server ------------------------------------------------------------------


def _netns_sealed(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.kernel.sealed.update(path for path in sorted(node.kernel.state.netns) if rng.random() < 0.4)


def _netns_hidden(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.kernel.hidden.update(path for path in sorted(node.kernel.state.netns) if rng.random() < 0.4)


def _survey_refused(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.kernel.survey_refusal = "Operation not permitted"


def _api_down(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.kube.is_down = True


def _api_slow(node: SimNode, rng: random.Random, nodes: Sequence[SimNode]) -> None:
    node.kube.answer_s = rng.choice((0.2, 1.0, 30.0))


_WAYS: Final[dict[str, Callable[[SimNode, random.Random, Sequence[SimNode]], None]]] = {
    "cache_emptied": _cache_emptied,
    "cache_stale": _cache_stale,
    "cache_absent": _cache_absent,
    "cache_torn": _cache_torn,
    "cache_dead": _cache_dead,
    "cache_of_before": _cache_of_before,
    "cache_lying": _cache_lying,
    "checkpoint_missing": _checkpoint_missing,
    "checkpoint_torn": _checkpoint_torn,
    "checkpoint_half": _checkpoint_half,
    "checkpoint_foreign": _checkpoint_foreign,
    "checkpoint_dead": _checkpoint_dead,
    "checkpoint_of_before": _checkpoint_of_before,
    "checkpoint_made_up": _checkpoint_made_up,
    "checkpoint_unreadable": _checkpoint_unreadable,
    "checkpoint_unwritable": _checkpoint_unwritable,
    "netns_sealed": _netns_sealed,
    "netns_hidden": _netns_hidden,
    "survey_refused": _survey_refused,
    "api_down": _api_down,
    "api_slow": _api_slow,
}
