"""Rehearsal: base data that the champion was trained on, and nothing that it held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from training.dataset import CLASSES, Snapshot, read_folder
from training.snapshots import base
from triage.admission import Population
from triage.errors import DataError
from triage.registry import ModelVersion

SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures of fourteen patients a class, the diseased with three each."""
    root = tmp_path_factory.mktemp("base")
    for label, class_name in enumerate(CLASSES):
        (root / "train" / class_name).mkdir(parents=True)
        for patient in range(14):
            for number in range(1 + 2 * label):
                name = f"person{patient}_virus_{number}" if label else f"IM-{patient:04}-0001"
                grey = np.full((8, 8), 10 * patient + number + label, np.uint8)
                Image.fromarray(grey).save(root / "train" / class_name / f"{name}.png")
    return root


def version(snapshot: str, parts: dict[str, Any], **training: int) -> ModelVersion:
    """A version that tells what it was trained on."""
    told = {
        "data": {"snapshot": snapshot, "parts": parts},
        "training": {"seed": SEED, **training},
    }
    return ModelVersion("v", Path(), "", 0.5, Population("", None, ()), told)


def counted(snapshot: Snapshot, rows: Any) -> dict[str, int]:
    """What ``model.json`` says of a part."""
    return {
        "patients": len(np.unique(snapshot.patients[rows])),
        **{name: int((snapshot.labels[rows] == i).sum()) for i, name in enumerate(CLASSES)},
    }


def test_a_subsample_has_both_classes_in_their_shares_and_is_the_same_again(folder: Path) -> None:
    """Of a version that was trained on everybody."""
    snapshot = read_folder(folder)
    trained = version(snapshot.digest, {"train": {}})
    one, again = base(folder, trained, 20, 1), base(folder, trained, 20, 1)
    assert one == again
    assert one.of == snapshot.digest
    assert np.bincount(one.snapshot.labels).tolist() == [5, 15]
    assert base(folder, trained, 20, 2) != one
    assert base(folder, trained, 10_000, 1).snapshot.digest == snapshot.digest


def test_what_a_fit_held_out_is_never_rehearsed(folder: Path) -> None:
    """Its validation patients have been seen."""
    snapshot = read_folder(folder)
    split = snapshot.split(SEED)
    trained = version(
        snapshot.digest,
        {part: counted(snapshot, rows) for part, rows in split.items()},
    )
    rehearsed = set(base(folder, trained, 10_000, 1).snapshot.patients)
    assert rehearsed == set(snapshot.patients) - set(snapshot.patients[split["held_out"]])


def test_what_any_fold_may_have_held_out_is_never_rehearsed(folder: Path) -> None:
    """The version does not tell which fold it is: every one of its size is spared."""
    snapshot = read_folder(folder)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=SEED)
    splits = list(folds.split(snapshot.labels, snapshot.labels, snapshot.patients))
    for rest, held in splits:
        parts = {"train": counted(snapshot, rest), "held_out": counted(snapshot, held)}
        rehearsed = base(folder, version(snapshot.digest, parts, folds=4), 10_000, 1).snapshot
        assert not set(rehearsed.patients) & set(snapshot.patients[held])
        alike = [other for _, other in splits if counted(snapshot, other) == parts["held_out"]]
        spared = {p for other in alike for p in snapshot.patients[other]}
        assert set(rehearsed.patients) == set(snapshot.patients) - spared


def test_other_base_data_and_unknown_held_out_patients_are_refused(folder: Path) -> None:
    """Rehearsing would leak what the reference set is measured on."""
    snapshot = read_folder(folder)
    with pytest.raises(DataError, match="was not trained on"):
        base(folder, version("sha256:other", {"train": {}}), 10, 1)
    odd = {"train": {}, "held_out": {"patients": 1, "NORMAL": 1, "PNEUMONIA": 1}}
    with pytest.raises(DataError, match="not known"):
        base(folder, version(snapshot.digest, odd, folds=4), 10, 1)
