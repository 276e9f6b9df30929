"""Observing: the silent scores of a challenger in shadow, and alarms of drift."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make two empty tables."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "shadow_scores",
        sa.Column("score_id", key, sa.ForeignKey("scores.id"), primary_key=True),
        sa.Column("model_version", sa.String(128), primary_key=True),
        sa.Column("probability", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("milliseconds", sa.Float),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_shadow_scores_version", "shadow_scores", ["model_version", "score_id"])
    op.create_table(
        "drift_alarms",
        sa.Column("id", key, primary_key=True),
        sa.Column("measure", sa.String(16), nullable=False),
        sa.Column("console", sa.String(16), nullable=False),
        sa.Column("model_version", sa.String(128), nullable=False),
        sa.Column("item_id", key, nullable=False),
        sa.Column("began_at", sa.DateTime, nullable=False),
        sa.Column("raised_at", sa.DateTime, nullable=False),
        sa.Column("acknowledged_at", sa.DateTime),
        sa.Column("acknowledged_by", sa.String(128)),
        sa.UniqueConstraint("measure", "console", "model_version", "item_id"),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("drift_alarms")
    op.drop_table("shadow_scores")
