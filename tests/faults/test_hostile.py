"""Hostile input: mutated PDUs over real sockets, mutated files through receiver and worker."""

import contextlib
import os
import random
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, Service, wait_for
from tests.faults.conftest import FULL, Tally, amount
from tests.faults.consoles import Queue, images
from tests.faults.fuzz import FOUND, Reader, Recorder, mutated_session, originals
from tests.faults.invariants import Ledger
from tests.faults.services import ask, hold, url_of
from tests.faults.variants import Variant, variant

SECONDS = 20.0
"""For one file, on a slow and busy machine."""

MEMORY = 2_500_000_000
"""Bytes for one file."""


def recorded(service: Service) -> list[list[bytes]]:
    """What DCMTK's consoles say when they verify and store, and what ours says."""
    samples = sorted(SAMPLES.glob("*.dcm"), key=lambda file: file.stat().st_size)[:2]
    sessions = []
    for command in (["echoscu"], ["storescu", "+C", "-xs"], ["dcmsend"]):
        tap = Recorder(service.port)
        files = [] if command == ["echoscu"] else [str(file) for file in samples]
        subprocess.run(
            [command[0], "-aec", "TRIAGE", "127.0.0.1", str(tap.port), *files],
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        sessions.append(tap.pdus())
        assert sessions[-1][0][0] == 0x01
    return sessions


def says(port: int, pdus: list[bytes]) -> None:
    """Say it all, and see the connection come to an end.

    Raises
    ------
    TimeoutError
        It does not, in time.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=40) as connection:
        with contextlib.suppress(ConnectionError):
            for pdu in pdus:
                connection.sendall(pdu)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65_536):
                pass


def test_mutated_pdus_end_their_association_and_no_more(
    new_service: Callable[..., Service], tally: Tally
) -> None:
    """Bounded in time and memory; no thread dies of one, and what is kept is whole."""
    count = amount(240, 100_000, "FAULTS_PDUS")
    service = new_service(TRIAGE_IDLE_SECONDS="3")
    service.start("--roles", "receive")
    assert service.process is not None
    process = Path(f"/proc/{service.process.pid}")
    sessions = recorded(service)
    wait_for(service.answers)
    before = len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    def run(number: int) -> str:
        try:
            says(service.port, mutated_session(sessions, number))
        except TimeoutError:
            return f"case {number} has no end"
        return ""

    with ThreadPoolExecutor(6) as pool:
        broken = [told for told in pool.map(run, range(count)) if told]
    tally.fault("mutated sequences of PDUs", count)
    assert broken == []
    assert service.process.poll() is None
    highest = int((process / "status").read_text().partition("VmHWM:")[2].split()[0])
    assert highest < 400_000, "KB"
    wait_for(
        lambda: (
            len(list((process / "fd").iterdir())) <= before[0]
            and len(list((process / "task").iterdir())) <= before[1]
        ),
        60,
    )
    log = service.log.read_text()
    for sign in ("thread_died", "connection_broke", "in this program: report it", "Traceback"):
        assert sign not in log, [line for line in log.splitlines() if sign in line][:3]
    # What a mutated data set was kept as is whole, under one row, whoever it claims to be.
    ledger = Ledger()
    several = images(4)
    Queue(service.port, several, ledger).finish(60)
    for file in (service.home / "spool" / "instances").rglob("*.dcm"):
        for uid in uids_of(service, file.stem):
            ledger.offered[uid].add(file.stem)
    for file in (service.home / "spool" / "quarantine").rglob("*.dcm"):
        ledger.offered["quarantined"].add(file.stem)
    tally.holds(ledger.check(url_of(service), service.home / "spool", settled=False))
    service.stop()


def uids_of(service: Service, digest: str) -> list[str]:
    """The instances whose data set has a digest."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(service.home / "worklist.sqlite")) as connection:
        rows = connection.execute("SELECT sop_instance_uid FROM items WHERE digest = ?", [digest])
        return [uid for (uid,) in rows]


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    """Processes that read cases."""
    made = [Reader(SECONDS) for _ in range(min(2, os.cpu_count() or 1))]
    yield made
    for reader in made:
        reader.end()


def test_mutated_files_are_settled_in_bounded_time_and_memory(
    readers: list[Reader], tally: Tally
) -> None:
    """No case runs on, none takes too much; a process that a decoder ends is counted."""
    count = amount(300, 20_000, "FAULTS_FILES")
    files = originals()
    assert len(files) > 20
    cases = [(files[number % len(files)], number // len(files)) for number in range(count)]
    random.Random(1).shuffle(cases)

    def run(reader: Reader, mine: list[tuple[Path, int]]) -> list[tuple[str, str, int]]:
        return [(f"{file.name} {number}", *reader.read(file, number)) for file, number in mine]

    with ThreadPoolExecutor(len(readers)) as pool:
        parts = [cases[number :: len(readers)] for number in range(len(readers))]
        done = [each for part in pool.map(run, readers, parts) for each in part]
    tally.fault("mutated files", count)
    tally.fault("ends of a reading process by a native decoder", sum("died" in d[1] for d in done))
    seen = Counter(outcome for _, outcome, _ in done)
    assert [each for each in done if "no end" in each[1]] == []
    assert [each for each in done if each[2] > MEMORY] == []
    assert [each for each in done if "kept, SCORING_ERROR" in each[1]] == []
    assert seen["kept, normalized"] > 0
    assert len(seen) > 5, "the mutations reach many ways"


def test_what_once_broke_something_is_settled(readers: list[Reader]) -> None:
    """The data sets that the fuzzers found; their names say transfer syntax and defect."""
    for file in sorted(FOUND.glob("*.bin")):
        outcome, memory = readers[0].read(file, 0)
        assert "SCORING_ERROR" not in outcome, file.name
        assert "no end" not in outcome, file.name
        assert "died" not in outcome, file.name
        assert memory < MEMORY, file.name


CRASHES = Variant(
    "pixels.py",
    "        values = decoded(dataset)\n",
    "        if rows == 77:\n            __import__('os').abort()\n"
    "        values = decoded(dataset)\n",
)
HANGS = Variant(
    "pixels.py",
    "        values = decoded(dataset)\n",
    "        while rows == 77:\n            pass\n        values = decoded(dataset)\n",
)
SOON = Variant("worker.py", "SETTLE_SECONDS = 50", "SETTLE_SECONDS = 2")


@pytest.mark.parametrize(
    "changes",
    [pytest.param([HANGS, SOON], id="hangs")]
    + ([pytest.param([CRASHES], id="crashes")] if FULL else []),
)
def test_a_decoder_that_crashes_or_hangs_costs_one_image(
    new_service: Callable[..., Service], tmp_path: Path, tally: Tally, changes: list[Variant]
) -> None:
    """The worker dies with it, three times; the image is FAILED, told, and the rest is scored."""
    bad, good = images(1, side=77), images(6)
    service = new_service(PYTHONPATH=str(variant(tmp_path / "variant", *changes)))
    ledger = Ledger()
    service.start("--roles", "receive,score")
    try:
        receiver = service.part("receive")
        Queue(service.port, [*good[:3], *bad, *good[3:]], ledger).finish(60)
        tally.fault("crashes and hangs of a decoder", 3)
        hold(service, ledger, tally)
        died = "SELECT count(*) FROM items WHERE state = 'FAILED' AND reason = 'WORKER_DIED'"
        assert ask(service, died) == 1
        assert ask(service, "SELECT count(*) FROM items WHERE state = 'SCORED'") == len(good)
        assert service.part("receive") == receiver, "the receiver decodes nothing"
    finally:
        service.stop()
