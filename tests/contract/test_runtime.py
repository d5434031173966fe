"""The runtime port over a directory of libcni's, and the fake."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.runtime import FakeRuntimeCache
from tests.libcni import cache_entry, write_entry
from vpccni.adapters.runtime import LibcniCache
from vpccni.checkpoint import hold_key
from vpccni.evidence import CachedResult
from vpccni.model import Address, PodRef, SandboxKey
from vpccni.ports import RuntimeCache


@dataclass(frozen=True)
class Runtime:
    """A container runtime, and the port that looks at its cache."""

    cache: RuntimeCache
    add: Callable[[str, str, str], Any]
    drop: Callable[[str, str, str], Any]
    put: Callable[[CachedResult], Any]
    tear: Callable[[SandboxKey], Any]
    reopen: Callable[[], RuntimeCache]
    hide: Callable[[], Any]


@pytest.fixture(params=["libcni", "fake"])
def runtime(request: Any, tmp_path: Path) -> Runtime:
    if request.param == "fake":
        return _fake()
    results = tmp_path / "results"
    results.mkdir()
    key_path = lambda key: results / f"{key.network}-{key.container_id}-{key.ifname}"  # noqa: E731

    def put(wanted: CachedResult) -> None:
        path = write_entry(results, _entry_of(wanted))
        os.utime(path, ns=(wanted.modified_ns, wanted.modified_ns))

    return Runtime(
        LibcniCache(results),
        lambda *key: (results / "-".join(key)).write_text("{}"),
        lambda *key: (results / "-".join(key)).unlink(),
        put,
        lambda key: os.truncate(key_path(key), 100),
        lambda: LibcniCache(results),
        lambda: results.rename(tmp_path / "elsewhere"),
    )


def _fake() -> Runtime:
    fake = FakeRuntimeCache()

    def reopen() -> RuntimeCache:
        fake.reopen()
        return fake

    return Runtime(
        fake,
        lambda *key: fake.known.add(key),
        lambda *key: fake.known.discard(key),
        fake.put,
        lambda key: fake.torn.add((key.network, key.container_id, key.ifname)),
        reopen,
        lambda: setattr(fake, "is_absent", True),
    )


def _entry_of(wanted: CachedResult) -> dict[str, Any]:
    interfaces: list[dict[str, str]] = [{"name": name} for name in wanted.host_ifnames]
    interfaces.append({"name": wanted.key.ifname, "sandbox": wanted.netns})
    return cache_entry(
        wanted.key.container_id,
        network=wanted.key.network,
        ifname=wanted.key.ifname,
        conflist={"plugins": [{"type": each} for each in wanted.plugin_types]},
        cniArgs=[
            ["K8S_POD_NAMESPACE", wanted.pod.namespace],
            ["K8S_POD_NAME", wanted.pod.name],
            ["K8S_POD_UID", wanted.pod.uid],
        ],
        result={
            "interfaces": interfaces,
            "ips": [{"address": f"{each}/32", "interface": len(interfaces) - 1} for each in wanted.addresses],
        },
    )


def cached(number: int) -> CachedResult:
    key = SandboxKey("aws-cni", f"c{number}", "eth0")
    return CachedResult(
        file=f"aws-cni-c{number}-eth0",
        key=key,
        pod=PodRef("default", f"web-{number}", f"uid-{number}"),
        netns=f"/run/netns/{number}",
        addresses=(Address(f"10.0.0.{number}"),),
        host_ifnames=(f"eni{number:011x}",),
        modified_ns=1_718_000_000_000_000_000 + number,
        plugin_types=("aws-cni", "portmap"),
    )


async def test_a_key_is_known_while_the_runtime_keeps_its_result(runtime: Runtime) -> None:
    runtime.add("aws-cni", "abc", "eth0")
    assert await runtime.cache.is_known("aws-cni", "abc", "eth0") is True
    assert await runtime.cache.is_known("aws-cni", "abd", "eth0") is False
    assert await runtime.cache.is_known("aws-cni", "abc", "eth1") is False
    runtime.drop("aws-cni", "abc", "eth0")
    assert await runtime.cache.is_known("aws-cni", "abc", "eth0") is False


@pytest.mark.parametrize(
    "key",
    [
        ("aws-cni", "", "eth0"),
        ("", "abc", "eth0"),
        ("aws-cni", "abc", ""),
        ("_migrated-from-cri", "abc", "eth0"),
        ("_migrated-from-cri", "abc", "unknown"),
        ("aws-cni", "abc", "unknown"),
        tuple(msgspec.structs.astuple(hold_key(Address("10.0.0.1")))),
    ],
    ids=["no container", "no network", "no interface", "cri network", "cri", "unknown", "hold"],
)
async def test_of_a_key_that_no_runtime_used_the_cache_says_nothing(
    runtime: Runtime, key: tuple[str, str, str]
) -> None:
    """The runtime would not say yes of a living sandbox under such a key, so its no proves nothing."""
    runtime.put(cached(1))
    assert await runtime.cache.is_known("aws-cni", "c1", "eth0") is True
    await runtime.cache.read()
    assert await runtime.cache.is_known(*key) is None


@pytest.mark.parametrize(
    ("there", "asked"),
    [("podman", "aws-cni"), ("aws-cni-2", "aws-cni"), ("aws-cni", "aws"), ("aws", "aws-cni")],
)
async def test_entries_of_other_networks_do_not_make_it_a_witness(
    runtime: Runtime, there: str, asked: str
) -> None:
    """Other programs use the same directory; our runtime may keep its cache elsewhere all the same."""
    runtime.add(there, "abc", "eth0")
    assert await runtime.cache.is_known(asked, "dead", "eth0") is None


async def test_what_was_seen_counts_while_the_process_lives_and_is_seen_again_by_the_next(
    runtime: Runtime,
) -> None:
    runtime.put(cached(1))
    assert await runtime.cache.is_known("aws-cni", "dead", "eth0") is False
    runtime.drop("aws-cni", "c1", "eth0")
    assert await runtime.cache.is_known("aws-cni", "dead", "eth0") is False
    # The next agent finds an empty directory, and does not know whether it is used.
    later = runtime.reopen()
    assert await later.is_known("aws-cni", "dead", "eth0") is None
    runtime.put(cached(2))
    assert await later.is_known("aws-cni", "dead", "eth0") is False


async def test_an_entry_that_was_found_by_its_key_makes_it_a_witness(runtime: Runtime) -> None:
    """Also when its name does not show where the network's name ends."""
    runtime.add("aws-cni", "pod-1", "eth0")
    assert await runtime.cache.is_known("aws-cni", "pod-1", "eth0") is True
    runtime.drop("aws-cni", "pod-1", "eth0")
    assert await runtime.cache.is_known("aws-cni", "pod-1", "eth0") is False


async def test_a_cache_that_was_read_is_a_witness_afterwards(runtime: Runtime) -> None:
    runtime.put(cached(1))
    await runtime.cache.read()
    runtime.drop("aws-cni", "c1", "eth0")
    assert await runtime.cache.is_known("aws-cni", "c1", "eth0") is False


async def test_a_cache_that_vanished_says_nothing_any_more(runtime: Runtime) -> None:
    runtime.put(cached(1))
    assert await runtime.cache.is_known("aws-cni", "dead", "eth0") is False
    runtime.hide()
    assert await runtime.cache.is_known("aws-cni", "dead", "eth0") is None
    assert (await runtime.cache.read()).status == "absent"


async def test_entries_are_read_with_all_that_they_tell(runtime: Runtime) -> None:
    runtime.put(cached(2))
    runtime.put(cached(1))
    found = await runtime.cache.read()
    assert (found.status, found.unreadable) == ("read", ())
    assert found.entries == (cached(1), cached(2))
    assert found.modified_ns > 0


async def test_an_entry_that_is_not_whole_is_told_and_hides_no_other(runtime: Runtime) -> None:
    runtime.put(cached(1))
    runtime.put(cached(2))
    runtime.tear(cached(1).key)
    found = await runtime.cache.read()
    assert found.entries == (cached(2),)
    (told,) = found.unreadable
    assert told.startswith("aws-cni-c1-eth0: ")
    # It is there, so the runtime keeps the sandbox.
    assert await runtime.cache.is_known("aws-cni", "c1", "eth0") is True


async def test_an_empty_cache_is_read_and_tells_nothing(runtime: Runtime) -> None:
    found = await runtime.cache.read()
    assert (found.status, found.entries, found.unreadable) == ("read", (), ())


async def test_a_cache_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert await LibcniCache(tmp_path / "none").is_known("aws-cni", "abc", "eth0") is None
    (tmp_path / "file").write_text("")
    assert await LibcniCache(tmp_path / "file").is_known("aws-cni", "abc", "eth0") is None


async def test_a_directory_in_which_nothing_was_ever_seen_says_nothing(tmp_path: Path) -> None:
    """It is what the mount of an unused path looks like."""
    assert await LibcniCache(tmp_path).is_known("aws-cni", "abc", "eth0") is None


async def test_a_key_that_cannot_be_a_file_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert await LibcniCache(tmp_path).is_known("..", "/etc", "passwd") is None
    (tmp_path / "aws-cni-abc-eth0").write_text("")
    assert await LibcniCache(tmp_path).is_known("aws-cni", "c" * 250, "eth0") is None
