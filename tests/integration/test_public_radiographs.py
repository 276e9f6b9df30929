"""The computed radiographs of pydicom-data, in every encoding, sent by DCMTK and scored.

RG1 is a chest, PA, MONOCHROME1 of 15 bits, from a console that wrote its collimator in
millimetres; RG3 is a leg. Both come in JPEG 2000 with and without loss, and uncompressed
from either. Their headers say that they are copies, so that they are sent as they are and
with a header that says what they were.
"""

import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.builders import reread, save
from tests.conftest import PYDICOM_DATA, Service, free_port, wait_for
from triage.pixels import Array, normalize
from triage.worklist import State, WorklistItem

LOSSLESS = ("UNCR", "J2KR")
LOSSY = ("UNCI", "J2KI")
CLAIMS = {
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PatientAge": "003Y",
    "StudyDescription": "",
}
# One context per syntax: then no acceptor makes the sender choose between them.
STORESCU_PROFILE = r"""
[[TransferSyntaxes]]
[Explicit]
TransferSyntax1 = LittleEndianExplicit
[Lossless]
TransferSyntax1 = JPEG2000LosslessOnly
[Lossy]
TransferSyntax1 = JPEG2000
[[PresentationContexts]]
[CR]
PresentationContext1 = ComputedRadiographyImageStorage\Explicit
PresentationContext2 = ComputedRadiographyImageStorage\Lossless
PresentationContext3 = ComputedRadiographyImageStorage\Lossy
[[Profiles]]
[Default]
PresentationContexts = CR
"""


def file(name: str) -> Path:
    """One of the files; never fetched."""
    return PYDICOM_DATA / f"{name}.dcm"


def array(dataset: Dataset) -> Array:
    """What a network is shown."""
    return normalize(dataset).array


@pytest.mark.parametrize("picture", ["RG1", "RG3"])
def test_all_files_of_a_radiograph_give_one_array(picture: str) -> None:
    """Without loss within 1/255, with a loss of ten to one within 3/255 on average."""
    exact = [array(dcmread(file(f"{picture}_{name}"))) for name in LOSSLESS]
    near = [array(dcmread(file(f"{picture}_{name}"))) for name in LOSSY]
    for pair in (exact, near):
        assert np.abs(pair[0] - pair[1]).max() <= 1 / 255
    for one in near:
        assert np.abs(one - exact[0]).mean() <= 3 / 255


@pytest.mark.parametrize("picture", ["RG1", "RG3"])
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda uid: uid.name,
)
def test_re_encoded_without_loss_it_gives_the_same_array(
    picture: str, syntax: object, tmp_path: Path
) -> None:
    """Exactly, whoever encodes: DCMTK what it can, else pydicom."""
    original = dcmread(file(f"{picture}_UNCR"))
    expected = array(original)
    options = {
        ImplicitVRLittleEndian: "+ti", ExplicitVRBigEndian: "+tb",
        DeflatedExplicitVRLittleEndian: "+td",
    }  # fmt: skip
    if syntax in options:
        after = tmp_path / "after.dcm"
        before = file(f"{picture}_UNCR")
        subprocess.run(["dcmconv", options[syntax], before, after], check=True)
        encoded = dcmread(after)
        assert encoded.file_meta.TransferSyntaxUID == syntax
    else:
        original.compress(syntax, generate_instance_uid=False)
        encoded = reread(original)
    assert np.array_equal(array(encoded), expected)


@pytest.mark.parametrize("name", ["RG1_UNCR", "RG3_UNCR"])
def test_lossless_jpeg_of_a_radiograph_gives_the_same_array(name: str, tmp_path: Path) -> None:
    """15 and 10 bits, both selection values that DCMTK writes."""
    expected = array(dcmread(file(name)))
    for option in ("+e1", "+el"):
        after = tmp_path / "after.dcm"
        subprocess.run(["dcmcjpeg", option, file(name), after], check=True)
        assert np.array_equal(array(dcmread(after)), expected)


def test_the_polarity_of_a_radiograph_does_not_matter() -> None:
    """MONOCHROME2 with inverted values and the window turned over."""
    original = dcmread(file("RG1_UNCR"))
    expected = array(original)
    stored = original.pixel_array
    original.PixelData = ((1 << original.BitsStored) - 1 - stored).astype("<u2").tobytes()
    original.PhotometricInterpretation = "MONOCHROME2"
    original.WindowCenter = (1 << original.BitsStored) - float(original.WindowCenter)
    assert np.abs(array(original) - expected).max() <= 1 / 255


def test_a_collimator_in_millimetres_hides_nothing_and_is_noted() -> None:
    """RG1's would leave 2% of the chest."""
    normalized = normalize(dcmread(file("RG1_UNCR")))
    assert normalized.notes == ("SHUTTER_INVALID",)
    assert (normalized.array > 0.05).mean() > 0.5


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WorklistItem]:
    """The rows of everything, sent by storescu to the service and settled; by name."""
    folder = tmp_path_factory.mktemp("public")
    sent: dict[str, str] = {}
    files = []
    for path in sorted(PYDICOM_DATA.glob("RG?_*.dcm")):
        for kind, claims in (("as it is", {}), ("claimed", CLAIMS)):
            dataset = dcmread(path)
            for keyword, value in claims.items():
                setattr(dataset, keyword, value)
            dataset.SOPInstanceUID = generate_uid()
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            files.append(save(dataset, folder / f"{len(files):02}.dcm"))
            sent[dataset.SOPInstanceUID] = f"{path.stem} {kind}"
    profile = folder / "storescu.cfg"
    profile.write_text(STORESCU_PROFILE)
    service = Service(folder / "home", free_port())
    service.start("--roles", "receive,score")
    try:
        command = ["storescu", "-xf", profile, "Default", "-aec", "TRIAGE", "127.0.0.1"]
        subprocess.run([*command, str(service.port), *files], check=True)
        worklist = service.worklist()
        wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=60)
        items = {sent[item.sop_instance_uid]: item for item in worklist.items()}
        worklist.close()
    finally:
        service.stop()
    return items


def test_a_leg_is_not_scored_whatever_its_header_says(scored: dict[str, WorklistItem]) -> None:
    """By header for the copy and the leg, by picture where the header claims a chest."""
    assert {name: item.reason for name, item in scored.items() if name.startswith("RG3")} == {
        "RG3_J2KI as it is": "DERIVED",
        "RG3_J2KI claimed": "NOT_LIKE_TRAINING",
        "RG3_J2KR as it is": "DERIVED",
        "RG3_J2KR claimed": "NOT_LIKE_TRAINING",
        "RG3_UNCI as it is": "DERIVED",
        "RG3_UNCI claimed": "NOT_LIKE_TRAINING",
        "RG3_UNCR as it is": "NOT_CHEST",
        "RG3_UNCR claimed": "NOT_LIKE_TRAINING",
    }


def test_the_chest_is_scored_alike_in_every_encoding(scored: dict[str, WorklistItem]) -> None:
    """Where its header admits it; each but the first is noted as the same exposure."""
    chests = {name: item for name, item in scored.items() if name.startswith("RG1")}
    assert len(chests) == 8
    assert {item.reason for name, item in chests.items() if "as it is" in name} == {"DERIVED"}
    claimed = [item for name, item in chests.items() if "claimed" in name]
    assert {item.state for item in claimed} == {State.SCORED}
    for one, other in combinations(claimed, 2):
        assert one.score is not None
        assert other.score is not None
        assert abs(one.score - other.score) < 0.02
    assert sum("DUPLICATE_EXPOSURE" in item.notes for item in claimed) == 3
