"""Novelty and quality on real radiographs, fitted as a user fits them.

Runs where the Kermany data set is at hand: beside the checkout, or where CXR_DATA says.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sample_dicom.draw import chest, hand, lateral
from tests.conftest import ROOT
from tests.degrade import MILD, WRONG, drawn, no_radiographs, pydicom_pictures
from training.dataset import CLASSES, patient_of
from triage.novelty import NOVELTY, Novelty
from triage.pixels import normalize_file
from triage.quality import QUALITY, Quality

DATA = Path(os.environ.get("CXR_DATA", ROOT.parent / "shared" / "data" / "kermany"))
FULL = sorted((DATA / "fullres").glob("*/*.jpeg"))

pytestmark = pytest.mark.skipif(not FULL, reason="the Kermany radiographs are not at hand")


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Quality:
    """Fitted by the command on every second patient, and on none of the full-size pictures'."""
    folder = tmp_path_factory.mktemp("half")
    tested = {patient_of(path.stem) for path in FULL}
    for name in CLASSES:
        (folder / "train" / name).mkdir(parents=True)
        paths = sorted((DATA / "train" / name).glob("*.jpeg"))
        patients = sorted({patient_of(path.stem) for path in paths} - tested)[::2]
        for path in paths:
            if patient_of(path.stem) in patients:
                shutil.copyfile(path, folder / "train" / name / path.name)
    out = folder / "out"
    command = [sys.executable, "-m", "training", "novelty", "--data", folder, "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return Quality.load(out / QUALITY, Novelty.load(out / NOVELTY))


def test_real_chests_are_admitted_and_few_have_findings(quality: Quality) -> None:
    """At most one of 80 is novel, also after mild changes; one in ten has findings."""
    arrays = [normalize_file(path) for path in FULL]
    for degrade in (np.asarray, *MILD.values()):
        assert sum(quality.novelty.is_novel(degrade(array)) for array in arrays) <= 1
    assert sum(bool(quality.findings(array)) for array in arrays) <= 8


@pytest.mark.parametrize("name", [name for name in WRONG if name != "mirrored"])
def test_real_chests_the_wrong_way_or_in_part_are_refused(name: str, quality: Quality) -> None:
    """Nine of ten; of the middle quarter, which is all lung, half."""
    refused = [quality.novelty.is_novel(WRONG[name](normalize_file(path))) for path in FULL]
    assert np.mean(refused) > (0.5 if name == "quarter: middle" else 0.9)


def test_mirrored_real_chests_are_noticed(quality: Quality) -> None:
    """Nine of ten."""
    found = [quality.findings(normalize_file(path)[:, ::-1]) for path in FULL]
    assert np.mean(["MIRRORED" in codes for codes in found]) > 0.9


def test_whatever_is_no_frontal_chest_is_refused(quality: Quality) -> None:
    """Hands, laterals, RG3 and the rest of pydicom's pictures, noise, text, blanks."""
    files = [array for name, array in pydicom_pictures() if not name.startswith("RG1")]
    assert len(files) > 50
    others = [drawn(draw(seed)) for draw in (hand, lateral) for seed in range(6)]
    made = [array for arrays in no_radiographs().values() for array in arrays]
    assert all(quality.novelty.is_novel(array) for array in [*files, *others, *made])


def test_an_adult_s_chest_from_another_console_is_admitted(quality: Quality) -> None:
    """RG1 of pydicom-data, in each of its four encodings."""
    chests = [array for name, array in pydicom_pictures() if name.startswith("RG1")]
    assert len(chests) == 4
    assert not any(map(quality.novelty.is_novel, chests))


def test_drawn_chests_pass_for_real_ones(quality: Quality) -> None:
    """At least nine of ten, so that the samples can show the service at work."""
    arrays = [drawn(chest(seed, opacity=0.9 * (seed % 2))) for seed in range(20)]
    assert np.mean([quality.novelty.is_novel(array) for array in arrays]) <= 0.1
