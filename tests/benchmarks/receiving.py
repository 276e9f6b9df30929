"""Receiving beside DCMTK's storescp and Orthanc.

    python -m tests.benchmarks.receiving [--rounds N] [--large N] [--small N]

Every peer gets the same files from the same sender, DCMTK's ``dcmsend`` with the largest PDUs, as
processes of their own; the peers take turns, each with an empty store. Ours answers Success
after file and row are durable; storescp and Orthanc do not call fsync for an object (Orthanc
writes its index with SQLite's defaults). storescp stands twice: as it comes, and tuned by
hand: a process for each association, data sets kept as they come (+B), PDUs of 128 KB.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import click
import numpy as np
from pydicom.uid import generate_uid

from sample_dicom.draw import Exam, as_dx, chest, write
from tests.conftest import Service, free_port, wait_for
from tests.orthanc import Orthanc
from triage.errors import TriageError
from triage.send import Destination, echo

LARGE, SMALL = (2500, 2000), (150, 130)
"""Rows and columns: 10 MB and 39 KB in 16 bits allocated."""

Peer = Callable[[Path], tuple[int, str, Callable[[], None]]]
"""Starts in a folder; port, AE title, and what stops it."""


def ours(folder: Path) -> tuple[int, str, Callable[[], None]]:
    """The receiver alone."""
    service = Service(folder / "home", free_port(), {"TRIAGE_MAX_ASSOCIATIONS": "64"})
    service.start("--roles", "receive")
    return service.port, "TRIAGE", service.stop


def storescp(
    folder: Path, options: Sequence[str] = ("--fork",)
) -> tuple[int, str, Callable[[], None]]:
    """DCMTK's; it needs --fork to take more than one association at a time."""
    port = free_port()
    (folder / "store").mkdir()
    command = ["storescp", *options, "-od", str(folder / "store"), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with suppress(TriageError, OSError):
            echo(Destination("127.0.0.1", port, "ANY-SCP"), timeout=2.0)
            return True
        return False

    wait_for(answers)

    def stop() -> None:
        process.terminate()
        process.wait()

    return port, "ANY-SCP", stop


def tuned(folder: Path) -> tuple[int, str, Callable[[], None]]:
    """The same, tuned."""
    return storescp(folder, ("--fork", "+B", "-pdu", "131072"))


def orthanc(folder: Path) -> tuple[int, str, Callable[[], None]]:
    """As Debian has it."""
    running = Orthanc(folder / "orthanc")
    running.start()
    return running.dicom_port, "ORTHANC", running.stop


PEERS: dict[str, Peer] = {
    "ours": ours,
    "storescp": storescp,
    "storescp, tuned": tuned,
    "Orthanc": orthanc,
}


def files(folder: Path, number: int, shape: tuple[int, int]) -> list[Path]:
    """So many DX of drawn noise, each with UIDs of its own."""
    folder.mkdir()
    picture = chest(1, shape=shape) if shape == SMALL else _tall(shape)
    made = as_dx(picture, Exam(1), bits=12)
    out = []
    for index in range(number):
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        out.append(folder / f"{index:05}.dcm")
        write(made, out[-1])
    return out


def _tall(shape: tuple[int, int]) -> np.ndarray:
    small = chest(1, shape=(shape[0] // 4, shape[1] // 4))
    grain = np.random.default_rng(1).normal(0, 0.02, shape)
    return np.asarray(np.clip(small.repeat(4, 0).repeat(4, 1) + grain, 0, 1))


def sent(port: int, title: str, shares: Sequence[Sequence[Path]]) -> float:
    """Send each share on an association of its own, all at once; seconds until the last is done."""
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["dcmsend", "--max-pdu", "131072", "-aec", title, "127.0.0.1", str(port), *share],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for share in shares
    ]
    statuses = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - began
    assert not any(statuses), f"{title} did not take all: {statuses}"
    return seconds


def measured(name: str, shares: Sequence[Sequence[Path]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each peer, in turns."""
    times: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for _ in range(rounds):
        for peer, start in PEERS.items():
            with tempfile.TemporaryDirectory() as folder:
                port, title, stop = start(Path(folder))
                try:
                    # The first object finds everything cold.
                    times[peer].append(sent(port, title, shares))
                finally:
                    stop()
    count = sum(map(len, shares))
    for peer, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["ours"], strict=True))
        click.echo(
            f"| {name} | {peer} | {count / statistics.median(seconds):.1f} objects/s | "
            f"{min(seconds):.2f} to {max(seconds):.2f} s | {ratio:.2f} |"
        )
    return times


def split(all_of_them: Sequence[Path], parts: int) -> list[Sequence[Path]]:
    """As equal shares."""
    return [all_of_them[part::parts] for part in range(parts)]


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--large", type=click.IntRange(min=16), default=48, show_default=True)
@click.option("--small", type=click.IntRange(min=10), default=1_000, show_default=True)
def main(rounds: int, large: int, small: int) -> None:
    """Print a Markdown table."""
    click.echo("| what | peer | median | range | times ours |\n|---|---|---|---|---|")
    folder = Path(tempfile.mkdtemp())
    try:
        big = files(folder / "large", large, LARGE)
        size = big[0].stat().st_size / 1e6
        for parts in (1, 4, 16):
            measured(f"{size:.0f} MB, {parts} associations", split(big, parts), rounds)
        little = files(folder / "small", small, SMALL)
        size = little[0].stat().st_size / 1e3
        measured(f"{size:.0f} KB, one association", [little], rounds)
        measured(f"{size:.0f} KB, 10 associations", split(little, 10), rounds)
    finally:
        shutil.rmtree(folder)
    click.echo(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
