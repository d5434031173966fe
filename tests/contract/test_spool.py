"""The spool port over a directory, and the fake; files are also written by hand, as the executable does."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.spool import FakeSpool
from vpccni.adapters import spool as module
from vpccni.adapters.spool import DirectorySpool
from vpccni.errors import TransientError
from vpccni.model import Stamp

BODY = b'{"command":"DEL","containerId":"abc","config":{"name":"aws-cni"}}'


def stamp(boottime_ns: int, boot: str = "boot-1") -> Stamp:
    return Stamp(0, boottime_ns, boot)


def put(directory: Path, name: str, boot: str = "boot-1", boottime_ns: int = 1, **changes: Any) -> Path:
    """An entry as the executable writes it."""
    directory.mkdir(exist_ok=True)
    entry = {
        "version": 1,
        "bootId": boot,
        "boottimeNs": boottime_ns,
        "request": {"command": "DEL"},
        **changes,
    }
    (directory / ".tmp-1-1").write_text(json.dumps(entry) + "\n")
    (directory / ".tmp-1-1").rename(directory / name)
    return directory / name


@pytest.fixture
async def directory_spool(tmp_path: Path) -> AsyncIterator[DirectorySpool]:
    spool = DirectorySpool(tmp_path / "run" / "spool")
    yield spool
    await spool.close()


@pytest.fixture(params=["directory", "fake"])
def spool(request: Any, directory_spool: DirectorySpool) -> Any:
    return directory_spool if request.param == "directory" else FakeSpool()


async def test_an_empty_spool_has_no_entries(spool: Any) -> None:
    assert await spool.entries() == []


async def test_what_was_written_is_read_and_removed(spool: Any) -> None:
    await spool.write(BODY, stamp(7))
    (entry,) = await spool.entries()
    assert (entry.boot_id, entry.boottime_ns, entry.body) == ("boot-1", 7, BODY)
    await spool.remove(entry.name)
    await spool.remove(entry.name)
    assert await spool.entries() == []


async def test_entries_of_one_instant_are_all_kept(spool: Any) -> None:
    for _ in range(3):
        await spool.write(BODY, stamp(7))
    assert len({entry.name for entry in await spool.entries()}) == 3


async def test_entries_come_oldest_first(spool: Any) -> None:
    for at in (30, 4, 200):
        await spool.write(BODY, stamp(at))
    assert [entry.boottime_ns for entry in await spool.entries()] == [4, 30, 200]


async def test_waiting_for_a_change_ends_when_an_entry_comes(spool: Any) -> None:
    await spool.wait_changed()
    waiting = asyncio.ensure_future(spool.wait_changed())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await spool.write(BODY, stamp(7))
    async with asyncio.timeout(2):
        await waiting


async def test_an_entry_of_the_executable_is_read(directory_spool: DirectorySpool, tmp_path: Path) -> None:
    await directory_spool.write(BODY, stamp(1))
    put(tmp_path / "run" / "spool", f"{5:020}-77.json", boottime_ns=5, request={"a": [1, 2]})
    assert [json.loads(entry.body) for entry in await directory_spool.entries()] == [
        json.loads(BODY),
        {"a": [1, 2]},
    ]


async def test_a_rename_into_the_directory_is_noticed(tmp_path: Path) -> None:
    spool = DirectorySpool(tmp_path)
    await spool.wait_changed()
    put(tmp_path, f"{5:020}-77.json")
    async with asyncio.timeout(2):
        await spool.wait_changed()
    await spool.close()


async def test_without_a_watch_the_directory_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_inotify", lambda _: -1)
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    spool = DirectorySpool(tmp_path)
    await spool.wait_changed()
    waiting = asyncio.ensure_future(spool.wait_changed())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    put(tmp_path, f"{5:020}-77.json")
    async with asyncio.timeout(2):
        await waiting
    await spool.close()


async def test_a_directory_that_was_replaced_is_watched_again(tmp_path: Path) -> None:
    spool = DirectorySpool(tmp_path / "spool")
    await spool.wait_changed()
    (tmp_path / "spool").rmdir()
    async with asyncio.timeout(2):
        await spool.wait_changed()
        await spool.wait_changed()
    put(tmp_path / "spool", f"{5:020}-77.json")
    async with asyncio.timeout(2):
        await spool.wait_changed()
    await spool.close()


async def test_boots_come_in_the_order_of_wall_time(tmp_path: Path) -> None:
    """1. An entry late in one boot. 2. A reboot. 3. An entry early in the next: it is the newer one."""
    old = put(tmp_path, f"{900:020}-1.json", "boot-1", 900)
    os.utime(old, (1_000_000, 1_000_000))
    put(tmp_path, f"{3:020}-1.json", "boot-2", 3)
    assert [entry.boot_id for entry in await DirectorySpool(tmp_path).entries()] == ["boot-1", "boot-2"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version":1}', b"\xff", b"x" * (2 << 20)],
    ids=["empty", "cut", "list", "partial", "bytes", "huge"],
)
async def test_what_cannot_be_read_is_set_aside_once(tmp_path: Path, content: bytes) -> None:
    name = f"{5:020}-77.json"
    (tmp_path / name).write_bytes(content)
    good = put(tmp_path, f"{6:020}-77.json")
    spool = DirectorySpool(tmp_path)
    for _ in range(2):
        assert [entry.name for entry in await spool.entries()] == [good.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name + ".bad", good.name]


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"request": [1]}, {"request": "DEL"}, {"boottimeNs": "5"}]
)
async def test_an_entry_of_another_shape_is_set_aside(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = put(tmp_path, f"{5:020}-77.json", **changes)
    assert await DirectorySpool(tmp_path).entries() == []
    assert path.with_name(path.name + ".bad").exists()


async def test_links_and_pipes_are_set_aside_and_never_opened_for_long(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{5:020}-77.json")
    (tmp_path / f"{6:020}-77.json").symlink_to("/etc/hostname")
    async with asyncio.timeout(2):
        assert await DirectorySpool(tmp_path).entries() == []
    assert len(list(tmp_path.glob("*.bad"))) == 2


async def test_drafts_and_strangers_are_no_entries_and_only_old_drafts_go(tmp_path: Path) -> None:
    for name in (".tmp-1-1", ".tmp-2-2", "notes.json", "readme"):
        (tmp_path / name).write_text("{}")
    os.utime(tmp_path / ".tmp-1-1", (time.time() - 4000, time.time() - 4000))
    assert await DirectorySpool(tmp_path).entries() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-2-2", "notes.json", "readme"]


async def test_a_listing_is_bounded_and_the_rest_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 2)
    for at in (3, 1, 2):
        put(tmp_path, f"{at:020}-77.json", boottime_ns=at)
    spool = DirectorySpool(tmp_path)
    first = await spool.entries()
    assert [entry.boottime_ns for entry in first] == [1, 2]
    for entry in first:
        await spool.remove(entry.name)
    assert [entry.boottime_ns for entry in await spool.entries()] == [3]


async def test_a_name_that_is_no_entry_is_never_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name"):
        await DirectorySpool(tmp_path).remove("../something")


async def test_the_directory_is_for_its_owner_alone_and_no_draft_stays(
    directory_spool: DirectorySpool, tmp_path: Path
) -> None:
    await directory_spool.write(BODY, stamp(7))
    folder = tmp_path / "run" / "spool"
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_nlink == 1
    assert json.loads(file.read_bytes()) == {
        "version": 1,
        "bootId": "boot-1",
        "boottimeNs": 7,
        "request": json.loads(BODY),
    }


@pytest.mark.parametrize("step", ["fsync", "link"])
async def test_a_write_that_fails_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    spool = DirectorySpool(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(TransientError, match="log_disk_full"):
            await spool.write(BODY, stamp(7))
    assert list(tmp_path.iterdir()) == []


async def test_a_spool_that_is_no_directory_is_transient(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = DirectorySpool(tmp_path / "file")
    with pytest.raises(TransientError):
        await spool.entries()
    with pytest.raises(TransientError):
        await spool.write(BODY, stamp(7))


async def test_being_short_of_descriptors_sets_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, f"{5:020}-77.json")

    def fail(_: Path) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_read_file", fail)
        with pytest.raises(TransientError):
            await DirectorySpool(tmp_path).entries()
    assert len(await DirectorySpool(tmp_path).entries()) == 1
