"""The port of the original's checkpoint files: real files and the fake."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.checkpoint import FakeCheckpoints
from vpccni.adapters.checkpoint import CheckpointFiles
from vpccni.checkpoint import Mark, card_path, render_checkpoint
from vpccni.errors import Reason, TransientError
from vpccni.evidence import Row
from vpccni.model import Address, PodRef, SandboxKey
from vpccni.ports import Checkpoints


def row(number: int, card: int = 0) -> Row:
    return Row(
        key=SandboxKey("aws-cni", f"c{number}", "eth0"),
        address=Address(f"10.0.0.{number}"),
        pod=PodRef("default", f"web-{number}"),
        card=card,
        allocated_ns=1718000000000000000 + number,
    )


MARK = Mark(log_id="0f1e", seq=7, boot_id="b-1")
ONE = render_checkpoint([row(1)], None)
TWO = render_checkpoint([row(1), row(2)], MARK)


@dataclass(frozen=True)
class Place:
    """Where checkpoint files are: the port, and what somebody else does there."""

    files: Checkpoints
    put: Callable[[bytes, int], Any]
    content: Callable[[], bytes]
    make_unreadable: Callable[[], Any]
    make_unwritable: Callable[[], Any]


@pytest.fixture(params=["files", "fake"])
def place(request: Any, tmp_path: Path) -> Place:
    if request.param == "fake":
        fake = FakeCheckpoints(now_ns=iter(range(100, 200)).__next__)
        return Place(
            fake,
            fake.put,
            lambda: fake.files[0][0],
            lambda: setattr(fake, "is_readable", False),
            lambda: setattr(fake, "is_writable", False),
        )
    path = tmp_path / "run" / "ipam.json"
    path.parent.mkdir()

    def put(content: bytes, card: int) -> None:
        """As the original does it: a new file takes the old one's place."""
        draft = path.with_name("ipam.json.tmp123456")
        draft.write_bytes(content)
        draft.rename(card_path(str(path), card))

    def make_unreadable() -> None:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/zero")

    return Place(
        CheckpointFiles(path),
        put,
        path.read_bytes,
        make_unreadable,
        # Root writes everywhere; nobody makes a file where a directory of that name is.
        lambda: (path.with_name("ipam.json.tmp-vpccni") / "x").mkdir(parents=True),
    )


async def test_a_file_that_is_not_there_is_absent(place: Place) -> None:
    (file,) = await place.files.read()
    assert (file.status, file.card, file.rows, file.digest, file.modified_ns) == ("absent", 0, (), "", 0)
    assert file.path.endswith("/ipam.json")


async def test_a_file_of_the_original_is_read_with_its_time_and_digest(place: Place) -> None:
    place.put(ONE, 0)
    (file,) = await place.files.read()
    assert file.status == "read"
    assert file.rows == (row(1),)
    assert file.digest == hashlib.sha256(ONE).hexdigest()
    assert file.modified_ns > 0
    assert file.log_id == ""


async def test_the_files_of_other_cards_come_after_the_first(place: Place) -> None:
    place.put(render_checkpoint([row(5)], None), 11)
    place.put(ONE[:40], 2)
    first, torn, last = await place.files.read()
    assert (first.card, first.status) == (0, "absent")
    assert torn.card == 2
    assert torn.status.startswith("unreadable: ")
    assert torn.path.endswith("/ipam-nic-2.json")
    assert (last.card, last.rows) == (11, (row(5, card=11),))


async def test_what_was_written_is_read_again_as_ours(place: Place) -> None:
    place.put(ONE, 0)
    digest = await place.files.write(TWO)
    assert place.content() == TWO
    (file,) = await place.files.read()
    assert file.digest == digest == hashlib.sha256(TWO).hexdigest()
    assert file.rows == (row(1), row(2))
    assert (file.log_id, file.seq, file.boot_id) == ("0f1e", 7, "b-1")


async def test_somebody_elses_write_takes_our_mark_away_and_is_later(place: Place) -> None:
    await place.files.write(TWO)
    (ours,) = await place.files.read()
    place.put(ONE, 0)
    (theirs,) = await place.files.read()
    assert theirs.log_id == ""
    assert theirs.digest != ours.digest
    assert theirs.modified_ns >= ours.modified_ns


async def test_the_stamp_changes_with_every_replacement_and_with_nothing_else(place: Place) -> None:
    assert await place.files.stamp() == ()
    await place.files.write(TWO)
    ours = await place.files.stamp()
    await place.files.read()
    assert await place.files.stamp() == ours
    place.put(TWO, 0)  # the same bytes: only who wrote them, and when, differs
    theirs = await place.files.stamp()
    assert theirs not in ((), ours)
    await place.files.write(TWO)
    assert await place.files.stamp() not in ((), theirs)


async def test_a_file_that_cannot_be_read_says_why_and_raises_nothing(place: Place) -> None:
    place.make_unreadable()
    (file,) = await place.files.read()
    assert file.status.startswith("unreadable: ")
    assert (file.rows, file.digest) == ((), "")


async def test_a_write_that_fails_leaves_the_old_file(place: Place) -> None:
    place.put(ONE, 0)
    place.make_unwritable()
    with pytest.raises(TransientError) as failed:
        await place.files.write(TWO)
    assert failed.value.reason is Reason.EXPORT_FAILED
    assert "ipam.json" in failed.value.detail
    assert place.content() == ONE


async def test_writes_at_once_leave_the_last_one_whole(place: Place) -> None:
    contents = [render_checkpoint([row(each) for each in range(1, count)], MARK) for count in range(1, 30)]
    async with asyncio.TaskGroup() as group:
        for content in contents:
            group.create_task(place.files.write(content))
    assert place.content() == contents[-1]
