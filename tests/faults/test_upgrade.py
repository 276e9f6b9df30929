"""A new version of the program beside an older one on one PostgreSQL, with real code of both.

Who comes first migrates; each then receives and scores beside the other. Older code comes from
the repository's history, newer code is this code with one more migration.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, emptied
from tests.faults.consoles import Queue, images, until
from tests.faults.invariants import Ledger
from tests.faults.services import ask
from tests.faults.tally import FULL, Tally
from tests.faults.variants import Variant, variant
from triage.worklist.schema import HEAD

BEFORE_NODES = "19af2db5e112"
"""The last commit of schema 0013, which knows no rule of what may run beside what."""

NEXT = f"{int(HEAD) + 1:04}"

_MIGRATION = '''"""What a next release may add: a column, a table and an index."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{next}", "{head}", None, None


def upgrade() -> None:
    op.add_column("items", sa.Column("ward", sa.String(16), server_default="none", nullable=False))
    op.create_table("wards", sa.Column("id", sa.Integer, primary_key=True))
    op.create_index("ix_items_ward", "items", ["ward"])
'''


@pytest.fixture
def url(postgres: str) -> str:
    """Of an empty database."""
    return emptied(postgres)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code of before schema 0014."""
    made = tmp_path / "older"
    made.mkdir()
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    packed = subprocess.run(
        ["git", "archive", BEFORE_NODES, "triage"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"this clone's history lacks {BEFORE_NODES}: fetch all of it")
    subprocess.run(["tar", "-x"], input=packed.stdout, cwd=made, check=True)
    return made


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """This code with one more migration, that only adds."""
    made = variant(
        tmp_path / "newer",
        Variant("worklist/schema.py", f'HEAD = "{HEAD}"', f'HEAD = "{NEXT}"'),
        Variant("worklist/schema.py", f'"{HEAD}",\n)', f'"{HEAD}", "{NEXT}",\n)'),
    )
    file = made / "triage" / "worklist" / "migrations" / "versions" / f"r{NEXT}_ahead.py"
    file.write_text(_MIGRATION.format(next=NEXT, head=HEAD), "utf-8")
    return made


def revision(service: Service) -> str:
    """Of its database."""
    return f"{ask(service, 'SELECT version_num FROM alembic_version'):04}"


def scorers(service: Service, since: int = 0) -> int:
    """So many workers have scored after an event, whatever version of the program they are."""
    scored = f"FROM events WHERE action = 'SCORED' AND id > {since}"
    return ask(service, f"SELECT count(DISTINCT actor) {scored}")


def send_until(
    done: Callable[[], bool], receivers: list[Service], ledger: Ledger, seconds: float = 300.0
) -> None:
    """Let a console at each receiver send on until something is true."""

    def more() -> bool:
        queues = [Queue(each.port, images(2), ledger) for each in receivers]
        for queue in queues:
            queue.finish(seconds)
        return done()

    assert until(more, seconds)


def settle(service: Service, ledger: Ledger, spool: Path, tally: Tally) -> None:
    """Hold what was sent to the promises, once nothing waits."""
    waiting = "SELECT count(*) FROM items WHERE state = 'RECEIVED'"
    assert until(lambda: not ask(service, waiting), 300)
    tally.holds(ledger.check(service.settings["TRIAGE_DATABASE_URL"], spool))


def test_code_of_before_goes_on_while_this_one_migrates_but_does_not_start_again(
    older: Path, url: str, new_service: Callable[..., Service], tally: Tally
) -> None:
    """It knew no rule of compatibility, so that it refuses what is newer; it is told how."""
    before = new_service(TRIAGE_DATABASE_URL=url, PYTHONPATH=str(older))
    before.workers = None  # it knows no such setting
    before.start("--roles", "receive,score")
    assert revision(before) == "0013"
    ledger = Ledger()
    send_until(lambda: scorers(before) == 1, [before], ledger)
    now = Service(before.home, before.port, {"TRIAGE_DATABASE_URL": url, "PYTHONPATH": str(ROOT)})
    try:
        now.start("--roles", "score", wait=False)
        send_until(lambda: scorers(before) == 2, [before], ledger)
        assert revision(before) == HEAD
        before.stop()
        refused = before.triage("serve", "--roles", "score")
        assert refused.returncode != 0
        assert f"{HEAD}" in refused.stderr
        assert "newer" in refused.stderr
        settle(now, ledger, now.home / "spool", tally)
        now.stop()
    finally:
        if now.process is not None:
            now.process.kill()
            now.process.wait()
    tally.fault("migrated while older code ran")


@pytest.mark.skipif(not FULL, reason="tests/integration/test_nodes.py has the rule; `make faults`")
def test_this_code_and_a_newer_one_work_on_one_schema_whoever_comes_first(
    newer: Path, url: str, new_service: Callable[..., Service], tmp_path: Path, tally: Tally
) -> None:
    """It goes on while the newer migrates, and starts again on what the newer has made."""
    settings = {"TRIAGE_DATABASE_URL": url, "TRIAGE_SPOOL_URL": (tmp_path / "shared").as_uri()}
    this = new_service(**settings, PYTHONPATH=str(ROOT))
    next_one = new_service(**settings, PYTHONPATH=str(newer))
    ledger = Ledger()
    this.start("--roles", "receive,score")
    send_until(lambda: scorers(this) == 1, [this], ledger)
    assert revision(this) == HEAD
    next_one.start("--roles", "receive,score")
    assert revision(this) == NEXT
    send_until(lambda: scorers(this) == 2, [this, next_one], ledger)
    tally.fault("migrated by a newer program while this one ran")
    this.stop()
    stopped = ask(this, "SELECT max(id) FROM events")
    this.start("--roles", "receive,score")
    send_until(lambda: scorers(this, stopped) == 2, [this, next_one], ledger)
    tally.fault("started on the schema of a newer program")
    settle(this, ledger, tmp_path / "shared", tally)
    assert revision(this) == NEXT
    this.stop()
    next_one.stop()
