"""What a receiver and a worker need is taken away, and given back: disk, inodes, database."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine

from tests.conftest import Service, free_port, postgres_server
from tests.faults.consoles import Queue, images, send, shared, until
from tests.faults.invariants import Ledger
from tests.faults.services import MAY_MOUNT, hold, url_of
from tests.faults.tally import FULL, Tally, amount

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="mounts a file system: needs root")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something mounted on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full_disk(disk: Path) -> Iterator[None]:
    """Not a byte left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            for size in (65_536, 4_096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
            yield
        finally:
            ballast.unlink()


@contextmanager
def no_inodes(disk: Path) -> Iterator[None]:
    """Not a name left."""
    ballast = disk / "ballast"
    ballast.mkdir()
    try:
        for number in range(1_000_000):
            (ballast / str(number)).touch()
    except OSError:
        pass
    try:
        yield
    finally:
        for file in ballast.iterdir():
            file.unlink()
        ballast.rmdir()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """The spool can be read and not written."""
    spool = disk / "home" / "spool"
    with mounted(spool, "--bind", str(spool)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(spool)], check=True)
        yield


@dataclass
class Site:
    """A receiver and a worker on a small disk of their own, and what consoles were told."""

    service: Service
    disk: Path
    ledger: Ledger

    def holds(self, tally: Tally) -> None:
        """Hold them to their promises."""
        hold(self.service, self.ledger, tally)
        self.ledger.acknowledged.clear()  # each image is counted once


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all: what one fault leaves behind meets the next."""
    disk = tmp_path_factory.mktemp("site") / "disk"
    size, inodes = amount(24, 256), amount(1, 8)
    options = f"size={size}m,nr_inodes={inodes}k,mode=0700"
    with ExitStack() as held:
        if MAY_MOUNT:
            held.enter_context(mounted(disk, "-t", "tmpfs", "-o", options, "tmpfs"))
        else:
            disk.mkdir(mode=0o700)
        service = Service(disk / "home", free_port())
        try:
            service.start("--roles", "receive,score")
            yield Site(service, disk, Ledger())
            service.stop()
        finally:
            if service.process is not None:
                service.process.kill()
                service.process.wait()


@needs_mounts
def test_a_disk_without_room_refuses_and_recovers(site: Site, tally: Tally) -> None:
    """Full, out of inodes, read-only: no Success, no half image, and all goes on afterwards."""
    for kind, fault in (
        ("a full disk", full_disk),
        ("no inodes left", no_inodes),
        ("a read-only spool", read_only),
    ):
        for _ in range(amount(1, 5)):
            several = images(amount(4, 8))
            assert send(site.service.port, several[:2], site.ledger) == 2
            with fault(site.disk):
                tally.fault(kind)
                for image in several[2:]:
                    assert send(site.service.port, [image], site.ledger) == 0
            Queue(site.service.port, several, site.ledger).finish(180)
    site.holds(tally)


@contextmanager
def injected(pid: int, *faults: str) -> Iterator[None]:
    """System calls of a running process fail, or take long, as ``strace -e inject`` says."""
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(pid)]
    for fault in faults:
        command += ["-e", f"inject={fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        attached = f"/proc/{pid}/status"
        assert until(lambda: f"TracerPid:\t{tracer.pid}" in Path(attached).read_text(), 20)
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGTERM)
            tracer.wait(20)


INJECTED = {
    "an error of fsync": ["fsync:error=EIO:when=1+3"],
    "an error of fdatasync, which is SQLite's commit": ["fdatasync:error=EIO:when=1+3"],
    "a full disk under SQLite": ["pwrite64:error=ENOSPC:when=2+5"],
    "an error of rename": ["rename:error=EIO:when=1+2"],
    "a quota that allows no folder": ["mkdir:error=EDQUOT"],
    "a disk that takes 0.2 s for each sync": [
        "fsync:delay_enter=200000", "fdatasync:delay_enter=200000",
    ],
}  # fmt: skip


def test_a_disk_that_fails_or_is_slow_costs_no_image(site: Site, tally: Tally) -> None:
    """Errors and delays at every kind of write, in the receiver and in the worker."""
    for kind, faults in INJECTED.items():
        several = images(amount(4, 120))
        for role, part in zip(("receive", "score"), shared(several, 2), strict=True):
            with injected(site.service.part(role), *faults):
                tally.fault(f"{kind}, in the part `{role}`")
                for number in range(0, len(part), 2):
                    send(site.service.port, part[number : number + 2], site.ledger)
                time.sleep(0.2 if role == "score" else 0.0)
        Queue(site.service.port, several, site.ledger).finish(180)
    site.holds(tally)


def test_a_locked_sqlite_is_waited_for(site: Site, tally: Tally) -> None:
    """Somebody holds the write lock: consoles wait, and are refused if it takes too long."""
    several = images(amount(4, 40))
    engine = create_engine(url_of(site.service))
    with engine.connect() as connection:
        connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        queue = Queue(site.service.port, several, site.ledger)
        tally.fault("a locked database")
        time.sleep(amount(1, 45))
        assert queue.left == len(several)
        connection.exec_driver_sql("ROLLBACK")
    engine.dispose()
    queue.finish(180)
    site.holds(tally)


def test_a_postgresql_that_is_restarted_or_gone_is_waited_for(
    new_service: Callable[..., Service], tally: Tally
) -> None:
    """Crashes of the server under load, one of them for long, and connections that are cut."""
    with ExitStack() as held:
        server = held.enter_context(postgres_server())
        service = new_service(TRIAGE_DATABASE_URL=server.url)
        service.start("--roles", "receive,score")
        held.callback(service.stop)
        ledger = Ledger()
        for number in range(amount(2, 10)):
            queue = Queue(service.port, images(amount(4, 60)), ledger, at_once=2)
            time.sleep(0.2)
            if number % 2:
                with psycopg.connect(server.url) as other:
                    tally.fault("connections to PostgreSQL cut")
                    other.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                        "backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    )
            else:
                server.stop()
                tally.fault("a crash of PostgreSQL")
                time.sleep(60 if FULL and number == 0 else 1)
                server.start()
            queue.finish(240)
        hold(service, ledger, tally)
