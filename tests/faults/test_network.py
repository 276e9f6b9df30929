"""The network and what is at its other end: cut, stalled, flooded."""

import contextlib
import itertools
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.certificates import Authority
from tests.conftest import Service, free_port
from tests.faults.consoles import SUCCESS, Image, Queue, images, send
from tests.faults.invariants import Ledger
from tests.faults.tally import Tally, amount
from tests.integration.test_receiver import Console

LIMIT = 8


@dataclass
class Site:
    """A receiver with TLS beside, what consoles were told, and how to connect with TLS."""

    service: Service
    ledger: Ledger
    tls_port: int
    trusting: ssl.SSLContext

    def serves(self) -> None:
        """A console that behaves gets its Success, with TLS and without."""
        for image in images(1):
            Queue(self.service.port, [image], self.ledger).finish(180)
        with socket.create_connection(("127.0.0.1", self.tls_port), 60) as plain:
            self.trusting.wrap_socket(plain, server_hostname="localhost").close()

    def check(self, tally: Tally) -> None:
        """Hold the receiver to its promises."""
        self.serves()
        home = self.service.home
        url = f"sqlite:///{home / 'worklist.sqlite'}"
        tally.holds(self.ledger.check(url, home / "spool", settled=False, running=False))
        self.ledger.acknowledged.clear()  # each image is counted once


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One receiver for all of them: what one leaves behind meets the next."""
    folder = tmp_path_factory.mktemp("site")
    hospital = Authority(folder, "hospital")
    ours, port = hospital.issue("ours"), free_port()
    service = Service(
        folder / "home",
        free_port(),
        {
            "TRIAGE_IDLE_SECONDS": "2",
            "TRIAGE_MAX_ASSOCIATIONS": str(LIMIT),
            "TRIAGE_TLS_PORT": str(port),
            "TRIAGE_TLS_CERTIFICATE": str(ours.certificate),
            "TRIAGE_TLS_KEY": str(ours.key),
        },
    )
    service.start("--roles", "receive")
    trusting = ssl.create_default_context(cafile=str(hospital.certificate))
    try:
        yield Site(service, Ledger(), port, trusting)
        service.stop()
    finally:
        if service.process is not None:
            service.process.kill()
            service.process.wait()


def _request(console: Console, image: Image) -> None:
    console.command(image.uid)


def _half_command(console: Console, image: Image) -> None:
    console.half_a_pdu()


def _first_fragment(console: Console, image: Image) -> None:
    console.command(image.uid)
    console.fragment(image.data[:1_000], last=False)


def _half_fragment(console: Console, image: Image) -> None:
    _first_fragment(console, image)
    console.half_a_pdu()


def _all_but_the_end(console: Console, image: Image) -> None:
    console.command(image.uid)
    console.fragment(image.data, last=False)


def _whole(console: Console, image: Image) -> None:
    console.command(image.uid)
    console.fragment(image.data, last=True)


def _release(console: Console, image: Image) -> None:
    console._send(0x05, bytes(4))


STAGES: dict[str, Callable[[Console, Image], None]] = {
    "A-ASSOCIATE-AC": lambda console, image: None,
    "half a P-DATA-TF": _half_command,
    "the command": _request,
    "the first fragment": _first_fragment,
    "half a fragment": _half_fragment,
    "all but the last fragment": _all_but_the_end,
    "the data set, before the answer": _whole,
    "A-RELEASE-RQ": _release,
}
"""What a console has sent when its association is cut."""

ENDS: dict[str, Callable[[Console], None]] = {
    "a close": lambda console: console.socket.close(),
    "a reset": lambda console: _reset(console.socket),
    "an A-ABORT": lambda console: console._send(0x07, bytes(4)),
    "a half close": lambda console: console.socket.shutdown(socket.SHUT_WR),
}


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_cut_at_any_pdu_leaves_no_trace(site: Site, tally: Tally) -> None:
    """Every stage, every way to end; and within a request for an association at every length."""
    for _ in range(amount(1, 50)):
        several = iter(images(len(STAGES) * len(ENDS)))
        for stage, act in STAGES.items():
            for end in ENDS.values():
                image = next(several)
                if act is _whole:  # it may be kept though its answer found nobody
                    site.ledger.offers(image.uid, image.data)
                with contextlib.suppress(OSError):
                    console = Console(site.service.port)
                    act(console, image)
                    end(console)
                    console.socket.close()
                tally.fault(f"cuts after {stage}")
    with Console(site.service.port) as console:
        request = console.request
    for length in range(0, len(request), amount(24, 1)):
        with socket.create_connection(("127.0.0.1", site.service.port)) as connection:
            connection.sendall(request[:length])
        tally.fault("cuts in A-ASSOCIATE-RQ")
    site.check(tally)


def test_stalled_senders_hold_nobody_up(site: Site, tally: Tally) -> None:
    """While they hold every place but one, the last is enough; then all places come back."""
    for _ in range(amount(1, 20)):
        stalled: list[Console] = []
        several = iter(images(LIMIT))
        for act in list(STAGES.values())[: LIMIT - 1]:
            if act is not _whole:
                stalled.append(Console(site.service.port))
                act(stalled[-1], next(several))
        tally.fault("stalled senders", len(stalled))
        site.serves()
        for console in stalled:  # each is aborted, or released, and cut
            with contextlib.suppress(OSError):
                while console.socket.recv(4_096):
                    pass
            console.socket.close()
    site.check(tally)


def test_bare_connections_by_the_hundred_hold_nobody_up(site: Site, tally: Tally) -> None:
    """200 in a second, some left open, some with a byte, some with a reset."""
    chance, open_ones = random.Random(1), []
    for _ in range(amount(1, 60)):
        began = time.monotonic()
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", site.service.port), timeout=60)
            match number % 4:
                case 0:
                    open_ones.append(connection)
                case 1:
                    _reset(connection)
                case 2:
                    with contextlib.suppress(OSError):
                        connection.sendall(bytes([chance.randrange(256)]))
                    connection.close()
                case _:
                    connection.close()
        tally.fault("bare connections", 200)
        time.sleep(max(0.0, began + 1.0 - time.monotonic()))
        while len(open_ones) > 100:
            open_ones.pop(0).close()
    site.serves()
    for connection in open_ones:
        connection.close()
    site.check(tally)


def test_associations_beyond_the_limit_wait_and_lose_nothing(site: Site, tally: Tally) -> None:
    """All at once against the limit: never more inside, and each comes in in the end."""
    count = amount(40, 1_000)
    several = images(count)
    moves: list[tuple[float, int]] = []

    def one(image: Image) -> None:
        while image.uid not in site.ledger.acknowledged:
            try:
                with Console(site.service.port) as console:
                    if console.kind != 0x02:
                        tally.fault("associations rejected at the limit")
                        time.sleep(random.uniform(0.05, 0.3))
                        continue
                    came = time.monotonic()
                    site.ledger.offers(image.uid, image.data)
                    if console.store(image.data, image.uid) == SUCCESS:
                        site.ledger.success(image.uid, image.data)
                        # From here to there it was inside, whatever became of others meanwhile.
                        moves.extend([(came, 1), (time.monotonic(), -1)])
            except OSError:
                time.sleep(0.1)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, several))
    assert max(itertools.accumulate(step for _, step in sorted(moves))) <= LIMIT
    assert len(site.ledger.acknowledged) >= count
    site.check(tally)


def test_stalls_in_tls_hold_nobody_up(site: Site, tally: Tally) -> None:
    """Nothing, half a ClientHello, noise, half a handshake, and a byte after a whole one."""
    hello = ssl.MemoryBIO()
    client = site.trusting.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    first = hello.read()
    openings = [b"", first[:1], first[: len(first) // 2], b"\x16\x03\x01" + bytes(200), first]
    held: list[socket.socket] = []
    for number in range(amount(25, 500)):
        connection = socket.create_connection(("127.0.0.1", site.tls_port), timeout=60)
        if number % 6 < 5:
            connection.sendall(openings[number % 6])
        else:
            with contextlib.suppress(OSError):  # its turn comes late where 500 are before it
                connection = site.trusting.wrap_socket(connection, server_hostname="localhost")
                connection.sendall(b"\x01")
        held.append(connection)
    tally.fault("stalls in TLS, in the handshake and after it", len(held))
    site.serves()
    for connection in held:
        connection.close()
    site.check(tally)


def test_the_same_image_from_everywhere_at_once_is_kept_once(site: Site, tally: Tally) -> None:
    """A UID sent by all consoles together has one row, whoever gets Success."""
    for image in images(amount(2, 100)):
        with ThreadPoolExecutor(LIMIT) as pool:
            list(
                pool.map(
                    lambda _, one=image: send(site.service.port, [one], site.ledger), range(LIMIT)
                )
            )
        tally.fault("races for one SOP Instance UID")
    site.check(tally)
