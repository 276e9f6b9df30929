"""The novelty of a picture: what it is blind to, what it sees, and what it refuses to read."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sample_dicom.draw import hand, lateral
from tests.degrade import MILD, WRONG, drawn, no_radiographs
from tests.fitted import SMALL
from training.novelty import FOLDS, REFUSED, describe, fit, folds
from triage.errors import DataError, ModelError
from triage.novelty import FEATURES, Novelty, features, turned
from triage.pixels import SIDE, Array
from triage.quality import Quality

WAYS = list(product(range(4), (False, True), (False, True)))
NOT_CHESTS = {
    "hand": drawn(hand(1, shape=SMALL)),
    "lateral": drawn(lateral(1, shape=SMALL)),
    **{
        f"{name} {number}": array
        for name, arrays in no_radiographs().items()
        for number, array in enumerate(arrays)
    },
}


@pytest.fixture
def novelty(fitted: Quality) -> Novelty:
    """A fitted measure."""
    return fitted.novelty


def test_an_unseen_chest_is_like_the_training_data(novelty: Novelty, unseen: list[Array]) -> None:
    """Well or ill, at a novelty from 0 to 1."""
    for array in unseen:
        assert 0.0 < novelty.measure(array) <= 1.0
        assert not novelty.is_novel(array)


@pytest.mark.parametrize("name", MILD)
def test_a_mild_change_makes_nothing_novel(
    name: str, novelty: Novelty, unseen: list[Array]
) -> None:
    """Gamma, noise, blur, JPEG, ten degrees, five percent, borders."""
    assert not any(novelty.is_novel(MILD[name](array)) for array in unseen)


@pytest.mark.parametrize("name", [name for name in WRONG if name != "mirrored"])
def test_a_chest_the_wrong_way_or_in_part_is_novel(
    name: str, novelty: Novelty, unseen: list[Array]
) -> None:
    """Turned, upside down, inverted, or a quarter of it. Mirrored is for quality to find."""
    assert all(novelty.is_novel(WRONG[name](array)) for array in unseen)


@pytest.mark.parametrize("name", NOT_CHESTS)
def test_what_is_no_frontal_chest_is_novel(name: str, novelty: Novelty) -> None:
    """Hand, lateral, noise, clouds, text, blank pictures, ramps and discs."""
    assert novelty.measure(NOT_CHESTS[name]) > 1.0


@pytest.mark.parametrize(("quarters", "mirrored", "inverted"), WAYS)
def test_a_turned_picture_has_the_same_features_in_another_order(
    quarters: int, mirrored: bool, inverted: bool
) -> None:
    """As looking at the turned picture finds them."""
    array = np.random.default_rng(1).random((SIDE, SIDE), np.float32) ** 2
    array[40:90, 30:200] += 1.0
    array /= 2.0
    seen = np.rot90(array[:, ::-1] if mirrored else array, quarters)
    expected = features(1 - seen if inverted else seen)
    ours = turned(features(array), quarters, mirrored=mirrored, inverted=inverted)
    assert np.abs(ours - expected).max() < 1e-5
    assert np.abs(features(array) - expected).max() > 0.01 or not (quarters or mirrored or inverted)


def test_features_are_blind_to_window_and_finite_on_blank_pictures(unseen: list[Array]) -> None:
    """Half the contrast, the same features; black and white pictures have some, too."""
    array = unseen[0]
    assert np.abs(features(0.25 + 0.5 * array) - features(array)).max() < 0.02
    for grey in (0.0, 0.5, 1.0):
        blank = features(np.full((SIDE, SIDE), grey, np.float32))
        assert blank.shape == (FEATURES,)
        assert np.isfinite(blank).all()


def test_distances_are_those_of_the_full_gaussian() -> None:
    """Subspace and rest together are the Mahalanobis distance of the whole covariance."""
    random = np.random.default_rng(2)
    mean, scale = random.normal(size=FEATURES), random.uniform(0.5, 2.0, FEATURES)
    basis = np.linalg.qr(random.normal(size=(FEATURES, 3)))[0].T
    variance, rest = np.array([9.0, 4.0, 2.0]), 0.5
    covariance = basis.T @ np.diag(variance - rest) @ basis + rest * np.eye(FEATURES)
    given = random.normal(size=(4, FEATURES))
    centred = (given - mean) / scale
    expected = np.einsum("ij,ij->i", centred @ np.linalg.inv(covariance), centred)
    assert Novelty(mean, scale, basis, variance, rest, 1.0).distances(given) == pytest.approx(
        expected, rel=1e-6
    )


def test_the_fit_is_deterministic_and_its_file_is_small(
    novelty: Novelty, unseen: list[Array], tmp_path: Path
) -> None:
    """The same pictures give the same bytes; what is read back measures the same."""
    arrays = [array.astype(np.float16) for array in unseen]
    patients = np.array([f"p{number}" for number in range(len(arrays))])
    for name in ("one.npz", "two.npz"):
        fit(*describe(arrays, 3), patients).save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    novelty.save(tmp_path / "novelty.npz")
    assert (tmp_path / "novelty.npz").stat().st_size < 1_000_000
    again = Novelty.load(tmp_path / "novelty.npz")
    assert [again.measure(array) for array in unseen] == pytest.approx(
        [novelty.measure(array) for array in unseen], rel=1e-5
    )


def test_no_patient_is_fitted_and_measured_at_once() -> None:
    """Folds are grouped by patient; each picture is held out once."""
    patients = np.array([f"p{number // 3}" for number in range(30)])
    held_out = np.concatenate([held for _, held in folds(patients)])
    assert sorted(held_out) == list(range(30))
    for rest, held in folds(patients):
        assert not set(patients[rest]) & set(patients[held])
    with pytest.raises(DataError, match=f"at least {FOLDS} patients"):
        folds(np.array(["a", "a", "b"]))


def test_the_threshold_keeps_to_the_stated_share() -> None:
    """Of new draws from the same distribution, without being far from them."""
    random = np.random.default_rng(5)
    spread = random.normal(size=(10, FEATURES))
    draws = random.normal(size=(8000, 10)) @ spread + random.normal(size=(8000, FEATURES))
    draws = draws.astype(np.float32)
    patients = np.array([f"p{number}" for number in range(2000)])
    measured = fit(draws[:2000], draws[2000:4000], patients)
    values = measured.distances(draws[4000:]) / measured.threshold
    assert np.mean(values > 1.0) < 2.0 * REFUSED
    assert np.median(values) > 0.7


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(3, np.float32)},
        {"variance": np.ones(2, np.float32)},
        {"scale": np.zeros(FEATURES, np.float32)},
        {"threshold": 0.0},
        {"rest": float("nan")},
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_is_refused(
    change: dict[str, object], novelty: Novelty, tmp_path: Path
) -> None:
    """Another shape, no variance, a threshold of zero, a NaN: ModelError that names the file."""
    path = tmp_path / "novelty.npz"
    replace(novelty, **change).save(path)
    with pytest.raises(ModelError, match=r"novelty\.npz is damaged"):
        Novelty.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x04N."])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    """Empty, truncated, pickled, or not there."""
    path = tmp_path / "novelty.npz"
    with pytest.raises(ModelError, match="cannot be read"):
        Novelty.load(path)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        Novelty.load(path)
