"""The list stays fast: no filter of it makes the database look at every row."""

import random
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, event, insert
from sqlalchemy.engine import Connection

from tests.benchmarks.lists import item_notes, rows
from triage.worklist import State, Worklist
from triage.worklist.queries import Filter
from triage.worklist.schema import WRITE, open_engine
from triage.worklist.tables import Item, ItemNote

COUNT = 5_000

FILTERS = {
    "nothing": Filter(),
    "unread": Filter(unread=True),
    "read": Filter(unread=False),
    "state": Filter(state=State.NOT_SCORED),
    "flagged": Filter(flagged=True, unread=True),
    "modality": Filter(modality="CR"),
    "view": Filter(view="LL"),
    "console": Filter(console="CR7"),
    "disagreement": Filter(disagreement=True),
    "finding": Filter(finding="UPSIDE_DOWN"),
    "finding of a state": Filter(finding="ROTATED", state=State.CONFIRMED),
    "name": Filter(search="meier"),
    "patient": Filter(search="P0000012"),
    "accession": Filter(search="A0000007"),
    "uid": Filter(search="2.25.1.7"),
}


@pytest.fixture
def full(worklist: Worklist, database_url: str) -> Iterator[Engine]:
    """A worklist with enough items that a plan is worth something."""
    engine = open_engine(database_url, create=False)
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        for chunk in rows(COUNT):
            connection.execute(insert(Item), chunk)
            connection.execute(insert(ItemNote), item_notes(connection, chunk))
        connection.exec_driver_sql("ANALYZE")
    yield engine
    engine.dispose()


def plans(worklist: Worklist, ask: Callable[[], object]) -> list[tuple[str, list[str]]]:
    """What a question asks of the items, and how the database goes about it."""
    asked: list[tuple[str, object]] = []

    def note(
        _connection: Connection, _cursor: object, statement: str, parameters: object, *_: object
    ) -> None:
        if "FROM items" in statement:
            asked.append((statement, parameters))

    engine = worklist._reading
    event.listen(engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # Of a table as small as this one it would rather read or sort all of it. Is there
            # an index that a table of a million rows could be read along?
            for way in ("seqscan", "bitmapscan", "sort"):
                connection.exec_driver_sql(f"SET enable_{way} = off")
        return [
            (
                statement,
                [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, p)],
            )  # type: ignore[arg-type]
            for statement, p in asked
        ]


@pytest.mark.parametrize("name", FILTERS)
def test_no_filter_scans_or_sorts_the_table(worklist: Worklist, full: Engine, name: str) -> None:
    """Each page is read along an index, in the order that it is shown in."""
    for statement, steps in plans(worklist, lambda: worklist.queries.page(FILTERS[name], 100)):
        for step in steps:
            assert "Seq Scan on items" not in step, (statement, steps)
            assert step != "SCAN items", (statement, steps)
            if "rank_at" in statement.rpartition("ORDER BY")[2] and not FILTERS[name].search:
                assert "TEMP B-TREE FOR ORDER BY" not in step, (statement, steps)
                assert "Sort" not in step, (statement, steps)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_dashboard_reads_its_days_only(worklist: Worklist, full: Engine) -> None:
    """None of its figures reads all exams; PostgreSQL knows how many are of these days."""
    for statement, steps in plans(worklist, lambda: worklist.statistics.figures(30)):
        assert not any(step.startswith("SCAN items") for step in steps), (statement, steps)


def test_the_pages_together_are_the_list_each_exam_once(worklist: Worklist, full: Engine) -> None:
    """However long the pages are, and though exams are read meanwhile."""
    whole = [item.sop_instance_uid for item in worklist.items()]
    for limit in (200, 137):
        seen: list[str] = []
        cursor = None
        while True:
            page = worklist.queries.page(Filter(), limit, cursor)
            seen += [item.sop_instance_uid for item in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert seen == whole


def test_a_filter_gives_what_a_person_would_pick_by_eye(worklist: Worklist, full: Engine) -> None:
    """Each filter, and pairs of them, against all items looked through one by one."""
    everything = worklist.items()
    day = everything[0].received_at
    tests = {
        "unread": lambda item: item.unread,
        "flagged": lambda item: item.flagged is True,
        "state": lambda item: item.state is State.NOT_SCORED,
        "modality": lambda item: item.modality == "CR",
        "view": lambda item: item.view_position == "LL",
        "console": lambda item: item.calling_ae_title == "CR7",
        "finding": lambda item: "ROTATED" in item.notes,
        "received_from": lambda item: item.received_at >= day,
        "received_to": lambda item: item.received_at < day,
        "disagreement": lambda item: item.disagreement,
        "search": lambda item: item.patient_name.lower().startswith("meier"),
    }
    values = {
        "unread": True, "flagged": True, "state": State.NOT_SCORED, "modality": "CR",
        "view": "LL", "console": "CR7", "finding": "ROTATED", "received_from": day,
        "received_to": day, "disagreement": True, "search": "MEIER",
    }  # fmt: skip
    names = sorted(tests)
    pairs = {(name, name) for name in names}
    pairs |= {tuple(random.Random(seed).sample(names, 2)) for seed in range(12)}
    for one, two in sorted(pairs):
        wanted = Filter(**{one: values[one], two: values[two]})  # type: ignore[arg-type]
        picked = [i.sop_instance_uid for i in everything if tests[one](i) and tests[two](i)]
        got = [item.sop_instance_uid for item in worklist.queries.page(wanted, 200).items]
        assert got == picked[:200], (one, two)
