"""The clock and the journal of the worklist: every move of an item leaves an event."""

import datetime as dt
from typing import Any

from sqlalchemy import DateTime, func, select
from sqlalchemy.orm import Session

from triage.worklist.tables import Event


def now() -> dt.datetime:
    """The present, as an aware time in UTC."""
    return dt.datetime.now(dt.UTC)


def clock(session: Session) -> dt.datetime:
    """The present by the one clock that all nodes share: a lease is not to end early on another.

    PostgreSQL's; with SQLite, whose parts are on one machine, the machine's.
    """
    if session.get_bind().dialect.name != "postgresql":
        return now()
    return session.scalars(select(func.clock_timestamp(type_=DateTime(timezone=True)))).one()


def journal(
    session: Session,
    item_id: int,
    action: str,
    actor: str,
    detail: dict[str, Any] | None = None,
) -> None:
    """Append an event to an item's journal; no patient data in it."""
    session.add(Event(**entry(item_id, action, actor, detail)))


def entry(
    item_id: int, action: str, actor: str, detail: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The columns of an event that happens now."""
    return {
        "item_id": item_id,
        "at": now(),
        "action": str(action),
        "actor": actor,
        "detail": detail or {},
    }
