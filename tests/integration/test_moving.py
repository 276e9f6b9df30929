"""Moving a site from one database to the other: what arrives, what is refused, what is seen."""

import datetime as dt
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    LargeBinary,
    insert,
    select,
    text,
)

from tests.conftest import emptied
from tests.exams import FLAGGED, arrival, enter
from triage import app
from triage.cli import main
from triage.config import Config
from triage.errors import MoveError, SchemaError, SiteMoved, WorklistError
from triage.spool import digest_of
from triage.worklist import Worklist
from triage.worklist.audit import Action
from triage.worklist.moving import SEEDED, Removal, abandon
from triage.worklist.readings import Said
from triage.worklist.rows import TABLES, digest
from triage.worklist.schema import WRITE, migrate, open_engine
from triage.worklist.schema import moving as moving_state
from triage.worklist.tables import UtcDateTime

ROWS = 7


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Of a site's database, and of an empty one of the other kind."""
    file = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    server = emptied(request.getfixturevalue("postgres"))
    return (file, server) if request.param.startswith("sqlite") else (server, file)


@pytest.fixture
def umask() -> Iterator[None]:
    """The one from before: commands set it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def to_postgres(tmp_path: Path, postgres: str) -> tuple[str, str]:
    """Of a site in SQLite, and of an empty PostgreSQL."""
    return f"sqlite:///{tmp_path / 'worklist.sqlite'}", emptied(postgres)


@contextmanager
def engines(urls: tuple[str, str]) -> Iterator[tuple[Engine, Engine]]:
    """Both databases, opened."""
    source, target = (open_engine(url, create=True) for url in urls)
    try:
        yield source, target
    finally:
        source.dispose()
        target.dispose()


@contextmanager
def removal(urls: tuple[str, str], **more: Any) -> Iterator[Removal]:
    """A move between them."""
    with engines(urls) as (source, target):
        yield Removal(source, target, urls, batch=3, **more)


def site(url: str, anchor: Path | None = None) -> Worklist:
    """A worklist with some exams, one of them read, and an audit trail."""
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(url, (), anchor)
    for number in range(4):
        enter(worklist, f"1.2.{number}", FLAGGED, ["ROTATED"], patient_name="Müller^Zoë")
    worklist.readings.add("1.2.0", Said("confirmed", "reader"))
    for number in range(5):
        worklist.audit.record("reader", Action.SAW_EXAM, f"1.2.{number}", {"n": number})
    return worklist


def contents(engine: Engine) -> dict[str, set[bytes]]:
    """Of every table, the hashes of its rows; but for what tells of the move itself."""
    found = {}
    with engine.connect() as connection:
        for table in TABLES:
            rows = [tuple(row) for row in connection.execute(select(table))]
            if table.name == "audit":
                rows = [row for row in rows if "MOVED" not in row]
            found[table.name] = {digest(row) for row in rows}
    return found


def value(column: Column[Any], number: int) -> Any:
    """Something that its column can hold, of the kind that is lost easily."""
    kind = column.type
    if column.foreign_keys:
        return number + 1
    if isinstance(kind, Boolean):
        return bool(number % 2)
    if isinstance(kind, Integer):
        return number + 1
    if column.nullable and number % 3 == 0:
        return None
    if isinstance(kind, Float):
        return (0.1 + number) / 3
    if isinstance(kind, UtcDateTime):
        return dt.datetime(2026, 1, 31, 23, 59, 59, 999_999 - number, tzinfo=dt.UTC)
    if isinstance(kind, LargeBinary):
        return bytes(range(number, number + 200))
    if kind.python_type in {dict, list}:
        return {"b": [1, 1.0, True, None, "山田 \x00 '"], "a": number}
    told = f"Zoë%:'\"\\ 山田\n{number}"
    length = getattr(kind, "length", None)
    return told if length is None or length >= 20 else f"é{number}"


def fill(engine: Engine) -> None:
    """So many rows in every table, the columns of each filled by their types."""
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        for table in TABLES:
            if table.name in SEEDED:
                connection.execute(table.delete())
            rows = [{c.name: value(c, number) for c in table.columns} for number in range(ROWS)]
            connection.execute(insert(table), rows)


def test_every_row_of_every_table_arrives_as_it_was(urls: tuple[str, str]) -> None:
    """Texts of all scripts, times, bytes, numbers, nesting, nulls; and nothing of ours stays."""
    with engines(urls) as (source, target):
        migrate(source)
        fill(source)
        before = contents(source)
        seen: list[str] = []
        moving = Removal(source, target, urls, batch=3, progress=lambda step, *_: seen.append(step))
        # A filled trail is no chain: only rows are looked at here.
        moving._trail = lambda engine, *_: _Unchained(engine)  # type: ignore[assignment,method-assign,return-value]
        outcome = moving.run("operator")
        assert outcome.here
        assert all(table.rows == ROWS for table in outcome.tables)
        assert all(table.verified >= ROWS for table in outcome.tables)
        assert set(seen) == {"copy", "verify"}
        assert contents(target) == before
        assert contents(source) == before


class _Unchained:
    """Follows no chain."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def verify(self, _after: object = None) -> Any:
        """The last row."""
        with self._engine.connect() as connection:
            return connection.execute(
                text("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
            ).one()


def test_the_site_goes_on_where_it_arrived(urls: tuple[str, str], tmp_path: Path) -> None:
    """Numbers go on, the audit trail and its anchor, too; the old one says where it is."""
    anchor = tmp_path / "audit-head"
    old = site(urls[0], anchor)
    end = old.audit.verify().id
    with removal(urls, anchor=anchor) as moving:
        assert moving.look().tables
        assert moving.run("operator").audit is not None
        with pytest.raises(SiteMoved, match="already"):
            moving.run("operator")
    new = Worklist(urls[1], (), anchor)
    assert new.audit.verify().id == end + 1
    assert [row.action for row in new.audit.records()][-1] == "MOVED"
    assert [item.sop_instance_uid for item in new.items()] == [
        item.sop_instance_uid for item in old.items()
    ]
    assert len(new.readings.of("1.2.0")) == 1
    entered = enter(new, "1.2.9", FLAGGED)
    assert entered.state == "SCORED"
    new.readings.add("1.2.9", Said("rejected", "reader"))
    new.close()
    with pytest.raises(SiteMoved, match="TRIAGE_DATABASE_URL"):
        Worklist(urls[0])
    with pytest.raises(SiteMoved), engines(urls) as (source, _):
        abandon(source, urls[0])
    old.close()


def test_a_closed_database_takes_nothing_and_says_so(urls: tuple[str, str]) -> None:
    """Never for a row that is there already, whoever has it open; until the move is abandoned."""
    worklist = site(urls[0])
    with removal(urls) as moving:
        moving.run("operator", copy_only=True)
        moving._shut()
    for refused in (
        lambda: worklist.receive(arrival("1.2.7")),
        lambda: worklist.readings.add("1.2.1", Said("confirmed", "reader")),
        lambda: worklist.audit.record("reader", Action.SAW_LIST),
        worklist.accounts.first_operator,
        lambda: Worklist(urls[0]),
        lambda: Worklist(urls[1]),
    ):
        with pytest.raises(SiteMoved, match=r"site (moves|is being moved)") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert len(worklist.items()) == 4
    with engines(urls) as (source, _):
        assert abandon(source, urls[0])
        assert not abandon(source, urls[0])
    assert worklist.receive(arrival("1.2.7"))
    again = Worklist(urls[0])
    assert again.receive(arrival("1.2.8"))
    again.close()
    worklist.close()


def change(worklist: Worklist, number: int) -> None:
    """What a service does meanwhile: rows come, change and go."""
    uid = f"1.3.{number}"
    enter(worklist, uid, FLAGGED, ["ROTATED"])
    worklist.readings.add(uid, Said("confirmed", "reader"))
    worklist.parts.begin(f"node-{number}", "score", number, "1", lambda _process: True)
    worklist.parts.end(f"node-{number - 1}", "score", number - 1)
    worklist.audit.record("reader", Action.SAW_EXAM, uid)


def test_what_changes_between_two_transactions_arrives(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    """Rows that refer to newer rows of tables that were copied before; in every step."""
    anchor = tmp_path / "audit-head"
    worklist = site(urls[0], anchor)
    steps: list[str] = []

    def progress(step: str, _done: int, _total: int) -> None:
        steps.append(step)
        if len(steps) % 14 == 0:
            change(worklist, len(steps) // 14)

    with removal(urls, anchor=anchor, progress=progress) as moving:
        outcome = moving.run("operator")
    assert outcome.followed > 50
    assert set(steps) == {"copy", "verify"}
    with engines(urls) as (source, target):
        assert contents(source) == contents(target)
    worklist.close()


STEPS = ("_begin", "_copy", "_catch_up", "_verify", "_shut", "_finish", "_arrive")


def killed(moving: Removal, step: str, when: str) -> None:
    """Move until a step is under way or has ended; then the process is killed."""
    usual = getattr(moving, step)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dies(*arguments: Any) -> Any:
        if when == "within":
            # The second transaction into the new database of this step is not committed.
            opened = moving._writing
            count = 0

            @contextmanager
            def writing(engine: Engine, place: str) -> Iterator[Any]:
                nonlocal count
                count += 1
                with opened(engine, place) as connection:
                    yield connection
                    if count == 2:
                        kill()

            moving._writing = writing  # type: ignore[method-assign]
        usual(*arguments)
        kill()

    setattr(moving, step, dies)
    moving.run("operator")


@pytest.mark.parametrize("when", ["within", "after"])
def test_a_move_goes_on_after_kill_9_in_any_step(
    to_postgres: tuple[str, str], tmp_path: Path, when: str
) -> None:
    """Killed in each step, with changes between; in the end both have the same rows."""
    anchor = tmp_path / "audit-head"
    worklist = site(to_postgres[0], anchor)

    def die(step: str) -> None:
        with removal(to_postgres, anchor=anchor) as moving:
            killed(moving, step, when)

    states = []
    for number, step in enumerate(STEPS):
        # The site receives unless it is being closed at this moment.
        if not states or states[-1] in {None, "COPYING"}:
            change(worklist, number)
        else:
            with pytest.raises(SiteMoved):
                change(worklist, number)
        process = multiprocessing.get_context("fork").Process(target=die, args=(step,))
        process.start()
        process.join(120)
        if states and states[-1] == "MOVED" and process.exitcode != -signal.SIGKILL:
            break
        assert process.exitcode == -signal.SIGKILL, (step, process.exitcode)
        states.append(state_of(to_postgres[0]))
    assert "COPYING" in states
    if states[-1] != "MOVED" or state_of(to_postgres[1]) is not None:
        with removal(to_postgres, anchor=anchor) as moving:
            assert moving.run("operator").here
    with engines(to_postgres) as (source, target):
        assert contents(source) == contents(target)
    new = Worklist(to_postgres[1], (), anchor)
    new.audit.verify()
    change(new, 99)
    new.close()
    worklist.close()


def state_of(url: str) -> str | None:
    """How far a database says that the move is."""
    engine = open_engine(url, create=False)
    try:
        found = moving_state(engine)
        return None if found is None else str(found[0])
    finally:
        engine.dispose()


ALTERED = (
    (
        "UPDATE items SET novelty = 0.25 WHERE id = 2",
        "UPDATE items SET novelty = NULL WHERE id = 2",
        "row 2 of items is not as",
    ),
    (
        'UPDATE items SET notes = \'["ROTATED", "X"]\' WHERE id = 2',
        "UPDATE items SET notes = '[\"ROTATED\"]' WHERE id = 2",
        "row 2 of items is not as",
    ),
    (
        "UPDATE events SET at = at + interval '1 microsecond' WHERE id = 2",
        "UPDATE events SET at = at - interval '1 microsecond' WHERE id = 2",
        "row 2 of events is not as",
    ),
    (
        "UPDATE readings SET shown_score = 0.9000000000000001",
        "UPDATE readings SET shown_score = 0.9",
        "row 1 of readings is not as",
    ),
    (
        "DELETE FROM leases WHERE name = 'schedule'",
        "INSERT INTO leases (name) VALUES ('schedule')",
        "row 'schedule' of leases is missing",
    ),
    (
        "INSERT INTO leases (name) VALUES ('another')",
        "DELETE FROM leases WHERE name = 'another'",
        "leases has .* rows",
    ),
)
"""What somebody does in the new database, how it is undone, and what is said of it."""


def test_a_row_that_differs_is_seen(to_postgres: tuple[str, str]) -> None:
    """Changed, removed or added in the new database: nothing is moved, the old one goes on."""
    worklist = site(to_postgres[0])
    with removal(to_postgres) as moving:
        moving.run("operator", copy_only=True)
    for number, (alter, undo, told) in enumerate(ALTERED):
        with engines(to_postgres) as (_, target), target.begin() as connection:
            connection.execute(text(alter))
        with removal(to_postgres) as moving, pytest.raises(MoveError, match=told):
            moving.run("operator")
        assert worklist.receive(arrival(f"1.2.{7 + number}"))
        with engines(to_postgres) as (_, target), target.begin() as connection:
            connection.execute(text(undo))
    with removal(to_postgres) as moving:
        assert moving.run("operator").here
    worklist.close()


def test_a_trail_that_was_written_anew_is_not_moved(
    to_postgres: tuple[str, str], tmp_path: Path
) -> None:
    """The anchor is asked while nothing changes; then the old database goes on."""
    anchor = tmp_path / "audit-head"
    worklist = site(to_postgres[0], anchor)
    anchor.write_text(f"5 {'ab' * 32}\n")
    with removal(to_postgres, anchor=anchor) as moving, pytest.raises(WorklistError, match="anew"):
        moving.run("operator")
    assert worklist.receive(arrival("1.2.7"))
    worklist.close()


def test_an_interrupted_switch_opens_the_old_database_again(
    to_postgres: tuple[str, str],
) -> None:
    """Ctrl-C while it is closed: radiographs wait for nobody."""
    worklist = site(to_postgres[0])

    def interrupt(_head: object) -> None:
        with pytest.raises(SiteMoved):
            worklist.receive(arrival("1.2.7"))
        raise KeyboardInterrupt

    with removal(to_postgres) as moving:
        moving._finish = interrupt  # type: ignore[assignment,method-assign]
        with pytest.raises(KeyboardInterrupt):
            moving.run("operator")
    assert worklist.receive(arrival("1.2.7"))
    worklist.close()


def test_what_cannot_be_moved_is_refused_before_anything_changes(
    to_postgres: tuple[str, str], tmp_path: Path
) -> None:
    """A full database, another schema, another move's, a text that PostgreSQL cannot hold."""
    worklist = site(to_postgres[0])

    def refused(kind: type[WorklistError], told: str) -> None:
        with removal(to_postgres) as moving, pytest.raises(kind, match=told) as caught:
            moving.run("operator")
        assert "\n" not in str(caught.value)
        assert state_of(to_postgres[0]) is None

    site(to_postgres[1]).close()
    refused(MoveError, "not empty: it has rows in")
    with engines(to_postgres) as (_, target), target.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    refused(SchemaError, "has schema 0003")
    emptied(to_postgres[1])
    with engines(to_postgres) as (_, target), target.begin() as connection:
        connection.execute(text("CREATE TABLE items (number integer)"))
    refused(MoveError, "tables of another program: items")
    emptied(to_postgres[1])
    with removal((f"sqlite:///{tmp_path / 'other.sqlite'}", to_postgres[1])) as other:
        site(f"sqlite:///{tmp_path / 'other.sqlite'}").close()
        other.run("operator", copy_only=True)
    refused(MoveError, "another move")
    emptied(to_postgres[1])
    with engines(to_postgres) as (source, _), source.begin() as connection:
        connection.execute(
            text("UPDATE items SET view_position = :long WHERE id = 2"), {"long": "P" * 65}
        )
    refused(MoveError, "the row 2 of items .* too long")
    worklist.close()


def test_a_lost_trigger_is_noticed(to_postgres: tuple[str, str]) -> None:
    """What changed unseen cannot be followed."""
    worklist = site(to_postgres[0])
    with removal(to_postgres) as moving:
        moving.run("operator", copy_only=True)
    with engines(to_postgres) as (source, _), source.begin() as connection:
        connection.execute(text("DROP TRIGGER site_move_items_update"))
    with removal(to_postgres) as moving, pytest.raises(MoveError, match="1 of the triggers"):
        moving.run("operator")
    worklist.close()


@pytest.mark.usefixtures("umask")
def test_the_command_says_what_it_does(to_postgres: tuple[str, str], tmp_path: Path) -> None:
    """Dry run, copy, switch, too late; what is wrong in one line, and no password anywhere."""
    home = tmp_path / "home"
    home.mkdir()
    site(f"sqlite:///{home / 'worklist.sqlite'}", home / "audit-head").close()
    address = to_postgres[1].partition("@")[2]
    secret = f"postgresql://triage:SECRET@{address}"
    file = tmp_path / "target"
    file.write_text(f"{secret}\n")

    def called(*arguments: str, typed: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(
            main, ["migrate", *arguments], input=typed, env={"TRIAGE_HOME": str(home)}
        )
        told = result.output + ("" if result.exception is None else str(result.exception))
        assert "SECRET" not in told
        return result.exit_code, told

    assert "need --to URL" in called("--dry-run")[1]
    assert called("--abandon") == (0, "the site was not moving\n")
    assert "cannot be read" in called("--to", f"@{tmp_path / 'none'}")[1]
    assert "holds no URL" in called("--to", "-", typed="\n")[1]
    assert "--to must be sqlite:///FILE or postgresql" in called("--to", "mysql://h/d")[1]
    assert "already" in called("--to", f"sqlite:///{home / 'worklist.sqlite'}")[1]
    assert "every user of this machine" in called("--to", secret, "--dry-run")[1]
    fresh = tmp_path / "fresh.sqlite"
    assert called("--to", f"sqlite:///{fresh}", "--dry-run")[0] == 0
    assert not fresh.exists()
    status, told = called("--to", f"@{file}", "--dry-run")
    assert (status, "nothing was changed" in told) == (0, True)
    status, told = called("--to", "-", "--copy-only", typed=f"{secret}\n")
    assert status == 0
    assert "the site stays" in told
    assert called("--abandon") == (0, "the site stays where it is\n")
    assert "belongs to another move" in called("--to", f"@{file}")[1]
    emptied(to_postgres[1])
    status, told = called("--to", f"@{file}", "--json")
    assert status == 0, told
    outcome = json.loads(told[told.index("{") :])
    assert outcome["here"]
    assert {each["name"]: each["rows"] for each in outcome["tables"]}["items"] == 4
    assert all(each["verified"] >= each["rows"] for each in outcome["tables"])
    assert "has moved to postgresql://triage:***@" in called("--to", f"@{file}")[1]
    assert "has moved" in called()[1]
    assert "already: nothing can be abandoned" in called("--abandon")[1]


@pytest.mark.usefixtures("umask")
def test_files_and_models_go_where_nodes_share_them(tmp_path: Path) -> None:
    """With who is champion; again for what came since; not where nodes have run already."""
    home, shared = tmp_path / "home", (tmp_path / "shared").as_uri()
    alone = Config(home=home)
    app.prepare(alone)
    here = app.registry(alone)
    model = here.champion()
    app.spool(alone).put(digest_of(b"a"), b"a", "results")

    def called(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["migrate", *arguments], env={"TRIAGE_HOME": str(home)})
        return result.exit_code, result.output + str(result.exception or "")

    assert "bad value for --files-to" in called("--files-to", "ftp://somewhere")[1]
    status, told = called("--files-to", shared)
    assert status == 0, told
    assert "1 files of 0.0 MB, each read back and equal, 1 of them new" in told
    here.note("somebody", "TRUSTED", {"key": "k"})
    assert "0 of them new" in called("--files-to", shared)[1]
    node = Config(
        home=tmp_path / "node", spool_url=shared, database_url=f"sqlite:///{home}/worklist.sqlite"
    )
    there = app.registry(node)
    assert there.history() == here.history()
    assert there.champion().version == model.version
    assert app.spool(node).size(digest_of(b"a"), "results") == 1
    there.note("a node", "TRUSTED", {"key": "k"})
    assert "a history of its own" in called("--files-to", shared)[1]


def test_keys_are_numbers_and_texts() -> None:
    """What the triggers write as JSON is read back as it was."""
    for table in TABLES:
        assert table.primary_key.columns
        for column in table.primary_key.columns:
            assert column.type.python_type in {int, str}, f"{table.name}.{column.name}"
