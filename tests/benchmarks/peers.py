"""Who is measured: ours, and what an administrator would otherwise run. Each starts empty.

Ours answers Success after file and row are durable. storescp, Orthanc and the obvious worker do
not call fsync for an object (Orthanc writes its index with SQLite's defaults; the obvious worker
keeps no file at all). storescp stands twice: as it comes, and tuned by hand: a process for each
association, data sets kept as they come (+B), PDUs of 128 KB.
"""

import os
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.objects import Address
from tests.conftest import ROOT, Service, free_port, wait_for
from tests.orthanc import Orthanc
from triage.errors import TriageError
from triage.send import Destination, echo

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancPython.so")


@dataclass(frozen=True)
class Running:
    """A peer that runs.

    Attributes
    ----------
    address : Address
    scored : callable
        How many radiographs have a score.
    """

    address: Address
    scored: Callable[[], int] = lambda: 0

    def flagged(self, count: int, seconds: float = 600.0) -> None:
        """Wait until so many have a score."""
        deadline = time.monotonic() + seconds
        while self.scored() < count:
            assert time.monotonic() < deadline, f"{self.scored()} of {count} in {seconds} s"
            time.sleep(0.02)


Peer = Callable[[Path], AbstractContextManager[Running]]
"""Starts in a folder."""


@contextmanager
def service(folder: Path, *arguments: str) -> Iterator[Service]:
    """Ours, as a process that tests know how to ask; with as many workers as it comes."""
    settings = {"TRIAGE_MAX_ASSOCIATIONS": "64"}
    running = Service(folder / "home", free_port(), settings, workers=None)
    try:
        running.start(*arguments)
        yield running
    finally:
        running.stop()


@contextmanager
def receiver(folder: Path) -> Iterator[Running]:
    """Our receiver alone."""
    with service(folder, "--roles", "receive") as ours:
        yield Running(Address(ours.port, "TRIAGE"))


@contextmanager
def whole(folder: Path) -> Iterator[Running]:
    """All parts of ours, as they come, when they have started as the others have."""
    with service(folder) as ours:
        wait_for(lambda: _started(ours), 120.0)
        yield scores(ours)


def _started(ours: Service) -> bool:
    actions = [event["action"] for event in ours.events()]
    return actions.count("worker_ready") == 2 and "web_listening" in actions


def scores(ours: Service) -> Running:
    """Ours, and how many scores it has committed."""

    def count() -> int:
        question = "SELECT count(*) FROM items WHERE state = 'SCORED'"
        with closing(sqlite3.connect(ours.home / "worklist.sqlite")) as database:
            return int(database.execute(question).fetchone()[0])

    return Running(Address(ours.port, "TRIAGE"), count)


@contextmanager
def storescp(folder: Path, options: Sequence[str] = ("--fork",)) -> Iterator[Running]:
    """DCMTK's; it needs --fork to take more than one association at a time."""
    port = free_port()
    (folder / "store").mkdir()
    command = ["storescp", *options, "-od", str(folder / "store"), str(port)]
    with _process(command, Address(port, "ANY-SCP")) as running:
        yield running


def tuned(folder: Path) -> AbstractContextManager[Running]:
    """The same, tuned."""
    return storescp(folder, ("--fork", "+B", "-pdu", "131072"))


@contextmanager
def orthanc(
    folder: Path, settings: Mapping[str, object] | None = None, scored: Path | None = None
) -> Iterator[Running]:
    """As Debian has it."""
    running = Orthanc(folder / "orthanc", settings=settings or {})
    try:
        running.start(300.0)  # with the plugin it loads TensorFlow first
        yield Running(Address(running.dicom_port, "ORTHANC"), lambda: _lines(scored))
    finally:
        running.stop()


@contextmanager
def orthanc_obvious(folder: Path) -> Iterator[Running]:
    """With its Python plugin, which does what the obvious worker does."""
    scored = folder / "scored"
    more = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{sysconfig.get_path('platlib')}",
        "TRIAGE_BENCH_SCORED": str(scored),
    }
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        settings = {
            "Plugins": [str(PLUGIN)],
            "PythonScript": str(Path(__file__).with_name("orthanc_plugin.py")),
        }
        with orthanc(folder, settings, scored) as running:
            yield running
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def obvious(folder: Path) -> Iterator[Running]:
    """The obvious worker."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.obvious", str(port), str(folder)]
    with _process(command, Address(port, "OBVIOUS"), lambda: _lines(folder / "scored")) as running:
        yield running


@contextmanager
def _process(
    command: Sequence[str], address: Address, scored: Callable[[], int] = lambda: 0
) -> Iterator[Running]:
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)

    def answers() -> bool:
        with suppress(TriageError, OSError):
            echo(Destination("127.0.0.1", address.port, address.title), timeout=2.0)
            return True
        return False

    try:
        wait_for(answers, 300.0)
        yield Running(address, scored)
    finally:
        process.terminate()
        process.wait()


def _lines(path: Path | None) -> int:
    return path.read_bytes().count(b"\n") if path is not None and path.exists() else 0


def peak_memory(process: int) -> float:
    """The most that a process held at once, in MB (VmHWM of proc(5))."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000
