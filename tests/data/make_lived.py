"""Make the log of a node that lived under a schema: ``python -m tests.data.make_lived`` from the root.

Where the golden log has one record of every kind, this one tells a story that an agent can go on with: two
ENIs, pods that run, that rest, and that failed. Made once for each schema, and never again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.unit.projections.node import Node, eni_facts
from vpccni.adapters.log_format import SCHEMA_VERSION
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.model import Seq
from vpccni.projections.snapshot import snapshot_of

RUNNING = ("cart", "till")


def lived_path(schema: int) -> Path:
    return Path(__file__).parent / f"lived-{schema:04d}.sqlite"


def lived() -> Node:
    node = Node().start(eni_facts(0, 10, 11, 12), eni_facts(1, 20, 21))
    for name in (*RUNNING, "gone"):
        node.run_pod(name)
    node.wait(3)
    node.end_pod("gone")
    return node


async def make(target: Path) -> None:
    node = lived()
    half = len(node.records) // 2
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.db"
        log = SqliteLog(path, volatile_ok=True)
        await log.open()
        await log.append(node.records[:half])
        await log.append(node.records[half:])
        await log.write_snapshot(Seq(len(node.records)), snapshot_of(node.state))
        await log.close()
        shutil.copyfile(path, target)


if __name__ == "__main__":
    asyncio.run(make(lived_path(SCHEMA_VERSION)))
