"""References: UIDs, and what a header states of itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from tests.builders import picture, radiograph, reread
from triage.errors import DicomError
from triage.identity import HEADER_KEYWORDS, Instance, text, valid_uid

UIDS = ["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"]


def header(**attributes: object) -> Dataset:
    """A header, but for what is given."""
    return radiograph(picture(1, 8, 8), **attributes)


@pytest.mark.parametrize(
    "uid", ["1", "0", "1.2", "0.0", "2.25.0", "1.2.840.10008.1.1", "1" * 64, "1." * 31 + "10"]
)
def test_a_uid_is_numbers_and_dots(uid: str) -> None:
    """PS3.5 9.1: at most 64 characters, no leading zeros."""
    assert valid_uid(uid)


@pytest.mark.parametrize(
    "uid",
    ["", ".", "1.", ".1", "1..2", "01", "1.02", "1.2 ", " 1.2", "1.2\n", "1.2\0", "1,2", "a", "1.a",
     "-1", "1" * 65, "1." * 32 + "1", "../../etc/passwd", "1/2", "\uff11.\uff12", "1.٣", "²"],
)  # fmt: skip
def test_anything_else_is_no_uid(uid: str) -> None:
    """Least of all what could name a file elsewhere."""
    assert not valid_uid(uid)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
def test_any_numbers_joined_are_a_uid(numbers: list[int]) -> None:
    """Without leading zeros, of at most 64 characters."""
    assert valid_uid(".".join(map(str, numbers)))


@given(st.text("0123456789.a/\\", max_size=70))
def test_a_valid_uid_is_its_numbers_joined_again(value: str) -> None:
    """Said the other way: valid if and only if it survives reading its numbers."""
    try:
        again = ".".join(str(int(part)) for part in value.split("."))
    except ValueError:
        again = ""
    assert valid_uid(value) == (bool(value) and again == value and len(value) <= 64)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
def test_an_instance_is_what_its_header_states() -> None:
    """Upper case where the standard says so, without padding."""
    dataset = header(
        ViewPosition=" pa ", PatientSex="f", RequestedProcedurePriority="stat", PatientID=" t-1 "
    )
    instance = Instance.of(reread(dataset))
    assert instance == Instance(
        sop_instance_uid=dataset.SOPInstanceUID,
        sop_class_uid=dataset.SOPClassUID,
        series_instance_uid=dataset.SeriesInstanceUID,
        study_instance_uid=dataset.StudyInstanceUID,
        patient_id="t-1",
        patient_name="Test^Child",
        accession_number="A-1",
        modality="CR",
        body_part="CHEST",
        view_position="PA",
        patient_age="003Y",
        patient_sex="F",
        ordered_priority="STAT",
    )


@pytest.mark.parametrize("keyword", UIDS)
@pytest.mark.parametrize(
    "value", [None, "", "not a uid", "1.02", "1/../2", "1." * 32 + "1", "1" * 70]
)
@pytest.mark.filterwarnings("ignore:(Invalid value for VR UI|The value length):UserWarning")
def test_a_missing_or_malformed_uid_is_refused_by_name(keyword: str, value: str | None) -> None:
    """One too long is not cut short: that would be another instance's."""
    with pytest.raises(DicomError, match=keyword) as caught:
        Instance.of(header(**{keyword: value}))
    assert not value or value not in str(caught.value)


def test_only_the_uids_are_needed() -> None:
    """Everything else may be missing."""
    whole = header()
    bare = Dataset()
    for keyword in UIDS:
        setattr(bare, keyword, whole[keyword].value)
    instance = Instance.of(bare)
    empty = {name: "" for name in Instance.__slots__ if not name.endswith("_uid")}
    assert instance == replace(Instance.of(whole), **empty)


def priority_item(value: str) -> Dataset:
    """An item of a Request Attributes Sequence."""
    item = Dataset()
    item.RequestedProcedurePriority = value
    return item


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ""),
        ({"RequestedProcedurePriority": "HIGH"}, "HIGH"),
        ({"RequestAttributesSequence": [priority_item("stat")]}, "STAT"),
        ({"RequestAttributesSequence": [Dataset(), priority_item("STAT")]}, "STAT"),
        ({"RequestAttributesSequence": []}, ""),
        (
            {
                "RequestedProcedurePriority": "HIGH",
                "RequestAttributesSequence": [priority_item("LOW")],
            },
            "HIGH",
        ),
        (
            {
                "RequestedProcedurePriority": "",
                "RequestAttributesSequence": [priority_item("HIGH")],
            },
            "HIGH",
        ),
    ],
)
def test_the_ordered_priority_is_at_the_top_or_in_the_request(
    attributes: dict[str, object], expected: str
) -> None:
    """The first that says something."""
    assert Instance.of(header(**attributes)).ordered_priority == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["ONE", "TWO"], "ONE"),
        ([], ""),
        ("  spaced  ", "spaced"),
        ("padded\0\0", "padded"),
        ("x" * 100, "x" * 64),
        ("Łódź 肺", "Łódź 肺"),
        (None, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_text_is_the_first_value_in_at_most_64_characters(value: object, expected: str) -> None:
    """Without padding and NUL, which PostgreSQL cannot hold."""
    dataset = Dataset()
    dataset.SeriesDescription = value
    assert text(dataset, "SeriesDescription") == expected


@pytest.mark.parametrize("keyword", ["PatientID", "ViewPosition", "RequestAttributesSequence"])
@pytest.mark.parametrize(("vr", "value"), [("FD", b"abc"), ("SQ", b"abc"), ("XX", b"?")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_element_that_cannot_be_converted_is_empty(keyword: str, vr: str, value: bytes) -> None:
    """It takes no image from the radiologist."""
    dataset = header()
    dataset[keyword] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    instance = Instance.of(dataset)
    assert instance.ordered_priority == ""
    assert text(dataset, keyword) == ""


def test_a_sequence_that_is_none_has_no_items() -> None:
    """Some gateways write a number under a sequence's tag."""
    dataset = header()
    dataset.add_new("RequestAttributesSequence", "US", 7)
    assert Instance.of(dataset).ordered_priority == ""


def test_a_reader_may_leave_all_but_the_named_elements() -> None:
    """An instance read from HEADER_KEYWORDS alone is the one read from everything."""
    full = header(PatientID="Ä-1", AccessionNumber="A-1", SpecificCharacterSet="ISO_IR 192")
    full.RequestedProcedurePriority = ""
    full.RequestAttributesSequence = [Dataset()]
    full.RequestAttributesSequence[0].RequestedProcedurePriority = "STAT"
    whole = Instance.of(full)
    assert all(getattr(whole, name) for name in Instance.__slots__), "or this shows nothing"
    part = Dataset()
    for keyword in HEADER_KEYWORDS:
        part[keyword] = full[keyword]
    assert Instance.of(part) == whole
