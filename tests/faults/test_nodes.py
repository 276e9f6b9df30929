"""A cluster of nodes on one PostgreSQL and one S3 server, each killed in turn, some cut off.

Each node is a process with a home of its own. The long form is ``make faults``; ``NODES_IMAGES``
says how many images.
"""

import hashlib
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.conftest import Service, free_port, postgres_server
from tests.faults.consoles import Queue, images, shared, until
from tests.faults.invariants import KINDS, Destination, Ledger
from tests.faults.services import MAY_MOUNT, ask, with_destinations
from tests.faults.tally import FULL, Tally, amount
from tests.peers import PacsPeer
from tests.s3 import S3, s3_server
from triage.store import open_store

IMAGES = amount(18, 5_000, "NODES_IMAGES")
NODES = {"receive": 3, "score": 3, "deliver": 2} if FULL else dict.fromkeys(
    ("receive", "score", "deliver"), 2
)  # fmt: skip
CUTS = {3: (30.0, "heals"), 5: (30.0, "reset")} if FULL else {3: (3.0, "reset")}
"""After so many kills the line is cut for so many seconds, and comes back so."""

PATIENCE = 300.0 + 2 * IMAGES
"""Seconds; of a machine that does something else, too."""

_RESET = struct.pack("ii", 1, 0)


class Line:
    """A TCP line between nodes and the database, that can be cut without a word."""

    def __init__(self, port: int) -> None:
        self._to, self.port, self._open, self._resets = port, free_port(), True, 0
        self._up = threading.Event()
        self._up.set()
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._listening.settimeout(0.2)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self, seconds: float, back: str) -> None:
        """Carry nothing for a while; then what was on its way, or nothing of it ever."""
        self._up.clear()
        time.sleep(seconds)
        self._resets += back == "reset"
        self._up.set()

    def close(self) -> None:
        """Carry nothing any more."""
        self._open = False
        self._up.set()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with self._listening:
            while self._open:
                with suppress(TimeoutError):
                    near, _ = self._listening.accept()
                    self._threads.append(threading.Thread(target=self._carry, args=[near]))
                    self._threads[-1].start()

    def _carry(self, near: socket.socket) -> None:
        self._up.wait()
        since = self._resets
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            ends = {near: far, far: near}
            while self._open:
                ready, _, _ = select.select(list(ends), [], [], 0.2)
                self._up.wait()
                if self._resets > since:
                    for end in ends:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                for one in ready:
                    data = one.recv(65_536)
                    if not data:
                        return
                    ends[one].sendall(data)


@dataclass
class Node:
    """A machine with one role."""

    role: str
    service: Service

    def start(self, *, wait: bool = False) -> None:
        """Start it, and wait for its C-ECHO if asked to."""
        self.service.start("--roles", self.role, wait=wait)

    def kill(self) -> None:
        """``kill -9`` all that it is."""
        process, self.service.process = self.service.process, None
        assert process is not None
        assert process.poll() is None, self.service.log.read_text()[-2_000:]
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End it as the system does, once it is so far that it can be told to."""
        process = self.service.process
        if process is not None:
            status = Path(f"/proc/{process.pid}/status")
            caught = re.compile(r"^SigCgt:\s*(\w+)$", re.MULTILINE)

            def listens() -> bool:
                [mask] = caught.findall(status.read_text())
                return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)

            assert until(listens, PATIENCE)
            self.service.stop()

    def busy(self) -> bool:
        """Whether it has something in hand, as far as the database knows."""
        table = {"score": "items", "deliver": "deliveries"}.get(self.role)
        if table is None:
            return True  # a receiver's consoles send all the time
        locks = (self.service.home / "run").stat()
        mine = f"%@{locks.st_dev:x}-{locks.st_ino:x}"
        states = {"items": "RECEIVED", "deliveries": "PENDING"}[table]
        return bool(
            ask(
                self.service,
                f"SELECT count(*) FROM {table} "
                f"WHERE claimed_by LIKE '{mine}' AND state = '{states}'",
            )
        )


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server, whom this process reaches, too."""
    with s3_server() as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        yield server


def mirrored(s3: S3, folder: Path) -> Path:
    """What the bucket has of instances, as files."""
    mirror = folder / "mirror"
    store = open_store(s3.url, folder / "reader")
    for place in ("instances", "quarantine"):
        for name in store.names(place):
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            with store.open(name) as file:
                (mirror / name).write_bytes(file.read())
    return mirror


def test_nothing_is_lost_and_nothing_done_twice_whichever_node_dies_or_is_cut_off(
    s3: S3, new_service: Callable[..., Service], tmp_path: Path, tally: Tally
) -> None:
    """The queue drains, and the PACS has each result once."""
    with (
        postgres_server() as database,
        PacsPeer(lambda data: hashlib.sha256(data).digest()) as pacs,  # 10,000 are too large
        closing(Line(database.port)) as line,
    ):
        pacs.hold = 0.05 if FULL else 0.3  # so that deliverers have something in hand
        behind = database.url.replace(f":{database.port}/", f":{line.port}/")
        nodes = [
            Node(
                role,
                new_service(
                    TRIAGE_SPOOL_URL=s3.url,
                    # The last of each role is at the end of the line that is cut.
                    TRIAGE_DATABASE_URL=behind if number == count - 1 else database.url,
                    **with_destinations(pacs),
                ),
            )
            for role, count in NODES.items()
            for number in range(count)
        ]
        # All at once, on a database and a bucket where nothing is.
        for node in nodes:
            node.start()
        receivers = [node for node in nodes if node.role == "receive"]
        assert until(lambda: all(node.service.answers() for node in receivers), PATIENCE)
        watch = nodes[0].service
        ledger, several = Ledger(), images(IMAGES)
        queues = [
            Queue(node.service.port, part, ledger)
            for node, part in zip(receivers, shared(several, len(receivers)), strict=True)
        ]
        # One of each role, then the second of each, and so on: their work differs.
        by_role = [[node for node in nodes if node.role == role] for role in NODES]
        in_turn = [node for each in zip_longest(*by_role) for node in each if node is not None]
        in_turn = in_turn if FULL else in_turn[: len(NODES)]
        for number, node in enumerate(in_turn):
            came = f"SELECT count(*) >= {number * IMAGES // (2 * len(in_turn))} FROM items"
            assert until(partial(ask, watch, came), PATIENCE)
            if until(node.busy, 60):
                tally.fault(f"kill -9 of a node with `{node.role}` at work")
            else:
                tally.fault(f"kill -9 of a node with `{node.role}`")
            node.kill()
            # The last of eight stays off: what it had is taken over when its lease has ended.
            if not FULL or node is not in_turn[-1]:
                node.start()
            if number + 1 in CUTS:
                line.cut(*CUTS[number + 1])
                tally.fault("line between three nodes and the database cut")
        pacs.hold = 0.0
        for queue in queues:
            queue.finish(PATIENCE)
        left = (
            "SELECT (SELECT count(*) FROM items WHERE state = 'RECEIVED') + "
            "(SELECT count(*) FROM deliveries WHERE state = 'PENDING')"
        )
        assert until(lambda: not ask(watch, left), PATIENCE), ask(watch, left)
        for node in nodes:
            node.stop()
        findings = ledger.check(
            database.url,
            mirrored(s3, tmp_path),
            destinations=[Destination("pacs-0", KINDS["dicom"], pacs.taken)],
        )
        for node in receivers:
            findings.traces += map(str, (node.service.home / "spool" / "incoming").iterdir())
        tally.holds(findings)
        assert findings.images == IMAGES
        assert ask(watch, "SELECT count(*) FROM scores") == IMAGES


HERE, THERE = "10.231.77.1", "10.231.77.2"
"""Addresses of the two ends of a line that only this test has."""


@pytest.fixture
def apart() -> Iterator[str]:
    """A network namespace with a line of its own to this one, whose end here is `apart0`."""
    if not (FULL and MAY_MOUNT):
        pytest.skip("a network namespace needs root; `make faults`")
    name = "triage-apart"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", "apart0", "type", "veth", "peer", "name", "apart1", "netns", name)
        ip("address", "add", f"{HERE}/30", "dev", "apart0")
        ip("link", "set", "apart0", "up")
        for command in (
            ["address", "add", f"{THERE}/30", "dev", "apart1"],
            ["link", "set", "apart1", "up"],
            ["link", "set", "lo", "up"],
        ):
            ip("-n", name, *command)
        yield name
    finally:
        ip("netns", "delete", name)


def test_a_line_that_drops_everything_holds_up_nobody(
    apart: str, new_service: Callable[..., Service], tmp_path: Path, tally: Tally
) -> None:
    """The node at its end notices, as does PostgreSQL; the others go on, and then it does."""
    with postgres_server(HERE) as database:
        settings = {
            "TRIAGE_SPOOL_URL": (tmp_path / "shared").as_uri(),
            "TRIAGE_DATABASE_URL": database.url,
        }
        receiver = Node("receive", new_service(**settings))
        receiver.start(wait=True)
        far = new_service(
            **settings | {"TRIAGE_DATABASE_URL": database.url.replace("127.0.0.1", HERE)}
        )
        with far.log.open("ab") as log:
            serve = [sys.executable, "-m", "triage", "serve", "--roles", "score"]
            far.process = subprocess.Popen(
                ["ip", "netns", "exec", apart, *serve],
                env=far.environment,
                cwd=tmp_path,
                stderr=log,
            )
        ledger = Ledger()

        def scored(count: int) -> bool:
            return ask(receiver.service, "SELECT count(*) FROM scores") == count

        Queue(receiver.service.port, images(3), ledger).finish(PATIENCE)
        assert until(partial(scored, 3), PATIENCE)
        subprocess.run(["ip", "link", "set", "apart0", "down"], check=True)
        tally.fault("a line that drops everything")
        near = Node("score", new_service(**settings))
        near.start()
        Queue(receiver.service.port, images(3), ledger).finish(PATIENCE)
        assert until(partial(scored, 6), PATIENCE)
        # Left alone, Linux would try for a quarter of an hour here, and wait two hours there.
        assert until(lambda: "worklist_unavailable" in far.log.read_text(), 120)
        left = f"SELECT count(*) FROM pg_stat_activity WHERE client_addr = '{THERE}'"
        assert until(lambda: not ask(receiver.service, left), 120)
        subprocess.run(["ip", "link", "set", "apart0", "up"], check=True)
        near.service.stop()
        Queue(receiver.service.port, images(3), ledger).finish(PATIENCE)
        assert until(partial(scored, 9), PATIENCE)
        far.stop()
        receiver.service.stop()
        tally.holds(ledger.check(database.url, tmp_path / "shared"))
