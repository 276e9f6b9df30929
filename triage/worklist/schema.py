"""Opening the database, and moving its schema to this program's revision."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from triage.errors import SchemaError, SiteMoved, WorklistError

HEAD = "0014"
"""The schema revision of this program; the newest module in ``migrations/versions``."""

REVISIONS = (
    "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012",
    "0013", "0014",
)  # fmt: skip
"""All revisions that this program knows, oldest first."""

OLDEST = "0014"
"""The revision of the oldest program that may run on HEAD.

It stays as it is when a migration only adds: tables, indexes, columns that may be null or have a
default in the database. One that takes away what older programs use sets it to the revision of the
first program that did without.
"""

_CLIENT_WAITS = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Of a connection that a cut line ends without a word: 25 s, where Linux waits a quarter hour."""

_SERVER_WAITS = " ".join(
    f"-c tcp_{name}={value}"
    for name, value in (
        ("keepalives_idle", 10),
        ("keepalives_interval", 5),
        ("keepalives_count", 3),
        ("user_timeout", 25_000),
    )
)
"""The same at the other end, where a node that is gone may have a row locked, which all skip."""

WRITE = "triage_write"
"""Execution option: the transaction writes, so SQLite takes its lock at the beginning."""

BUSY_MILLISECONDS = 30_000
"""So long a transaction waits for another's lock."""

CONNECT_SECONDS = 10

MOVE = "site_move"
"""The table of a database that a site moves from or to: one row, and only then."""

CLOSED = "this worklist is closed"
"""How the triggers of a database begin that a site has left: they refuse every change."""

_MIGRATION_LOCK = 0x7472_6961_6765
"""PostgreSQL's advisory lock of whoever migrates; SQLite's writers exclude each other anyway."""


class Move(StrEnum):
    """How far a site's move is; what is in the table :data:`MOVE`."""

    COPYING = "COPYING"
    """Here is the site, and a copy of it is made."""
    CLOSED = "CLOSED"
    """The last is copied; nothing may change here."""
    MOVED = "MOVED"
    """The site is elsewhere for good."""
    FILLING = "FILLING"
    """A copy is made here; the site is elsewhere yet."""


def open_engine(
    url: str, *, create: bool, pooled: bool = True, setting: str = "TRIAGE_DATABASE_URL"
) -> Engine:
    """An engine whose transactions are durable and whose writers wait for each other.

    Parameters
    ----------
    url : str
        An SQLAlchemy URL of SQLite or PostgreSQL.
    create : bool
        Whether an SQLite file that is not there is made.
    pooled : bool
        Whether connections stay open for the next time, until the engine is disposed of.
    setting : str
        What an error names as the place where the URL is wrong.

    Raises
    ------
    WorklistError
        The URL is not usable, or there is no database.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                **({"pool_pre_ping": True} if pooled else {"poolclass": NullPool}),
                # Left alone, PostgreSQL waits for a lock, and for a host that is off, for ever.
                connect_args={
                    "connect_timeout": CONNECT_SECONDS,
                    # Compiling a statement takes longer than any of ours without it.
                    "options": f"-c lock_timeout={BUSY_MILLISECONDS} -c jit=off {_SERVER_WAITS}",
                    **_CLIENT_WAITS,
                    **parsed.query,
                },
            )
        elif parsed.get_backend_name() == "sqlite" and parsed.database:
            engine = _open_sqlite(url, Path(parsed.database), create=create, pooled=pooled)
        else:
            raise WorklistError(
                f"{setting} must be sqlite:///FILE or postgresql://USER@HOST/DATABASE"
            )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise WorklistError(
            f"{setting} cannot be used ({type(error).__name__}): write sqlite:///FILE, "
            "or postgresql://USER@HOST/DATABASE with the extra cxr-triage[postgres] installed"
        ) from None
    event.listen(engine, "handle_error", _tell_closed)
    return engine


def _tell_closed(context: ExceptionContext) -> None:
    """Let no caller take the refusal of a closed database for a row that is there already."""
    told = " ".join(str(context.original_exception).split())
    if CLOSED in told:
        raise SiteMoved(told[told.index(CLOSED) :].partition(" CONTEXT:")[0])


def _open_sqlite(url: str, file: Path, *, create: bool, pooled: bool) -> Engine:
    if not create and not file.exists():
        raise WorklistError(
            f"there is no worklist at {file}: start `triage serve`, run `triage migrate`, or set "
            "TRIAGE_HOME to the folder that has one"
        )
    # Of idle connections the last one used: its cache still holds what the others would read.
    pooling = {"pool_use_lifo": True} if pooled else {"poolclass": NullPool}
    engine = create_engine(url, **pooling)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: ConnectionPoolEntry) -> None:
        # The driver's own BEGIN comes too late to read and write in one transaction.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


@contextmanager
def alone(url: str, what: str) -> Iterator[None]:
    """Be the only one of all nodes on a database who does something; waits for the others.

    By a lock of PostgreSQL's that ends with the connection, however it ends. SQLite's nodes are
    one machine, whose parts exclude each other by files.

    Raises
    ------
    WorklistError
        The database cannot be reached.
    """
    if not url.startswith("postgresql"):
        yield
        return
    key = int.from_bytes(hashlib.sha256(f"triage {what}".encode()).digest()[:8], signed=True)
    engine = open_engine(url, create=False)
    try:
        # In no transaction, which would stay open as long as the work takes.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Else it would give up after the time that other transactions wait for locks.
            connection.execute(text("SET lock_timeout = 0"))
            connection.execute(select(func.pg_advisory_lock(key)))
            yield
    except SQLAlchemyError as error:
        raise WorklistError(unavailable(error)) from error
    finally:
        engine.dispose()


def revision(engine: Engine) -> str | None:
    """The database's schema revision; None if it has no schema yet.

    Raises
    ------
    WorklistError
        The database cannot be reached.
    """
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return None if found is None else str(found)
    except SQLAlchemyError as error:
        raise WorklistError(unavailable(error)) from error


def moving(engine: Engine) -> tuple[Move, str] | None:
    """How far a move from or to this database is, and where the other one is; None without.

    Raises
    ------
    WorklistError
        The database cannot be reached.
    """
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(MOVE):
                return None
            found = connection.execute(text(f"SELECT state, peer FROM {MOVE}")).first()  # noqa: S608
            return None if found is None else (Move(found.state), str(found.peer))
    except SQLAlchemyError as error:
        raise WorklistError(unavailable(error)) from error


def closed(peer: str) -> str:
    """What whoever would change a database that a site has left, or leaves, is told."""
    return (
        f"{CLOSED}: the site moves to {peer}; once `triage migrate --to` has said that it is "
        "there, set TRIAGE_DATABASE_URL to it and start the service anew"
    )


def require_here(engine: Engine) -> None:
    """Refuse a database where the site is not any more, or not yet.

    Raises
    ------
    SiteMoved
    """
    found = moving(engine)
    if found is None or found[0] is Move.COPYING:
        return
    state, peer = found
    if state is Move.MOVED:
        raise SiteMoved(
            f"the site has moved to {peer}: set TRIAGE_DATABASE_URL to it and start anew"
        )
    if state is Move.CLOSED:
        raise SiteMoved(
            f"{closed(peer)}; if nobody runs it any more, run it again, or `triage migrate "
            "--abandon` to stay"
        )
    raise SiteMoved(
        f"a site is being moved here from {peer}: wait until `triage migrate --to` has said that "
        "it is here; if nobody runs it any more, run it again"
    )


def require_current(engine: Engine) -> None:
    """Refuse a database whose schema this program cannot run on, or where the site is not.

    Raises
    ------
    SchemaError
        It is older (migrate it), or newer and not compatible (use the newer program).
    SiteMoved
        The site is in another database.
    """
    require_here(engine)
    found = revision(engine)
    if found == HEAD or _runs_on(engine, found):
        return
    _refuse_newer(found)
    raise SchemaError(
        f"the worklist's schema is {found or 'empty'}, this program's is {HEAD}: run "
        "`triage migrate`"
    )


def migrate(engine: Engine) -> str | None:
    """Bring the schema to this program's revision; the revision it had before.

    Raises
    ------
    SchemaError
        It is newer than this program, or its site is on its way to another database.
    SiteMoved
        The site is in another database.
    WorklistError
        The database cannot be reached or written.
    """
    require_here(engine)
    before = revision(engine)
    if before == HEAD or _runs_on(engine, before):
        return before
    _refuse_newer(before)
    found = moving(engine)
    if found is not None:
        raise SchemaError(
            f"the worklist's schema is {before}, this program's is {HEAD}, and the site is moving "
            f"to {found[1]}: end the move with the version that began it, or `triage migrate "
            "--abandon` it"
        )
    # Alembic takes a good part of a second to import, and is needed once in a release.
    from alembic import command
    from alembic.config import Config as AlembicConfig

    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with engine.execution_options(**{WRITE: True}).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            settings.attributes["connection"] = connection
            command.upgrade(settings, HEAD)
            _declare(connection)
    except SQLAlchemyError as error:
        raise WorklistError(unavailable(error)) from error
    return before


def _runs_on(engine: Engine, found: str | None) -> bool:
    """Whether a newer program has made the schema so that this one may go on beside it."""
    if found is None or found in REVISIONS:
        return False
    try:
        with engine.connect() as connection:
            oldest = connection.scalar(text("SELECT oldest FROM schema_compatibility"))
    except SQLAlchemyError as error:
        raise WorklistError(unavailable(error)) from error
    return oldest is not None and str(oldest) <= HEAD


def _declare(connection: Connection) -> None:
    """Write down which program is the oldest that may run on the schema that was just made."""
    connection.execute(text("DELETE FROM schema_compatibility"))
    connection.execute(
        text("INSERT INTO schema_compatibility (id, oldest) VALUES (1, :oldest)"),
        {"oldest": OLDEST},
    )


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in REVISIONS:
        raise SchemaError(
            f"the worklist's schema is {found}, which this program does not know (it knows up to "
            f"{HEAD}): it was made by a newer version of cxr-triage; install that one"
        )


def unavailable(error: SQLAlchemyError) -> str:
    """A database failure in one line, without statement and parameters."""
    cause = getattr(error, "orig", None) or error
    return f"the worklist database cannot be used: {' '.join(str(cause).split())[:300]}"
