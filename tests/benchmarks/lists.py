"""Pages of a worklist of 10,000 and of 1,000,000 exams, as a table of ``docs/benchmarks.md``.

    python -m tests.benchmarks.lists FEW MANY

FEW and MANY are URLs of two databases, in SQLite or in PostgreSQL; what is empty is filled
first, and kept. Measured are answers of ``GET /api/v1/items`` to somebody who has signed in,
over loopback, 100 exams each: sign-in, SQL, JSON and the audit trail are in them. The two
take turns, so that what else the machine does slows both.
"""

import datetime as dt
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection, func, insert, select

from tests.web import Visitor, account, served, site_of
from triage.scoring import Priority
from triage.worklist import State, Worklist
from triage.worklist.accounts import Role
from triage.worklist.queries import _cursor
from triage.worklist.schema import WRITE, migrate, open_engine
from triage.worklist.tables import Item, ItemNote

SIZES = (10_000, 1_000_000)
RUNS = 31
PATIENCE_MS = 10_000
CHUNK = 5_000
SPAN = dt.timedelta(days=300)
"""So old is the oldest exam when the newest comes."""


def queries(day: dt.datetime, middle: str | None) -> dict[str, dict[str, Any]]:
    """What is asked, by what the table calls it.

    Parameters
    ----------
    day : datetime
        When the 24 hours begin whose exams are asked for.
    middle : str, optional
        A cursor.
    """
    one_day = {
        "received_from": day.isoformat(),
        "received_to": (day + dt.timedelta(days=1)).isoformat(),
    }
    return {
        "first page": {},
        "in the middle (cursor)": {"cursor": middle},
        "unread": {"unread": True},
        "read": {"unread": False},
        "unread and flagged": {"unread": True, "flagged": True},
        "not scored": {"state": "NOT_SCORED"},
        "one console": {"console": "CR7"},
        "view LL (1 in 20)": {"view": "LL"},
        "a view that nobody sends": {"view": "XX"},
        "flagged, a console, a view": {"flagged": True, "console": "CR7", "view": "LL"},
        "flagged, a console, a view, a modality": {
            "flagged": True,
            "console": "CR7",
            "view": "LL",
            "modality": "CR",
        },
        "not scored, a console, a view": {"state": "NOT_SCORED", "console": "CR7", "view": "LL"},
        "finding (1 in 50)": {"finding": "ROTATED"},
        "finding (1 in 50), flagged, a console, a view": {
            "finding": "ROTATED",
            "flagged": True,
            "console": "CR7",
            "view": "LL",
        },
        "finding (1 in 10,000)": {"finding": "UPSIDE_DOWN"},
        "a finding that nothing has": {"finding": "NEVER"},
        "received on one day": one_day,
        "received on one day, unread": one_day | {"unread": True},
        "readers disagree": {"disagreement": True},
        "search: accession number": {"q": "A0000007"},
        "search: beginning of a name": {"q": "meier"},
        "search: one letter": {"q": "m"},
        "search: nothing found": {"q": "zzz"},
    }


COPIED = ("unread", "rank_at", "modality", "view_position", "calling_ae_title")
"""What a note's row has of its item."""


def rows(count: int) -> Iterator[list[dict[str, Any]]]:
    """Items as most of a year leaves them, until now: most read, some waiting."""
    chance = random.Random(count)  # the same exams each time
    newest = dt.datetime.now(dt.UTC)
    names = ("Meier", "Smith", "Kowalski", "Yamada", "Okafor", "Dubois", "Rossi", "Novak")
    made: list[dict[str, Any]] = []
    for number in range(count):
        received = newest - SPAN * ((count - 1 - number) / count)
        scored = chance.random() > 0.05
        flagged = chance.random() < 0.2 if scored else None
        read = scored and chance.random() < 0.95
        confirmed = chance.random() < 0.3
        state = State.NOT_SCORED
        if scored:
            state = State.SCORED
            if read:
                state = State.CONFIRMED if confirmed else State.REJECTED
        urgency = Priority.HIGH if flagged else Priority.ROUTINE
        name = f"{chance.choice(names)}^{number % 997}"
        notes = [
            code
            for code, one_in in (("ROTATED", 50), ("UPSIDE_DOWN", 10_000))
            if number % one_in == 0
        ]
        made.append(
            {
                "sop_instance_uid": f"2.25.1.{number}",
                "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
                "series_instance_uid": f"2.25.2.{number}",
                "study_instance_uid": f"2.25.3.{number}",
                "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                "patient_id": f"P{number // 3:08}",
                "patient_name": name,
                "name_key": name.lower(),
                "accession_number": f"A{number:08}",
                "modality": chance.choice(("DX", "DX", "CR")),
                "body_part": "CHEST",
                "view_position": "LL" if chance.random() < 0.05 else chance.choice(("PA", "AP")),
                "patient_age": f"{chance.randrange(18, 95):03}Y",
                "patient_sex": chance.choice("MF"),
                "ordered_priority": "ROUTINE",
                "calling_ae_title": f"CR{chance.randrange(20)}",
                "calling_address": "127.0.0.1",
                "digest": f"{number:064x}",
                "size": 10_000_000,
                "received_at": received,
                "state": state,
                "reason": None if scored else "VIEW_NOT_FRONTAL",
                "explanation": "",
                "notes": notes,
                "scored_at": received if scored else None,
                "score": chance.random() if scored else None,
                "threshold": 0.5 if scored else None,
                "flagged": flagged,
                "model_version": "final_model-3be25e780b11" if scored else None,
                "urgency": int(urgency),
                "rank_at": received - urgency.head_start,
                "unread": not read,
                "attempts": 1,
                "disagreement": read and chance.random() < 0.001,
                "readings_count": int(read),
                "revision": 1,
            }
        )
        if len(made) == CHUNK:
            yield made
            made = []
    if made:
        yield made


def item_notes(connection: Connection, chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The notes of items that have just been entered, for their own table."""
    noted = {row["sop_instance_uid"]: row for row in chunk if row["notes"]}
    keys = connection.execute(
        select(Item.sop_instance_uid, Item.id).where(Item.sop_instance_uid.in_(noted))
    )
    return [
        {"item_id": key, "code": code} | {name: row[name] for name in COPIED}
        for uid, key in keys
        for row in [noted[uid]]
        for code in row["notes"]
    ]


def fill(url: str, count: int) -> None:
    """Bring an empty database to the schema, to so many items and to an account."""
    engine = open_engine(url, create=True)
    migrate(engine)
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        there = connection.scalar(select(func.count()).select_from(Item))
        if there not in {0, count}:
            raise click.ClickException(f"{there} items instead of {count}: empty the database")
        for chunk in rows(count) if there == 0 else ():
            connection.execute(insert(Item), chunk)
            copies = item_notes(connection, chunk)
            if copies:
                connection.execute(insert(ItemNote), copies)
    # What PostgreSQL does by itself within a minute.
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()
    if there == 0:
        worklist = Worklist(url)
        account(worklist, "bench", Role.VIEWER)
        worklist.close()


@contextmanager
def site(url: str, count: int) -> Iterator[tuple[Visitor, dict[str, dict[str, Any]]]]:
    """Somebody who has signed in at a full site, and what to ask there."""
    fill(url, count)
    worklist = Worklist(url)
    with worklist._transaction() as session:
        # A database that was kept is as old as it is: its own newest exam counts.
        newest = session.scalars(select(func.max(Item.received_at))).one()
        half = newest - SPAN / 2
        middle = _cursor(
            session.scalars(
                select(Item)
                .where(Item.unread.is_(False), Item.rank_at >= half)
                .order_by(Item.rank_at, Item.id)
                .limit(1)
            ).one()
        )
    with (
        tempfile.TemporaryDirectory() as home,
        served(site_of(worklist, Path(home))) as address,
        Visitor(address) as visitor,
    ):
        visitor.sign_in("bench")
        yield visitor, queries(half, middle)
    worklist.close()


def measure(visitor: Visitor, asked: dict[str, Any]) -> tuple[float, int]:
    """Milliseconds until the answer is here, and how many exams are in it."""
    began = time.perf_counter()
    answer = visitor.get("/api/v1/items", params={"limit": 100, **asked})
    took = (time.perf_counter() - began) * 1000
    answer.raise_for_status()
    return took, len(answer.json()["items"])


@click.command()
@click.argument("few")
@click.argument("many")
@click.option("--sizes", type=(int, int), default=SIZES, show_default=True)
def main(few: str, many: str, sizes: tuple[int, int]) -> None:
    """Print the table."""
    with site(few, sizes[0]) as small, site(many, sizes[1]) as large:
        click.echo(f"| asked for | {sizes[0]:,} | {sizes[1]:,} | ratio | exams on the page |")
        click.echo("|---|---|---|---|---|")
        for name in small[1]:
            times: tuple[list[float], list[float]] = ([], [])
            exams = [0, 0]
            for _ in range(RUNS):
                for at, (visitor, asked) in enumerate((small, large)):
                    took, exams[at] = measure(visitor, asked[name])
                    times[at].append(took)
                if sum(times[1]) > PATIENCE_MS:
                    break
            short, long = (statistics.median(found) for found in times)
            click.echo(
                f"| {name} | {short:.1f} ms | {long:.1f} ms | {long / short:.2f} | "
                f"{' and '.join(map(str, dict.fromkeys(exams)))} |"
            )


if __name__ == "__main__":
    main()
