"""Deliveries: results on their way to the PACS and other destinations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "deliveries",
        sa.Column("id", key, primary_key=True),
        sa.Column("item_id", key, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("score_id", key, sa.ForeignKey("scores.id"), nullable=False),
        sa.Column("reading_id", key, sa.ForeignKey("readings.id")),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("next_attempt_at", sa.DateTime),
        sa.Column("claimed_by", sa.String(128)),
        sa.Column("delivered_at", sa.DateTime),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("result_uid", sa.String(64)),
        sa.Column("result_digest", sa.String(64)),
    )
    op.create_index(
        "ux_deliveries_score",
        "deliveries",
        ["score_id", "kind", "destination"],
        unique=True,
        sqlite_where=sa.text("reading_id IS NULL"),
        postgresql_where=sa.text("reading_id IS NULL"),
    )
    op.create_index(
        "ux_deliveries_reading", "deliveries", ["reading_id", "kind", "destination"], unique=True
    )
    op.create_index("ix_deliveries_score", "deliveries", ["score_id", "destination"])
    op.create_index("ix_deliveries_due", "deliveries", ["state", "destination", "next_attempt_at"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("deliveries")
