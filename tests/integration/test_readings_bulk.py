"""Readings in bulk: all lines of a file or none, a report of each, and out again."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Service
from tests.exams import FLAGGED, UNFLAGGED, enter
from tests.web import Visitor, account, served, site_of
from triage.errors import BadImport
from triage.worklist import State, Worklist
from triage.worklist.accounts import Role
from triage.worklist.audit import Action
from triage.worklist.readings import EXPORTED, MOST_LINES, Said

HEADING = "sop_instance_uid,verdict,reader,comment"
GOOD = (
    f"{HEADING}\n"
    '1.1,confirmed,zoë,"left, ""lower"" lobe"\n'
    "1.1,rejected,ben,\n"
    "\n"
    "1.2,Rejected, ben ,=1+1\n"
)
WRONG = {
    "1.3,confirmed,ben,": "RECEIVED",
    "9.9,confirmed,ben,": "no worklist item",
    "1.1,normal,ben,": "confirmed, rejected",
    "1.1,confirmed,,": "1 to 64 printable",
    "1.1,confirmed,ben": "3 columns instead of 4",
    "1.1,confirmed,ben,a,b": "5 columns instead of 4",
    f"1.1,confirmed,ben,{'x' * 2_001}": "2000",
    "1.1,confirmed,b\x1ben,": "printable",
    "<script>,confirmed,ben,": "no SOP Instance UID",
    "1.1\0,confirmed,ben,": "no SOP Instance UID",
    f"1.1{'0' * 70},confirmed,ben,": "no SOP Instance UID",
}
"""Lines that cannot be taken, and a word of why not."""


@pytest.fixture
def exams(worklist: Worklist) -> Worklist:
    """Two scored exams, 1.1 and 1.2, and one that waits, 1.3."""
    enter(worklist, "1.1", FLAGGED)
    enter(worklist, "1.2", UNFLAGGED)
    enter(worklist, "1.3", None)
    return worklist


def take(worklist: Worklist, text: str, *, dry_run: bool = False) -> list[str]:
    """What is told of each line; empty for one that can be taken."""
    reports = worklist.readings.take(io.StringIO(text, newline=""), "it", dry_run=dry_run)
    return [report.problem for report in reports]


def everything(worklist: Worklist) -> list[object]:
    """All that an import could have changed."""
    uids = ("1.1", "1.2", "1.3")
    return [
        *(worklist.item(uid).state for uid in uids),
        *(worklist.readings.of(uid) for uid in uids),
        *(len(worklist.journal(uid)) for uid in uids),
        len(list(worklist.audit.records())),
    ]


def test_a_file_is_taken_whole(exams: Worklist) -> None:
    """As its readers' readings: they may differ, and the exam waits for adjudication then."""
    assert take(exams, GOOD) == ["", "", ""]
    zoe, ben = exams.readings.of("1.1")
    assert (zoe.reader, zoe.verdict, zoe.comment) == ("zoë", "confirmed", 'left, "lower" lobe')
    assert (ben.source, ben.sampling, ben.blinded) == ("import", "flagged", False)
    assert exams.item("1.1").disagreement
    assert exams.item("1.2").state is State.REJECTED
    (last,) = [each for each in exams.audit.records() if each.action == Action.IMPORTED]
    assert (last.actor, last.detail) == ("it", {"readings": 3})


def test_a_dry_run_tells_of_each_line_and_changes_nothing(exams: Worklist) -> None:
    """Every kind of bad line, each with its reason, between two good ones."""
    before = everything(exams)
    good = "1.2,confirmed,anna,"
    text = "\n".join([HEADING, good, *WRONG, good])
    told = take(exams, text, dry_run=True)
    assert told[0] == ""
    assert "same reader read the same exam" in told[-1]
    for (line, word), problem in zip(WRONG.items(), told[1:-1], strict=True):
        assert word in problem, line
    assert everything(exams) == before


def test_one_bad_line_and_nothing_is_taken(exams: Worklist) -> None:
    """Also if it is the last; the error names each line that is wrong."""
    before = everything(exams)
    for line in WRONG:
        text = "\n".join([HEADING, "1.2,confirmed,anna,", "1.1,rejected,anna,", line])
        with pytest.raises(BadImport, match="none was; line 4: ") as caught:
            take(exams, text)
        assert [number for number, _ in caught.value.lines] == [4]
        assert everything(exams) == before, line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the heading"),
        ("verdict,reader\n", "line 1: the heading"),
        (f'{HEADING}\n1.1,confirmed,ben,"no end', "line 2: this is no CSV"),
        (HEADING + "\n" * (MOST_LINES + 2) + "1.1,confirmed,ben,", "more than 100000 lines"),
    ],
)
def test_what_is_no_table_is_refused(exams: Worklist, text: str, told: str) -> None:
    """Dry run or not."""
    for dry_run in (True, False):
        with pytest.raises(BadImport, match=told):
            take(exams, text, dry_run=dry_run)


def test_what_is_exported_is_what_was_said(exams: Worklist) -> None:
    """Each reading, the withdrawn ones marked; its first columns can be taken elsewhere."""
    take(exams, GOOD)
    reading, _ = exams.readings.add("1.1", Said("rejected", "zoë"))
    exams.readings.withdraw("1.1", reading.id, "zoë")
    rows = list(exams.readings.export("it"))
    assert all(tuple(row) == EXPORTED for row in rows)
    assert [(row["sop_instance_uid"], row["reader"], row["verdict"]) for row in rows] == [
        ("1.1", "zoë", "confirmed"), ("1.1", "ben", "rejected"), ("1.2", "ben", "rejected"),
        ("1.1", "zoë", "rejected"),
    ]  # fmt: skip
    assert [bool(row["withdrawn_at"]) for row in rows] == [False, False, False, True]
    assert float(rows[0]["shown_score"]) == FLAGGED.probability


# Through the API


@pytest.fixture
def operator(exams: Worklist, tmp_path: Path) -> Iterator[Visitor]:
    """An operator who has signed in."""
    account(exams, "op", Role.OPERATOR)
    with served(site_of(exams, tmp_path)) as url, Visitor(url) as visitor:
        assert visitor.sign_in("op").status_code == 303
        visitor.headers.update(visitor.with_csrf())
        yield visitor


def send(visitor: Visitor, content: bytes, query: str = "?dry_run=false") -> httpx.Response:
    """Send a file as a program does."""
    headers = {"Content-Type": "text/csv"}
    return visitor.post(f"/api/v1/readings/import{query}", content=content, headers=headers)


def test_a_program_imports_and_exports(operator: Visitor, exams: Worklist) -> None:
    """A dry run unless told otherwise; what cannot be taken is told line by line."""
    answer = send(operator, GOOD.encode("utf-8-sig"), "").json()
    assert (answer["taken"], len(answer["lines"])) == (0, 3)
    assert exams.readings.of("1.1") == []
    bad = f"{HEADING}\n1.1,confirmed,ben,\n9.9,confirmed,ben,\n1.3,confirmed,ben,\n"
    refused = send(operator, bad.encode())
    assert (refused.status_code, refused.json()["type"].split(":")[-1]) == (422, "BadImport")
    assert [each["where"] for each in refused.json()["errors"]] == [
        ["body", "line 3"], ["body", "line 4"],
    ]  # fmt: skip
    assert exams.readings.of("1.1") == []
    assert send(operator, GOOD.encode()).json()["taken"] == 3
    rows = list(csv.DictReader(operator.get("/api/v1/readings/export").text.splitlines()))
    assert [row["reader"] for row in rows] == ["zoë", "ben", "ben"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no CSV"),
        (b"\x00\x01", "no CSV"),
        (HEADING.encode() + b"\n1.1,confirmed,b\xff,", "not UTF-8"),
        (b"\xff\xfe" + HEADING.encode("utf-16-le"), "no CSV in UTF-8"),
    ],
)
def test_a_body_that_is_no_csv_is_refused(operator: Visitor, content: bytes, told: str) -> None:
    """422, in words."""
    answer = send(operator, content)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


# Through the commands


def test_the_commands_do_the_same(new_service: Callable[..., Service]) -> None:
    """Exit status 1 and a report of each bad line; then taken, and out again."""
    service = new_service()
    assert service.triage("migrate").returncode == 0
    worklist = service.worklist()
    enter(worklist, "1.1", FLAGGED)
    enter(worklist, "1.2", UNFLAGGED)
    table = service.home.parent / "labels.csv"
    table.write_text(f"{HEADING}\n1.1,confirmed,zoe,\n9.9,confirmed,zoe,\n1.2,maybe,zoe,\n")
    dry = service.triage("readings", "import", str(table), "--dry-run")
    assert dry.returncode == 1
    assert [line.split(":")[0] for line in dry.stdout.splitlines()[:2]] == ["line 3", "line 4"]
    assert "1 can be taken, 2 not; nothing was taken" in dry.stdout
    real = service.triage("readings", "import", str(table))
    assert real.returncode == 1
    assert [line.split(":")[0] for line in real.stdout.splitlines()] == ["line 3", "line 4"]
    assert "2 of 3 lines cannot be taken, so none was" in real.stderr
    assert worklist.readings.of("1.1") == []
    table.write_text(f"{HEADING}\n1.1,confirmed,zoe,\n1.2,rejected,zoe,\n")
    assert "2 readings taken" in service.triage("readings", "import", str(table)).stdout
    out = list(csv.DictReader(service.triage("readings", "export").stdout.splitlines()))
    assert [row["sop_instance_uid"] for row in out] == ["1.1", "1.2"]
    worklist.close()
