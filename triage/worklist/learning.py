"""What training may know of the worklist: exams as of a time, who withdrew, who is in the exam.

A patient leaves this module only as a keyed hash, so that a snapshot's manifest names nobody;
the key stays in the database, where all nodes share it.
"""

import datetime as dt
import hashlib
import hmac
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from triage.errors import UnknownPatient
from triage.worklist.audit import Action, record
from triage.worklist.journal import now
from triage.worklist.tables import (
    ExamDraw,
    Item,
    PatientConsent,
    Reading,
    ScoreRecord,
    SiteKey,
    Withdrawal,
)

_BATCH = 2_000

_LOCK = 0x7472_6961_6C65
"""PostgreSQL's advisory lock of whoever writes here; SQLite's writers exclude each other anyway."""

LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class StandingReading:
    """A reading that was not withdrawn at the time that was asked for.

    Attributes
    ----------
    id : int
    reader, verdict, sampling, source : str
        As in :class:`triage.worklist.readings.ReadingRecord`.
    read_at : datetime
        Aware, UTC.
    adjudicates, blinded : bool
    shown_score, shown_threshold : float
        0 to 1.
    shown_model_version : str
    """

    id: int
    reader: str
    verdict: str
    read_at: dt.datetime
    sampling: str
    adjudicates: bool
    blinded: bool
    source: str
    shown_score: float
    shown_threshold: float
    shown_model_version: str


@dataclass(frozen=True, slots=True)
class ScoredExam:
    """An item that had a score at the time that was asked for.

    Attributes
    ----------
    sop_instance_uid, digest : str
        The digest names the kept object.
    patient : str
        The patient's keyed hash; of the study, where no Patient ID was sent.
    study : str
        The study's keyed hash.
    picture_hash : str or None
    received_at : datetime
        Aware, UTC.
    console, view, age, sex : str
        As sent.
    flagged, blind : bool
    readings : tuple of StandingReading
        Oldest first.
    """

    sop_instance_uid: str
    digest: str
    patient: str
    study: str
    picture_hash: str | None
    received_at: dt.datetime
    console: str
    view: str
    age: str
    sex: str
    flagged: bool
    blind: bool
    readings: tuple[StandingReading, ...]


class Learning:
    """What training may know of a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction
        self._known_key: bytes | None = None

    def exams(self, until: dt.datetime) -> Iterator[ScoredExam]:
        """Every item that came and was scored until a time, with its readings as of then.

        The same time gives the same exams whenever it is asked, once it is a minute past: until
        then a reading may still be withdrawn within its own minute.

        Parameters
        ----------
        until : datetime
            Aware.

        Yields
        ------
        ScoredExam
            In the order in which they came.
        """
        key = self._key()
        readings = self._standing(until)
        last = 0
        while True:
            with self._transaction() as session:
                items = session.execute(
                    select(
                        Item.id,
                        Item.sop_instance_uid,
                        Item.digest,
                        Item.patient_id,
                        Item.study_instance_uid,
                        Item.picture_hash,
                        Item.received_at,
                        Item.calling_ae_title,
                        Item.view_position,
                        Item.patient_age,
                        Item.patient_sex,
                        Item.blind,
                    )
                    .where(Item.id > last, Item.received_at <= until)
                    .order_by(Item.id)
                    .limit(_BATCH)
                ).all()
                if not items:
                    return
                first, last = items[0].id, items[-1].id
                flagged: dict[int, bool] = {
                    row.item_id: row.probability >= row.threshold
                    for row in session.execute(
                        select(ScoreRecord.item_id, ScoreRecord.probability, ScoreRecord.threshold)
                        .where(
                            ScoreRecord.item_id.between(first, last),
                            ScoreRecord.scored_at <= until,
                        )
                        .order_by(ScoreRecord.scored_at, ScoreRecord.id)
                    )
                }
            for row in items:
                if row.id in flagged:
                    yield ScoredExam(
                        row.sop_instance_uid,
                        row.digest,
                        _patient(key, row.patient_id, row.study_instance_uid),
                        _hash(key, "study", row.study_instance_uid),
                        row.picture_hash,
                        row.received_at,
                        row.calling_ae_title,
                        row.view_position,
                        row.patient_age,
                        row.patient_sex,
                        flagged[row.id],
                        row.blind,
                        tuple(readings.get(row.id, ())),
                    )

    def withdraw(self, patient_id: str, because: str, actor: str, *, in_advance: bool) -> bool:
        """Take a patient's data out of every later snapshot; durable when this returns.

        Parameters
        ----------
        patient_id : str
            As consoles send it.
        because : str
            For the audit trail, which is never erased: no patient data.
        actor : str
        in_advance : bool
            Also a Patient ID that no item has.

        Returns
        -------
        bool
            False if it was withdrawn already; then nothing is written.

        Raises
        ------
        UnknownPatient
            No item has that Patient ID.
        ValueError
            The reason is empty, too long, or names the patient.
        """
        return self._consent(patient_id, because, actor, withdrawn=True, in_advance=in_advance)

    def restore(self, patient_id: str, because: str, actor: str) -> bool:
        """Let a withdrawn patient's data back into later snapshots, as :meth:`withdraw` says.

        Whoever was in the exam comes back to the exam.

        Returns
        -------
        bool
            False if it was not withdrawn.
        """
        return self._consent(patient_id, because, actor, withdrawn=False, in_advance=True)

    def withdrawn(self) -> frozenset[str]:
        """The keyed hashes of the patients who are withdrawn now."""
        with self._transaction() as session:
            latest = select(func.max(PatientConsent.id)).group_by(PatientConsent.patient)
            return frozenset(
                session.scalars(
                    select(PatientConsent.patient).where(
                        PatientConsent.id.in_(latest), PatientConsent.withdrawn
                    )
                )
            )

    def withdrawn_digests(self) -> set[str]:
        """The digests of the kept objects of the patients who are withdrawn now."""
        gone, key = self.withdrawn(), self._key()
        found: set[str] = set()
        last = 0
        while gone:
            with self._transaction() as session:
                rows = session.execute(
                    select(Item.id, Item.digest, Item.patient_id)
                    .where(Item.id > last, Item.patient_id != "")
                    .order_by(Item.id)
                    .limit(_BATCH)
                ).all()
            if not rows:
                break
            last = rows[-1].id
            found.update(row.digest for row in rows if _patient(key, row.patient_id, "") in gone)
        return found

    def draws(self) -> dict[str, bool]:
        """Of each patient that was drawn, whether into the exam."""
        with self._transaction() as session:
            return {row.patient: row.in_exam for row in session.scalars(select(ExamDraw))}

    def draw(self, groups: Sequence[frozenset[str]], share: float) -> dict[str, bool]:
        """Draw patients who have their first label, once for ever; all draws as they then are.

        Whether a patient is drawn follows from the site's key, so that two nodes that look at
        the same time draw alike; the rows make it last when the share changes.

        Parameters
        ----------
        groups : sequence of frozenset of str
            Hashes that are one patient. If one of a group was drawn before, the others follow;
            nothing that was drawn changes.
        share : float
            Of patients that go into the exam; 0 to 1.

        Returns
        -------
        dict of str to bool
            Of every hash, whether it is in the exam.
        """
        key = self._key()
        with self._transaction(write=True) as session:
            _exclude_others(session)
            drawn = {row.patient: row.in_exam for row in session.scalars(select(ExamDraw))}
            at = now()
            for group in groups:
                new = sorted(patient for patient in group if patient not in drawn)
                before = {drawn[patient] for patient in group if patient in drawn}
                # Of a group on both sides, nothing more is let into training.
                in_exam = any(before) if before else _uniform(key, min(group)) < share
                for patient in new:
                    session.add(ExamDraw(patient=patient, in_exam=in_exam, drawn_at=at))
                    drawn[patient] = in_exam
        return drawn

    def _standing(self, until: dt.datetime) -> Mapping[int, list[StandingReading]]:
        found: dict[int, list[StandingReading]] = defaultdict(list)
        names = StandingReading.__slots__
        last = 0
        while True:
            with self._transaction() as session:
                rows = session.execute(
                    select(Reading, Withdrawal.withdrawn_at)
                    .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
                    .where(Reading.id > last, Reading.read_at <= until)
                    .order_by(Reading.id)
                    .limit(_BATCH)
                ).all()
                for reading, withdrawn_at in rows:
                    if withdrawn_at is None or withdrawn_at > until:
                        values = {name: getattr(reading, name) for name in names}
                        found[reading.item_id].append(StandingReading(**values))
                if not rows:
                    return found
                last = rows[-1][0].id

    def _consent(
        self, patient_id: str, because: str, actor: str, *, withdrawn: bool, in_advance: bool
    ) -> bool:
        patient_id = patient_id.strip()
        if not patient_id:
            raise UnknownPatient("give a Patient ID: exams without one are known by their study")
        key = self._key()
        patient = _patient(key, patient_id, "")
        with self._transaction(write=True) as session:
            _exclude_others(session)
            query = select(Item.patient_name).where(Item.patient_id == patient_id)
            names = session.scalars(query).all()
            if not names and not in_advance:
                raise UnknownPatient(
                    "no worklist item has this Patient ID: look for a slip of the pen, or say "
                    "--in-advance"
                )
            _require_anonymous(because, [patient_id, *names])
            now_withdrawn = session.scalar(
                select(PatientConsent.withdrawn)
                .where(PatientConsent.patient == patient)
                .order_by(PatientConsent.id.desc())
                .limit(1)
            )
            if bool(now_withdrawn) == withdrawn:
                return False
            session.add(PatientConsent(patient=patient, withdrawn=withdrawn, at=now()))
            action = Action.PATIENT_WITHDRAWN if withdrawn else Action.PATIENT_RESTORED
            record(session, actor, action, patient, {"because": because, "exams": len(names)})
            return True

    def _key(self) -> bytes:
        """The site's key; made when it is first asked for."""
        if self._known_key is None:
            with self._transaction() as session:
                known = session.scalar(select(SiteKey.key))
            if known is None:
                with self._transaction(write=True) as session:
                    _exclude_others(session)
                    known = session.scalar(select(SiteKey.key))
                    if known is None:
                        known = secrets.token_hex(32)
                        session.add(SiteKey(id=1, key=known))
            self._known_key = bytes.fromhex(known)
        return self._known_key


def _exclude_others(session: Session) -> None:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def _hash(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 (RFC 2104), hexadecimal."""
    return hmac.new(key, "\0".join(parts).encode("utf-8"), hashlib.sha256).hexdigest()


def _patient(key: bytes, patient_id: str, study_instance_uid: str) -> str:
    """Padding spaces of an LO are not significant (PS3.5 6.2)."""
    patient_id = patient_id.strip()
    if patient_id:
        return _hash(key, "patient", patient_id)
    return _hash(key, "study without patient", study_instance_uid)


def _uniform(key: bytes, patient: str) -> float:
    """Evenly distributed from 0 to 1, the same for a patient at any time."""
    return int(_hash(key, "exam", patient)[:13], 16) / 16.0**13


def _require_anonymous(because: str, names: Sequence[str]) -> None:
    """The audit trail is never erased: what names a patient must not get into it."""
    if not because.strip() or len(because) > LONGEST_REASON or not because.isprintable():
        raise ValueError(f"the reason has 1 to {LONGEST_REASON} printable characters")
    words = {part for name in names for part in name.replace("=", "^").replace("^", " ").split()}
    said = because.lower()
    if any(len(word) > 2 and word.lower() in said for word in words):
        raise ValueError("the reason names the patient: the audit trail keeps it for ever")
