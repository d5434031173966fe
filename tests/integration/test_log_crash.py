"""The log after a power loss at every point between two syncs, with any part of what was not synced yet.

A process writes a log through ``SqliteLog``, under a recorder of its calls. From the record every state is made
in which a disk may be found (see ``crash_images``), and each is opened as a restart would. Whatever was
acknowledged before the loss must be there. Of what was under way, whole batches may be there or not.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.data.event_samples import records
from tests.e2e.preload.build import preload
from tests.integration.crash_images import Disk, choices, read_trace
from vpccni.adapters.log_format import LogFault, LogFaults
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import OutcomeUnknownError, PermanentError
from vpccni.model import Seq
from vpccni.replay.reader import open_log

ROOT = Path(__file__).parents[2]
NAME = "events.sqlite"
SECTORS = (512, 4096)


async def write_log(directory: Path) -> None:
    """A log's life in small: batches, snapshots, checkpoints, restarts, failed syncs.

    The file ``said`` gets ``try N`` before an append that ends at N, ``ack N`` when N was acknowledged, and
    ``mark N`` where much of the log is in the -wal alone.
    """
    said = os.open(directory / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    faults = LogFaults()
    log = SqliteLog(directory / NAME, volatile_ok=True, faults=faults)
    hasty = SqliteLog(directory / NAME, volatile_ok=True, wal_bytes_max=1)
    try:
        await _write(log, faults, said)
        await _write_and_empty(hasty, said)
    finally:
        await log.close()
        await hasty.close()
        os.close(said)


async def _write(log: SqliteLog, faults: LogFaults, said: int) -> None:
    head = (await log.open()).head

    async def append(count: int, fault: LogFault | None = None) -> None:
        nonlocal head
        os.write(said, f"try {head + count}\n".encode())
        if fault is not None:
            faults.plan(fault)
        try:
            await log.append(records(head + 1, head + count))
            head = Seq(head + count)
        except OutcomeUnknownError:
            head = (await log.reopen()).head
        os.write(said, f"ack {head}\n".encode())

    for count in (1, 1, 12, 1):
        await append(count)
    await log.write_snapshot(head, records(1, 5))
    await append(3)
    await log.checkpoint()
    for _ in range(2):  # over older frames of the -wal
        await append(1)
    await append(2, LogFault.LOST)
    await append(1)
    await append(2, LogFault.APPLIED)
    await append(1)
    await log.close()
    await log.open()
    for count in (40, 40, 1):
        await append(count)
    await log.checkpoint()
    for count in (30, 1, 1, 1):  # shorter than what the -wal still holds
        await append(count)
    os.write(said, f"mark {head}\n".encode())
    await log.close()


async def _write_and_empty(log: SqliteLog, said: int) -> None:
    """Each append finds the -wal too long and empties it."""
    head = (await log.open()).head
    for number in range(head + 1, head + 4):
        os.write(said, f"try {number}\n".encode())
        await log.append(records(number, number))
        os.write(said, f"ack {number}\n".encode())
    await log.close()


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """The recorded run: its calls, and the directory in which they were made."""
    base = tmp_path_factory.mktemp("recorded").resolve()
    directory, trace = base / "state", base / "trace"
    directory.mkdir()
    script = (
        "import asyncio, sys; from pathlib import Path; from tests.integration.test_log_crash import write_log\n"
        "asyncio.run(write_log(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        cwd=ROOT,
        env={
            **os.environ,
            "LD_PRELOAD": str(preload("record", base)),
            "VPCCNI_RECORD": str(trace),
            "VPCCNI_RECORD_DIR": str(directory),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ops = list(read_trace(trace))
    disk = Disk(str(directory))
    for op in ops:
        disk.do(op)
    for name in (NAME, "said"):  # or the record is not of everything
        assert disk.file(name) == (directory / name).read_bytes(), name
    return str(directory), ops


@pytest.fixture
def scratch():
    """Where images are opened: in memory, where a sync costs nothing."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as directory:
        yield Path(directory)


def put(image: dict[str, bytes], directory: Path) -> Path:
    for old in directory.iterdir():
        old.unlink()
    for name, content in image.items():
        (directory / name).write_bytes(content)
    return directory / NAME


def told(said: bytes) -> tuple[int, int]:
    """The last number that was acknowledged, and the last that may be in the log."""
    lines = [line.split() for line in said.decode().splitlines()]
    acknowledged = [int(number) for word, number in lines if word == "ack"]
    return acknowledged[-1] if acknowledged else 0, max((int(number) for _, number in lines), default=0)


def contents(start) -> int:
    """The head of an opened log, after checking that what it gives is what was written."""
    assert start.tail == tuple(records(start.head - len(start.tail) + 1, start.head))
    return int(start.head)


async def opens(path: Path, least: int, most: int) -> SqliteLog:
    """Open as a restart would."""
    log = SqliteLog(path, volatile_ok=True)
    head = contents(await log.open())
    assert least <= head <= most, f"{least} was acknowledged, the log ends at {head}"
    return log


async def goes_on(log: SqliteLog, path: Path) -> None:
    """One more append, a crash without having closed, and another restart: nothing old comes between."""
    head = log._head.seq
    await log.append(records(head + 1, head + 1))
    again = {one.name: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("-shm")}
    await log.close()
    with open_log(path) as file:
        assert file.verify_chain().ok
    await (await opens(put(again, path.parent), head + 1, head + 1)).close()


@pytest.mark.slow
async def test_a_power_loss_takes_nothing_that_was_acknowledged(trace, scratch):
    """Before each sync everything since the one before is in the balance: all of it, in parts and orders."""
    directory, ops = trace
    disk, chance = Disk(directory), random.Random(1)
    images: set[int] = set()
    for number, op in enumerate(ops):
        said = disk.file("said")
        for what, choose in choices(chance) if op.kind == "S" else ():
            size, names = chance.choice(SECTORS), chance.choice(disk.names())
            filler, is_long = chance.choice((b"\0", b"\xa5")), chance.random() < 0.5
            image = disk.image(names, size, choose, is_long=is_long, filler=filler)
            image.pop("said", None)
            mark = hash(tuple(sorted(image.items())))
            if mark in images:
                continue
            images.add(mark)
            try:
                path = put(image, scratch)
                log = await opens(path, *told(said))
                if len(images) % 4 == 0:
                    await goes_on(log, path)
                await log.close()
            except Exception as error:
                pytest.fail(
                    f"before call {number} ({op.path} is synced), sectors of {size}, {what}: {error!r}"
                )
        disk.do(op)
    print(len(images), "images from", len(ops), "calls")
    assert len(images) > 200


# --- damage to what was synced --------------------------------------------------------------------


def synced_image(trace) -> tuple[dict[str, bytes], int]:
    """The files where the run says ``mark``, all of it synced; and the number of the last event."""
    directory, ops = trace
    disk = Disk(directory)
    for op in ops:
        disk.do(op)
        if op.data.startswith(b"mark"):
            names = (NAME, f"{NAME}-wal")
            return {name: disk.file(name) for name in names}, int(op.data.split()[1])
    raise AssertionError("the run was not recorded whole")


def last_transaction(wal: bytes) -> tuple[int, int]:
    """Where in the -wal the last transaction that counts begins and ends (SQLite file format, section 4)."""
    frame = 24 + int.from_bytes(wal[8:12], "big")
    ends = [0]
    for number, at in enumerate(range(32, len(wal) - frame + 1, frame)):
        if wal[at + 8 : at + 16] != wal[16:24]:
            break
        if wal[at + 4 : at + 8] != b"\0\0\0\0":
            ends.append(number + 1)
    return 32 + ends[-2] * frame, 32 + ends[-1] * frame


async def what_a_restart_says(image: dict[str, bytes], directory: Path) -> int | str:
    """The head of the log, or the reason of its refusal, which must have kept and copied the files."""
    path = put(image, directory)
    log = SqliteLog(path, volatile_ok=True)
    try:
        return contents(await log.open())
    except PermanentError as error:
        kept = {name: (directory / name).read_bytes() for name in image}
        assert kept == image, "a damaged log was changed"
        copy = next(one for one in directory.glob("*.quarantine-*Z*") if not one.name.endswith("-wal"))
        assert copy.read_bytes() == image[NAME]
        return str(error.reason)
    finally:
        await log.close()


DAMAGE = {
    "zeroed": lambda sector, chance: bytes(len(sector)),
    "garbled": lambda sector, chance: chance.randbytes(len(sector)),
    "one bit": lambda sector, chance: bytes([sector[0] ^ 1]) + sector[1:],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_to_what_was_synced_is_refused_or_harmless(trace, scratch, what):
    """Only the last transaction is the exception: its damage looks like a loss of power while it was written."""
    image, head = synced_image(trace)
    wal, chance = image[f"{NAME}-wal"], random.Random(2)
    last, end = last_transaction(wal)
    seen = set()
    for size in SECTORS:
        for at in sorted(chance.sample(range(0, min(2 * end, len(wal)), size), k=24)):
            damaged = wal[:at] + DAMAGE[what](wal[at : at + size], chance) + wal[at + size :]
            if damaged == wal:
                continue
            said = await what_a_restart_says({**image, f"{NAME}-wal": damaged}, scratch)
            if at + size <= last:
                assert said == "log_damaged", (at, size, said)
            elif at < end:
                assert said in ("log_damaged", head - 1), (at, size, said)
            else:  # behind the end, in frames that were checkpointed long ago
                assert said == head, (at, size, said)
            seen.add(said)
    assert "log_damaged" in seen


async def test_a_last_transaction_that_is_given_up_is_told(trace, scratch):
    image, head = synced_image(trace)
    wal = image[f"{NAME}-wal"]
    _, end = last_transaction(wal)
    path = put({**image, f"{NAME}-wal": wal[: end - 100] + bytes(100) + wal[end:]}, scratch)
    for told in (1, 0):  # once: it is cleared away
        log = await opens(path, head - 1, head - 1)
        assert [("given up" in note) for note in log.notes] == [True] * told
        await log.close()


async def test_a_header_of_the_wal_that_is_gone_is_refused(trace, scratch):
    image, _ = synced_image(trace)
    damaged = bytes(32) + image[f"{NAME}-wal"][32:]
    assert await what_a_restart_says({**image, f"{NAME}-wal": damaged}, scratch) == "log_damaged"


async def test_a_wal_that_was_cut_ends_with_a_whole_batch(trace, scratch):
    """No trace is left of what stood behind the cut: without the number beside the log that is not noticed."""
    image, head = synced_image(trace)
    wal, chance = image[f"{NAME}-wal"], random.Random(3)
    _, end = last_transaction(wal)
    heads = [
        await what_a_restart_says({**image, f"{NAME}-wal": wal[:at]}, scratch)
        for at in sorted(chance.sample(range(end), k=20))
    ]
    assert heads == sorted(heads)
    assert heads[-1] in range(head - 3, head)
    assert await what_a_restart_says({**image, f"{NAME}-wal": wal[:end]}, scratch) == head
