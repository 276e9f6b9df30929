"""Learning: who left training, and which patients the site exam has."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make three empty tables."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "site_key",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(64), nullable=False),
    )
    op.create_table(
        "patient_consents",
        sa.Column("id", key, primary_key=True),
        sa.Column("patient", sa.String(64), nullable=False),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_patient_consents_patient", "patient_consents", ["patient"])
    op.create_table(
        "exam_draws",
        sa.Column("patient", sa.String(64), primary_key=True),
        sa.Column("in_exam", sa.Boolean, nullable=False),
        sa.Column("drawn_at", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Remove them. Withdrawals are lost: who returned to an older program must repeat them."""
    op.drop_table("exam_draws")
    op.drop_table("patient_consents")
    op.drop_table("site_key")
