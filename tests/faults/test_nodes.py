"""A cluster of nodes on one PostgreSQL and one S3 server, each killed in turn, one cut off.

``NODES_IMAGES`` and ``NODES_CUT_SECONDS`` make it longer.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Service, free_port, postgres_server, wait_for
from tests.faults.consoles import Queue, images
from tests.faults.invariants import Ledger
from tests.faults.services import ask
from tests.s3 import S3, s3_server
from triage.store import open_store

IMAGES = int(os.environ.get("NODES_IMAGES", "60"))
CUT_SECONDS = float(os.environ.get("NODES_CUT_SECONDS", "5"))


class Line:
    """A TCP line between a node and the database, that can be cut without a word."""

    def __init__(self, port: int) -> None:
        self._to, self.port = port, free_port()
        self._up = threading.Event()
        self._up.set()
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """Carry nothing for a while."""
        self._up.clear()
        time.sleep(seconds)
        self._up.set()

    def close(self) -> None:
        """Take nobody any more."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=[one, other], daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                self._up.wait()
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A server, whom this process reaches, too."""
    with s3_server() as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        yield server


def test_nothing_is_lost_and_nothing_scored_twice_whichever_node_dies(
    s3: S3, new_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Three receivers and three workers as nodes of their own; the queue drains."""
    with postgres_server() as database:
        line = Line(database.port)
        shared = {"TRIAGE_SPOOL_URL": s3.url, "TRIAGE_DATABASE_URL": database.url}
        behind = database.url.replace(str(database.port), str(line.port))
        receivers = [new_service(**shared) for _ in range(3)]
        workers = [
            new_service(**shared),
            new_service(**shared),
            new_service(**shared | {"TRIAGE_DATABASE_URL": behind}),
        ]
        for node in receivers:
            node.start("--roles", "receive")
        for node in workers:
            node.start("--roles", "score", wait=False)
        ledger, several = Ledger(), images(IMAGES)
        queues = [
            Queue(node.port, several[number::3], ledger) for number, node in enumerate(receivers)
        ]
        cutting = threading.Thread(target=line.cut, args=[CUT_SECONDS])
        cutting.start()
        for number in range(3):
            for role, nodes in (("receive", receivers), ("score", workers)):
                node = nodes[number]
                assert node.process is not None
                node.process.kill()
                node.process.wait()
                node.start("--roles", role, wait=role == "receive")
        cutting.join()
        wait_for(lambda: len(ledger.acknowledged) == IMAGES, 120 + IMAGES)
        waiting = "SELECT count(*) FROM items WHERE state = 'RECEIVED'"
        wait_for(lambda: ask(receivers[0], waiting) == 0, 180 + IMAGES)
        mirror = tmp_path / "mirror"
        store = open_store(s3.url, tmp_path / "node")
        for name in store.names("instances"):
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            with store.open(name) as file:
                (mirror / name).write_bytes(file.read())
        findings = ledger.check(database.url, mirror)
        assert ask(receivers[0], "SELECT count(*) FROM scores") == IMAGES
        wrong = findings.lost + findings.duplicated + findings.traces + findings.unsettled
        assert wrong == []
        del queues
        for node in (*receivers, *workers):
            node.stop()
        line.close()
