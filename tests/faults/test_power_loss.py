"""Power is lost between write, fsync, rename, commit and answer, at each of them."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Service, wait_for
from tests.faults.consoles import Image, images, send
from tests.faults.invariants import Ledger
from tests.faults.power import POLICIES, SERVE, Disk, Keep, Operation, Recording, any_of, everything
from tests.faults.tally import FULL, Tally, amount
from triage.app import prepare
from triage.assessment import Assessor
from triage.config import Config
from triage.network import Network
from triage.registry import Registry
from triage.spool import Spool
from triage.worker import Worker
from triage.worklist import Worklist


@pytest.fixture
def recorded(
    new_service: Callable[..., Service], tally: Tally
) -> tuple[Service, list[Image], list[Operation]]:
    """A service from its very first start on, that received some images, and ended."""
    service = new_service()
    several = images(amount(3, 24, "FAULTS_POWER"))
    roles = ["receive,score"] if FULL else ["receive"]
    recording = Recording(
        [*SERVE, "--roles", *roles],
        service.environment, service.home, service.home.with_suffix(".trace"),
    )  # fmt: skip
    try:
        wait_for(service.answers, 120)
        # Consoles that send alone, together, again, and with a UID used twice.
        ledger = Ledger()
        for part in (several[:-2], several[-2:], several[:1]):
            assert send(service.port, part, ledger) == len(part)
        done = recording.stop()
    finally:
        recording.kill()
    tally.holds(ledger.check(url(service.home), service.home / "spool", settled=False))
    return service, several, done


def url(home: Path) -> str:
    """Its worklist."""
    return f"sqlite:///{home / 'worklist.sqlite'}"


def below(home: Path) -> dict[str, str]:
    """What is in a home, without what the model leaves out."""
    return {
        str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in home.rglob("*")
        if file.is_file() and "models" not in file.relative_to(home).parts[:1]
        and not file.name.endswith("-shm")
    }  # fmt: skip


def crash_points(done: list[Operation]) -> list[int]:
    """After how many operations power is lost: around each that orders others; in full, all."""
    if FULL:
        return list(range(1, len(done) + 1))
    ordering = {"fsync", "rename", "mkdir", "answer", "unlink"}
    points: set[int] = set()
    for place, operation in enumerate(done):
        if operation.kind in ordering:
            points |= {place, place + 1}
    return sorted(points - {0})


def test_no_power_loss_between_any_two_steps_breaks_a_promise(
    recorded: tuple[Service, list[Image], list[Operation]], tmp_path: Path, tally: Tally
) -> None:
    """Every state that the disk could be in is woken up in, and held to what had been told."""
    service, several, done = recorded
    kinds = {operation.kind for operation in done}
    assert {"write", "fsync", "rename", "mkdir", "answer", "create"} <= kinds
    whole = Disk(service.home)
    for operation in done:
        whole.do(operation)
    whole.write(tmp_path / "end", everything)
    assert below(tmp_path / "end" / service.home.name) == below(service.home)

    data = {image.uid: image.data for image in several}
    policies: dict[str, Keep] = dict(POLICIES)
    for seed in range(amount(1, 4)):
        policies[f"chance {seed}"] = any_of(seed)
    disk, place, states = Disk(service.home), 0, set()
    ledger = Ledger()
    for image in several:
        ledger.offers(image.uid, image.data)
    for point in crash_points(done):
        for operation in done[place:point]:
            disk.do(operation)
            if operation.kind == "answer":
                ledger.success(operation.other, data[operation.other])
        place = point
        for name, keep in policies.items():
            folder = tmp_path / "woken"
            disk.write(folder, keep)
            home = folder / service.home.name
            state = repr((sorted(below(home).items()), sorted(ledger.acknowledged)))
            if state not in states:
                states.add(state)
                told = f"after {done[point - 1]}, with {name} of what was not certain"
                wake_up(service, home, ledger, tally, told, settle=len(states) % 40 == 0)
            shutil.rmtree(folder)
    assert len(ledger.acknowledged) == len(several)
    tally.fault(
        "power losses at an enumerated point, with distinct states of the disk", len(states)
    )


def wake_up(
    service: Service, home: Path, ledger: Ledger, tally: Tally, told: str, *, settle: bool
) -> None:
    """Start as ``triage serve`` does, and look; now and then score what waits, too."""
    home.mkdir(exist_ok=True)
    spool = Spool(home / "spool")
    # Model versions are no part of the model: what is installed is entered again.
    (home / "models").symlink_to(service.home / "models")
    prepare(Config(home=home))
    spool.prepare()
    worklist = Worklist(url(home))
    try:
        if settle:
            model = Registry(service.home / "models").champion()
            champion = Assessor(Network(model), model.population, warn_outside=True)
            worker = Worker("w", worklist, spool, lambda: champion)
            worklist.abandon("w")
            while worker.step():
                pass
    finally:
        worklist.close()
    findings = ledger.check(url(home), home / "spool", settled=settle)
    assert findings.broken == [], told
    tally.holds(findings, again=True)
