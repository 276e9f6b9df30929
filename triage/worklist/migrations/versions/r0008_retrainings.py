"""Retrainings: the runs of triage-retrain, the leases of whoever is alone, the schedule."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, and the leases that are to be had."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "retrainings",
        sa.Column("id", key, primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("cutoff", sa.DateTime, nullable=False),
        sa.Column("holder", sa.String(160), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("started_at", sa.DateTime, nullable=False),
        sa.Column("heartbeat_at", sa.DateTime, nullable=False),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("snapshot", sa.String(80)),
        sa.Column("champion", sa.String(128)),
        sa.Column("version", sa.String(128)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("ix_retrainings_state", "retrainings", ["state"])
    leases = op.create_table(
        "leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(160)),
        sa.Column("until", sa.DateTime),
    )
    op.bulk_insert(leases, [{"name": "retraining"}, {"name": "schedule"}])
    op.create_table(
        "retrain_jobs",
        sa.Column("id", sa.Unicode(191), primary_key=True),
        sa.Column("next_run_time", sa.Float(25)),
        sa.Column("job_state", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_retrain_jobs_next_run_time", "retrain_jobs", ["next_run_time"])


def downgrade() -> None:
    """Remove them."""
    op.drop_table("retrain_jobs")
    op.drop_table("leases")
    op.drop_table("retrainings")
