"""The tables. ``docs/worklist.md`` describes them for people who query the database."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
    Unicode,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware time, stored as UTC without a zone; naive times are refused."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> dt.datetime | None:
        """Aware to UTC without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> dt.datetime | None:
        """UTC without a zone to aware."""
        return None if value is None else value.replace(tzinfo=dt.UTC)


# SQLite numbers rows by itself only in a column declared INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of all tables."""


FILTERED = ("flagged", "modality", "view_position", "calling_ae_title", "state")
"""Columns of items that the list is filtered by, several at once."""

SEARCHED = {
    "ix_items_accession": "accession_number",
    "ix_items_name": "name_key",
    "ix_items_patient_id": "patient_id",
}
"""Indexes that find the beginning of a text."""


def _by_filter(unread: Mapped[bool]) -> Iterator[Index]:
    for name in FILTERED[:-1]:
        others = [other for other in FILTERED if other != name]
        yield Index(f"ix_items_{name}", name, unread.desc(), "rank_at", "id", *others)


class Item(Base):
    """A worklist item: one received SOP instance and where it stands."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    study_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    patient_id: Mapped[str] = mapped_column(String(64))
    accession_number: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(64))
    body_part: Mapped[str] = mapped_column(String(64))
    view_position: Mapped[str] = mapped_column(String(64))
    patient_age: Mapped[str] = mapped_column(String(64))
    patient_sex: Mapped[str] = mapped_column(String(64))
    ordered_priority: Mapped[str] = mapped_column(String(64))
    calling_ae_title: Mapped[str] = mapped_column(String(16))
    calling_address: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)

    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    explanation: Mapped[str] = mapped_column(Text, default="")
    notes: Mapped[list[str]] = mapped_column(JSON, default=list)

    scored_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    score: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    flagged: Mapped[bool | None] = mapped_column(Boolean)
    model_version: Mapped[str | None] = mapped_column(String(128))

    urgency: Mapped[int] = mapped_column(SmallInteger)
    """A :class:`triage.scoring.Priority`."""
    rank_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    """``received_at`` less the urgency's head start: ascending is reading order."""
    unread: Mapped[bool] = mapped_column(Boolean)

    claimed_by: Mapped[str | None] = mapped_column(String(128))
    claimed_until: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(SmallInteger, default=0)

    picture_hash: Mapped[str | None] = mapped_column(String(64))
    """Of :func:`triage.quality.picture_hash`; null where no picture was looked at."""
    patient_name: Mapped[str] = mapped_column(String(256), default="", server_default=text("''"))
    """As sent, its component groups with `=` between (PS3.5 6.2.1)."""
    name_key: Mapped[str] = mapped_column(String(256), default="", server_default=text("''"))
    """The name in lower case, for searching."""
    novelty: Mapped[float | None] = mapped_column(Float)
    """Of :meth:`triage.novelty.Novelty.measure`; null where it was not measured."""

    blind: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Drawn into the random sample: who has not read it is not shown its score."""
    disagreement: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Two readers' verdicts differ, and nobody has adjudicated."""
    readings_count: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Of readings that were not withdrawn."""
    revision: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Grows with everything that a reading could have been about."""

    __table_args__ = (
        Index("ix_items_reading_order", unread.desc(), "rank_at", "id"),
        Index("ix_items_patient", "patient_id", "received_at"),
        # Each filter of the page, so that no rare value makes it read the whole table. The other
        # filters stand behind the order: several at once look at rows only where all hold.
        Index("ix_items_state", "state", "rank_at", "id", *FILTERED[:-1]),
        *_by_filter(unread),
        Index("ix_items_disagreement", "disagreement", unread.desc(), "rank_at", "id"),
        Index("ix_items_blind", "blind", unread.desc(), "rank_at", "id"),
        *(
            Index(name, column, postgresql_ops={column: "text_pattern_ops"})
            for name, column in SEARCHED.items()
        ),
        Index("ix_items_received", "received_at"),
    )


class ItemNote(Base):
    """A note of an item beside its place in the reading order, for the filter by notes.

    A copy of what stands in :class:`Item`, written with it: a rare note among a million items
    is found by an index only if the index holds the order, too.
    """

    __tablename__ = "item_notes"

    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    code: Mapped[str] = mapped_column(String(64), primary_key=True)
    unread: Mapped[bool] = mapped_column(Boolean)
    rank_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    modality: Mapped[str] = mapped_column(String(64), server_default=text("''"))
    view_position: Mapped[str] = mapped_column(String(64), server_default=text("''"))
    calling_ae_title: Mapped[str] = mapped_column(String(16), server_default=text("''"))
    """These three never change, and are filtered by together with a note."""

    __table_args__ = (
        Index(
            "ix_item_notes_order", "code", unread.desc(), "rank_at", "item_id",
            "modality", "view_position", "calling_ae_title",
        ),
    )  # fmt: skip


class ScoreRecord(Base):
    """What one model version said of one item; at most once."""

    __tablename__ = "scores"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    model_version: Mapped[str] = mapped_column(String(128))
    probability: Mapped[float] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    scored_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)

    __table_args__ = (UniqueConstraint("item_id", "model_version"),)


class ShadowScore(Base):
    """What a challenger in shadow said of a picture that the champion had scored.

    No reader sees it. Written before the challenger is asked, so that a picture which kills
    its process is not asked about again.
    """

    __tablename__ = "shadow_scores"

    score_id: Mapped[int] = mapped_column(ForeignKey("scores.id"), primary_key=True)
    """The champion's."""
    model_version: Mapped[str] = mapped_column(String(128), primary_key=True)
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    milliseconds: Mapped[float | None] = mapped_column(Float)
    """Of the network alone."""
    failure: Mapped[str] = mapped_column(Text)
    """Empty once there is a probability."""
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ix_shadow_scores_version", "model_version", "score_id"),)


class Rescore(Base):
    """What a model version says of an image of the back file; at most once. No reader sees it."""

    __tablename__ = "rescores"

    image: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SOP Instance UID; of a file that has none, its SHA-256."""
    model_version: Mapped[str] = mapped_column(String(128), primary_key=True)
    source: Mapped[str] = mapped_column(String(255))
    """``spool``, or the archive as ``triage rescore --from`` was told it."""
    place: Mapped[str] = mapped_column(Text)
    """Where it is there."""
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str | None] = mapped_column(String(64))
    """Why there is no score."""
    explanation: Mapped[str] = mapped_column(Text)
    notes: Mapped[list[str]] = mapped_column(JSON)
    picture_hash: Mapped[str | None] = mapped_column(String(64))
    novelty: Mapped[float | None] = mapped_column(Float)
    failure: Mapped[str] = mapped_column(Text)
    """Why nothing is known of it; empty for most."""
    scored_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    applied_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    """When the live row was looked at with it; null until an operator says so."""

    __table_args__ = (Index("ix_rescores_version", "model_version", "image"),)


class DriftAlarm(Base):
    """A change that the exams of a champion show."""

    __tablename__ = "drift_alarms"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    measure: Mapped[str] = mapped_column(String(16))
    console: Mapped[str] = mapped_column(String(16))
    """An AE title; empty for all."""
    model_version: Mapped[str] = mapped_column(String(128))
    item_id: Mapped[int] = mapped_column(_Key)
    """Of the exam that it became certain with; later ones are compared among themselves."""
    began_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    """When the change is thought to have begun."""
    raised_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    acknowledged_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    acknowledged_by: Mapped[str | None] = mapped_column(String(128))

    __table_args__ = (UniqueConstraint("measure", "console", "model_version", "item_id"),)


class Reading(Base):
    """A radiologist's verdict. Appended, never edited."""

    __tablename__ = "readings"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    reader: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[str] = mapped_column(String(16))
    read_at: Mapped[dt.datetime] = mapped_column(UtcDateTime, index=True)
    sampling: Mapped[str] = mapped_column(String(16))
    """How the item came to be read: ``flagged``, ``unflagged`` or ``random``."""
    shown_score: Mapped[float] = mapped_column(Float)
    shown_threshold: Mapped[float] = mapped_column(Float)
    shown_model_version: Mapped[str] = mapped_column(String(128))
    blinded: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether score and flag were hidden from the reader until the verdict."""
    comment: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    location_x: Mapped[float | None] = mapped_column(Float)
    """Of the finding in the stored picture: 0 left to 1 right."""
    location_y: Mapped[float | None] = mapped_column(Float)
    """0 top to 1 bottom."""
    adjudicates: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether it settles a disagreement."""
    source: Mapped[str] = mapped_column(
        String(16), default="command", server_default=text("'command'")
    )
    """Where it was said: ``page``, ``command`` or ``import``."""


class Withdrawal(Base):
    """A reading that its reader took back within the minute."""

    __tablename__ = "withdrawals"

    reading_id: Mapped[int] = mapped_column(ForeignKey("readings.id"), primary_key=True)
    withdrawn_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class AnsweredRequest(Base):
    """A request that a client named with an idempotency key, and what came of it."""

    __tablename__ = "answered_requests"

    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    reading_id: Mapped[int] = mapped_column(ForeignKey("readings.id"))
    answered_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class Delivery(Base):
    """A result on its way to a destination."""

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    score_id: Mapped[int] = mapped_column(ForeignKey("scores.id"))
    reading_id: Mapped[int | None] = mapped_column(ForeignKey("readings.id"))
    kind: Mapped[str] = mapped_column(String(16))
    destination: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    """Also the end of a claim's lease."""
    claimed_by: Mapped[str | None] = mapped_column(String(128))
    delivered_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str] = mapped_column(Text)
    """Why the latest attempt failed; no patient data."""
    result_uid: Mapped[str | None] = mapped_column(String(64))
    """What the destination knows the result by; null until it was built."""
    result_digest: Mapped[str | None] = mapped_column(String(64))
    """Names the kept bytes that every attempt sends."""

    __table_args__ = (
        # One for each result and destination: of a score, and of a reading.
        Index(
            "ux_deliveries_score",
            "score_id",
            "kind",
            "destination",
            unique=True,
            sqlite_where=reading_id.is_(None),
            postgresql_where=reading_id.is_(None),
        ),
        Index("ux_deliveries_reading", "reading_id", "kind", "destination", unique=True),
        Index("ix_deliveries_score", "score_id", "destination"),
        Index("ix_deliveries_due", "state", "destination", "next_attempt_at"),
    )


class Commitment(Base):
    """A request for Storage Commitment and the report that answers it (PS3.4 annex J)."""

    __tablename__ = "commitments"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Of requester and instances: the same request again is the same row."""
    requester: Mapped[str] = mapped_column(String(16))
    """The AE title that asked and is called back."""
    instances: Mapped[list[list[str]]] = mapped_column(JSON)
    """SOP Class UID and SOP Instance UID of each instance."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    requested_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    next_attempt_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    """Also the end of a claim's lease."""
    claimed_by: Mapped[str | None] = mapped_column(String(128))
    reported_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    error: Mapped[str] = mapped_column(Text)
    """Why the latest attempt failed; no patient data."""

    __table_args__ = (
        UniqueConstraint("transaction_uid", "fingerprint"),
        Index("ix_commitments_due", "state", "requester", "next_attempt_at"),
    )


class Event(Base):
    """A move of an item, in order. Appended, never edited; no patient data."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    action: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class AuditRow(Base):
    """Who did or saw what. Appended, never edited: triggers refuse it."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_Key, primary_key=True, autoincrement=False)
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime, index=True)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(128))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class Account(Base):
    """Who may sign in."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    display_name: Mapped[str] = mapped_column(String(128))
    roles: Mapped[list[str]] = mapped_column(JSON)
    password_hash: Mapped[str | None] = mapped_column(String(256))
    """Argon2id, with its parameters; null where an identity provider signs in."""
    must_change: Mapped[bool] = mapped_column(Boolean)
    """The password is a one-time password."""
    issuer: Mapped[str | None] = mapped_column(String(256))
    issuer_subject: Mapped[str | None] = mapped_column(String(256))
    """What the identity provider calls the account (OpenID Connect Core, ``iss`` and ``sub``)."""
    disabled: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)

    __table_args__ = (Index("ux_accounts_issuer", "issuer", "issuer_subject", unique=True),)


class WebSession(Base):
    """A signed-in browser. Only the hash of what its cookie holds is here."""

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class SignInAttempt(Base):
    """An attempt to sign in that did not succeed, or has not yet."""

    __tablename__ = "sign_in_attempts"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    account_hash: Mapped[str] = mapped_column(String(64))
    """Of the name as it was typed: now and then it is a password."""
    address: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_sign_in_attempts_account", "account_hash", "at"),
        Index("ix_sign_in_attempts_address", "address", "at"),
    )


class SignInFlow(Base):
    """A sign-in that is on its way through the identity provider."""

    __tablename__ = "sign_in_flows"

    state_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    verifier: Mapped[str] = mapped_column(String(128))
    nonce: Mapped[str] = mapped_column(String(128))
    destination: Mapped[str] = mapped_column(Text)
    """The page that was asked for: a path of ours."""
    started_at: Mapped[dt.datetime] = mapped_column(UtcDateTime, index=True)


class Retraining(Base):
    """A run of ``triage-retrain``, and what came of it; no patient data."""

    __tablename__ = "retrainings"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[str] = mapped_column(String(64))
    """What it does now, or did last."""
    trigger: Mapped[str] = mapped_column(String(16))
    forced: Mapped[bool] = mapped_column(Boolean)
    cutoff: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    """Readings up to here count; a run that goes on keeps it."""
    holder: Mapped[str] = mapped_column(String(160))
    attempts: Mapped[int] = mapped_column(Integer)
    """Processes that began since it last came further."""
    started_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    snapshot: Mapped[str | None] = mapped_column(String(80))
    champion: Mapped[str | None] = mapped_column(String(128))
    version: Mapped[str | None] = mapped_column(String(128))
    outcome: Mapped[str | None] = mapped_column(String(16))
    """Of the gate."""
    reason: Mapped[str] = mapped_column(Text)


class Lease(Base):
    """Who alone may do something now, among all nodes."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(160))
    until: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class Part(Base):
    """A process of the service that says again and again that it runs."""

    __tablename__ = "parts"

    name: Mapped[str] = mapped_column(String(160), primary_key=True)
    """NODE/ROLE/PROCESS."""
    node: Mapped[str] = mapped_column(String(96))
    role: Mapped[str] = mapped_column(String(32))
    process: Mapped[int] = mapped_column(Integer)
    version: Mapped[str] = mapped_column(String(32))
    began_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class RetrainJob(Base):
    """APScheduler's job store: its own columns, written by it alone."""

    __tablename__ = "retrain_jobs"

    id: Mapped[str] = mapped_column(Unicode(191), primary_key=True)
    next_run_time: Mapped[float | None] = mapped_column(Float(25), index=True)
    job_state: Mapped[bytes] = mapped_column(LargeBinary)


class SiteKey(Base):
    """The one secret that turns Patient IDs into the names that snapshots know patients by."""

    __tablename__ = "site_key"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(String(64))


class PatientConsent(Base):
    """That a patient's data left training, or came back. Appended, never edited."""

    __tablename__ = "patient_consents"

    id: Mapped[int] = mapped_column(_Key, primary_key=True)
    patient: Mapped[str] = mapped_column(String(64), index=True)
    """The patient's keyed hash."""
    withdrawn: Mapped[bool] = mapped_column(Boolean)
    at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class ExamDraw(Base):
    """Which side a patient was drawn to when a label of theirs was first seen; never redrawn."""

    __tablename__ = "exam_draws"

    patient: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The patient's keyed hash."""
    in_exam: Mapped[bool] = mapped_column(Boolean)
    drawn_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class ModelHistory(Base):
    """The history of a cluster's models: JSON lines, each bound to the one before."""

    __tablename__ = "model_history"

    number: Mapped[int] = mapped_column(_Key, primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)


class Compatibility(Base):
    """Which programs may run on the schema as it is: one row."""

    __tablename__ = "schema_compatibility"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    oldest: Mapped[str] = mapped_column(String(32))
    """The revision of the oldest program that may."""
