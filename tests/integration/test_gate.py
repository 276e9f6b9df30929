"""``python -m training gate``: labelled pictures in, a stored decision out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sample_dicom.draw import chest
from tests.conftest import ROOT
from tests.fitted import SMALL
from tests.versions import another
from training.dataset import read_folder
from triage.app import prepare
from triage.config import Config
from triage.errors import ModelError
from triage.registry import Registry

PAIRS = 6


def labelled(folder: Path, first: int) -> Path:
    """Drawn chests of so many healthy and diseased patients."""
    for name, opacity in (("NORMAL", 0.0), ("PNEUMONIA", 0.9)):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + PAIRS):
            array = chest(seed, opacity=opacity, shape=SMALL)
            picture = Image.fromarray((array * (255 / array.max())).astype("uint8"))
            picture.save(folder / name / f"{name}-{seed}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An installation with the bundled champion."""
    home = tmp_path / "home"
    prepare(Config(home=home))
    return home


def gate(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRIAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "training", "gate", *map(str, arguments)],
        env={**inherited, "TRIAGE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home.parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_decision_is_made_of_folders_and_stored(home: Path, tmp_path: Path) -> None:
    """Too few cases here: no proof, and no approval."""
    registry = Registry(home / "models")
    threshold = registry.champion().threshold - 1e-6
    version = registry.add(another(tmp_path / "another", threshold=threshold).folder).version
    exam, reference = labelled(tmp_path / "exam", 0), labelled(tmp_path / "reference", 50)
    locked = tmp_path / "locked.txt"
    locked.write_text("PNEUMONIA/PNEUMONIA-1.png\n")
    done = gate(
        home, "--challenger", version, "--exam", exam, "--reference", reference,
        "--trained-elsewhere", "--locked", locked,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "site.sensitivity" in done.stdout
    assert "reference.auc" in done.stdout
    (stored,) = registry.decisions(version)
    assert stored.outcome == "NOT_PROVEN"
    assert stored.champion == registry.champion().version
    assert json.loads(stored.path.read_text())["figures"]["site"]["cases"] == 2 * PAIRS
    assert "<svg" not in stored.path.with_suffix(".html").read_text()  # it is inside, in base64
    assert "data:image/svg+xml" in stored.path.with_suffix(".html").read_text()
    with pytest.raises(ModelError, match="NOT_PROVEN"):
        registry.approve(version, who="dr", why="")


def test_an_exam_that_was_trained_on_is_refused(home: Path, tmp_path: Path) -> None:
    """The patients of the snapshot are known by its folder, whose hash must be right."""
    registry = Registry(home / "models")
    exam = labelled(tmp_path / "exam", 0)
    for seed in range(PAIRS, 20):  # enough to split
        for name in ("NORMAL", "PNEUMONIA"):
            source = exam / name / f"{name}-{seed % PAIRS}.png"
            (exam / name / f"{name}-{seed}.png").write_bytes(source.read_bytes())
    known = json.loads((registry.champion().folder / "model.json").read_text())
    parts = {"train": known["data"]["parts"]["train"]}
    data = {**known["data"], "snapshot": read_folder(exam).digest, "parts": parts}
    version = registry.add(another(tmp_path / "another", data=data).folder).version
    done = gate(home, "--challenger", version, "--exam", exam, "--trained-on", exam)
    assert done.returncode == 0, done.stderr
    assert registry.decisions(version)[-1].outcome == "REFUSED"
    assert "are in the challenger's snapshot" in done.stdout

    other = labelled(tmp_path / "other", 30)
    done = gate(home, "--challenger", version, "--exam", exam, "--trained-on", other)
    assert done.returncode == 1
    assert "snapshot differs" in done.stderr
    assert done.stderr.startswith("training: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trained-elsewhere"], "nowhere"),
        ([], "give either --trained-on or --trained-elsewhere"),
        (["--trained-elsewhere", "--policy", "nothing.toml"], "nothing.toml cannot be read"),
    ],
)
def test_a_wrong_call_is_told(home: Path, arguments: list[str], said: str, tmp_path: Path) -> None:
    """In one line; nothing is stored."""
    registry = Registry(home / "models")
    version = registry.add(another(tmp_path / "another").folder).version
    done = gate(home, "--challenger", version, "--exam", "nowhere", *arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert registry.decisions(version) == []


def test_the_champion_is_no_challenger(home: Path) -> None:
    """It would be compared with itself."""
    champion = Registry(home / "models").champion().version
    done = gate(home, "--challenger", champion, "--exam", "x", "--trained-elsewhere")
    assert "is the champion" in done.stderr
