"""HL7 version 2.5: unsolicited results (ORU^R01) over the Minimal Lower Layer Protocol.

Chapter numbers are those of HL7 2.5. Acknowledgement is in original mode (2.9.2): one
answer, of the application, whose MSA-2 repeats our message control ID.
"""

import base64
import datetime as dt
import hashlib
import re
import socket
import time
from pathlib import Path

import hl7
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import PersonName

from triage.errors import DeliveryError
from triage.identity import items, text, value_of
from triage.results import (
    CERTAINTY,
    CHEST_RADIOGRAPHY,
    NAME,
    PNEUMONIA,
    PRESENCE,
    Finding,
)
from triage.sinks import Material, Result
from triage.worklist.deliveries import ReadingSent, Subject

START, END = b"\x0b", b"\x1c\r"
"""The frame of a message (HL7 Implementation Guide, MLLP release 1)."""

LARGEST_ANSWER = 65_536

NOT_VERIFIED, PRELIMINARY, ORDER_DETAIL = "R", "P", "O"
"""Result statuses (tables 0085 and 0123). A verdict in a worklist is no final report."""

_ESCAPES = str.maketrans(
    {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
)  # 2.7.1

_ACKNOWLEDGEMENTS = {
    "AA": "",
    "AE": "found an error in the message or in itself",
    "AR": "rejected the message",
}
"""Table 0008, in original mode."""


def escaped(value: str) -> str:
    """Text as one subcomponent: delimiters escaped, no control characters."""
    return "".join(char for char in value if char.isprintable()).translate(_ESCAPES)


class InterfaceEngine:
    """A receiver of ORU^R01.

    Parameters
    ----------
    address : tuple of str and int
        Host and port.
    timeout : float
        Seconds for a message and its acknowledgement.
    sending_facility, receiving_application, receiving_facility : str
        MSH-4, MSH-5 and MSH-6; may be empty.
    """

    def __init__(
        self,
        address: tuple[str, int],
        timeout: float,
        sending_facility: str = "",
        receiving_application: str = "",
        receiving_facility: str = "",
    ) -> None:
        self._address, self._timeout = address, timeout
        self._header = (NAME, sending_facility, receiving_application, receiving_facility)
        self._connection: socket.socket | None = None

    def __str__(self) -> str:
        """As an administrator writes it."""
        return f"{self._address[0]} port {self._address[1]}"

    def build(self, material: Material) -> Result:
        """A message in UTF-8."""
        subject, finding = material.subject, material.finding()
        control_id = _control_id(subject)
        reading = subject.readings[-1] if subject.readings else None
        told_at = subject.scored_at if reading is None else reading.read_at
        segments = [
            [
                "MSH", "^~\\&", *map(escaped, self._header), _time(told_at), "",
                "ORU^R01^ORU_R01", control_id, "P", "2.5", "", "", "", "", "", "UNICODE UTF-8",
            ],
            _pid(material.source()),
            _obr(material.source(), subject, told_at, PRELIMINARY if reading else NOT_VERIFIED),
            *_observations(subject, finding, reading),
        ]  # fmt: skip
        message = "".join("|".join(segment).rstrip("|") + "\r" for segment in segments)
        return Result(control_id, message.encode())

    def send(self, uid: str, file: Path) -> None:
        """Send a message and wait for its acknowledgement."""
        try:
            if self._connection is None:
                self._connection = socket.create_connection(self._address, self._timeout)
            deadline = time.monotonic() + self._timeout
            self._connection.settimeout(self._timeout)
            self._connection.sendall(START + file.read_bytes() + END)
            answer = _receive(self._connection, deadline)
        except OSError as error:  # TimeoutError is one, too
            self.rest()
            raise DeliveryError(f"no answer from {self} ({type(error).__name__})") from error
        if answer is None:
            self.rest()
            raise DeliveryError(f"{self} ended the connection without an acknowledgement")
        try:
            self._judge(uid, answer)
        except DeliveryError:
            self.rest()  # what else comes on this connection may answer something else
            raise

    def rest(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _judge(self, uid: str, answer: bytes) -> None:
        """Taken only with AA for this very message (2.9.2.2)."""
        try:
            parsed = hl7.parse(answer.decode("utf-8", "replace"))
            acknowledgement = parsed.segment("MSA")
            code = str(acknowledgement[1]).strip().upper()
            acknowledged = str(acknowledgement[2]).strip()
        # A boundary: the parser raises what it likes on what is no message.
        except Exception as error:
            raise DeliveryError(f"{self} answered something that is no acknowledgement") from error
        if acknowledged != uid:
            raise DeliveryError(f"{self} acknowledged another message than ours")
        if code not in _ACKNOWLEDGEMENTS:
            raise DeliveryError(f"{self} answered a code that is not in table 0008")
        if code != "AA":
            raise DeliveryError(
                f"{self} answered {code}: it {_ACKNOWLEDGEMENTS[code]}{_condition(parsed)}",
                refused=True,
            )


def _receive(connection: socket.socket, deadline: float) -> bytes | None:
    """One framed message; None if the connection ended before it did."""
    received = b""
    while END not in received:
        left = deadline - time.monotonic()
        if left <= 0 or len(received) > LARGEST_ANSWER:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(4096)
        if not part:
            return None
        received += part
    return received.partition(END)[0].rpartition(START)[2]


def _condition(answer: hl7.Message) -> str:
    """The error's code in table 0357, from ERR-3 or MSA-6; never its text."""
    for segment, field in (("ERR", 3), ("MSA", 6)):
        try:
            found = re.match(r"\d{3}\b", str(answer.segment(segment)[field]))
        except (KeyError, IndexError):
            continue
        if found is not None:
            return f", condition {found[0]} of table 0357"
    return ""


def _control_id(subject: Subject) -> str:
    """MSH-10, at most 20 characters (2.15.9.10): the same whenever the message is built."""
    parts = [subject.sop_instance_uid, subject.score.model_version]
    for reading in subject.readings:
        parts += [reading.verdict, reading.reader, reading.read_at.isoformat()]
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode()[:20]


def _pid(source: Dataset) -> list[str]:
    """Patient Identification (3.4.2), as the radiograph states it."""
    issuer = escaped(text(source, "IssuerOfPatientID"))
    identifier = escaped(text(source, "PatientID")) + (f"^^^{issuer}" if issuer else "")
    born = _matching(r"\d{8}", text(source, "PatientBirthDate"))
    sex = _matching(r"[MFO]", text(source, "PatientSex").upper())
    return ["PID", "1", "", identifier, "", _name(source), "", born, sex]


def _name(source: Dataset) -> str:
    """XPN from a Person Name, whose prefix and suffix stand the other way round."""
    value = value_of(source, "PatientName")
    if not isinstance(value, PersonName):
        return ""
    groups = [str(group) for group in value.components if group]
    if not groups:
        return ""
    parts = (groups[0].split("^") + [""] * 5)[:5]
    family, given, middle, prefix, suffix = map(escaped, parts)
    return "^".join((family, given, middle, suffix, prefix)).rstrip("^")


def _obr(source: Dataset, subject: Subject, told_at: dt.datetime, status: str) -> list[str]:
    """Observation Request (4.5.3); the accession number as in IHE RAD TF-2 4.7."""
    places = (source, *items(source, "RequestAttributesSequence"))
    orders = [
        next(filter(None, (text(place, f"{side}OrderNumberImagingServiceRequest")
                           for place in places)), "")
        for side in ("Placer", "Filler")
    ]  # fmt: skip
    accession = escaped(subject.accession_number)
    fields = {
        1: "1",
        2: escaped(orders[0]),
        3: escaped(orders[1]) or accession,
        4: _coded(CHEST_RADIOGRAPHY),
        7: _taken_at(source),
        18: accession,
        22: _time(told_at),
        24: "RAD",
        25: status,
    }
    return ["OBR", *(fields.get(number, "") for number in range(1, 26))]


def _observations(
    subject: Subject, finding: Finding, reading: ReadingSent | None
) -> list[list[str]]:
    """OBX segments (7.4.2): the study, what the model says and what the reader says."""
    score = subject.score
    model = {
        11: NOT_VERIFIED,
        14: _time(subject.scored_at),
        17: f"{escaped(score.model_version)}^^L",
        18: f"^^{finding.device_uid}^ISO",
    }
    comment = (
        f"Triage aid, not a diagnosis. {finding.words}: the network's probability of pneumonia "
        f"is {score.probability:.4f}, exams at or above {score.threshold:.4f} are flagged. "
        f"Trained on: {finding.population}."
    )
    percent = f"{100.0 * score.probability:.4f}"
    told = [
        {2: "ST", 3: "113014^DICOM Study^DCM", 5: subject.study_instance_uid, 11: ORDER_DETAIL},
        {2: "CE", 3: _coded(PNEUMONIA), 4: "1", 5: _coded(PRESENCE[score.flagged]), **model},
        {2: "NM", 3: _coded(CERTAINTY), 4: "1", 5: percent, 6: "%^Percent^UCUM", **model},
        {2: "TX", 3: "59776-5^Procedure Findings^LN", 4: "1", 5: escaped(comment), **model},
    ]
    if reading is not None:
        reader = {
            11: PRELIMINARY,
            14: _time(reading.read_at),
            16: f"^{escaped(reading.reader)}",
        }
        present = PRESENCE[reading.verdict == "confirmed"]
        told.append({2: "CE", 3: _coded(PNEUMONIA), 4: "2", 5: _coded(present), **reader})
    return [
        ["OBX", str(number), *(fields.get(place, "") for place in range(2, 19))]
        for number, fields in enumerate(told, 1)
    ]


def _coded(code: Code) -> str:
    """CE from a DICOM code: value, meaning, scheme."""
    return "^".join(map(escaped, (code.value, code.meaning, code.scheme_designator)))


def _time(moment: dt.datetime) -> str:
    """TS (2.A.77), to the second, in UTC."""
    return moment.astimezone(dt.UTC).strftime("%Y%m%d%H%M%S+0000")


def _taken_at(source: Dataset) -> str:
    """When the radiograph was taken, as its clock has it; empty if it does not say."""
    for day in ("Acquisition", "Content", "Study"):
        date = _matching(r"\d{8}", text(source, f"{day}Date"))
        if date:
            return date + _matching(r"\d{6}", text(source, f"{day}Time")[:6])
    return ""


def _matching(form: str, value: str) -> str:
    return value if re.fullmatch(form, value) else ""
