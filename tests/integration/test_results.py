"""What goes back to the PACS, judged by ``dciodvfy`` (dicom3tools) and ``dsrdump`` (DCMTK)."""

import datetime as dt
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import Comprehensive3DSRStorage, ComputedRadiographyImageStorage

from tests.builders import encoded, picture, radiograph
from triage.errors import DicomError
from triage.explanation import MAP_SIDE, PASSES, HeatMap, explain, occlusion_map, paint
from triage.pixels import SIDE, Array, normalize
from triage.results import (
    DISCLAIMER,
    Finding,
    Verdict,
    draw,
    secondary_capture,
    structured_report,
    updated_report,
)
from triage.scoring import Score

SAMPLES = Path(__file__).parents[2] / "sample_dicom"
FRONTAL = [p for p in sorted(SAMPLES.glob("*.dcm")) if p.name[:2] not in {"02", "11"}]

SCORED_AT = dt.datetime(2026, 1, 5, 9, 30, 15, 250_000, dt.UTC)
READ_AT = SCORED_AT + dt.timedelta(minutes=20)
FINDING = Finding(
    Score(0.8314, 0.5142, "small_cnn-0123456789ab"),
    SCORED_AT,
    "2.25.334959291059871647530477690555896532556",
    "small_cnn",
    "Children aged one to five, frontal chest radiographs",
)
NEGATIVE = replace(FINDING, score=Score(0.0312, 0.5142, FINDING.score.model_version))
HEAT = HeatMap(np.zeros((MAP_SIDE, MAP_SIDE), np.float32), "Fall of the probability", 0.02)
HEAT.heat[9:12, 3:6] = 0.4
COLD = replace(HEAT, heat=np.zeros_like(HEAT.heat))


def results(source: Dataset, finding: Finding, array: Array | None = None) -> dict[str, Dataset]:
    """Everything that a radiograph gives: the report, the picture and the two updates."""
    report = structured_report(source, finding)
    verdicts: tuple[Verdict, ...] = ("confirmed", "rejected")
    plain = np.full((SIDE, SIDE), 0.5, np.float32) if array is None else array
    return {
        "report": report,
        "capture": secondary_capture(source, plain, HEAT, finding),
        **{
            verdict: updated_report(
                source, finding, verdict, "Berg^Anna", READ_AT, report, organization="Clinic"
            )
            for verdict in verdicts
        },
        "unverified": updated_report(source, finding, "confirmed", "anna", READ_AT, report),
    }


def written(dataset: Dataset) -> bytes:
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def complaints(dataset: Dataset, folder: Path) -> list[str]:
    """The errors that dciodvfy reports."""
    path = folder / "result.dcm"
    path.write_bytes(written(dataset))
    run = subprocess.run(["dciodvfy", path], capture_output=True, encoding="latin-1", check=False)
    said = (run.stdout + run.stderr).splitlines()
    assert {"Comprehensive3DSR", "SCImage"} & set(said), said  # it knew what it looked at
    return [line for line in said if line.startswith("Error")]


def dumped(dataset: Dataset, folder: Path) -> str:
    """The document as DCMTK reads it."""
    path = folder / "report.dcm"
    path.write_bytes(written(dataset))
    run = subprocess.run(
        ["dsrdump", "+U8", "+Pl", "+Pc", path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "E:" not in run.stderr, run.stderr
    return run.stdout


def bare(**attributes: object) -> Dataset:
    """A radiograph's header with nothing but its UIDs, and what is asked for."""
    source = Dataset()
    source.SOPClassUID = ComputedRadiographyImageStorage
    source.SOPInstanceUID, source.SeriesInstanceUID, source.StudyInstanceUID = (
        f"2.25.{number}" for number in (7, 6, 5)
    )
    for keyword, value in attributes.items():
        setattr(source, keyword, value)
    return source


def reread(dataset: Dataset) -> Dataset:
    return dcmread(BytesIO(written(dataset)))


# --- Valid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FRONTAL, ids=lambda path: path.stem[:2])
@pytest.mark.parametrize("finding", [FINDING, NEGATIVE], ids=["flagged", "unflagged"])
def test_results_of_the_samples_are_valid(path: Path, finding: Finding, tmp_path: Path) -> None:
    """dciodvfy finds no error in report, picture and updates, positive or negative."""
    source = dcmread(path)
    for kind, result in results(source, finding, normalize(source).array).items():
        assert not complaints(result, tmp_path), kind


def test_results_of_a_wrapped_jpeg_are_valid(tmp_path: Path) -> None:
    """What DCMTK's img2dcm makes of a picture file has hardly any attributes."""
    shown = (picture(3, 80, 60) * 255).astype(np.uint8)
    Image.fromarray(shown).save(tmp_path / "picture.jpg")
    subprocess.run(
        ["img2dcm", "-q", tmp_path / "picture.jpg", tmp_path / "picture.dcm"], check=True
    )
    source = dcmread(tmp_path / "picture.dcm")
    source.SOPClassUID = ComputedRadiographyImageStorage
    for kind, result in results(source, FINDING, normalize(source).array).items():
        assert not complaints(result, tmp_path), kind


BROKEN = {
    "nothing": {},
    "empty": {"PatientName": "", "PatientSex": "", "StudyDate": "", "PatientOrientation": []},
    "no day": {"StudyDate": "20260230", "PatientBirthDate": "20261399"},
    "old date": {"StudyDate": "2026.01.05", "PatientBirthDate": "unknown", "StudyTime": "25:00"},
    "wrong codes": {"PatientSex": "female", "PatientAge": "3 years", "StudyID": "7" * 40},
    "two values": {"PatientID": ["A", "B"], "PatientSex": ["F", "M"]},
    "control characters": {"PatientName": "A\x00B\x1b^C", "StudyDescription": "x" * 300},
    "wrong shape": {"Rows": 0, "Columns": 10, "PatientOrientation": ["?", "F"]},
    "lossy, not said how": {"LossyImageCompression": "01"},
    "lossy, said wrongly": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 12.5,
        "LossyImageCompressionMethod": "jpeg, quality 90",
    },
    "zone": {"TimezoneOffsetFromUTC": "+0530"},
    "no zone": {"TimezoneOffsetFromUTC": "Berlin"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_give_valid_results(name: str, tmp_path: Path) -> None:
    """What is missing or broken is left empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of what is being broken here
        source = bare(**BROKEN[name])
    for kind, result in results(source, FINDING).items():
        errors = complaints(result, tmp_path)
        assert not errors, kind


def test_a_header_without_uids_is_refused() -> None:
    """There would be no study to put the result into."""
    source = bare()
    del source.StudyInstanceUID
    with pytest.raises(DicomError, match="StudyInstanceUID"):
        structured_report(source, FINDING)


def test_a_moment_needs_a_zone_and_a_reading_a_reader() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(FINDING, scored_at=SCORED_AT.replace(tzinfo=None))
    with pytest.raises(ValueError, match="UID"):
        replace(FINDING, device_uid="camera")
    report = structured_report(bare(), FINDING)
    with pytest.raises(ValueError, match="reader"):
        updated_report(bare(), FINDING, "confirmed", " \\", READ_AT, report)


# --- The same twice ------------------------------------------------------------------------


def test_a_retry_makes_the_same_bytes() -> None:
    """The same radiograph, read anew, gives the same files."""
    path = FRONTAL[0]
    first, second = (
        {kind: written(result) for kind, result in results(dcmread(path), FINDING).items()}
        for _ in range(2)
    )
    assert first == second


def test_every_result_has_its_own_uid() -> None:
    """Kinds, model versions, radiographs and readings differ; series are per kind."""
    source, other = bare(), bare(SOPInstanceUID="2.25.8")
    newer = replace(FINDING, score=Score(0.8314, 0.5142, "small_cnn-ba9876543210"))
    report = structured_report(source, FINDING)
    later = READ_AT + dt.timedelta(microseconds=1)
    made = [
        *results(source, FINDING).values(),
        *results(source, newer).values(),
        *results(other, FINDING).values(),
        updated_report(source, FINDING, "confirmed", "Berg^Anna", later, report),
    ]
    assert len({result.SOPInstanceUID for result in made}) == len(made)
    assert all(result.SOPInstanceUID.startswith("2.25.") for result in made)
    one = results(source, FINDING)
    assert one["report"].SeriesInstanceUID == one["confirmed"].SeriesInstanceUID
    assert one["report"].SeriesInstanceUID != one["capture"].SeriesInstanceUID
    assert (one["report"].InstanceNumber, one["confirmed"].InstanceNumber) == (1, 2)
    assert all(
        result.SeriesInstanceUID != source.SeriesInstanceUID
        and result.StudyInstanceUID == source.StudyInstanceUID
        for result in one.values()
    )


def test_times_are_those_of_the_score_in_the_radiographs_zone() -> None:
    """9:30:15 UTC is 15:00:15 in India, and the same moment."""
    here = structured_report(bare(), FINDING)
    there = structured_report(bare(TimezoneOffsetFromUTC="+0530"), FINDING)
    assert (here.ContentDate, here.ContentTime) == ("20260105", "093015.250000")
    assert (there.ContentDate, there.ContentTime) == ("20260105", "150015.250000")
    assert there.TimezoneOffsetFromUTC == "+0530"


# --- The report ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "presence", "certainty"),
    [(FINDING, "52101004,SCT,", "83.14"), (NEGATIVE, "272519000,SCT,", "3.12")],
    ids=["flagged", "unflagged"],
)
def test_the_report_says_what_was_found(
    finding: Finding, presence: str, certainty: str, tmp_path: Path
) -> None:
    """DCMTK reads finding, presence, probability, algorithm, device and the disclaimer."""
    lines = dumped(structured_report(dcmread(FRONTAL[0]), finding), tmp_path).splitlines()

    def one(*parts: str) -> str:
        found = [line for line in lines if all(part in line for part in parts)]
        assert len(found) == 1, (parts, found)
        return found[0]

    assert "(233604007,SCT," in one("contains CODE", '"Finding"')
    assert presence in one("contains CODE", '"Pneumonia")=')
    assert f'"{certainty}"' in one("contains NUM", '"Certainty of Finding"')
    assert "(%,UCUM," in one("contains NUM", '"Certainty of Finding"')
    assert finding.score.model_version in one("TEXT", "Algorithm Version")
    assert "threshold=0.514200" in one("TEXT", "Algorithm Parameters", "threshold")
    assert finding.device_uid in one("UIDREF", "Device Observer UID")
    assert "Not a diagnosis" in one("contains TEXT", "Comment")
    assert "UNVERIFIED" in one("Verification Flag")
    assert "COMPLETE" in one("Completion Flag")
    assert "Tracking Unique Identifier" in one("UIDREF", "Tracking Unique Identifier")
    one("contains IMAGE", "Source of Measurement")


def test_the_evidence_is_the_radiograph() -> None:
    """Study, series and instance, at the root and in the tree; no picture is left over."""
    source = dcmread(FRONTAL[0])
    report = reread(structured_report(source, FINDING))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == source.StudyInstanceUID
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == source.SOPClassUID
    images = [item for item in nested(report) if item.ValueType == "IMAGE"]
    assert [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images] == [
        source.SOPInstanceUID
    ]
    assert report.SOPClassUID == Comprehensive3DSRStorage
    for keyword in ("PatientID", "PatientName", "AccessionNumber", "StudyDate", "StudyID"):
        assert report[keyword].value == source[keyword].value


def nested(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from nested(child)


def test_an_update_replaces_the_report(tmp_path: Path) -> None:
    """It refers to its predecessor and holds the reader, the verdict and the model's words."""
    made = results(dcmread(FRONTAL[0]), FINDING)
    update = reread(made["rejected"])
    (study,) = update.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (replaced,) = series.ReferencedSOPSequence
    assert replaced.ReferencedSOPInstanceUID == made["report"].SOPInstanceUID
    assert series.SeriesInstanceUID == made["report"].SeriesInstanceUID
    assert update.ContentTime == "095015.250000"
    (verifier,) = update.VerifyingObserverSequence
    assert update.VerificationFlag == "VERIFIED"
    assert verifier.VerifyingObserverName == "Berg^Anna"
    assert verifier.VerificationDateTime == "20260105095015.250000+0000"
    text = dumped(made["rejected"], tmp_path)
    assert '<contains CODE:(233604007,SCT,"Pneumonia")=(52101004,SCT,"Present")>' in text
    assert '<contains CODE:(233604007,SCT,"Pneumonia")=(272519000,SCT,"Absent")>' in text
    assert '=(410516002,SCT,"Known absent")>' in text
    assert '"Person Observer Name")="Berg^Anna"' in text
    assert '=(410605003,SCT,"Confirmed present")>' in dumped(made["confirmed"], tmp_path)


def test_an_update_without_an_organization_is_unverified() -> None:
    """Verifying Organization is of type 1, and is not invented."""
    update = results(bare(), FINDING)["unverified"]
    assert update.VerificationFlag == "UNVERIFIED"
    assert "VerifyingObserverSequence" not in update


# --- Character sets ------------------------------------------------------------------------

NAMES = {
    "ASCII": ("", "Yamada^Tarou"),
    "Latin-1": ("ISO_IR 100", "Äneas^Rüdiger"),
    "Cyrillic": ("ISO_IR 144", "Шишкин^Жанна"),
    "Greek": ("ISO_IR 126", "Διονυσιος"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Ångström^Ğ=王^小东"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_keep_their_character_set(name: str, tmp_path: Path) -> None:
    """The result's name has the radiograph's bytes, and dciodvfy is content."""
    declared, patient = NAMES[name]
    made = radiograph(picture(1), SpecificCharacterSet=declared or None, PatientName=patient)
    source = dcmread(BytesIO(encoded(made)))
    for kind, result in results(source, FINDING).items():
        again = reread(result)
        assert str(again.PatientName) == patient, kind
        assert again.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")
        assert again.PatientName.original_string == source.PatientName.original_string
        assert not complaints(result, tmp_path), kind


def test_a_reader_may_need_another_character_set(tmp_path: Path) -> None:
    """Where one set cannot hold patient and reader, both are in UTF-8."""
    made = radiograph(picture(1), SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë")
    report = structured_report(made, FINDING)
    update = updated_report(
        made, FINDING, "confirmed", "山田^太郎", READ_AT, report, organization="病院"
    )
    again = reread(update)
    assert again.SpecificCharacterSet == "ISO_IR 192"
    assert str(again.PatientName) == "Müller^Zoë"
    assert str(again.VerifyingObserverSequence[0].VerifyingObserverName) == "山田^太郎"
    assert not complaints(update, tmp_path)


@pytest.mark.parametrize(
    ("declared", "stored", "expected"),
    [
        (b"ISO_IR 999", "Zoë^Ä".encode(), "Zoë^Ä"),
        (b"UTF-8", "Анна".encode(), "Анна"),
        (b"", "Анна^山".encode(), "Анна^山"),
        (b"", "Müller^Zoë".encode("latin-1"), "Müller^Zoë"),
        (b"ISO_IR 192", "Müller^Zoë".encode("latin-1"), "M\ufffdller^Zo\ufffd"),
        (b"ISO_IR 100\\ISO_IR 192", "Zoë".encode(), "Zoë"),
    ],
)
def test_broken_character_sets_do_not_stop_a_result(
    declared: bytes, stored: bytes, expected: str, tmp_path: Path
) -> None:
    """Unknown sets are read as UTF-8, else as Latin-1; the result says UTF-8."""
    name = b"N" * len(stored)
    data = encoded(
        radiograph(picture(1), SpecificCharacterSet="ISO_IR 100", PatientName=name.decode())
    )
    element = b"\x08\x00\x05\x00CS%c\x00%b"
    padded = declared + b" " * (len(declared) % 2)
    assert element % (10, b"ISO_IR 100") in data
    data = data.replace(element % (10, b"ISO_IR 100"), element % (len(padded), padded))
    data = data.replace(name, stored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the set already when it reads
        source = dcmread(BytesIO(data))
    for kind, result in results(source, FINDING).items():
        again = reread(result)
        assert str(again.PatientName) == expected, kind
        assert again.SpecificCharacterSet == "ISO_IR 192"
        assert not complaints(result, tmp_path), kind


# --- The picture ---------------------------------------------------------------------------


def test_the_picture_says_that_it_is_no_diagnosis() -> None:
    """The words stand at the top and at the bottom, in 22 pixels' size."""
    capture = secondary_capture(
        dcmread(FRONTAL[0]), np.full((256, 256), 0.5, np.float32), HEAT, FINDING
    )
    assert DISCLAIMER == "TRIAGE AID - NOT FOR DIAGNOSTIC USE"
    font = ImageFont.load_default(22)
    left, top, right, bottom = map(round, font.getbbox(DISCLAIMER))
    words = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(words).text((-left, -top), DISCLAIMER, 255, font)
    ink = np.asarray(words) > 200
    page = capture.pixel_array.astype(int)
    for strip in (page[:40], page[-40:]):
        dark = strip.sum(axis=2) < 200
        best = max(
            (dark[y : y + ink.shape[0], x : x + ink.shape[1]] & ink).sum()
            for y in range(40 - ink.shape[0])
            for x in range(150, 210)
        )
        assert best >= 0.9 * ink.sum()
        assert dark.sum() < 3 * ink.sum()  # words, not a dark band
    assert capture.BurnedInAnnotation == "YES"
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert DISCLAIMER in capture.ImageComments


def test_the_picture_shows_heat_and_nothing_of_the_patient() -> None:
    """Heat is coloured, the rest is grey, and another patient's picture is the same."""
    source = dcmread(FRONTAL[0])
    array = normalize(source).array
    hot = secondary_capture(source, array, HEAT, FINDING).pixel_array
    cold = secondary_capture(source, array, COLD, FINDING).pixel_array
    shown = slice(144, 144 + 768)
    differs = np.any(hot[shown].astype(int) != cold[shown], axis=2)
    assert 0.01 < differs.mean() < 0.2
    assert np.ptp(cold[shown].astype(int), axis=2).max() == 0  # grey
    source.PatientName, source.PatientID, source.AccessionNumber = "Other^Name", "ID", "ACC"
    assert np.array_equal(secondary_capture(source, array, HEAT, FINDING).pixel_array, hot)
    (origin,) = secondary_capture(source, array, HEAT, FINDING).SourceImageSequence
    assert origin.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_flagged_and_unflagged_pictures_differ_at_the_top() -> None:
    array = np.full((SIDE, SIDE), 0.5, np.float32)
    flagged, unflagged = draw(array, HEAT, FINDING), draw(array, HEAT, NEGATIVE)
    assert not np.array_equal(flagged[40:144], unflagged[40:144])
    assert np.array_equal(flagged[144:912], unflagged[144:912])


@pytest.mark.parametrize("aspect", [1 / 3, 0.83, 1.0, 3.0])
def test_the_picture_keeps_the_radiographs_shape(aspect: float) -> None:
    """A wide radiograph is not shown square; long words are cut to fit."""
    finding = replace(FINDING, population="verylongword" * 40, score=Score(1.0, 0.0, "m" * 90))
    page = draw(np.ones((SIDE, SIDE), np.float32), COLD, finding, aspect)
    white = np.all(page[144:912] == 255, axis=2)
    assert white.any(axis=0).sum() == min(768, round(768 * aspect))
    assert white.any(axis=1).sum() == min(768, round(768 / aspect))


# --- The heat map --------------------------------------------------------------------------


class Planted:
    """A scorer that looks at one place, and counts how often it is asked."""

    model_version = "planted"

    def __init__(self, place: tuple[slice, slice], gain: float = 12.0) -> None:
        self.place, self.gain, self.asked = place, gain, 0

    def score(self, array: Array) -> Score:
        assert array.shape == (SIDE, SIDE)
        assert array.dtype == np.float32
        assert 0.0 <= array.min() <= array.max() <= 1.0
        self.asked += 1
        logit = self.gain * (float(array[self.place].mean()) - 0.55)
        return Score(float(1.0 / (1.0 + np.exp(-logit))), 0.5, self.model_version)

    def explained(self, array: Array) -> tuple[Score, None]:
        return self.score(array), None


def planted(row: int, column: int) -> tuple[Array, Planted]:
    """A soft background with a bright patch of 48 pixels, and the scorer that sees it."""
    background = 0.3 + 0.1 * np.asarray(Image.fromarray(picture(5, SIDE, SIDE)), np.float32)
    place = (slice(row, row + 48), slice(column, column + 48))
    background[place] = 0.85
    return background.astype(np.float32), Planted(place)


@pytest.mark.parametrize(("row", "column"), [(20, 30), (104, 104), (150, 190), (208, 0)])
def test_the_map_is_hottest_where_the_score_comes_from(row: int, column: int) -> None:
    array, scorer = planted(row, column)
    heat = occlusion_map(scorer, array).heat
    assert heat.shape == (MAP_SIDE, MAP_SIDE)
    assert heat.dtype == np.float32
    assert 0.2 < heat.max() <= 1.0
    assert heat.min() == 0.0
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert row <= 16 * y + 8 < row + 48
    assert column <= 16 * x + 8 < column + 48
    cells = (
        slice(max(row // 16 - 2, 0), row // 16 + 5),
        slice(max(column // 16 - 2, 0), column // 16 + 5),
    )
    assert heat[cells].sum() > 0.8 * heat.sum()


def test_the_map_is_the_same_each_time_at_a_known_price() -> None:
    array, scorer = planted(104, 104)
    first = explain(scorer, array).heat
    assert scorer.asked == 1 + PASSES < 100
    assert np.array_equal(occlusion_map(scorer, array).heat, first)


def test_what_speaks_against_the_finding_is_cold() -> None:
    """Covering it raises the probability, and the map holds falls."""
    array, scorer = planted(104, 104)
    scorer.gain = -12.0
    assert occlusion_map(scorer, array).heat[6:9, 6:9].max() < 0.01


def test_a_faint_map_is_not_painted_hot() -> None:
    """A score that depends on no place in particular leaves the radiograph as it is."""
    array, _ = planted(104, 104)
    faint = replace(HEAT, heat=HEAT.heat * np.float32(HEAT.faint / 10 / HEAT.heat.max()))
    assert np.array_equal(paint(array, faint, (768, 768)), paint(array, COLD, (768, 768)))
