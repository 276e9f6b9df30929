"""The worklist: items, scores, readings and events in SQL. All SQL of the project is here.

A :class:`Worklist` is what the other parts meet in. Each of its methods is one
transaction; what it returns is a value without ties to the database.
"""

import datetime as dt
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    CursorResult,
    Engine,
    Row,
    Select,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from triage.errors import UnknownItem, WorklistError
from triage.identity import Instance
from triage.quality import same_picture
from triage.scoring import Score, priority
from triage.worklist.accounts import Accounts
from triage.worklist.audit import ANCHOR, Trail
from triage.worklist.backfile import BackFile
from triage.worklist.bells import DELIVERIES, ITEMS, Bell, ring
from triage.worklist.commitments import Commitments
from triage.worklist.deliveries import Deliveries, ResultKind, Route, enqueue
from triage.worklist.drifts import Drifts
from triage.worklist.items import State, WorklistItem, find, place, shown, unknown
from triage.worklist.journal import clock as _clock
from triage.worklist.journal import entry as _entry
from triage.worklist.journal import journal as _journal
from triage.worklist.journal import now as _now
from triage.worklist.learning import Learning
from triage.worklist.levels import Gauges, oldest_unscored
from triage.worklist.parts import Parts
from triage.worklist.queries import Queries
from triage.worklist.readings import Readings
from triage.worklist.retention import Retention
from triage.worklist.retrainings import Retrainings
from triage.worklist.schema import WRITE, open_engine, require_current, unavailable
from triage.worklist.sessions import Sessions
from triage.worklist.shadows import Shadows
from triage.worklist.statistics import Statistics
from triage.worklist.tables import Event, Item, ScoreRecord

__all__ = ["Arrival", "Claim", "JournalEntry", "State", "Worklist", "WorklistItem"]

MAX_ATTEMPTS = 3
"""So often scoring is tried before an item is FAILED."""

LEASE = dt.timedelta(seconds=60)
FARTHEST = 2 * LEASE
RETRY_PAUSE = dt.timedelta(seconds=2)

DUPLICATE_WINDOW = dt.timedelta(hours=24)
"""Two instances that came further apart are not looked at as one exposure."""

DUPLICATE_CANDIDATES = 64
"""How many of a patient's latest instances are compared; a test phantom has thousands."""

_DIGEST = select(Item.digest).where(Item.sop_instance_uid == bindparam("uid"))
_ITEM, _EVENT = insert(Item).returning(Item.id), insert(Event)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An instance that is safe in the spool and may enter the worklist.

    Attributes
    ----------
    instance : Instance
    transfer_syntax_uid : str
    calling_ae_title, calling_address : str
        The console.
    digest : str
        Of the spooled data set.
    size : int
        Bytes of the data set.
    """

    instance: Instance
    transfer_syntax_uid: str
    calling_ae_title: str
    calling_address: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to score an item until its lease ends."""

    item_id: int
    sop_instance_uid: str
    digest: str
    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One event of an item."""

    at: dt.datetime
    action: str
    actor: str
    detail: dict[str, Any]


class Worklist:
    """The worklist in one database.

    Parameters
    ----------
    url : str
        An SQLAlchemy URL of SQLite or PostgreSQL.
    routes : sequence of Route
        Where the scores and readings that are recorded here are delivered.
    anchor : Path, optional
        Where the end of the audit trail is remembered outside of the database.
    blind_share : float
        Of the scored items that are drawn into the random sample; 0 to 1.

    Attributes
    ----------
    readings : Readings
    queries : Queries
    statistics : Statistics
    deliveries : Deliveries
    audit : Trail
    accounts : Accounts
    sessions : Sessions
    commitments : Commitments
    retrainings : Retrainings
    learning : Learning
    shadows : Shadows
    drifts : Drifts
    retention : Retention
    gauges : Gauges
    parts : Parts
    back_file : BackFile

    Raises
    ------
    WorklistError
        There is no database, it cannot be reached, or its schema is another.
    """

    def __init__(
        self,
        url: str,
        routes: Sequence[Route] = (),
        anchor: Path | None = None,
        blind_share: float = 0.0,
    ) -> None:
        self._routes = tuple(routes)
        self._info = {} if anchor is None else {ANCHOR: anchor}
        self._blind_share = blind_share
        self.readings = Readings(self._transaction, self._routes)
        self.queries = Queries(self._transaction)
        self.statistics = Statistics(self._transaction)
        self.audit = Trail(self._transaction, anchor)
        self.accounts = Accounts(self._transaction)
        self.sessions = Sessions(self._transaction, self.accounts)
        self._reading = open_engine(url, create=False)
        self.deliveries = Deliveries(
            self._transaction, lambda poll: Bell(self._reading, DELIVERIES, poll)
        )
        self._writing = self._reading.execution_options(**{WRITE: True})
        # SQLite's writers sleep for up to 0.1 s and try again; threads can take turns instead.
        single = self._reading.dialect.name == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Lock() if single else nullcontext()
        self.commitments = Commitments(self._transaction)
        self.retrainings = Retrainings(self._transaction)
        self.learning = Learning(self._transaction)
        self.shadows = Shadows(self._transaction)
        self.drifts = Drifts(self._transaction)
        self.retention = Retention(self._transaction)
        self.gauges = Gauges(self._transaction, self.deliveries)
        self.parts = Parts(self._transaction)
        self.back_file = BackFile(self._transaction, self._routes)
        try:
            require_current(self._reading)
        except WorklistError:
            self.close()
            raise

    def engine(self) -> Engine:
        """For APScheduler's job store, which brings its own SQL; each transaction may write."""
        return self._writing

    def bell(self, poll: float) -> Bell:
        """Wakes a worker when an item comes; see :class:`Bell`."""
        return Bell(self._reading, ITEMS, poll)

    def close(self) -> None:
        """Give the connections back."""
        self._reading.dispose()

    # The receiver's side

    def digest(self, sop_instance_uid: str) -> str | None:
        """The digest of the data set that first came under a UID; None if none did."""
        with self._connection() as connection:
            return connection.scalar(_DIGEST, {"uid": sop_instance_uid})

    def receive(self, arrival: Arrival) -> bool:
        """Enter an instance; durable when this returns.

        Returns
        -------
        bool
            False if another receiver was first with this SOP Instance UID.
        """
        now = _now()
        instance = arrival.instance
        urgency = priority(instance.ordered_priority, flagged=False)
        item = {
            **{name: getattr(instance, name) for name in Instance.__slots__},
            "transfer_syntax_uid": arrival.transfer_syntax_uid,
            "calling_ae_title": arrival.calling_ae_title,
            "calling_address": arrival.calling_address,
            "digest": arrival.digest,
            "size": arrival.size,
            "received_at": now,
            "state": State.RECEIVED,
            "urgency": int(urgency),
            "rank_at": now - urgency.head_start,
            "unread": True,
            "name_key": instance.patient_name.lower()[:256],
        }
        try:
            with self._connection(write=True) as connection:
                item_id = connection.execute(_ITEM, item).scalar_one()
                came = _entry(item_id, State.RECEIVED, arrival.calling_ae_title)
                connection.execute(_EVENT, came)
                ring(connection, ITEMS)
        except IntegrityError:
            return False
        return True

    def quarantined(self, sop_instance_uid: str, digest: str, calling_ae_title: str) -> None:
        """Note that another data set came under a known UID and was put aside."""
        with self._transaction(write=True) as session:
            item_id = session.scalar(
                select(Item.id).where(Item.sop_instance_uid == sop_instance_uid)
            )
            if item_id is None:
                raise UnknownItem(unknown(sop_instance_uid))
            _journal(session, item_id, "QUARANTINED", calling_ae_title, {"digest": digest})

    # The worker's side

    def claim(self, worker: str) -> Claim | None:
        """The next item to score, leased to a worker; None if nothing waits.

        An item whose earlier claims all died with their workers is FAILED here, so that
        one radiograph that kills the worker cannot hold up the rest.
        """
        with self._transaction() as session:
            if session.scalar(_claimable(_clock(session))) is None:
                return None
        while True:
            with self._transaction(write=True) as session:
                now = _clock(session)
                row = session.scalar(_claimable(now).with_for_update(skip_locked=True))
                if row is None:
                    return None
                item = session.get_one(Item, row)
                if item.attempts < MAX_ATTEMPTS:
                    item.attempts += 1
                    item.claimed_by, item.claimed_until = worker, now + LEASE
                    return Claim(item.id, item.sop_instance_uid, item.digest, worker, item.attempts)
                _fail(
                    session,
                    item,
                    "WORKER_DIED",
                    f"the worker died, or did not end, {MAX_ATTEMPTS} times while scoring it",
                    worker,
                )

    def abandon(self, worker: str) -> int:
        """Return the claims that a dead worker of this name held; their number."""
        with self._transaction(write=True) as session:
            result = session.execute(
                update(Item)
                .where(Item.claimed_by == worker, Item.state == State.RECEIVED)
                .values(claimed_by=None, claimed_until=None)
            )
            return _rows(result)

    def give_back(self, claim: Claim) -> bool:
        """Let an item be claimed again at once, as if it had not been; False if it was lost.

        For an outage that is no fault of the item's: it costs none of its attempts.
        """
        with self._transaction(write=True) as session:
            item = _claimed(session, claim)
            if item is None:
                return False
            item.attempts -= 1
            item.claimed_by = item.claimed_until = None
            return True

    def scored(
        self,
        claim: Claim,
        score: Score,
        notes: tuple[str, ...],
        picture_hash: str | None = None,
        novelty: float | None = None,
    ) -> bool:
        """Record a score and set the item's place in the reading order.

        Parameters
        ----------
        claim : Claim
        score : Score
        notes : tuple of str
        picture_hash : str or None
            Of the picture. If one of the same patient or study shows the same exposure,
            ``DUPLICATE_EXPOSURE`` is noted and the explanation names it.
        novelty : float or None
            Of the picture; 0 or more.

        Returns
        -------
        bool
            False if the claim was lost to another worker; then nothing is recorded.
        """
        with self._transaction(write=True) as session:
            others = _exposures(session, claim, picture_hash)
            item = _claimed(session, claim)
            if item is None:
                return False
            now = _now()
            item.state, item.notes, item.explanation = State.SCORED, list(notes), ""
            duplicate = _compare(item, picture_hash, others)
            item.score, item.threshold = score.probability, score.threshold
            item.flagged, item.model_version = score.flagged, score.model_version
            item.scored_at, item.novelty = now, novelty
            item.revision += 1
            # Flagged ones, too, and all with a flag's head start: neither that an exam is in
            # the sample nor its place in the list tells its score, and no flagged one waits.
            item.blind = item.blind or random.SystemRandom().random() < self._blind_share
            urgency = priority(item.ordered_priority, flagged=score.flagged or item.blind)
            item.urgency, item.rank_at = int(urgency), item.received_at - urgency.head_start
            item.claimed_by = item.claimed_until = None
            record = ScoreRecord(
                item_id=item.id,
                model_version=score.model_version,
                probability=score.probability,
                threshold=score.threshold,
                scored_at=now,
            )
            session.add(record)
            place(session, item)
            enqueue(session, self._routes, (ResultKind.FINDING, ResultKind.HEAT_MAP), record)
            _journal(
                session,
                item.id,
                State.SCORED,
                claim.worker,
                {
                    "probability": score.probability,
                    "flagged": score.flagged,
                    "model_version": score.model_version,
                    **duplicate,
                },
            )
            return True

    def not_scored(
        self,
        claim: Claim,
        reason: str,
        explanation: str,
        notes: tuple[str, ...] = (),
        picture_hash: str | None = None,
        novelty: float | None = None,
    ) -> bool:
        """Record why an item is not scored; False if the claim was lost.

        The picture's hash and novelty, if it was looked at, are used as :meth:`scored` uses
        them.
        """
        with self._transaction(write=True) as session:
            others = _exposures(session, claim, picture_hash)
            item = _claimed(session, claim)
            if item is None:
                return False
            item.state, item.reason, item.explanation = State.NOT_SCORED, reason, explanation
            item.notes, item.novelty = list(notes), novelty
            item.revision += 1
            duplicate = _compare(item, picture_hash, others)
            item.claimed_by = item.claimed_until = None
            place(session, item)
            detail = {"reason": reason, **duplicate}
            _journal(session, item.id, State.NOT_SCORED, claim.worker, detail)
            return True

    def failed(self, claim: Claim, reason: str, explanation: str) -> bool:
        """Record that scoring broke: tried again after a pause, then FAILED.

        Returns
        -------
        bool
            False if the claim was lost to another worker.
        """
        with self._transaction(write=True) as session:
            item = _claimed(session, claim)
            if item is None:
                return False
            if item.attempts >= MAX_ATTEMPTS:
                _fail(session, item, reason, explanation, claim.worker)
            else:
                item.claimed_by, item.claimed_until = (
                    None,
                    _clock(session) + RETRY_PAUSE * item.attempts,
                )
                _journal(session, item.id, "RETRIED", claim.worker, {"reason": reason})
            return True

    # The reader's side

    def items(self, state: State | None = None, limit: int | None = None) -> list[WorklistItem]:
        """Items in reading order: unread first, then by urgency and waiting time."""
        query = select(Item).order_by(Item.unread.desc(), Item.rank_at, Item.id)
        if state is not None:
            query = query.where(Item.state == state)
        with self._transaction() as session:
            now = _now()
            return [shown(item, now) for item in session.scalars(query.limit(limit))]

    def item(self, sop_instance_uid: str) -> WorklistItem:
        """One item.

        Raises
        ------
        UnknownItem
            No item has that UID.
        """
        with self._transaction() as session:
            return shown(find(session, sop_instance_uid), _now())

    def journal(self, sop_instance_uid: str) -> list[JournalEntry]:
        """An item's events, oldest first."""
        with self._transaction() as session:
            item = find(session, sop_instance_uid)
            query = select(Event).where(Event.item_id == item.id).order_by(Event.id)
            return [
                JournalEntry(event.at, event.action, event.actor, event.detail)
                for event in session.scalars(query)
            ]

    def counts(self, states: Sequence[State] = tuple(State)) -> dict[State, int]:
        """How many items stand in each state.

        Takes as long as there are such items: those that are settled grow with the years.
        """
        with self._transaction() as session:
            rows = session.execute(
                select(Item.state, func.count()).where(Item.state.in_(states)).group_by(Item.state)
            )
            found = {State(state): count for state, count in rows}
            return {state: found.get(state, 0) for state in states}

    def oldest_received(self) -> dt.datetime | None:
        """When the longest waiting unscored item came; None if none waits."""
        with self._transaction() as session:
            return session.scalar(oldest_unscored())

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Session]:
        """One transaction; database failures leave as :class:`WorklistError`."""
        with (
            self._opened(write=write) as engine,
            Session(engine, info=self._info) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _connection(self, *, write: bool = False) -> Iterator[Connection]:
        """The same without objects of rows, for what every instance needs that arrives.

        They would cost a third of what Python does for it.
        """
        with self._opened(write=write) as engine, engine.begin() as connection:
            yield connection

    @contextmanager
    def _opened(self, *, write: bool) -> Iterator[Engine]:
        try:
            with self._turn if write else nullcontext():
                yield self._writing if write else self._reading
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise WorklistError(unavailable(error)) from error


def _claimable(now: dt.datetime) -> Select[int]:
    return (
        select(Item.id)
        .where(
            Item.state == State.RECEIVED,
            or_(
                Item.claimed_until.is_(None),
                Item.claimed_until < now,
                # Nobody claims for so long: the clock was ahead then, and was set back.
                Item.claimed_until > now + FARTHEST,
            ),
        )
        .order_by(Item.rank_at, Item.id)
        .limit(1)
    )


def _claimed(session: Session, claim: Claim) -> Item | None:
    """The item of a claim, locked; None if the claim no longer holds."""
    return session.scalar(
        select(Item)
        .where(
            Item.id == claim.item_id,
            Item.state == State.RECEIVED,
            Item.claimed_by == claim.worker,
            Item.attempts == claim.attempt,
        )
        .with_for_update()
    )


def _exposures(
    session: Session, claim: Claim, picture_hash: str | None
) -> Sequence[Row[int, str, str | None]]:
    """Instances that may show a claimed item's exposure: its patient's and study's latest.

    They and the item itself are locked, in the order of their ids: of two workers with two
    copies of an exposure, the second waits for the first and then sees its hash. That is why
    the hashes are compared here and not in SQL, which would have looked before it waited.

    Returns
    -------
    sequence of rows
        Id, SOP Instance UID and picture hash, oldest first.
    """
    if picture_hash is None:
        return ()
    known = select(Item.study_instance_uid, Item.patient_id, Item.received_at)
    study, patient, came = session.execute(known.where(Item.id == claim.item_id)).one()
    related = Item.study_instance_uid == study
    if patient:
        related = or_(related, Item.patient_id == patient)
    latest = (
        select(Item.id)
        .where(related, Item.received_at.between(came - DUPLICATE_WINDOW, came + DUPLICATE_WINDOW))
        .order_by(Item.received_at.desc(), Item.id.desc())
        .limit(DUPLICATE_CANDIDATES)
    )
    locked = (
        select(Item.id, Item.sop_instance_uid, Item.picture_hash)
        .where(or_(Item.id.in_(latest), Item.id == claim.item_id))
        .order_by(Item.id)
        .with_for_update(key_share=True)
    )
    return [row for row in session.execute(locked) if row.id != claim.item_id]


def _compare(
    item: Item, picture_hash: str | None, others: Sequence[Row[int, str, str | None]]
) -> dict[str, str]:
    """Note an item's hash and the first instance that shows the same exposure.

    Returns
    -------
    dict
        What the item's event says of it; empty if there is none.
    """
    item.picture_hash = picture_hash
    if picture_hash is None:
        return {}
    for _, uid, known in others:
        if known is not None and same_picture(known, picture_hash):
            item.notes = [*item.notes, "DUPLICATE_EXPOSURE"]
            told = f"the same exposure came as {uid}"
            item.explanation = f"{item.explanation}; {told}" if item.explanation else told
            return {"duplicate_of": uid}
    return {}


def _fail(session: Session, item: Item, reason: str, explanation: str, actor: str) -> None:
    item.state, item.reason, item.explanation = State.FAILED, reason, explanation
    item.revision += 1
    item.claimed_by = item.claimed_until = None
    _journal(session, item.id, State.FAILED, actor, {"reason": reason})


def _rows(result: Any) -> int:
    return result.rowcount if isinstance(result, CursorResult) else 0
