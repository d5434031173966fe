"""Make the golden log of a schema: ``python -m tests.data.make_golden`` from the root of the repository.

One record of every kind, a snapshot in the middle, closed properly. A golden log is made once, by the
release that brings its schema, and never again: it stands for the logs that nodes in the field hold.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.data.event_samples import EVENTS, records
from vpccni.adapters.log_format import SCHEMA_VERSION
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.model import Seq

SNAPSHOT_AT = Seq(20)


def golden_path(schema: int) -> Path:
    return Path(__file__).parent / f"golden-{schema:04d}.sqlite"


async def make(target: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.db"
        log = SqliteLog(path, volatile_ok=True)
        await log.open()
        await log.append(records(1, SNAPSHOT_AT))
        await log.write_snapshot(SNAPSHOT_AT, records(1, SNAPSHOT_AT))
        await log.append(records(SNAPSHOT_AT + 1, len(EVENTS)))
        await log.close()
        shutil.copyfile(path, target)


if __name__ == "__main__":
    asyncio.run(make(golden_path(SCHEMA_VERSION)))
