"""The marker as a file, and what an agent that cannot start does to it."""

from __future__ import annotations

import stat
import threading

import pytest

from vpccni.adapters.ready_marker import ReadyMarker
from vpccni.errors import PermanentError, Reason, TransientError
from vpccni.loops.keep_marker import unmarked_when_unusable

BOOT = "3f0a8f8e-0000-4000-8000-000000000001"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ready"


@pytest.fixture
def marker(path):
    path.parent.mkdir()
    return ReadyMarker(path, BOOT)


def test_it_holds_the_boot_id_and_a_newline_and_nothing_else_is_left(marker, path):
    marker.mark(True)
    assert path.read_bytes() == f"{BOOT}\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["ready"]
    marker.mark(False)
    assert list(path.parent.iterdir()) == []


def test_marking_twice_changes_nothing(marker, path):
    marker.mark(False)
    marker.mark(True)
    before = path.stat()
    marker.mark(True)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "left",
    [b"", b"3f0a", BOOT.encode(), f"{BOOT}\n\n".encode(), b"another\n"],
    ids=lambda left: repr(left[:8]),
)
def test_what_else_lies_there_is_replaced(marker, path, left):
    path.write_bytes(left)
    marker.mark(True)
    assert path.read_bytes() == f"{BOOT}\n".encode()


def test_a_draft_that_a_killed_agent_left_is_no_hindrance(marker, path):
    draft = path.with_name(".ready.tmp")
    draft.write_bytes(b"3f0a")
    draft.chmod(0o400)
    marker.mark(True)
    assert path.read_bytes() == f"{BOOT}\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IWUSR
    assert [each.name for each in path.parent.iterdir()] == ["ready"]


@pytest.mark.parametrize("is_ready", [True, False])
def test_what_cannot_be_done_is_said_with_the_path(marker, path, is_ready):
    path.mkdir()
    (path / "something").touch()
    with pytest.raises(TransientError, match=f"{path} cannot be"):
        marker.mark(is_ready)


def test_a_directory_that_is_missing_is_said_when_it_has_to_be_written(tmp_path):
    marker = ReadyMarker(tmp_path / "none" / "ready", BOOT)
    marker.mark(False)
    with pytest.raises(TransientError, match="No such file or directory"):
        marker.mark(True)


def test_nobody_ever_reads_a_part_of_it(marker, path):
    another = ReadyMarker(path, "another")
    seen: set[bytes] = set()
    is_over = threading.Event()

    def read():
        while not is_over.is_set():
            try:
                seen.add(path.read_bytes())
            except FileNotFoundError:
                seen.add(b"absent")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(500):
            marker.mark(True)
            another.mark(True)
            another.mark(False)
    finally:
        is_over.set()
        reader.join()
    assert seen <= {b"absent", b"another\n", f"{BOOT}\n".encode()}


def test_it_lies_beside_the_socket_where_the_executable_looks_for_it(tmp_path):
    ReadyMarker.beside(tmp_path / "vpccni.sock", BOOT).mark(True)
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


@pytest.mark.parametrize(
    ("reason", "stays"),
    [
        (Reason.LOG_DAMAGED, False),
        (Reason.LOG_NEWER, False),
        (Reason.LOG_UNUSABLE, False),
        (Reason.LOG_VOLATILE, False),
        (Reason.LOG_IN_USE, True),
    ],
)
def test_an_agent_that_cannot_use_its_log_removes_it_and_one_that_finds_it_in_use_does_not(
    marker, path, reason, stays
):
    marker.mark(True)
    with pytest.raises(PermanentError) as refused, unmarked_when_unusable(marker.mark):
        raise PermanentError(reason)
    assert refused.value.reason is reason
    assert path.exists() == stays


def test_a_marker_that_cannot_be_removed_does_not_hide_what_is_wrong_with_the_log(marker, path):
    path.mkdir()
    with pytest.raises(PermanentError), unmarked_when_unusable(marker.mark):
        raise PermanentError(Reason.LOG_DAMAGED)


def test_a_log_that_can_be_used_changes_nothing(marker, path):
    marker.mark(True)
    with unmarked_when_unusable(marker.mark):
        pass
    assert path.exists()
