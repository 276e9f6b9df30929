"""Consoles of the fault suite: cheap images, sent over plain sockets, entered in the ledger."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pydicom.uid import generate_uid

from tests.builders import chest_radiograph, encoded
from tests.faults.invariants import Ledger
from tests.integration.test_receiver import Console, data_of, with_uid

SUCCESS = 0x0000
_ROOT = "1.2.826.0.1.3680043.8.498.7"


@dataclass(frozen=True)
class Image:
    """A data set as it goes over the wire."""

    uid: str
    data: bytes


def images(count: int, rows: int = 140) -> list[Image]:
    """So many images that are scored, and differ in their UID, so in their digest."""
    template = data_of(encoded(chest_radiograph(shape=(rows, 116), SOPInstanceUID="1.2.3.4")))
    # Each call has a branch of its own, so that no two calls give the same UID.
    branch = generate_uid(prefix=f"{_ROOT}.")[:50].rstrip(".")
    return [
        Image(uid, with_uid(template, "SOPInstanceUID", uid.encode()))
        for uid in (f"{branch}.{number}" for number in range(count))
    ]


def send(port: int, several: Sequence[Image], ledger: Ledger) -> int:
    """Send over one association, until it breaks; how many got Success."""
    taken = 0
    try:
        with Console(port) as console:
            if console.kind != 0x02:
                return 0
            for image in several:
                ledger.offers(image.uid, image.data)
                status = console.store(image.data, image.uid)
                if status is None or status == -1:
                    break
                if status == SUCCESS:
                    ledger.success(image.uid, image.data)
                    taken += 1
    except (OSError, EOFError, AssertionError):
        pass
    return taken


class Queue:
    """A console that sends each image until it gets Success, as real ones do."""

    def __init__(self, port: int, several: Sequence[Image], ledger: Ledger, at_once: int = 5):
        self._port, self._left, self._ledger = port, list(several), ledger
        self._at_once, self._stop = at_once, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._left and not self._stop.is_set():
            batch = self._left[: self._at_once]
            send(self._port, batch, self._ledger)
            before = len(self._left)
            self._left = [
                image for image in self._left if image.uid not in self._ledger.acknowledged
            ]
            if len(self._left) == before:
                time.sleep(0.1)

    @property
    def left(self) -> int:
        """So many are not acknowledged yet."""
        return len(self._left)

    def finish(self, seconds: float) -> None:
        """Wait until all are acknowledged."""
        self._thread.join(seconds)
        self._stop.set()
        assert not self._left, f"{len(self._left)} images got no Success in {seconds:g} s"


def shared(several: Sequence[Image], among: int) -> Iterator[list[Image]]:
    """Several images dealt to some consoles."""
    for number in range(among):
        yield list(itertools.islice(several, number, None, among))


def until(what: Callable[[], object], seconds: float) -> bool:
    """Whether something became true in time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
