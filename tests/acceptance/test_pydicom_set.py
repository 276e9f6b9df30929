"""Every picture of pydicom's test set, under a header that claims a frontal chest.

What the header says is taken from it, so that the picture alone decides: CT, MR, ultrasound,
legs, colour, palettes, several frames, damaged streams. Sent as they are, the same files are
in ``tests/integration/test_front_door.py``.
"""

import warnings
from collections import Counter
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ComputedRadiographyImageStorage, generate_uid

from tests.builders import encoded, save
from tests.conftest import Service, free_port, pydicom_files, wait_for
from tests.integration.test_receiver import data_of
from triage.send import send
from triage.spool import Spool
from triage.worklist import State, WorklistItem

CLAIMS = {
    "SOPClassUID": ComputedRadiographyImageStorage,
    "Modality": "CR",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PatientAge": "003Y",
    "PresentationIntentType": "FOR PRESENTATION",
}


def claimed(path: Path) -> Dataset | None:
    """A file's picture under another header; None if it is no picture or cannot be written."""
    try:
        dataset = dcmread(path)
        if "PixelData" not in dataset:
            return None
        for keyword, value in CLAIMS.items():
            setattr(dataset, keyword, value)
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(dataset, keyword, generate_uid())
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        encoded(dataset)
    except Exception:  # noqa: BLE001  (pydicom raises what it likes on its broken files)
        return None
    return dataset


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WorklistItem]:
    """The row of each by the file's name, once all are settled; each is kept as it was sent."""
    folder = tmp_path_factory.mktemp("claimed")
    names: dict[str, str] = {}
    content: dict[str, bytes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in pydicom_files():
            dataset = claimed(path)
            if dataset is None:
                continue
            file = save(dataset, folder / f"{len(names):03}.dcm")
            names[dataset.SOPInstanceUID] = f"{path.parent.name}/{path.name}"
            content[dataset.SOPInstanceUID] = data_of(file.read_bytes())
        service = Service(folder / "home", free_port())
        service.start("--roles", "receive,score")
        try:
            sent = list(send(sorted(folder.glob("*.dcm")), service.destination))
            worklist = service.worklist()
            wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=120)
            items = {item.sop_instance_uid: item for item in worklist.items()}
            worklist.close()
        finally:
            service.stop()
    assert [one.explanation for one in sent if not one.accepted] == []
    assert len(set(names.values())) == len(names) > 150
    assert set(items) == set(names)
    spool = Spool(service.home / "spool")
    for uid, item in items.items():
        assert data_of(spool.path(item.digest).read_bytes()) == content[uid], names[uid]
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "part_died" not in log
    return {names[uid]: item for uid, item in items.items()}


def test_each_picture_is_scored_or_has_its_reason(rows: dict[str, WorklistItem]) -> None:
    """None FAILED: the chest is scored, and of the rest the picture itself says what it is."""
    assert Counter(item.reason for item in rows.values()) == {
        None: 4,
        "NOT_LIKE_TRAINING": 121,
        "MULTI_FRAME": 26,
        "PHOTOMETRIC_UNSUPPORTED": 12,
        "PIXEL_DATA_UNDECODABLE": 7,
        "PICTURE_BLANK": 2,
    }
    assert {item.state for item in rows.values()} == {State.SCORED, State.NOT_SCORED}
    scored = {name for name, item in rows.items() if item.state is State.SCORED}
    assert scored == {f"data/RG1_{how}.dcm" for how in ("J2KI", "J2KR", "UNCI", "UNCR")}


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("CT_small.dcm", "NOT_LIKE_TRAINING", "novelty is"),
        ("MR_small_RLE.dcm", "NOT_LIKE_TRAINING", "novelty is"),
        ("examples_rgb_color.dcm", "NOT_LIKE_TRAINING", "novelty is"),
        ("RG3_UNCR.dcm", "NOT_LIKE_TRAINING", "novelty is"),
        ("examples_palette.dcm", "PHOTOMETRIC_UNSUPPORTED", "PALETTE COLOR"),
        ("SC_rgb_16bit.dcm", "PHOTOMETRIC_UNSUPPORTED", "RGB"),
        ("MR_truncated.dcm", "PIXEL_DATA_UNDECODABLE", "less than expected"),
        ("rtdose_1frame.dcm", "PIXEL_DATA_UNDECODABLE", "Bits Stored 32"),
        ("nested_priv_SQ.dcm", "PIXEL_DATA_UNDECODABLE", "BitsStored"),
        ("badVR.dcm", "MULTI_FRAME", "is 0, not 1"),
        ("liver.dcm", "MULTI_FRAME", "is 3, not 1"),
    ],
)
def test_the_explanation_says_what_is_the_matter(
    name: str, reason: str, words: str, rows: dict[str, WorklistItem]
) -> None:
    """One file of each kind."""
    (item,) = [item for place, item in rows.items() if place.endswith(f"/{name}")]
    assert item.reason == reason
    assert words in item.explanation
