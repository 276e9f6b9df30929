"""Reading: names, the random sample, comments and withdrawals, and what the page filters by."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FILTERED = ("flagged", "modality", "view_position", "calling_ae_title", "disagreement", "blind")

ELEMENTS = {"sqlite": "json_each", "postgresql": "json_array_elements_text"}
"""What gives the elements of a JSON array."""

SEARCHED = {
    "ix_items_accession": "accession_number",
    "ix_items_name": "name_key",
    "ix_items_patient_id": "patient_id",
}


def columns() -> dict[str, list[sa.Column[Any]]]:
    """New columns by their table; a column belongs to one use."""
    return {
        "items": [
            sa.Column("patient_name", sa.String(256), nullable=False, server_default=sa.text("''")),
            sa.Column("name_key", sa.String(256), nullable=False, server_default=sa.text("''")),
            sa.Column("novelty", sa.Float),
            sa.Column("blind", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("disagreement", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("readings_count", sa.Integer, nullable=False, server_default="0"),
            sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
        ],
        "readings": [
            sa.Column("blinded", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("comment", sa.Text, nullable=False, server_default=sa.text("''")),
            sa.Column("location_x", sa.Float),
            sa.Column("location_y", sa.Float),
            sa.Column("adjudicates", sa.Boolean, nullable=False, server_default=sa.false()),
            sa.Column("source", sa.String(16), nullable=False, server_default=sa.text("'command'")),
        ],
    }


def upgrade() -> None:
    """Add columns, tables and indexes; count the readings that are there."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    for table, added in columns().items():
        for column in added:
            op.add_column(table, column)
    op.create_table(
        "withdrawals",
        sa.Column("reading_id", key, sa.ForeignKey("readings.id"), primary_key=True),
        sa.Column("withdrawn_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "answered_requests",
        sa.Column("account", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("reading_id", key, sa.ForeignKey("readings.id"), nullable=False),
        sa.Column("answered_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "item_notes",
        sa.Column("item_id", key, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("code", sa.String(64), primary_key=True),
        sa.Column("unread", sa.Boolean, nullable=False),
        sa.Column("rank_at", sa.DateTime, nullable=False),
    )
    op.create_index(
        "ix_item_notes_order", "item_notes", ["code", sa.text("unread DESC"), "rank_at", "item_id"]
    )
    op.execute(
        # The only part that is not a literal is one of the two functions above.
        "INSERT INTO item_notes (item_id, code, unread, rank_at) "  # noqa: S608
        "SELECT DISTINCT items.id, noted.value, items.unread, items.rank_at "
        f"FROM items, {ELEMENTS[op.get_bind().dialect.name]}(items.notes) AS noted"
    )
    for name in FILTERED:
        op.create_index(
            f"ix_items_{name}", "items", [name, sa.text("unread DESC"), "rank_at", "id"]
        )
    for name, searched in SEARCHED.items():
        op.create_index(name, "items", [searched], postgresql_ops={searched: "text_pattern_ops"})
    op.create_index("ix_items_received", "items", ["received_at"])
    op.execute(
        "UPDATE items SET readings_count = "
        "(SELECT count(*) FROM readings WHERE readings.item_id = items.id)"
    )


def downgrade() -> None:
    """Remove all of it."""
    op.drop_index("ix_items_received", "items")
    op.drop_index("ix_items_name", "items")
    op.drop_index("ix_items_accession", "items")
    for name in FILTERED:
        op.drop_index(f"ix_items_{name}", "items")
    op.drop_table("item_notes")
    op.drop_table("answered_requests")
    op.drop_table("withdrawals")
    for table, added in columns().items():
        for column in added:
            op.drop_column(table, column.name)
