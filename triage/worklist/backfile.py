"""What a model version says of the back file, kept apart from live rows until it is applied.

A row is one image and one model version. It is written once it is known, so that a run that
ends in the middle goes on where it stood; an image that could not be read may be asked again.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Dialect, and_, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from triage.assessment import Assessment
from triage.errors import WorklistError
from triage.scoring import Priority, priority
from triage.worklist.audit import Action, record
from triage.worklist.deliveries import ResultKind, Route, enqueue
from triage.worklist.items import State, place
from triage.worklist.journal import journal, now
from triage.worklist.retrainings import give_back, take
from triage.worklist.tables import Item, Rescore, ScoreRecord

SPOOL = "spool"
"""The source of what is stored here."""

EVENT = "RESCORED"
"""The event of an item whose live row was looked at with a score of the back file."""

_LEASE = "rescore"
_PAGE = 500
_AT_ONCE = 100
"""Live rows that one transaction changes: the audit trail is locked for so long."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the stored exams are meant; None is all.

    Attributes
    ----------
    since, until : datetime or None
        Of receiving: from ``since`` on, before ``until``.
    console : str or None
        A calling AE title.
    state : State or None
    model : str or None
        The model version of the live score.
    """

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    console: str | None = None
    state: State | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored exam that is to be asked about."""

    sop_instance_uid: str
    digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an image now.

    Attributes
    ----------
    image : str
    place : str
    found : Assessment or str
        Or why nothing is known.
    """

    image: str
    place: str
    found: Assessment | str


@dataclass(frozen=True, slots=True)
class Change:
    """An image by what was said of it before, and by the back file.

    Attributes
    ----------
    image, place : str
    digest : str or None
        Of the stored object; None if it is not stored here.
    state : State or None
        Of the live row.
    read : bool
        Whether a reader has given a verdict.
    before, before_version : float or None, str or None
        The score that stands: the live row's or, of what is not stored here, that of the
        version which it is compared with.
    before_flagged : bool or None
    after : float or None
    after_flagged : bool or None
    reason : str or None
        Why it is not scored now.
    failure : str
    """

    image: str
    place: str
    digest: str | None
    state: State | None
    read: bool
    before: float | None
    before_flagged: bool | None
    before_version: str | None
    after: float | None
    after_flagged: bool | None
    reason: str | None
    failure: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of live rows.

    Attributes
    ----------
    scored : int
        Show the new score now; of them ``gained`` a flag and ``lost`` one.
    gained, lost : int
    kept : int
        Were read before, and stay as they were read; the new score stands beside.
    waiting : int
        Wait for the worker, whose business they are.
    """

    scored: int = 0
    gained: int = 0
    lost: int = 0
    kept: int = 0
    waiting: int = 0


class BackFile:
    """The back file's scores in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    routes : sequence of Route
        Where scores that become live are delivered.
    """

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Session]],
        routes: Sequence[Route],
    ) -> None:
        self._transaction, self._routes = transaction, tuple(routes)

    def lead(self, holder: str) -> None:
        """Take or renew the right to work on the back file.

        Raises
        ------
        WorklistError
            Another process of some node has it.
        """
        with self._transaction(write=True) as session:
            if not take(session, _LEASE, holder):
                raise WorklistError(
                    "the back file is being scored already, here or on another machine: wait "
                    "until that ends, or a minute if it was killed"
                )

    def resign(self, holder: str) -> None:
        """Give that right back."""
        with self._transaction(write=True) as session:
            give_back(session, _LEASE, holder)

    def count(self, selection: Selection, version: str, *, failed_too: bool) -> int:
        """How many stored exams are to be asked about."""
        with self._transaction() as session:
            done = aliased(Rescore)
            query = (
                select(func.count())
                .select_from(Item)
                .outerjoin(done, _same_image(done, version))
                .where(*_selected(selection), _open(done, failed_too=failed_too))
            )
            return session.scalar(query) or 0

    def waiting(
        self, selection: Selection, version: str, *, failed_too: bool
    ) -> Iterator[list[Stored]]:
        """Stored exams that are to be asked about, in pages, oldest first."""
        last = 0
        while True:
            with self._transaction() as session:
                done = aliased(Rescore)
                query = (
                    select(Item.id, Item.sop_instance_uid, Item.digest)
                    .outerjoin(done, _same_image(done, version))
                    .where(
                        Item.id > last, *_selected(selection), _open(done, failed_too=failed_too)
                    )
                    .order_by(Item.id)
                    .limit(_PAGE)
                )
                rows = session.execute(query).all()
            if not rows:
                return
            last = rows[-1].id
            yield [Stored(uid, digest) for _, uid, digest in rows]

    def known(self, version: str, images: Sequence[str], *, failed_too: bool) -> set[str]:
        """Those of some images that need not be asked about again."""
        with self._transaction() as session:
            query = select(Rescore.image).where(
                Rescore.model_version == version, Rescore.image.in_(images)
            )
            if failed_too:
                query = query.where(Rescore.failure == "")
            return set(session.scalars(query))

    def keep(self, holder: str, version: str, source: str, answers: Sequence[Answer]) -> None:
        """Write what is known of some images, each once; an earlier failure is replaced.

        Raises
        ------
        WorklistError
            The right to work on the back file was lost: then nothing is written.
        """
        rows = [_row(answer, version, source) for answer in answers]
        with self._transaction(write=True) as session:
            if not take(session, _LEASE, holder):
                raise WorklistError("another process works on the back file now: this one ends")
            if rows:
                _insert(session, rows)

    def changes(
        self, version: str, source: str, selection: Selection, against: str
    ) -> Iterator[Change]:
        """Every image of a source that was asked about, beside what was said of it before.

        Parameters
        ----------
        version : str
        source : str
        selection : Selection
            Of what is stored here; for an archive, all of it is told.
        against : str
            The version that images which are not stored here are compared by.
        """
        other = aliased(Rescore)
        same_image = and_(
            other.image == Rescore.image,
            other.model_version == against,
            other.model_version != version,
        )
        query = (
            select(Rescore, Item, other)
            .outerjoin(Item, Item.sop_instance_uid == Rescore.image)
            .outerjoin(other, same_image)
            .where(Rescore.model_version == version)
            .order_by(Rescore.image)
        )
        if source == SPOOL:
            query = query.where(Item.id.is_not(None), *_selected(selection))
        else:
            query = query.where(Rescore.source == source)
        last = ""
        while True:
            with self._transaction() as session:
                rows = session.execute(query.where(Rescore.image > last).limit(_PAGE)).all()
                found = [_change(*row) for row in rows]
            if not found:
                return
            yield from found
            last = found[-1].image

    def apply(self, version: str, selection: Selection, actor: str) -> Applied:
        """Let the scores of a version stand in the live rows of a selection.

        A row that was read stays as it was read. No exam's place in the reading order is
        lowered: an order's priority never is, and neither is what an earlier flag gave. Each row
        that is looked at gets an event and an entry in the audit trail.
        """
        done = Applied()
        last = 0
        while True:
            with self._transaction(write=True) as session:
                rows = session.execute(
                    select(Item, Rescore)
                    .join(Rescore, _same_image(Rescore, version))
                    .where(
                        Item.id > last,
                        Rescore.probability.is_not(None),
                        Rescore.applied_at.is_(None),
                        *_selected(selection),
                    )
                    .order_by(Item.id)
                    .limit(_AT_ONCE)
                    .with_for_update(of=Item)
                ).all()
                told: list[tuple[str, dict[str, Any]]] = []
                for item, row in rows:
                    last = item.id
                    done, detail = self._settle(session, item, row, actor, done)
                    if detail is not None:
                        told.append((item.sop_instance_uid, detail))
                for uid, detail in told:  # last: the trail's lock is held from here
                    record(session, actor, Action.RESCORED, uid, detail)
            if not rows:
                return done

    def _settle(
        self, session: Session, item: Item, row: Rescore, actor: str, done: Applied
    ) -> tuple[Applied, dict[str, Any] | None]:
        """Let one score stand; what was done by then, and what is told of it."""
        if item.state == State.RECEIVED:
            return _with(done, waiting=1), None
        at, probability, threshold = now(), float(row.probability or 0.0), float(row.threshold or 0)
        row.applied_at = at
        flagged = probability >= threshold
        known = session.scalar(
            select(ScoreRecord.id).where(
                ScoreRecord.item_id == item.id, ScoreRecord.model_version == row.model_version
            )
        )
        if known is not None:  # the worker has said it, too
            return done, None
        score = ScoreRecord(
            item_id=item.id,
            model_version=row.model_version,
            probability=probability,
            threshold=threshold,
            scored_at=at,
        )
        session.add(score)
        was_read = not item.unread or item.readings_count > 0
        detail: dict[str, Any] = {
            "probability": probability,
            "flagged": flagged,
            "model_version": row.model_version,
            "was_flagged": item.flagged,
            "was_model_version": item.model_version,
            "kept": "reading" if was_read else None,
        }
        journal(session, item.id, EVENT, actor, detail)
        if was_read:
            return _with(done, kept=1), detail
        gained, lost = flagged and not item.flagged, bool(item.flagged) and not flagged
        duplicate = "DUPLICATE_EXPOSURE" in item.notes
        item.notes = [*row.notes, "DUPLICATE_EXPOSURE"] if duplicate else list(row.notes)
        if not duplicate:
            item.explanation = ""
        item.state, item.reason = State.SCORED, None
        item.score, item.threshold, item.flagged = probability, threshold, flagged
        item.model_version, item.scored_at = row.model_version, at
        item.novelty, item.picture_hash = row.novelty, item.picture_hash or row.picture_hash
        item.revision += 1
        ordered = priority(item.ordered_priority, flagged=flagged or item.blind)
        urgency = max(ordered, Priority(item.urgency))
        item.urgency, item.rank_at = int(urgency), item.received_at - urgency.head_start
        place(session, item)
        enqueue(session, self._routes, (ResultKind.FINDING, ResultKind.HEAT_MAP), score)
        return _with(done, scored=1, gained=int(gained), lost=int(lost)), detail


def _with(done: Applied, **more: int) -> Applied:
    values = {name: getattr(done, name) + more.get(name, 0) for name in Applied.__slots__}
    return Applied(**values)


def _selected(selection: Selection) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if selection.since is not None:
        wanted.append(Item.received_at >= selection.since)
    if selection.until is not None:
        wanted.append(Item.received_at < selection.until)
    if selection.console is not None:
        wanted.append(Item.calling_ae_title == selection.console)
    if selection.state is not None:
        wanted.append(Item.state == selection.state)
    if selection.model is not None:
        wanted.append(Item.model_version == selection.model)
    return wanted


def _same_image(row: type[Rescore], version: str) -> ColumnElement[bool]:
    return and_(row.image == Item.sop_instance_uid, row.model_version == version)


def _open(done: type[Rescore], *, failed_too: bool) -> ColumnElement[bool]:
    """Nobody was asked; or it failed, and it is to be tried again."""
    nobody = done.image.is_(None)
    return or_(nobody, done.failure != "") if failed_too else nobody


def _row(answer: Answer, version: str, source: str) -> Mapping[str, Any]:
    found = answer.found
    known = found if isinstance(found, Assessment) else Assessment()
    return {
        "image": answer.image,
        "model_version": version,
        "source": source,
        "place": answer.place,
        "probability": None if known.score is None else known.score.probability,
        "threshold": None if known.score is None else known.score.threshold,
        "reason": known.reason,
        "explanation": known.explanation,
        "notes": list(known.notes),
        "picture_hash": known.picture_hash,
        "novelty": known.novelty,
        "failure": found if isinstance(found, str) else "",
        "scored_at": now(),
    }


def _insert(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; of those that are there, replace only failures."""
    dialect: Dialect = session.get_bind().dialect
    one = postgresql.insert(Rescore) if dialect.name == "postgresql" else sqlite.insert(Rescore)
    keys = ("image", "model_version")
    update = {name: one.excluded[name] for name in rows[0] if name not in keys}
    statement = one.on_conflict_do_update(
        index_elements=keys, set_=update, where=Rescore.failure != ""
    )
    session.execute(statement, list(rows))


def _change(row: Rescore, item: Item | None, other: Rescore | None) -> Change:
    before: tuple[float | None, bool | None, str | None] = (None, None, None)
    if item is not None:
        before = item.score, item.flagged, item.model_version
    elif other is not None and other.probability is not None and other.threshold is not None:
        flagged = other.probability >= other.threshold
        before = other.probability, flagged, other.model_version
    after: tuple[float | None, bool | None] = (None, None)
    if row.probability is not None and row.threshold is not None:
        after = row.probability, row.probability >= row.threshold
    return Change(
        row.image,
        row.place,
        None if item is None else item.digest,
        None if item is None else State(item.state),
        item is not None and (not item.unread or item.readings_count > 0),
        *before,
        *after,
        row.reason,
        row.failure,
    )
