"""What never changes of an item beside its notes, for filters by both at once."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COPIED = {"modality": 64, "view_position": 64, "calling_ae_title": 16}
"""Columns and how long they are."""


def upgrade() -> None:
    """Add three columns, fill them from the items, and put them at the end of the index."""
    for name, length in COPIED.items():
        column = sa.Column(name, sa.String(length), nullable=False, server_default=sa.text("''"))
        op.add_column("item_notes", column)
        # Only literals of this file.
        op.execute(
            f"UPDATE item_notes SET {name} = "  # noqa: S608
            f"(SELECT items.{name} FROM items WHERE items.id = item_notes.item_id)"
        )
    _index(tuple(COPIED))


def downgrade() -> None:
    """Remove them."""
    _index(())
    for name in COPIED:
        op.drop_column("item_notes", name)


def _index(behind: tuple[str, ...]) -> None:
    op.drop_index("ix_item_notes_order", "item_notes")
    op.create_index(
        "ix_item_notes_order",
        "item_notes",
        ["code", sa.text("unread DESC"), "rank_at", "item_id", *behind],
    )
