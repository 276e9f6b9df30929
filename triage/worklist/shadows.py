"""Silent scores of a challenger in shadow, kept apart from all that a reader sees."""

import datetime as dt
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from triage.scoring import Score
from triage.worklist.journal import now
from triage.worklist.tables import Item, Reading, ScoreRecord, ShadowScore, Withdrawal

UNFINISHED = "the process ended while it was scored"

LOOK_BACK = 500
"""Scores may become visible out of order: so many before the last one are looked at again."""

BINS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """A score of the champion that the challenger is to be asked about, too."""

    score_id: int
    digest: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A challenger in shadow against the champion, on the same exams.

    Attributes
    ----------
    version, champion : str
    exams : int
        Scored by both.
    failed : int
        Not scored by the challenger.
    since, until : datetime or None
        Of the first and the last such exam's silent score; None without any.
    both, neither, gained, lost : int
        Exams that both flag, that neither flags, that only the challenger flags, and that only
        the champion does.
    mean_difference : float
        Of the probabilities, challenger's less champion's; -1 to 1.
    scores, champion_scores : tuple of int
        Histograms: ten bins from 0 to 1.
    milliseconds, milliseconds_p95 : float
        Of the challenger's network alone; 0 without exams.
    read : int
        Of the exams, those whose standing readings agree.
    right, champion_right : int
        Of the read exams, those where the flag is the reader's verdict.
    """

    version: str
    champion: str
    exams: int
    failed: int
    since: dt.datetime | None
    until: dt.datetime | None
    both: int
    neither: int
    gained: int
    lost: int
    mean_difference: float
    scores: tuple[int, ...]
    champion_scores: tuple[int, ...]
    milliseconds: float
    milliseconds_p95: float
    read: int
    right: int
    champion_right: int

    @property
    def agreement(self) -> float | None:
        """Share of exams with the same flag; None without exams."""
        return (self.both + self.neither) / self.exams if self.exams else None

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values; no patient data."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            **{n: v.isoformat() if isinstance(v, dt.datetime) else v for n, v in values.items()},
            "agreement": self.agreement,
        }


class Shadows:
    """The silent scores in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def waiting(
        self, version: str, champion: str, since: dt.datetime, most: int = 20
    ) -> list[Task]:
        """Scores of the champion that the challenger was not asked about, the oldest first.

        Parameters
        ----------
        version, champion : str
        since : datetime
            When the shadow began; earlier scores are none of its business.
        most : int
        """
        with self._transaction() as session:
            asked = session.scalar(
                select(func.max(ShadowScore.score_id)).where(ShadowScore.model_version == version)
            )
            done = aliased(ShadowScore)
            rows = session.execute(
                select(ScoreRecord.id, Item.digest)
                .join(Item, Item.id == ScoreRecord.item_id)
                .outerjoin(
                    done, and_(done.score_id == ScoreRecord.id, done.model_version == version)
                )
                .where(
                    ScoreRecord.id > (0 if asked is None else asked - LOOK_BACK),
                    ScoreRecord.model_version == champion,
                    ScoreRecord.scored_at >= since,
                    done.score_id.is_(None),
                )
                .order_by(ScoreRecord.id)
                .limit(most)
            ).all()
        return [Task(number, digest) for number, digest in rows]

    def begin(self, task: Task, version: str) -> bool:
        """Note that a challenger is asked about a picture; False if it was asked before."""
        try:
            with self._transaction(write=True) as session:
                session.add(
                    ShadowScore(
                        score_id=task.score_id,
                        model_version=version,
                        failure=UNFINISHED,
                        at=now(),
                    )
                )
        except IntegrityError:
            return False
        return True

    def settle(self, task: Task, version: str, said: Score | str, milliseconds: float) -> None:
        """Keep what it said, or why it said nothing."""
        with self._transaction(write=True) as session:
            row = session.get_one(ShadowScore, (task.score_id, version))
            row.at = now()
            if isinstance(said, str):
                row.failure = said
                return
            row.failure, row.milliseconds = "", milliseconds
            row.probability, row.threshold = said.probability, said.threshold

    def compared(self, version: str, champion: str) -> Comparison:
        """The challenger against one champion, on what both have scored."""
        of = (ShadowScore.model_version == version, ScoreRecord.model_version == champion)
        with self._transaction() as session:
            failed = session.scalar(
                select(func.count())
                .select_from(ShadowScore)
                .join(ScoreRecord, ScoreRecord.id == ShadowScore.score_id)
                .where(*of, ShadowScore.probability.is_(None))
            )
            rows = session.execute(
                select(
                    ScoreRecord.item_id,
                    ScoreRecord.probability,
                    ScoreRecord.threshold,
                    ShadowScore.probability,
                    ShadowScore.threshold,
                    ShadowScore.milliseconds,
                    ShadowScore.at,
                )
                .join(ScoreRecord, ScoreRecord.id == ShadowScore.score_id)
                .where(*of, ShadowScore.probability.is_not(None))
                .order_by(ShadowScore.score_id)
            ).all()
            verdicts = _verdicts(session, version)
        pairs = [(row[0], row[1], float(row[3] or 0.0)) for row in rows]
        flags = [(float(row[3] or 0) >= float(row[4] or 0), row[1] >= row[2]) for row in rows]
        known = [
            (verdicts[row[0]], new, old)
            for row, (new, old) in zip(rows, flags, strict=True)
            if row[0] in verdicts
        ]
        times = [float(row[5] or 0.0) for row in rows]
        return Comparison(
            version,
            champion,
            len(rows),
            failed or 0,
            min((row[6] for row in rows), default=None),
            max((row[6] for row in rows), default=None),
            both=sum(new and old for new, old in flags),
            neither=sum(not new and not old for new, old in flags),
            gained=sum(new and not old for new, old in flags),
            lost=sum(old and not new for new, old in flags),
            mean_difference=sum(new - old for _, old, new in pairs) / len(rows) if rows else 0.0,
            scores=_histogram([new for _, _, new in pairs]),
            champion_scores=_histogram([old for _, old, _ in pairs]),
            milliseconds=median(times) if times else 0.0,
            milliseconds_p95=quantiles(times, n=20)[-1] if len(times) > 1 else sum(times),
            read=len(known),
            right=sum(seen == new for seen, new, _ in known),
            champion_right=sum(seen == old for seen, _, old in known),
        )


def _verdicts(session: Session, version: str) -> dict[int, bool]:
    """Whether the finding is seen, by item; items whose readers differ are left out."""
    rows = session.execute(
        select(Reading.item_id, func.min(Reading.verdict), func.max(Reading.verdict))
        .join(ScoreRecord, ScoreRecord.item_id == Reading.item_id)
        .join(ShadowScore, ShadowScore.score_id == ScoreRecord.id)
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(ShadowScore.model_version == version, Withdrawal.reading_id.is_(None))
        .group_by(Reading.item_id)
    )
    return {item: first == "confirmed" for item, first, last in rows if first == last}


def _histogram(probabilities: list[float]) -> tuple[int, ...]:
    counts = [0] * BINS
    for probability in probabilities:
        counts[min(int(probability * BINS), BINS - 1)] += 1
    return tuple(counts)
