"""The back file: what a model version says of images that were scored before, or never."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make an empty table, and the lease of whoever fills it."""
    op.create_table(
        "rescores",
        sa.Column("image", sa.String(64), primary_key=True),
        sa.Column("model_version", sa.String(128), primary_key=True),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("probability", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("reason", sa.String(64)),
        sa.Column("explanation", sa.Text, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("picture_hash", sa.String(64)),
        sa.Column("novelty", sa.Float),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("scored_at", sa.DateTime, nullable=False),
        sa.Column("applied_at", sa.DateTime),
    )
    op.create_index("ix_rescores_version", "rescores", ["model_version", "image"])
    leases = sa.table("leases", sa.column("name", sa.String))
    op.bulk_insert(leases, [{"name": "rescore"}])


def downgrade() -> None:
    """Remove both."""
    op.execute("DELETE FROM leases WHERE name = 'rescore'")
    op.drop_table("rescores")
