"""Hostile PDUs: mutations of recorded ones, over real sockets."""

import contextlib
import errno
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import SAMPLES, Service, wait_for
from tests.faults.consoles import Queue, images
from tests.faults.fuzz import Recorder, mutated_session
from tests.faults.invariants import Ledger
from tests.faults.services import url_of
from tests.faults.tally import Tally, amount


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
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        with contextlib.suppress(ConnectionError):
            for pdu in pdus:
                connection.sendall(pdu)
            with cut_already():
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while connection.recv(65_536):
                pass


@contextlib.contextmanager
def cut_already() -> Iterator[None]:
    """Put up with a connection that the other end has reset: this call makes an OSError of it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def sockets(process: Path) -> int:
    """How many a process has open; the database's connections, kept for later, are files."""
    found = 0
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


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
    before = sockets(process), len(list((process / "task").iterdir()))

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
            sockets(process) <= before[0] and len(list((process / "task").iterdir())) <= before[1]
        ),
        240,
    )
    log = service.log.read_text()
    for sign in ("thread_died", "connection_broke", "in this program: report it", "Traceback"):
        assert sign not in log, [line for line in log.splitlines() if sign in line][:3]
    # What a mutated data set was kept as is whole, under one row, whoever it claims to be.
    ledger = Ledger()
    several = images(4)
    Queue(service.port, several, ledger).finish(180)
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
