"""Whether a header describes a radiograph that the model may score, and if not, why.

Pure: a header and a population in, a decision out. Every reason and note is a code in
``docs/reasons.md``.
"""

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
)

from triage.identity import items, text, value_of

SCORED_CLASSES: frozenset[UID] = frozenset(
    {ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation}
)
FRONTAL_VIEWS = frozenset({"PA", "AP"})

# PS3.16 CID 4010, in SNOMED CT and in the SRT codes that older consoles send.
_FRONTAL_CODES = frozenset({"272479007", "399348003", "399033003", "R-10214", "R-40888", "R-10206"})
# PS3.16 CID 4009 and CID 4: chest, thorax, thoracic cavity, lung.
_CHEST_CODES = frozenset(
    {"816094009", "51185008", "43799004", "39607008", "T-D3000", "T-D3200", "T-28000"}
)
# As consoles are set up in English, German, French, Spanish, Portuguese, Italian, Chinese and
# Japanese; a digit or an underscore may follow a word, a letter may not (CHESTABDOMEN).
_CHEST_WORDS = re.compile(
    r"(?<![^\W\d_])(chest|cxr|thorax|thoracic|t[oó]rax|torace|lungs?|lungen?|poumons?|pulm[oó]n(es)?)"
    r"(?![^\W\d_])|thoraxaufnahme|胸部",
    re.IGNORECASE,
)
_SPINE = re.compile(r"spin(e|al)|vertebra", re.IGNORECASE)
"""What makes "thoracic" another word."""
_AGE = re.compile(r"([0-9]{1,3})([DWMY])")
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12.0, "Y": 365.25}


@dataclass(frozen=True, slots=True)
class Population:
    """Whom a model version was trained on, as far as the training data says.

    Attributes
    ----------
    description : str
    age_years : tuple of two int, or None
        The youngest and the oldest completed year of age; None if not stated.
    views : tuple of str
        View Position values (PS3.3 C.8.1.1.1), such as ``PA``.
    """

    description: str
    age_years: tuple[int, int] | None
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision about one instance.

    Attributes
    ----------
    reason : str or None
        Why it is not scored; None if it is.
    explanation : str
        The reason for a person, without patient data; empty if there is none.
    notes : tuple of str
        Codes of what a reader should know about an admitted instance.
    """

    reason: str | None = None
    explanation: str = ""
    notes: tuple[str, ...] = ()


def admit(header: Dataset, population: Population, *, warn_outside: bool) -> Admission:
    """Decide whether an instance is scored; the first rule that objects decides.

    Parameters
    ----------
    header : pydicom.Dataset
    population : Population
        Of the model that would score it.
    warn_outside : bool
        Score a patient outside the population with a note, instead of not at all.
    """
    notes: list[str] = []
    rules: tuple[Callable[[], tuple[str, str] | None], ...] = (
        lambda: _kind(header),
        lambda: _chest(header, notes),
        lambda: _view(header),
        lambda: _age(header, population, notes, warn_outside=warn_outside),
    )
    for rule in rules:
        objection = rule()
        if objection is not None:
            return Admission(*objection)
    return Admission(notes=tuple(notes))


def _kind(header: Dataset) -> tuple[str, str] | None:
    """One original projection image, for presentation (PS3.3 C.7.6.1.1.2, C.8.11.1)."""
    sop_class = UID(text(header, "SOPClassUID"))
    if sop_class not in SCORED_CLASSES:
        name = sop_class.name if sop_class.is_private is False else "a private SOP class"
        return "SOP_CLASS_NOT_SCORED", f"{name} is kept and not scored"
    if text(header, "PresentationIntentType").upper() == "FOR PROCESSING":
        return "FOR_PROCESSING", "the image is for processing, not for presentation"
    stated = value_of(header, "ImageType")
    values = stated if isinstance(stated, MultiValue) else [stated]
    image_type = [str(value).upper() for value in values]
    if "DERIVED" in image_type[:1]:
        return "DERIVED", "Image Type says that the image is derived from another"
    if "LOCALIZER" in image_type:
        return "LOCALIZER", "Image Type says that the image is a localizer"
    try:
        frames = int(text(header, "NumberOfFrames") or 1)
    except ValueError:
        frames = 0
    if frames != 1:
        return "MULTI_FRAME", f"Number of Frames is {frames}, not 1"
    return None


def _chest(header: Dataset, notes: list[str]) -> tuple[str, str] | None:
    """Body part, anatomic region, or what the series or the protocol is called."""
    part = text(header, "BodyPartExamined").upper()
    if _says_chest(part):
        return None
    regions = items(header, "AnatomicRegionSequence")
    named = [text(header, keyword) for keyword in ("SeriesDescription", "ProtocolName")]
    if not part:  # the study may be of several parts: it speaks only where no part is named
        named.append(text(header, "StudyDescription"))
    if any(text(region, "CodeValue") in _CHEST_CODES for region in regions) or any(
        _says_chest(name) for name in named
    ):
        if part:
            notes.append("BODY_PART_CONFLICT")
        return None
    if part or regions:
        return "NOT_CHEST", "Body Part Examined or Anatomic Region is not the chest"
    return "BODY_PART_UNKNOWN", "nothing in the header says that the chest was examined"


def _says_chest(words: str) -> bool:
    return _CHEST_WORDS.search(words) is not None and _SPINE.search(words) is None


def _view(header: Dataset) -> tuple[str, str] | None:
    """Frontal by View Position or View Code; never by the lack of them."""
    position = text(header, "ViewPosition").upper()
    views = [text(item, "CodeValue") for item in items(header, "ViewCodeSequence")]
    views = [view for view in views if view]
    if position and position not in FRONTAL_VIEWS:
        return "VIEW_NOT_FRONTAL", f"View Position is {position[:16]}, not PA or AP"
    if views and views[0] not in _FRONTAL_CODES:
        return "VIEW_NOT_FRONTAL", "the View Code is not a frontal one"
    if not position and not views:
        return "VIEW_UNKNOWN", "neither View Position nor View Code says that it is frontal"
    return None


def _age(
    header: Dataset, population: Population, notes: list[str], *, warn_outside: bool
) -> tuple[str, str] | None:
    """Inside the population that the model was trained on."""
    if population.age_years is None:
        return None
    years = age_in_years(header)
    if years is None:
        notes.append("AGE_UNKNOWN")
        return None
    youngest, oldest = population.age_years
    if youngest <= years < oldest + 1:
        return None
    if warn_outside:
        notes.append("AGE_OUTSIDE_POPULATION")
        return None
    return (
        "AGE_OUTSIDE_POPULATION",
        f"the patient's age is outside the model's population ({youngest} to {oldest} years)",
    )


def age_in_years(header: Dataset) -> float | None:
    """Patient's Age, else from the birth date on the study date; None if unknown.

    A stated age of whole years counts as those years. Three digits are asked for (PS3.5
    6.2), and fewer are read, too: an adult's ``45Y`` must not pass for unknown.
    """
    match = _AGE.fullmatch(text(header, "PatientAge").upper())
    if match is not None:
        number, unit = int(match[1]), match[2]
        return float(number) if unit == "Y" else number * _DAYS[unit] / _DAYS["Y"]
    born = _date(text(header, "PatientBirthDate"))
    taken = _date(text(header, "StudyDate")) or _date(text(header, "AcquisitionDate"))
    if born is None or taken is None or taken < born:
        return None
    birthdays = taken.year - born.year - ((taken.month, taken.day) < (born.month, born.day))
    return float(birthdays)


def _date(value: str) -> dt.date | None:
    try:
        return dt.datetime.strptime(value, "%Y%m%d").date()  # noqa: DTZ007
    except ValueError:
        return None
