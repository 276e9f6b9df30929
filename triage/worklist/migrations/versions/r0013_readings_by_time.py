"""Readings by their time: the dashboard counts those of its days, not of all years."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add an index."""
    op.create_index("ix_readings_read_at", "readings", ["read_at"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index("ix_readings_read_at", "readings")
