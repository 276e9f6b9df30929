"""Fixtures: databases, homes and running services, all of them real."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import data_store
import psycopg
import pydicom.data
import pytest

from tests.faults.tally import pytest_terminal_summary
from triage.errors import TriageError
from triage.send import Destination, echo
from triage.worklist import Worklist
from triage.worklist.schema import migrate, open_engine

__all__ = ["pytest_terminal_summary"]  # a hook; xdist's controller loads no other conftest

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_dicom"

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""

PYDICOM_DATA = Path(data_store.__file__).parent / "data"
"""The files of the package pydicom-data; RG1 and RG3 are computed radiographs."""


def pydicom_files() -> list[Path]:
    """Every file of pydicom's test set that is installed, DICOM or not.

    pydicom's own function for this looks in the network for more.
    """
    folders = (Path(pydicom.data.__file__).parent, PYDICOM_DATA)
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: much of their time tests wait for something."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session", autouse=True)
def _programs_of_the_system() -> None:
    """`storescu` is DCMTK's: in an activated environment it would be pynetdicom's."""
    own = str(Path(sys.executable).parent)
    folders = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(folder for folder in folders if folder != own)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on.

    Below the ports that the system hands out by itself, which another process might get
    before whoever asked here listens.
    """
    while True:
        port = random.randint(15_000, 31_999)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.05)


@dataclass
class Service:
    """A ``triage serve`` process with a home of its own."""

    home: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    web_port: int = field(default_factory=free_port)
    workers: int | None = 1
    """A start costs a second of a core for each; None leaves it to the program."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The process's environment: ours without settings, and its own settings."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRIAGE_")}
        return {
            **inherited,
            "TRIAGE_HOME": str(self.home),
            "TRIAGE_DICOM_PORT": str(self.port),
            "TRIAGE_WEB_PORT": str(self.web_port),
            "TRIAGE_LOG_FORMAT": "json",
            **({} if self.workers is None else {"TRIAGE_WORKERS": str(self.workers)}),
            **self.settings,
        }

    @property
    def log(self) -> Path:
        """Where its standard error goes."""
        return self.home.with_suffix(".log")

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, but for the line that the first start writes beside the log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if not line.startswith("triage: first start: ")]

    @property
    def destination(self) -> Destination:
        """Its storage SCP."""
        return Destination("127.0.0.1", self.port, "TRIAGE")

    def start(self, *arguments: str, wait: bool = True) -> None:
        """Start it and wait for its C-ECHO."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "triage", "serve", *arguments],
                env=self.environment,
                cwd=self.home.parent,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        if wait:
            wait_for(self.answers, 120.0)

    def answers(self) -> bool:
        """Whether the receiver answers C-ECHO."""
        try:
            # pynetdicom leaks the socket of a refused connection: first see whether there is one.
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0):
                pass
            echo(self.destination, timeout=2.0)
        except (TriageError, OSError):
            return False
        return True

    @property
    def page(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.web_port}"

    def shows_page(self) -> bool:
        """Whether the page is served."""
        try:
            with socket.create_connection(("127.0.0.1", self.web_port), timeout=2.0):
                return True
        except OSError:
            return False

    def one_time_password(self) -> str:
        """Of the first operator, as the first start has shown it."""
        found = re.search(r"one-time password (\S+) ", self.log.read_text())
        assert found is not None
        return found.group(1)

    def part(self, role: str) -> int:
        """The process id of a running part."""
        assert self.process is not None
        listing = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        for line in listing.splitlines():
            pid, _, command = line.strip().partition(" ")
            if f"--roles {role} " in f"{command} ":
                return int(pid)
        raise LookupError(f"no part {role} in {listing!r}")

    def kill(self, role: str) -> None:
        """``kill -9`` a part and wait until the supervisor has started it again."""
        dead = self.part(role)
        os.kill(dead, signal.SIGKILL)

        def back() -> bool:
            try:
                return self.part(role) != dead
            except LookupError:
                return False

        wait_for(back)

    def stop(self) -> None:
        """SIGTERM, and the exit status 0 that it must give."""
        if self.process is not None:
            self.process.terminate()
            status = self.process.wait(30)
            self.process = None
            assert status == 0

    def worklist(self) -> Worklist:
        """Its worklist, opened by this process."""
        return Worklist(f"sqlite:///{self.home / 'worklist.sqlite'}")

    def triage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a ``triage`` command in its settings."""
        return subprocess.run(
            [sys.executable, "-m", "triage", *arguments],
            env=self.environment, cwd=self.home.parent,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture
def new_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Makes services that are not started yet, and stops them at the end."""
    made: list[Service] = []

    def new(**settings: str) -> Service:
        service = Service(tmp_path / f"home-{len(made)}", free_port(), settings)
        made.append(service)
        return service

    yield new
    for service in made:
        if service.process is not None:
            service.process.kill()
            service.process.wait()


@pytest.fixture
def service(new_service: Callable[..., Service]) -> Iterator[Service]:
    """A running service."""
    running = new_service()
    running.start()
    yield running
    running.stop()


class Postgres:
    """A PostgreSQL server of its own, on loopback and where else it is told to listen."""

    def __init__(self, folder: str, *addresses: str) -> None:
        self._addresses = ("127.0.0.1", *addresses)
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        assert programs, "PostgreSQL is not installed: `make test` installs it"
        self._programs, self._folder, self.port = programs[-1], folder, free_port()
        # The server refuses to run as root, so that it gets the user that Debian made for it.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            self._as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "triage")
        if addresses:
            with Path(f"{folder}/data/pg_hba.conf").open("a", encoding="utf-8") as admitted:
                admitted.write("host all all samenet trust\n")

    @property
    def url(self) -> str:
        """Its database."""
        return f"postgresql://triage@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, after a crash with recovery."""
        listen = ",".join(self._addresses)
        options = f"-p {self.port} -k {self._folder} -c listen_addresses={listen} -c fsync=off"
        self._run("pg_ctl", "-w", "-l", f"{self._folder}/log", "-o", options, "start")

    def stop(self) -> None:
        """End it as a crash does."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        data = f"{self._folder}/data"
        command = [*self._as_user, str(self._programs / program), "-D", data, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder)


@contextmanager
def postgres_server(*addresses: str) -> Iterator[Postgres]:
    """A running server."""
    # Not below pytest's own folder, which another test run closes to other users.
    with tempfile.TemporaryDirectory(prefix="triage-postgres-") as folder:
        server = Postgres(folder, *addresses)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server for this test run."""
    with postgres_server() as server:
        yield server.url


def emptied(url: str) -> str:
    """A PostgreSQL database, in which nothing is left and nobody is connected."""
    with psycopg.connect(url, autocommit=True) as connection:
        # A new schema instead of a new database: those are made and removed file by file.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once in SQLite and once in PostgreSQL.

    Neither waits for a disk: what survives losing power has tests of its own in tests/faults.
    """
    if request.param == "postgresql":
        yield emptied(request.getfixturevalue("postgres"))
    elif MEMORY.is_dir():
        with tempfile.TemporaryDirectory(prefix="triage-sqlite-", dir=MEMORY) as folder:
            yield f"sqlite:///{folder}/worklist.sqlite"
    else:
        yield f"sqlite:///{tmp_path / 'worklist.sqlite'}"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Bring an empty database to the newest schema, as a copy of one that was migrated."""
    original = tmp_path_factory.mktemp("migrated") / "worklist.sqlite"

    def migrate_all(url: str) -> None:
        engine = open_engine(url, create=True)
        migrate(engine)
        engine.dispose()

    def copy(url: str) -> None:
        if url.startswith("sqlite"):
            if not original.exists():
                migrate_all(f"sqlite:///{original}")
            shutil.copyfile(original, url.removeprefix("sqlite:///"))
            return
        server, _, name = url.rpartition("/")
        with psycopg.connect(f"{server}/template1", autocommit=True) as connection:
            there = "SELECT 1 FROM pg_database WHERE datname = 'migrated'"
            if connection.execute(there).fetchone() is None:
                connection.execute("CREATE DATABASE migrated")
                migrate_all(f"{server}/migrated")
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            # Faster than the log, and the only way before PostgreSQL 15.
            by = "STRATEGY file_copy" if connection.info.server_version >= 150_000 else ""
            connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated {by}")

    return copy


@pytest.fixture
def worklist(database_url: str, migrated: Callable[[str], None]) -> Iterator[Worklist]:
    """An empty worklist, once in SQLite and once in PostgreSQL."""
    migrated(database_url)
    opened = Worklist(database_url)
    yield opened
    opened.close()
