"""The schema on both databases: how it is made, what it equals, and what is refused."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine.interfaces import ReflectedIndex

import triage.worklist
from triage.errors import SchemaError, WorklistError
from triage.worklist import Worklist
from triage.worklist.schema import HEAD, REVISIONS, WRITE, migrate, open_engine, revision
from triage.worklist.tables import Base

MIGRATIONS = Path(triage.worklist.__file__).parent / "migrations"


@pytest.fixture
def empty(database_url: str) -> Iterator[Engine]:
    """An empty database."""
    engine = open_engine(database_url, create=True)
    with engine.connect():
        pass  # SQLite makes its file now
    yield engine
    engine.dispose()


def settings() -> AlembicConfig:
    """Alembic's settings, as ``triage migrate`` makes them."""
    made = AlembicConfig()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


def plain(index: ReflectedIndex) -> str:
    """An index in words; its condition is an object, which is never equal to another."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def objects(engine: Engine) -> dict[str, object]:
    """What is in the database: columns, keys, indexes and views, as it reports them."""
    found = inspect(engine)
    tables = found.get_table_names()
    columns = {
        table: [
            (column["name"], str(column["type"]), column["nullable"])
            for column in found.get_columns(table)
        ]
        for table in tables
    }
    return {
        "columns": columns,
        "indexes": {table: sorted(map(plain, found.get_indexes(table))) for table in tables},
        "unique": {
            table: sorted(map(str, found.get_unique_constraints(table))) for table in tables
        },
        "foreign": {table: sorted(map(str, found.get_foreign_keys(table))) for table in tables},
        "views": {view: found.get_view_definition(view) for view in found.get_view_names()},
    }


def test_migrating_makes_everything_once(empty: Engine) -> None:
    """From nothing to HEAD; again, it changes nothing."""
    assert revision(empty) is None
    assert migrate(empty) is None
    assert revision(empty) == HEAD
    made = objects(empty)
    assert {"items", "scores", "readings", "events"} < set(inspect(empty).get_table_names())
    assert inspect(empty).get_view_names() == ["worklist_v1"]
    assert migrate(empty) == HEAD
    assert objects(empty) == made


def test_the_migrated_schema_is_the_one_of_the_tables(empty: Engine) -> None:
    """Tables, columns, types, nullability, keys and indexes."""
    migrate(empty)
    with empty.connect() as connection, warnings.catch_warnings():
        # Alembic does not compare SQLite's indexes over expressions; the next test does.
        warnings.filterwarnings("ignore", "autogenerate skipping", UserWarning)
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_indexes_and_keys_are_those_of_the_tables(
    empty: Engine, database_url: str, tmp_path: Path
) -> None:
    """What the tables alone would make has the same indexes, in SQL, and the same keys."""
    migrate(empty)
    migrated = objects(empty)
    sql = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[empty.dialect.name]

    def indexes() -> dict[str, str]:
        with empty.connect() as connection:
            rows = connection.execute(text(sql)).all()
        return {
            name: statement.replace('"', "")
            for name, statement in rows
            if "alembic" not in name and "tmp" not in name
        }

    by_migration = indexes()
    with empty.begin() as connection:
        connection.execute(text("DROP VIEW worklist_v1"))
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
    assert by_migration == indexes()
    made = objects(empty)
    for kind in ("columns", "unique", "foreign"):
        assert made[kind] == migrated[kind], kind


def test_head_is_alembics_head() -> None:
    """The program's list of revisions is the folder's, in order, in one line of descent."""
    scripts = ScriptDirectory.from_config(settings())
    assert scripts.get_current_head() == HEAD
    oldest_first = [script.revision for script in scripts.walk_revisions()][::-1]
    assert tuple(oldest_first) == REVISIONS


def test_down_and_up_again_gives_the_same_schema(empty: Engine) -> None:
    """Down leaves nothing of ours behind."""
    migrate(empty)
    made = objects(empty)
    alembic = settings()
    with empty.execution_options(**{WRITE: True}).begin() as connection:
        alembic.attributes["connection"] = connection
        command.downgrade(alembic, "base")
    assert inspect(empty).get_table_names() == ["alembic_version"]
    assert inspect(empty).get_view_names() == []
    assert revision(empty) is None
    migrate(empty)
    assert objects(empty) == made


def test_a_failed_migration_leaves_nothing(empty: Engine) -> None:
    """One transaction: a table in the way stops it in one line, and no other table is there."""
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE readings (id INTEGER)"))
    with pytest.raises(WorklistError) as caught:
        migrate(empty)
    assert "\n" not in str(caught.value)
    assert set(inspect(empty).get_table_names()) <= {"readings", "alembic_version"}
    assert revision(empty) is None


def test_several_processes_may_migrate_at_once(empty: Engine, database_url: str) -> None:
    """As the parts of a cluster do on their first start: all succeed."""
    program = (
        "import sys\n"
        "import alembic.command\n"
        "from triage.worklist.schema import migrate, open_engine\n"
        "engine = open_engine(sys.argv[1], create=True)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "migrate(engine)\n"
    )
    migrators = [
        subprocess.Popen(
            [sys.executable, "-c", program, database_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for migrator in migrators:
        assert migrator.stdout is not None
        assert migrator.stdout.readline() == "ready\n"
    for migrator in migrators:
        assert migrator.stdin is not None
        migrator.stdin.write("go\n")
        migrator.stdin.flush()
    errors = [migrator.communicate(timeout=60)[1] for migrator in migrators]
    assert errors == [""] * 4
    assert revision(empty) == HEAD


def test_a_database_of_a_newer_program_is_refused(empty: Engine, database_url: str) -> None:
    """In one line that says so, by opening and by migrating, and it stays as it is."""
    migrate(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE schema_compatibility SET oldest = '9999'"))
    for attempt in (lambda: Worklist(database_url), lambda: migrate(empty)):
        with pytest.raises(SchemaError, match=r"9999.*newer") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert revision(empty) == "9999"


def test_an_empty_database_is_refused_with_the_command_that_helps(
    empty: Engine, database_url: str
) -> None:
    """`triage migrate`."""
    with pytest.raises(SchemaError, match=r"empty.*`triage migrate`") as caught:
        Worklist(database_url)
    assert "\n" not in str(caught.value)
    assert inspect(empty).get_table_names() == []


def test_a_missing_sqlite_file_is_named_and_not_made(tmp_path: Path) -> None:
    """Looking at an installation that is not there leaves no trace of one."""
    file = tmp_path / "absent" / "worklist.sqlite"
    with pytest.raises(WorklistError, match=r"absent/worklist\.sqlite"):
        Worklist(f"sqlite:///{file}")
    file = tmp_path / "worklist.sqlite"
    with pytest.raises(WorklistError, match=r"worklist\.sqlite"):
        Worklist(f"sqlite:///{file}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    """In one line; not a byte is changed."""
    file = tmp_path / "worklist.sqlite"
    file.write_bytes(b"a letter, not a database. " * 100)
    before = file.read_bytes()
    with pytest.raises(WorklistError, match="not a database"):
        Worklist(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_an_unreachable_server_is_told_in_one_line_without_the_password() -> None:
    """Also when nobody listens."""
    with pytest.raises(WorklistError) as caught:
        Worklist("postgresql://triage:secret@127.0.0.1:1/triage")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "nonsense", "oracle://x"])
def test_other_databases_are_refused_by_the_setting_that_names_them(url: str) -> None:
    """The line shows what to write instead."""
    with pytest.raises(WorklistError, match=r"TRIAGE_DATABASE_URL.*sqlite:///FILE"):
        open_engine(url, create=True)
