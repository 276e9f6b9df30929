"""The sample radiographs: drawn again they are the same, and they are what they say."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread
from pydicom.uid import JPEGBaseline8Bit

from sample_dicom import draw
from triage.admission import Population, admit
from triage.pixels import normalize

FOLDER = Path(draw.__file__).parent
FILES = sorted(FOLDER.glob("*.dcm"))
CHILDREN = Population("children", (1, 5), ("AP", "PA"))
REFUSED = {
    "02-dx-lateral-rle.dcm": "VIEW_NOT_FRONTAL",
    "10-dx-pa-adult.dcm": "AGE_OUTSIDE_POPULATION",
    "11-cr-hand.dcm": "NOT_CHEST",
}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def documented() -> dict[str, dict[str, str]]:
    """The rows of the table in the folder's README, by file name."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    head, _, *rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the set was drawn again."""
    folder = tmp_path_factory.mktemp("drawn")
    run = CliRunner().invoke(draw.main, ["--out", str(folder)])
    assert run.exit_code == 0, run.output
    return folder


def test_the_set_is_documented_and_small(drawn: Path) -> None:
    """What is drawn, what is committed and what the README lists are the same names."""
    names = [path.name for path in FILES]
    assert names == sorted(path.name for path in drawn.iterdir()) == sorted(documented())
    assert sum(path.stat().st_size for path in FILES) < 5_000_000


@each_file
def test_drawn_again_it_is_the_same(path: Path, drawn: Path) -> None:
    """Byte for byte; a JPEG within 2 grey values, for another Pillow may encode otherwise."""
    again = drawn / path.name
    old, new = dcmread(path), dcmread(again)
    if old.file_meta.TransferSyntaxUID != JPEGBaseline8Bit:
        assert again.read_bytes() == path.read_bytes()
        return
    assert np.abs(old.pixel_array.astype(int) - new.pixel_array.astype(int)).max() <= 2
    for dataset in (old, new):
        del dataset.PixelData, dataset.LossyImageCompressionRatio
    assert new == old


@each_file
def test_dciodvfy_finds_no_error(path: Path) -> None:
    """Each is a valid object; without dciodvfy (dicom3tools) this fails."""
    run = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert said.startswith(("DXImageForPresentation", "CRImage"))
    assert "Error" not in said


@each_file
def test_the_header_is_as_documented(path: Path) -> None:
    """Class, body part, view, age and pixels are those of the README's row."""
    row, header = documented()[path.name], dcmread(path)
    assert (header.Modality, header.BodyPartExamined) == (row["class"], row["body part"])
    assert (header.ViewPosition, header.PatientAge) == (row["view"], row["age"])
    assert row["stored as"].startswith(f"{header.BitsStored} bit, ")
    assert ("opacity" in path.name) == (row["opacity"] == "yes")


@each_file
def test_it_says_that_it_is_synthetic(path: Path) -> None:
    """Nobody takes one for a patient's."""
    header = dcmread(path)
    assert header.ImageComments.startswith("SYNTHETIC")
    assert header.PatientComments.startswith("SYNTHETIC")
    assert header.PatientID.startswith("SYN-")
    assert header.AccessionNumber.startswith("SYN-A-")
    assert str(header.PatientName).startswith("Synthetic^")


@each_file
def test_it_normalizes(path: Path) -> None:
    """Each becomes an array that uses the whole range."""
    array = normalize(dcmread(path)).array
    assert array.shape == (256, 256)
    assert array.dtype == np.float32
    assert (array.min(), array.max()) == (0.0, 1.0)


@each_file
def test_only_frontal_chests_of_children_are_admitted(path: Path) -> None:
    """The lateral, the adult and the hand are each refused for their own reason."""
    header = dcmread(path, stop_before_pixels=True)
    decision = admit(header, CHILDREN, warn_outside=False)
    assert decision.reason == REFUSED.get(path.name)


def test_polarity_changes_the_encoding_and_nothing_else() -> None:
    """The MONOCHROME1 twin has other stored values and the same normalized array."""
    plain = dcmread(FOLDER / "03-dx-ap-opacity.dcm")
    twin = dcmread(FOLDER / "04-dx-ap-opacity-monochrome1.dcm")
    assert np.array_equal(twin.pixel_array, 4095 - plain.pixel_array)
    assert np.array_equal(normalize(twin).array, normalize(plain).array)
    assert {element.keyword for element in plain if twin[element.tag] != element} == {
        "SOPInstanceUID",
        "InstanceNumber",
        "AcquisitionTime",
        "ContentTime",
        "PhotometricInterpretation",
        "PixelIntensityRelationshipSign",
        "WindowCenter",
        "PresentationLUTShape",
        "PixelData",
    }


def test_patients_have_one_study_each() -> None:
    """Ten patients; the first has the lateral too, the second the twin."""
    headers = [dcmread(path, stop_before_pixels=True) for path in FILES]
    studies = {(header.PatientID, header.StudyInstanceUID) for header in headers}
    assert len(studies) == len({patient for patient, _ in studies}) == 10
    assert len({header.SOPInstanceUID for header in headers}) == len(FILES)
    assert len({header.StudyInstanceUID for header in headers[:2]}) == 1
    assert len({header.SeriesInstanceUID for header in headers[:2]}) == 2
    assert len({header.SeriesInstanceUID for header in headers[2:4]}) == 1


def test_some_have_no_voi_and_one_is_stat() -> None:
    """Two CR have no window; only one object carries Requested Procedure Priority."""
    headers = {path.name: dcmread(path, stop_before_pixels=True) for path in FILES}
    without = [name for name, header in headers.items() if "WindowCenter" not in header]
    assert without == ["07-cr-ap-opacity-no-voi.dcm", "12-cr-ap-monochrome1-no-voi.dcm"]
    stat = {
        name: header.RequestedProcedurePriority
        for name, header in headers.items()
        if "RequestedProcedurePriority" in header
    }
    assert stat == {"05-dx-ap-opacity-stat.dcm": "STAT"}


def test_an_opacity_whitens_the_lungs_of_the_same_child() -> None:
    """Nothing gets darker, and some of the lung fields gets much brighter."""
    well, ill = draw.chest(7, shape=(140, 116)), draw.chest(7, opacity=1.0, shape=(140, 116))
    assert 0.0 <= min(well.min(), ill.min()) < max(well.max(), ill.max()) <= 1.0
    assert (ill - well).min() > -0.02
    assert 0.01 < np.mean(ill - well > 0.1) < 0.30


def test_another_seed_is_another_child() -> None:
    """Both the picture and the UIDs follow the seed."""
    small = (140, 116)
    assert not np.array_equal(draw.chest(1, shape=small), draw.chest(2, shape=small))
    assert np.array_equal(draw.lateral(1, shape=small), draw.lateral(1, shape=small))
    assert draw.Exam(1, seed=1).uid("study") != draw.Exam(1, seed=2).uid("study")


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_default_window_shows_the_picture(bits: int, photometric: draw.Photometric) -> None:
    """An object of any depth and polarity, unsaved, gives the array of its picture."""
    picture = draw.hand(3, shape=(101, 81))
    dataset: Dataset = draw.as_dx(picture, draw.Exam(11), bits=bits, photometric=photometric)
    reference = normalize(draw.as_dx(picture, draw.Exam(11), bits=16)).array
    assert np.abs(normalize(dataset).array - reference).max() < 1.5 / 2**bits + 1e-2


def test_a_jpeg_has_eight_bits() -> None:
    """A constructed object is valid: JPEG Baseline of 12 bits is refused."""
    with pytest.raises(ValueError, match="8 bits"):
        draw.as_cr(np.zeros((8, 8)), draw.Exam(1), bits=12, encoding="JPEG")
