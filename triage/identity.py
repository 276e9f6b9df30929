"""What an instance is and where it belongs: references, UIDs and what the header states."""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from triage.errors import DicomError

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")


def valid_uid(value: str) -> bool:
    """Whether a text is a UID (PS3.5 9.1): at most 64 digits and dots, no leading zeros."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Instance:
    """A composite instance, as its header states it.

    Attributes
    ----------
    sop_instance_uid, sop_class_uid, series_instance_uid, study_instance_uid : str
        Valid UIDs.
    patient_id, patient_name, accession_number : str
        As sent; may be empty. Never logged.
    modality, body_part, view_position, patient_age, patient_sex : str
        As sent, upper case; may be empty.
    ordered_priority : str
        Requested Procedure Priority (0040,1003), upper case; may be empty.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    accession_number: str
    modality: str
    body_part: str
    view_position: str
    patient_age: str
    patient_sex: str
    ordered_priority: str
    patient_name: str = ""

    @classmethod
    def of(cls, header: Dataset) -> "Instance":
        """Read the header of a data set.

        Raises
        ------
        DicomError
            A UID is missing or malformed; the message names the attribute.
        """
        return cls(
            sop_instance_uid=_uid(header, "SOPInstanceUID"),
            sop_class_uid=_uid(header, "SOPClassUID"),
            series_instance_uid=_uid(header, "SeriesInstanceUID"),
            study_instance_uid=_uid(header, "StudyInstanceUID"),
            patient_id=text(header, "PatientID"),
            patient_name=_whole_text(header, "PatientName")[:256],
            accession_number=text(header, "AccessionNumber"),
            modality=_term(header, "Modality"),
            body_part=_term(header, "BodyPartExamined"),
            view_position=_term(header, "ViewPosition"),
            patient_age=_term(header, "PatientAge"),
            patient_sex=_term(header, "PatientSex"),
            ordered_priority=_ordered_priority(header),
        )


HEADER_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "PatientName",
    "AccessionNumber",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "PatientAge",
    "PatientSex",
    "RequestedProcedurePriority",
    "RequestAttributesSequence",
)
"""What :meth:`Instance.of` looks at; a reader may leave the rest."""


def value_of(header: Dataset, keyword: str) -> Any:
    """An element's value; None if it is absent, empty or unreadable."""
    try:
        return header.get(keyword)
    # A boundary: converting a malformed element raises what pydicom likes.
    except Exception:  # noqa: BLE001
        return None


def items(header: Dataset, keyword: str) -> tuple[Dataset, ...]:
    """A sequence's items; none if it is absent, empty or unreadable."""
    value = value_of(header, keyword)
    return tuple(value) if isinstance(value, Sequence) else ()


def numbers(header: Dataset, keyword: str, count: int | None = None) -> list[float]:
    """An element's values as finite numbers.

    Raises
    ------
    ValueError
        One is no number, or there are not ``count`` of them.
    """
    value = value_of(header, keyword)
    values = [] if value is None else value if isinstance(value, MultiValue | list) else [value]
    try:
        found = [float(each) for each in values]
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{keyword} holds what is no number") from error
    if not all(map(math.isfinite, found)) or (count is not None and len(found) != count):
        raise ValueError(f"{keyword} has {len(found)} values")
    return found


def text(header: Dataset, keyword: str) -> str:
    """An element's first value as text without padding; empty if absent or unreadable."""
    return _whole_text(header, keyword)[:64]


def _term(header: Dataset, keyword: str) -> str:
    """A coded string in upper case, cut after that: some letters grow."""
    return text(header, keyword).upper()[:64]


def _whole_text(header: Dataset, keyword: str) -> str:
    value = value_of(header, keyword)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    # PostgreSQL text cannot hold NUL, which some consoles pad with.
    return "" if value is None else str(value).replace("\0", "").strip()


def _uid(header: Dataset, keyword: str) -> str:
    value = _whole_text(header, keyword)  # one cut short would be another instance's
    if not value:
        raise DicomError(f"{keyword} is missing or empty")
    if not valid_uid(value):
        raise DicomError(f"{keyword} is not a UID (PS3.5 9.1)")
    return value


def _ordered_priority(header: Dataset) -> str:
    """Requested Procedure Priority at the top or in the request attributes."""
    places = (header, *items(header, "RequestAttributesSequence"))
    found = [_term(place, "RequestedProcedurePriority") for place in places]
    return next((value for value in found if value), "")
