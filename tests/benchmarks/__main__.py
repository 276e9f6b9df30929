"""``python -m tests.benchmarks [NAME ...]``: measure, print tables, and compare with the record."""

import os
import sys

import click

from tests.benchmarks import cases, flagging, floors, growth, parts, receiving

MEASUREMENTS: dict[str, cases.Measurement] = {
    "startup": parts.startup,
    "receiving": receiving.receiving,
    "flagging": flagging.flagging,
    "latency": flagging.latency,
    "floors": floors.floors,
    "growth": growth.growth,
    "scoring": parts.scoring,
    "page": parts.page,
    "training": parts.training,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASUREMENTS)))
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--large", type=click.IntRange(min=16), default=48, show_default=True)
@click.option("--small", type=click.IntRange(min=10), default=1_000, show_default=True)
@click.option("--exams", type=click.IntRange(min=2), default=60, show_default=True)
@click.option("--rows", type=click.IntRange(min=1_000), default=10_000, show_default=True)
@click.option("--record", is_flag=True, help="Write the ratios down; the gate compares with them.")
def main(
    names: tuple[str, ...], rounds: int, large: int, small: int, exams: int, rows: int, record: bool
) -> None:
    """Print a Markdown table for each measurement; exit 1 if a ratio is behind the record.

    The amounts are of objects of 10 MB and of 39 KB received, of exams from console to flag, and
    of rows in the smaller database.
    """
    amounts = cases.Amounts(rounds, large, small, exams, rows)
    known = {} if record else cases.recorded()
    runs = [cases.run(name, MEASUREMENTS[name], amounts, known) for name in names or MEASUREMENTS]
    click.echo(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")
    if record:
        cases.keep(runs)
        return
    complaints = [complaint for run in runs for complaint in run.complaints(known)]
    for complaint in complaints:
        click.echo(f"BEHIND {complaint}", err=True)
    if complaints:
        sys.exit(1)


if __name__ == "__main__":
    main()
