"""The audit trail on both databases: kept, chained, guarded, and broken in every way."""

import datetime as dt
import json
import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from triage.errors import AuditBroken, WorklistError
from triage.worklist import Worklist
from triage.worklist.audit import Action, record
from triage.worklist.tables import Item


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    """Where the end is remembered."""
    return tmp_path / "audit-head"


@pytest.fixture
def kept(database_url: str, anchor: Path, migrated: Callable[[str], None]) -> Iterator[Worklist]:
    """A worklist whose trail has five rows and an anchor."""
    migrated(database_url)
    worklist = Worklist(database_url, (), anchor)
    for number in range(5):
        worklist.audit.record("reader", Action.SAW_EXAM, f"1.2.{number}", {"n": number})
    yield worklist
    worklist.close()


def tamper(database_url: str, *statements: str) -> None:
    """What somebody does who owns the database: without triggers."""
    if database_url.startswith("sqlite"):
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
            for name in ("update", "delete", "replace"):
                connection.execute(f"DROP TRIGGER IF EXISTS audit_no_{name}")
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return
    with psycopg.connect(database_url) as owner:
        owner.execute("ALTER TABLE audit DISABLE TRIGGER ALL")
        for statement in statements:
            owner.execute(statement)  # type: ignore[call-overload]


def test_rows_are_numbered_chained_and_read_back_as_they_were(kept: Worklist) -> None:
    """Each has the hash of the one before; the first has zeros."""
    rows = list(kept.audit.records())
    assert [row.id for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0].previous == "0" * 64
    for before, row in pairwise(rows):
        assert row.previous == before.hash
    assert rows[3].as_json() == {
        "id": 4,
        "at": rows[3].at.isoformat(),
        "actor": "reader",
        "action": "SAW_EXAM",
        "subject": "1.2.3",
        "detail": {"n": 3},
        "previous": rows[2].hash,
        "hash": rows[3].hash,
    }
    assert abs(rows[4].at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    head = kept.audit.verify()
    assert (head.id, head.hash) == (5, rows[4].hash)


def test_any_detail_of_json_is_verified_again(kept: Worklist) -> None:
    """Letters of all scripts, numbers, nesting, what looks like SQL or markup."""
    details = [
        {"text": "Zoë 山田 \u2028 <script>alert(1)</script> '); DROP TABLE audit; --"},
        {"numbers": [0.1, 1e-300, -0.0, 2**53, True, None]},
        {"tuple": (1, 2), "nested": {"b": {"a": []}}},
        {},
    ]
    for detail in details:
        kept.audit.record("Zoë", Action.READ, "1.2", detail)
    assert kept.audit.verify().id == 9


def test_the_hash_is_sha_256_of_canonical_json(kept: Worklist) -> None:
    """So anybody can verify an export without this program."""
    import hashlib

    previous = "0" * 64
    for row in kept.audit.records():
        content = row.as_json()
        claimed = content.pop("hash")
        assert content["previous"] == previous
        canonical = json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        assert hashlib.sha256(canonical).hexdigest() == claimed
        previous = claimed


def test_act_and_row_stand_or_fall_as_one(kept: Worklist, anchor: Path) -> None:
    """What is rolled back leaves no row and does not move the anchor."""
    before = anchor.read_text()
    with kept._transaction(write=True) as session:
        record(session, "reader", Action.READ, "1.2.3")
        session.rollback()
    assert kept.audit.verify().id == 5
    assert anchor.read_text() == before
    kept.audit.record("reader", Action.READ, "1.2.3")
    assert kept.audit.verify().id == 6


def test_several_rows_in_one_transaction_are_chained(kept: Worklist, anchor: Path) -> None:
    """As a bulk import makes them."""
    with kept._transaction(write=True) as session:
        for number in range(3):
            record(session, "operator", Action.IMPORTED, f"1.2.{number}")
    head = kept.audit.verify()
    assert head.id == 8
    assert anchor.read_text().split() == ["8", head.hash]


def test_what_a_savepoint_takes_back_was_never_there(kept: Worklist, anchor: Path) -> None:
    """Neither in the chain nor for the anchor."""
    with kept._transaction(write=True) as session:
        record(session, "operator", Action.IMPORTED, "1.2.1")
        inner = session.begin_nested()
        record(session, "operator", Action.IMPORTED, "1.2.2")
        inner.rollback()
    assert kept.audit.verify().id == 6
    with kept._transaction(write=True) as session:
        inner = session.begin_nested()
        record(session, "operator", Action.IMPORTED, "1.2.3")
        inner.rollback()
        record(session, "operator", Action.IMPORTED, "1.2.4")
    head = kept.audit.verify()
    assert head.id == 7
    assert anchor.read_text().split() == ["7", head.hash]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'somebody else' WHERE id = 3",
        "UPDATE audit SET detail = detail",
        "DELETE FROM audit WHERE id = 5",
        "DELETE FROM audit",
    ],
)
def test_the_database_refuses_to_change_the_trail(kept: Worklist, statement: str) -> None:
    """Whoever asks; nothing is changed."""
    with (
        pytest.raises((DBAPIError, WorklistError), match="append-only"),
        kept._transaction(write=True) as session,
    ):
        session.execute(text(statement))
    assert kept.audit.verify().id == 5


def test_the_database_refuses_what_removes_rows_by_the_way(
    kept: Worklist, database_url: str
) -> None:
    """SQLite's REPLACE, PostgreSQL's TRUNCATE: neither is a DELETE."""
    statement = "TRUNCATE audit"
    if database_url.startswith("sqlite"):
        statement = (
            "INSERT OR REPLACE INTO audit SELECT 5, at, 'x', action, subject, detail, previous, "
            "hash FROM audit WHERE id = 5"
        )
    with (
        pytest.raises((DBAPIError, WorklistError), match="append-only"),
        kept._transaction(write=True) as session,
    ):
        session.execute(text(statement))
    assert kept.audit.verify().id == 5


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["UPDATE audit SET actor = 'x' WHERE id = 3"], "row 3 .* not as it was written"),
        (["UPDATE audit SET detail = '{\"n\": 7}' WHERE id = 1"], "row 1 .* not as it was"),
        (["UPDATE audit SET at = '2020-01-01 00:00:00' WHERE id = 2"], "row 2 .* not as it was"),
        (["UPDATE audit SET subject = '' WHERE id = 5"], "row 5 .* not as it was"),
        (["DELETE FROM audit WHERE id = 1"], "row 1 .* missing"),
        (["DELETE FROM audit WHERE id = 3"], "row 3 .* missing"),
        (["DELETE FROM audit WHERE id IN (2, 3)"], "rows 2 to 3 .* missing"),
        (["DELETE FROM audit WHERE id = 5"], "row 5 .* missing"),
        (["DELETE FROM audit WHERE id > 2"], "rows 3 to 5 .* missing"),
        (["DELETE FROM audit"], "rows 1 to 5 .* missing"),
        (
            ["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4",
             "UPDATE audit SET id = 4 WHERE id = 5"],
            "row 3 .* does not follow",
        ),
    ],
)  # fmt: skip
def test_the_first_broken_row_is_named(
    kept: Worklist, database_url: str, statements: list[str], told: str
) -> None:
    """Changed, removed, cut off, moved up."""
    tamper(database_url, *statements)
    with pytest.raises(AuditBroken, match=told) as caught:
        kept.audit.verify()
    assert "\n" not in str(caught.value)


def test_a_trail_that_was_written_anew_does_not_fit_the_anchor(
    kept: Worklist, database_url: str
) -> None:
    """With right hashes all along."""
    tamper(database_url, "DELETE FROM audit")
    forger = Worklist(database_url)
    for number in range(6):
        forger.audit.record("somebody", Action.SAW_EXAM, f"1.2.{number}")
    assert forger.audit.verify().id == 6  # without the anchor nothing shows
    forger.close()
    with pytest.raises(AuditBroken, match=r"row 5 .* written anew"):
        kept.audit.verify()


def test_appending_does_not_cover_up_a_cut(
    kept: Worklist, database_url: str, anchor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The anchor stays where it was until a person has looked."""
    before = anchor.read_text()
    tamper(database_url, "DELETE FROM audit WHERE id > 2")
    for number in range(9):
        kept.audit.record("reader", Action.SAW_EXAM, f"1.3.{number}")
    assert anchor.read_text() == before
    with pytest.raises(AuditBroken, match=r"row 5 .* not the one"):
        kept.audit.verify()
    assert "audit_broken" in capsys.readouterr().out


def test_a_lost_anchor_is_told(kept: Worklist, anchor: Path) -> None:
    """Whoever cuts rows off could remove it, too."""
    anchor.unlink()
    with pytest.raises(AuditBroken, match=r"audit-head is missing"):
        kept.audit.verify()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff", b"5", b"-1 zz"])
def test_a_spoilt_anchor_is_no_excuse(kept: Worklist, anchor: Path, content: bytes) -> None:
    """It verifies nothing, and it is told."""
    anchor.write_bytes(content)
    with pytest.raises(WorklistError, match="audit"):
        kept.audit.verify()
    kept.audit.record("reader", Action.READ, "1.2.9")  # and hinders no reading
    assert anchor.read_bytes() == content


def test_an_anchor_behind_the_end_is_fine(kept: Worklist, anchor: Path) -> None:
    """As after a power cut between commit and anchor; the next row moves it on."""
    third = list(kept.audit.records())[2]
    anchor.write_text(f"3 {third.hash}\n")
    assert kept.audit.verify().id == 5
    kept.audit.record("reader", Action.SAW_EXAM, "1.2.9")
    assert anchor.read_text().startswith("6 ")


def test_an_anchor_that_cannot_be_written_loses_no_row(
    kept: Worklist, anchor: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is logged, and the reading it belongs to is kept."""
    third = list(kept.audit.records())[2]
    anchor.write_text(f"3 {third.hash}\n")
    lock = anchor.with_name("audit-head.lock")
    lock.unlink()
    lock.mkdir()
    kept.audit.record("reader", Action.READ, "1.2.9")
    assert "audit_anchor" in capsys.readouterr().out
    assert kept.audit.verify().id == 6


def append(url: str, anchor: str, rows: int) -> None:
    """Another process that appends."""
    worklist = Worklist(url, (), Path(anchor))
    for number in range(rows):
        worklist.audit.record(f"process {multiprocessing.current_process().pid}", "SAW_EXAM", "x")
        if number % 5 == 0:
            with worklist._transaction(write=True) as session:
                session.query(Item).count()
                record(session, "together", Action.READ)
    worklist.close()


def test_processes_that_append_at_once_make_one_chain(
    kept: Worklist, database_url: str, anchor: Path
) -> None:
    """None is refused, no number is given twice, and the anchor ends at the end."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=append, args=(database_url, str(anchor), 20)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    head = kept.audit.verify()
    assert head.id == 5 + 4 * 24
    assert anchor.read_text().split() == [str(head.id), head.hash]


def test_records_since_a_time_begin_there(kept: Worklist) -> None:
    """Oldest first."""
    rows = list(kept.audit.records())
    assert [row.id for row in kept.audit.records(rows[2].at)] == [3, 4, 5]
    assert list(kept.audit.records(rows[4].at + dt.timedelta(seconds=1))) == []


def test_a_long_trail_is_read_in_parts(kept: Worklist, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size, each row comes once."""
    reading: Callable[..., object] = kept.audit.records
    for batch in (1, 2, 5, 6):
        monkeypatch.setattr("triage.worklist.audit._BATCH", batch)
        assert [row.id for row in reading()] == [1, 2, 3, 4, 5]  # type: ignore[attr-defined]
