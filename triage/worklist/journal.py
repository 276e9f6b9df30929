"""The clock and the journal of the worklist: every move of an item leaves an event."""

import datetime as dt
from typing import Any

from sqlalchemy.orm import Session

from triage.worklist.tables import Event


def now() -> dt.datetime:
    """The present, as an aware time in UTC."""
    return dt.datetime.now(dt.UTC)


def journal(
    session: Session,
    item_id: int,
    action: str,
    actor: str,
    detail: dict[str, Any] | None = None,
) -> None:
    """Append an event to an item's journal; no patient data in it."""
    session.add(
        Event(item_id=item_id, at=now(), action=str(action), actor=actor, detail=detail or {})
    )
