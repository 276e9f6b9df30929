"""Rehearsal: base data that the champion was trained on, and nothing that it held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from training.__main__ import main
from training.dataset import CLASSES, Snapshot, read_folder
from training.folds import bytes_of
from training.rehearsal import rehearsal, store
from triage.admission import Population
from triage.app import BUNDLED
from triage.errors import DataError
from triage.registry import ModelVersion

SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of fourteen patients a class, the diseased with three each."""
    root = tmp_path_factory.mktemp("base")
    for label, class_name in enumerate(CLASSES):
        (root / "train" / class_name).mkdir(parents=True)
        for patient in range(14):
            for number in range(1 + 2 * label):
                name = f"person{patient}_virus_{number}" if label else f"IM-{patient:04}-0001"
                grey = np.arange(64, dtype=np.uint8).reshape(8, 8) + np.uint8(
                    10 * patient + number + label
                )
                Image.fromarray(grey).save(root / "train" / class_name / f"{name}.png")
    return root


def version(snapshot: str, parts: dict[str, Any], **training: int) -> ModelVersion:
    """A version that tells what it was trained on."""
    told = {
        "version": "v",
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
    one, again = rehearsal(folder, trained, 20, 1), rehearsal(folder, trained, 20, 1)
    assert one.digest == again.digest
    assert one.of == snapshot.digest
    assert np.bincount(one.labels).tolist() == [5, 15]
    assert rehearsal(folder, trained, 20, 2).digest != one.digest
    assert rehearsal(folder, trained, 10_000, 1).digest == snapshot.digest


def test_what_a_fit_held_out_is_never_rehearsed(folder: Path) -> None:
    """Its validation patients have been seen."""
    snapshot = read_folder(folder)
    split = snapshot.split(SEED)
    trained = version(
        snapshot.digest,
        {part: counted(snapshot, rows) for part, rows in split.items()},
    )
    rehearsed = set(rehearsal(folder, trained, 10_000, 1).patients)
    assert rehearsed == set(snapshot.patients) - set(snapshot.patients[split["held_out"]])


def test_what_any_fold_may_have_held_out_is_never_rehearsed(folder: Path) -> None:
    """The version does not tell which fold it is: every one of its size is spared."""
    snapshot = read_folder(folder)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=SEED)
    splits = list(folds.split(snapshot.labels, snapshot.labels, snapshot.patients))
    for rest, held in splits:
        parts = {"train": counted(snapshot, rest), "held_out": counted(snapshot, held)}
        rehearsed = rehearsal(folder, version(snapshot.digest, parts, folds=4), 10_000, 1)
        assert not set(rehearsed.patients) & set(snapshot.patients[held])
        alike = [other for _, other in splits if counted(snapshot, other) == parts["held_out"]]
        spared = {p for other in alike for p in snapshot.patients[other]}
        assert set(rehearsed.patients) == set(snapshot.patients) - spared


def test_patients_that_were_never_seen_are_of_the_fold_that_is_told(folder: Path) -> None:
    """Where it is not told and two folds may be meant, nobody is said to be unseen."""
    snapshot = read_folder(folder)
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=SEED)
    splits = list(folds.split(snapshot.labels, snapshot.labels, snapshot.patients))
    counts = [counted(snapshot, held) for _, held in splits]
    for number, (rest, held) in enumerate(splits, 1):
        parts = {"train": counted(snapshot, rest), "held_out": counted(snapshot, held)}
        told = version(snapshot.digest, parts, folds=4, fold=number).description
        assert snapshot.never_seen(told).tolist() == held.tolist()
        untold = version(snapshot.digest, parts, folds=4).description
        if counts.count(parts["held_out"]) > 1:
            with pytest.raises(DataError, match="does not tell which"):
                snapshot.never_seen(untold)
    assert len(snapshot.never_seen(version(snapshot.digest, {"train": {}}).description)) == 0


def test_other_base_data_and_unknown_held_out_patients_are_refused(folder: Path) -> None:
    """Rehearsing would leak what the reference set is measured on."""
    snapshot = read_folder(folder)
    with pytest.raises(DataError, match="was not trained on"):
        rehearsal(folder, version("sha256:other", {"train": {}}), 10, 1)
    odd = {"train": {}, "held_out": {"patients": 1, "NORMAL": 1, "PNEUMONIA": 1}}
    with pytest.raises(DataError, match="not known"):
        rehearsal(folder, version(snapshot.digest, odd, folds=4), 10, 1)


def test_a_stored_subsample_is_the_folder_s(folder: Path, tmp_path: Path) -> None:
    """The same pictures, labels and patients, to the bit that training sees; and part of them."""
    trained = version(read_folder(folder).digest, {"train": {}})
    drawn = rehearsal(folder, trained, 20, 1)
    file = tmp_path / "subsample.npz"
    store(drawn, trained, file)
    stored = rehearsal(file, trained, 10_000, 1)
    assert stored.of == drawn.of
    assert np.array_equal(stored.labels, drawn.labels)
    assert np.array_equal(stored.patients, drawn.patients)
    assert stored.arrays().dtype == np.float16
    assert np.array_equal(bytes_of(stored.arrays()), bytes_of(drawn.arrays()))
    few, again = rehearsal(file, trained, 8, 1), rehearsal(file, trained, 8, 1)
    assert np.bincount(few.labels).tolist() == [2, 6]
    assert few.digest == again.digest != stored.digest


def test_a_stored_subsample_of_others_or_damaged_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other base data, of a version that held others out, of other arrays; cut, no file."""
    trained = version(read_folder(folder).digest, {"train": {}})
    file = tmp_path / "subsample.npz"
    store(rehearsal(folder, trained, 20, 1), trained, file)
    for other in (
        version("sha256:other", {"train": {}}),
        version(read_folder(folder).digest, {"train": {}, "held_out": {"patients": 3}}, folds=5),
    ):
        with pytest.raises(DataError, match="trained on other patients"):
            rehearsal(file, other, 20, 1)
    whole = file.read_bytes()
    middle = len(whole) // 2
    damaged = tmp_path / "damaged.npz"
    for content in (
        b"",
        b"no subsample",
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            rehearsal(damaged, trained, 20, 1)
    monkeypatch.setattr("training.rehearsal.fingerprint", lambda: "sha256:other")
    with pytest.raises(DataError, match="another pixel pipeline"):
        rehearsal(file, trained, 20, 1)


def test_the_command_stores_what_the_bundled_version_was_not_trained_on_never(
    folder: Path, tmp_path: Path
) -> None:
    """It was trained on other data than these: refused, in a line."""
    bundled = max(BUNDLED.glob("*/model.json")).parent
    out = tmp_path / "subsample.npz"
    arguments = ["subsample", "--data", str(folder), "--model", str(bundled), "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert isinstance(done.exception, DataError)
    assert "was not trained on these data" in str(done.exception)
    assert not out.exists()
