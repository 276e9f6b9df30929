"""What the dashboard shows: volume, waiting, agreement with readers, consoles, drift.

Everything is counted over the items that were received in a period, by an index on that
time. Days are days of UTC.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from triage.scoring import Priority
from triage.worklist.items import State
from triage.worklist.journal import now
from triage.worklist.tables import Item, Reading, Withdrawal

MOST_WAITS = 100_000
"""Readings whose waiting times are looked at; the newest."""

BINS = 10
"""Of the histogram of scores."""


@dataclass(frozen=True, slots=True)
class Day:
    """A day's items.

    Attributes
    ----------
    day : str
        ISO 8601, UTC.
    received, scored, flagged, not_scored, failed : int
    score_mean, novelty_mean : float or None
    """

    day: str
    received: int
    scored: int
    flagged: int
    not_scored: int
    failed: int
    score_mean: float | None
    novelty_mean: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """How long exams of an urgency waited for their first reading, or still wait.

    Attributes
    ----------
    urgency : str
    read : int
        So many exams.
    median_minutes, p90_minutes, longest_minutes : float or None
        Of those; None if there are none.
    unread : int
        So many exams still wait.
    waiting_minutes : float or None
        The longest of them until now.
    """

    urgency: str
    read: int
    median_minutes: float | None
    p90_minutes: float | None
    longest_minutes: float | None
    unread: int
    waiting_minutes: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Readings of a day against flags.

    Attributes
    ----------
    day : str
    flagged_confirmed, flagged_rejected, unflagged_confirmed, unflagged_rejected : int
    """

    day: str
    flagged_confirmed: int
    flagged_rejected: int
    unflagged_confirmed: int
    unflagged_rejected: int


@dataclass(frozen=True, slots=True)
class Console:
    """A console's items.

    Attributes
    ----------
    console : str
        Its AE title.
    received, scored, flagged, not_scored : int
    read, agreed : int
        Standing readings of these items, and those that agree with the flag.
    """

    console: str
    received: int
    scored: int
    flagged: int
    not_scored: int
    read: int
    agreed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it.

    Attributes
    ----------
    days : tuple of Day
    waits : tuple of Wait
    agreement : tuple of Agreement
        Of standing readings, by the day they were made.
    consoles : tuple of Console
    scores : tuple of int
        A histogram: ten bins from 0 to 1.
    reasons : dict of str to int
        Why items were not scored.
    """

    days: tuple[Day, ...]
    waits: tuple[Wait, ...]
    agreement: tuple[Agreement, ...]
    consoles: tuple[Console, ...]
    scores: tuple[int, ...]
    reasons: dict[str, int]


class Statistics:
    """Counts in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def figures(self, days: int, console: str = "") -> Figures:
        """Count the last days.

        Parameters
        ----------
        days : int
        console : str
            Only of this AE title; empty for all.
        """
        since = now() - dt.timedelta(days=days)
        within = [Item.received_at >= since]
        if console:
            within.append(Item.calling_ae_title == console)
        with self._transaction() as session:
            return Figures(
                tuple(_days(session, within)),
                tuple(_waits(session, within)),
                tuple(_agreement(session, since, console)),
                tuple(_consoles(session, within)),
                _histogram(session, within),
                _reasons(session, within),
            )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _days(session: Session, within: list[ColumnElement[bool]]) -> Iterable[Day]:
    day = func.date(Item.received_at)
    rows = session.execute(
        select(
            day,
            func.count(),
            func.count(Item.score),
            _count(Item.flagged.is_(True)),
            _count(Item.state == State.NOT_SCORED),
            _count(Item.state == State.FAILED),
            func.avg(Item.score),
            func.avg(Item.novelty),
        )
        .where(*within)
        .group_by(day)
        .order_by(day)
    )
    for name, received, scored, flagged, not_scored, failed, score, novelty in rows:
        yield Day(str(name), received, scored, flagged, not_scored, failed, score, novelty)


def _waits(session: Session, within: list[ColumnElement[bool]]) -> Iterable[Wait]:
    first = (
        select(Item.urgency, Item.received_at, func.min(Reading.read_at))
        .join(Reading, Reading.item_id == Item.id)
        .where(*within)
        .group_by(Item.id, Item.urgency, Item.received_at)
        .order_by(Item.id.desc())
        .limit(MOST_WAITS)
    )
    found: dict[int, list[float]] = defaultdict(list)
    for urgency, received, read in session.execute(first):
        found[urgency].append((read - received) / dt.timedelta(minutes=1))
    still = {
        urgency: (count, (now() - oldest) / dt.timedelta(minutes=1))
        for urgency, count, oldest in session.execute(
            select(Item.urgency, func.count(), func.min(Item.received_at))
            .where(*within, Item.unread)
            .group_by(Item.urgency)
        )
    }
    for urgency in sorted({*found, *still}, reverse=True):
        waits = found[urgency]
        ninth = quantiles(waits, n=10, method="inclusive")[-1] if len(waits) > 1 else None
        unread, waiting = still.get(urgency, (0, None))
        yield Wait(
            Priority(urgency).name,
            len(waits),
            median(waits) if waits else None,
            ninth if ninth is not None else max(waits, default=None),
            max(waits, default=None),
            unread,
            waiting,
        )


def _agreement(session: Session, since: dt.datetime, console: str) -> Iterable[Agreement]:
    day = func.date(Reading.read_at)
    flagged = Reading.shown_score >= Reading.shown_threshold
    confirmed = Reading.verdict == "confirmed"
    query = (
        select(
            day,
            _count(flagged & confirmed),
            _count(flagged & ~confirmed),
            _count(~flagged & confirmed),
            _count(~flagged & ~confirmed),
        )
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(Reading.read_at >= since, Withdrawal.reading_id.is_(None))
        .group_by(day)
        .order_by(day)
    )
    if console:
        query = query.join(Item, Item.id == Reading.item_id).where(Item.calling_ae_title == console)
    for name, *counts in session.execute(query):
        yield Agreement(str(name), *map(int, counts))


def _consoles(session: Session, within: list[ColumnElement[bool]]) -> Iterable[Console]:
    # As an expression: else SQLite reads the whole table along the title's index.
    title_of = Item.calling_ae_title.concat("")
    rows = session.execute(
        select(
            title_of,
            func.count(),
            func.count(Item.score),
            _count(Item.flagged.is_(True)),
            _count(Item.state == State.NOT_SCORED),
        )
        .where(*within)
        .group_by(title_of)
        .order_by(func.count().desc())
        .limit(50)
    )
    agrees = (Reading.shown_score >= Reading.shown_threshold) == (Reading.verdict == "confirmed")
    said = {
        title: (int(read), int(agreed))
        for title, read, agreed in session.execute(
            select(title_of, func.count(), _count(agrees))
            .join(Reading, Reading.item_id == Item.id)
            .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
            .where(*within, Withdrawal.reading_id.is_(None))
            .group_by(title_of)
        )
    }
    for title, received, scored, flagged, not_scored in rows:
        read, agreed = said.get(title, (0, 0))
        yield Console(title, received, scored, int(flagged), int(not_scored), read, agreed)


def _histogram(session: Session, within: list[ColumnElement[bool]]) -> tuple[int, ...]:
    edges = [_count((Item.score >= i / BINS) & (Item.score < (i + 1) / BINS)) for i in range(BINS)]
    edges[-1] = _count(Item.score >= (BINS - 1) / BINS)
    row = session.execute(select(*edges).where(*within)).one()
    return tuple(int(count) for count in row)


def _reasons(session: Session, within: list[ColumnElement[bool]]) -> dict[str, int]:
    rows: Any = session.execute(
        select(Item.reason, func.count())
        .where(*within, Item.reason.is_not(None))
        .group_by(Item.reason)
        .order_by(func.count().desc())
    )
    return {str(reason): int(count) for reason, count in rows}
