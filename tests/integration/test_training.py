"""Training runs as a user starts them: real processes on small drawn data."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_dicom.draw import chest
from tests.here import training_here
from training.dataset import CLASSES, patient_of, read_folder
from triage.errors import DataError
from triage.network import Network
from triage.pixels import fingerprint, normalize_file
from triage.registry import ModelVersion

PATIENTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pictures of each of eight patients a class, in the published layout."""
    root = tmp_path_factory.mktemp("data")
    for label, class_name in enumerate(CLASSES):
        (root / "train" / class_name).mkdir(parents=True)
        for patient in range(PATIENTS):
            for number in range(2):
                seed = 100 * label + 10 * patient + number
                picture = chest(seed, opacity=0.9 * label, shape=(140, 116))
                name = (
                    f"person{patient}_virus_{number}.jpeg"
                    if label
                    else f"IM-{patient:04}-{number:04}.jpeg"
                )
                grey = np.rint(picture * 255).astype(np.uint8)
                Image.fromarray(grey).save(root / "train" / class_name / name, quality=95)
    return root


def train(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m training fit``."""
    return subprocess.run(
        command(data, out), capture_output=True, text=True, check=False, timeout=600
    )


def command(data: Path, out: Path, architecture: str = "final_model") -> list[str]:
    """The command line of a run of two epochs."""
    return [sys.executable, "-m", "training", *fit(data, out, architecture)]


def fit(data: Path, out: Path, architecture: str = "final_model") -> list[str]:
    """What is said to ``training`` for it."""
    return [
        "fit", "--data", str(data), "--architecture", architecture, "--seed", "3",
        "--epochs", "2", "--out", str(out),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("finished") / "model"
    done = train(folder, out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_writes_a_whole_model_version(finished: Path) -> None:
    """Weights, exported network and a description that says what a reader must know."""
    model = ModelVersion.load(finished)
    told = model.description
    assert model.pixel_fingerprint == fingerprint()
    assert told["parameters"] == 304_082
    network = {"model.weights.h5", "model.xml", "model.bin"}
    assert set(told["files"]) == {*network, "novelty.npz", "quality.npz"}
    assert told["pictures"]["held_out"] == sum(
        told["data"]["parts"]["held_out"][name] for name in CLASSES
    )
    assert set(told["metrics"]["held_out"]) >= {"auc", "sensitivity", "specificity", "accuracy"}
    for figure in told["metrics"]["held_out"].values():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert told["population"]["age_years"] == [1, 5]
    assert "CC BY 4.0" in told["data"]["licence"]
    assert told["data"]["attribution"]
    assert sum(part["patients"] for part in told["data"]["parts"].values()) == 2 * PATIENTS
    assert told["device_uid"].startswith("2.25.")
    assert not (finished / "checkpoint").exists()


def test_exported_and_trained_network_agree(finished: Path, folder: Path) -> None:
    """Largest difference of probabilities below 1e-3 on drawn radiographs."""
    from training.networks import build

    keras_network = build("final_model")
    keras_network.load_weights(finished / "model.weights.h5")
    network = Network(ModelVersion.load(finished))
    for path in sorted((folder / "train").glob("*/*.jpeg")):
        array = normalize_file(path)
        expected = float(keras_network(array[np.newaxis, :, :, np.newaxis])[0, 0])
        assert abs(network.score(array).probability - expected) < 1e-3


def test_a_killed_run_goes_on_where_it_was(folder: Path, finished: Path, tmp_path: Path) -> None:
    """After kill -9 the same command resumes, and ends as if it had not been killed."""
    out = tmp_path / "model"
    history = out / "checkpoint" / "history.json"
    run = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not history.exists():
        assert run.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.kill()
    run.communicate()
    before = json.loads(history.read_text()) if history.exists() else []
    done = train(folder, out)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((out / "model.json").read_text())["training"]["history"]
    whole = json.loads((finished / "model.json").read_text())["training"]["history"]
    assert len(before) == 1
    assert resumed[0] == before[0]
    assert len(resumed) == len(whole) == 2
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)


def test_no_patient_is_on_two_sides(folder: Path) -> None:
    """For any seed, the parts cover all cases and share no patient."""
    snapshot = read_folder(folder)
    for seed in range(10):
        parts = snapshot.split(seed)
        assert sorted(np.concatenate(list(parts.values()))) == list(range(len(snapshot.cases)))
        patients = [set(snapshot.patients[rows]) for rows in parts.values()]
        assert sum(map(len, patients)) == len(set.union(*patients))


def test_a_snapshot_has_the_hash_of_its_content(folder: Path, tmp_path: Path) -> None:
    """The same folder has the same hash; one changed byte has another."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert read_folder(copy).digest == read_folder(folder).digest
    victim = next((copy / "train" / "NORMAL").iterdir())
    victim.write_bytes(victim.read_bytes() + b"\0")
    assert read_folder(copy).digest != read_folder(folder).digest


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("person7_virus_9", "person7"),
        ("person1003_bacteria_2934", "person1003"),
        ("IM-0115-0001", "normal115"),
        ("NORMAL2-IM-0115-0001-0002", "normal115"),
        ("anything-else", "anything-else"),
    ],
)
def test_a_file_name_carries_the_patient(stem: str, patient: str) -> None:
    """Names of the published data set; another name is a patient of its own."""
    assert patient_of(stem) == patient


def broken(folder: Path, to: Path, damage: str) -> Path:
    """A copy of the data with something wrong."""
    shutil.copytree(folder, to)
    pneumonia = to / "train" / "PNEUMONIA"
    match damage:
        case "missing class":
            shutil.rmtree(pneumonia)
        case "empty class":
            for file in pneumonia.iterdir():
                file.unlink()
        case "unreadable":
            (pneumonia / "person0_virus_0.jpeg").write_text("no picture")
        case "too few":
            for file in pneumonia.glob("person[1-9]*"):
                file.unlink()
    return to


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing class", "PNEUMONIA is missing"),
        ("empty class", "has no picture"),
        ("unreadable", "person0_virus_0.jpeg"),
        ("too few", "class PNEUMONIA has 1 patients"),
    ],
)
def test_bad_data_ends_in_one_line(damage: str, words: str, folder: Path, tmp_path: Path) -> None:
    """What is wrong and where, exit status 1, no traceback, before any epoch."""
    done = training_here(*fit(broken(folder, tmp_path / "data", damage), tmp_path / "model"))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Epoch" not in done.stdout


def test_an_unknown_architecture_is_named(folder: Path, tmp_path: Path) -> None:
    """And the known ones are listed."""
    line = subprocess.run(
        command(folder, tmp_path / "model", "no_model"), capture_output=True, text=True, check=False
    )
    assert line.returncode == 1
    assert "'no_model'; known: " in line.stderr
    assert "final_model" in line.stderr


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("run.json", "damaged"),
        ("last.keras", "damaged"),
        ("larger_l2", "another architecture than final_model"),
        (None, "another run"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    file: str | None, words: str, folder: Path, tmp_path: Path
) -> None:
    """Damaged, or of another run: one line that says what to do."""
    checkpoint = tmp_path / "model" / "checkpoint"
    checkpoint.mkdir(parents=True)
    snapshot = read_folder(folder)
    identity = {
        "architecture": "final_model",
        "seed": 3 if file else 4,
        "precision": "float32",
        "snapshot": snapshot.digest,
        "pixel_fingerprint": fingerprint(),
    }
    (checkpoint / "run.json").write_text(json.dumps(identity))
    row = {"accuracy": 0.5, "loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}
    (checkpoint / "history.json").write_text(json.dumps([row]))
    if file == "larger_l2":
        from training.networks import build

        build(file).save(checkpoint / "last.keras")
    elif file:
        (checkpoint / file).write_text("{ damaged")
    done = training_here(*fit(folder, tmp_path / "model"))
    assert done.returncode == 1
    assert words in done.stderr
    assert "remove" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_version_is_not_overwritten(folder: Path, finished: Path) -> None:
    """Versions never change."""
    before = (finished / "model.json").read_bytes()
    done = training_here(*fit(folder, finished))
    assert done.returncode == 1
    assert "already holds a finished model version" in done.stderr
    assert (finished / "model.json").read_bytes() == before


def test_a_patient_in_two_splits_is_refused(folder: Path, tmp_path: Path) -> None:
    """In a layout of one's own; the published data's other split numbers patients anew."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    shutil.copytree(own / "train" / "NORMAL", own / "test" / "NORMAL")
    assert len(read_folder(own).cases) == 4 * PATIENTS
    first = own / "train" / "NORMAL" / "IM-0000-0000.jpeg"
    first.rename(first.with_name("child-17.jpeg"))
    with pytest.raises(DataError, match=r"two splits: test/NORMAL/IM-0000-0000\.jpeg"):
        read_folder(own)


def test_a_picture_in_two_splits_or_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    """Whatever its name says: by its content."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    first = own / "train" / "NORMAL" / "IM-0000-0000.jpeg"
    first.rename(first.with_name("child-17.jpeg"))
    (own / "test").mkdir()
    copy = own / "test" / "child-18.jpeg"
    shutil.copy(first.with_name("child-17.jpeg"), copy)
    with pytest.raises(DataError, match=r"picture is in two splits: test/child-18\.jpeg"):
        read_folder(own)
    copy.rename(own / "train" / "PNEUMONIA" / "child-19.jpeg")
    with pytest.raises(DataError, match=r"both classes: train/NORMAL/child-17\.jpeg"):
        read_folder(own)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(DataError, match="nowhere"):
        read_folder(tmp_path / "nowhere")
