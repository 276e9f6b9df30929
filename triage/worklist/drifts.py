"""The series that are watched for drift, and the alarms that came of them."""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import Session

from triage.drift import PATIENCE, REFERENCE, Watched, watch
from triage.errors import WorklistError
from triage.worklist.audit import Action, record
from triage.worklist.items import State
from triage.worklist.journal import now
from triage.worklist.tables import DriftAlarm, Item, Reading, Withdrawal

MOST = 50_000
"""Values of a series that are looked at: the newest."""

CONSOLES = 50
"""Consoles that are watched each on its own: those that send most."""


class Measure(StrEnum):
    """What is watched."""

    SCORE = "score"
    """The probability of each scored exam."""

    NOVELTY = "novelty"
    """How unlike the training data each picture is."""

    NOT_SCORED = "not scored"
    """Whether an exam was not scored."""

    FINDINGS = "findings"
    """How many image quality findings and notes an exam has."""

    READERS = "readers"
    """Whether a reading is against the flag."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that exams of a champion show; times are aware UTC.

    Attributes
    ----------
    id : int
    measure : Measure
    console : str
        An AE title; empty for all.
    model_version : str
        The champion.
    began_at : datetime
        When the change is thought to have begun.
    raised_at : datetime
    acknowledged_at : datetime or None
    acknowledged_by : str or None
    """

    id: int
    measure: Measure
    console: str
    model_version: str
    began_at: dt.datetime
    raised_at: dt.datetime
    acknowledged_at: dt.datetime | None
    acknowledged_by: str | None

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values; no patient data."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {n: v.isoformat() if isinstance(v, dt.datetime) else v for n, v in values.items()}


@dataclass(frozen=True, slots=True)
class Series:
    """A measure as it is watched now.

    Attributes
    ----------
    measure : Measure
    console : str
        An AE title; empty for all.
    items : tuple of int
        The exams, in the order in which they came (readings: were made).
    times : tuple of datetime
    values : tuple of float
    watched : Watched
    """

    measure: Measure
    console: str
    items: tuple[int, ...]
    times: tuple[dt.datetime, ...]
    values: tuple[float, ...]
    watched: Watched

    def by_day(self) -> dict[str, float]:
        """The highest level of each day, ISO 8601, UTC; 1 is the alarm."""
        found: dict[str, float] = {}
        # After an alarm there are no more levels.
        for at, level in zip(self.times, self.watched.levels, strict=False):
            day = at.date().isoformat()
            found[day] = max(level, found.get(day, 0.0))
        return found


class Drifts:
    """Watching for drift in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def series(
        self,
        champion: str,
        since: dt.datetime,
        measure: Measure,
        console: str = "",
        patience: int = PATIENCE,
    ) -> Series:
        """A measure since the champion began, or since its last alarm.

        Parameters
        ----------
        champion : str
            A model version.
        since : datetime
            When it became champion.
        measure : Measure
        console : str
            Only of this AE title; empty for all.
        patience : int
            See :func:`triage.drift.watch`.
        """
        with self._transaction() as session:
            after = session.scalar(
                select(func.max(DriftAlarm.item_id)).where(
                    DriftAlarm.measure == measure,
                    DriftAlarm.console == console,
                    DriftAlarm.model_version == champion,
                )
            )
            query = _query(measure, champion)
            if console:
                query = query.where(Item.calling_ae_title == console)
            query = query.where(Item.received_at >= since, Item.id > (after or 0))
            rows = session.execute(query.limit(MOST)).all()
        rows = rows[::-1]
        values = tuple(float(row[2]) for row in rows)
        return Series(
            measure,
            console,
            tuple(row[0] for row in rows),
            tuple(row[1] for row in rows),
            values,
            watch(values, patience),
        )

    def consoles(self, since: dt.datetime) -> list[str]:
        """Those that have sent enough to be watched, the busiest first."""
        with self._transaction() as session:
            rows = session.execute(
                select(Item.calling_ae_title)
                .where(Item.received_at >= since)
                .group_by(Item.calling_ae_title)
                .having(func.count() > REFERENCE)
                .order_by(func.count().desc())
                .limit(CONSOLES)
            )
            return [title for (title,) in rows]

    def check(self, champion: str, since: dt.datetime, patience: int = PATIENCE) -> list[Alarm]:
        """Look at every measure, of all consoles and of each; the alarms that are new."""
        raised = []
        for console in ("", *self.consoles(since)):
            for measure in Measure:
                series = self.series(champion, since, measure, console, patience)
                if series.watched.change is not None:
                    raised.append(self._raise(champion, series))
        return [alarm for alarm in raised if alarm is not None]

    def _raise(self, champion: str, series: Series) -> Alarm | None:
        change = series.watched.change
        if change is None:
            return None
        item = max(series.items[: change.at + 1])
        with self._transaction(write=True) as session:
            known = session.scalar(
                select(DriftAlarm.id).where(
                    DriftAlarm.measure == series.measure,
                    DriftAlarm.console == series.console,
                    DriftAlarm.model_version == champion,
                    DriftAlarm.item_id >= item,
                )
            )
            if known is not None:  # another node was faster
                return None
            alarm = DriftAlarm(
                measure=series.measure,
                console=series.console,
                model_version=champion,
                item_id=item,
                began_at=series.times[change.began],
                raised_at=now(),
            )
            session.add(alarm)
            session.flush()
            return _shown(alarm)

    def alarms(self, *, all_of_them: bool = False) -> list[Alarm]:
        """Alarms that nobody has acknowledged, or all; the newest first."""
        query = select(DriftAlarm).order_by(DriftAlarm.id.desc())
        if not all_of_them:
            query = query.where(DriftAlarm.acknowledged_at.is_(None))
        with self._transaction() as session:
            return [_shown(alarm) for alarm in session.scalars(query)]

    def acknowledge(self, number: int, who: str) -> bool:
        """Say that somebody has seen to an alarm; False if somebody had before.

        Raises
        ------
        WorklistError
            There is no such alarm.
        """
        with self._transaction(write=True) as session:
            alarm = session.get(DriftAlarm, number, with_for_update=True)
            if alarm is None:
                raise WorklistError(
                    f"there is no drift alarm {number}: `triage drift list` lists them"
                )
            if alarm.acknowledged_at is not None:
                return False
            alarm.acknowledged_at, alarm.acknowledged_by = now(), who
            record(session, who, Action.DRIFT_ACKNOWLEDGED, str(number), {"measure": alarm.measure})
            return True


def _query(measure: Measure, champion: str) -> Select[Any]:
    """Item, time and value, the newest first."""
    if measure is Measure.READERS:
        against = (Reading.verdict == "confirmed") != (
            Reading.shown_score >= Reading.shown_threshold
        )
        return (
            select(Item.id, Reading.read_at, case((against, 1), else_=0))
            .join(Item, Item.id == Reading.item_id)
            .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
            .where(Reading.shown_model_version == champion, Withdrawal.reading_id.is_(None))
            .order_by(Reading.id.desc())
        )
    value: ColumnElement[Any]
    match measure:
        case Measure.SCORE:
            value, which = Item.score.expression, _scored_by(champion)
        case Measure.NOVELTY:
            value, which = Item.novelty.expression, Item.novelty.is_not(None)
        case Measure.FINDINGS:
            value, which = func.json_array_length(Item.notes), _scored_by(champion)
        case _:
            value = case((Item.state == State.NOT_SCORED, 1), else_=0)
            which = Item.state.in_([State.SCORED, State.NOT_SCORED])
    return select(Item.id, Item.received_at, value).where(which).order_by(Item.id.desc())


def _scored_by(champion: str) -> ColumnElement[bool]:
    return (Item.model_version == champion) & Item.score.is_not(None)


def _shown(alarm: DriftAlarm) -> Alarm:
    values = {name: getattr(alarm, name) for name in Alarm.__slots__}
    return Alarm(**{**values, "measure": Measure(alarm.measure)})
