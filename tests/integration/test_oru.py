"""ORU^R01: the message as another HL7 library reads it, and what counts as acknowledged."""

import re
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import hl7
import pytest
from hl7apy import consts, core
from hl7apy.parser import parse_message
from pydicom import Dataset

from tests.builders import picture, radiograph, reread
from tests.peers import READING, SCORE, MllpPeer, material, send
from triage.errors import DeliveryError
from triage.sinks import Material
from triage.worklist.deliveries import ReadingSent

HOSTILE = "A|B^C&D~E\\F\\.br\\"


def message(what: Material) -> str:
    """What would be sent."""
    return MllpPeer().sink().build(what).content.decode()


def read(text: str) -> core.Message:
    """The message as hl7apy reads it, which knows the structure of every 2.5 message."""
    return parse_message(text, validation_level=consts.VALIDATION_LEVEL.STRICT)


def unescaped(value: str) -> str:
    """2.7.1, the other way round."""
    meanings = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}
    return re.sub(r"\\([FSTRE])\\", lambda found: meanings[found[1]], value)


def hostile() -> Dataset:
    """A radiograph whose header holds everything that HL7 has a meaning for."""
    return reread(
        radiograph(
            picture(1),
            SpecificCharacterSet="ISO_IR 192",
            PatientID=HOSTILE.replace("\\", "/"),
            PatientName="Müller&Co^Jörg|X^^Dr.^Jr.",
            AccessionNumber="A^1|2~3",
            IssuerOfPatientID="H|1",
        )
    )


@pytest.mark.parametrize("readings", [(), (READING,)])
def test_another_library_finds_the_message_valid(readings: tuple[ReadingSent, ...]) -> None:
    """Segments, groups, cardinalities, data types and lengths of ORU^R01 in 2.5."""
    parsed = read(message(material(readings=readings)))
    assert parsed.validate()
    assert [child.name for child in parsed.children] == ["MSH", "ORU_R01_PATIENT_RESULT"]
    result = parsed.oru_r01_patient_result
    assert result.oru_r01_patient.pid.pid_3.value
    observations = result.oru_r01_order_observation.oru_r01_observation
    assert len(observations) == (5 if readings else 4)


def test_the_message_says_what_was_found() -> None:
    """Who, which order, which study, what, how certain, and that it is no diagnosis."""
    what = material(radiograph(picture(1)))
    parsed = hl7.parse(message(what))
    header = what.source()
    assert str(parsed.segment("MSH")[9]) == "ORU^R01^ORU_R01"
    assert str(parsed.segment("MSH")[18]) == "UNICODE UTF-8"
    assert str(parsed.segment("PID")[5]) == "Test^Child"
    assert str(parsed.segment("OBR")[18]) == header.AccessionNumber
    assert str(parsed.segment("OBR")[25]) == "R"
    study, present, certainty, comment = parsed.segments("OBX")
    assert [str(study[n]) for n in (2, 3, 5, 11)] == [
        "ST", "113014^DICOM Study^DCM", header.StudyInstanceUID, "O"
    ]  # fmt: skip
    assert str(present[5]) == "52101004^Present^SCT"
    assert float(str(certainty[5])) == pytest.approx(100 * SCORE.probability)
    assert "not a diagnosis" in str(comment[5])
    assert {str(obx[11]) for obx in (present, certainty, comment)} == {"R"}


def test_a_reading_is_preliminary_and_has_its_reader() -> None:
    """It is verified, and yet no final report."""
    parsed = hl7.parse(message(material(readings=(READING,))))
    assert str(parsed.segment("OBR")[25]) == "P"
    reader = parsed.segments("OBX")[-1]
    assert str(reader[5]) == "52101004^Present^SCT"
    assert str(reader[11]) == "P"
    assert str(reader[16]) == "^Dr. Ä. Reader"
    assert str(reader[14]) == "20260105110000+0000"


def test_no_text_breaks_out_of_its_field() -> None:
    """Delimiters and control characters in the header stay data."""
    what = material(hostile())
    text = message(what)
    assert read(text).validate()
    parsed = hl7.parse(text)
    pid = parsed.segment("PID")
    identifier, _, _, issuer = str(pid[3]).split("^")
    assert unescaped(identifier) == HOSTILE.replace("\\", "/")
    assert unescaped(issuer) == "H|1"
    family, given, middle, suffix, prefix = (unescaped(part) for part in str(pid[5]).split("^"))
    assert (family, given, middle, suffix, prefix) == ("Müller&Co", "Jörg|X", "", "Jr.", "Dr.")
    assert unescaped(str(parsed.segment("OBR")[18])) == "A^1|2~3"
    reader = ReadingSent("rejected", f"{HOSTILE}\r\nOBX|9|", datetime.now(UTC))
    text = message(material(readings=(reader,)))
    assert text.count("\rOBX") == 5
    assert unescaped(str(hl7.parse(text).segments("OBX")[-1][16])[1:]) == f"{HOSTILE}OBX|9|"


def test_an_empty_header_still_makes_a_message() -> None:
    """What is unknown is empty; nothing is made up."""
    nameless = radiograph(
        picture(1), PatientName=None, PatientID="", PatientSex="", PatientBirthDate="",
        StudyDate=None, StudyTime=None, AccessionNumber="",
    )  # fmt: skip
    parsed = hl7.parse(message(material(nameless)))
    assert [str(field) for field in parsed.segment("PID")] == ["PID", "1"]


def test_an_acknowledgement_of_another_message_is_none(tmp_path: Path) -> None:
    """MSA-2 must be our MSH-10."""
    with MllpPeer() as peer:
        peer.wrong_id = True
        sink = peer.sink()
        with pytest.raises(DeliveryError, match="another message") as caught:
            send(sink, tmp_path)
        assert not caught.value.refused


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"\x0bMSH|^~\\&|R\rMSA|AR|{uid}\r\x1c\r", "AR"),
        (b"\x0bMSH|^~\\&|R\rMSA|AE|{uid}|x|||207^y^HL70357\r\x1c\r", "207"),
        (b"\x0bMSH|^~\\&|R\rMSA|CA|{uid}\r\x1c\r", "0008"),
        (b"\x0bMSH|^~\\&|R\r\x1c\r", "no acknowledgement"),
        (b"\x0bnonsense\x1c\r", "no acknowledgement"),
        (b"\x0b\x1c\r", "no acknowledgement"),
        (b"\x0b\xff\xfe\x00\x1c\r", "no acknowledgement"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TimeoutError"),
        (b"\x0b" + b"x" * 100_000, "TimeoutError"),
        (b"", "without an acknowledgement"),
    ],
)
def test_only_an_accept_for_this_message_has_taken_it(
    answer: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else comes back is told in one line."""
    with MllpPeer() as peer:

        def odd(message: bytes) -> bytes:
            uid = str(hl7.parse(message.decode()).segment("MSH")[10])
            if not answer:
                raise ConnectionResetError
            return answer.replace(b"{uid}", uid.encode())

        monkeypatch.setattr(peer, "answer", odd)
        with pytest.raises(DeliveryError, match=told) as caught:
            send(peer.sink(timeout=1.0), tmp_path)
        assert caught.value.refused == (told in {"AR", "207"})


def test_an_answer_that_drips_is_left_within_the_time_limit(tmp_path: Path) -> None:
    """The limit is for the whole answer, not for each byte."""
    peer, done = MllpPeer(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer.port = server.getsockname()[1]

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not done.wait(0.1):
                    connection.sendall(b"\x0b")

        thread = threading.Thread(target=drip)
        thread.start()
        sink, began = peer.sink(timeout=1.0), time.monotonic()
        with pytest.raises(DeliveryError, match="TimeoutError"):
            send(sink, tmp_path)
        assert time.monotonic() - began < 2
        done.set()
        thread.join()
