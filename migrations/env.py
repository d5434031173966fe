"""Alembic's entry: runs the revisions on the connection that vpccni hands over.

The caller holds one transaction around all steps (``vpccni.adapters.log_schema.migrate``), so Alembic must
neither begin nor commit. There is no offline mode and no URL: a log is migrated by the agent that owns it.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transactional_ddl=False
)
context.run_migrations()
