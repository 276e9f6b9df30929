"""Claims, pages, dashboard and gauges at 100,000 and 10,000,000 exams in PostgreSQL.

    python -m tests.benchmarks.millions FEW MANY [--sizes 100000 10000000]

FEW and MANY are URLs of two databases of one PostgreSQL server; what is empty is filled first,
by the server itself from ``generate_series``, and kept. Both are the same site, whose consoles
send 2,000 exams a day: one after 50 days, one after 14 years. So each period that the dashboard
counts holds as many exams in both, and what is measured is the weight of the years behind it.

Each exam has a score, a reading if it was read, an event and a delivery. Calls are measured
without HTTP, in turn, so that what else the machine does slows both.
"""

import datetime as dt
import statistics
import time
from collections.abc import Callable
from functools import partial
from string import Template
from typing import Any

import click
from sqlalchemy import Connection, func, select

from tests.benchmarks.lists import queries
from triage.web.api import UNSETTLED
from triage.worklist import Worklist
from triage.worklist.queries import Filter
from triage.worklist.schema import WRITE, migrate, open_engine
from triage.worklist.tables import Item

SIZES = (100_000, 10_000_000)
PER_DAY = 2_000
WAITING = 1_000
"""Exams that wait for their score."""
RUNS = 31
PATIENCE_MS = 10_000
DESTINATION = "pacs"

_TABLES = ("items", "item_notes", "scores", "readings", "events", "deliveries")

_FILLING = (
    """
INSERT INTO items (id, sop_instance_uid, sop_class_uid, series_instance_uid, study_instance_uid,
  transfer_syntax_uid, patient_id, patient_name, name_key, accession_number, modality, body_part,
  view_position, patient_age, patient_sex, ordered_priority, calling_ae_title, calling_address,
  digest, size, received_at, state, reason, explanation, notes, scored_at, score, threshold,
  flagged, model_version, urgency, rank_at, unread, attempts, novelty, blind, disagreement,
  readings_count, revision)
SELECT n, '2.25.1.' || n, '1.2.840.10008.5.1.4.1.1.1.1', '2.25.2.' || n, '2.25.3.' || n,
  '1.2.840.10008.1.2.1', 'P' || lpad((n / 3)::text, 8, '0'), name, lower(name),
  'A' || lpad(n::text, 8, '0'), CASE WHEN r4 < .33 THEN 'CR' ELSE 'DX' END, 'CHEST',
  CASE WHEN r5 < .05 THEN 'LL' WHEN r5 < .5 THEN 'PA' ELSE 'AP' END,
  lpad((18 + floor(r6 * 77))::text, 3, '0') || 'Y', CASE WHEN r6 < .5 THEN 'M' ELSE 'F' END,
  'ROUTINE', 'CR' || floor(r7 * 20), '127.0.0.1', lpad(to_hex(n), 64, '0'), 10000000, received,
  CASE WHEN waits THEN 'RECEIVED' WHEN NOT scored THEN 'NOT_SCORED' WHEN NOT read THEN 'SCORED'
    WHEN r3 < .3 THEN 'CONFIRMED' ELSE 'REJECTED' END,
  CASE WHEN waits OR scored THEN NULL ELSE 'VIEW_NOT_FRONTAL' END, '',
  CASE WHEN mod(n, 10000) = 0 THEN '["ROTATED", "UPSIDE_DOWN"]'
    WHEN mod(n, 50) = 0 THEN '["ROTATED"]' ELSE '[]' END::json,
  CASE WHEN scored THEN received END, CASE WHEN scored THEN r8 END,
  CASE WHEN scored THEN 0.5 END, CASE WHEN scored THEN flagged END,
  CASE WHEN scored THEN 'final_model-3be25e780b11' END,
  CASE WHEN flagged THEN 2 ELSE 1 END,
  received - CASE WHEN flagged THEN interval '4 hours' ELSE interval '0' END,
  NOT read, 1, r9, r9 < .02, read AND r9 > .999, read::int, 1
FROM (
  SELECT *, scored AND r1 < .95 AS read, scored AND r2 < .2 AS flagged,
    (ARRAY['Meier','Smith','Kowalski','Yamada','Okafor','Dubois','Rossi','Novak'])
      [1 + floor(r0 * 8)::int] || '^' || mod(n, 997) AS name
  FROM (
    SELECT n, n > $count - $waiting AS waits,
      n <= $count - $waiting AND random() > .05 AS scored,
      now() AT TIME ZONE 'UTC' - ($count - n) * interval '1 day' / $per_day AS received,
      random() r0, random() r1, random() r2, random() r3, random() r4, random() r5, random() r6,
      random() r7, random() r8, random() r9
    FROM generate_series(1, $count) n
  ) drawn
) made
""",
    """
INSERT INTO item_notes (item_id, code, unread, rank_at, modality, view_position,
  calling_ae_title)
SELECT id, json_array_elements_text(notes), unread, rank_at, modality, view_position,
  calling_ae_title
FROM items WHERE mod(id, 50) = 0
""",
    """
INSERT INTO scores (id, item_id, model_version, probability, threshold, scored_at)
SELECT id, id, model_version, score, threshold, scored_at FROM items WHERE score IS NOT NULL
""",
    """
INSERT INTO readings (id, item_id, reader, verdict, read_at, sampling, shown_score,
  shown_threshold, shown_model_version)
SELECT id, id, 'reader' || mod(id, 9), lower(state),
  received_at + interval '1 minute' * (5 + mod(id, 120)),
  CASE WHEN flagged THEN 'flagged' ELSE 'unflagged' END, score, threshold, model_version
FROM items WHERE state IN ('CONFIRMED', 'REJECTED')
""",
    """
INSERT INTO events (id, item_id, at, action, actor, detail)
SELECT id, id, received_at, state, 'node/worker-1', '{}' FROM items
""",
    """
INSERT INTO deliveries (id, item_id, score_id, kind, destination, state, attempts, created_at,
  next_attempt_at, delivered_at, error)
SELECT id, id, id, 'FINDING', '$destination',
  CASE WHEN waits THEN 'PENDING' ELSE 'DELIVERED' END, 1, received_at,
  CASE WHEN waits THEN received_at END, CASE WHEN waits THEN NULL ELSE received_at END, ''
FROM (SELECT *, id > $count - 2 * $waiting AS waits FROM items WHERE score IS NOT NULL) made
""",
)


def fill(url: str, count: int) -> None:
    """Bring an empty database to the schema and to so many exams."""
    engine = open_engine(url, create=True)
    migrate(engine)
    values = {
        "count": count,
        "waiting": WAITING,
        "per_day": PER_DAY,
        "destination": DESTINATION,
    }
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        there = connection.scalar(select(func.max(Item.id)))
        if there not in {None, count}:
            raise click.ClickException(f"{there} items instead of {count}: empty the database")
        if there is None:
            connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '1GB'")
            # New in this transaction: nothing of it needs a place in the log.
            connection.exec_driver_sql(f"TRUNCATE {', '.join(_TABLES)} CASCADE")
            constraints, indexes = _taken_down(connection)
            connection.exec_driver_sql("SELECT setseed(0.5)")
            for statement in _FILLING:
                began = time.perf_counter()
                made = connection.exec_driver_sql(Template(statement).substitute(values)).rowcount
                click.echo(
                    f"{made:,} rows in {time.perf_counter() - began:.0f} s: "
                    f"{statement.split('(')[0].strip()}",
                    err=True,
                )
            began = time.perf_counter()
            for statement in (*indexes, *constraints):
                connection.exec_driver_sql(statement)
            for table in _TABLES:
                if table != "item_notes":
                    connection.exec_driver_sql(
                        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {count})"
                    )
            click.echo(f"indexes in {time.perf_counter() - began:.0f} s", err=True)
    if there is None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    with engine.connect() as connection:
        size = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar()
        click.echo(
            f"{count:,} exams: {size / 1e9:.2f} GB, {size / count:,.0f} bytes each", err=True
        )
    engine.dispose()


def _taken_down(connection: Connection) -> tuple[list[str], list[str]]:
    """Take foreign keys and indexes away; the statements that bring them back."""
    names = ", ".join(f"'{table}'::regclass" for table in _TABLES)
    keys = connection.exec_driver_sql(
        "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        f"WHERE conrelid IN ({names}) AND contype = 'f'"
    ).all()
    for table, name, _ in keys:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    indexes = connection.exec_driver_sql(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i "
        f"WHERE indrelid IN ({names}) AND NOT EXISTS "
        "(SELECT 1 FROM pg_constraint WHERE conindid = i.indexrelid)"
    ).all()
    for name, _ in indexes:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    return (
        [f"ALTER TABLE {table} ADD CONSTRAINT {name} {told}" for table, name, told in keys],
        [told for _, told in indexes],
    )


def measurements(url: str, count: int) -> dict[str, Callable[[], object]]:
    """What is measured, by what the table calls it."""
    worklist = Worklist(url)
    day = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)  # both databases have it
    cursor = worklist.queries.page(Filter(unread=False), 100).next
    found: dict[str, Callable[[], object]] = {
        "claim for scoring": lambda: _claimed(worklist),
        "claim for delivery": lambda: _delivery(worklist),
        "has this UID come": lambda: worklist.digest(f"2.25.1.{count // 2}"),
        "events after the newest": lambda: worklist.queries.moves(count - 100, 200),
        "one exam's events": lambda: worklist.journal(f"2.25.1.{count // 2}"),
        "gauges": worklist.gauges.read,
        "dashboard, 7 days": lambda: worklist.statistics.figures(7),
        "dashboard, 30 days": lambda: worklist.statistics.figures(30),
        "dashboard, 30 days of one console": lambda: worklist.statistics.figures(30, "CR7"),
        "operations: counts of the unsettled": lambda: worklist.counts(UNSETTLED),
    }
    for name, asked in queries(day, cursor).items():
        found[f"page: {name}"] = partial(
            worklist.queries.page, _filter(asked), 100, asked.get("cursor"), "reader1"
        )
    return found


def _filter(asked: dict[str, Any]) -> Filter:
    """The filter of a request."""
    named = {"q": "search"}
    values = {named.get(key, key): value for key, value in asked.items() if key != "cursor"}
    for end in {"received_from", "received_to"} & values.keys():
        values[end] = dt.datetime.fromisoformat(values[end])
    return Filter(**values)


def _claimed(worklist: Worklist) -> None:
    claim = worklist.claim("bench")
    assert claim is not None
    assert worklist.abandon("bench") == 1
    _again(worklist, "items", "attempts = 0", claim.item_id)


def _delivery(worklist: Worklist) -> None:
    claim = worklist.deliveries.claim("bench", DESTINATION, 100)
    assert claim is not None
    again = "attempts = 1, claimed_by = NULL, next_attempt_at = created_at"
    _again(worklist, "deliveries", again, claim.delivery_id)


def _again(worklist: Worklist, table: str, values: str, number: int) -> None:
    """Let what was claimed be claimed again, so that each run finds the same."""
    with worklist.engine().begin() as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET {values} WHERE id = {number}")


@click.command()
@click.argument("few")
@click.argument("many")
@click.option("--sizes", type=(int, int), default=SIZES, show_default=True)
def main(few: str, many: str, sizes: tuple[int, int]) -> None:
    """Print the table."""
    for url, count in zip((few, many), sizes, strict=True):
        fill(url, count)
    both = [measurements(url, count) for url, count in zip((few, many), sizes, strict=True)]
    click.echo(f"| what | {sizes[0]:,} | {sizes[1]:,} | ratio |\n|---|---|---|---|")
    for name in both[0]:
        times: tuple[list[float], list[float]] = ([], [])
        for way in both:
            way[name]()
        for _ in range(RUNS):
            for way, took in zip(both, times, strict=True):
                began = time.perf_counter()
                way[name]()
                took.append((time.perf_counter() - began) * 1000)
            if sum(times[1]) > PATIENCE_MS:
                break
        short, long = (statistics.median(took) for took in times)
        click.echo(f"| {name} | {short:.1f} ms | {long:.1f} ms | {long / short:.2f} |")


if __name__ == "__main__":
    main()
