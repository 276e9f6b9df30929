"""Run by Alembic, on the connection that :func:`triage.worklist.schema.migrate` gives it."""

from alembic import context

from triage.worklist.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
