"""What goes back to the PACS: a structured report and a picture for people. Pure.

A scored radiograph gives a Comprehensive 3D SR (PS3.3 A.35.13) after TID 1500 and the IHE
profile AI Results, whether it was flagged or not, and a Secondary Capture (PS3.3 A.8.1)
with the heat map and the words that it is no diagnosis, for viewers that show no reports.
A reading gives a further report that replaces the first.

Made once or twice, a result is the same to the byte: UIDs are hashes of what the result is
about (PS3.5 B.2), and times are those of the score or the reading. A PACS that gets one
again has it already.

Headers are read tolerantly: what is missing or broken in the radiograph's is left empty in
the result's. Only its UIDs must be right.
"""

import datetime as dt
import functools
import re
import unicodedata
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from highdicom import sr
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset, config
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from triage import __version__
from triage.explanation import HeatMap, colours, full_heat, paint
from triage.identity import Instance, text, valid_uid, value_of
from triage.pixels import Array
from triage.scoring import Score, Verdict

DISCLAIMER = "TRIAGE AID - NOT FOR DIAGNOSTIC USE"
"""Burned into every picture, at the top and at the bottom."""


NAME = "cxr-triage"

PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
FINDING_CONTEXT = Code("408729009", "SCT", "Finding context")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PRESENCE = {
    True: Code("52101004", "SCT", "Present"),
    False: Code("272519000", "SCT", "Absent"),
}
"""PS3.16 CID 240. Of a score: flagged or not flagged."""

_CONTEXTS = {
    "confirmed": Code("410605003", "SCT", "Confirmed present"),
    "rejected": Code("410516002", "SCT", "Known absent"),
}
_SERIES_NUMBERS = {"report": 9101, "capture": 9102}  # after those that modalities give
_NAMESPACE = uuid.UUID("6e0b1d4c-6f0c-5c0e-9d0c-0c3d5b4f5a10")
_IN_HEADER = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "StudyDescription",
    "ReferringPhysicianName", "TimezoneOffsetFromUTC",
)  # fmt: skip
_TYPE_2 = frozenset(_IN_HEADER) - {
    "IssuerOfPatientID", "PatientAge", "StudyDescription", "TimezoneOffsetFromUTC"
}  # fmt: skip
_DATE = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
# Read by machines, so empty rather than wrong. Names and identifiers stay as they were sent:
# a PACS matches the result to the radiograph by them.
_FORMS = {
    "PatientBirthDate": _DATE,
    "StudyDate": _DATE,
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
    "PatientAge": r"\d{3}[DWMY]",
    "TimezoneOffsetFromUTC": r"[+-](0\d|1[0-4])[0-5]\d",
    "StudyID": r".{0,16}",
    "StudyDescription": r".{0,64}",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a model version found in a radiograph, and which model that was.

    Attributes
    ----------
    score : Score
    scored_at : datetime
        With a time zone, in which results show it unless the radiograph states another.
    device_uid : str
        Of the model version, one for each.
    architecture : str
        Of its network.
    population : str
        Whom it was trained on.
    """

    score: Score
    scored_at: dt.datetime
    device_uid: str
    architecture: str
    population: str

    def __post_init__(self) -> None:
        """Refuse a device without a UID, and a time that leaves open which moment it means."""
        _require_zone(self.scored_at)
        if not valid_uid(self.device_uid):
            raise ValueError(f"{self.device_uid!r} is not a UID")

    @property
    def words(self) -> str:
        """``FLAGGED`` or ``NOT FLAGGED``."""
        return "FLAGGED" if self.score.flagged else "NOT FLAGGED"


def structured_report(source: Dataset, finding: Finding) -> Dataset:
    """Report a finding, flagged or not, as a Comprehensive 3D SR after TID 1500.

    Parameters
    ----------
    source : pydicom.Dataset
        The scored radiograph; its pixels are not needed.
    finding : Finding

    Returns
    -------
    pydicom.Dataset
        With file meta information, UNVERIFIED and PRELIMINARY: the report that counts is a
        radiologist's.

    Raises
    ------
    DicomError
        A UID of the radiograph is missing or malformed.
    """
    radiograph = Instance.of(source)
    report = _result(source, finding, "report", Comprehensive3DSRStorage, finding.scored_at)
    _set_document(report, radiograph, [_model_group(radiograph, finding)], _device(finding))
    return _encodable(report)


def updated_report(
    source: Dataset,
    finding: Finding,
    verdict: Verdict,
    reader: str,
    read_at: dt.datetime,
    predecessor: Dataset,
    *,
    organization: str = "",
) -> Dataset:
    """Report a finding with a reader's verdict on it, in place of an earlier report.

    The report holds the model's measurement group, unchanged, and the reader's. It is
    VERIFIED where the organization is known to which the reader answers for the verdict
    (Verifying Organization is of type 1, and the radiograph does not say it), else
    UNVERIFIED. It stays PRELIMINARY: a verdict in a worklist is not the radiology report.

    Parameters
    ----------
    source : pydicom.Dataset
        The scored radiograph; its pixels are not needed.
    finding : Finding
        What the reader was shown.
    verdict : {"confirmed", "rejected"}
        The finding is there, or it is not.
    reader : str
        The reader's name, not empty.
    read_at : datetime
        With a time zone.
    predecessor : pydicom.Dataset
        The report that this one replaces: the first, or the last update.
    organization : str
        The reader's; empty if unknown.

    Returns
    -------
    pydicom.Dataset
        In the series of the first report, with an Instance Number one higher than the
        predecessor's.

    Raises
    ------
    DicomError
        A UID of the radiograph or of the predecessor is missing or malformed.
    ValueError
        There is no reader, or no time zone.
    """
    _require_zone(read_at)
    name = _as_person_name(reader)
    radiograph, replaced = Instance.of(source), Instance.of(predecessor)
    report = _result(
        source, finding, "report", Comprehensive3DSRStorage, read_at,
        verdict, reader, read_at.astimezone(dt.UTC).isoformat(),
    )  # fmt: skip
    report.InstanceNumber = int(predecessor.InstanceNumber) + 1
    person = sr.ObserverContext(
        codes.DCM.Person,
        sr.PersonObserverIdentifyingAttributes(name, organization_name=organization or None),
    )
    reading = _group(
        radiograph,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(PNEUMONIA, PRESENCE[verdict == "confirmed"]),
            sr.QualitativeEvaluation(FINDING_CONTEXT, _CONTEXTS[verdict]),
        ],
    )
    found = _model_group(radiograph, finding)
    # Two observers speak, so each group says whose it is (PS3.16 TID 1001).
    for group, observer in ((found, _device(finding)), (reading, person)):
        for place, item in enumerate(observer):
            group[0].ContentSequence.insert(place, item)
    _set_document(report, radiograph, [found, reading], _device(finding), person)
    report.PredecessorDocumentsSequence = [_reference(replaced)]
    if organization:
        report.VerificationFlag = "VERIFIED"
        verifier = Dataset()
        verifier.VerifyingObserverName = name
        verifier.VerifyingObserverIdentificationCodeSequence = []
        verifier.VerifyingOrganization = organization[:64]
        verifier.VerificationDateTime = read_at.strftime("%Y%m%d%H%M%S.%f%z")
        report.VerifyingObserverSequence = [verifier]
    return _encodable(report)


def secondary_capture(
    source: Dataset, array: Array, heat_map: HeatMap, finding: Finding
) -> Dataset:
    """Draw a finding for viewers that show no reports.

    The picture holds no name and no identifier of the patient.

    Parameters
    ----------
    source : pydicom.Dataset
        The scored radiograph; its pixels are not needed.
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0
        What was scored.
    heat_map : HeatMap
        Of :func:`triage.explanation.explain`.
    finding : Finding

    Returns
    -------
    pydicom.Dataset
        With file meta information; uncompressed 8-bit RGB.

    Raises
    ------
    DicomError
        A UID of the radiograph is missing or malformed.
    """
    radiograph = Instance.of(source)
    capture = _result(source, finding, "capture", SecondaryCaptureImageStorage, finding.scored_at)
    capture.Modality = "OT"
    capture.ConversionType = "WSD"
    capture.BodyPartExamined = "CHEST"
    capture.PatientOrientation = _orientation(source)
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    capture.RecognizableVisualFeatures = "NO"
    capture.ImageComments = f"{DISCLAIMER}. {finding.words}."
    capture.DerivationDescription = (
        f"Normalized radiograph with a heat map of the score ({heat_map.meaning}) painted over "
        f"it, by {NAME} {__version__} with model version {finding.score.model_version}"
    )[:1024]
    reference = _sop_reference(radiograph)
    reference.PurposeOfReferenceCodeSequence = [
        _code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    capture.SourceImageSequence = [reference]
    if text(source, "LossyImageCompression") == "01":  # once lossy, always (C.7.6.1.1.5)
        for keyword, form in (("Ratio", r"[\d.]{1,16}"), ("Method", r"[A-Z\d_ ]{1,16}")):
            value = text(source, f"LossyImageCompression{keyword}")
            if re.fullmatch(form, value):
                setattr(capture, f"LossyImageCompression{keyword}", value)
        capture.LossyImageCompression = "01"
    picture = draw(array, heat_map, finding, _aspect(source))
    capture.Rows, capture.Columns = picture.shape[:2]
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    capture.add_new("PixelData", "OB", picture.tobytes() + b"\0" * (picture.size % 2))
    return _encodable(capture)


def result_uid(source_uid: str, model_version: str, *parts: str) -> UID:
    """The UID of something that a model version says about a radiograph.

    Parameters
    ----------
    source_uid : str
        SOP Instance UID of the radiograph.
    model_version : str
    *parts : str
        What it is (``report``, ``capture``), and what tells it from its like.

    Returns
    -------
    pydicom.uid.UID
        Under 2.25 (PS3.5 B.2), from a name-based UUID (RFC 9562, version 5).
    """
    name = "\0".join((source_uid, model_version, *parts))
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")


# --- What both kinds have: patient, study, series, equipment, SOP common -------------------


def _result(
    source: Dataset, finding: Finding, kind: str, sop_class: UID, made_at: dt.datetime, *parts: str
) -> Dataset:
    """A result that says nothing yet."""
    instance, version = Instance.of(source), finding.score.model_version
    result = Dataset()
    for keyword, value in _header(source).items():
        vr = dictionary_VR(keyword)
        result.add(DataElement(keyword, vr, value, validation_mode=config.IGNORE))
    result.SpecificCharacterSet = _declared(source)
    result.StudyInstanceUID = instance.study_instance_uid
    result.SeriesInstanceUID = result_uid(instance.sop_instance_uid, version, kind, "series")
    result.SeriesNumber = _SERIES_NUMBERS[kind]
    result.SeriesDescription = f"Pneumonia triage {kind}"
    result.SOPClassUID = sop_class
    result.SOPInstanceUID = result_uid(instance.sop_instance_uid, version, kind, *parts)
    result.InstanceNumber = 1
    result.Manufacturer = result.ManufacturerModelName = NAME
    result.DeviceSerialNumber = result.DeviceUID = finding.device_uid
    result.SoftwareVersions = [__version__, version[:64]]
    offset = result.get("TimezoneOffsetFromUTC")
    for prefix, moment in (
        ("Series", finding.scored_at), ("Content", made_at), ("InstanceCreation", made_at)
    ):  # fmt: skip
        local = moment.astimezone(dt.datetime.strptime(offset, "%z").tzinfo) if offset else moment
        setattr(result, f"{prefix}Date", local.strftime("%Y%m%d"))
        setattr(result, f"{prefix}Time", local.strftime("%H%M%S.%f"))
    result.file_meta = FileMetaDataset()
    result.file_meta.MediaStorageSOPClassUID = sop_class
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return result


def _header(source: Dataset) -> dict[str, str]:
    """What of the patient and the study is copied; type 2 elements are there if empty."""
    found = {}
    with warnings.catch_warnings():
        # pydicom warns of each value that it cannot decode, and then gives what it can.
        warnings.simplefilter("ignore")
        for keyword in _IN_HEADER:
            value = value_of(source, keyword)
            if isinstance(value, MultiValue):
                value = value[0] if value else None
            copied = "" if value is None else str(value)
            if not _declared(source):
                copied = _undeclared(copied)
            copied = "".join(char for char in copied if unicodedata.category(char) != "Cc").strip()
            if keyword == "PatientSex":
                copied = copied.upper()
            if re.fullmatch(_FORMS.get(keyword, r".*"), copied) is None:
                copied = ""
            if copied or keyword in _TYPE_2:
                found[keyword] = copied
    return found


def _undeclared(value: str) -> str:
    """Text of no known character set, which pydicom took for Latin-1: UTF-8, if it can be."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _declared(source: Dataset) -> list[str]:
    """Specific Character Set, if every value of it is known and they may stand together."""
    value = value_of(source, "SpecificCharacterSet")
    terms = [str(term) for term in value] if isinstance(value, MultiValue) else [str(value or "")]
    known = all(term in python_encoding for term in terms)
    extended = len(terms) == 1 or all(term.startswith("ISO 2022") for term in terms if term)
    return terms if known and extended and any(terms) else []


def _encodable(result: Dataset) -> Dataset:
    """The result in the radiograph's character set or, where that cannot hold it, in UTF-8."""
    # pydicom would write Latin-1 without a declaration; the default repertoire is ASCII.
    plain = {"", "ISO_IR 6", "ISO 2022 IR 6"}
    codecs = [
        "ascii" if term in plain else python_encoding[term] for term in _declared(result) or [""]
    ]
    characters = set("".join(_texts(result)))
    if not all(any(_holds(codec, character) for codec in codecs) for character in characters):
        result.SpecificCharacterSet = "ISO_IR 192"
    elif not _declared(result):
        del result.SpecificCharacterSet
    return result


def _texts(result: Dataset) -> Iterator[str]:
    for element in result.iterall():
        if element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}:
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            yield from (str(value or "") for value in values)


def _holds(codec: str, character: str) -> bool:
    try:
        character.encode(codec)
    except UnicodeError:
        return False
    return True


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _require_zone(moment: dt.datetime) -> None:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")


# --- The report ----------------------------------------------------------------------------


def _set_document(
    report: Dataset,
    radiograph: Instance,
    groups: list[sr.MeasurementsAndQualitativeEvaluations],
    device: sr.ObserverContext,
    person: sr.ObserverContext | None = None,
) -> None:
    """SR Document Series, General and Content (PS3.3 C.17.1 to C.17.3)."""
    report.Modality = "SR"
    report.ReferencedPerformedProcedureStepSequence = []
    report.PerformedProcedureCodeSequence = []
    report.CompletionFlag = "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.CurrentRequestedProcedureEvidenceSequence = [_reference(radiograph)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_person_context=person, observer_device_context=device
        ),
        procedure_reported=CHEST_RADIOGRAPHY,
        imaging_measurements=groups,
    )
    report.update({element.tag: element for element in content[0]})


def _model_group(
    radiograph: Instance, finding: Finding
) -> sr.MeasurementsAndQualitativeEvaluations:
    """What the model version says."""
    score = finding.score
    group = _group(
        radiograph,
        algorithm_id=sr.AlgorithmIdentification(
            name=f"{NAME} pneumonia",
            version=score.model_version,
            parameters=[
                f"threshold={score.threshold:.6f}",
                f"architecture={finding.architecture}",
            ],
            manufacturer=NAME,
        ),
        measurements=[
            sr.Measurement(
                CERTAINTY, round(100.0 * score.probability, 4), Code("%", "UCUM", "Percent")
            )
        ],
        qualitative_evaluations=[sr.QualitativeEvaluation(PNEUMONIA, PRESENCE[score.flagged])],
    )
    group[0].ContentSequence.append(
        sr.TextContentItem(
            name=codes.DCM.Comment,
            value=(
                f"Triage aid that orders the reading worklist. Not a diagnosis. {finding.words}: "
                f"the network's probability of pneumonia is {score.probability:.4f}, exams at or "
                f"above {score.threshold:.4f} are flagged. Trained on: {finding.population}."
            ),
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
    )
    return group


def _group(radiograph: Instance, **content: Any) -> sr.MeasurementsAndQualitativeEvaluations:
    """A measurement group (TID 1501) about the radiograph's pneumonia.

    All groups about one radiograph share a tracking UID, whoever speaks.
    """
    tracked = result_uid(radiograph.sop_instance_uid, "", "tracking")
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(tracked, "Pneumonia"),
        finding_type=PNEUMONIA,
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        source_images=[
            sr.SourceImageForMeasurementGroup(radiograph.sop_class_uid, radiograph.sop_instance_uid)
        ],
        **content,
    )


def _device(finding: Finding) -> sr.ObserverContext:
    """The model version as a device observer (TID 1004)."""
    return sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=finding.device_uid,
            name=finding.score.model_version,
            manufacturer_name=NAME,
            model_name=f"{NAME} {__version__}",
        ),
    )


def _sop_reference(instance: Instance) -> Dataset:
    """SOP Instance Reference Macro (PS3.3 10.8)."""
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item


def _reference(instance: Instance) -> Dataset:
    """Hierarchical SOP Instance Reference Macro (PS3.3 C.17.2.1)."""
    series = Dataset()
    series.SeriesInstanceUID = instance.series_instance_uid
    series.ReferencedSOPSequence = [_sop_reference(instance)]
    study = Dataset()
    study.StudyInstanceUID = instance.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _as_person_name(reader: str) -> str:
    """A reader's name as one Person Name (PS3.5 6.2): no control characters, backslash, =."""
    name = "".join(
        char for char in reader if unicodedata.category(char) != "Cc" and char not in "\\="
    ).strip()
    if not name:
        raise ValueError("a reading has a reader")
    # A name without components is all family name; the caret says that it is meant so.
    return name[:63] if "^" in name else f"{name[:63]}^"


# --- The picture ---------------------------------------------------------------------------

_WIDTH = 768
_STRIP, _VERDICT, _LEGEND = 40, 104, 112  # heights of the bands above and below the picture
_INK, _PAPER, _FAINT = (238, 240, 243), (17, 20, 26), (150, 158, 170)
_WARNING = (245, 197, 66)
_FLAGGED, _NOT_FLAGGED = (255, 122, 61), (120, 190, 220)


def draw(
    array: Array, heat_map: HeatMap, finding: Finding, aspect: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Draw a finding: disclaimer, verdict, radiograph with heat map, legend, disclaimer.

    Parameters
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0
    heat_map : HeatMap
    finding : Finding
    aspect : float
        Width by height of the radiograph; the array has lost it.

    Returns
    -------
    ndarray of uint8, shape (1064, 768, 3)
    """
    height = 2 * _STRIP + _VERDICT + _WIDTH + _LEGEND
    page = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(page)
    for top in (0, height - _STRIP):
        pen.rectangle((0, top, _WIDTH, top + _STRIP - 1), fill=_WARNING)
        pen.text((_WIDTH // 2, top + _STRIP // 2), DISCLAIMER, _PAPER, _font(22), anchor="mm")
    _draw_verdict(pen, finding, _STRIP)
    columns = min(_WIDTH, round(_WIDTH * aspect))
    rows = min(_WIDTH, round(_WIDTH / aspect))
    top = _STRIP + _VERDICT
    pen.rectangle((0, top, _WIDTH, top + _WIDTH - 1), fill=(0, 0, 0))
    page.paste(
        Image.fromarray(paint(array, heat_map, (columns, rows))),
        ((_WIDTH - columns) // 2, top + (_WIDTH - rows) // 2),
    )
    _draw_legend(page, pen, heat_map, finding, top + _WIDTH)
    return np.asarray(page)


def _draw_verdict(pen: ImageDraw.ImageDraw, finding: Finding, top: int) -> None:
    """The word, the probability, and both it and the threshold on a bar."""
    score, colour = finding.score, _FLAGGED if finding.score.flagged else _NOT_FLAGGED
    pen.rectangle((0, top, 9, top + _VERDICT - 1), fill=colour)
    pen.text((32, top + 44), finding.words, colour, _font(42), anchor="lm")
    pen.text((32, top + 83), f"for pneumonia, by {NAME}", _FAINT, _font(17), anchor="lm")
    left, right, bar = 400, _WIDTH - 32, top + 52
    pen.text((left, top + 26), "probability", _FAINT, _font(17), anchor="lm")
    pen.text((right, top + 26), f"{score.probability:.3f}", _INK, _font(30), anchor="rm")
    pen.rounded_rectangle((left, bar, right, bar + 12), 6, fill=(58, 64, 76))
    end = left + round((right - left) * score.probability)
    pen.rounded_rectangle((left, bar, max(end, left + 12), bar + 12), 6, fill=colour)
    tick = left + round((right - left) * score.threshold)
    pen.rectangle((tick - 1, bar - 5, tick + 1, bar + 17), fill=_INK)
    words = f"threshold {score.threshold:.3f}"
    half = round(_font(17).getlength(words) / 2)
    center = min(max(tick, left + half), right - half)
    pen.text((center, top + 84), words, _INK, _font(17), anchor="mm")


def _draw_legend(
    page: Image.Image, pen: ImageDraw.ImageDraw, heat_map: HeatMap, finding: Finding, top: int
) -> None:
    """What the colours mean, and whose score it is."""
    left, right = 32, 340
    pen.text((left, top + 24), heat_map.meaning, _INK, _font(16), "lm")
    ramp = colours(np.linspace(0.0, 1.0, right - left))[None].repeat(14, axis=0)
    page.paste(Image.fromarray(np.rint(ramp).astype(np.uint8)), (left, top + 42))
    full = full_heat(heat_map)
    middle = (left + right) // 2
    pen.rectangle((middle - 1, top + 38, middle, top + 59), fill=_INK)
    for place, share, anchor in ((left, 0.0, "lt"), (middle, 0.5, "mt"), (right, 1.0, "rt")):
        pen.text((place, top + 66), f"{share * full:.3f}", _INK, _font(16), anchor)
    pen.text((middle, top + 94), "the line in the picture", _FAINT, _font(15), "mm")
    left, width = 380, _WIDTH - 32 - 380
    scored_at = finding.scored_at.strftime("%Y-%m-%d %H:%M %z")
    lines = (
        (_cut(f"model {finding.score.model_version}", width), _INK),
        (f"scored {scored_at}", _FAINT),
        *((line, _FAINT) for line in _wrapped(f"trained on: {finding.population}", width)),
    )
    for row, (words, colour) in enumerate(lines):
        pen.text((left, top + 24 + 23 * row), words, colour, _font(16), "lm")


def _wrapped(words: str, width: int) -> tuple[str, str]:
    """Two lines of at most a width, in pixels, at 16 pixels' size; what is over is cut."""
    ends = [end for end, character in enumerate(words + " ") if character == " "]
    fitting = (end for end in ends if _font(16).getlength(words[:end]) <= width)
    end = max(fitting, default=0)
    return words[:end], _cut(words[end:].strip(), width)


def _cut(words: str, width: int) -> str:
    shown = words
    while _font(16).getlength(shown) > width:
        words = words[:-1]
        shown = words.rstrip(" ,.") + "..."
    return shown


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: no font file of the machine decides what is drawn."""
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))


def _aspect(source: Dataset) -> float:
    """Width by height, 1/3 to 3; 1 if unknown."""
    try:
        return min(max(int(source.Columns) / int(source.Rows), 1 / 3), 3.0)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return 1.0


def _orientation(source: Dataset) -> list[str]:
    """Patient Orientation, if it is one (PS3.3 C.7.6.1.1.1)."""
    value = value_of(source, "PatientOrientation")
    directions = [str(direction) for direction in value] if isinstance(value, MultiValue) else []
    valid = len(directions) == 2 and all(re.fullmatch(r"[LRAPHF]{1,3}", d) for d in directions)
    return directions if valid else []
