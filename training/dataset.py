"""From a folder of labelled pictures to a hashed snapshot, split by patient.

The folder has the published layout of the Kermany data set: ``train/NORMAL`` and
``train/PNEUMONIA`` (or the two class folders at the top). A patient's pictures never
stand on two sides of a split.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from triage.errors import DataError, PixelsError
from triage.pixels import SIDE, normalize_file
from triage.registry import file_hash

CLASSES = ("NORMAL", "PNEUMONIA")
"""Class folders; the index is the label."""

OTHER_SPLITS = frozenset({"test", "val", "valid", "validation"})
"""Folders beside ``train`` that a user may keep to test on."""

SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
FOLDS = 7
"""One seventh of the patients is held out, one validates, five train."""

Part = Literal["train", "validation", "held_out"]

_PATIENT = re.compile(r"(?P<known>person\d+)_|(?:NORMAL2-)?IM-(?P<number>\d+)-")


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled picture.

    Attributes
    ----------
    name : str
        Path relative to the folder, with forward slashes.
    path : Path
    digest : str
        SHA-256 of the file.
    patient : str
    label : int
        Index into :data:`CLASSES`.
    """

    name: str
    path: Path
    digest: str
    patient: str
    label: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A training set that cannot change without its hash changing.

    Attributes
    ----------
    cases : tuple of Case
        Sorted by name.
    """

    cases: tuple[Case, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over name, content, patient and label of every case."""
        lines = (f"{c.name}\t{c.digest}\t{c.patient}\t{c.label}\n" for c in self.cases)
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64, shape (cases,), 0 normal or 1 pneumonia."""
        return np.array([case.label for case in self.cases], np.int64)

    @property
    def patients(self) -> npt.NDArray[np.str_]:
        """str, shape (cases,)."""
        return np.array([case.patient for case in self.cases], np.str_)

    def split(self, seed: int) -> dict[Part, npt.NDArray[np.int64]]:
        """Indices of each part, grouped by patient and stratified by class.

        Raises
        ------
        DataError
            A class has fewer patients than there are folds.
        """
        for label, name in enumerate(CLASSES):
            count = len({c.patient for c in self.cases if c.label == label})
            if count < FOLDS:
                raise DataError(
                    f"class {name} has {count} patients; at least {FOLDS} are needed to hold "
                    "some out, validate on some and train on the rest: add cases"
                )
        folds = [
            test
            for _, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(
                self.labels, self.labels, self.patients
            )
        ]
        parts: dict[Part, npt.NDArray[np.int64]] = {
            "train": np.sort(np.concatenate(folds[2:])),
            "validation": np.sort(folds[1]),
            "held_out": np.sort(folds[0]),
        }
        for part, indices in parts.items():
            if len(np.unique(self.labels[indices])) < len(CLASSES):
                raise DataError(f"the {part} part lacks a class: add cases of more patients")
        return parts

    def folds(
        self, count: int, seed: int
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Rows to train on and rows to judge, for each fold of a cross-validation.

        Raises
        ------
        DataError
            A class has fewer patients than there are folds.
        """
        for label, name in enumerate(CLASSES):
            patients = len({c.patient for c in self.cases if c.label == label})
            if patients < count:
                raise DataError(
                    f"class {name} has {patients} patients; {count} folds need at least one "
                    "each: add cases, or ask for fewer folds"
                )
        split = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        return [
            (np.sort(rest), np.sort(held))
            for rest, held in split.split(self.labels, self.labels, self.patients)
        ]

    def held_out(self, told: Mapping[str, Any]) -> list[npt.NDArray[np.int64]]:
        """Rows that a version held out of its training.

        Parameters
        ----------
        told : mapping
            Of the version's ``model.json``.

        Returns
        -------
        list of ndarray of int64
            None if it was trained on everybody. Several if it is the network of a fold that it
            does not tell: then one of them was held out, and on the others it was trained.

        Raises
        ------
        DataError
            It was trained on other data, or what it held out is not known.
        """
        if told["data"]["snapshot"] != self.digest:
            raise DataError(
                f"{told['version']} was not trained on these data (snapshot differs): name the "
                "folder that it was trained on"
            )
        training, parts = told["training"], told["data"]["parts"]
        seed = int(training["seed"])
        if "held_out" not in parts:
            return []
        if "validation" in parts:
            return [self.split(seed)["held_out"]]
        fold = training.get("fold")
        held = [
            rows
            for number, (_, rows) in enumerate(self.folds(int(training["folds"]), seed), 1)
            if fold in {None, number} and self.count(rows) == parts["held_out"]
        ]
        if not held:
            raise DataError(
                f"what {told['version']} held out is not known: its model.json does not fit the "
                "data, name another version"
            )
        return held

    def never_seen(self, told: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """Rows that a version certainly never saw.

        Parameters
        ----------
        told : mapping
            Of the version's ``model.json``.

        Raises
        ------
        DataError
            As in :meth:`held_out`, or the version does not tell which fold it held out.
        """
        held = self.held_out(told)
        if len(held) > 1:
            raise DataError(
                f"{told['version']} does not tell which of {len(held)} folds it held out: name "
                "another version"
            )
        return held[0] if held else np.array([], np.int64)

    def count(self, rows: npt.NDArray[np.int64]) -> dict[str, int]:
        """Patients, and pictures of each class, among some rows."""
        chosen = [self.cases[row] for row in rows]
        counts = {name: sum(c.label == label for c in chosen) for label, name in enumerate(CLASSES)}
        return {"patients": len({case.patient for case in chosen}), **counts}

    def arrays(self, progress: Callable[[int], None]) -> npt.NDArray[np.float16]:
        """Normalized pictures, float16, shape (cases, 256, 256, 1), 0 to 1.

        Half precision keeps 11 bits, more than the eight of the files.

        Parameters
        ----------
        progress : callable
            Is told how many pictures are done.

        Raises
        ------
        DataError
            Names every picture that cannot be read.
        """
        out = np.empty((len(self.cases), SIDE, SIDE, 1), np.float16)
        broken = []
        for index, case in enumerate(self.cases):
            try:
                out[index, :, :, 0] = normalize_file(case.path)
            except PixelsError as error:
                broken.append(str(error))
            progress(index + 1)
        if broken:
            raise DataError(
                f"{len(broken)} of {len(self.cases)} pictures cannot be used, remove or replace "
                "them: " + "; ".join(broken[:10])
            )
        return out


def read_folder(folder: Path) -> Snapshot:
    """Take stock of a labelled folder.

    Raises
    ------
    DataError
        A class folder is missing or empty, a picture is in both classes, or a patient or a
        picture is in the folder of another split, too. The published data number the patients
        of each split anew, and are not asked about other splits.
    """
    if not folder.is_dir():
        raise DataError(f"--data {folder} is not a folder: name the one that holds train/")
    root = folder / "train" if (folder / "train").is_dir() else folder
    cases: list[Case] = []
    for label, class_name in enumerate(CLASSES):
        class_folder = root / class_name
        if not class_folder.is_dir():
            raise DataError(f"class folder {class_folder} is missing")
        paths = sorted(p for p in class_folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(
                f"class folder {class_folder} has no picture ({', '.join(sorted(SUFFIXES))})"
            )
        for path in paths:
            name = path.relative_to(folder).as_posix()
            cases.append(Case(name, path, file_hash(path), patient_of(path.stem), label))
    _agree(cases)
    if root != folder and not published(cases):
        _stand_apart(folder, cases)
    return Snapshot(tuple(sorted(cases, key=lambda case: case.name)))


def _agree(cases: Sequence[Case]) -> None:
    """Refuse a picture that is called normal and pneumonia."""
    known: dict[str, Case] = {}
    for case in cases:
        other = known.setdefault(case.digest, case)
        if other.label != case.label:
            raise DataError(
                f"one picture is in both classes: {other.name} and {case.name}: remove the one "
                "that is wrong"
            )


def _stand_apart(folder: Path, cases: Sequence[Case]) -> None:
    """Refuse a layout whose other splits have patients of the training split."""
    trained = {case.patient: case.name for case in cases}
    pictures = {case.digest: case.name for case in cases}
    for split in sorted(path for path in folder.iterdir() if path.name.lower() in OTHER_SPLITS):
        for path in sorted(split.rglob("*")):
            if path.suffix.lower() not in SUFFIXES:
                continue
            name, patient = path.relative_to(folder).as_posix(), patient_of(path.stem)
            if patient in trained:
                raise DataError(
                    f"one patient is in two splits: {name} and {trained[patient]}: keep all "
                    "pictures of a patient in one of them"
                )
            digest = file_hash(path)
            if digest in pictures:
                raise DataError(
                    f"one picture is in two splits: {name} and {pictures[digest]}: keep it in one "
                    "of them"
                )


def patient_of(stem: str) -> str:
    """The patient that a file name carries; the name itself where it carries none.

    ``person7_virus_9`` is patient ``person7``. ``IM-0115-0001`` and
    ``NORMAL2-IM-0115-0001`` may be one child or two: they are kept together.
    """
    match = _PATIENT.match(stem)
    if match is None:
        return stem
    return match["known"] or f"normal{int(match['number'])}"


def published(cases: Sequence[Case]) -> bool:
    """Whether every file is named as in the Kermany data set."""
    return all(_PATIENT.match(Path(case.name).name) for case in cases)
