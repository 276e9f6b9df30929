"""Is the bundled model what its description says? On the patients that it never saw.

Runs where the Kermany data set is at hand: beside the checkout, or where CXR_DATA says.
"""

from collections import defaultdict

import numpy as np
import pytest

from tests.acceptance.test_real_radiographs import BUNDLED, DATA
from training.dataset import Snapshot, read_folder
from training.evaluate import auc, sensitivity, specificity
from training.stress import without_lungs
from triage.network import Network
from triage.pixels import Array, normalize_file
from triage.registry import ModelVersion

pytestmark = pytest.mark.skipif(
    not (DATA / "train").is_dir(), reason="the Kermany radiographs are not at hand"
)


@pytest.fixture(scope="module")
def model() -> ModelVersion:
    """The bundled version."""
    return ModelVersion.load(max(BUNDLED.glob("*/model.json")).parent)


@pytest.fixture(scope="module")
def snapshot(model: ModelVersion) -> Snapshot:
    """The data that it was trained on, or none of these tests means anything."""
    found = read_folder(DATA)
    if found.digest != model.description["data"]["snapshot"]:
        pytest.skip("these are other radiographs than the model was trained on")
    return found


@pytest.fixture(scope="module")
def unseen(model: ModelVersion, snapshot: Snapshot) -> tuple[np.ndarray, list[Array]]:
    """Rows of patients that it never saw, and their pictures."""
    rows = snapshot.never_seen(model.description)
    return rows, [normalize_file(snapshot.cases[row].path) for row in rows]


def test_the_held_out_figures_are_what_the_shipped_files_do(
    model: ModelVersion, snapshot: Snapshot, unseen: tuple[np.ndarray, list[Array]]
) -> None:
    """Within what half precision moves: two pictures of either class at the threshold."""
    rows, pictures = unseen
    network, labels = Network(model), snapshot.labels[rows]
    said = np.array([network.score(picture).probability for picture in pictures])
    told = model.description["metrics"]["held_out"]
    flagged = said >= model.threshold
    assert auc(labels, said) == pytest.approx(told["auc"]["value"], abs=0.0005)
    ill, well = (labels == 1).sum(), (labels == 0).sum()
    assert sensitivity(labels, flagged) == pytest.approx(
        told["sensitivity"]["value"], abs=2.1 / ill
    )
    assert specificity(labels, flagged) == pytest.approx(
        told["specificity"]["value"], abs=2.1 / well
    )


def test_where_no_lung_is_seen_the_exam_is_flagged(
    model: ModelVersion, unseen: tuple[np.ndarray, list[Array]]
) -> None:
    """The answer is near "unknown", never "well"."""
    network = Network(model)
    said = [network.score(without_lungs(picture)).probability for picture in unseen[1][::20]]
    assert min(said) >= model.threshold
    assert np.ptp(said) < 0.2


def test_no_picture_stands_under_two_patients(snapshot: Snapshot) -> None:
    """What is there twice is of one patient: no copy of it is on another side of a split."""
    whose = defaultdict(set)
    for case in snapshot.cases:
        whose[case.digest].add(case.patient)
    assert len(whose) < len(snapshot.cases)
    assert {len(patients) for patients in whose.values()} == {1}


def test_the_folds_share_no_patient(model: ModelVersion, snapshot: Snapshot) -> None:
    """Of those that the figures out of fold are measured on."""
    training = model.description["training"]
    folds = snapshot.folds(training["folds"], training["seed"])
    for rest, held in folds:
        assert not set(snapshot.patients[rest]) & set(snapshot.patients[held])
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(len(snapshot.cases)))
