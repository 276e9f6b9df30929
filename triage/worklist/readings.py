"""Readings: what radiologists say of items, appended and never edited.

An item's state follows from its *standing* readings, those that were not withdrawn: of each
reader the newest counts, a later one moves the state, and where readers differ the item
stands in the adjudication list until somebody settles it.
"""

import csv
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TextIO, get_args

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from triage.errors import (
    BadImport,
    Changed,
    KeyReused,
    NoDisagreement,
    NotReadable,
    TooLate,
    UnknownReading,
)
from triage.identity import valid_uid
from triage.scoring import Verdict
from triage.worklist.audit import Action, record
from triage.worklist.deliveries import DeliveryState, ResultKind, Route, enqueue
from triage.worklist.items import State, WorklistItem, find, place, shown
from triage.worklist.journal import journal, now
from triage.worklist.learning import StandingReading
from triage.worklist.tables import (
    AnsweredRequest,
    Delivery,
    Event,
    Item,
    Reading,
    ScoreRecord,
    Withdrawal,
)

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

UNDO = dt.timedelta(seconds=60)
"""So long a reader may take a reading back; only then is it told to others."""

_CLOCK_STEP = dt.timedelta(seconds=2)
"""A reading may lie so far in the future: nodes' clocks differ a little."""

COLUMNS = ("sop_instance_uid", "verdict", "reader", "comment")
"""Of a file of readings; the last may be left out."""

MOST_LINES = 100_000
LONGEST_COMMENT = 2_000


@dataclass(frozen=True, slots=True)
class ReadingRecord:
    """One reading of an item.

    Attributes
    ----------
    id : int
    reader, verdict : str
    read_at : datetime
        Aware, UTC.
    sampling : str
        ``flagged`` or ``unflagged``; ``random`` for an item of the random sample.
    shown_score, shown_threshold : float
        0 to 1; those of the item when it was read.
    shown_model_version : str
    blinded : bool
        They were hidden from the reader until the verdict.
    comment : str
    location : tuple of two float, or None
        Of the finding in the stored picture: 0 left to 1 right, 0 top to 1 bottom.
    adjudicates : bool
    source : str
        ``page``, ``command`` or ``import``.
    withdrawn_at : datetime or None
    """

    id: int
    reader: str
    verdict: str
    read_at: dt.datetime
    sampling: str
    shown_score: float
    shown_threshold: float
    shown_model_version: str
    blinded: bool
    comment: str
    location: tuple[float, float] | None
    adjudicates: bool
    source: str
    withdrawn_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Said:
    """What a reader says of an item; valid by construction.

    Attributes
    ----------
    verdict : {'confirmed', 'rejected'}
        Whether the reader sees the finding.
    reader : str
        1 to 64 printable characters.
    comment : str
        At most 2,000 characters.
    location : tuple of two float, or None
        0 to 1 each.
    adjudicates : bool
    source : str

    Raises
    ------
    ValueError
        One of them is something else.
    """

    verdict: Verdict
    reader: str
    comment: str = ""
    location: tuple[float, float] | None = None
    adjudicates: bool = False
    source: str = "command"

    def __post_init__(self) -> None:
        """Refuse what is no reading."""
        if self.verdict not in VERDICTS:
            raise ValueError(f"the verdict is one of {', '.join(VERDICTS)}")
        if not 1 <= len(self.reader) <= 64 or not self.reader.isprintable():
            raise ValueError("the reader is named by 1 to 64 printable characters")
        if len(self.comment) > LONGEST_COMMENT or "\0" in self.comment:
            raise ValueError(f"a comment has at most {LONGEST_COMMENT} characters")
        if self.location is not None and not all(0.0 <= each <= 1.0 for each in self.location):
            raise ValueError("a location is two numbers from 0 to 1")


@dataclass(frozen=True, slots=True)
class Once:
    """A request that its client named, so that sending it again does nothing more.

    Attributes
    ----------
    key : str
        The client's name for it; 1 to 128 characters.
    fingerprint : str
        Of all that was asked.
    """

    key: str
    fingerprint: str

    @classmethod
    def of(cls, key: str, *content: object) -> "Once":
        """A request of some content."""
        text = json.dumps(content, sort_keys=True, default=str)
        return cls(key, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class LineReport:
    """What becomes of a line of an imported file.

    Attributes
    ----------
    line : int
        1 is the heading.
    sop_instance_uid : str
    problem : str
        Empty if the line can be taken.
    """

    line: int
    sop_instance_uid: str
    problem: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an item's standing readings come to.

    Attributes
    ----------
    kind : {'single', 'agreed', 'adjudicated', 'unresolved'}
        One reader; several of one opinion; a disagreement that somebody settled; one that
        nobody has.
    verdict : str or None
        None if unresolved.
    """

    kind: Literal["single", "agreed", "adjudicated", "unresolved"]
    verdict: str | None


def resolve(standing: Sequence[Reading | StandingReading]) -> Resolution:
    """Of each reader the newest counts; the last adjudication settles whatever was said.

    Parameters
    ----------
    standing : sequence of readings
        At least one, oldest first, none of them withdrawn.
    """
    for reading in reversed(standing):
        if reading.adjudicates:
            return Resolution("adjudicated", reading.verdict)
    newest = {reading.reader: reading.verdict for reading in standing}
    if len(set(newest.values())) > 1:
        return Resolution("unresolved", None)
    return Resolution("single" if len(newest) == 1 else "agreed", standing[-1].verdict)


class Readings:
    """The readings in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    routes : sequence of Route
        Where readings are told.
    """

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Session]],
        routes: Sequence[Route],
    ) -> None:
        self._transaction, self._routes = transaction, tuple(routes)

    def of(self, sop_instance_uid: str) -> list[ReadingRecord]:
        """An item's readings, oldest first, the withdrawn ones among them."""
        with self._transaction() as session:
            item = find(session, sop_instance_uid)
            return [
                _shown(reading, withdrawn)
                for reading, withdrawn in session.execute(
                    select(Reading, Withdrawal.withdrawn_at)
                    .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
                    .where(Reading.item_id == item.id)
                    .order_by(Reading.id)
                )
            ]

    def read_by(self, reader: str, sop_instance_uids: Sequence[str]) -> set[str]:
        """Those of the items that have a standing reading of a reader."""
        if not sop_instance_uids:
            return set()
        with self._transaction() as session:
            return set(
                session.scalars(
                    select(Item.sop_instance_uid)
                    .join(Reading, Reading.item_id == Item.id)
                    .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
                    .where(
                        Item.sop_instance_uid.in_(sop_instance_uids),
                        Reading.reader == reader,
                        Withdrawal.reading_id.is_(None),
                    )
                )
            )

    def add(
        self,
        sop_instance_uid: str,
        said: Said,
        *,
        revision: int | None = None,
        once: Once | None = None,
        undo: dt.timedelta = dt.timedelta(0),
    ) -> tuple[ReadingRecord, WorklistItem]:
        """Append a reading and let the item's state follow; durable when this returns.

        Parameters
        ----------
        sop_instance_uid : str
        said : Said
        revision : int, optional
            The item's when the reader saw it.
        once : Once, optional
            If the same request was answered before, its reading is given and nothing done.
        undo : timedelta
            How long the reading is not told to destinations, as it may be withdrawn.

        Raises
        ------
        UnknownItem
            No item has that UID.
        NotReadable
            The item has no score.
        Changed
            The item is of another revision.
        NoDisagreement
            It adjudicates what nobody disagrees on.
        KeyReused
            The key came with another request before.
        """
        with self._transaction(write=True) as session:
            item = find(session, sop_instance_uid, lock=True)
            if once is not None:
                known = session.get(AnsweredRequest, (said.reader, once.key))
                if known is not None:
                    return _again(session, known, once, item)
            if revision is not None and revision != item.revision:
                raise Changed(
                    f"{sop_instance_uid} was read or scored anew since it was shown: look again"
                )
            reading = _append(session, item, said)
            _settle(session, item)
            self._tell(session, item, reading, undo)
            journal(session, item.id, item.state, said.reader, {"reading": reading.id})
            if once is not None:
                session.add(
                    AnsweredRequest(
                        account=said.reader,
                        key=once.key,
                        fingerprint=once.fingerprint,
                        reading_id=reading.id,
                        answered_at=reading.read_at,
                    )
                )
            action = Action.ADJUDICATED if said.adjudicates else Action.READ
            record(session, said.reader, action, sop_instance_uid, _audited(reading))
            return _shown(reading, None), shown(item, now())

    def withdraw(self, sop_instance_uid: str, reading_id: int, reader: str) -> WorklistItem:
        """Take a reading back within :data:`UNDO`; the item as it then stands.

        Raises
        ------
        UnknownItem, UnknownReading
            There is no such item, or it has no such reading.
        TooLate
            It is somebody else's, or of more than a minute ago by this machine's clock.
        """
        with self._transaction(write=True) as session:
            item = find(session, sop_instance_uid, lock=True)
            reading = session.get(Reading, reading_id)
            if reading is None or reading.item_id != item.id:
                raise UnknownReading(f"{sop_instance_uid} has no reading {reading_id}")
            if reading.reader != reader:
                raise TooLate(f"reading {reading_id} is somebody else's: only its reader withdraws")
            if session.get(Withdrawal, reading_id) is not None:
                return shown(item, now())
            # A clock that was set back must not open what was closed: it is at least as late
            # as the latest event says.
            latest = session.scalar(select(Event.at).order_by(Event.id.desc()).limit(1))
            age = max(now(), latest or reading.read_at) - reading.read_at
            if not -_CLOCK_STEP <= age <= UNDO:
                raise TooLate(
                    f"a reading can be withdrawn for {UNDO.seconds} seconds; say what is right in "
                    "another reading"
                )
            session.add(Withdrawal(reading_id=reading_id, withdrawn_at=now()))
            session.execute(
                delete(Delivery).where(
                    Delivery.reading_id == reading_id,
                    Delivery.state == DeliveryState.PENDING,
                    Delivery.attempts == 0,
                )
            )
            session.flush()
            _settle(session, item)
            journal(session, item.id, "WITHDRAWN", reader, {"reading": reading_id})
            record(session, reader, Action.WITHDREW, sop_instance_uid, {"reading": reading_id})
            return shown(item, now())

    def take(self, file: TextIO, actor: str, *, dry_run: bool) -> list[LineReport]:
        """Import readings, such as labels derived from reports: all lines or none.

        Parameters
        ----------
        file : text file
            CSV (RFC 4180) with the heading :data:`COLUMNS`.
        actor : str
            Who imports, for the audit trail.
        dry_run : bool
            Only say what would become of each line.

        Returns
        -------
        list of LineReport
            One for each line.

        Raises
        ------
        BadImport
            The file is no such table; or, unless it is a dry run, a line cannot be taken.
        """
        lines = list(_lines(file))
        with self._transaction(write=True) as session:
            reports = []
            for number, uid, said in lines:
                problem = said if isinstance(said, str) else _objection(session, uid)
                reports.append(LineReport(number, uid, problem))
            wrong = [report for report in reports if report.problem]
            if dry_run:
                return reports
            if wrong:
                raise BadImport(
                    f"{len(wrong)} of {len(reports)} lines cannot be taken, so none was; line "
                    f"{wrong[0].line}: {wrong[0].problem}",
                    [(report.line, report.problem) for report in wrong],
                )
            for _, uid, said in lines:
                assert isinstance(said, Said)  # noqa: S101  # others were reported
                item = find(session, uid, lock=True)
                reading = _append(session, item, said)
                _settle(session, item)
                self._tell(session, item, reading, dt.timedelta(0))
                journal(session, item.id, item.state, said.reader, {"reading": reading.id})
            record(session, actor, Action.IMPORTED, "", {"readings": len(lines)})
            return reports

    def export(self, actor: str) -> Iterator[dict[str, str]]:
        """All readings as rows of text, oldest first; the withdrawn ones say so.

        Yields
        ------
        dict of str to str
            The keys are those of the heading.
        """
        with self._transaction(write=True) as session:
            record(session, actor, Action.EXPORTED, "", {"what": "readings"})
        last = 0
        while True:
            with self._transaction() as session:
                found = session.execute(
                    select(Reading, Item.sop_instance_uid, Withdrawal.withdrawn_at)
                    .join(Item, Item.id == Reading.item_id)
                    .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
                    .where(Reading.id > last)
                    .order_by(Reading.id)
                    .limit(1_000)
                )
                rows = [_row(uid, _shown(reading, withdrawn)) for reading, uid, withdrawn in found]
            if not rows:
                return
            yield from rows
            last = int(rows[-1]["reading"])

    def _tell(self, session: Session, item: Item, reading: Reading, undo: dt.timedelta) -> None:
        score = session.scalars(
            select(ScoreRecord).where(
                ScoreRecord.item_id == item.id, ScoreRecord.model_version == item.model_version
            )
        ).one_or_none()
        if score is not None:
            enqueue(session, self._routes, (ResultKind.READING,), score, reading, undo)


def _append(session: Session, item: Item, said: Said) -> Reading:
    objection = _unreadable(item)
    if objection:
        raise NotReadable(objection)
    if said.adjudicates and not item.disagreement:
        raise NoDisagreement(
            f"readers do not disagree on {item.sop_instance_uid}: read it as any other exam"
        )
    latest = session.scalar(select(func.max(Reading.read_at)).where(Reading.item_id == item.id))
    already = session.scalar(
        _standing(item.id)
        .with_only_columns(Reading.id)
        .where(Reading.reader == said.reader)
        .limit(1)
    )
    reading = Reading(
        item_id=item.id,
        reader=said.reader,
        verdict=said.verdict,
        # A clock that was set back does not change the order of what was said.
        read_at=now() if latest is None else max(now(), latest),
        sampling="random" if item.blind else "flagged" if item.flagged else "unflagged",
        shown_score=item.score,
        shown_threshold=item.threshold,
        shown_model_version=item.model_version,
        blinded=item.blind and said.source == "page" and already is None,
        comment=said.comment,
        location_x=None if said.location is None else said.location[0],
        location_y=None if said.location is None else said.location[1],
        adjudicates=said.adjudicates,
        source=said.source,
    )
    session.add(reading)
    session.flush()
    return reading


def _unreadable(item: Item) -> str:
    """Why there is nothing to confirm or reject; empty if there is."""
    if item.score is not None and item.threshold is not None and item.model_version is not None:
        return ""
    because = f" ({item.reason})" if item.reason else ""
    return (
        f"{item.sop_instance_uid} is {item.state}{because}: it has no score that could be "
        "confirmed or rejected; read it in the PACS"
    )


def _objection(session: Session, sop_instance_uid: str) -> str:
    item = session.scalar(select(Item).where(Item.sop_instance_uid == sop_instance_uid))
    if item is None:
        return "no worklist item has this SOP Instance UID"
    return _unreadable(item)


def _standing(item_id: int) -> Select[Reading]:
    return (
        select(Reading)
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(Reading.item_id == item_id, Withdrawal.reading_id.is_(None))
    )


def _settle(session: Session, item: Item) -> None:
    """Let the item follow from its standing readings."""
    standing = session.scalars(_standing(item.id).order_by(Reading.id)).all()
    item.revision += 1
    item.readings_count = len(standing)
    if not standing:
        item.state, item.unread, item.disagreement = State.SCORED, True, False
        place(session, item)
        return
    resolution = resolve(standing)
    item.disagreement = resolution.kind == "unresolved"
    verdict = resolution.verdict or standing[-1].verdict
    item.state = State.CONFIRMED if verdict == "confirmed" else State.REJECTED
    item.unread = False
    place(session, item)


def _again(
    session: Session, known: AnsweredRequest, once: Once, item: Item
) -> tuple[ReadingRecord, WorklistItem]:
    if known.fingerprint != once.fingerprint:
        raise KeyReused("this idempotency key came with another request: choose a new one")
    reading = session.get_one(Reading, known.reading_id)
    withdrawal = session.get(Withdrawal, reading.id)
    return _shown(reading, None if withdrawal is None else withdrawal.withdrawn_at), shown(
        item, now()
    )


def _audited(reading: Reading) -> dict[str, object]:
    return {
        "reading": reading.id,
        "verdict": reading.verdict,
        "model_version": reading.shown_model_version,
        "blinded": reading.blinded,
    }


def _shown(reading: Reading, withdrawn_at: dt.datetime | None) -> ReadingRecord:
    copied = {
        name: getattr(reading, name)
        for name in ReadingRecord.__slots__
        if name not in {"location", "withdrawn_at"}
    }
    x, y = reading.location_x, reading.location_y
    return ReadingRecord(
        **copied, location=None if x is None or y is None else (x, y), withdrawn_at=withdrawn_at
    )


def _lines(file: TextIO) -> Iterator[tuple[int, str, Said | str]]:
    """Line numbers with what they say, or why that is no reading."""
    rows = csv.reader(file, strict=True)
    try:
        heading = [name.strip() for name in next(rows, [])]
        if heading not in (list(COLUMNS), list(COLUMNS[:-1])):
            raise BadImport(
                f"line 1: the heading is not {','.join(COLUMNS)} (the last may be left out)"
            )
        seen: set[tuple[str, str]] = set()
        for row in rows:
            number = rows.line_num
            if number > MOST_LINES:
                raise BadImport(f"more than {MOST_LINES} lines: cut the file into several")
            if not any(cell.strip() for cell in row):
                continue
            uid = row[0].strip()
            if len(row) != len(heading):
                yield number, uid[:64], f"{len(row)} columns instead of {len(heading)}"
                continue
            said = _said(uid, *(cell.strip() for cell in row[1:]))
            if isinstance(said, Said):
                if (uid, said.reader) in seen:
                    said = "the same reader read the same exam in an earlier line"
                else:
                    seen.add((uid, said.reader))
            yield number, uid[:64], said
    except csv.Error as error:
        raise BadImport(f"line {rows.line_num}: this is no CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise BadImport("the file is not UTF-8: save it as such") from error


def _said(uid: str, verdict: str, reader: str, comment: str = "") -> Said | str:
    if not valid_uid(uid):
        return "the first column is no SOP Instance UID (PS3.5 9.1)"
    try:
        return Said(verdict.lower(), reader, comment, source="import")  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)


def _row(sop_instance_uid: str, reading: ReadingRecord) -> dict[str, str]:
    x, y = reading.location or ("", "")
    withdrawn = reading.withdrawn_at
    return {
        "sop_instance_uid": sop_instance_uid,
        "verdict": reading.verdict,
        "reader": reading.reader,
        "comment": reading.comment,
        "reading": str(reading.id),
        "read_at": reading.read_at.isoformat(),
        "sampling": reading.sampling,
        "shown_score": repr(reading.shown_score),
        "shown_threshold": repr(reading.shown_threshold),
        "shown_model_version": reading.shown_model_version,
        "blinded": str(reading.blinded).lower(),
        "location_x": str(x),
        "location_y": str(y),
        "adjudicates": str(reading.adjudicates).lower(),
        "source": reading.source,
        "withdrawn_at": withdrawn.isoformat() if withdrawn else "",
    }


EXPORTED = (
    *COLUMNS,
    "reading",
    "read_at",
    "sampling",
    "shown_score",
    "shown_threshold",
    "shown_model_version",
    "blinded",
    "location_x",
    "location_y",
    "adjudicates",
    "source",
    "withdrawn_at",
)
"""The heading of an export."""
