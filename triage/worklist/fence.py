"""What a database has while a site moves from it: triggers that note changes, or refuse them.

They are the database's own, so that they hold for every program that has it open, of whatever
version, from the commit on that makes them.
"""

from collections.abc import Callable, Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from triage.worklist.rows import TABLES, key_columns
from triage.worklist.schema import MOVE

OWN = MetaData()
MOVES = Table(
    MOVE,
    OWN,
    Column("id", String(32), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("peer", Text, nullable=False),
)
"""In both databases: which move, how far, and where the other one is."""
CHANGES = Table(
    "site_move_changes",
    OWN,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("name", String(64), nullable=False, index=True),
    Column("key", Text, nullable=False),
    Column("born", Boolean, nullable=False),
)
"""In the old database: the key of each row that was changed, as JSON, until it was copied."""
COPIED = Table(
    "site_move_tables",
    OWN,
    Column("name", String(64), primary_key=True),
    Column("last", Text, nullable=False),
    Column("done", Boolean, nullable=False),
)
"""In the new database: how far a table was copied."""

_OPERATIONS = ("insert", "update", "delete")


def _note_sqlite() -> dict[str, str]:
    made = {}
    for table in TABLES:
        for operation in _OPERATIONS:
            row = "OLD" if operation == "delete" else "NEW"
            key = ", ".join(f"{row}.{column.name}" for column in key_columns(table))
            name = f"site_move_{table.name}_{operation}"
            made[name] = (
                f"CREATE TRIGGER {name} AFTER {operation} ON {table.name} BEGIN "  # noqa: S608
                f"INSERT INTO {CHANGES.name} (name, key, born) VALUES ('{table.name}', "
                f"json_array({key}), {int(operation == 'insert')}); END"
            )
    return made


def _refuse_sqlite(message: str) -> dict[str, str]:
    told = message.replace("'", "''")
    return {
        (name := f"site_closed_{table.name}_{operation}"): (
            f"CREATE TRIGGER {name} BEFORE {operation} ON {table.name} BEGIN "
            f"SELECT RAISE(ABORT, '{told}'); END"
        )
        for table in TABLES
        for operation in _OPERATIONS
    }


def _note_postgresql() -> dict[str, str]:
    made = {}
    for table in TABLES:
        keys = {
            row: ", ".join(f"{row}.{column.name}" for column in key_columns(table))
            for row in ("OLD", "NEW")
        }
        name = f"site_move_{table.name}"
        made[name] = (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "  # noqa: S608
            f"INSERT INTO {CHANGES.name} (name, key, born) VALUES ('{table.name}', "
            f"CASE WHEN TG_OP = 'DELETE' THEN json_build_array({keys['OLD']}) "
            f"ELSE json_build_array({keys['NEW']}) END, TG_OP = 'INSERT'); RETURN NULL; END $$; "
            f"CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {table.name} "
            f"FOR EACH ROW EXECUTE FUNCTION {name}()"
        )
    return made


def _refuse_postgresql(message: str) -> dict[str, str]:
    # The driver takes a per cent sign for a parameter's.
    told = message.replace("'", "''").replace("%", "%%")
    made = {}
    for table in TABLES:
        name = f"site_closed_{table.name}"
        made[name] = (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION USING MESSAGE = '{told}'; END $$; "
            f"CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table.name} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )
    return made


_NOTE: Mapping[str, Callable[[], dict[str, str]]] = {
    "sqlite": _note_sqlite,
    "postgresql": _note_postgresql,
}
_REFUSE: Mapping[str, Callable[[str], dict[str, str]]] = {
    "sqlite": _refuse_sqlite,
    "postgresql": _refuse_postgresql,
}


def noting(dialect: str) -> dict[str, str]:
    """By name, the SQL of the triggers that note the key of each row that changes."""
    return _NOTE[dialect]()


def refusing(dialect: str, message: str = "") -> dict[str, str]:
    """By name, the SQL of the triggers that refuse every change with a message."""
    return _REFUSE[dialect](message)


def names(connection: Connection) -> set[str]:
    """Of the triggers that are there."""
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
    }
    return set(connection.scalars(text(catalogue[connection.dialect.name])))


def make(connection: Connection, triggers: Mapping[str, str]) -> None:
    """Make triggers, within the caller's transaction."""
    for statement in triggers.values():
        connection.exec_driver_sql(statement)


def drop(connection: Connection, triggers: Mapping[str, str]) -> None:
    """Remove triggers, if they are there."""
    for name in triggers:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        else:
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {name}() CASCADE")
