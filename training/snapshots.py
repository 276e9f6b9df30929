"""A site's labels as a hashed snapshot: train, validation and a frozen exam, by patient and time.

See ``docs/learning.md`` for the rules. :mod:`training.dataset` has the snapshots of labelled
folders, and :mod:`training.rehearsal` takes from one what a challenger rehearses.
"""

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import structlog

from training.dataset import CLASSES
from training.gate import Exam
from training.labels import Label, from_exams
from triage.arrays import HalfArray, Pictures
from triage.durable import make_folder, write_whole
from triage.errors import DataError
from triage.lineage import MANIFEST
from triage.worklist import Worklist
from triage.worklist.readings import UNDO

Part = Literal["train", "validation", "exam"]
PARTS: tuple[Part, ...] = get_args(Part)

FORMAT = 1

EXAM_SHARE = 0.3
"""Of patients that are drawn into the site exam when their first label is seen."""

VALIDATION_SHARE = 0.15
"""Of the training patients' labels, the newest, that validate."""

LEAST_OF_A_CLASS = 20
"""Labels of each class that validate, if half of all labels hold so many: with fewer, one that is
wrong moves calibration and threshold."""

AGES = ((1, "under 1"), (6, "1 to 5"), (18, "6 to 17"), (65, "18 to 64"), (151, "65 and over"))
"""Bands of age for the gate's subgroups, each with the years that it ends before."""

Names = npt.NDArray[np.str_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """A label and the part in which it stands."""

    label: Label
    part: Part


@dataclass(frozen=True, slots=True)
class SiteSnapshot:
    """A site's labels at a time, each in one part; cannot change without its hash changing.

    Attributes
    ----------
    cases : tuple of Case
        In the order in which the exams came.
    cutoff : datetime
        Until then readings count; aware, UTC.
    taken_at : datetime
    pixel_fingerprint : str
        Of the arrays that the cases were found to have.
    left_out : mapping of str to int
        What became no case, by reason: see :class:`training.labels.Gathered` and :func:`take`.
    """

    cases: tuple[Case, ...]
    cutoff: dt.datetime
    taken_at: dt.datetime
    pixel_fingerprint: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the cases; when it was taken does not matter."""
        content = {"cases": _plain(self.cases), "pixel_fingerprint": self.pixel_fingerprint}
        return "sha256:" + hashlib.sha256(_canonical(content)).hexdigest()

    def part(self, part: Part) -> tuple[Label, ...]:
        """The labels of a part; :func:`arrays` and the columns below are in the same order."""
        return tuple(case.label for case in self.cases if case.part == part)

    def labels(self, part: Part) -> npt.NDArray[np.int64]:
        """int64, shape (cases,), 0 or 1."""
        return np.array([label.label for label in self.part(part)], np.int64)

    def weights(self, part: Part) -> Numbers:
        """float64, shape (cases,), 1 and more: so many exams of the site each stands for."""
        return np.array([label.weight for label in self.part(part)], np.float64)

    def patients(self, part: Part) -> Names:
        """str, shape (cases,): keyed hashes."""
        return np.array([label.patient for label in self.part(part)], np.str_)

    def names(self, part: Part) -> Names:
        """str, shape (cases,): SOP Instance UIDs."""
        return np.array([label.sop_instance_uid for label in self.part(part)], np.str_)

    def groups(self, part: Part) -> dict[str, Names]:
        """The levels that the gate looks at apart: age, sex, view and console of each case."""
        columns = {
            "age": [age_band(label.age) for label in self.part(part)],
            "sex": [label.sex for label in self.part(part)],
            "view": [label.view for label in self.part(part)],
            "console": [label.console for label in self.part(part)],
        }
        return {name: np.array(levels, np.str_) for name, levels in columns.items()}

    @property
    def trained_on(self) -> frozenset[str]:
        """The patients that a challenger of this snapshot has seen, for the gate's leak rule."""
        return frozenset(case.label.patient for case in self.cases if case.part != "exam")

    @property
    def locked(self) -> frozenset[str]:
        """Names of the exam's cases that a champion missed when they were first read."""
        return frozenset(label.sop_instance_uid for label in self.part("exam") if label.missed)

    def exam(self, champion: Numbers, challenger: Numbers) -> Exam:
        """The site exam for the gate.

        Parameters
        ----------
        champion, challenger : ndarray of float64, shape (cases,), 0 to 1
            Probabilities of the exam's cases, in the order of :meth:`part`.
        """
        return Exam(
            self.names("exam"),
            self.patients("exam"),
            self.labels("exam"),
            champion,
            challenger,
            self.weights("exam"),
            self.groups("exam"),
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each part, how many patients and labels of each class it has."""
        return {
            part: {
                "patients": len(set(self.patients(part).tolist())),
                **{
                    name: int((self.labels(part) == index).sum())
                    for index, name in enumerate(CLASSES)
                },
            }
            for part in PARTS
        }

    def write(self, folder: Path) -> Path:
        """Write the manifest; it survives losing power when this returns.

        Raises
        ------
        DataError
            It cannot be written.
        """
        content = {
            "format": FORMAT,
            "digest": self.digest,
            "taken_at": self.taken_at.isoformat(),
            "cutoff": self.cutoff.isoformat(),
            "pixel_fingerprint": self.pixel_fingerprint,
            "left_out": dict(self.left_out),
            "counts": self.counts(),
            "cases": _plain(self.cases),
        }
        path = folder / MANIFEST
        try:
            make_folder(folder)
            text = json.dumps(content, indent=1, sort_keys=True)
            write_whole(path, lambda file: file.write(text.encode("utf-8")))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
        return path


def read(folder: Path) -> SiteSnapshot:
    """A snapshot from its manifest.

    Raises
    ------
    DataError
        It is missing, damaged, or was changed.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
        found = SiteSnapshot(
            tuple(_case(entry) for entry in content["cases"]),
            dt.datetime.fromisoformat(content["cutoff"]),
            dt.datetime.fromisoformat(content["taken_at"]),
            str(content["pixel_fingerprint"]),
            dict(content["left_out"]),
        )
        known = content["digest"]
    except OSError as error:
        raise DataError(f"snapshot {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no snapshot: take it anew") from error
    if found.digest != known:
        raise DataError(f"{path} was changed after it was written: take the snapshot anew")
    return found


def take(
    worklist: Worklist,
    pictures: Pictures,
    until: dt.datetime | None = None,
    exam_share: float = EXAM_SHARE,
    validation_share: float = VALIDATION_SHARE,
) -> SiteSnapshot:
    """Take a snapshot of a site's labels.

    Parameters
    ----------
    worklist : Worklist
    pictures : Pictures
    until : datetime, optional
        Aware; until then readings count. By default a minute ago, so that no reading in it can
        still be withdrawn by its reader.
    exam_share : float
        Of patients with a first label that are drawn into the exam, for ever.
    validation_share : float
        Of the labels that are not the exam's.

    Returns
    -------
    SiteSnapshot
        ``left_out`` also has ``damaged``: labels whose object is missing, damaged or has no
        picture, each told in a line of the log; ``unmeasured``: labels of exam patients that a
        reader chose to read, so that no weight is right; ``both_sides``: labels of a patient who
        turned out to be two, of which one was trained on and one examined; ``straddling``:
        labels of training patients that came after the first that validates.
    """
    taken_at = dt.datetime.now(dt.UTC)
    cutoff = taken_at - UNDO if until is None else until.astimezone(dt.UTC)
    learning = worklist.learning
    while True:
        withdrawn = learning.withdrawn()
        gathered = from_exams(learning.exams(cutoff), withdrawn)
        left_out = Counter(gathered.counts)
        whole = _with_pictures(gathered.labels, pictures, left_out)
        groups = {label.patient: gathered.members[label.patient] for label in whole}
        drawn = learning.draw(list(groups.values()), exam_share)
        if learning.withdrawn() == withdrawn:
            break
        # Somebody has withdrawn meanwhile, and their array may have been made once more.
        for digest in learning.withdrawn_digests():
            pictures.forget(digest)
    sides = {name: frozenset(drawn[each] for each in group) for name, group in groups.items()}
    cases = divide(whole, sides, validation_share, left_out)
    return SiteSnapshot(cases, cutoff, taken_at, pictures.fingerprint, dict(left_out))


def divide(
    found: Sequence[Label],
    sides: Mapping[str, frozenset[bool]],
    validation_share: float,
    left_out: Counter[str],
) -> tuple[Case, ...]:
    """Put each label into a part, or leave it out. Pure but for the counts.

    Parameters
    ----------
    found : sequence of Label
    sides : mapping of str to frozenset of bool
        Of each patient, whether those hashes that are theirs were drawn into the exam.
    validation_share : float
    left_out : Counter
        Is told of what is in no part.
    """
    cases, rest = [], []
    for label in found:
        if len(sides[label.patient]) > 1:
            left_out["both_sides"] += 1
        elif True not in sides[label.patient]:
            rest.append(label)
        elif label.measures:
            cases.append(Case(label, "exam"))
        else:
            left_out["unmeasured"] += 1
    cases += _by_time(rest, validation_share, left_out)
    return tuple(
        sorted(cases, key=lambda case: (case.label.received_at, case.label.sop_instance_uid))
    )


def arrays(snapshot: SiteSnapshot, part: Part, pictures: Pictures) -> HalfArray:
    """The pictures of a part, float16, shape (cases, 256, 256), 0 to 1.

    As :meth:`triage.arrays.Pictures.stack` gives them.

    Raises
    ------
    DataError
        The pixel pipeline is another than the snapshot's, or an object has gone since.
    """
    if pictures.fingerprint != snapshot.pixel_fingerprint:
        raise DataError("the snapshot is of another pixel pipeline: take it anew")
    return pictures.stack([label.digest for label in snapshot.part(part)])


def age_band(age: str) -> str:
    """A band of :data:`AGES` from Patient's Age (VR AS, PS3.5 6.2); empty if there is none."""
    number, unit = age[:3], age[3:]
    days = {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}.get(unit)
    if days is None or not number.isdecimal():
        return ""
    years = int(number) if unit == "Y" else int(number) * days / 365.25
    return next((name for end, name in AGES if years < end), "")


def _with_pictures(
    found: Sequence[Label], pictures: Pictures, left_out: Counter[str]
) -> list[Label]:
    log = structlog.get_logger("snapshots")
    whole = []
    for label in found:
        try:
            pictures.array(label.digest)
        except DataError as error:
            left_out["damaged"] += 1
            log.warning(
                str(error), action="label_left_out", sop_instance_uid=label.sop_instance_uid
            )
        else:
            whole.append(label)
    return whole


def _by_time(rest: Sequence[Label], share: float, left_out: Counter[str]) -> list[Case]:
    """Train on what came first, validate on what came last, and no patient is on both sides."""
    if not rest:
        return []
    first: dict[str, dt.datetime] = {}
    for label in rest:
        first[label.patient] = min(label.received_at, first.get(label.patient, label.received_at))
    newest = sorted(rest, key=lambda label: (first[label.patient], label.patient), reverse=True)
    wanted = round(share * len(rest))
    have: Counter[int] = Counter()
    since = None
    for number, label in enumerate(newest):
        enough = number >= wanted and min(have[0], have[1]) >= LEAST_OF_A_CLASS
        if wanted == 0 or enough or number >= max(wanted, len(rest) // 2):
            break
        have[label.label] += 1
        since = first[label.patient]
    cases = []
    for label in rest:
        if since is not None and first[label.patient] >= since:
            cases.append(Case(label, "validation"))
        elif since is not None and label.received_at >= since:
            left_out["straddling"] += 1
        else:
            cases.append(Case(label, "train"))
    return cases


def _plain(cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [
        {
            **asdict(case.label),
            "read_at": case.label.read_at.isoformat(),
            "received_at": case.label.received_at.isoformat(),
            "readers": list(case.label.readers),
            "readings": list(case.label.readings),
            "part": case.part,
        }
        for case in cases
    ]


def _case(entry: Mapping[str, Any]) -> Case:
    values = dict(entry)
    part = values.pop("part")
    if part not in PARTS:
        raise ValueError(part)
    label = Label(**values)
    return Case(
        replace(
            label,
            read_at=dt.datetime.fromisoformat(values["read_at"]),
            received_at=dt.datetime.fromisoformat(values["received_at"]),
            readers=tuple(values["readers"]),
            readings=tuple(values["readings"]),
        ),
        part,
    )


def _canonical(content: object) -> bytes:
    """JSON with sorted keys, without spaces, in UTF-8."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")
