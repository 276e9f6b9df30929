"""The audit trail: who saw and who said what. Appended only, each row bound to the one before.

A row's hash covers its content and the hash of the row before it, so a row that was
changed, removed or put in between shows. Rows cut off at the end would not; therefore the
newest row's number and hash are also kept outside of the database, in a small file, the
*anchor*. Triggers refuse changes on both databases: the chain is for whoever gets around
them.
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session, SessionTransaction

from triage.errors import AuditBroken, WorklistError
from triage.worklist.journal import now
from triage.worklist.tables import AuditRow

ANCHOR = "audit_anchor"
"""Key of a session's ``info``: the anchor's :class:`Path`; without it, none is kept."""

_PENDING = "audit_pending"
"""Key of a session's ``info``: the newest row that is not committed yet."""

_GENESIS = "0" * 64
"""What the first row has for the hash of the row before it."""

_APPEND_LOCK = 0x7472_6961_6175
"""PostgreSQL's advisory lock of whoever appends; SQLite's writers exclude each other anyway."""

_BATCH = 1_000


class Action(StrEnum):
    """What an audit row tells of."""

    SIGNED_IN = "SIGNED_IN"
    SIGN_IN_REFUSED = "SIGN_IN_REFUSED"
    SIGNED_OUT = "SIGNED_OUT"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"  # noqa: S105
    ACCOUNT_ADDED = "ACCOUNT_ADDED"
    ACCOUNT_ROLES = "ACCOUNT_ROLES"
    ACCOUNT_RESET = "ACCOUNT_RESET"
    ACCOUNT_DISABLED = "ACCOUNT_DISABLED"
    ACCOUNT_ENABLED = "ACCOUNT_ENABLED"
    SAW_LIST = "SAW_LIST"
    SAW_EXAM = "SAW_EXAM"
    SAW_PICTURE = "SAW_PICTURE"
    SAW_STATISTICS = "SAW_STATISTICS"
    READ = "READ"
    WITHDREW = "WITHDREW"
    ADJUDICATED = "ADJUDICATED"
    IMPORTED = "IMPORTED"
    EXPORTED = "EXPORTED"
    PATIENT_WITHDRAWN = "PATIENT_WITHDRAWN"
    PATIENT_RESTORED = "PATIENT_RESTORED"
    RETENTION = "RETENTION"
    RESCORED = "RESCORED"
    DRIFT_ACKNOWLEDGED = "DRIFT_ACKNOWLEDGED"
    MOVED = "MOVED"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A row of the trail.

    Attributes
    ----------
    id : int
        1, 2, 3 and so on, without a gap.
    at : datetime
        Aware, UTC.
    actor : str
        An account's name, or who ran a command.
    action : str
        An :class:`Action`.
    subject : str
        A SOP Instance UID, an account's name, or empty.
    detail : dict
        JSON values.
    previous, hash : str
        SHA-256, hexadecimal: of the row before, and of this one.
    """

    id: int
    at: dt.datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous: str
    hash: str

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "detail": self.detail,
            "previous": self.previous,
            "hash": self.hash,
        }

    def expected_hash(self) -> str:
        """What the hash must be, from all the rest."""
        return _hash(self.as_json())


@dataclass(frozen=True, slots=True)
class Head:
    """The newest row's number and hash."""

    id: int
    hash: str

    def __str__(self) -> str:
        """As the anchor holds it."""
        return f"{self.id} {self.hash}"


def record(
    session: Session,
    actor: str,
    action: Action | str,
    subject: str = "",
    detail: dict[str, Any] | None = None,
) -> None:
    """Append a row within the caller's transaction, so that act and row stand or fall as one.

    Call it last in a transaction that writes: it takes the one lock that all appenders
    share, and holds it until the commit.

    Parameters
    ----------
    session : Session
        Of a transaction that writes.
    actor : str
        1 to 128 characters.
    action : Action
    subject : str
        A SOP Instance UID, an account's name, or empty.
    detail : dict, optional
        JSON values; no patient data, no secret.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_APPEND_LOCK)))
    last = session.scalar(select(AuditRow).order_by(AuditRow.id.desc()).limit(1))
    head = Head(0, _GENESIS) if last is None else Head(last.id, last.hash)
    row = AuditRow(
        id=head.id + 1,
        at=now(),
        actor=actor,
        action=str(action),
        subject=subject,
        # As it will be read back: a tuple becomes a list, a key text.
        detail=json.loads(json.dumps(detail or {})),
        previous=head.hash,
        hash="",
    )
    row.hash = _record(row).expected_hash()
    session.add(row)
    session.flush()
    anchor: Path | None = session.info.get(ANCHOR)
    if anchor is not None:
        _anchor_after_commit(session, head, Head(row.id, row.hash), anchor)


class Trail:
    """The audit trail of a worklist.

    Parameters
    ----------
    transaction : callable
        The worklist's: gives a session within a transaction.
    anchor : Path or None
        Where the newest row's number and hash are kept outside of the database.
    """

    def __init__(
        self, transaction: Callable[..., AbstractContextManager[Session]], anchor: Path | None
    ) -> None:
        self._transaction = transaction
        self._anchor = anchor

    def record(
        self,
        actor: str,
        action: Action | str,
        subject: str = "",
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Append a row in a transaction of its own: for what was only looked at."""
        with self._transaction(write=True) as session:
            record(session, actor, action, subject, detail)

    def records(self, since: dt.datetime | None = None, last: int = 0) -> Iterator[AuditRecord]:
        """The rows behind number ``last``, oldest first; since a time, or all.

        Yields
        ------
        AuditRecord
        """
        while True:
            query = select(AuditRow).where(AuditRow.id > last).order_by(AuditRow.id)
            if since is not None:
                query = query.where(AuditRow.at >= since)
            with self._transaction() as session:
                found = [_record(row) for row in session.scalars(query.limit(_BATCH))]
            yield from found
            if len(found) < _BATCH:
                return
            last = found[-1].id

    def verify(self, after: Head | None = None) -> Head:
        """Follow the whole chain, or from a row on that it was followed to, to its end; the end.

        Raises
        ------
        AuditBroken
            The first row that is not as it was written, or what is missing.
        """
        # Before the rows: one that is appended meanwhile is no matter then.
        anchored = self._read_anchor()
        head = after or Head(0, _GENESIS)
        anchor_met = anchored is None or anchored == head or self._known(anchored, head.id)
        for found in self.records(last=head.id):
            _require_next(found, head)
            head = Head(found.id, found.hash)
            if anchored is not None and anchored.id == head.id:
                self._require_anchored(anchored, head.hash)
                anchor_met = True
        if anchored is not None and not anchor_met:
            raise AuditBroken(
                f"{_missing(head.id + 1, anchored.id)}: {self._anchor} remembers the last"
            )
        if anchored is None and self._anchor is not None and head.id:
            raise AuditBroken(
                f"{self._anchor} is missing, so nothing tells whether rows were cut off behind row "
                f"{head.id}: see docs/sign-in.md"
            )
        return head

    def _known(self, anchored: Head, followed: int) -> bool:
        """Whether the anchored row is among those that were followed before."""
        if anchored.id > followed:
            return False
        with self._transaction() as session:
            kept = session.scalar(select(AuditRow.hash).where(AuditRow.id == anchored.id))
        self._require_anchored(anchored, kept)
        return True

    def _require_anchored(self, anchored: Head, kept: str | None) -> None:
        if anchored.hash != kept:
            raise AuditBroken(
                f"row {anchored.id} of the audit trail is not the one that {self._anchor} "
                "remembers: the trail was written anew"
            )

    def _read_anchor(self) -> Head | None:
        return None if self._anchor is None else _read(self._anchor)


def _require_next(found: AuditRecord, head: Head) -> None:
    if found.id != head.id + 1:
        raise AuditBroken(_missing(head.id + 1, found.id - 1))
    if found.previous != head.hash:
        raise AuditBroken(
            f"row {found.id} of the audit trail does not follow row {head.id}: it, or the row "
            "before it, was changed"
        )
    if found.hash != found.expected_hash():
        raise AuditBroken(f"row {found.id} of the audit trail is not as it was written: changed")


def _missing(first: int, last: int) -> str:
    which = f"row {first}" if first == last else f"rows {first} to {last}"
    return f"{which} of the audit trail missing: removed"


def _record(row: AuditRow) -> AuditRecord:
    return AuditRecord(**{name: getattr(row, name) for name in AuditRecord.__slots__})


def _hash(content: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted keys, no spaces, UTF-8) of all but the hash."""
    covered = {name: value for name, value in content.items() if name != "hash"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _extends(session: Session, head: Head, anchor: Path) -> bool:
    """Whether the anchored row is still in the trail; else the anchor is kept as evidence."""
    try:
        anchored = _read(anchor)
    except WorklistError as error:  # a reading is not refused for it
        structlog.get_logger("audit").error(str(error), action="audit_anchor")
        return False
    if anchored is None or anchored == head:
        return True
    kept = session.scalar(select(AuditRow.hash).where(AuditRow.id == anchored.id))
    if kept == anchored.hash:
        return True
    structlog.get_logger("audit").error(
        "the audit trail lacks rows", action="audit_broken", anchored=anchored.id, newest=head.id
    )
    return False


def _anchor_after_commit(session: Session, before: Head, head: Head, anchor: Path) -> None:
    """Let the anchor move to the last row that the transaction appends, once it is kept."""
    if _PENDING in session.info:  # not the first row of this transaction
        session.info[_PENDING] = head
        return
    if not _extends(session, before, anchor):
        return
    session.info[_PENDING] = head

    @event.listens_for(session, "after_soft_rollback", once=True)  # of a savepoint, too
    def _forget(session: Session, _undone: SessionTransaction) -> None:
        session.info.pop(_PENDING, None)

    @event.listens_for(session, "after_commit", once=True)
    def _write(session: Session) -> None:
        newest: Head | None = session.info.pop(_PENDING, None)
        if newest is None:
            return
        try:
            _move(anchor, newest)
        except OSError as error:
            # The row is kept, and only a little of the protection is not.
            structlog.get_logger("audit").error(
                "the anchor cannot be written", action="audit_anchor", error=error.strerror
            )


def _read(anchor: Path) -> Head | None:
    """The anchored head; None if there is no anchor."""
    try:
        number, _, digest = anchor.read_text("ascii").strip().partition(" ")
        return Head(int(number), digest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WorklistError(
            f"the audit trail's anchor {anchor} cannot be read ({type(error).__name__}): restore "
            "it from backup"
        ) from error


def _move(anchor: Path, head: Head) -> None:
    """Write the anchor, unless another process has moved it further."""
    with anchor.with_name(f"{anchor.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(WorklistError):
            there = _read(anchor)
            if there is not None and there.id >= head.id:
                return
        fresh = anchor.with_name(f"{anchor.name}.new")
        with fresh.open("w") as file:
            file.write(f"{head}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(anchor)
