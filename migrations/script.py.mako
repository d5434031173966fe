"""${message}."""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# A migration never rewrites events: their shapes change by upcasters (vpccni/events/codec.py).


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
    op.execute("PRAGMA user_version = ${int(up_revision)}")


def downgrade() -> None:
    raise NotImplementedError("a log is never taken back to an older schema")
