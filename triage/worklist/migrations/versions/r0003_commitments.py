"""Commitments: requests for Storage Commitment and their reports."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "commitments",
        sa.Column("id", key, primary_key=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("requester", sa.String(16), nullable=False),
        sa.Column("instances", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("requested_at", sa.DateTime, nullable=False),
        sa.Column("next_attempt_at", sa.DateTime),
        sa.Column("claimed_by", sa.String(128)),
        sa.Column("reported_at", sa.DateTime),
        sa.Column("error", sa.Text, nullable=False),
        sa.UniqueConstraint("transaction_uid", "fingerprint"),
    )
    op.create_index("ix_commitments_due", "commitments", ["state", "requester", "next_attempt_at"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("commitments")
