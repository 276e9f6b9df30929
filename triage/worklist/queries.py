"""Pages of the worklist: filtered, searched, in reading order, as fast at a million rows.

A page is found by key (keyset pagination): a cursor holds the place of the last row that
was given, and an index leads there. Unread items and read ones are two ranges of the same
index, so each statement asks for one of them.
"""

import base64
import datetime as dt
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Select, and_, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from triage.errors import BadCursor
from triage.scoring import Priority
from triage.worklist.items import State, WorklistItem, find, shown
from triage.worklist.journal import now
from triage.worklist.tables import Event, Item, ItemNote, Reading, Withdrawal

MOST = 200
"""Items of a page."""

MOST_FOUND = 1_000
"""Items that a search looks at, of each of the columns it looks into."""

_LONGEST_HEAD_START = max(urgency.head_start for urgency in Priority)
_LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items are asked for; what is None or empty does not matter.

    Attributes
    ----------
    state : State, optional
    unread, flagged, disagreement : bool, optional
    modality, view, console : str
        Modality, View Position and calling AE title, whole.
    finding : str
        A code among the notes.
    search : str
        The beginning of an accession number, a Patient ID or a name, in any case; or a whole
        SOP or Study Instance UID.
    received_from, received_to : datetime, optional
        Aware; the second is excluded.
    """

    state: State | None = None
    unread: bool | None = None
    flagged: bool | None = None
    disagreement: bool | None = None
    modality: str = ""
    view: str = ""
    console: str = ""
    finding: str = ""
    search: str = ""
    received_from: dt.datetime | None = None
    received_to: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in reading order, and where to go on.

    Attributes
    ----------
    items : tuple of WorklistItem
    next : str or None
        The cursor of the next page; None if this is the last.
    """

    items: tuple[WorklistItem, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """An item as it stands after an event.

    Attributes
    ----------
    event : int
        The newest event's number.
    item : WorklistItem
    """

    event: int
    item: WorklistItem


@dataclass(frozen=True, slots=True)
class Moves:
    """Events, and the items that they are about.

    Attributes
    ----------
    events : tuple of int
        Their numbers.
    items : tuple of Moved
    """

    events: tuple[int, ...]
    items: tuple[Moved, ...]


class Queries:
    """What readers ask of a worklist's database.

    Parameters
    ----------
    transaction : callable
        The worklist's: a context manager that gives a session.
    """

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]]) -> None:
        self._transaction = transaction

    def page(
        self, wanted: Filter, limit: int, cursor: str | None = None, reader: str | None = None
    ) -> Page:
        """A page of the worklist.

        Parameters
        ----------
        wanted : Filter
        limit : int
            1 to :data:`MOST`.
        cursor : str, optional
            A page's :attr:`Page.next`, with the same filter.
        reader : str, optional
            Who asks. An exam of the random sample that this reader has not read is neither
            picked nor left out by what is hidden: it is among the flagged and among the
            unflagged, and not among the confirmed and rejected. None if all may be told.

        Raises
        ------
        BadCursor
            The cursor is none of ours.
        """
        after = None if cursor is None else _read_cursor(cursor)
        with self._transaction() as session:
            if wanted.search.strip():
                return _found(session, wanted, limit, after, reader)
            alternatives = _alternatives(wanted, reader)
            rank_at, number = Item.rank_at, Item.id
            if wanted.finding:
                rank_at, number = ItemNote.rank_at, ItemNote.item_id
            rows: list[Item] = []
            for unread in _ranges(wanted, after):
                missing = limit + 1 - len(rows)
                found: dict[int, Item] = {}
                for conditions in alternatives:
                    query = select(Item).where(*conditions).limit(missing)
                    if wanted.finding:
                        query = query.join(ItemNote, ItemNote.item_id == Item.id).where(
                            ItemNote.code == wanted.finding,
                            ItemNote.unread.is_(unread),
                            *_of_headers(wanted, ItemNote),
                        )
                    elif wanted.state is None:
                        query = query.where(Item.unread.is_(unread))
                    if after is not None and after[0] == unread:
                        query = query.where(tuple_(rank_at, number) > after[1:])
                    ordered = session.scalars(query.order_by(rank_at, number))
                    found |= {row.id: row for row in ordered}
                rows += sorted(found.values(), key=lambda row: (row.rank_at, row.id))[:missing]
                if len(rows) > limit:
                    break
            at = now()
            items = tuple(shown(row, at) for row in rows[:limit])
            more = _cursor(rows[limit - 1]) if len(rows) > limit else None
            return Page(items, more)

    def priors(self, sop_instance_uid: str, limit: int = 50) -> list[WorklistItem]:
        """Other items of the same patient, the newest first; none without a Patient ID.

        Raises
        ------
        UnknownItem
            No item has that UID.
        """
        with self._transaction() as session:
            item = find(session, sop_instance_uid)
            if not item.patient_id:
                return []
            rows = session.scalars(
                select(Item)
                .where(Item.patient_id == item.patient_id, Item.id != item.id)
                .order_by(Item.received_at.desc())
                .limit(limit)
            )
            at = now()
            return [shown(row, at) for row in rows]

    def consoles(self) -> list[str]:
        """The AE titles that items came from."""
        found: list[str] = []
        with self._transaction() as session:
            # From one to the next by the index, instead of looking at every row.
            query = select(Item.calling_ae_title).order_by(Item.calling_ae_title).limit(1)
            title = session.scalar(query)
            while title is not None and len(found) < MOST_FOUND:
                found.append(title)
                title = session.scalar(query.where(Item.calling_ae_title > title))
        return found

    def newest_event(self) -> int:
        """The number of the newest event; 0 if there is none."""
        with self._transaction() as session:
            return session.scalar(select(Event.id).order_by(Event.id.desc()).limit(1)) or 0

    def moves(self, after: int, limit: int, known: Collection[int] = ()) -> Moves:
        """What moved after an event: each item once, as it stands now, oldest move first.

        Parameters
        ----------
        after : int
            An event's number.
        limit : int
            So many events are looked at.
        known : collection of int
            Events that are not asked for.
        """
        with self._transaction() as session:
            query = select(Event.id, Event.item_id).where(Event.id > after).order_by(Event.id)
            fresh = [
                (event, item)
                for event, item in session.execute(query.limit(limit))
                if event not in known
            ]
            newest = {item: event for event, item in fresh}
            rows = session.scalars(select(Item).where(Item.id.in_(newest)))
            at = now()
            found = [Moved(newest[row.id], shown(row, at)) for row in rows]
        found.sort(key=lambda moved: moved.event)
        return Moves(tuple(event for event, _ in fresh), tuple(found))


def _ranges(wanted: Filter, after: tuple[bool, dt.datetime, int] | None) -> Sequence[bool]:
    """The ranges of the index to look into, in reading order."""
    ranges: tuple[bool, ...] = (True, False) if wanted.unread is None else (wanted.unread,)
    if wanted.state is not None:
        # Of one state all are read, or none is.
        unread = wanted.state not in {State.CONFIRMED, State.REJECTED}
        ranges = (unread,) if unread in ranges else ()
    if after is not None and not after[0]:
        return tuple(each for each in ranges if not each)
    return ranges


def _found(
    session: Session,
    wanted: Filter,
    limit: int,
    after: tuple[bool, dt.datetime, int] | None,
    reader: str | None,
) -> Page:
    """A page of a search. Its few items are put in order here.

    A database would rather go along the order and look at every row on the way.
    """
    ids = _search(session, wanted.search.strip())
    ranges = _ranges(wanted, None)
    keys: set[tuple[bool, dt.datetime, int]] = set()
    for conditions in _alternatives(wanted, reader) if ids else ():
        query = select(Item.unread, Item.rank_at, Item.id).where(Item.id.in_(ids), *conditions)
        if wanted.finding:
            query = query.join(ItemNote, ItemNote.item_id == Item.id).where(
                ItemNote.code == wanted.finding
            )
        keys |= {
            (not unread, rank_at, number)
            for unread, rank_at, number in session.execute(query)
            if unread in ranges
        }
    if after is not None:
        keys = {key for key in keys if key > (not after[0], *after[1:])}
    first = [number for _, _, number in sorted(keys)[: limit + 1]]
    rows = {row.id: row for row in session.scalars(select(Item).where(Item.id.in_(first[:limit])))}
    at = now()
    items = tuple(shown(rows[number], at) for number in first[:limit])
    return Page(items, _cursor(rows[first[limit - 1]]) if len(first) > limit else None)


def _alternatives(wanted: Filter, reader: str | None) -> list[list[ColumnElement[bool]]]:
    """Sets of conditions, each with an index of its own; an item of the page fulfils one."""
    conditions = _conditions(wanted)
    if reader is None:
        return [conditions]
    read = (
        select(Reading.id)
        .outerjoin(Withdrawal, Withdrawal.reading_id == Reading.id)
        .where(
            Reading.item_id == Item.id, Reading.reader == reader, Withdrawal.reading_id.is_(None)
        )
        .exists()
    )
    if wanted.state in {State.CONFIRMED, State.REJECTED}:
        return [[*conditions, or_(Item.blind.is_(False), read)]]
    if wanted.flagged is None:
        return [conditions]
    hidden = [*_conditions(replace(wanted, flagged=None)), Item.blind.is_(True), ~read]
    return [conditions, hidden]


def _of_headers(wanted: Filter, table: type[Item] | type[ItemNote]) -> list[ColumnElement[bool]]:
    """What is asked of what never changes, in a table that has it."""
    equal = (
        (table.modality, wanted.modality.upper()),
        (table.view_position, wanted.view.upper()),
        (table.calling_ae_title, wanted.console),
    )
    return [column == value for column, value in equal if value]


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    equal = (
        (Item.state, wanted.state),
        (Item.flagged, wanted.flagged),
        (Item.disagreement, wanted.disagreement),
    )
    found = [column == value for column, value in equal if value is not None]
    found += _of_headers(wanted, Item)
    if wanted.received_from is not None:
        found += [
            Item.received_at >= wanted.received_from,
            # What follows from it for the order's index.
            Item.rank_at >= wanted.received_from - _LONGEST_HEAD_START,
        ]
    if wanted.received_to is not None:
        found += [Item.received_at < wanted.received_to, Item.rank_at < wanted.received_to]
    return found


def _search(session: Session, text: str) -> list[int]:
    """Numbers of items that a text leads to; newest first where there are too many."""
    queries: list[Select[int]] = []
    for words in dict.fromkeys((text, text.upper())):
        queries += [
            select(Item.id).where(_begins(session, Item.accession_number, words)),
            select(Item.id).where(_begins(session, Item.patient_id, words)),
        ]
    queries.append(select(Item.id).where(_begins(session, Item.name_key, text.lower())))
    queries += [
        select(Item.id).where(column == text)
        for column in (Item.sop_instance_uid, Item.study_instance_uid)
    ]
    found: set[int] = set()
    for query in queries:
        found.update(session.scalars(query.limit(MOST_FOUND)))
    return sorted(found)


def _begins(session: Session, column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
    """Whether a column begins with a text, so that its index can be used."""
    if session.get_bind().dialect.name == "postgresql":
        return column.startswith(text, autoescape=True)
    return and_(column >= text, column < text + _LAST)


def _cursor(item: Item) -> str:
    content = json.dumps([item.unread, item.rank_at.isoformat(), item.id])
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[bool, dt.datetime, int]:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        unread, rank_at, number = json.loads(base64.urlsafe_b64decode(padded))
        moment = dt.datetime.fromisoformat(rank_at)
        if not isinstance(number, int) or not isinstance(unread, bool) or moment.tzinfo is None:
            raise ValueError("not a place")
        if abs(number) >= 2**63:
            raise ValueError("no row has such a number")
    except (ValueError, TypeError, AttributeError) as error:
        raise BadCursor(
            "the cursor is not one that this list gave: begin with the first page"
        ) from error
    return unread, moment, number
