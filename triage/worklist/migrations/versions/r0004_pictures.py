"""Pictures: the hash that tells one exposure under two UIDs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and the index that finds a patient's latest items."""
    op.add_column("items", sa.Column("picture_hash", sa.String(64)))
    op.create_index("ix_items_patient", "items", ["patient_id", "received_at"])


def downgrade() -> None:
    """Remove both."""
    op.drop_index("ix_items_patient", "items")
    op.drop_column("items", "picture_hash")
