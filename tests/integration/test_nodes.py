"""What nodes have in common: models, leases by one clock, wake-ups, a schema that is ahead."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.integration.test_worklist import HIGH_SCORE, arrival
from tests.unit.test_registry import version
from triage import app
from triage.config import Config
from triage.errors import ConfigError, ModelError, SchemaError
from triage.registry import CHAMPION, Registry, Shared
from triage.spool import Spool
from triage.store import open_store
from triage.worklist import MAX_ATTEMPTS, State, Worklist, ledgers
from triage.worklist.ledgers import History
from triage.worklist.schema import HEAD, alone, migrate, open_engine


@pytest.fixture
def new_registry(
    worklist: Worklist, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Registry]:
    """Opens the shared registry as a node does, which sees at once what others did."""
    monkeypatch.setattr(ledgers, "FRESH_SECONDS", 0.0)

    def new(node: str) -> Registry:
        store = open_store((tmp_path / "shared").as_uri(), tmp_path / node)
        return Registry(tmp_path / node / "models", Shared(store, History(database_url)))

    return new


def test_what_one_node_adds_and_names_scores_on_all(
    new_registry: Callable[[str], Registry], tmp_path: Path
) -> None:
    """Files, aliases and decisions; each node has verified copies of its own."""
    one, two = new_registry("one"), new_registry("two")
    for name in ("net-1", "net-2"):
        one.add(version(tmp_path / "made" / name))
    one.begin("net-1")
    assert two.champion().version == "net-1"
    assert two.champion().folder == tmp_path / "two" / "models" / "net-1"
    assert {model.version for model in two.versions()} == {"net-1", "net-2"}
    decision = b'{"challenger": "net-2", "champion": "net-1", "outcome": "PROVEN"}'
    two.decided(decision, b"<html>", "gate")
    one.approve("net-2", who="anna", why="")
    two.promote("net-2", who="anna")
    assert one.champion().version == "net-2"
    assert one.rollback(who="anna") == "net-1"
    assert two.aliases()[CHAMPION] == "net-1"
    assert [entry.hash for entry in one.history()] == [entry.hash for entry in two.history()]
    assert not (tmp_path / "one" / "models" / "aliases.json").exists()


def test_the_first_champion_is_named_once(
    new_registry: Callable[[str], Registry], tmp_path: Path
) -> None:
    """Also by nodes of two programs that bring different ones."""
    one, two = new_registry("one"), new_registry("two")
    one.add(version(tmp_path / "made" / "net-1"))
    two.add(version(tmp_path / "made" / "net-2"))
    one.begin("net-1")
    two.begin("net-2")
    assert one.aliases() == two.aliases() == {CHAMPION: "net-1"}


def test_another_model_of_the_same_name_is_refused(
    new_registry: Callable[[str], Registry], tmp_path: Path
) -> None:
    """By a node that has none of that name yet, too."""
    new_registry("one").add(version(tmp_path / "made" / "net-1"))
    with pytest.raises(ModelError, match="another model of that name"):
        new_registry("two").add(version(tmp_path / "other" / "net-1", threshold=0.9))


def test_a_changed_line_of_the_shared_history_is_told(
    new_registry: Callable[[str], Registry], tmp_path: Path, database_url: str
) -> None:
    """By the next node that reads it."""
    one = new_registry("one")
    one.add(version(tmp_path / "made" / "net-1"))
    one.begin("net-1")
    engine = open_engine(database_url, create=False)
    with engine.begin() as connection:
        connection.execute(text("UPDATE model_history SET line = replace(line, 'NAMED', 'FOUND')"))
    engine.dispose()
    with pytest.raises(ModelError, match="model_history is broken at line 1"):
        new_registry("two").aliases()


def test_an_outage_costs_an_item_none_of_its_attempts(worklist: Worklist) -> None:
    """However often the store is away; then it is scored."""
    worklist.receive(arrival("1.2"))
    for _ in range(MAX_ATTEMPTS + 2):
        claim = worklist.claim("w")
        assert claim is not None
        assert worklist.give_back(claim)
        assert not worklist.give_back(claim)
    claim = worklist.claim("v")
    assert claim is not None
    assert worklist.scored(claim, HIGH_SCORE, ())
    assert worklist.item("1.2").state is State.SCORED


def test_who_waits_is_woken_by_what_comes(worklist: Worklist, database_url: str) -> None:
    """On PostgreSQL by NOTIFY, elsewhere by looking: either way it is seen without asking."""
    bell, stop, seen = worklist.bell(0.01), threading.Event(), threading.Event()

    def wait() -> None:
        while worklist.claim("w") is None:
            bell.wait(stop)
        seen.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    worklist.receive(arrival("1.2"))
    assert seen.wait(30)
    waiting.join()
    bell.close()


def test_a_bell_rings_for_a_commit_of_another_connection(postgres: str) -> None:
    """The notification itself, not the look that would come anyway."""
    engine = open_engine(postgres, create=False)
    migrate(engine)
    worklist = Worklist(postgres)
    bell, stop = worklist.bell(0.0), threading.Event()
    bell.wait(stop)  # it listens from now on
    worklist.receive(arrival("1.2.77"))
    assert list(bell._connection.notifies(timeout=30, stop_after=1))
    bell.close()
    worklist.close()
    engine.dispose()


def test_a_glance_at_sqlite_sees_a_commit_of_another_connection(tmp_path: Path) -> None:
    """Long before the next look would come anyway; without one it waits until that."""
    url = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    worklist, stop = Worklist(url), threading.Event()
    bell, short = worklist.bell(3_600.0), worklist.bell(0.05)
    for each in (bell, short):
        each.wait(stop)  # it knows from now on what was committed before
    short.wait(stop)
    waiting = threading.Thread(target=bell.wait, args=[stop], daemon=True)
    waiting.start()
    worklist.receive(arrival("1.2.77"))
    waiting.join(60.0)
    assert not waiting.is_alive()
    for each in (bell, short):
        each.close()
    worklist.close()
    engine.dispose()


def test_both_ends_of_a_connection_notice_a_line_that_is_cut(postgres: str) -> None:
    """Long before the systems would by themselves; `make faults` cuts one."""
    engine = open_engine(postgres, create=False)
    with engine.connect() as connection:
        here = socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno()))
        with here:
            assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
            assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        for name, value in (("tcp_user_timeout", "25000"), ("tcp_keepalives_idle", "10")):
            assert connection.scalar(text(f"SHOW {name}")) == value
    engine.dispose()


def test_a_lock_of_all_nodes_is_held_by_one(postgres: str) -> None:
    """The second comes in when the first has left."""
    order: list[str] = []

    def second() -> None:
        with alone(postgres, "test"):
            order.append("second")

    with alone(postgres, "test"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]


def ahead(url: str, oldest: str) -> None:
    """What the next release's migration would have made."""
    engine = open_engine(url, create=False)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE items ADD COLUMN ward VARCHAR(16)"))
        connection.execute(text("CREATE TABLE wards (id INTEGER PRIMARY KEY)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9998'"))
        connection.execute(text("UPDATE schema_compatibility SET oldest = :it"), {"it": oldest})
    engine.dispose()


def test_a_program_goes_on_and_starts_again_on_a_schema_that_was_expanded(
    worklist: Worklist, database_url: str
) -> None:
    """Before and after the newer program's migration; migrating it again changes nothing."""
    worklist.receive(arrival("1.2"))
    ahead(database_url, HEAD)
    worklist.receive(arrival("1.3"))
    engine = open_engine(database_url, create=False)
    assert migrate(engine) == "9998"
    engine.dispose()
    again = Worklist(database_url)
    for _ in range(2):
        claim = again.claim("w")
        assert claim is not None
        assert again.scored(claim, HIGH_SCORE, ())
    assert again.counts()[State.SCORED] == 2
    again.close()


def test_a_program_does_not_start_on_a_schema_that_was_contracted(
    worklist: Worklist, database_url: str
) -> None:
    """In one line that says what to do."""
    ahead(database_url, "9998")
    with pytest.raises(SchemaError, match=r"9998.*newer"):
        Worklist(database_url)


def test_files_of_a_home_are_not_left_behind(tmp_path: Path) -> None:
    """A store is not begun while a home has files that it does not."""
    home = tmp_path / "home"
    app.prepare(Config(home=home))
    files = Spool(home / "spool")
    files.prepare()
    files.put("ab" * 32, b"content")
    shared = Config(home=home, spool_url=(tmp_path / "shared").as_uri())
    with pytest.raises(ConfigError, match=r"has instance files: .*--files-to"):
        app.prepare(shared)
    app.prepare(Config(home=home, spool_url=(home / "spool").as_uri()))
    (tmp_path / "shared").mkdir()
    (home / "spool" / "instances").rename(tmp_path / "shared" / "instances")
    app.prepare(shared)
    assert app.spool(shared).size("ab" * 32) == len(b"content")
