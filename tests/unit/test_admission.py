"""Which headers are scored, and the reason where not."""

import inspect
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from tests.builders import code, picture, radiograph, reread
from triage import admission
from triage.admission import Admission, Population, admit, age_in_years

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")

CHILDREN = Population("children", (1, 5), ("AP", "PA"))
ANYONE = Population("anyone", None, ("AP", "PA"))


def header(**attributes: Any) -> Dataset:
    """The header of a frontal chest radiograph of a child of three, but for what is given."""
    sop_class = attributes.pop("SOPClassUID", ComputedRadiographyImageStorage)
    return radiograph(picture(1, 8, 8), sop_class=sop_class, **attributes)


def decision(population: Population = CHILDREN, **attributes: Any) -> Admission:
    """What is decided about it."""
    return admit(reread(header(**attributes)), population, warn_outside=False)


CHEST, HAND = code("816094009", "Chest"), code("85562004", "Hand")
LATERAL = code("399067008", "lateral")
UNSAID = {"BodyPartExamined": None}

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("SOP_CLASS_NOT_SCORED", {"SOPClassUID": SecondaryCaptureImageStorage}),
    ("SOP_CLASS_NOT_SCORED", {"SOPClassUID": DigitalXRayImageStorageForProcessing}),
    ("SOP_CLASS_NOT_SCORED", {"SOPClassUID": CTImageStorage}),
    ("SOP_CLASS_NOT_SCORED", {"SOPClassUID": UID("1.2.3.4")}),
    ("FOR_PROCESSING", {"PresentationIntentType": "FOR PROCESSING"}),
    ("FOR_PROCESSING", {"PresentationIntentType": "for processing "}),
    ("DERIVED", {"ImageType": ["DERIVED", "PRIMARY"]}),
    ("DERIVED", {"ImageType": ["derived", "SECONDARY", ""]}),
    ("DERIVED", {"ImageType": "DERIVED"}),
    ("LOCALIZER", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ("MULTI_FRAME", {"NumberOfFrames": 2}),
    ("MULTI_FRAME", {"NumberOfFrames": 0}),
    ("MULTI_FRAME", {"NumberOfFrames": -1}),
    ("NOT_CHEST", {"BodyPartExamined": "HAND"}),
    ("NOT_CHEST", {"BodyPartExamined": "HAND", "StudyDescription": "CHEST AND HAND"}),
    ("NOT_CHEST", {"BodyPartExamined": None, "AnatomicRegionSequence": [HAND]}),
    ("NOT_CHEST", {"BodyPartExamined": "HAND", "SeriesDescription": "CHESTNUT"}),
    ("NOT_CHEST", {"BodyPartExamined": "TSPINE", "SeriesDescription": "Thoracic spine AP"}),
    ("NOT_CHEST", {"BodyPartExamined": "THORACIC SPINE"}),
    ("NOT_CHEST", {"BodyPartExamined": "CHESTABDOMEN"}),
    ("NOT_CHEST", {"BodyPartExamined": "RIB", "ProtocolName": "Ribs upper"}),
    ("BODY_PART_UNKNOWN", UNSAID | {"StudyDescription": "Thoracic vertebrae 2 views"}),
    ("BODY_PART_UNKNOWN", UNSAID),
    ("BODY_PART_UNKNOWN", {"BodyPartExamined": ""}),
    ("BODY_PART_UNKNOWN", UNSAID | {"StudyDescription": "Routine"}),
    ("BODY_PART_UNKNOWN", UNSAID | {"AnatomicRegionSequence": []}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": "LL"}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": "RL"}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": "LATERAL"}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": None, "ViewCodeSequence": [LATERAL]}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": "PA", "ViewCodeSequence": [LATERAL]}),
    ("VIEW_NOT_FRONTAL", {"ViewPosition": "LL", "ViewCodeSequence": [code("399348003")]}),
    ("VIEW_UNKNOWN", {"ViewPosition": None}),
    ("VIEW_UNKNOWN", {"ViewPosition": ""}),
    ("VIEW_UNKNOWN", {"ViewPosition": "", "ViewCodeSequence": []}),
    ("VIEW_UNKNOWN", {"ViewPosition": "", "ViewCodeSequence": [Dataset()]}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "045Y"}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "45Y", "PatientBirthDate": None}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "006Y"}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "011M"}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "050W"}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": "003D"}),
    ("AGE_OUTSIDE_POPULATION", {"PatientAge": None, "PatientBirthDate": "19800101"}),
]

ADMITTED: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"SOPClassUID": DigitalXRayImageStorageForPresentation}),
    ((), {"ImageType": None}),
    ((), {"ImageType": ""}),
    ((), {"ImageType": ["ORIGINAL", "PRIMARY", ""]}),
    ((), {"ImageType": ["ORIGINAL", "DERIVED"]}),  # only the first value says it
    ((), {"NumberOfFrames": 1}),
    ((), {"BodyPartExamined": "thorax"}),
    ((), {"BodyPartExamined": "LUNG"}),
    ((), {"BodyPartExamined": "CHEST PA"}),
    ((), {"BodyPartExamined": "CHEST_1"}),
    ((), {"BodyPartExamined": "TORAX"}),
    ((), UNSAID | {"ProtocolName": "CHEST_PA"}),
    ((), UNSAID | {"SeriesDescription": "Tórax AP"}),
    ((), UNSAID | {"SeriesDescription": "Thoraxaufnahme liegend"}),
    ((), UNSAID | {"SpecificCharacterSet": "ISO_IR 192", "StudyDescription": "胸部正位"}),
    ((), UNSAID | {"AnatomicRegionSequence": [CHEST]}),
    ((), UNSAID | {"AnatomicRegionSequence": [HAND, CHEST]}),
    ((), UNSAID | {"AnatomicRegionSequence": [code("T-D3000", scheme="SRT")]}),
    ((), UNSAID | {"SeriesDescription": "Chest p.a."}),
    ((), UNSAID | {"ProtocolName": "W CHEST AP"}),
    ((), UNSAID | {"StudyDescription": "XR CXR"}),
    (("BODY_PART_CONFLICT",), {"BodyPartExamined": "HAND", "AnatomicRegionSequence": [CHEST]}),
    (("BODY_PART_CONFLICT",), {"BodyPartExamined": "ABDOMEN", "SeriesDescription": "Thorax AP"}),
    ((), {"ViewPosition": "ap"}),
    ((), {"ViewPosition": None, "ViewCodeSequence": [code("272479007")]}),
    ((), {"ViewPosition": None, "ViewCodeSequence": [code("R-10206", scheme="SRT")]}),
    ((), {"PatientAge": "001Y"}),
    ((), {"PatientAge": "005Y"}),
    ((), {"PatientAge": "012M"}),
    ((), {"PatientAge": "071M"}),
    ((), {"PatientAge": None, "PatientBirthDate": "20210201"}),
    (("AGE_UNKNOWN",), {"PatientAge": None, "PatientBirthDate": None}),
    (("AGE_UNKNOWN",), {"PatientAge": "", "PatientBirthDate": ""}),
    (("AGE_UNKNOWN",), {"PatientAge": None, "PatientBirthDate": "20300101"}),
    (
        ("BODY_PART_CONFLICT", "AGE_UNKNOWN"),
        {
            "BodyPartExamined": "HAND",
            "ProtocolName": "CHEST",
            "PatientAge": None,
            "PatientBirthDate": None,
        },
    ),
]


def name(case: object) -> str | None:
    """The attributes of a case."""
    if isinstance(case, dict):
        return ", ".join(f"{key}={str(value)[:24]!r}" for key, value in case.items()) or "all well"
    return None


@pytest.mark.parametrize(("reason", "attributes"), REFUSED, ids=name)
def test_a_refused_header_has_one_reason(reason: str, attributes: dict[str, Any]) -> None:
    """With an explanation in one line that names no patient."""
    refused = decision(**attributes)
    assert refused.reason == reason
    assert refused.explanation
    assert "\n" not in refused.explanation
    assert not re.search("Test|T-1|A-1|2026", refused.explanation)
    assert refused.notes == ()


@pytest.mark.parametrize(("expected", "attributes"), ADMITTED, ids=name)
def test_an_admitted_header_has_notes(
    expected: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    """And neither a reason nor an explanation."""
    assert decision(**attributes) == Admission(notes=expected)


def test_the_tables_cover_every_reason_and_note() -> None:
    """Each code of capitals in the module's source stands in a table above."""
    body = inspect.getsource(admission).split("def admit", 1)[1]
    codes = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', body)) | {"DERIVED", "LOCALIZER"}
    noted = {note for notes, _ in ADMITTED for note in notes}
    assert codes == {reason for reason, _ in REFUSED} | noted


def test_the_first_objection_decides() -> None:
    """The kind of image before the body part, then the view, then the age."""
    objections = [
        ("DERIVED", {"ImageType": ["DERIVED", "PRIMARY"]}),
        ("NOT_CHEST", {"BodyPartExamined": "HAND"}),
        ("VIEW_NOT_FRONTAL", {"ViewPosition": "LL"}),
        ("AGE_OUTSIDE_POPULATION", {"PatientAge": "080Y"}),
    ]
    for number, (reason, _) in enumerate(objections):
        attributes = {
            key: value for _, given in objections[number:] for key, value in given.items()
        }
        assert decision(**attributes).reason == reason


def test_an_age_outside_may_be_noted_instead() -> None:
    """With ``outside_population = "warn"``; the other reasons still refuse."""
    adult = reread(header(PatientAge="045Y"))
    assert admit(adult, CHILDREN, warn_outside=True).notes == ("AGE_OUTSIDE_POPULATION",)
    adult.ViewPosition = "LL"
    assert admit(adult, CHILDREN, warn_outside=True).reason == "VIEW_NOT_FRONTAL"


@pytest.mark.parametrize("age", ["080Y", "003D", None])
def test_a_model_without_a_stated_age_scores_every_age(age: str | None) -> None:
    """Even an unknown one, without a note."""
    assert decision(ANYONE, PatientAge=age, PatientBirthDate=None) == Admission()


@pytest.mark.parametrize(
    ("attributes", "years"),
    [
        ({"PatientAge": "003Y"}, 3.0),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "104W"}, pytest.approx(1.993, abs=0.001)),
        ({"PatientAge": "000D"}, 0.0),
        ({"PatientAge": "045y"}, 45.0),
        ({"PatientAge": "005Y", "PatientBirthDate": "19800101"}, 5.0),  # the age goes first
        ({"PatientAge": "3Y", "PatientBirthDate": None}, 3.0),
        ({"PatientAge": "36M", "PatientBirthDate": None}, 3.0),
        ({"PatientAge": "\u0660\u0660\u0663Y", "PatientBirthDate": None}, None),
        ({"PatientAge": "old", "PatientBirthDate": None}, None),
        ({"PatientAge": None, "PatientBirthDate": "20210105", "StudyDate": "20260105"}, 5.0),
        ({"PatientAge": None, "PatientBirthDate": "20210106", "StudyDate": "20260105"}, 4.0),
        ({"PatientAge": None, "PatientBirthDate": "20240229", "StudyDate": "20260228"}, 1.0),
        ({"PatientAge": None, "PatientBirthDate": "20240229", "StudyDate": "20260301"}, 2.0),
        (
            {
                "PatientAge": None,
                "PatientBirthDate": "20210105",
                "StudyDate": None,
                "AcquisitionDate": "20260301",
            },
            5.0,
        ),
        ({"PatientAge": None, "PatientBirthDate": "20210105", "StudyDate": None}, None),
        ({"PatientAge": None, "PatientBirthDate": "20219999"}, None),
        ({"PatientAge": None, "PatientBirthDate": "2021"}, None),
    ],
    ids=name,
)
def test_an_age_is_stated_or_computed(attributes: dict[str, Any], years: float | None) -> None:
    """Completed years on the day of the study; None if nothing says it."""
    assert age_in_years(header(**attributes)) == years


KEYWORDS = [
    "SOPClassUID", "PresentationIntentType", "ImageType", "NumberOfFrames", "BodyPartExamined",
    "AnatomicRegionSequence", "SeriesDescription", "ProtocolName", "StudyDescription",
    "ViewPosition", "ViewCodeSequence", "PatientAge", "PatientBirthDate", "StudyDate",
    "AcquisitionDate",
]  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=20),
    st.text("0123456789YMWD.\\ ", max_size=10),
    st.sampled_from(["CHEST", "PA", "9" * 5000, "x" * 10_000, "肺", "Ω\0", "\\", "٣Y", "003Y"]),
)
VALUES = st.one_of(
    WORDS,
    st.lists(WORDS, max_size=4),
    st.none(),
    st.integers(),
    st.floats(),
    st.binary(max_size=9),
    st.just([]),
    st.builds(lambda words: [code(word) for word in words], st.lists(WORDS, max_size=3)),
    st.just([Dataset()]),
)
VRS = st.sampled_from(["CS", "LO", "UI", "IS", "DS", "AS", "DA", "SQ", "US", "UN", "UT", "PN"])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYWORDS), VRS, VALUES), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the values
def test_no_header_brings_admission_down(elements: list[tuple[str, str, Any]]) -> None:
    """Any text, number, bytes or sequence under any VR gives a decision."""
    odd = header()
    for keyword, vr, value in elements:
        try:
            odd.add_new(keyword, vr, value)
        except Exception:  # noqa: BLE001  pydicom will not hold such a value
            continue
    decided = admit(odd, CHILDREN, warn_outside=False)
    assert decided.reason is None or decided.explanation
    assert len(decided.explanation) < 200


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize(
    ("vr", "value"), [("FD", b"abc"), ("SQ", b"abc"), ("UN", b"\xff"), ("AT", b"\0"), ("XX", b"?")]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_element_that_cannot_be_converted_is_as_if_absent(
    keyword: str, vr: str, value: bytes
) -> None:
    """As pydicom holds an element before anybody asks for its value."""
    odd = header()
    odd[keyword] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    admit(odd, CHILDREN, warn_outside=False)
