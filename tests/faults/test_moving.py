"""A site moves from SQLite to PostgreSQL while consoles send: nothing is lost, nothing twice."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Service, emptied
from tests.faults.consoles import Image, Queue, images, send, shared, until
from tests.faults.invariants import Ledger
from tests.faults.services import ask, hold, url_of
from tests.faults.tally import Tally, amount
from triage.worklist import State, Worklist
from triage.worklist.audit import Action
from triage.worklist.readings import Said
from triage.worklist.schema import migrate, open_engine

ROLES = ("--roles", "receive,score")
SETTLED = "SELECT count(*) FROM items WHERE state <> 'RECEIVED'"


def migration(service: Service, url: str) -> subprocess.Popen[bytes]:
    """``triage migrate --to``, started; the URL is in a file, and it waits for locks for ever."""
    file = service.home.with_suffix(".url")
    file.write_text(f"{url}?options=-c%20lock_timeout%3D0")
    with told(service).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "triage", "migrate", "--to", f"@{file}"],
            env=service.environment,
            cwd=service.home.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def told(service: Service) -> Path:
    """Where the output of a move goes."""
    return service.home.with_suffix(".move")


@contextmanager
def held(url: str, table: str) -> Iterator[None]:
    """Nobody else writes a table."""
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")  # type: ignore[arg-type]
        yield
        connection.rollback()


def copied(url: str, table: str) -> bool:
    """Whether a move has copied a table into a database."""
    with psycopg.connect(url) as connection:
        there = connection.execute("SELECT to_regclass('site_move_tables')").fetchone()
        if there is None or there[0] is None:
            return False
        row = connection.execute(
            "SELECT done FROM site_move_tables WHERE name = %s", (table,)
        ).fetchone()
        return row is not None and bool(row[0])


@pytest.fixture
def consoles() -> Callable[[Service, list[Image], Ledger], None]:
    """Two consoles send some images until each has its Success."""

    def run(service: Service, several: list[Image], ledger: Ledger) -> None:
        for queue in [Queue(service.port, part, ledger) for part in shared(several, 2)]:
            queue.finish(300)

    return run


def test_a_site_moves_while_it_receives(
    new_service: Callable[..., Service],
    postgres: str,
    tally: Tally,
    consoles: Callable[[Service, list[Image], Ledger], None],
) -> None:
    """Killed while it copies, gone on with, switched; each Success is there exactly once."""
    per_step = amount(2, 200, "FAULTS_IMAGES")
    url, ledger = emptied(postgres), Ledger()
    service = new_service()
    service.start(*ROLES)
    consoles(service, images(per_step), ledger)
    assert until(lambda: ask(service, SETTLED) >= per_step, 300)
    read = next(iter(ledger.acknowledged))
    anchor = service.home / "audit-head"
    with closing(Worklist(url_of(service), (), anchor)) as worklist:
        worklist.readings.add(read, Said("confirmed", "r1"))
        worklist.audit.record("r1", Action.SAW_EXAM, read)
    prepared = open_engine(url, create=False)
    migrate(prepared)  # so that there are tables to hold
    prepared.dispose()

    with held(url, "scores"):
        first = migration(service, url)
        assert until(lambda: copied(url, "items"), 120)
        consoles(service, images(per_step), ledger)
        first.send_signal(signal.SIGKILL)
        assert first.wait(30) == -signal.SIGKILL
    tally.fault("kill -9 of a move while it copies")

    consoles(service, images(per_step), ledger)
    with held(url, "events"):
        second = migration(service, url)
        consoles(service, images(per_step), ledger)
    during = Queue(service.port, images(per_step), ledger)
    assert second.wait(300) == 0, told(service).read_text()
    assert "the site is in postgresql://" in told(service).read_text()
    # Whoever sends now is refused, never told Success: the service still has the old database.
    late = images(1)
    assert send(service.port, late, ledger) == 0
    assert "this worklist is closed" in service.log.read_text()
    refused = service.triage("worklist")
    assert refused.returncode == 1
    assert "has moved to postgresql://" in refused.stderr
    service.stop()

    service.settings = {"TRIAGE_DATABASE_URL": url}
    service.start(*ROLES)
    during.finish(300)
    consoles(service, [*late, *images(per_step)], ledger)
    hold(service, ledger, tally)
    service.stop()
    with closing(Worklist(url, (), anchor)) as worklist:
        assert worklist.audit.verify().id > 1
        assert worklist.item(read).state == State.CONFIRMED
        assert [each.reader for each in worklist.readings.of(read)] == ["r1"]
        assert len(worklist.items()) == len(ledger.acknowledged) == 6 * per_step + 1
