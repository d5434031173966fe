"""The event log: events, their subjects, snapshots, segments, and the triggers that guard the past.

The text is frozen here: a later revision changes the schema, never this file.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
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

TRIGGERS = (
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


def upgrade() -> None:
    for statement in (*TABLES, *TRIGGERS):
        op.get_bind().exec_driver_sql(statement)
    op.get_bind().exec_driver_sql("PRAGMA application_id = 0x76706363")
    op.get_bind().exec_driver_sql("PRAGMA user_version = 1")


def downgrade() -> None:
    raise NotImplementedError("a log is never taken back to an older schema")
