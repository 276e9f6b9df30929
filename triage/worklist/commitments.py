"""Requests for Storage Commitment, and how far their reports have come (PS3.4 annex J)."""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from triage.errors import UnknownCommitment
from triage.worklist.tables import Commitment, Item

LEASE = dt.timedelta(minutes=15)
"""Longer than one report takes, however many files it hashes; after it, another may try."""

FARTHEST = dt.timedelta(hours=2)
"""No report is put off for so long: a later one was, by a clock that was set back since."""

AT_ONCE = 500
"""Instances looked up in one statement."""

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


class CommitmentState(StrEnum):
    """Where the report of a transaction stands."""

    PENDING = "PENDING"
    """Waits for its next attempt, or is being attempted."""

    REPORTED = "REPORTED"
    """The requester has taken it."""

    PARKED = "PARKED"
    """Given up until an operator or the requester asks again."""


@dataclass(frozen=True, slots=True)
class CommitmentClaim:
    """A right to attempt a report until its lease ends.

    Attributes
    ----------
    commitment_id : int
    transaction_uid : str
    requester : str
        Its AE title.
    references : tuple of (str, str)
    duplicate : bool
        An earlier transaction has this Transaction UID for something else.
    worker : str
    attempt : int
        1 for the first.
    """

    commitment_id: int
    transaction_uid: str
    requester: str
    references: tuple[Reference, ...]
    duplicate: bool
    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CommitmentRecord:
    """A transaction as an operator sees it; times are aware UTC."""

    id: int
    transaction_uid: str
    requester: str
    instances: int
    state: CommitmentState
    attempts: int
    requested_at: dt.datetime
    next_attempt_at: dt.datetime | None
    reported_at: dt.datetime | None
    error: str
    """Why the latest attempt failed; empty if none has, or once it was reported."""


class Commitments:
    """The transactions in a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def request(
        self, transaction_uid: str, requester: str, references: Sequence[Reference]
    ) -> bool:
        """Keep a request; durable when this returns.

        Asked for again, word for word, a transaction is reported again.

        Returns
        -------
        bool
            Whether it was new.
        """
        fingerprint = hashlib.sha256(
            json.dumps([requester, sorted(references)]).encode()
        ).hexdigest()
        now = dt.datetime.now(dt.UTC)
        while True:
            with self._transaction(write=True) as session:
                known = session.scalar(
                    select(Commitment)
                    .where(
                        Commitment.transaction_uid == transaction_uid,
                        Commitment.fingerprint == fingerprint,
                    )
                    .with_for_update()
                )
                if known is not None:
                    if known.state != CommitmentState.PENDING:
                        _renew(known, now)
                    return False
            try:
                with self._transaction(write=True) as session:
                    session.add(
                        Commitment(
                            transaction_uid=transaction_uid,
                            fingerprint=fingerprint,
                            requester=requester,
                            instances=[list(each) for each in references],
                            state=CommitmentState.PENDING,
                            attempts=0,
                            requested_at=now,
                            next_attempt_at=now,
                            error="",
                        )
                    )
            except IntegrityError:
                continue  # another association was faster with the same request
            return True

    def claim(self, worker: str, requester: str, most: int) -> CommitmentClaim | None:
        """The next due report to a requester, leased to a worker; None if none is due.

        One whose attempts all died with their processes is PARKED here.
        """
        due = (
            select(Commitment.id)
            .where(Commitment.requester == requester, Commitment.state == CommitmentState.PENDING)
            .order_by(Commitment.next_attempt_at, Commitment.id)
            .limit(1)
        )
        with self._transaction() as session:
            now = dt.datetime.now(dt.UTC)
            if session.scalar(due.where(_is_due(now))) is None:
                return None
        while True:
            with self._transaction(write=True) as session:
                now = dt.datetime.now(dt.UTC)
                found = session.scalar(due.where(_is_due(now)).with_for_update(skip_locked=True))
                if found is None:
                    return None
                row = session.get_one(Commitment, found)
                if row.attempts < most:
                    row.attempts += 1
                    row.claimed_by, row.next_attempt_at = worker, now + LEASE
                    return _claim(session, row, worker)
                _park(row, "the process died in the last attempt")

    def abandon(self, worker: str) -> int:
        """Return the claims that a dead process of this name held; their number."""
        with self._transaction(write=True) as session:
            held = session.scalars(
                select(Commitment).where(
                    Commitment.claimed_by == worker, Commitment.state == CommitmentState.PENDING
                )
            ).all()
            for row in held:
                row.claimed_by, row.next_attempt_at = None, dt.datetime.now(dt.UTC)
            return len(held)

    def kept(self, uids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """SOP class and digest of the instances that are in the worklist, by their UID."""
        found: dict[str, tuple[str, str]] = {}
        with self._transaction() as session:
            for start in range(0, len(uids), AT_ONCE):
                rows = session.execute(
                    select(Item.sop_instance_uid, Item.sop_class_uid, Item.digest).where(
                        Item.sop_instance_uid.in_(uids[start : start + AT_ONCE])
                    )
                )
                found.update({uid: (sop_class, digest) for uid, sop_class, digest in rows})
        return found

    def reported(self, claim: CommitmentClaim) -> bool:
        """Record that the requester has taken the report; False if the claim was lost."""
        with self._transaction(write=True) as session:
            row = _claimed(session, claim)
            if row is None:
                return False
            row.state, row.error = CommitmentState.REPORTED, ""
            row.reported_at = dt.datetime.now(dt.UTC)
            row.next_attempt_at = row.claimed_by = None
            return True

    def not_reported(
        self, claim: CommitmentClaim, error: str, next_attempt_at: dt.datetime | None
    ) -> bool:
        """Record why an attempt failed and when the next is due; None parks the report.

        Returns
        -------
        bool
            False if the claim was lost.
        """
        with self._transaction(write=True) as session:
            row = _claimed(session, claim)
            if row is None:
                return False
            if next_attempt_at is None:
                _park(row, error)
            else:
                row.error, row.next_attempt_at, row.claimed_by = error, next_attempt_at, None
            return True

    # The operator's side

    def records(
        self, state: CommitmentState | None = None, limit: int | None = None
    ) -> list[CommitmentRecord]:
        """Transactions, the newest first."""
        query = select(Commitment).order_by(Commitment.id.desc()).limit(limit)
        if state is not None:
            query = query.where(Commitment.state == state)
        with self._transaction() as session:
            return [_shown(row) for row in session.scalars(query)]

    def counts(self) -> dict[CommitmentState, int]:
        """How many transactions stand in each state."""
        with self._transaction() as session:
            rows = session.execute(
                select(Commitment.state, func.count()).group_by(Commitment.state)
            )
            found = {CommitmentState(state): count for state, count in rows}
            return {state: found.get(state, 0) for state in CommitmentState}

    def oldest_pending(self) -> dt.datetime | None:
        """When the report was asked for that is due longest; None if none is."""
        with self._transaction() as session:
            return session.scalar(
                select(func.min(Commitment.requested_at)).where(
                    Commitment.state == CommitmentState.PENDING
                )
            )

    def retry(self, commitment_id: int) -> CommitmentRecord:
        """Let a report be attempted anew at once, whatever its state; as it then stands.

        Raises
        ------
        UnknownCommitment
            No transaction has that number.
        """
        with self._transaction(write=True) as session:
            row = session.get(Commitment, commitment_id, with_for_update=True)
            if row is None:
                raise UnknownCommitment(
                    f"there is no commitment {commitment_id}: `triage commitments list` lists them"
                )
            _renew(row, dt.datetime.now(dt.UTC))
            return _shown(row)

    def retry_parked(self) -> int:
        """Let every parked report be attempted anew at once; their number."""
        with self._transaction(write=True) as session:
            parked = session.scalars(
                select(Commitment)
                .where(Commitment.state == CommitmentState.PARKED)
                .with_for_update()
            ).all()
            for row in parked:
                _renew(row, dt.datetime.now(dt.UTC))
            return len(parked)


def _is_due(now: dt.datetime) -> ColumnElement[bool]:
    return or_(Commitment.next_attempt_at <= now, Commitment.next_attempt_at > now + FARTHEST)


def _claim(session: Session, row: Commitment, worker: str) -> CommitmentClaim:
    earlier = session.scalar(
        select(Commitment.id)
        .where(Commitment.transaction_uid == row.transaction_uid, Commitment.id < row.id)
        .limit(1)
    )
    return CommitmentClaim(
        row.id,
        row.transaction_uid,
        row.requester,
        tuple((sop_class, instance) for sop_class, instance in row.instances),
        earlier is not None,
        worker,
        row.attempts,
    )


def _claimed(session: Session, claim: CommitmentClaim) -> Commitment | None:
    """The row of a claim, locked; None if the claim no longer holds."""
    return session.scalar(
        select(Commitment)
        .where(
            Commitment.id == claim.commitment_id,
            Commitment.state == CommitmentState.PENDING,
            Commitment.claimed_by == claim.worker,
            Commitment.attempts == claim.attempt,
        )
        .with_for_update()
    )


def _park(row: Commitment, error: str) -> None:
    row.state, row.error = CommitmentState.PARKED, error
    row.next_attempt_at = row.claimed_by = None


def _renew(row: Commitment, now: dt.datetime) -> None:
    row.state, row.attempts, row.error = CommitmentState.PENDING, 0, ""
    row.next_attempt_at, row.claimed_by, row.reported_at = now, None, None


def _shown(row: Commitment) -> CommitmentRecord:
    copied = {
        name: getattr(row, name)
        for name in CommitmentRecord.__slots__
        if name not in {"state", "instances"}
    }
    return CommitmentRecord(
        **copied, state=CommitmentState(row.state), instances=len(row.instances)
    )
