"""Deliveries: which result goes to which destination, and how far it has come.

A delivery is made in the transaction of the score or the reading that it tells of, so no
crash can lose one, and it is settled in transactions of its own, so a dead PACS holds up
no score. ``docs/worklist.md`` draws the states.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from triage.errors import UnknownDelivery
from triage.scoring import Score, Verdict
from triage.worklist.bells import DELIVERIES, Bell, ring
from triage.worklist.journal import clock, journal, now
from triage.worklist.tables import Delivery, Item, Reading, ScoreRecord, Withdrawal

DELIVERY_LEASE = dt.timedelta(minutes=5)
"""Longer than building and sending one result takes; after it, another may try."""

FARTHEST = dt.timedelta(hours=1)
"""No attempt is put off for so long: a later one was, by a clock that was set back since."""

DEAD_PAUSE = dt.timedelta(seconds=2)
"""Times the attempts: how long a delivery rests after the process that had it died."""


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    """Waits for its next attempt, or is being attempted."""

    DELIVERED = "DELIVERED"
    """The destination has said that it has taken it."""

    PARKED = "PARKED"
    """Given up until an operator lets it be tried again."""


class ResultKind(StrEnum):
    """What a result tells. What it looks like is the destination's affair."""

    FINDING = "FINDING"
    """What a model version says of an instance."""

    HEAT_MAP = "HEAT_MAP"
    """Where in the radiograph the score comes from."""

    READING = "READING"
    """What a radiologist says of the finding."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a destination takes.

    Attributes
    ----------
    destination : str
        Its name.
    kinds : tuple of ResultKind
    """

    destination: str
    kinds: tuple[ResultKind, ...]


@dataclass(frozen=True, slots=True)
class ReadingSent:
    """A reading as a result tells of it.

    Attributes
    ----------
    verdict : str
        ``confirmed`` or ``rejected``.
    reader : str
    read_at : datetime
        Aware, UTC.
    """

    verdict: Verdict
    reader: str
    read_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Subject:
    """What a result is about; of what never changes once it is written.

    Attributes
    ----------
    sop_instance_uid, series_instance_uid, study_instance_uid : str
        The radiograph's.
    accession_number, patient_id : str
        As sent; may be empty.
    digest : str
        Of the radiograph in the spool.
    received_at, scored_at : datetime
        Aware, UTC.
    notes : tuple of str
        What was odd about the radiograph; codes of ``docs/reasons.md``.
    score : Score
    readings : tuple of ReadingSent
        Of a result that tells of a reading, all under this score up to that one; else none.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    accession_number: str
    patient_id: str
    digest: str
    received_at: dt.datetime
    scored_at: dt.datetime
    notes: tuple[str, ...]
    score: Score
    readings: tuple[ReadingSent, ...]


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """A deliverer's right to attempt a delivery until its lease ends.

    Attributes
    ----------
    delivery_id : int
    worker : str
    attempt : int
        1 for the first.
    destination : str
    kind : ResultKind
    subject : Subject
    result_uid, result_digest : str or None
        Of what was built and kept in an earlier attempt; None if nothing was.
    """

    delivery_id: int
    worker: str
    attempt: int
    destination: str
    kind: ResultKind
    subject: Subject
    result_uid: str | None
    result_digest: str | None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery as an operator sees it; times are aware UTC."""

    id: int
    destination: str
    kind: ResultKind
    state: DeliveryState
    attempts: int
    created_at: dt.datetime
    next_attempt_at: dt.datetime | None
    delivered_at: dt.datetime | None
    error: str
    """Why the latest attempt failed; empty if none has, or once it was delivered."""
    result_uid: str | None
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a destination has not taken yet.

    Attributes
    ----------
    destination : str
    pending, parked : int
    oldest : datetime or None
        When the longest pending one was made; aware, UTC.
    error : str
        Why one of them was not taken; may be empty.
    """

    destination: str
    pending: int
    parked: int
    oldest: dt.datetime | None
    error: str


def enqueue(
    session: Session,
    routes: Sequence[Route],
    kinds: Sequence[ResultKind],
    score: ScoreRecord,
    reading: Reading | None = None,
    pause: dt.timedelta = dt.timedelta(0),
) -> None:
    """Make the deliveries of a score or a reading, in the transaction that records it.

    They are due after a pause, in which a reading may still be withdrawn.
    """
    session.flush()  # gives the new rows their keys
    at = clock(session)
    ring(session.connection(), DELIVERIES)
    session.add_all(
        Delivery(
            item_id=score.item_id,
            score_id=score.id,
            reading_id=None if reading is None else reading.id,
            kind=kind,
            destination=route.destination,
            state=DeliveryState.PENDING,
            attempts=0,
            created_at=at,
            next_attempt_at=at + pause,
            error="",
        )
        for route in routes
        for kind in kinds
        if kind in route.kinds
    )


class Deliveries:
    """The deliveries of a worklist.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    bell : callable
        Makes a :class:`Bell` that rings for deliveries, from the seconds to wait without.
    """

    def __init__(
        self,
        transaction: Callable[..., AbstractContextManager[Session]],
        bell: Callable[[float], Bell],
    ) -> None:
        self._transaction, self.bell = transaction, bell

    # The deliverer's side

    def claim(self, worker: str, destination: str, most: int) -> DeliveryClaim | None:
        """The next delivery to a destination, leased to a worker; None if none is due.

        Pictures last, urgent exams first. A reading goes only after the finding and the
        readings before it were taken: a destination that keeps the latest must end with the
        latest.

        Parameters
        ----------
        worker : str
        destination : str
        most : int
            A delivery whose attempts all died with their processes is PARKED here.
        """
        with self._transaction() as session:
            if session.scalar(_due(destination, clock(session))) is None:
                return None
        while True:
            with self._transaction(write=True) as session:
                at = clock(session)
                row = session.scalar(
                    _due(destination, at).with_for_update(of=Delivery, skip_locked=True)
                )
                if row is None:
                    return None
                delivery = session.get_one(Delivery, row)
                if delivery.attempts < most:
                    delivery.attempts += 1
                    delivery.claimed_by = worker
                    delivery.next_attempt_at = at + DELIVERY_LEASE
                    return _claim(session, delivery, worker)
                _park(session, delivery, worker, "the deliverer died in the last attempt")

    def abandon(self, worker: str) -> int:
        """Return the claims that a dead deliverer of this name held; their number."""
        with self._transaction(write=True) as session:
            held = session.scalars(
                select(Delivery).where(
                    Delivery.claimed_by == worker, Delivery.state == DeliveryState.PENDING
                )
            ).all()
            for delivery in held:
                delivery.claimed_by = None
                delivery.next_attempt_at = clock(session) + DEAD_PAUSE * delivery.attempts
            return len(held)

    def built(self, claim: DeliveryClaim, result_uid: str, result_digest: str) -> bool:
        """Remember which bytes every attempt sends; False if the claim was lost."""
        with self._transaction(write=True) as session:
            delivery = _claimed(session, claim)
            if delivery is None:
                return False
            delivery.result_uid, delivery.result_digest = result_uid, result_digest
            return True

    def delivered(self, claim: DeliveryClaim) -> bool:
        """Record that the destination has taken it; False if the claim was lost."""
        with self._transaction(write=True) as session:
            delivery = _claimed(session, claim)
            if delivery is None:
                return False
            delivery.state = DeliveryState.DELIVERED
            delivery.delivered_at = now()
            delivery.next_attempt_at = delivery.claimed_by = None
            delivery.error = ""
            _note(session, delivery, DeliveryState.DELIVERED, claim.worker)
            return True

    def not_delivered(
        self, claim: DeliveryClaim, error: str, next_attempt_at: dt.datetime | None
    ) -> bool:
        """Record why an attempt failed, and when the next one is due.

        Parameters
        ----------
        claim : DeliveryClaim
        error : str
            In one line, without patient data.
        next_attempt_at : datetime or None
            None parks the delivery.

        Returns
        -------
        bool
            False if the claim was lost to another deliverer.
        """
        with self._transaction(write=True) as session:
            delivery = _claimed(session, claim)
            if delivery is None:
                return False
            if next_attempt_at is None:
                _park(session, delivery, claim.worker, error)
            else:
                delivery.error = error
                delivery.next_attempt_at, delivery.claimed_by = next_attempt_at, None
            return True

    # The operator's side

    def records(
        self, state: DeliveryState | None = None, limit: int | None = None
    ) -> list[DeliveryRecord]:
        """Deliveries, the newest first."""
        query = (
            select(Delivery, Item.sop_instance_uid)
            .join(Item, Item.id == Delivery.item_id)
            .order_by(Delivery.id.desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(Delivery.state == state)
        with self._transaction() as session:
            return [_shown(delivery, uid) for delivery, uid in session.execute(query)]

    def backlogs(self) -> list[Backlog]:
        """What each destination has not taken yet, by its name."""
        query = (
            select(
                Delivery.destination,
                Delivery.state,
                func.count(),
                func.min(Delivery.created_at),
                func.max(Delivery.error),
            )
            # Not "is not DELIVERED": that would be read along all that ever was delivered.
            .where(Delivery.state.in_((DeliveryState.PENDING, DeliveryState.PARKED)))
            .group_by(Delivery.destination, Delivery.state)
        )
        with self._transaction() as session:
            found: dict[str, dict[str, Any]] = {}
            for destination, state, count, oldest, error in session.execute(query):
                found.setdefault(destination, {})[state] = (count, oldest, error)
        nothing = (0, None, "")
        backlogs = []
        for destination, states in sorted(found.items()):
            pending, oldest, error = states.get(DeliveryState.PENDING, nothing)
            parked, _, parked_error = states.get(DeliveryState.PARKED, nothing)
            backlogs.append(Backlog(destination, pending, parked, oldest, parked_error or error))
        return backlogs

    def retry(self, delivery_id: int, actor: str) -> DeliveryRecord:
        """Let one delivery be attempted at once, whatever its state; as it then stands.

        What was delivered goes out again with the same bytes: for a destination that lost
        it.

        Raises
        ------
        UnknownDelivery
            No delivery has that number.
        """
        with self._transaction(write=True) as session:
            delivery = session.get(Delivery, delivery_id, with_for_update=True)
            if delivery is None:
                raise UnknownDelivery(
                    f"there is no delivery {delivery_id}: `triage deliveries list` lists them"
                )
            _renew(session, delivery, actor)
            uid = session.get_one(Item, delivery.item_id).sop_instance_uid
            return _shown(delivery, uid)

    def retry_parked(self, actor: str) -> int:
        """Let every parked delivery be attempted at once; their number."""
        with self._transaction(write=True) as session:
            parked = session.scalars(
                select(Delivery).where(Delivery.state == DeliveryState.PARKED).with_for_update()
            ).all()
            for delivery in parked:
                _renew(session, delivery, actor)
            return len(parked)


def _due(destination: str, at: dt.datetime) -> Select[int]:
    earlier = aliased(Delivery)
    held_back = (
        select(earlier.id)
        .where(
            Delivery.kind == ResultKind.READING,
            earlier.score_id == Delivery.score_id,
            earlier.destination == Delivery.destination,
            earlier.kind != ResultKind.HEAT_MAP,
            earlier.id < Delivery.id,
            earlier.state != DeliveryState.DELIVERED,
        )
        .exists()
    )
    return (
        select(Delivery.id)
        .join(Item, Item.id == Delivery.item_id)
        .where(
            Delivery.destination == destination,
            Delivery.state == DeliveryState.PENDING,
            or_(Delivery.next_attempt_at <= at, Delivery.next_attempt_at > at + FARTHEST),
            ~held_back,
        )
        # A picture takes as long as ten reports, and nobody waits for it.
        .order_by(Delivery.kind == ResultKind.HEAT_MAP, Item.rank_at, Delivery.id)
        .limit(1)
    )


def _claim(session: Session, delivery: Delivery, worker: str) -> DeliveryClaim:
    item = session.get_one(Item, delivery.item_id)
    score = session.get_one(ScoreRecord, delivery.score_id)
    readings = session.scalars(
        select(Reading)
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(
            Reading.item_id == score.item_id,
            Reading.shown_model_version == score.model_version,
            Reading.id <= (delivery.reading_id or 0),
            Withdrawal.reading_id.is_(None),
        )
        .order_by(Reading.id)
    )
    return DeliveryClaim(
        delivery.id,
        worker,
        delivery.attempts,
        delivery.destination,
        ResultKind(delivery.kind),
        Subject(
            sop_instance_uid=item.sop_instance_uid,
            series_instance_uid=item.series_instance_uid,
            study_instance_uid=item.study_instance_uid,
            accession_number=item.accession_number,
            patient_id=item.patient_id,
            digest=item.digest,
            received_at=item.received_at,
            scored_at=score.scored_at,
            notes=tuple(item.notes),
            score=Score(score.probability, score.threshold, score.model_version),
            readings=tuple(
                ReadingSent(cast("Verdict", reading.verdict), reading.reader, reading.read_at)
                for reading in readings
            ),
        ),
        delivery.result_uid,
        delivery.result_digest,
    )


def _claimed(session: Session, claim: DeliveryClaim) -> Delivery | None:
    """The delivery of a claim, locked; None if the claim no longer holds."""
    return session.scalar(
        select(Delivery)
        .where(
            Delivery.id == claim.delivery_id,
            Delivery.state == DeliveryState.PENDING,
            Delivery.claimed_by == claim.worker,
            Delivery.attempts == claim.attempt,
        )
        .with_for_update()
    )


def _park(session: Session, delivery: Delivery, actor: str, error: str) -> None:
    delivery.state, delivery.error = DeliveryState.PARKED, error
    delivery.next_attempt_at = delivery.claimed_by = None
    _note(session, delivery, DeliveryState.PARKED, actor, error=error)


def _renew(session: Session, delivery: Delivery, actor: str) -> None:
    delivery.state, delivery.attempts = DeliveryState.PENDING, 0
    delivery.next_attempt_at, delivery.claimed_by = clock(session), None
    delivery.delivered_at = None
    _note(session, delivery, "DELIVERY_RETRIED", actor)


def _note(session: Session, delivery: Delivery, action: str, actor: str, **detail: str) -> None:
    told = {"destination": delivery.destination, "kind": str(delivery.kind), **detail}
    journal(session, delivery.item_id, action, actor, told)


def _shown(delivery: Delivery, sop_instance_uid: str) -> DeliveryRecord:
    copied = {
        name: getattr(delivery, name)
        for name in DeliveryRecord.__slots__
        if name not in {"kind", "state", "sop_instance_uid"}
    }
    return DeliveryRecord(
        **copied,
        kind=ResultKind(delivery.kind),
        state=DeliveryState(delivery.state),
        sop_instance_uid=sop_instance_uid,
    )
