"""``kill -9`` of each process, and of all at once, at moments that nobody chose."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Service
from tests.faults.consoles import Queue, images, shared, until
from tests.faults.invariants import KINDS, Destination, Ledger
from tests.faults.services import hold, with_destinations
from tests.faults.tally import Tally, amount
from tests.peers import PacsPeer

ROLES = ("receive", "score", "deliver")


def kill_everything(service: Service) -> None:
    """As the machine's end would: no part sees another end first."""
    assert service.process is not None
    listed = subprocess.run(
        ["ps", "--ppid", str(service.process.pid), "-o", "pid="],
        capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    for pid in [service.process.pid, *map(int, listed)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    service.process.wait()
    service.process = None


def kill_one(service: Service, role: str) -> None:
    """One part, which the supervisor starts again in its own time."""

    def killed() -> bool:
        try:
            os.kill(service.part(role), signal.SIGKILL)
        except (LookupError, ProcessLookupError):  # it is about to start
            return False
        return True

    assert until(killed, 120)


@pytest.fixture
def pacs() -> Iterator[PacsPeer]:
    """Where results go."""
    with PacsPeer() as peer:
        yield peer


def test_kills_at_random_moments_break_no_promise(
    new_service: Callable[..., Service], pacs: PacsPeer, tally: Tally
) -> None:
    """Three consoles send on while processes die; in the end all is there, once."""
    rounds, count = amount(4, 200, "FAULTS_KILLS"), amount(8, 2_000, "FAULTS_IMAGES")
    chance = random.Random(20_261_123)
    service = new_service(**with_destinations(pacs))
    roles = ("--roles", ",".join(ROLES))
    service.start(*roles)
    ledger = Ledger()
    # First the PACS answers later than it is waited for: of two results it gets one again.
    pacs.hold = 3.0
    Queue(service.port, images(1), ledger).finish(300)
    assert until(lambda: pacs.taken, 300)
    tally.fault("an answer of the PACS that came too late")
    pacs.hold = 0.0
    assert until(lambda: sum(map(len, list(pacs.taken.values()))) > 2, 300)
    several = images(count)
    per_round = -(-count // rounds)
    for number in range(rounds):
        batch = several[number * per_round : (number + 1) * per_round]
        queues = [Queue(service.port, part, ledger) for part in shared(batch, 3)]
        time.sleep(chance.uniform(0.0, 0.6))
        # Everything often: a fresh supervisor has no growing pause.
        victim = (*ROLES, "all")[number] if number < 4 else chance.choice([*ROLES, "all", "all"])
        if victim == "all":
            kill_everything(service)
            service.start(*roles, wait=False)
            tally.fault("kill -9 of all processes at once")
        else:
            kill_one(service, victim)
            tally.fault(f"kill -9 of the part `{victim}`")
        for queue in queues:
            queue.finish(300)
    there = Destination("pacs-0", KINDS["dicom"], pacs.taken)
    hold(service, ledger, tally, [there], 240 + 10 * count)
    service.stop()
