"""The runtime port over a directory of libcni's, and the fake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.runtime import FakeRuntimeCache
from vpccni.adapters.runtime import LibcniCache
from vpccni.ports import RuntimeCache


@dataclass(frozen=True)
class Runtime:
    cache: RuntimeCache
    add: Callable[[str, str, str], Any]
    drop: Callable[[str, str, str], Any]


@pytest.fixture(params=["libcni", "fake"])
def runtime(request: Any, tmp_path: Path) -> Runtime:
    if request.param == "fake":
        fake = FakeRuntimeCache()
        return Runtime(fake, lambda *key: fake.known.add(key), lambda *key: fake.known.discard(key))
    return Runtime(
        LibcniCache(tmp_path),
        lambda *key: (tmp_path / "-".join(key)).write_text("{}"),
        lambda *key: (tmp_path / "-".join(key)).unlink(),
    )


async def test_a_key_is_known_while_the_runtime_keeps_its_result(runtime: Runtime) -> None:
    runtime.add("aws-cni", "abc", "eth0")
    assert await runtime.cache.is_known("aws-cni", "abc", "eth0") is True
    assert await runtime.cache.is_known("aws-cni", "abd", "eth0") is False
    assert await runtime.cache.is_known("aws-cni", "abc", "eth1") is False
    runtime.drop("aws-cni", "abc", "eth0")
    assert await runtime.cache.is_known("aws-cni", "abc", "eth0") is False


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
