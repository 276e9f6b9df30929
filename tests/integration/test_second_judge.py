"""DCMTK's ``dcmj2pnm`` as a second judge of the way from stored values to a picture.

It decodes, applies modality and VOI and turns the polarity by itself; what it shows, in 16
bits, is then stretched and resized as a picture file is. ``tests/reference.py``, the first
judge, is ours.
"""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from sample_dicom.draw import chest
from tests.builders import compressed, radiograph, save
from tests.conftest import PYDICOM_DATA, SAMPLES
from triage.pixels import Array, normalize, normalize_file

SHOWN = chest(3, opacity=0.7, shape=(140, 116))


def judged(file: Path, folder: Path, *options: str) -> Array:
    """The array of what DCMTK shows."""
    shown = folder / "shown.png"
    subprocess.run(["dcmj2pnm", "+on2", *options, file, shown], check=True)
    return normalize_file(shown)


def voi(dataset: Dataset) -> tuple[str, ...]:
    """The option for the first VOI that the data set has."""
    if "VOILUTSequence" in dataset:
        return ("+Wl", "1")
    return ("+Wi", "1") if "WindowCenter" in dataset else ("-W",)


def assert_alike(dataset: Dataset, file: Path, folder: Path) -> None:
    """Both give the same array but for rounding."""
    ours, theirs = normalize(dataset).array, judged(file, folder, *voi(dataset))
    assert np.abs(ours - theirs).max() <= 1 / 255


WAYS: dict[str, dict[str, Any]] = {
    "no VOI": {},
    "a window": {"window": (2000.0, 2500.0)},
    "a sigmoid": {"window": (2000.0, 2500.0), "voi_function": "SIGMOID"},
    "a VOI LUT": {"voi_lut": True},
    "a modality LUT": {"modality_lut": True},
    "a modality and a VOI LUT": {"modality_lut": True, "voi_lut": True},
    "a negative slope": {"slope": -10, "intercept": 40_950, "window": (20_000.0, 30_000.0)},
    "signed": {"signed": True, "window": (0.0, 3000.0)},
    "signed, rescaled": {
        "signed": True, "slope": 2, "intercept": -1000, "window": (-1000.0, 6000.0),
    },
    "8 bits": {"bits": 8, "allocated": 8, "window": (120.0, 180.0)},
    "10 bits": {"bits": 10, "window": (500.0, 800.0)},
    "16 bits": {"bits": 16, "window": (30_000.0, 50_000.0)},
}  # fmt: skip


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("way", WAYS)
def test_dcmtk_shows_the_same_picture(way: str, photometric: str, tmp_path: Path) -> None:
    """Rescale, LUTs, windows, signs and depths, in both polarities."""
    dataset = radiograph(SHOWN, photometric=photometric, **WAYS[way])
    assert_alike(dataset, save(dataset, tmp_path / "radiograph.dcm"), tmp_path)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda uid: uid.name,
)
def test_dcmtk_reads_the_same_stored_values(syntax: UID, tmp_path: Path) -> None:
    """In every syntax that needs no JPEG."""
    plain = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    dataset = radiograph(SHOWN, window=(2000.0, 2500.0), transfer_syntax=plain)
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    assert_alike(dataset, save(dataset, tmp_path / "radiograph.dcm"), tmp_path)


@pytest.mark.parametrize("options", [("+e1",), ("+el",), ("+ee", "+bt"), ("+eb",), ("+ep",)])
def test_dcmtk_decodes_the_same_jpeg(options: tuple[str, ...], tmp_path: Path) -> None:
    """Lossless, extended, baseline and progressive; two decoders may round a lossy one apart."""
    deep = options[0] in {"+e1", "+el", "+ee"}
    dataset = radiograph(SHOWN, bits=12 if deep else 8, allocated=16 if deep else 8)
    coded = compressed(dataset, tmp_path, *options)
    ours = normalize(coded).array
    theirs = judged(tmp_path / "after.dcm", tmp_path, *voi(coded))
    assert np.abs(ours - theirs).max() <= (1 if options[0] in {"+e1", "+el"} else 3) / 255


def test_dcmtk_shows_a_dx_of_either_shape_as_we_do(tmp_path: Path) -> None:
    """Presentation LUT Shape agrees with Photometric Interpretation, and neither inverts twice."""
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        dataset = radiograph(
            SHOWN,
            photometric=photometric,
            sop_class=DigitalXRayImageStorageForPresentation,
            window=(2000.0, 2500.0),
        )
        assert_alike(dataset, save(dataset, tmp_path / "radiograph.dcm"), tmp_path)


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.dcm")), ids=lambda path: path.stem)
def test_dcmtk_shows_the_samples_as_we_do(file: Path, tmp_path: Path) -> None:
    """Without shutters, of which dcmj2pnm knows nothing."""
    dataset = dcmread(file)
    for device in ("ShutterShape", "CollimatorShape"):
        dataset.pop(device, None)
    assert_alike(dataset, file, tmp_path)


@pytest.mark.parametrize("name", ["RG1_UNCR", "RG3_UNCR"])
def test_dcmtk_shows_real_radiographs_as_we_do(name: str, tmp_path: Path) -> None:
    """15 and 10 bits, MONOCHROME1, with a window."""
    file = PYDICOM_DATA / f"{name}.dcm"
    assert_alike(dcmread(file), file, tmp_path)
