"""What one radiograph costs at each step: the figures that `docs/scale.md` and the simulation use.

    python -m tests.benchmarks.steps [--images 30] [--json FILE]

One image after the other through the real parts in one process: SQLite and a folder in a
temporary home. Processor time is this process's own; a step that waits for the disk or the
network shows it by taking longer than that.
"""

import json
import sqlite3
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import structlog
from pydicom import Dataset, dcmread

from tests.conftest import SAMPLES
from tests.peers import PacsPeer, kept, material
from triage import app
from triage.config import Config
from triage.explanation import explain
from triage.pixels import normalize
from triage.scp import Receiver
from triage.send import Destination, send
from triage.worker import Worker
from triage.worklist.deliveries import ResultKind

OPACITY = SAMPLES / "03-dx-ap-opacity.dcm"


class Clock:
    """Times steps by name."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def step(self, name: str, *_: object, **__: object) -> Iterator[None]:
        began, used = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name].append((time.perf_counter() - began) * 1000)
            self.cpu[name].append((time.process_time() - used) * 1000)


def large(folder: Path, number: int, side: int) -> Path:
    """The drawn radiograph with an opacity, as large as a detector's, under a UID of its own."""
    dataset: Dataset = dcmread(OPACITY)
    times = -(-side // min(dataset.Rows, dataset.Columns))
    pixels = np.kron(dataset.pixel_array, np.ones((times, times), dataset.pixel_array.dtype))
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.9.{number}"
    dataset.PatientID = f"P{number}"
    dataset.StudyInstanceUID = f"2.25.8.{number}"
    file = folder / f"{number}.dcm"
    dataset.save_as(file)
    return file


def measure(images: int, side: int) -> tuple[Clock, dict[str, float]]:
    """Times of each step, and bytes of an image."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(home=Path(folder) / "home")
        app.prepare(config)
        worklist, spool = app.worklist(config), app.spool(config)
        receiver = Receiver("TRIAGE", ("127.0.0.1", 0), 8, 60.0, spool, worklist)
        to = Destination("127.0.0.1", receiver.start(), "TRIAGE")
        worker = Worker("bench", worklist, spool, app._current_champion(config))
        worker._telemetry.step = clock.step  # type: ignore[method-assign,assignment]
        empty = config.home.joinpath("worklist.sqlite").stat().st_size
        size = 0
        for number in range(images):
            file = large(Path(folder), number, side)
            size = file.stat().st_size
            with clock.step("receive"):
                assert all(each.accepted for each in send([file], to))
            with clock.step("claim and score"):
                assert worker.step()
            item = worklist.item(f"2.25.9.{number}")
            assert item.score is not None, item
            file.unlink()
        receiver.stop()
        _results(config, clock, images)
        worklist.close()
        with closing(sqlite3.connect(config.home / "worklist.sqlite")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database = config.home.joinpath("worklist.sqlite").stat().st_size - empty
        stored = sum(f.stat().st_size for f in config.spool_folder.rglob("*.dcm"))
    return clock, {"image": size, "database": database / images, "spool": stored / images}


def _results(config: Config, clock: Clock, images: int) -> None:
    """Build report and picture of the images as the deliverer does, and send them."""
    model = app.registry(config).champion()
    scorer, spool = app._network(model), app.spool(config)
    worklist = app.worklist(config)
    with PacsPeer() as pacs, tempfile.TemporaryDirectory() as folder:
        sink = pacs.sink(30.0)
        for number in range(min(images, 10)):
            dataset = spool.instance(worklist.item(f"2.25.9.{number}").digest)
            with clock.step("explain"):
                found = explain(scorer, normalize(dataset).array)
            for kind, name in ((ResultKind.FINDING, "report"), (ResultKind.HEAT_MAP, "picture")):
                what = material(dataset, kind)
                if kind is ResultKind.HEAT_MAP:
                    shown = (normalize(dataset).array, found)
                    what = replace(what, heat_map=lambda shown=shown: shown)
                with clock.step(f"build {name}"):
                    result = sink.build(what)
                with clock.step(f"send {name}"):
                    sink.send(result.uid, kept(result, Path(folder)))
        sink.rest()
    worklist.close()


@click.command()
@click.option("--images", default=30, show_default=True, type=click.IntRange(1))
@click.option("--side", default=2_000, show_default=True, type=click.IntRange(256))
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(images: int, side: int, file: Path | None) -> None:
    """Print the table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    clock, sizes = measure(images, side)
    medians = {
        name: {
            "wall_ms": statistics.median(values),
            "cpu_ms": statistics.median(clock.cpu[name]),
        }
        for name, values in clock.wall.items()
    }
    click.echo("| step | median | processor |\n|---|---|---|")
    for name, each in medians.items():
        click.echo(f"| {name} | {each['wall_ms']:.1f} ms | {each['cpu_ms']:.1f} ms |")
    for name, value in sizes.items():
        click.echo(f"| bytes: {name} | {value:,.0f} | |")
    if file is not None:
        file.write_text(json.dumps({"steps": medians, "bytes": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
