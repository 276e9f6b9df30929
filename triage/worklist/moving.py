"""Moving a site to another database while it receives. ``docs/migrate.md`` tells it to operators.

Triggers note the key of every row that changes in the old database from the first moment on,
whoever changes it. Meanwhile all rows are copied in the order of their keys, then those that
changed, and each is read back and compared by its hash. At the end other triggers close the old
database: from then on it refuses every change. What is still noted is copied and compared, and
only then the old database is marked as left, which is the moment when the site is in the new one.

What is known of a move stands in the two databases, written with the rows that it is about. So
it goes on after a ``kill -9`` at any moment.
"""

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    or_,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from triage.errors import MoveError, SchemaError, SiteMoved
from triage.worklist import fence
from triage.worklist.audit import ANCHOR, Action, Head, Trail, record
from triage.worklist.fence import CHANGES, COPIED, MOVES, OWN
from triage.worklist.rows import (
    BATCH,
    TABLES,
    Key,
    Values,
    add,
    after,
    among,
    any_of,
    at,
    count_of,
    digest,
    key_columns,
    key_of,
    named,
    put,
)
from triage.worklist.schema import (
    HEAD,
    MOVE,
    WRITE,
    Move,
    closed,
    migrate,
    moving,
    revision,
    unavailable,
)
from triage.worklist.tables import AuditRow

SEEDED = frozenset({"leases", "schema_compatibility"})
"""Tables with rows in a database that is new."""

Progress = Callable[[str, int, int], None]
"""Told the step, how many rows of it are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A table, and what was done with it.

    Attributes
    ----------
    name : str
    rows : int
        In the old database.
    verified : int
        So many rows were read back from the new database and found equal; a row that changed
        meanwhile counts again.
    """

    name: str
    rows: int
    verified: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    here : bool
        Whether the site is in the new database now.
    tables : tuple of Moved
    followed : int
        Changes that were copied after the rows that they are of.
    audit : Head or None
        The end of the audit trail as it was verified in the new database.
    closed_seconds : float
        For so long nothing could be changed in either.
    left : tuple of str
        Tables of the old database that are none of ours, and stay there.
    """

    here: bool
    tables: tuple[Moved, ...]
    followed: int = 0
    audit: Head | None = None
    closed_seconds: float = 0.0
    left: tuple[str, ...] = ()


class Removal:
    """The move of a site from one database to another.

    Parameters
    ----------
    source, target : Engine
    places : tuple of str and str
        Of source and target, as a person may see them: without passwords.
    anchor : Path or None
        Where the end of the audit trail is remembered outside of the database.
    progress : callable
    batch : int
        Rows of one transaction.
    """

    def __init__(
        self,
        source: Engine,
        target: Engine,
        places: tuple[str, str],
        anchor: Path | None = None,
        progress: Progress = lambda _step, _done, _total: None,
        batch: int = BATCH,
    ) -> None:
        self._source, self._target, self._kind = source, target, source.dialect.name
        self._from, self._to = places
        self._anchor, self._progress, self._batch = anchor, progress, batch
        self._verified: dict[str, int] = defaultdict(int)
        self._followed = 0

    def look(self) -> Outcome:
        """Whether it can be done, and what there is to do; nothing is changed.

        Raises
        ------
        MoveError, SchemaError, SiteMoved
            It cannot be done, and why.
        AuditBroken
            The audit trail is not as it was written.
        """
        self._require_source()
        self._require_target()
        self._require_fit()
        head = self._trail(self._source, self._from, self._anchor).verify()
        return self._outcome(here=False, audit=head)

    def run(self, who: str, *, copy_only: bool = False) -> Outcome:
        """Move the site, or go on with it.

        Parameters
        ----------
        who : str
            For the audit trail.
        copy_only : bool
            Copy and verify, and leave the site where it is.

        Raises
        ------
        MoveError
            It cannot be done, or a row in the new database is not the one of the old.
        AuditBroken
            The audit trail is not as it was written.
        WorklistError
            A database cannot be used. Whatever is raised before the site has moved, it is in
            the old database, which takes changes again.
        """
        found = moving(self._source)
        if found is not None and found[0] is Move.MOVED:
            return self._arrive_late(who)
        self.look()
        self._begin()
        self._copy()
        self._settle()
        self._verify()
        self._settle()
        head = self._trail(self._target, self._to).verify()
        if copy_only:
            return self._outcome(here=False, audit=head)
        began = time.monotonic()
        try:
            self._shut()
            head = self._finish(head)
        except BaseException:
            # Also when somebody wants it ended: radiographs wait.
            self._reopen()
            raise
        outcome = self._outcome(here=True, audit=head, closed_seconds=time.monotonic() - began)
        self._arrive(who)
        return outcome

    # Whether it can be

    def _require_source(self) -> None:
        found = revision(self._source)
        if found != HEAD:
            raise SchemaError(
                f"{self._from} has schema {found or 'none'}, this program's is {HEAD}: run `triage "
                "migrate` first"
            )
        state = moving(self._source)
        if state is None:
            return
        if state[0] is Move.MOVED:
            raise SiteMoved(f"the site has moved to {state[1]} already")
        if state[0] is Move.FILLING:
            raise MoveError(
                f"{self._from} is itself being filled from {state[1]}: name the database where "
                "the site is in TRIAGE_DATABASE_URL"
            )
        with self._reading(self._source, self._from) as connection:
            gone = set(fence.noting(self._kind)) - fence.names(connection)
        if gone:
            raise MoveError(
                f"{len(gone)} of the triggers that note changes are gone from {self._from}: "
                "`triage migrate --abandon`, and begin anew with an empty database"
            )

    def _require_target(self) -> None:
        found = revision(self._target)
        state = moving(self._target)
        if state is not None:
            theirs = self._identity(self._target, self._to)
            if state[0] is not Move.FILLING or theirs != self._identity(self._source, self._from):
                raise MoveError(
                    f"{self._to} belongs to another move ({state[0]}, {state[1]}), or to one that "
                    "was abandoned: give a database that is empty"
                )
        elif found is not None:
            if found != HEAD:
                raise SchemaError(
                    f"{self._to} has schema {found}, this program's is {HEAD}: give a database "
                    "that is empty"
                )
            with self._reading(self._target, self._to) as connection:
                full = [
                    table.name
                    for table in TABLES
                    if table.name not in SEEDED and connection.scalar(any_of(table))
                ]
            if full:
                raise MoveError(
                    f"{self._to} is not empty: it has rows in {', '.join(full[:5])}; give a "
                    "database that is empty, so that no two sites become one"
                )
        else:
            with self._reading(self._target, self._to) as connection:
                names = set(inspect(connection).get_table_names())
            taken = names & {table.name for table in TABLES}
            if taken:
                raise MoveError(
                    f"{self._to} has tables of another program: {', '.join(sorted(taken)[:5])}; "
                    "give a database that is empty"
                )

    def _require_fit(self) -> None:
        """PostgreSQL takes no NUL and keeps to lengths; SQLite does neither."""
        if (self._source.dialect.name, self._target.dialect.name) != ("sqlite", "postgresql"):
            return
        with self._reading(self._source, self._from) as connection:
            for table in TABLES:
                unfit: list[ColumnElement[bool]] = []
                for column in table.columns:
                    if isinstance(column.type, String | Text):
                        unfit.append(func.instr(column, func.char(0)) > 0)
                        if column.type.length is not None:
                            unfit.append(func.length(column) > column.type.length)
                if not unfit:
                    continue
                row = connection.execute(select(*key_columns(table)).where(or_(*unfit))).first()
                if row is not None:
                    raise MoveError(
                        f"the row {named(tuple(row))} of {table.name} in {self._from} has a text "
                        "that is too long for PostgreSQL, or that has a NUL character in it: "
                        "correct it there"
                    )

    def _identity(self, engine: Engine, place: str) -> str | None:
        """Which move a database belongs to."""
        with self._reading(engine, place) as connection:
            if not inspect(connection).has_table(MOVE):
                return None
            found = connection.scalar(select(MOVES.c.id))
        return None if found is None else str(found)

    # The steps

    def _begin(self) -> None:
        """Note changes from now on, and give the new database the tables."""
        if moving(self._target) is None:
            migrate(self._target)
        identity = self._identity(self._source, self._from)
        if identity is None:
            identity = uuid.uuid4().hex
            with self._writing(self._source, self._from) as connection:
                OWN.create_all(connection, tables=[MOVES, CHANGES])
                fence.make(connection, fence.noting(self._kind))
                connection.execute(
                    insert(MOVES).values(id=identity, state=Move.COPYING, peer=self._to)
                )
        state = moving(self._source)
        if state is not None and state[0] is Move.CLOSED:
            # Ended in its last step: until that comes again, the site receives.
            self._reopen()
        with self._writing(self._source, self._from) as connection:
            connection.execute(update(MOVES).values(peer=self._to))
        if moving(self._target) is None:
            with self._writing(self._target, self._to) as connection:
                OWN.create_all(connection, tables=[MOVES, COPIED])
                for table in TABLES:
                    if table.name in SEEDED:
                        connection.execute(delete(table))
                connection.execute(
                    insert(MOVES).values(id=identity, state=Move.FILLING, peer=self._from)
                )

    def _copy(self) -> None:
        """Copy every row that was there when changes began to be noted, in the order of keys.

        Rows that are newer come with the changes: so each comes after those that it refers to.
        """
        total, done = self._total(), 0
        for table in TABLES:
            last, ended = self._stand(table)
            while not ended:
                with self._reading(self._source, self._from) as connection:
                    rows = after(connection, table, last, self._batch)
                    born = _noted(connection, table, born=True)
                ended = len(rows) < self._batch
                last = key_of(table, rows[-1]) if rows else last
                with self._writing(self._target, self._to) as connection:
                    add(connection, table, [r for r in rows if key_of(table, r) not in born])
                    connection.execute(delete(COPIED).where(COPIED.c.name == table.name))
                    connection.execute(
                        insert(COPIED).values(name=table.name, last=json.dumps(last), done=ended)
                    )
                done += len(rows)
                self._progress("copy", done, total)

    def _stand(self, table: Table) -> tuple[Key | None, bool]:
        with self._reading(self._target, self._to) as connection:
            row = connection.execute(select(COPIED).where(COPIED.c.name == table.name)).first()
        if row is None:
            return None, False
        last = json.loads(row.last)
        return (None if last is None else tuple(last)), row.done

    def _catch_up(self) -> int:
        """Copy the rows of the oldest changes as they are now, and read them back.

        Returns
        -------
        int
            How many changes there were; fewer than a batch if there are no more.
        """
        with self._reading(self._source, self._from) as connection:
            noted = connection.execute(
                select(CHANGES).order_by(CHANGES.c.id).limit(self._batch)
            ).all()
            keys: dict[str, list[Key]] = defaultdict(list)
            for change in noted:
                keys[change.name].append(tuple(json.loads(change.key)))
            touched = [(table, list(dict.fromkeys(keys[table.name]))) for table in TABLES]
            touched = [(table, of) for table, of in touched if of]
            now = {table.name: at(connection, table, of) for table, of in touched}
        if not noted:
            return 0
        with self._writing(self._target, self._to) as connection:
            for table, of in reversed(touched):
                gone = [key for key in of if key not in now[table.name]]
                if gone:
                    connection.execute(delete(table).where(among(table, gone)))
            for table, _ in touched:
                put(connection, table, now[table.name])
        with self._reading(self._target, self._to) as connection:
            for table, of in touched:
                self._compare(table, of, now[table.name], at(connection, table, of))
        with self._writing(self._source, self._from) as connection:
            connection.execute(delete(CHANGES).where(CHANGES.c.id.in_([c.id for c in noted])))
        self._followed += len(noted)
        return len(noted)

    def _settle(self) -> None:
        """Copy what changed, until little is left."""
        while self._catch_up() >= self._batch:
            pass

    def _verify(self) -> None:
        """Read every row back and compare it, but for those whose change is still to be copied.

        Those are read back when it is. Nobody but us writes the new database, so what was
        compared stays equal until its next change is noted.
        """
        total, done = self._total(), 0
        for table in TABLES:
            last, ended = None, False
            while not ended:
                with self._reading(self._source, self._from) as connection:
                    rows = after(connection, table, last, self._batch)
                    open_ = _noted(connection, table)
                ended = len(rows) < self._batch
                last = key_of(table, rows[-1]) if rows else last
                expected = {key: row for row in rows if (key := key_of(table, row)) not in open_}
                with self._reading(self._target, self._to) as connection:
                    there = at(connection, table, list(expected))
                self._compare(table, list(expected), expected, there)
                done += len(rows)
                self._progress("verify", done, total)
            self._settle()

    def _compare(
        self,
        table: Table,
        keys: Sequence[Key],
        expected: Mapping[Key, Values],
        there: Mapping[Key, Values],
    ) -> None:
        for key in keys:
            wanted, found = expected.get(key), there.get(key)
            if (wanted is None) != (found is None) or (
                wanted is not None and found is not None and digest(wanted) != digest(found)
            ):
                what = "is missing" if found is None else "is not as it is here"
                if wanted is None:
                    what = "is gone here, and not"
                raise MoveError(
                    f"the row {named(key)} of {table.name} {what} in {self._to}: somebody else "
                    "writes there, or the database has not kept it; the site stays where it is: "
                    "`triage migrate --abandon`, and begin anew with an empty database"
                )
        self._verified[table.name] += len(keys)

    def _shut(self) -> None:
        """Let nobody change the old database, from one moment on."""
        with self._writing(self._source, self._from) as connection:
            fence.make(connection, fence.refusing(self._kind, closed(self._to)))
            connection.execute(update(MOVES).values(state=Move.CLOSED))

    def _reopen(self) -> None:
        """Let the old database be changed again, unless the site has left it."""
        with self._writing(self._source, self._from) as connection:
            if connection.scalar(select(MOVES.c.state)) == Move.CLOSED:
                fence.drop(connection, fence.refusing(self._kind))
                connection.execute(update(MOVES).values(state=Move.COPYING))

    def _finish(self, head: Head) -> Head:
        """Copy the last changes of the closed database, and let the site be in the new one."""
        self._require_source()
        while self._catch_up():
            pass
        with (
            self._reading(self._source, self._from) as old,
            self._reading(self._target, self._to) as new,
        ):
            for table in TABLES:
                here, there = old.scalar(count_of(table)), new.scalar(count_of(table))
                if here != there:
                    raise MoveError(
                        f"{table.name} has {there} rows in {self._to}, {here} here: somebody else "
                        "writes there; the site stays where it is: `triage migrate --abandon`, and "
                        "begin anew with an empty database"
                    )
            end = old.execute(
                select(AuditRow.id, AuditRow.hash).order_by(AuditRow.id.desc()).limit(1)
            ).first()
        head = self._trail(self._target, self._to, self._anchor).verify(head)
        if end is not None and (end.id, end.hash) != (head.id, head.hash):
            raise MoveError(f"the audit trail in {self._to} ends with another row than here")
        with self._writing(self._target, self._to) as connection:
            _number_on(connection)
        # From this commit on the site is in the new database.
        with self._writing(self._source, self._from) as connection:
            connection.execute(update(MOVES).values(state=Move.MOVED))
        return head

    def _arrive(self, who: str) -> None:
        """Let the new database be opened."""
        info = {} if self._anchor is None else {ANCHOR: self._anchor}
        with (
            _told(self._to),
            Session(self._target.execution_options(**{WRITE: True}), info=info) as session,
            session.begin(),
        ):
            detail = {"from": self._from, "to": self._to}
            record(session, who, Action.MOVED, "", detail)
            OWN.drop_all(session.connection(), tables=[MOVES, COPIED])

    def _arrive_late(self, who: str) -> Outcome:
        """End a move that was ended between its last two steps, or say that it is done."""
        theirs = self._identity(self._target, self._to)
        if theirs is None or theirs != self._identity(self._source, self._from):
            self._require_source()  # says where the site is
        self._arrive(who)
        return self._outcome(here=True)

    # The small parts

    def _total(self) -> int:
        with self._reading(self._source, self._from) as connection:
            return sum(connection.scalar(count_of(table)) or 0 for table in TABLES)

    def _outcome(self, *, here: bool, **more: Any) -> Outcome:
        ours = {table.name for table in (*TABLES, *OWN.sorted_tables)} | {"alembic_version"}
        with self._reading(self._source, self._from) as connection:
            moved = tuple(
                Moved(
                    table.name, connection.scalar(count_of(table)) or 0, self._verified[table.name]
                )
                for table in TABLES
            )
            left = sorted(set(inspect(connection).get_table_names()) - ours)
        return Outcome(here, moved, self._followed, left=tuple(left), **more)

    def _trail(self, engine: Engine, place: str, anchor: Path | None = None) -> Trail:
        @contextmanager
        def transaction(*, write: bool = False) -> Iterator[Session]:  # noqa: ARG001
            with _told(place), Session(engine) as session, session.begin():
                yield session

        return Trail(transaction, anchor)

    @contextmanager
    def _reading(self, engine: Engine, place: str) -> Iterator[Connection]:
        """A transaction that sees the database as it is at one moment."""
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        with _told(place), engine.begin() as connection:
            yield connection

    @contextmanager
    def _writing(self, engine: Engine, place: str) -> Iterator[Connection]:
        with _told(place), engine.execution_options(**{WRITE: True}).begin() as connection:
            yield connection


def abandon(source: Engine, place: str) -> bool:
    """Let a site stay where it is: no change is noted or refused any more.

    Returns
    -------
    bool
        False if there was no move.

    Raises
    ------
    SiteMoved
        It is too late.
    MoveError
        The site is not here.
    """
    state = moving(source)
    if state is None:
        return False
    if state[0] is Move.MOVED:
        raise SiteMoved(f"the site has moved to {state[1]} already: nothing can be abandoned")
    if state[0] is Move.FILLING:
        raise MoveError(
            f"{place} is being filled from {state[1]}: abandon it with TRIAGE_DATABASE_URL naming "
            "that database"
        )
    with _told(place), source.execution_options(**{WRITE: True}).begin() as connection:
        fence.drop(connection, fence.refusing(source.dialect.name))
        fence.drop(connection, fence.noting(source.dialect.name))
        OWN.drop_all(connection, tables=[CHANGES, MOVES])
    return True


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Database failures leave as :class:`MoveError` that names the database."""
    try:
        yield
    except SQLAlchemyError as error:
        # PostgreSQL's details quote values, which may be a patient's.
        primary = getattr(getattr(error.__cause__, "diag", None), "message_primary", None)
        raise MoveError(f"{place}: {primary or unavailable(error)}") from error


def _noted(connection: Connection, table: Table, *, born: bool = False) -> set[Key]:
    """Keys of the rows whose changes are still to be copied; or of those that are new only."""
    query = select(CHANGES.c.key).where(CHANGES.c.name == table.name)
    if born:
        query = query.where(CHANGES.c.born)
    return {tuple(json.loads(key)) for key in connection.scalars(query)}


def _number_on(connection: Connection) -> None:
    """Let PostgreSQL number the next rows after those that came with their numbers."""
    if connection.dialect.name != "postgresql":
        return
    for table in TABLES:
        for column in key_columns(table):
            if not isinstance(column.type, Integer):
                continue
            sequence = connection.scalar(
                select(func.pg_get_serial_sequence(table.name, column.name))
            )
            if sequence is not None:
                last = connection.scalar(select(func.max(column)))
                connection.execute(select(func.setval(sequence, last or 1, last is not None)))
