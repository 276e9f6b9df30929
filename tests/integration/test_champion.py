"""The champion's training as its maker starts it: real processes on small drawn data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_dicom.draw import chest
from tests.here import training_here
from training.augment import blinded, grafted, varied
from training.calibrate import calibrate, calibration_error, choose_threshold
from training.dataset import CLASSES, read_folder
from training.finetune import Varied, balanced
from training.stress import CHANGES, STRENGTHS, as_sent, changed, exchanged, without_lungs
from triage.card import card
from triage.explanation import explain
from triage.network import Network
from triage.pixels import normalize_file
from triage.registry import ModelVersion

FEATURE_MEANS = [0.097384, 0.10131]
SOME_FEATURES = {113: 6.0, 269: 3.3222, 434: 3.6778, 455: 4.3533, 994: 4.3728, 1233: 2.4468}

ON_RAY = os.environ.get("ON_RAY") == "full"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pictures of each of eight patients a class, in the published layout."""
    root = tmp_path_factory.mktemp("data")
    for label, class_name in enumerate(CLASSES):
        (root / "train" / class_name).mkdir(parents=True)
        for patient in range(8):
            for number in range(2):
                seed = 100 * label + 10 * patient + number
                grey = chest(seed, opacity=0.9 * label, shape=(140, 116))
                name = (
                    f"person{patient}_{'virus' if patient % 2 else 'bacteria'}_{number}.jpeg"
                    if label
                    else f"IM-{patient:04}-{number:04}.jpeg"
                )
                path = root / "train" / class_name / name
                Image.fromarray(np.rint(grey * 255).astype(np.uint8)).save(path, quality=95)
    return root


def training(*line: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m training``."""
    return subprocess.run(
        [sys.executable, "-m", "training", *map(str, line)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def folds(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command of two folds of one epoch, unless ``more`` says otherwise."""
    options = ("--data", folder, "--seed", 3, "--folds", 2, "--epochs", 1, "--out", out, *more)
    return "crossvalidate", *options


def crossvalidate(folder: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Two folds of one epoch, unless ``more`` says otherwise."""
    return training(*folds(folder, out, *more))


def whole(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command that fits on all patients."""
    options = ("--data", folder, "--architecture", "efficientnet_lite0", "--seed", 3)
    return "fit", *options, "--out", out, *more


def fit(
    folder: Path, crossvalidated: Path, out: Path, *more: object
) -> subprocess.CompletedProcess[str]:
    """Fit on all patients."""
    return training(*whole(folder, out, "--crossvalidated", crossvalidated, *more))


@pytest.fixture(scope="module")
def crossvalidated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cross-validation."""
    out = tmp_path_factory.mktemp("crossvalidated") / "folds"
    done = crossvalidate(folder, out)
    assert done.returncode == 0, done.stderr
    assert "auc" in done.stdout
    return out


@pytest.fixture(scope="module")
def version(
    folder: Path, crossvalidated: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelVersion:
    """A finished version."""
    out = tmp_path_factory.mktemp("version") / "model"
    done = fit(folder, crossvalidated, out)
    assert done.returncode == 0, done.stderr
    return ModelVersion.load(out)


@pytest.fixture(scope="module")
def arrays(folder: Path) -> list[np.ndarray]:
    """Some pictures of each class."""
    return [normalize_file(path) for path in sorted(folder.glob("train/*/*.jpeg"))[::4]]


def test_the_port_gives_the_original_s_features() -> None:
    """Figures of the PyTorch model with its own weights (torch 2.13.0) on the same picture.

    The picture is grey noise from a seed; the stem halves what it is given.
    """
    import keras

    from training.efficientnet import features, imagenet

    picture = keras.Input((224, 224, 1))
    network = keras.Model(picture, features(picture))
    imagenet(network)
    noise = np.random.default_rng(0).random((2, 224, 224, 1), np.float32) * 2 - 1
    found = network.predict_on_batch(2 * noise)
    assert found.shape == (2, 7, 7, 1280)
    assert found.mean(axis=(1, 2, 3)) == pytest.approx(FEATURE_MEANS, abs=1e-5)
    for channel, value in SOME_FEATURES.items():
        assert found[0, 3, 3, channel] == pytest.approx(value, abs=1e-3)


def test_a_version_is_whole_and_small(version: ModelVersion, folder: Path) -> None:
    """Weights once, in half precision; figures out of fold; everybody trained."""
    told = version.description
    assert set(told["files"]) == {"model.xml", "model.bin", "novelty.npz", "quality.npz"}
    assert sum((version.folder / name).stat().st_size for name in told["files"]) < 12e6
    assert told["data"]["parts"]["train"]["patients"] == 16
    for part in ("out_of_fold", "copies"):
        for figure in told["metrics"][part].values():
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert told["metrics"]["out_of_fold"]["sensitivity"]["value"] >= 0.975
    assert told["pretrained"]["licence"] == "Apache-2.0"
    assert not (version.folder / "checkpoint").exists()


def test_a_fold_s_network_can_be_the_version(
    folder: Path, crossvalidated: Path, version: ModelVersion, tmp_path: Path
) -> None:
    """Without training; then its own figures are of the patients that its fold held out."""
    given = ("--crossvalidated", crossvalidated, "--fold", 3)
    beyond = training_here(*whole(folder, tmp_path / "model", *given))
    assert beyond.returncode == 1
    assert "has 2 folds" in beyond.stderr
    done = fit(folder, crossvalidated, tmp_path / "model", "--fold", 1)
    assert done.returncode == 0, done.stderr
    assert "Epoch" not in done.stdout
    told = ModelVersion.load(tmp_path / "model").description
    parts = told["data"]["parts"]
    assert parts["train"]["patients"] + parts["held_out"]["patients"] == 16
    assert set(told["metrics"]["held_out"]) >= {"auc", "sensitivity"}
    assert told["threshold"] == version.threshold
    stressed = training(
        "stress", "--data", folder, "--model", tmp_path / "model", "--pictures", 99, "--into",
        tmp_path / "told", "--out", tmp_path / "table.md",
    )  # fmt: skip
    assert stressed.returncode == 0, stressed.stderr
    # Without the cross-validation, on nobody that this network was trained on.
    unseen = read_folder(folder).never_seen(told)
    known = ModelVersion.load(tmp_path / "told")
    assert known.description["robustness"]["pictures"] == len(unseen)
    assert known.description["parent"] == told["version"]
    assert known.description["files"] == told["files"]
    assert "| its borders alone |" in card(known)


def test_keras_goes_on_from_the_exported_network(
    version: ModelVersion, arrays: list[np.ndarray]
) -> None:
    """Both give the same probabilities, the calibration included; the map's mean is the logit."""
    from training.exported import restore

    keras_network = restore("efficientnet_lite0", version.folder)
    network = Network(version)
    expected = keras_network.predict_on_batch(np.stack(arrays)[..., np.newaxis])[:, 0]
    for array, probability in zip(arrays, expected, strict=True):
        score, evidence = network.explained(array)
        assert score.probability == pytest.approx(float(probability), abs=1e-3)
        assert evidence is not None
        logit = np.log(score.probability / (1 - score.probability))
        assert float(evidence.mean()) == pytest.approx(logit, abs=1e-3)
        heat = explain(network, array)
        assert heat.heat.shape == evidence.shape
        assert not score.flagged or heat.heat.max() > 0


def test_the_weights_of_another_architecture_are_refused(version: ModelVersion) -> None:
    from training.exported import restore
    from triage.errors import DataError

    with pytest.raises(DataError, match="not of final_model"):
        restore("final_model", version.folder)


def test_stress_tells_every_change(
    folder: Path, crossvalidated: Path, version: ModelVersion, tmp_path: Path
) -> None:
    """Each change in both strengths, and the covered pictures, in one table."""
    out = tmp_path / "robustness.md"
    options = ("--data", folder, "--model", version.folder, "--pictures", 12, "--out", out)
    done = training("stress", *options, "--crossvalidated", crossvalidated)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    for name in CHANGES:
        for strength in STRENGTHS:
            assert f"| {name} | {strength} | " in text
    assert "| only borders |" in text
    seen = tmp_path / "seen.toml"
    seen.write_text('"train/NORMAL/nobody.jpeg" = "nothing"')
    more = ("--crossvalidated", crossvalidated, "--into", tmp_path / "told")
    strange = training_here("stress", *options, *more, "--seen", seen)
    assert strange.returncode == 1
    assert "nobody.jpeg is not among the worst failures" in strange.stderr
    assert "gamma" not in strange.stderr
    without = training_here("stress", *options)
    assert without.returncode == 1
    assert "--crossvalidated" in without.stderr


def test_the_card_says_what_the_version_says(version: ModelVersion, tmp_path: Path) -> None:
    """Name, threshold and every figure; what it is not for; whom to credit."""
    done = training("card", "--model", version.folder, "--out", tmp_path / "card.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "card.md").read_text()
    assert text.startswith(card(version))
    assert (tmp_path / "card.svg").read_text().startswith("<svg")
    told = version.description
    for words in (version.version, f"{version.threshold:.4f}", "must not be used", "CC BY 4.0"):
        assert words in text
    for figure in told["metrics"]["out_of_fold"].values():
        row = f"| {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} |"
        assert row in text


def test_a_stopped_crossvalidation_goes_on(
    folder: Path, crossvalidated: Path, tmp_path: Path
) -> None:
    """With a fold's network gone and its checkpoint kept, the same scores come out."""
    copy = tmp_path / "folds"
    shutil.copytree(crossvalidated, copy)
    for file in ("out_of_fold.npz", "network.xml"):
        (copy / "fold1" / file).unlink()
    done = crossvalidate(folder, copy)
    assert done.returncode == 0, done.stderr
    assert "Epoch" not in done.stdout
    with (
        np.load(copy / "fold1" / "out_of_fold.npz") as ours,
        np.load(crossvalidated / "fold1" / "out_of_fold.npz") as theirs,
    ):
        assert np.array_equal(ours["rows"], theirs["rows"])
        assert np.allclose(ours["logits"], theirs["logits"], atol=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("more", "damage", "words"),
    [
        (("--seed", 4), None, "differs in seed"),
        (("--architecture", "final_model"), None, "is not fine-tuned"),
        (("--architecture", "no_model"), None, "no architecture 'no_model'"),
        (("--folds", 9), None, "has 8 patients; 9 folds"),
        ((), "plan.json", "damaged"),
        ((), "fold1/last.keras", "damaged"),
        ((), "fold1/larger_l2", "another architecture"),
        ((), "fold1/history.json", "damaged"),
        ((), "fold1/out_of_fold.npz", "damaged"),
    ],
)
def test_what_cannot_be_cross_validated_ends_in_one_line(
    more: tuple[object, ...],
    damage: str | None,
    words: str,
    folder: Path,
    crossvalidated: Path,
    tmp_path: Path,
) -> None:
    """Exit status 1, what and where, no traceback, before any epoch."""
    copy = tmp_path / "folds"
    shutil.copytree(crossvalidated, copy)
    if damage == "fold1/larger_l2":
        from training.networks import build

        build("larger_l2").save(copy / "fold1" / "last.keras")
        (copy / "fold1" / "network.xml").unlink()
    elif damage:
        (copy / damage).write_text("{ damaged")
        if "out_of_fold" not in damage:
            (copy / "fold1" / "network.xml").unlink()
    done = training_here(*folds(folder, copy, *more))
    assert done.returncode == 1, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Epoch" not in done.stdout


def test_a_fit_needs_a_finished_crossvalidation_of_its_own_data(
    folder: Path, crossvalidated: Path, tmp_path: Path
) -> None:
    """None, or of other data: refused before any picture is read."""
    done = fit(folder, tmp_path / "nothing", tmp_path / "model")
    assert done.returncode == 1
    assert "run crossvalidate first" in done.stderr
    done = training_here(*whole(folder, tmp_path / "model"))
    assert done.returncode == 1
    assert "run crossvalidate, then fit" in done.stderr
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    (copy / "train" / "NORMAL" / "IM-0000-0000.jpeg").unlink()
    done = training_here(*whole(copy, tmp_path / "model", "--crossvalidated", crossvalidated))
    assert done.returncode == 1
    assert "differs in snapshot" in done.stderr


def test_a_copy_depends_on_its_generator_only(folder: Path) -> None:
    """The same picture and seed give the same copy, another seed another one."""
    case = read_folder(folder).cases[0]
    grey = np.asarray(Image.open(case.path).resize((256, 256)))
    first = varied(grey, 192, np.random.default_rng(1))
    assert first.shape == (192, 192)
    assert first.dtype == np.float32
    assert 0.0 <= first.min() < first.max() <= 1.0
    assert np.array_equal(first, varied(grey, 192, np.random.default_rng(1)))
    assert not np.array_equal(first, varied(grey, 192, np.random.default_rng(2)))


def test_a_graft_keeps_the_middle_and_takes_the_rim() -> None:
    """Within 16 hundredths of an edge anything may be the other's; 4 hundredths always are."""
    for seed in range(20):
        made = grafted(
            np.full((256, 256), 200, np.uint8),
            np.full((256, 256), 50, np.uint8),
            np.random.default_rng(seed),
        )
        assert (made[60:-60, 60:-60] == 200).all()
        assert (made[[0, -1]] == 50).all()
        assert (made[:, [0, -1]] == 50).all()


def test_who_is_blinded_says_nothing_of_the_middle() -> None:
    """Two pictures that differ in the middle only are one picture when blinded."""
    random = np.random.default_rng(3)
    picture = random.integers(0, 256, (256, 256)).astype(np.uint8)
    other = picture.copy()
    other[100:150, 100:150] = 255 - other[100:150, 100:150]
    differ = []
    for seed in range(30):
        covered = [blinded(each, np.random.default_rng(seed)) for each in (picture, other)]
        assert np.array_equal(covered[0][:5], picture[:5])
        differ.append(np.abs(covered[0].astype(int) - covered[1].astype(int)).max())
    # Four greys of a blur may still tell a little.
    assert np.median(differ) == 0
    assert max(differ) < 40


def test_training_says_unknown_of_who_is_blinded(arrays: list[np.ndarray]) -> None:
    """About 8 in 100 copies have the label 0.5 and their own weight; the others keep theirs."""
    pictures = np.rint(np.stack(arrays * 20)[:64] * 255).astype(np.uint8)
    truth = (np.arange(64) % 4 == 0).astype(np.int64)
    shown = (pictures, truth.astype(np.float32), balanced(truth))
    said, weights = [], []
    for epoch in range(4):
        for copies, labels, weight in (Varied(*shown, 1, epoch)[i] for i in range(2)):
            assert copies.shape == (32, 192, 192, 1)
            said.append(labels.ravel())
            weights.append(weight)
    said_, weighed = np.concatenate(said), np.concatenate(weights)
    assert 0.03 < np.mean(said_ == 0.5) < 0.15
    assert set(weighed[said_ == 0.5]) == {1.0}
    assert weighed[said_ == 1.0].min() == 2.0
    assert weighed[said_ == 0.0].max() == pytest.approx(2 / 3)


def test_exchanged_pictures_have_the_lungs_of_one_and_the_rest_of_the_other() -> None:
    """Together they are both pictures again."""
    dark, light = np.zeros((256, 256), np.float32), np.ones((256, 256), np.float32)
    one, two = exchanged(dark, light), exchanged(light, dark)
    assert (one + two == 1).all()
    assert one[128, 128] == 0
    assert one[0, 0] == 1
    assert (without_lungs(one) == without_lungs(light)).all()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_changes_and_more_so_when_strong(name: str, arrays: list[np.ndarray]) -> None:
    """Mean difference over some pictures; polarity is corrected, so it changes nothing."""
    apart = {
        strength: np.mean(
            [
                np.abs(changed(array, name, strength, np.random.default_rng(5)) - array).mean()
                for array in arrays
            ]
        )
        for strength in STRENGTHS
    }
    as_is = np.mean([np.abs(as_sent(array) - array).mean() for array in arrays])
    if name.startswith("polarity"):
        assert apart["mild"] == pytest.approx(as_is, abs=1e-3)
    elif name == "markers added":
        # A few letters: no more in the mean than the rounding to 12 bits. Where they are, much.
        pair = [changed(arrays[0], name, s, np.random.default_rng(5)) for s in STRENGTHS]
        apart_at_most = [float(np.abs(one - arrays[0]).max()) for one in pair]
        assert min(apart_at_most) > 0.2
    else:
        assert as_is < apart["mild"] < apart["strong"]


def test_calibration_finds_the_logits_meaning() -> None:
    """Logits that are twice too bold are halved; then the error is small."""
    random = np.random.default_rng(1)
    meant = random.normal(0.5, 2.0, 20_000)
    labels = (random.random(20_000) < 1 / (1 + np.exp(-meant))).astype(np.int64)
    found = calibrate(labels, 2 * meant - 1)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.intercept == pytest.approx(0.5, abs=0.06)
    bold = 1 / (1 + np.exp(-(2 * meant - 1)))
    assert calibration_error(labels, found.probabilities(2 * meant - 1)) < 0.015
    assert calibration_error(labels, bold) > 0.05


def test_the_threshold_is_sensitive_enough_and_then_best_on_copies() -> None:
    """Copies with lower scores pull it down, never up over what sensitivity allows."""
    labels = np.repeat([0, 1], 100)
    scores = np.concatenate([np.linspace(0.0, 0.3, 100), np.linspace(0.5, 1.0, 100)])
    same = choose_threshold(labels, scores, scores[:, None], 0.98)
    assert np.mean(scores[labels == 1] >= same) >= 0.98
    lower = choose_threshold(labels, scores, 0.7 * scores[:, None], 0.98)
    assert 0.21 < lower <= 0.35 < same
    higher = choose_threshold(labels, scores, (scores[:, None] + 1) / 2, 0.98)
    assert np.mean(scores[labels == 1] >= higher) >= 0.98


def test_the_description_is_json_that_a_program_reads(version: ModelVersion) -> None:
    """And its calibration is in the last layer, not left to who scores."""
    told = json.loads((version.folder / "model.json").read_text())
    assert told["calibration"]["slope"] > 0
    assert told["failures"]["missed"] >= 0


@pytest.mark.skipif(not ON_RAY, reason="trains twice: make ray")
def test_folds_that_a_cluster_trains_say_the_same(
    folder: Path, crossvalidated: Path, tmp_path: Path
) -> None:
    """Same snapshot, same split; each fold's network comes here whole, and judges alike."""
    out = tmp_path / "folds"
    done = crossvalidate(folder, out, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 folds train on the cluster at local" in done.stdout
    for number in range(2):
        here, there = (
            np.load(place / f"fold{number}" / "out_of_fold.npz") for place in (crossvalidated, out)
        )
        np.testing.assert_array_equal(there["rows"], here["rows"])
        # TensorFlow sums in another order with other threads; with one each it is the same.
        np.testing.assert_allclose(there["logits"], here["logits"], rtol=0, atol=0.05)
    again = crossvalidate(folder, out, "--ray", "local")
    assert again.returncode == 0, again.stderr
    assert "train" not in again.stdout
