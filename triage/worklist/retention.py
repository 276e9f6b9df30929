"""Which kept objects nobody needs any more. Only what is certain is ever named."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session

from triage.worklist.audit import Action, record
from triage.worklist.deliveries import DeliveryState
from triage.worklist.items import State
from triage.worklist.journal import journal
from triage.worklist.tables import Commitment, Delivery, Item, Reading, Withdrawal

REMOVED = "OBJECT_REMOVED"
"""The event of an item whose object was removed."""

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Spent:
    """An exam that was read, told and is past its time.

    Attributes
    ----------
    item_id : int
    sop_instance_uid, digest : str
    """

    item_id: int
    sop_instance_uid: str
    digest: str


class Retention:
    """What of a worklist's objects may go.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def spent(self, before: dt.datetime) -> Iterator[list[Spent]]:
        """Exams that came and were last read before a time, and whose objects nobody waits for.

        That is: they have a verdict that no reader disputes, every result of theirs is
        delivered, and no console has ever asked to commit them to our storage (PS3.4 J): what
        was vouched for stays.

        Yields
        ------
        list of Spent
            Batches, oldest first.
        """
        last = 0
        while True:
            with self._transaction() as session:
                rows = session.execute(
                    _spent(before).where(Item.id > last).order_by(Item.id).limit(_BATCH)
                ).all()
                found = [Spent(*row) for row in rows]
                vouched = _vouched_for(session) if found else frozenset()
            if not found:
                return
            yield [each for each in found if each.sop_instance_uid not in vouched]
            last = found[-1].item_id

    def release(self, spent: Sequence[Spent], before: dt.datetime, actor: str) -> list[Spent]:
        """Those that are still spent, each with an event that its object is removed."""
        with self._transaction(write=True) as session:
            wanted = [each.item_id for each in spent]
            query = _spent(before).where(Item.id.in_(wanted)).order_by(Item.id)
            rows = session.execute(query.with_for_update(of=Item)).all()
            vouched = _vouched_for(session)
            released = [Spent(*row) for row in rows if row.sop_instance_uid not in vouched]
            for each in released:
                journal(session, each.item_id, REMOVED, actor)
            return released

    def told(self, actor: str, detail: dict[str, object]) -> None:
        """Enter in the audit trail what was removed."""
        with self._transaction(write=True) as session:
            record(session, actor, Action.RETENTION, "", detail)


def _spent(before: dt.datetime) -> Select[int, str, str]:
    standing = (
        select(func.max(Reading.read_at))
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(Reading.item_id == Item.id, Withdrawal.reading_id.is_(None))
        .scalar_subquery()
    )
    on_the_way = exists().where(
        Delivery.item_id == Item.id, Delivery.state != DeliveryState.DELIVERED
    )
    return select(Item.id, Item.sop_instance_uid, Item.digest).where(
        Item.state.in_((State.CONFIRMED, State.REJECTED)),
        Item.unread.is_(False),
        Item.disagreement.is_(False),
        Item.received_at < before,
        standing < before,
        ~on_the_way,
    )


def _vouched_for(session: Session) -> frozenset[str]:
    return frozenset(
        uid for instances in session.scalars(select(Commitment.instances)) for _, uid in instances
    )
