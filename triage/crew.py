"""Many workers that assess images: processes of this machine, or a Ray cluster.

An image may crash native code or hang it. Either ends its worker, and costs no other image: who
worked on several is asked about each alone, and what ended three workers alone is given up.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from pydicom import Dataset

from triage.assessment import Assessment, Assessor
from triage.cluster import connect, own
from triage.errors import ArchiveError, ServiceError, SpoolOutage, TriageError

TOGETHER = 8
"""Images that a worker is handed at once; more make a death dearer, fewer the way to it."""

AHEAD = 2
"""Hands of images on the way for each worker, so that none waits."""

MOST_DEATHS = 3
"""So many workers may an image end, asked about alone."""

IMAGE_SECONDS = 50
"""So long one image may take, as with the live worker; then it ends the process."""

_THREADS = "OMP_NUM_THREADS"
"""Of a worker's linear algebra: the workers share the cores already."""

TICK = 1.0
"""Seconds after which a crew is looked at again though nothing came."""


class Place(Protocol):
    """Where an image is; goes to workers as a pickle."""

    def read(self) -> Dataset:
        """The data set.

        Raises
        ------
        PixelsError
            It is damaged, which is a reason like others.
        TriageError
            It cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image to be assessed.

    Attributes
    ----------
    name : str
        SOP Instance UID, or the file's SHA-256.
    where : str
        Its place for a person; kept with the answer.
    place : Place
    """

    name: str
    where: str
    place: Place


Found = Assessment | str
"""What came of an image, or why nothing is known of it."""

Make = Callable[[], Assessor]
"""Compiles the model version in a worker; goes there as a pickle."""


class Crew(Protocol):
    """Workers. Each hand of images that is given to them comes back, or its worker died."""

    @property
    def workers(self) -> int:
        """How many work at once."""
        ...

    def give(self, hand: Sequence[Image]) -> None:
        """Let some images be assessed by one worker, one after the other."""
        ...

    def take(self) -> list[tuple[Sequence[Image], list[Found] | None]]:
        """Hands that are done; with None those whose worker died. Empty after a moment."""
        ...


def assess_all(crew: Crew, images: Iterable[Image]) -> Iterator[list[tuple[Image, Found]]]:
    """Assess images; each exactly once, whatever becomes of workers.

    Yields
    ------
    list of (Image, Assessment or str)
        As they are done, in no order; empty now and then, so that the caller can look around.

    Raises
    ------
    ServiceError
        No worker can start.
    """
    coming, alone = iter(images), deque[Image]()
    deaths: dict[str, int] = {}
    away = 0
    while True:
        while away < crew.workers * AHEAD:
            one = bool(alone)
            hand = (alone.popleft(),) if one else tuple(islice(coming, TOGETHER))
            if not hand:
                break
            crew.give(hand)
            away += 1
        if not away:
            return
        done: list[tuple[Image, Found]] = []
        for given, found in crew.take():
            away -= 1
            if found is not None:
                done.extend(zip(given, found, strict=True))
            elif len(given) > 1:
                alone.extend(given)
            else:
                (image,) = given
                deaths[image.name] = deaths.get(image.name, 0) + 1
                if deaths[image.name] < MOST_DEATHS:
                    alone.append(image)
                else:
                    died = f"the worker died, or did not end, {MOST_DEATHS} times with it"
                    done.append((image, died))
        yield done


def assess_hand(assessor: Assessor, hand: Sequence[Image]) -> list[Found]:
    """Assess some images here, in a worker's main thread."""
    found: list[Found] = []
    for image in hand:
        # The system's timer, whose signal ends the process: native code asks Python nothing.
        signal.setitimer(signal.ITIMER_REAL, IMAGE_SECONDS)
        try:
            found.append(assessor.assess(image.place.read))
        except (ArchiveError, SpoolOutage):  # says nothing of the image
            raise
        except TriageError as error:
            found.append(str(error))
        # A boundary: one image that breaks scoring must not end the back file.
        except Exception as error:  # noqa: BLE001
            found.append(f"{type(error).__name__} while scoring")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return found


_HELD: dict[object, Assessor] = {}
"""Of a worker's process: the one assessor that it has compiled, by what it was made from."""

_TOLD: list[Make] = []
"""Of a process of this machine: what it was told at its start."""


def _tell(make: Make) -> None:
    _TOLD[:] = [make]


def _assess(key: object, make: Make, hand: Sequence[Image]) -> list[Found]:
    """Assess some images in a worker, which compiles its model version once."""
    if key not in _HELD:
        _HELD.clear()
        _HELD[key] = make()
    return assess_hand(_HELD[key], hand)


def _assess_here(hand: Sequence[Image]) -> list[Found]:
    return _assess("", _TOLD[0], hand)


class Processes:
    """Processes of this machine, by Pebble; one that dies is replaced.

    Parameters
    ----------
    make : callable
    workers : int, optional
        As many as there are cores otherwise.
    """

    def __init__(self, make: Make, workers: int | None = None) -> None:
        from multiprocessing import get_context

        from pebble import ProcessPool

        self.workers = workers or len(os.sched_getaffinity(0))
        self._before = os.environ.get(_THREADS)
        os.environ[_THREADS] = "1"  # inherited by those that replace others, too
        self._pool = ProcessPool(
            self.workers, initializer=_tell, initargs=(make,), context=get_context("spawn")
        )
        self._away: dict[Any, Sequence[Image]] = {}

    def give(self, hand: Sequence[Image]) -> None:
        """Let some images be assessed by one worker."""
        self._away[self._pool.schedule(_assess_here, args=(tuple(hand),))] = hand

    def take(self) -> list[tuple[Sequence[Image], list[Found] | None]]:
        """Hands that are done."""
        from pebble import ProcessExpired

        done, _ = wait(self._away, timeout=TICK, return_when=FIRST_COMPLETED)
        answers: list[tuple[Sequence[Image], list[Found] | None]] = []
        for future in done:
            hand = self._away.pop(future)
            try:
                answers.append((hand, future.result()))
            except ProcessExpired:
                answers.append((hand, None))
        return answers

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        if self._before is None:
            os.environ.pop(_THREADS, None)
        else:
            os.environ[_THREADS] = self._before


class Cluster:
    """Tasks of a Ray cluster, one core each; Ray replaces workers and machines that die.

    Parameters
    ----------
    make : callable
        Kept by the cluster once, and fetched by each worker once.
    address : str
        As :func:`triage.cluster.connect` takes it.
    workers : int, optional
        So many at once, also before an autoscaler has made room; the cluster's cores otherwise.
    """

    def __init__(self, make: Make, address: str, workers: int | None = None) -> None:
        self._ray = connect(address, workers)
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        self.workers = workers or cores
        if self.workers < 1:
            raise ServiceError(f"the Ray cluster at {address} has no core: add a worker node")
        # No retries of Ray's own: whether the hand was at fault is seen by asking about each alone.
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_assess_on_node)
        # In a tuple, so that Ray does not send its content along with each task.
        self._make = (self._ray.put(make),)
        self._away: dict[Any, Sequence[Image]] = {}

    def give(self, hand: Sequence[Image]) -> None:
        """Let some images be assessed by one worker."""
        self._away[self._task.remote(self._make, tuple(hand))] = hand

    def take(self) -> list[tuple[Sequence[Image], list[Found] | None]]:
        """Hands that are done."""
        from ray.exceptions import RayError, RayTaskError

        done, _ = self._ray.wait(list(self._away), num_returns=1, timeout=TICK, fetch_local=False)
        answers: list[tuple[Sequence[Image], list[Found] | None]] = []
        for reference in done:
            hand = self._away.pop(reference)
            try:
                answers.append((hand, self._ray.get(reference)))
            except RayTaskError as error:
                raise own(error.cause) from error
            except RayError:  # of the worker, its node, its memory or the way there
                answers.append((hand, None))
        return answers

    def close(self) -> None:
        """Leave the cluster; one of this machine alone ends."""
        self._ray.shutdown()


def _assess_on_node(make: tuple[Any], hand: Sequence[Image]) -> list[Found]:
    """Assess some images in a Ray worker."""
    import ray

    (reference,) = make

    def compiled() -> Assessor:
        made: Assessor = ray.get(reference)()
        return made

    return _assess(reference, compiled, hand)
