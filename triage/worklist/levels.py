"""How full the queues are: a few numbers that an alarm can be set on, cheap at any size."""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session

from triage.scoring import Priority
from triage.worklist.commitments import CommitmentState
from triage.worklist.deliveries import Backlog, Deliveries
from triage.worklist.items import State
from triage.worklist.journal import now
from triage.worklist.tables import Commitment, DriftAlarm, Item

MOST = 100_000
"""Rows that are counted; where there are more, this is told."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What waits, and for how long. Counts end at :data:`MOST`.

    Attributes
    ----------
    unscored, failed, flagged_unread : int
        Exams without a score yet; FAILED ones; flagged ones that nobody has read.
    unscored_seconds, flagged_unread_seconds, quiet_seconds : float
        Age of the oldest unscored exam; of the first flagged one in reading order that nobody
        has read; time since the newest exam came. 0 if there is none.
    deliveries : tuple of Backlog
    commitments_parked : int
    drift_alarms : int
        That nobody has acknowledged.
    """

    unscored: int
    failed: int
    flagged_unread: int
    unscored_seconds: float
    flagged_unread_seconds: float
    quiet_seconds: float
    deliveries: tuple[Backlog, ...]
    commitments_parked: int
    drift_alarms: int


class Gauges:
    """Reads the levels of a worklist.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    deliveries : Deliveries
    """

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Session]],
        deliveries: Deliveries,
    ) -> None:
        self._transaction, self._deliveries = transaction, deliveries

    def reachable(self) -> None:
        """Ask the database for nothing.

        Raises
        ------
        WorklistError
            It does not answer.
        """
        with self._transaction() as session:
            session.execute(text("SELECT 1"))

    def read(self) -> Levels:
        """The levels now; each is a short range of an index."""
        flagged = (
            select(Item.rank_at, Item.urgency)
            .where(Item.flagged.is_(True), Item.unread.is_(True))
            .order_by(Item.rank_at, Item.id)
            .limit(1)
        )
        with self._transaction() as session:
            at = now()
            oldest = session.scalar(oldest_unscored())
            first = session.execute(flagged).one_or_none()
            newest = session.scalar(select(func.max(Item.received_at)))
            return Levels(
                unscored=_count(session, select(Item.id).where(Item.state == State.RECEIVED)),
                failed=_count(session, select(Item.id).where(Item.state == State.FAILED)),
                flagged_unread=_count(
                    session,
                    select(Item.id).where(Item.flagged.is_(True), Item.unread.is_(True)),
                ),
                unscored_seconds=_age(at, oldest),
                flagged_unread_seconds=_age(
                    at, None if first is None else first[0] + Priority(first[1]).head_start
                ),
                quiet_seconds=_age(at, newest),
                deliveries=tuple(self._deliveries.backlogs()),
                commitments_parked=_count(
                    session,
                    select(Commitment.id).where(Commitment.state == CommitmentState.PARKED),
                ),
                drift_alarms=_count(
                    session, select(DriftAlarm.id).where(DriftAlarm.acknowledged_at.is_(None))
                ),
            )


def oldest_unscored() -> Select[dt.datetime | None]:
    """When the longest waiting one of the unscored items came, of the first :data:`MOST`.

    Asked plainly, PostgreSQL goes along the index of times from the very first exam on, in the
    belief that one that waits comes soon: the more years, the longer.
    """
    waiting = (
        select(Item.received_at)
        .where(Item.state == State.RECEIVED)
        .order_by(Item.rank_at, Item.id)
        .limit(MOST)
        .subquery()
    )
    return select(func.min(waiting.c.received_at))


def _count(session: Session, rows: Select[int]) -> int:
    return session.scalar(select(func.count()).select_from(rows.limit(MOST).subquery())) or 0


def _age(at: dt.datetime, then: dt.datetime | None) -> float:
    """Seconds; none where another node's clock is ahead of ours."""
    return 0.0 if then is None else max(0.0, (at - then).total_seconds())
