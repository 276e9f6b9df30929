"""The back file: what is stored, or an archive, scored by a model version, and what would change.

Nothing here touches a live row. Results have a table of their own, so a run may end at any time
and goes on where it stood.
"""

import base64
import heapq
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture
from pydicom import Dataset

from triage.archives import Archive, place_of
from triage.assessment import Assessor
from triage.crew import Crew, Image, Place, assess_all
from triage.durable import make_folder, write_whole
from triage.errors import ServiceError, TriageError
from triage.network import assessor
from triage.pixels import normalize
from triage.registry import DESCRIPTION, ModelVersion
from triage.spool import Spool
from triage.worklist.backfile import SPOOL, Answer, BackFile, Change, Selection

KEEP_AT, KEEP_SECONDS = 200, 2.0
"""Answers are written when there are so many, or so much later. What a killed run did is lost."""

SHOWN = 24
"""Pictures in the report: the largest changes."""

BINS = 10

TEMPLATES = Path(__file__).with_name("templates")

_LOOKED_UP = 16
"""Images of an archive whose answers are looked for at once; a PACS has sent their pixels."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be scored, and by whom.

    Attributes
    ----------
    selection : Selection
    version, against : str or None
        Model versions; None for the champion.
    failed_too : bool
        Ask again about images that could not be read or ended their worker.
    """

    selection: Selection
    version: str | None = None
    against: str | None = None
    failed_too: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """A model version on its way to workers, which need no registry.

    Attributes
    ----------
    files : tuple of (str, bytes)
    warn_outside : bool
    """

    files: tuple[tuple[str, bytes], ...]
    warn_outside: bool

    @classmethod
    def of(cls, model: ModelVersion, *, warn_outside: bool) -> "Packed":
        """Read the files of a version."""
        names = (DESCRIPTION, *model.description["files"])
        return cls(
            tuple((name, (model.folder / name).read_bytes()) for name in names), warn_outside
        )

    def __call__(self) -> Assessor:
        """Compile it in a worker, for one core: there is a worker for each."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files:
                (Path(folder) / name).write_bytes(content)
            model = ModelVersion.load(Path(folder))
            return assessor(model, warn_outside=self.warn_outside, threads=1)


@dataclass(frozen=True, slots=True)
class InSpool:
    """A stored exam."""

    spool: Spool
    digest: str

    def read(self) -> Dataset:
        """The data set."""
        return self.spool.instance(self.digest)


@dataclass(slots=True)
class Outcome:
    """What would change.

    Attributes
    ----------
    images : int
        That were asked about, in this run or before.
    scored, refused, failed : int
    compared : int
        Of the scored, those that had a score before.
    both, neither, gained, lost : int
        Of the compared: flagged before and now, never, now only, before only.
    new_flags : int
        Flagged, and without a score before.
    would_refuse : int
        Not scored now, and with a score before.
    read : int
        Of those that gain or lose a flag: how many were read.
    mean_difference : float
        Of the compared: the probability now less the one before; -1 to 1.
    before, after : list of int
        Of the compared: ten bins from 0 to 1.
    reasons : dict
        Number by reason.
    failures : list of (str, str)
        The first failed images, and why.
    largest : list of Change
        By flag first, then by difference.
    report : Path
    """

    images: int = 0
    scored: int = 0
    refused: int = 0
    failed: int = 0
    compared: int = 0
    both: int = 0
    neither: int = 0
    gained: int = 0
    lost: int = 0
    new_flags: int = 0
    would_refuse: int = 0
    read: int = 0
    mean_difference: float = 0.0
    before: list[int] = field(default_factory=lambda: [0] * BINS)
    after: list[int] = field(default_factory=lambda: [0] * BINS)
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    largest: list[Change] = field(default_factory=list)
    report: Path = Path()

    def as_json(self) -> dict[str, Any]:
        """A mapping of JSON values; no patient data."""
        names = [name for name in self.__slots__ if name not in {"largest", "report"}]
        return {**{name: getattr(self, name) for name in names}, "report": str(self.report)}


class Rescoring:
    """One run over the back file.

    Parameters
    ----------
    back_file : BackFile
    version : str
        The model version that scores.
    source : str or None
        As ``triage rescore --from`` takes it; None for what is stored.
    task : Task
    """

    def __init__(self, back_file: BackFile, version: str, source: str | None, task: Task) -> None:
        self.back_file, self.version, self.task = back_file, version, task
        self._source = source or SPOOL
        self._holder = ""

    @contextmanager
    def led_by(self, holder: str) -> Iterator[None]:
        """Have the right to work on the back file."""
        self.back_file.lead(holder)
        self._holder = holder
        try:
            yield
        finally:
            self.back_file.resign(holder)

    def total(self) -> int | None:
        """How many images are to be asked about; None if an archive has not said."""
        if self._source != SPOOL:
            return None
        task = self.task
        return self.back_file.count(task.selection, self.version, failed_too=task.failed_too)

    def score(self, crew: Crew, images: Iterable[Image], progress: Callable[[int], None]) -> None:
        """Ask about images, and write what comes.

        Raises
        ------
        TriageError
            It cannot go on now; what came is written.
        """
        answers: list[Answer] = []
        written = time.monotonic()
        done = 0
        try:
            for found in assess_all(crew, images):
                answers += [Answer(image.name, image.where, said) for image, said in found]
                late = time.monotonic() - written >= KEEP_SECONDS
                if late or len(answers) >= KEEP_AT:
                    done += self._keep(answers)
                    written = time.monotonic()
                    progress(done)
        finally:
            done += self._keep(answers)
            progress(done)

    def _keep(self, answers: list[Answer]) -> int:
        """Write answers, and renew the lease."""
        self.back_file.keep(self._holder, self.version, self._source, answers)
        number = len(answers)
        answers.clear()
        return number

    def tell(self, path: Path, spool: Spool, against: str) -> Outcome:
        """Write the report of what would change."""
        changes = self.back_file.changes(self.version, self._source, self.task.selection, against)
        outcome = weighed(changes)
        outcome.report = path

        def picture(change: Change) -> str | None:
            place: Place | None
            if change.digest is not None:
                place = InSpool(spool, change.digest)
            else:
                place = place_of(self._source, change.place)
            return None if place is None else _drawn(place)

        html = _page(outcome, self.version, against, self._source, picture)
        try:
            make_folder(path.parent)
            write_whole(path, lambda file: file.write(html.encode()))
        except OSError as error:
            raise ServiceError(f"the report {path} cannot be written: {error.strerror}") from error
        return outcome


def of_spool(run: Rescoring, spool: Spool) -> Iterator[Image]:
    """Stored exams that are to be asked about."""
    task = run.task
    pages = run.back_file.waiting(task.selection, run.version, failed_too=task.failed_too)
    for each in chain.from_iterable(pages):
        yield Image(each.sop_instance_uid, "", InSpool(spool, each.digest))


def of_archive(run: Rescoring, archive: Archive) -> Iterator[Image]:
    """Images of an archive that are to be asked about."""
    selection = run.task.selection
    images = archive.images(selection.since, selection.until)
    while page := list(islice(images, _LOOKED_UP)):
        names = {image.name: image for image in page}
        known = run.back_file.known(run.version, list(names), failed_too=run.task.failed_too)
        for name, image in names.items():
            if name not in known:
                yield image


def weighed(changes: Iterable[Change]) -> Outcome:
    """Count what would change."""
    out = Outcome()
    total = 0.0

    def counted() -> Iterator[Change]:
        nonlocal total
        for change in changes:
            out.images += 1
            total += _count(out, change)
            if change.before is not None and change.after is not None:
                yield change

    out.largest = heapq.nlargest(SHOWN, counted(), key=_size)
    out.largest = [change for change in out.largest if change.before != change.after]
    out.mean_difference = total / out.compared if out.compared else 0.0
    return out


def _size(change: Change) -> tuple[bool, float]:
    difference = abs((change.after or 0.0) - (change.before or 0.0))
    return change.before_flagged != change.after_flagged, difference


def _count(out: Outcome, change: Change) -> float:
    """Count one image; its difference, 0 if it cannot be compared."""
    if change.failure:
        out.failed += 1
        if len(out.failures) < SHOWN:
            out.failures.append((change.image, change.failure))
        return 0.0
    if change.after is None:
        out.refused += 1
        reason = str(change.reason)
        out.reasons[reason] = out.reasons.get(reason, 0) + 1
        out.would_refuse += change.before is not None
        return 0.0
    out.scored += 1
    if change.before is None:
        out.new_flags += bool(change.after_flagged)
        return 0.0
    out.compared += 1
    match change.before_flagged, change.after_flagged:
        case True, True:
            out.both += 1
        case True, _:
            out.lost += 1
            out.read += change.read
        case _, True:
            out.gained += 1
            out.read += change.read
        case _:
            out.neither += 1
    out.before[min(int(change.before * BINS), BINS - 1)] += 1
    out.after[min(int(change.after * BINS), BINS - 1)] += 1
    return change.after - change.before


def _page(
    outcome: Outcome,
    version: str,
    against: str,
    source: str,
    picture: Callable[[Change], str | None],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("rescore.html").render(
        out=outcome,
        version=version,
        against=against,
        source=source,
        sheet=[(change, picture(change)) for change in outcome.largest],
        most=max((*outcome.before, *outcome.after, 1)),
    )


def _drawn(place: Place) -> str | None:
    """A picture as a network is shown it, as the base64 of a PNG; None if it cannot be had."""
    try:
        array = normalize(place.read()).array
    except TriageError:
        return None
    file = io.BytesIO()
    Picture.fromarray(np.rint(array * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
