"""Worklist items as values: what a reader, a program and the page see of a row."""

import datetime as dt
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from triage.errors import UnknownItem
from triage.scoring import Priority
from triage.worklist.tables import Item, ItemNote


class State(StrEnum):
    """Where an item stands; ``docs/worklist.md`` draws the moves."""

    RECEIVED = "RECEIVED"
    SCORED = "SCORED"
    NOT_SCORED = "NOT_SCORED"
    FAILED = "FAILED"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class WorklistItem:
    """An item as a reader sees it; times are aware UTC."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    accession_number: str
    patient_id: str
    patient_name: str
    """As sent, its component groups with ``=`` between (PS3.5 6.2.1)."""
    modality: str
    body_part: str
    view_position: str
    patient_age: str
    patient_sex: str
    calling_ae_title: str
    received_at: dt.datetime
    scored_at: dt.datetime | None
    state: State
    reason: str | None
    explanation: str
    notes: tuple[str, ...]
    score: float | None
    threshold: float | None
    flagged: bool | None
    urgency: Priority
    priority: int
    """Minutes: waiting time plus the urgency's head start; 0 once read. Higher is first."""
    model_version: str | None
    digest: str
    waiting: dt.timedelta
    unread: bool
    blind: bool
    """In the random sample: who has not read it is not shown its score."""
    disagreement: bool
    readings_count: int
    revision: int
    """Grows with everything that a reading could be about."""

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values; the keys are a promise to scripts."""
        return {
            "sop_instance_uid": self.sop_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "study_instance_uid": self.study_instance_uid,
            "sop_class_uid": self.sop_class_uid,
            "accession_number": self.accession_number,
            "patient_id": self.patient_id,
            "patient_name": self.patient_name,
            "modality": self.modality,
            "body_part": self.body_part,
            "view_position": self.view_position,
            "patient_age": self.patient_age,
            "patient_sex": self.patient_sex,
            "calling_ae_title": self.calling_ae_title,
            "received_at": self.received_at.isoformat(),
            "scored_at": None if self.scored_at is None else self.scored_at.isoformat(),
            "state": self.state.value,
            "reason": self.reason,
            "explanation": self.explanation,
            "notes": list(self.notes),
            "score": self.score,
            "threshold": self.threshold,
            "flagged": self.flagged,
            "urgency": self.urgency.name,
            "priority": self.priority,
            "model_version": self.model_version,
            "unread": self.unread,
            "blind": self.blind,
            "disagreement": self.disagreement,
            "readings_count": self.readings_count,
            "waiting_seconds": round(self.waiting.total_seconds()),
        }

    def hidden(self) -> "WorklistItem":
        """The item without anything that would tell its score.

        Its urgency may stay: every exam of the sample has at least that of a flagged one.
        """
        return replace(
            self,
            # What others said of it would tell, too.
            state=State.SCORED,
            disagreement=False,
            readings_count=0,
            score=None,
            threshold=None,
            flagged=None,
            model_version=None,
        )


def find(session: Session, sop_instance_uid: str, *, lock: bool = False) -> Item:
    """The row of an item.

    Raises
    ------
    UnknownItem
        No item has that UID.
    """
    query = select(Item).where(Item.sop_instance_uid == sop_instance_uid)
    item = session.scalar(query.with_for_update() if lock else query)
    if item is None:
        raise UnknownItem(unknown(sop_instance_uid))
    return item


def place(session: Session, item: Item) -> None:
    """Write an item's notes beside its place in the reading order, as both are now."""
    session.execute(delete(ItemNote).where(ItemNote.item_id == item.id))
    session.add_all(
        ItemNote(
            item_id=item.id,
            code=code,
            unread=item.unread,
            rank_at=item.rank_at,
            modality=item.modality,
            view_position=item.view_position,
            calling_ae_title=item.calling_ae_title,
        )
        for code in dict.fromkeys(item.notes)
    )


def unknown(sop_instance_uid: str) -> str:
    """What is said of a UID that no item has."""
    return (
        f"no worklist item has SOP Instance UID {sop_instance_uid[:64]!r}: "
        "`triage worklist` lists them"
    )


def shown(item: Item, now: dt.datetime) -> WorklistItem:
    """An item as a reader sees it at a moment."""
    copied = {
        name: getattr(item, name)
        for name in WorklistItem.__slots__
        if name not in {"state", "notes", "urgency", "priority", "waiting"}
    }
    minutes = round((now - item.rank_at) / dt.timedelta(minutes=1))
    return WorklistItem(
        **copied,
        state=State(item.state),
        notes=tuple(item.notes),
        urgency=Priority(item.urgency),
        priority=minutes if item.unread else 0,
        waiting=now - item.received_at,
    )
