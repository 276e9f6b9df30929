"""Associations without end: memory and file handles do not grow, by a slope and its interval."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import Service
from tests.faults.consoles import images, send
from tests.faults.invariants import Ledger
from tests.faults.tally import FULL, Tally, amount
from tests.integration.test_receiver import Console

SAMPLES = 40


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Theil and Sen's slope, and the lower end of its 95% interval (Sen 1968, section 5)."""
    pairs = sorted(
        (late[1] - early[1]) / (late[0] - early[0])
        for number, early in enumerate(points)
        for late in points[number + 1 :]
    )
    count = len(points)
    width = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return statistics.median(pairs), pairs[max(0, int((len(pairs) - width) / 2))]


@pytest.mark.parametrize(("grows", "expected"), [(lambda n: 0.0, False), (lambda n: 3.0 * n, True)])
def test_the_slope_sees_a_leak_in_noise_and_none_where_there_is_none(
    grows: Callable[[int], float], expected: bool
) -> None:
    """Noise of fifty times a step's growth."""
    noise = [((n * 7_919) % 101 - 50) * 1.5 for n in range(SAMPLES)]
    points = [(float(n), grows(n) + noise[n]) for n in range(SAMPLES)]
    assert (slope(points)[1] > 1.0) is expected


def test_memory_and_file_handles_of_the_receiver_are_flat(
    new_service: Callable[..., Service], tally: Tally
) -> None:
    """Each association is one console's whole visit; the first fifth only warms up."""
    count = amount(400, 100_000, "FAULTS_ASSOCIATIONS")
    service, ledger = new_service(), Ledger()
    service.start("--roles", "receive")
    assert service.process is not None
    process = Path(f"/proc/{service.process.pid}")
    several = iter(images(count // 10 + 1))
    memory: list[tuple[float, float]] = []
    handles: list[tuple[float, float]] = []
    step = count * 4 // 5 // SAMPLES
    for number in range(count):
        if number % 10:
            with Console(service.port) as console:
                assert console.kind == 0x02
        else:
            assert send(service.port, [next(several)], ledger) == 1
        if number >= count // 5 and number % step == 0:
            status = (process / "status").read_text()
            kilobytes = status.partition("VmRSS:")[2].split()[0]
            memory.append((float(number), 1_024.0 * int(kilobytes)))
            handles.append((float(number), float(len(list((process / "fd").iterdir())))))
    tally.fault("associations of the soak", count)
    # Handles first: what leaks them leaks memory, too.
    assert slope(handles)[1] < (0.0005 if FULL else 0.02), "handles for each association"
    # An association that is leaked takes 570,000 bytes. The short form sees no less than a part of
    # that: it has the garbage collector's saw teeth of 12 MB on it, whatever their length here.
    assert slope(memory)[1] < (100 if FULL else 60_000), "bytes for each association"
    url = f"sqlite:///{service.home / 'worklist.sqlite'}"
    tally.holds(ledger.check(url, service.home / "spool", settled=False))
    service.stop()
