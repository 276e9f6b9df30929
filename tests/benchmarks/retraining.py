"""What a retraining costs, and what it costs the scoring beside it; told in docs/retrain.md.

    python -m tests.benchmarks.retraining cost [READINGS ...]
    python -m tests.benchmarks.retraining latency [READINGS] [--exams N]

Radiographs are the Kermany data beside the checkout or where CXR_DATA says (train/NORMAL,
train/PNEUMONIA), as computed radiographs of a patient each; without them drawn chests.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from sample_dicom.draw import chest
from tests.conftest import ROOT
from tests.retraining import age, enter_read, retrain, settings
from triage.app import prepare
from triage.config import Config
from triage.network import Network
from triage.pixels import SIDE, normalize_file
from triage.registry import Registry
from triage.spool import Spool
from triage.worklist import Worklist

DATA = Path(os.environ.get("CXR_DATA", ROOT.parent / "shared" / "data" / "kermany"))


@click.group()
def main() -> None:
    """Group of commands."""


def pictures(count: int) -> Iterator[tuple[np.ndarray, bool]]:
    """So many pictures, 0.0 to 1.0, and whether each is diseased; in turns."""
    folders = [DATA / "train" / name for name in ("NORMAL", "PNEUMONIA")]
    files = [sorted(folder.glob("*.jpeg")) for folder in folders]
    for number in range(count):
        diseased = number % 2 == 1
        if files[diseased]:
            yield normalize_file(files[diseased][number // 2]), diseased
        else:
            yield chest(number, opacity=0.9 * diseased, shape=(SIDE, SIDE)), diseased


def filled(home: Path, readings: int, **more: object) -> dict[str, str]:
    """A home with so many readings, and its settings: those of a site, but for the policy."""
    own = {"retrain_epochs": 4, "retrain_pictures": 1_000, "retrain_nice": 19, **more}
    environment = settings(home, **own)
    given = Config.read(environment, home)
    prepare(given)
    worklist, spool = Worklist(given.worklist_url), Spool(given.spool_folder)
    for number, (shown, diseased) in enumerate(pictures(readings)):
        enter_read(worklist, spool, number, shown, diseased=diseased)
    age(worklist, 0)
    worklist.close()
    return environment


def usage(environment: dict[str, str]) -> tuple[float, float, str]:
    """Wall seconds and peak memory, in GB, of a retraining; and what came of it."""
    began = time.perf_counter()
    process = retrain(environment, "run")
    told, log = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise click.ClickException(told + log)
    last = json.loads(log.splitlines()[-1])
    return seconds, last["peak_memory_mb"] / 1_000, told.strip().split(";")[0]


@main.command()
@click.argument("readings", type=int, nargs=-1)
@click.option("--nice", type=click.IntRange(0, 19), default=0, show_default=True)
@click.option("--base", type=click.Path(path_type=Path, exists=True), help="Base data.")
def cost(readings: tuple[int, ...], nice: int, base: Path | None) -> None:
    """Wall time and memory of a retraining, by the number of readings."""
    click.echo("| readings | wall, min | peak memory, GB | |")
    click.echo("|---|---|---|---|")
    for number in readings or (250, 500, 1_000):
        with tempfile.TemporaryDirectory() as folder:
            more = {"retrain_nice": nice, **({"retrain_base_data": base} if base else {})}
            seconds, memory, told = usage(filled(Path(folder) / "home", number, **more))
        click.echo(f"| {number:,} | {seconds / 60:.1f} | {memory:.2f} | {told} |")


@main.command()
@click.argument("readings", type=int, default=250)
@click.option("--exams", type=int, default=300, show_default=True)
def latency(readings: int, exams: int) -> None:
    """Scoring with and without a retraining beside it, in turns: it is stopped and let go on."""
    import signal

    with tempfile.TemporaryDirectory() as folder:
        environment = filled(Path(folder) / "home", readings)
        model = Registry(Config.read(environment, Path(folder)).models_folder).champion()
        network = Network(model)
        array = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
        process = retrain(environment, "run")
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 2" in line:
                break
        pairs: list[tuple[float, float]] = []
        try:
            while len(pairs) < exams and process.poll() is None:
                pair = []
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    process.send_signal(number)
                    time.sleep(0.2)
                    began = time.perf_counter()
                    network.explained(array)
                    pair.append(time.perf_counter() - began)
                pairs.append((pair[0], pair[1]))
        finally:
            process.kill()
            process.communicate()
    without, beside = (statistics.median(column) * 1_000 for column in zip(*pairs, strict=True))
    ratio = statistics.median(later / first for first, later in pairs)
    click.echo("| pairs | alone, ms | beside a retraining, ms | median of ratios |")
    click.echo("|---|---|---|---|")
    click.echo(f"| {len(pairs)} | {without:.1f} | {beside:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
