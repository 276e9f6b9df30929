"""A site of so many exams moved between PostgreSQL and SQLite, there and back.

    python -m tests.benchmarks.moving FILLED EMPTY [--size 100000]

FILLED and EMPTY are URLs of two databases of a PostgreSQL server; the first is filled as
``tests.benchmarks.millions`` does it, if it is empty: each exam with a score, a reading if it was
read, an event and a delivery. The site moves to an SQLite file, and from there to EMPTY, which is
what a site does that outgrows one machine. Nobody sends meanwhile.
"""

import tempfile
import time
from pathlib import Path

import click

from tests.benchmarks.millions import fill
from triage.worklist.moving import Outcome, Removal
from triage.worklist.schema import open_engine


def move(source: str, target: str, name: str) -> Outcome:
    """Move a site, and print how long each step took."""
    engines = [open_engine(url, create=True) for url in (source, target)]
    began, used = time.perf_counter(), time.process_time()
    ended: dict[str, float] = {}

    def progress(step: str, _done: int, _total: int) -> None:
        ended[step] = time.perf_counter()

    try:
        outcome = Removal(engines[0], engines[1], (source, target), None, progress).run("benchmark")
    finally:
        for engine in engines:
            engine.dispose()
    rows = sum(table.rows for table in outcome.tables)
    copy, verify = ended["copy"] - began, ended["verify"] - ended["copy"]
    click.echo(
        f"{name}: {rows:,} rows copied in {copy:.0f} s ({rows / copy:,.0f} a second), read back in "
        f"{verify:.0f} s, closed for {outcome.closed_seconds:.1f} s; "
        f"{time.process_time() - used:.0f} s of processor time, the server's not counted"
    )
    return outcome


@click.command()
@click.argument("filled")
@click.argument("empty")
@click.option("--size", type=int, default=100_000, show_default=True)
def main(filled: str, empty: str, size: int) -> None:
    """Fill, move there and back, and print what it took."""
    fill(filled, size)
    with tempfile.TemporaryDirectory() as folder:
        file = f"sqlite:///{Path(folder) / 'worklist.sqlite'}"
        move(filled, file, "PostgreSQL to SQLite")
        move(file, empty, "SQLite to PostgreSQL")


if __name__ == "__main__":
    main()
