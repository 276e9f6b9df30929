"""The back file by processes of this machine and by a Ray cluster of it; in docs/benchmarks.md.

    python -m tests.benchmarks.backfile [--images 5000] [--ways processes:1,ray:1,processes:2,ray:2]

Small drawn radiographs in a home of their own. Of the ways with two workers, one is killed in the
middle. Each way has to give the same scores, one of each image. The last column tells how busy the
machine was before: with other work on its cores the figures say little.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from sqlalchemy import delete, select

from tests.builders import chest_radiograph, encoded
from triage.app import prepare
from triage.config import Config
from triage.crew import Cluster, Crew, Processes
from triage.identity import Instance
from triage.registry import Registry
from triage.rescoring import Packed, Rescoring, Task, of_spool
from triage.spool import Spool, digest_of
from triage.worklist import Arrival, Worklist
from triage.worklist.backfile import Selection
from triage.worklist.schema import open_engine
from triage.worklist.tables import Rescore

PICTURES = 40


def fill(config: Config, images: int) -> None:
    """Enter so many exams; some show the same picture, none has the same bytes."""
    worklist, spool = Worklist(config.worklist_url), Spool(config.spool_folder)
    spool.prepare()
    shown = [chest_radiograph(n) for n in range(PICTURES)]
    for number in range(images):
        dataset = shown[number % PICTURES]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        content = encoded(dataset)
        data = content[144 + int.from_bytes(content[140:144], "little") :]
        spool.put(digest_of(data), content)
        instance = Instance.of(dataset)
        worklist.receive(
            Arrival(instance, "1.2.840.10008.1.2.1", "BENCH", "", digest_of(data), len(data))
        )
    worklist.close()


def below(parent: int) -> Iterator[tuple[int, str]]:
    """Processes below one, with their command lines."""
    told = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in told.stdout.splitlines()]
    found = {parent}
    for _ in range(8):
        found |= {int(row[0]) for row in rows if int(row[1]) in found}
    for row in rows:
        if int(row[0]) in found - {parent}:
            yield int(row[0]), row[2] if len(row) > 2 else ""


def a_worker() -> int:
    """A worker that is assessing now."""
    words = ("ray::_assess_on_node", "spawn_main")
    found = list(below(os.getpid()))
    return next(pid for pid, line in found if any(word in line for word in words))


def run(config: Config, way: str, workers: int) -> dict[str, float]:
    """Score everything; seconds in all, images each second once it runs, and what was killed."""
    worklist, model = Worklist(config.worklist_url), Registry(config.models_folder).champion()
    task = Task(Selection())
    rescoring = Rescoring(worklist.back_file, model.version, None, task)
    total = rescoring.total() or 0
    marks: list[tuple[float, int]] = []
    killed: list[int] = []

    def progress(done: int) -> None:
        if done:
            marks.append((time.perf_counter(), done))
        if workers > 1 and not killed and done > total * 0.4:
            killed.append(a_worker())
            os.kill(killed[0], signal.SIGKILL)

    began = time.perf_counter()
    make = Packed.of(model, warn_outside=True)
    crew: Crew = Processes(make, workers) if way == "processes" else Cluster(make, "local", workers)
    try:
        with rescoring.led_by("bench"):
            rescoring.score(crew, of_spool(rescoring, Spool(config.spool_folder)), progress)
    finally:
        crew.close()  # type: ignore[attr-defined]
        worklist.close()
    seconds = time.perf_counter() - began
    # From a tenth on: before, processes start and compile.
    first = next(mark for mark in marks if mark[1] >= total / 10)
    rate = (marks[-1][1] - first[1]) / max(marks[-1][0] - first[0], 0.001)
    return {"seconds": seconds, "rate": rate, "killed": len(killed)}


def answers(config: Config, *, forget: bool) -> dict[str, tuple[object, ...]]:
    """What was said of each image."""
    engine = open_engine(config.worklist_url, create=False)
    columns = (Rescore.image, Rescore.probability, Rescore.reason, Rescore.failure, Rescore.novelty)
    with engine.begin() as connection:
        rows = connection.execute(select(*columns)).all()
        if forget:
            connection.execute(delete(Rescore))
    engine.dispose()
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: tuple(row[1:]) for row in rows}


@click.command()
@click.option("--images", type=int, default=5_000, show_default=True)
@click.option("--ways", default="processes:1,ray:1,processes:2,ray:2", show_default=True)
def main(images: int, ways: str) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(home=Path(folder))
        prepare(config)
        fill(config, images)
        first: dict[str, tuple[object, ...]] = {}
        click.echo(
            "| way | workers | killed | seconds in all | images/s once it runs | the same | load |"
        )
        click.echo("|---|---|---|---|---|---|---|")
        for way in ways.split(","):
            kind, _, workers = way.partition(":")
            load = os.getloadavg()[0]
            told = run(config, kind, int(workers))
            said = answers(config, forget=True)
            first = first or said
            click.echo(
                f"| {kind} | {workers} | {told['killed']:.0f} | {told['seconds']:.1f} | "
                f"{told['rate']:.1f} | {said == first and len(said) == images} | {load:.1f} |"
            )
        scored = sum(value[0] is not None for value in first.values())
        click.echo(f"\n{scored} of {images} were scored")


if __name__ == "__main__":
    main()
