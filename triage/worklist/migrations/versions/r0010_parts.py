"""Which parts of the service run; indexes that answer several filters at once."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

FILTERED = ("flagged", "modality", "view_position", "calling_ae_title", "state")


def upgrade() -> None:
    """Make an empty table; make the indexes anew, with the other filters behind the order."""
    op.create_table(
        "parts",
        sa.Column("name", sa.String(160), primary_key=True),
        sa.Column("node", sa.String(96), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("process", sa.Integer, nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("began_at", sa.DateTime, nullable=False),
        sa.Column("seen_at", sa.DateTime, nullable=False),
    )
    _index(FILTERED)


def downgrade() -> None:
    """Remove the table; make the indexes as they were."""
    _index(())
    op.drop_table("parts")


def _index(behind: tuple[str, ...]) -> None:
    for name in FILTERED:
        order = ["rank_at", "id"] if name == "state" else [sa.text("unread DESC"), "rank_at", "id"]
        others = [other for other in behind if other != name]
        op.drop_index(f"ix_items_{name}", "items")
        op.create_index(f"ix_items_{name}", "items", [name, *order, *others])
