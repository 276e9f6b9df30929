"""From console to flag: how many radiographs, how soon, and in how much memory."""

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation

from tests.benchmarks import peers
from tests.benchmarks.cases import Amounts, Case
from tests.benchmarks.objects import LARGE, Address, console, files, percentiles, sent, wired
from tests.conftest import Service
from triage.app import BUNDLED
from triage.network import Network
from triage.pixels import normalize
from triage.registry import ModelVersion

PEERS: dict[str, peers.Peer] = {
    "ours": peers.whole,
    "obvious worker": peers.obvious,
    "Orthanc with its Python plugin": peers.orthanc_obvious,
}

WORKER_MB = 400.0

EVERY = 0.5
"""Seconds between two images where latency is measured."""

LATE = 0.5
"""Ours may take twice as long as decoding and inference alone."""


def flagging(amounts: Amounts) -> Iterator[Case]:
    """DX of 10 MB on one association, until the last has its score."""
    with tempfile.TemporaryDirectory() as name:
        paths = files(Path(name) / "large", amounts.exams + 1, LARGE)
        yield Case(
            "from console to flag",
            "exams/s",
            {peer: lambda start=start: _rate(start, paths) for peer, start in PEERS.items()},
            more_is_better=True,
            wanted={"obvious worker": 3.0, "Orthanc with its Python plugin": 3.0},
        )
        yield Case(
            "worker's peak memory",
            "MB",
            {"ours": lambda: _memory(paths), "allowed": lambda: WORKER_MB},
            wanted={"allowed": 1.0},
        )


def latency(amounts: Amounts) -> Iterator[Case]:
    """From Success to a committed SCORED, at two DX of 10 MB a second."""
    with tempfile.TemporaryDirectory() as name:
        paths = files(Path(name) / "large", amounts.exams + 1, LARGE)
        yield Case(
            "Success to SCORED",
            "ms",
            {
                "ours": lambda: percentiles(_waits(paths)),
                "decoding and inference alone": lambda: percentiles(_alone(paths)),
            },
            wanted={"decoding and inference alone": LATE},
        )


def _rate(start: peers.Peer, paths: Sequence[Path]) -> float:
    """Exams a second; the first file warms up."""
    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as running:
        sent(running.address, [paths[:1]])
        running.flagged(1)
        began = time.perf_counter()
        sent(running.address, [paths[1:]])
        running.flagged(len(paths))
        return (len(paths) - 1) / (time.perf_counter() - began)


def _memory(paths: Sequence[Path]) -> float:
    with tempfile.TemporaryDirectory() as folder, peers.service(Path(folder)) as ours:
        worker = ours.part("score")
        sent(Address(ours.port, "TRIAGE"), [paths])
        peers.scores(ours).flagged(len(paths))
        assert ours.part("score") == worker
        return peers.peak_memory(worker)


def _waits(paths: Sequence[Path]) -> list[float]:
    """Seconds from Success until another process sees SCORED; the first file warms up."""
    waits = []
    objects = [wired(path) for path in paths]
    with (
        tempfile.TemporaryDirectory() as folder,
        peers.service(Path(folder)) as ours,
        console(Address(ours.port, "TRIAGE")) as sender,
    ):
        due = time.perf_counter()
        for data, uid in objects:
            time.sleep(max(due - time.perf_counter(), 0.0))
            due += EVERY
            status = sender.store(data, uid, DigitalXRayImageStorageForPresentation)
            assert status == 0, f"answered {status}"
            waits.append(_until_scored(ours, uid))
    return waits[1:]


def _until_scored(ours: Service, uid: str) -> float:
    began = time.perf_counter()
    database = sqlite3.connect(ours.home / "worklist.sqlite")
    question = "SELECT 1 FROM items WHERE sop_instance_uid = ? AND state = 'SCORED'"
    try:
        while database.execute(question, (uid,)).fetchone() is None:
            took = time.perf_counter() - began
            assert took < 60, f"{uid} has no score after {took:.0f} s"
            time.sleep(0.002)
    finally:
        database.close()
    return time.perf_counter() - began


def _alone(paths: Sequence[Path]) -> list[float]:
    """Seconds of reading, decoding and inference, in this process, nothing else running."""
    network = Network(ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent))
    took = []
    for path in paths:
        began = time.perf_counter()
        network.score(normalize(dcmread(path)).array)
        took.append(time.perf_counter() - began)
        time.sleep(EVERY / 10)  # as rested as a worker that has waited
    return took[1:]
