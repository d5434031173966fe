"""The tables of the log, the triggers that guard its past, and how an older schema becomes ours.

A fresh log is made straight from this text: importing Alembic costs a third of a second, which a new node
need not pay. That Alembic's migrations lead to the very same schema is tested. A migration never
rewrites events; their shapes change by upcasters when they are read.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpccni.adapters.log_format import APPLICATION_ID, EVENT_COLUMNS, SCHEMA_VERSION
from vpccni.errors import InvariantBrokenError

if TYPE_CHECKING:
    from sqlalchemy import Connection

TABLES: Final = (
    """CREATE TABLE event (
        seq INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        version INTEGER NOT NULL,
        must_understand INTEGER NOT NULL,
        wall_ns INTEGER NOT NULL,
        boottime_ns INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        cause INTEGER NOT NULL,
        body BLOB NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32)
    )""",
    """CREATE TABLE event_subject (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        PRIMARY KEY (kind, id, seq)
    ) WITHOUT ROWID""",
    """CREATE TABLE snapshot (
        seq INTEGER PRIMARY KEY,
        head_hash BLOB NOT NULL,
        records BLOB NOT NULL,
        digest BLOB NOT NULL CHECK (length(digest) = 32)
    )""",
    """CREATE TABLE segment (
        last_seq INTEGER PRIMARY KEY,
        head_hash BLOB NOT NULL,
        snapshot_seq INTEGER NOT NULL,
        summary BLOB NOT NULL
    )""",
    """CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID""",
)

# max() over a rowid is one step to the end of the tree: the check costs the same at any length.
# INSERT OR REPLACE deletes without firing DELETE triggers, so every INSERT is checked for its number.
TRIGGERS: Final = (
    """CREATE TRIGGER event_insert BEFORE INSERT ON event
    WHEN NEW.seq IS NOT 1 + max(
        coalesce((SELECT max(seq) FROM event), 0), coalesce((SELECT max(last_seq) FROM segment), 0))
    BEGIN SELECT RAISE(ABORT, 'the log takes only the next sequence number'); END""",
    """CREATE TRIGGER event_update BEFORE UPDATE ON event
    BEGIN SELECT RAISE(ABORT, 'events are never changed'); END""",
    """CREATE TRIGGER event_delete BEFORE DELETE ON event
    WHEN NOT EXISTS (
        SELECT 1 FROM segment JOIN snapshot ON snapshot.seq = segment.snapshot_seq
        WHERE segment.last_seq >= OLD.seq AND snapshot.head_hash = segment.head_hash)
    BEGIN SELECT RAISE(ABORT, 'events are deleted only below a closed segment'); END""",
    """CREATE TRIGGER event_subject_update BEFORE UPDATE ON event_subject
    BEGIN SELECT RAISE(ABORT, 'subjects are never changed'); END""",
    """CREATE TRIGGER event_subject_delete BEFORE DELETE ON event_subject
    WHEN NOT EXISTS (SELECT 1 FROM segment WHERE last_seq >= OLD.seq)
    BEGIN SELECT RAISE(ABORT, 'subjects are deleted only below a closed segment'); END""",
    """CREATE TRIGGER snapshot_insert BEFORE INSERT ON snapshot
    WHEN NEW.seq <= coalesce((SELECT max(seq) FROM snapshot), 0)
        OR NEW.head_hash IS NOT (SELECT hash FROM event WHERE seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'a snapshot follows the last one and stands on an event of this log'); END""",
    """CREATE TRIGGER snapshot_update BEFORE UPDATE ON snapshot
    BEGIN SELECT RAISE(ABORT, 'snapshots are never changed'); END""",
    """CREATE TRIGGER snapshot_delete BEFORE DELETE ON snapshot
    WHEN (SELECT count(*) FROM snapshot WHERE seq > OLD.seq) < 2
        OR EXISTS (SELECT 1 FROM segment WHERE snapshot_seq = OLD.seq)
    BEGIN SELECT RAISE(ABORT, 'the two newest snapshots and those of segments stay'); END""",
    """CREATE TRIGGER segment_insert BEFORE INSERT ON segment
    WHEN NEW.last_seq <= coalesce((SELECT max(last_seq) FROM segment), 0)
        OR NEW.head_hash IS NOT (SELECT hash FROM event WHERE seq = NEW.last_seq)
        OR NEW.snapshot_seq IS NOT NEW.last_seq
        OR NEW.head_hash IS NOT (SELECT head_hash FROM snapshot WHERE seq = NEW.snapshot_seq)
        OR length(NEW.summary) = 0
    BEGIN SELECT RAISE(ABORT, 'a segment closes on an event, with its hash, snapshot and summary'); END""",
    """CREATE TRIGGER segment_update BEFORE UPDATE ON segment
    BEGIN SELECT RAISE(ABORT, 'segments are never changed'); END""",
    """CREATE TRIGGER segment_delete BEFORE DELETE ON segment
    BEGIN SELECT RAISE(ABORT, 'segments are never deleted'); END""",
)

REVISION: Final = f"{SCHEMA_VERSION:04d}"
"""Name of the newest Alembic revision."""

# As Alembic itself makes it, so that a later migration finds where it stands.
ALEMBIC_TABLE: Final = """CREATE TABLE alembic_version (
        version_num VARCHAR(32) NOT NULL,
        CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    )"""

INSERT_EVENT: Final = f"INSERT INTO event ({EVENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
INSERT_SUBJECT: Final = "INSERT INTO event_subject (kind, id, seq) VALUES (?, ?, ?)"
INSERT_SNAPSHOT: Final = "INSERT INTO snapshot (seq, head_hash, records, digest) VALUES (?, ?, ?, ?)"
DELETE_OLD_SNAPSHOTS: Final = """DELETE FROM snapshot
    WHERE seq NOT IN (SELECT seq FROM snapshot ORDER BY seq DESC LIMIT ?)
    AND seq NOT IN (SELECT snapshot_seq FROM segment)"""


def create_schema(connection: sqlite3.Connection) -> None:
    """Make an empty log in an empty database, in one transaction of its own.

    The connection must be in autocommit mode (``isolation_level=None``).
    """
    connection.execute("BEGIN IMMEDIATE")
    for statement in (ALEMBIC_TABLE, *TABLES, *TRIGGERS):
        connection.execute(statement)
    connection.execute("INSERT INTO alembic_version (version_num) VALUES (?)", (REVISION,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def migrations_dir() -> Path:
    """Where the Alembic migrations are: inside the installed package, or beside it in a checkout.

    Raises:
        InvariantBrokenError: In neither: the package was built wrongly.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "_migrations", package.parent / "migrations"):
        if (place / "env.py").is_file():
            return place
    raise InvariantBrokenError(f"the migrations of the log are not shipped with {package}")


def migrate(connection: Connection, migrations: Path) -> None:
    """Bring an older schema to the newest revision, all steps in one transaction.

    Args:
        connection: A SQLAlchemy connection in autocommit mode. Nothing is changed when a step fails.
        migrations: What :func:`migrations_dir` gives.
    """
    # Imported here: 0.3 s that only an upgrade needs to pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        command.upgrade(config, "head")
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
