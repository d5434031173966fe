"""Make the logs that a *later* release would leave: ``python -m tests.data.make_next`` from the root.

Made once and never again: they stand for what a node holds after a release was taken back. ``next-understood``
has what a later release may write at any time: a kind that need not be understood, and a known kind with a
further optional field. ``next-must`` ends with a kind that must be understood. ``next-schema`` has another
column, another table, and the number of that schema. ``next-values`` has an effect and a cause of an end that
today's release does not know.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from pathlib import Path

from tests.data.event_samples import record, records
from tests.data.make_lived import RUNNING, lived
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.events.codec import Record, UnknownEvent
from vpccni.events.effect import EffectIntended
from vpccni.events.node import AgentStarted, InstanceObserved
from vpccni.events.sandbox import LeaseEnded
from vpccni.model import EniId, Seq

BEFORE = 5
"""So many records of today come first, without an instance: which machine it is about is learnt anew."""

UNDERSTOOD = (
    UnknownEvent(kind="pod_noticed", version=1, must_understand=False, body=b'{"pod":"cart","since_s":4}'),
    UnknownEvent(
        kind="max_pods_observed",
        version=1,
        must_understand=False,
        body=b'{"max_pods":30,"source":"kubelet","reserved":2}',
    ),
    UnknownEvent(kind="plan_made", version=2, must_understand=False, body=b'{"why":"a shape of tomorrow"}'),
)
MUST = UnknownEvent(kind="lease_moved", version=1, must_understand=True, body=b'{"lease":4,"to":"10.0.3.8"}')


EVICTED = RUNNING[0]
"""The pod of ``next-values`` whose lease ends for a cause of tomorrow."""


def next_path(name: str) -> Path:
    return Path(__file__).parent / f"next-{name}.sqlite"


def beginning() -> list[Record]:
    """Records of today, none of which says which machine this is."""
    samples = [one.event for one in records(1, 12) if not isinstance(one.event, InstanceObserved)]
    return [record(seq, samples[seq]) for seq in range(1, BEFORE + 1)]


async def write(path: Path, *events: UnknownEvent) -> None:
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    await log.append(beginning())
    await log.write_snapshot(Seq(BEFORE), beginning())
    await log.append([record(BEFORE + number, event) for number, event in enumerate(events, start=1)])
    await log.append([record(BEFORE + len(events) + 1, AgentStarted(boot_id="b", version="9.9.9"))])
    await log.close()


def lift_schema(path: Path) -> None:
    """What an additive migration of a later release does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("ALTER TABLE event ADD COLUMN node TEXT")
    connection.execute("CREATE TABLE later (x INTEGER)")
    connection.execute("UPDATE alembic_version SET version_num = '0002'")
    connection.execute("PRAGMA user_version = 2")
    connection.close()


async def write_values(path: Path) -> None:
    """A node that lived, and then did what only a later release knows: kinds of today with values of tomorrow."""
    node = lived()
    gone = node.lease(EVICTED)
    node.append(
        LeaseEnded(
            lease=gone.id, cause="evicted_by_policy", key=gone.key, pod=gone.pod, bindings=gone.bindings
        )
    )
    node.append(EffectIntended(kind="associate_trunk", eni=EniId("eni-1"), unit="slot", count=1))
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    await log.append(node.records)
    await log.close()


async def make() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name, events in (
            ("understood", UNDERSTOOD),
            ("must", (*UNDERSTOOD, MUST)),
            ("schema", UNDERSTOOD),
        ):
            path = Path(directory) / name / "events.db"
            await write(path, *events)
            if name == "schema":
                lift_schema(path)
            shutil.copyfile(path, next_path(name))
        path = Path(directory) / "values" / "events.db"
        await write_values(path)
        shutil.copyfile(path, next_path("values"))


if __name__ == "__main__":
    asyncio.run(make())
