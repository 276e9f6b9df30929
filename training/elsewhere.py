"""Training on a Ray cluster: a job's folder goes to a machine there, and comes back as it fills.

A job is an actor that works in a folder of its own and tells after each epoch. What changed in
that folder is then put into the job's folder here, so that the folder here is at any moment what
a job that was stopped on this machine would have left: it goes on after a lost worker, after a lost
head, with a cluster or without.
"""

import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from training.versions import replace
from triage.cluster import connect, own
from triage.errors import ServiceError, TriageError

MOST_DEATHS = 3
"""So many workers may end over one step of a job; then the job is at fault."""

TICK = 1.0
"""Seconds after which somebody who waits looks around."""

Tell = Callable[[str], None]
Files = tuple[tuple[str, bytes], ...]
"""Names from a folder on, and contents."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something that is trained in a folder, and goes on from what the folder holds.

    Attributes
    ----------
    name : str
        For a person.
    folder : Path
        On this machine.
    work : callable
        Given what all jobs share, a folder and whom to tell; goes to a worker as a pickle.
    signs : tuple of str
        Names of files that say that others are whole, which are put in place after those.
    """

    name: str
    folder: Path
    work: Callable[[Any, Path, Tell], None]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class News:
    """How far a job is.

    Attributes
    ----------
    stage : str
    changed : Files
        Files that are new, or not what they were.
    names : frozenset of str
        All files there.
    done : bool
    """

    stage: str
    changed: Files
    names: frozenset[str]
    done: bool = False


def spread(
    address: str, shared: object, jobs: Sequence[Job], most_cores: int | None, tell: Tell
) -> None:
    """Do jobs on a Ray cluster, as many at once as it has room for.

    Parameters
    ----------
    address : str
        As :func:`triage.cluster.connect` takes it.
    shared : object
        What all jobs read; kept by the cluster once.
    jobs : sequence of Job
    most_cores : int or None
        Of a job; its share of the cluster otherwise.
    tell : callable
        Is told in a line how far a job is.

    Raises
    ------
    TriageError
        What a job raised there.
    ServiceError
        The cluster cannot be used, or a job's workers die again and again.
    """
    ray = connect(address)
    try:
        cores = _cores(ray, address, len(jobs), most_cores)
        kept = ray.put(shared)
        # TensorFlow and NumPy count their threads when they are imported.
        names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {name: str(cores) for name in names}
        environment |= {"TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        worker = ray.remote(num_cpus=cores, max_restarts=0, runtime_env={"env_vars": environment})(
            Worker
        )
        away: dict[Any, tuple[Job, Any]] = {}

        def begin(job: Job) -> None:
            actor = worker.remote(kept, job.work, packed(job.folder))
            away[actor.news.remote()] = job, actor

        deaths = dict.fromkeys((job.name for job in jobs), 0)
        for job in jobs:
            begin(job)
        while away:
            done, _ = ray.wait(list(away), num_returns=1, timeout=TICK)
            for reference in done:
                job, actor = away.pop(reference)
                try:
                    news: News = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise own(error.cause) from error
                except ray.exceptions.RayError as error:
                    deaths[job.name] += 1
                    if deaths[job.name] == MOST_DEATHS:
                        raise _given_up(job, error) from error
                    tell(f"{job.name}: its worker was lost, another goes on")
                    begin(job)
                    continue
                if news.changed:
                    deaths[job.name] = 0
                put(news.changed, job.folder, job.signs)
                if news.done:
                    _remove_others(job.folder, news.names)
                    ray.kill(actor)
                else:
                    away[actor.news.remote()] = job, actor
                tell(f"{job.name}: done" if news.done else news.stage)
    finally:
        ray.shutdown()


def _cores(ray: Any, address: str, jobs: int, most: int | None) -> int:
    """How many cores each job gets: no more than a machine there has."""
    machines = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    largest = int(max(machines, default=0.0))
    if largest < 1:
        raise ServiceError(f"the Ray cluster at {address} has no core: add a worker node")
    return max(1, min(largest, most or int(sum(machines)) // max(1, jobs)))


def _given_up(job: Job, error: Exception) -> ServiceError:
    told = " ".join(str(error).split())[:300]
    return ServiceError(
        f"{job.name}: {MOST_DEATHS} workers were lost one after the other ({told}): has each node "
        "this program with its extras train and ray, and memory enough?"
    )


class Worker:
    """An actor's class: does one job in a folder of its machine.

    Parameters
    ----------
    shared : object
    work : callable
    files : Files
        What the job's folder holds already.
    """

    def __init__(
        self, shared: object, work: Callable[[Any, Path, Tell], None], files: Files
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="triage-training-")
        self._folder = Path(self._temporary.name)
        put(files, self._folder)
        self._sent = _stamps(self._folder)
        self._news: queue.Queue[News | TriageError] = queue.Queue()
        threading.Thread(target=self._do, args=(shared, work), daemon=True).start()

    def news(self) -> News:
        """Wait until there is some."""
        told = self._news.get()
        if isinstance(told, TriageError):
            raise told
        return told

    def _do(self, shared: object, work: Callable[[Any, Path, Tell], None]) -> None:
        last: News | TriageError
        try:
            work(shared, self._folder, lambda stage: self._news.put(self._seen(stage)))
            last = self._seen("", done=True)
        except TriageError as error:
            last = error
        # A boundary: whoever asks for news is to hear of it, and may not know this exception.
        except BaseException as error:  # noqa: BLE001
            last = ServiceError(f"training broke there ({type(error).__name__}: {error})")
        self._temporary.cleanup()
        self._news.put(last)

    def _seen(self, stage: str, *, done: bool = False) -> News:
        """What changed; called by who writes, so that nothing changes meanwhile."""
        now = _stamps(self._folder)
        changed = [name for name, stamp in now.items() if self._sent.get(name) != stamp]
        self._sent = now
        contents = tuple((name, (self._folder / name).read_bytes()) for name in changed)
        return News(stage, contents, frozenset(now), done)


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Files below a folder, by what changes when they are written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            told = path.stat()
            stamp = told.st_ino, told.st_mtime_ns, told.st_size
            found[path.relative_to(folder).as_posix()] = stamp
    return found


def packed(folder: Path) -> Files:
    """All files below a folder."""
    return tuple((name, (folder / name).read_bytes()) for name in _stamps(folder))


def put(files: Files, folder: Path, signs: Sequence[str] = ()) -> None:
    """Put files in place, each whole, and those last that say that others are."""
    order = {name: place for place, name in enumerate(signs, 1)}
    for name, content in sorted(files, key=lambda file: order.get(file[0], 0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace(folder / name, partial(_write, content))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _remove_others(folder: Path, names: frozenset[str]) -> None:
    """Remove what a finished job has removed: a checkpoint."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
