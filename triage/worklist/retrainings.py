"""Runs of ``triage-retrain``: one at a time among all nodes, each with its end and its reason.

Who runs holds a lease and renews it. A lease that is not renewed ends, and with it the claim of
a process that was killed; the next one goes on with the same run and the same cutoff. A
process of the same name on the same node is the dead one's successor and need not wait, as
with the worklist's claims. Whoever lost the lease changes nothing more.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from triage.worklist.journal import clock, now
from triage.worklist.readings import UNDO
from triage.worklist.tables import Lease, Reading, Retraining, RetrainJob, Withdrawal

LEASE = dt.timedelta(seconds=60)
FARTHEST = 2 * LEASE
"""Nobody leases for so long: the clock was ahead then, and was set back."""

MOST_ATTEMPTS = 5
"""So many processes may die without coming further; then the run is FAILED."""

RETRAINING, SCHEDULE = "retraining", "schedule"


class RetrainingState(StrEnum):
    """Where a run stands."""

    RUNNING = "RUNNING"
    """A process works on it, or died and another goes on."""

    DONE = "DONE"
    """There is a challenger, and the gate has decided."""

    NOTHING = "NOTHING"
    """There was no cause to train; the reason says why."""

    FAILED = "FAILED"
    """It broke; the reason says how."""


@dataclass(frozen=True, slots=True)
class RetrainingRecord:
    """A run as an operator sees it; times are aware UTC.

    Attributes
    ----------
    id : int
    state : RetrainingState
    stage : str
    trigger : str
        ``command`` or ``schedule``.
    forced : bool
    cutoff : datetime
        Readings up to here count: none that its reader may still withdraw.
    holder : str
        The process that works on it, or did last.
    attempts : int
        Processes that began since it last came further.
    started_at, heartbeat_at : datetime
    ended_at : datetime or None
    snapshot, champion, version, outcome : str or None
        What it trained on, from and to, and what the gate said.
    reason : str
    """

    id: int
    state: RetrainingState
    stage: str
    trigger: str
    forced: bool
    cutoff: dt.datetime
    holder: str
    attempts: int
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    ended_at: dt.datetime | None
    snapshot: str | None
    champion: str | None
    version: str | None
    outcome: str | None
    reason: str

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: value.isoformat() if isinstance(value, dt.datetime) else value
            for name, value in values.items()
        }


class Retrainings:
    """The runs in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def lead(self, holder: str) -> bool:
        """Take or renew the schedule's lease; False if another node has it."""
        with self._transaction(write=True) as session:
            return take(session, SCHEDULE, holder)

    def resign(self, holder: str) -> None:
        """Give the schedule's lease back."""
        with self._transaction(write=True) as session:
            give_back(session, SCHEDULE, holder)

    def leader(self) -> str | None:
        """Who keeps the schedule now; None if nobody does."""
        with self._transaction() as session:
            lease = session.get_one(Lease, SCHEDULE)
            return lease.holder if _held(session, SCHEDULE) else None

    def start(
        self, holder: str, trigger: str, *, forced: bool = False, anew: bool = True
    ) -> RetrainingRecord | None:
        """Go on with the run whose process died, or begin one.

        A run whose processes died :data:`MOST_ATTEMPTS` times at the same place is FAILED here.

        Parameters
        ----------
        holder : str
        trigger : str
        forced : bool
            Of a new run.
        anew : bool
            Whether a run is begun if there is none to go on with.

        Returns
        -------
        RetrainingRecord or None
            None if another process runs one, or there is none to go on with.
        """
        with self._transaction(write=True) as session:
            if not take(session, RETRAINING, holder):
                return None
            at = now()
            for left in session.scalars(_unfinished()):
                if left.attempts < MOST_ATTEMPTS:
                    left.attempts += 1
                    left.holder, left.heartbeat_at = holder, at
                    return _shown(left)
                left.state, left.ended_at = RetrainingState.FAILED, at
                left.reason = (
                    f"its process died {MOST_ATTEMPTS} times while {left.stage}: see the log and "
                    "the system's, memory may be short"
                )
            if not anew:
                give_back(session, RETRAINING, holder)
                return None
            begun = Retraining(
                state=RetrainingState.RUNNING,
                stage="looking at readings",
                trigger=trigger,
                forced=forced,
                cutoff=at - UNDO,
                holder=holder,
                attempts=1,
                started_at=at,
                heartbeat_at=at,
                reason="",
            )
            session.add(begun)
            session.flush()
            return _shown(begun)

    def renew(self, holder: str, number: int, **found: str | None) -> bool:
        """Say that a run is alive, and what it has come to.

        Parameters
        ----------
        holder : str
        number : int
        found : str
            ``stage``, ``snapshot``, ``champion``, ``version`` or ``outcome``; a new stage is a
            step further.

        Returns
        -------
        bool
            False if the lease was lost: then the process must stop, and nothing was changed.
        """
        with self._transaction(write=True) as session:
            run = _held_run(session, holder, number)
            if run is None:
                return False
            take(session, RETRAINING, holder)
            run.heartbeat_at = now()
            if found.get("stage", run.stage) != run.stage:
                run.attempts = 1
            for name, value in found.items():
                setattr(run, name, value)
            return True

    def end(self, holder: str, number: int, state: RetrainingState, reason: str) -> bool:
        """End a run and give the lease back; False if it was lost before."""
        with self._transaction(write=True) as session:
            run = _held_run(session, holder, number)
            if run is None:
                return False
            run.state, run.reason = state, reason
            run.ended_at = run.heartbeat_at = now()
            give_back(session, RETRAINING, holder)
            return True

    def give_up(self, holder: str) -> None:
        """Give the lease back in the middle of a run, for whoever goes on with it."""
        with self._transaction(write=True) as session:
            give_back(session, RETRAINING, holder)

    def running(self) -> RetrainingRecord | None:
        """The run that a live process works on."""
        with self._transaction() as session:
            run = session.scalar(_unfinished())
            return _shown(run) if run and _held(session, RETRAINING) else None

    def left(self) -> RetrainingRecord | None:
        """The run whose process died, if nobody goes on with it."""
        with self._transaction() as session:
            run = session.scalar(_unfinished())
            return _shown(run) if run and not _held(session, RETRAINING) else None

    def records(self, limit: int | None = None) -> list[RetrainingRecord]:
        """Runs, the newest first."""
        with self._transaction() as session:
            newest = select(Retraining).order_by(Retraining.id.desc()).limit(limit)
            return [_shown(run) for run in session.scalars(newest)]

    def last(self, *states: RetrainingState) -> RetrainingRecord | None:
        """The newest run in one of some states."""
        with self._transaction() as session:
            run = session.scalar(
                select(Retraining)
                .where(Retraining.state.in_(states))
                .order_by(Retraining.id.desc())
                .limit(1)
            )
            return None if run is None else _shown(run)

    def new_readings(self, since: dt.datetime | None) -> int:
        """How many readings that were not withdrawn came after a time; all of them for None."""
        with self._transaction() as session:
            query = (
                select(func.count())
                .select_from(Reading)
                .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
                .where(Withdrawal.reading_id.is_(None))
            )
            if since is not None:
                query = query.where(Reading.read_at > since)
            return session.scalar(query) or 0

    def scheduled(self) -> Mapping[str, dt.datetime | None]:
        """When each job of the schedule is next due; None if it is paused."""
        with self._transaction() as session:
            rows = session.execute(select(RetrainJob.id, RetrainJob.next_run_time)).all()
            return {
                name: None if due is None else dt.datetime.fromtimestamp(due, dt.UTC)
                for name, due in rows
            }


def _unfinished() -> Any:
    return select(Retraining).where(Retraining.state == RetrainingState.RUNNING)


def _held(session: Session, name: str) -> bool:
    lease = session.get_one(Lease, name)
    at = clock(session)
    return lease.until is not None and at < lease.until < at + FARTHEST


def take(session: Session, name: str, holder: str) -> bool:
    """Take or renew a lease; False if another holder has it."""
    lease = session.get_one(Lease, name, with_for_update=True)
    if _held(session, name) and lease.holder != holder:
        return False
    lease.holder, lease.until = holder, clock(session) + LEASE
    return True


def give_back(session: Session, name: str, holder: str) -> None:
    """End a lease, if this holder has it."""
    lease = session.get_one(Lease, name, with_for_update=True)
    if lease.holder == holder:
        lease.holder = lease.until = None


def _held_run(session: Session, holder: str, number: int) -> Retraining | None:
    """A run that this holder still works on; the lease is locked until the transaction ends."""
    lease = session.get_one(Lease, RETRAINING, with_for_update=True)
    run = session.get_one(Retraining, number)
    ours = lease.holder == holder and run.holder == holder
    return run if ours and run.state == RetrainingState.RUNNING else None


def _shown(run: Retraining) -> RetrainingRecord:
    values = {name: getattr(run, name) for name in RetrainingRecord.__slots__}
    return RetrainingRecord(**{**values, "state": RetrainingState(run.state)})
