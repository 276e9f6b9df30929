"""The first schema: items, scores, readings, events and the view worklist_v1."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MINUTES_SINCE_RANK = {
    "sqlite": "CAST(ROUND((julianday('now') - julianday(rank_at)) * 1440) AS INTEGER)",
    "postgresql": (
        "CAST(ROUND(EXTRACT(EPOCH FROM (now() AT TIME ZONE 'utc') - rank_at) / 60) AS INTEGER)"
    ),
}


def upgrade() -> None:
    """Make the tables and the view."""
    key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "items",
        sa.Column("id", key, primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("patient_id", sa.String(64), nullable=False),
        sa.Column("accession_number", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(64), nullable=False),
        sa.Column("body_part", sa.String(64), nullable=False),
        sa.Column("view_position", sa.String(64), nullable=False),
        sa.Column("patient_age", sa.String(64), nullable=False),
        sa.Column("patient_sex", sa.String(64), nullable=False),
        sa.Column("ordered_priority", sa.String(64), nullable=False),
        sa.Column("calling_ae_title", sa.String(16), nullable=False),
        sa.Column("calling_address", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("explanation", sa.Text, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.Column("scored_at", sa.DateTime),
        sa.Column("score", sa.Float),
        sa.Column("threshold", sa.Float),
        sa.Column("flagged", sa.Boolean),
        sa.Column("model_version", sa.String(128)),
        sa.Column("urgency", sa.SmallInteger, nullable=False),
        sa.Column("rank_at", sa.DateTime, nullable=False),
        sa.Column("unread", sa.Boolean, nullable=False),
        sa.Column("claimed_by", sa.String(128)),
        sa.Column("claimed_until", sa.DateTime),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
    )
    op.create_index("ix_items_study_instance_uid", "items", ["study_instance_uid"])
    op.create_index("ix_items_reading_order", "items", [sa.text("unread DESC"), "rank_at", "id"])
    op.create_index("ix_items_state", "items", ["state", "rank_at", "id"])
    op.create_table(
        "scores",
        sa.Column("id", key, primary_key=True),
        sa.Column("item_id", key, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("model_version", sa.String(128), nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("scored_at", sa.DateTime, nullable=False),
        sa.UniqueConstraint("item_id", "model_version"),
    )
    op.create_table(
        "readings",
        sa.Column("id", key, primary_key=True),
        sa.Column("item_id", key, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("reader", sa.String(64), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("read_at", sa.DateTime, nullable=False),
        sa.Column("sampling", sa.String(16), nullable=False),
        sa.Column("shown_score", sa.Float, nullable=False),
        sa.Column("shown_threshold", sa.Float, nullable=False),
        sa.Column("shown_model_version", sa.String(128), nullable=False),
    )
    op.create_index("ix_readings_item_id", "readings", ["item_id"])
    op.create_table(
        "events",
        sa.Column("id", key, primary_key=True),
        sa.Column("item_id", key, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_index("ix_events_item_id", "events", ["item_id"])
    minutes = MINUTES_SINCE_RANK[op.get_bind().dialect.name]
    op.execute(
        # The only part that is not a literal is one of the two expressions above.
        "CREATE VIEW worklist_v1 AS SELECT sop_instance_uid, series_instance_uid, "  # noqa: S608
        "study_instance_uid, accession_number, patient_id, modality, body_part, view_position, "
        "patient_age, patient_sex, calling_ae_title, received_at, scored_at, state, reason, "
        "explanation, score, threshold, flagged, model_version, "
        "CASE urgency WHEN 2 THEN 'STAT' WHEN 1 THEN 'HIGH' ELSE 'ROUTINE' END AS urgency, "
        f"CASE WHEN unread THEN {minutes} ELSE 0 END AS priority, unread, rank_at FROM items"
    )


def downgrade() -> None:
    """Remove everything."""
    op.execute("DROP VIEW worklist_v1")
    for table in ("events", "readings", "scores", "items"):
        op.drop_table(table)
