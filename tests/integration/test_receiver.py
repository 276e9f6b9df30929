"""The storage SCP over loopback associations: what it answers, and what it keeps.

Most calls come from :class:`Console`, which writes its PDUs itself: a library would not send
what a broken or hostile console sends. Programs that are not ours send the rest.
"""

import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Self

import pytest
import structlog
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from sqlalchemy import text

from tests.builders import encoded, picture, radiograph, save
from tests.conftest import SAMPLES, free_port, wait_for
from triage.errors import DicomError, ServiceError, SpoolError
from triage.scp import Receiver
from triage.send import Destination, echo, send
from triage.spool import Spool, digest_of
from triage.worklist import State, Worklist, schema

VERIFICATION = "1.2.840.10008.1.1"
CR, DX = str(ComputedRadiographyImageStorage), str(DigitalXRayImageStorageForPresentation)
EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)
ENDED = None
"""What a console gets instead of a status if the association ends."""

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


# The console


def _item(kind: int, content: bytes) -> bytes:
    """An item of an association PDU (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(content)) + content


def _element(number: int, value: bytes) -> bytes:
    """An element of a command set (PS3.7 6.3.1), of even length."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


class Console:
    """A DICOM association over a plain socket, which can say anything at any time."""

    def __init__(
        self,
        port: int,
        called: str = "TRIAGE",
        contexts: Sequence[tuple[str, Sequence[str]]] = ((CR, [EXPLICIT]), (DX, [EXPLICIT])),
        calling: str = "CONSOLE",
    ) -> None:
        self.socket = self.connect(port)
        proposed = b"".join(
            _item(
                0x20,
                struct.pack(">Bxxx", 2 * number + 1)
                + _item(0x30, sop_class.encode())
                + b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes),
            )
            for number, (sop_class, syntaxes) in enumerate(contexts)
        )
        maximum, implementation = _item(0x51, struct.pack(">I", 131_072)), _item(0x52, b"1.2.3")
        content = (
            struct.pack(">Hxx16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
            + _item(0x10, b"1.2.840.10008.3.1.1.1")
            + proposed
            + _item(0x50, maximum + implementation)
        )
        self.request = struct.pack(">BxI", 0x01, len(content)) + content
        try:
            self.socket.sendall(self.request)
            self.kind, self.answer = self.receive()
        except OSError:
            self.socket.close()
            raise

    def connect(self, port: int) -> socket.socket:
        """The connection under the association."""
        return socket.create_connection(("127.0.0.1", port), timeout=20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.kind == 0x02:
            try:
                self._send(0x05, bytes(4))
                self.receive()
            except OSError:
                pass
        self.socket.close()

    def store(
        self,
        data: bytes,
        uid: str | bytes,
        sop_class: str = CR,
        context: int = 1,
        most: int = 60_000,
    ) -> int | None:
        """C-STORE a data set in fragments of at most so many bytes; the status, or ENDED."""
        self.command(uid, sop_class, context)
        for start in range(0, len(data), most):
            part = data[start : start + most]
            self.fragment(part, context, last=start + most >= len(data))
        return self.status()

    def command(self, uid: str | bytes, sop_class: str = CR, context: int = 1) -> None:
        """The command of a C-STORE-RQ (PS3.7 9.3.1.1)."""
        name = uid.encode() if isinstance(uid, str) else uid
        elements = [
            _element(0x0002, sop_class.encode()),
            _element(0x0100, struct.pack("<H", 0x0001)),
            _element(0x0110, struct.pack("<H", 7)),
            _element(0x0700, struct.pack("<H", 0)),
            _element(0x0800, struct.pack("<H", 0x0001)),
            _element(0x1000, name),
        ]
        command = b"".join(elements)
        length = _element(0x0000, struct.pack("<I", len(command)))
        self._send(
            0x04, struct.pack(">IBB", len(length + command) + 2, context, 3) + length + command
        )

    def fragment(self, part: bytes, context: int = 1, *, last: bool) -> None:
        """A part of a data set (PS3.8 E.2)."""
        self._send(0x04, struct.pack(">IBB", len(part) + 2, context, 2 if last else 0) + part)

    def half_a_pdu(self) -> None:
        """The header of a P-DATA-TF and the half of what it announces."""
        self.socket.sendall(struct.pack(">BxIIBB", 0x04, 10_006, 10_002, 1, 0) + bytes(5_000))

    def status(self) -> int | None:
        """The status in the answer, or ENDED."""
        kind, answer = self.receive()
        if kind != 0x04:
            return ENDED
        place = 6
        while place < len(answer):
            _, number, length = struct.unpack_from("<HHI", answer, place)
            if number == 0x0900:
                return int(struct.unpack_from("<H", answer, place + 8)[0])
            place += 8 + length
        raise AssertionError("an answer without a status")

    def receive(self) -> tuple[int | None, bytes]:
        """The next PDU's type and content; None if the connection ended."""
        try:
            header = self._exactly(6)
            kind, length = struct.unpack(">BxI", header)
            return int(kind), self._exactly(length)
        except (ConnectionError, EOFError):
            return None, b""

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            more = self.socket.recv(count - len(content))
            if not more:
                raise EOFError
            content += more
        return content

    def _send(self, kind: int, content: bytes) -> None:
        self.socket.sendall(struct.pack(">BxI", kind, len(content)) + content)


# The receiver


@dataclass
class Running:
    """A receiver in this process."""

    receiver: Receiver
    port: int
    folder: Path
    worklist: Worklist
    log: StringIO

    def instances(self) -> list[Path]:
        """The kept files."""
        return sorted((self.folder / "instances").rglob("*.dcm"))

    def quarantined(self) -> list[Path]:
        """The files in quarantine."""
        return sorted((self.folder / "quarantine").rglob("*.dcm"))

    def actions(self) -> list[str]:
        """What the log says happened."""
        return [json.loads(line)["action"] for line in self.log.getvalue().splitlines()]


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What is logged, as JSON lines."""
    lines = StringIO()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(lines),
    )
    yield lines
    structlog.reset_defaults()


@pytest.fixture
def new_receiver(
    worklist: Worklist, tmp_path: Path, log: StringIO
) -> Iterator[Callable[..., Running]]:
    """Starts receivers and stops them at the end."""
    started: list[Running] = []

    def new(
        max_associations: int = 16, idle_seconds: float = 20.0, on: Worklist = worklist
    ) -> Running:
        folder = tmp_path / "spool"
        receiver = Receiver(
            "TRIAGE", ("127.0.0.1", 0), max_associations, idle_seconds, Spool(folder), on
        )
        running = Running(receiver, receiver.start(), folder, on, log)
        started.append(running)
        return running

    yield new
    for running in started:
        running.receiver.stop()


@pytest.fixture
def running(new_receiver: Callable[..., Running]) -> Running:
    """A receiver with room and patience."""
    return new_receiver()


def data_of(content: bytes) -> bytes:
    """A file's data set: its bytes after group 2 (PS3.10 7.1)."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def data_set(uid: str, seed: int = 1, **attributes: object) -> bytes:
    """The bytes of a CR image's data set."""
    made = radiograph(picture(seed), SOPInstanceUID=uid, **attributes)
    return data_of(encoded(made))


def with_uid(data: bytes, keyword: str, value: bytes | None) -> bytes:
    """A data set in which an element has another value, or is missing."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"UI"
    at = data.index(start)
    (length,) = struct.unpack_from("<H", data, at + 6)
    new = b""
    if value is not None:
        padded = value + b"\0" * (len(value) % 2)
        new = start + struct.pack("<H", len(padded)) + padded
    return data[:at] + new + data[at + 8 + length :]


def everything_below(folder: Path) -> set[str]:
    """The names of all files, without the database's."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in paths if not path.startswith("worklist.sqlite")}


# Answers


@on_sqlite
def test_echo_is_answered(running: Running) -> None:
    """By DCMTK's echoscu, by ours, and by the log."""
    subprocess.run(["echoscu", "-aec", "TRIAGE", "127.0.0.1", str(running.port)], check=True)
    echo(Destination("127.0.0.1", running.port, "TRIAGE"))
    assert running.actions() == ["listening", "echoed", "echoed"]


def test_a_new_instance_is_kept_and_listed(running: Running) -> None:
    """Success, one row with what the header says, one file named after its content."""
    uid = generate_uid()
    data = data_set(uid, RequestedProcedurePriority="STAT")
    with Console(running.port) as console:
        assert console.store(data, uid) == 0x0000
    (item,) = running.worklist.items()
    assert item.state is State.RECEIVED
    assert (item.sop_instance_uid, item.accession_number, item.patient_id) == (uid, "A-1", "T-1")
    assert (item.view_position, item.calling_ae_title) == ("PA", "CONSOLE")
    assert item.urgency.name == "STAT"
    assert item.digest == digest_of(data)
    (file,) = running.instances()
    assert file.name == f"{item.digest}.dcm"
    assert data_of(file.read_bytes()) == data
    assert running.actions() == ["listening", "stored"]


def test_an_identical_duplicate_succeeds_and_adds_nothing(running: Running) -> None:
    """In the same association and in another."""
    uid = generate_uid()
    data = data_set(uid)
    for _ in range(2):
        with Console(running.port) as console:
            assert console.store(data, uid) == 0x0000
            assert console.store(data, uid) == 0x0000
    assert len(running.worklist.items()) == len(running.instances()) == 1
    assert [entry.action for entry in running.worklist.journal(uid)] == ["RECEIVED"]


@on_sqlite
def test_a_duplicate_restores_a_file_that_was_lost(running: Running) -> None:
    """Success stays true."""
    uid = generate_uid()
    data = data_set(uid)
    with Console(running.port) as console:
        assert console.store(data, uid) == 0x0000
        (file,) = running.instances()
        file.unlink()
        assert console.store(data, uid) == 0x0000
    assert data_of(file.read_bytes()) == data


def test_another_data_set_under_a_known_uid_is_put_aside(running: Running) -> None:
    """0x0110; the first stays as it is, the newcomer is in quarantine, and an event says so."""
    uid = generate_uid()
    first, second = data_set(uid, 1), data_set(uid, 2)
    with Console(running.port, calling="FIRST") as console:
        assert console.store(first, uid) == 0x0000
    with Console(running.port, calling="SECOND") as console:
        assert console.store(second, uid) == 0x0110
        assert console.store(first, uid) == 0x0000, "the association goes on"
    (kept,), (aside,) = running.instances(), running.quarantined()
    assert data_of(kept.read_bytes()) == first
    assert data_of(aside.read_bytes()) == second
    (item,) = running.worklist.items()
    assert item.digest == digest_of(first)
    event = running.worklist.journal(uid)[-1]
    assert (event.action, event.actor) == ("QUARANTINED", "SECOND")
    assert event.detail == {"digest": digest_of(second)}


@on_sqlite
def test_a_data_set_that_is_not_what_the_command_says_is_refused(running: Running) -> None:
    """0xA900 for another instance UID and for another SOP class; nothing is kept."""
    uid = generate_uid()
    with Console(running.port) as console:
        assert console.store(data_set(uid), generate_uid()) == 0xA900
        assert console.store(data_set(uid), uid, DX, context=3) == 0xA900
    assert running.worklist.items() == []
    assert running.instances() == []


@on_sqlite
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_a_data_set_without_proper_uids_is_refused(running: Running, keyword: str) -> None:
    """0xC000, and the log names the attribute."""
    uid = generate_uid()
    values = (None, b"", b"1.2.x", b"1..2", b"01.2", b"../../etc/passwd", b"1." + b"2" * 63)
    with Console(running.port) as console:
        for value in values:
            assert console.store(with_uid(data_set(uid), keyword, value), uid) == 0xC000, value
    assert running.log.getvalue().count(keyword) == len(values)
    assert running.worklist.items() == []
    assert running.instances() == []


@on_sqlite
def test_what_is_no_data_set_is_refused(running: Running) -> None:
    """0xC000, and the association goes on."""
    uid = generate_uid()
    with Console(running.port) as console:
        for data in (b"Dear Sir or Madam, " * 100, bytes(5_000), b"\xff" * 5_001, b"\x08"):
            assert console.store(data, uid) == 0xC000
        assert console.store(data_set(uid), uid) == 0x0000
    assert len(running.worklist.items()) == 1


@on_sqlite
def test_an_unwritable_spool_is_told_and_recovered_from(running: Running) -> None:
    """0xA700 while a file stands in the spool's place; the console sends again and succeeds."""
    uid = generate_uid()
    data = data_set(uid)
    aside = running.folder.with_name("aside")
    with Console(running.port) as console:
        running.folder.rename(aside)
        running.folder.write_bytes(b"")
        assert console.store(data, uid) == 0xA700
        assert running.worklist.items() == []
        running.folder.unlink()
        aside.rename(running.folder)
        assert console.store(data, uid) == 0x0000
    assert len(running.worklist.items()) == len(running.instances()) == 1


def test_a_database_that_is_gone_is_told_and_recovered_from(
    running: Running, database_url: str
) -> None:
    """0xA700 while its table is away; the console sends again and succeeds."""
    uid = generate_uid()
    data = data_set(uid)
    engine = schema.open_engine(database_url, create=False)
    with Console(running.port) as console:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE items RENAME TO hidden"))
        assert console.store(data, uid) == 0xA700
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO items"))
        assert console.store(data, uid) == 0x0000
    engine.dispose()
    assert [item.sop_instance_uid for item in running.worklist.items()] == [uid]


def test_a_locked_database_is_told_and_recovered_from(
    new_receiver: Callable[..., Running], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0xA700 after the wait for a lock, which is short here, and not after for ever."""
    monkeypatch.setattr(schema, "BUSY_MILLISECONDS", 300)
    impatient = Worklist(database_url)
    running = new_receiver(on=impatient)
    uid = generate_uid()
    data = data_set(uid)
    engine = schema.open_engine(database_url, create=False).execution_options(
        **{schema.WRITE: True}
    )
    with Console(running.port) as console:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("LOCK TABLE items IN ACCESS EXCLUSIVE MODE"))
            assert console.store(data, uid) == 0xA700
        assert console.store(data, uid) == 0x0000
    engine.dispose()
    assert [item.sop_instance_uid for item in impatient.items()] == [uid]
    impatient.close()


# Associations


@on_sqlite
def test_another_called_ae_title_is_rejected(running: Running) -> None:
    """1/1/7 (PS3.8 9.3.4), and the log says what to correct."""
    with Console(running.port, called="ORTHANC") as console:
        assert (console.kind, console.answer[1:]) == (0x03, b"\x01\x01\x07")
    wait_for(lambda: "association_rejected" in running.actions())
    advice = json.loads(running.log.getvalue().splitlines()[-1])["advice"]
    assert "'ORTHANC'" in advice
    assert "TRIAGE_AE_TITLE" in advice
    with pytest.raises(DicomError, match="rejected"):
        echo(Destination("127.0.0.1", running.port, "ORTHANC"))


@on_sqlite
def test_associations_beyond_the_limit_are_rejected_and_room_is_given_again(
    new_receiver: Callable[..., Running],
) -> None:
    """2/3/2, local limit exceeded, until another association ends."""
    running = new_receiver(max_associations=2)
    with Console(running.port), Console(running.port) as second:
        assert second.kind == 0x02
        with Console(running.port) as third:
            assert (third.kind, third.answer[1:]) == (0x03, b"\x02\x03\x02")
    assert "TRIAGE_MAX_ASSOCIATIONS" in running.log.getvalue()

    def accepted() -> bool:
        with Console(running.port) as console:
            return console.kind == 0x02

    wait_for(accepted)


@on_sqlite
def test_explicit_little_endian_is_taken_before_implicit(running: Running) -> None:
    """In whatever order the console proposes them; a class that is not ours is not taken."""
    contexts = [
        (CR, [IMPLICIT, EXPLICIT]),
        (DX, [IMPLICIT]),
        ("1.2.840.10008.5.1.4.1.1.2", [EXPLICIT]),
        (VERIFICATION, [IMPLICIT]),
    ]
    with Console(running.port, contexts=contexts) as console:
        results = []
        place = 68
        while place < len(console.answer):
            kind, length = struct.unpack_from(">BxH", console.answer, place)
            content = console.answer[place + 4 : place + 4 + length]
            if kind == 0x21:
                syntax = content[8:].decode() if content[2] == 0 else ""
                results.append((content[0], content[2], syntax))
            place += 4 + length
    assert sorted(results) == [(1, 0, EXPLICIT), (3, 0, IMPLICIT), (5, 3, ""), (7, 0, IMPLICIT)]


@on_sqlite
def test_a_taken_port_is_told_in_one_line(running: Running, tmp_path: Path) -> None:
    """With the settings that move it; the first receiver goes on."""
    second = Receiver(
        "TRIAGE",
        ("127.0.0.1", running.port),
        1,
        1.0,
        Spool(tmp_path / "other"),
        running.worklist,
    )
    with pytest.raises(ServiceError, match=rf"{running.port}.*TRIAGE_DICOM_PORT") as caught:
        second.start()
    assert "\n" not in str(caught.value)
    echo(Destination("127.0.0.1", running.port, "TRIAGE"))


@on_sqlite
def test_a_spool_that_cannot_be_made_is_told_in_one_line(
    tmp_path: Path, worklist: Worklist
) -> None:
    """And nothing listens."""
    port = free_port()
    (tmp_path / "file").write_bytes(b"")
    spool = Spool(tmp_path / "file" / "spool")
    receiver = Receiver("TRIAGE", ("127.0.0.1", port), 1, 1.0, spool, worklist)
    with pytest.raises(SpoolError, match="cannot be written"):
        receiver.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


# Bytes


def test_every_sample_is_kept_as_it_was_sent(running: Running) -> None:
    """All transfer syntaxes of sample_dicom, and DCMTK's dcmsend: identical after group 2."""
    files = sorted(SAMPLES.glob("*.dcm"))
    destination = Destination("127.0.0.1", running.port, "TRIAGE")
    assert [sent for sent in send(files, destination) if not sent.accepted] == []
    command = ["dcmsend", "--decompress-never", "-aec", "TRIAGE", "127.0.0.1", str(running.port)]
    subprocess.run([*command, *map(str, files)], check=True)
    sent = {data_of(file.read_bytes()) for file in files}
    kept = running.instances()
    assert {data_of(file.read_bytes()) for file in kept} == sent
    assert len(kept) == len(running.worklist.items()) == len(files)
    for file in kept:
        assert file.stem == digest_of(data_of(file.read_bytes()))
        read = dcmread(file)
        meta = create_file_meta(
            sop_class_uid=read.SOPClassUID,
            sop_instance_uid=read.SOPInstanceUID,
            transfer_syntax=read.file_meta.TransferSyntaxUID,
        )
        beginning = bytes(128) + b"DICM" + encode_file_meta(meta)
        assert file.read_bytes().startswith(beginning + data_of(file.read_bytes())[:64])


@on_sqlite
def test_odd_but_legal_bytes_are_kept(running: Running) -> None:
    """Sequences of undefined length, private elements, trailing padding: not one byte differs."""
    uid = generate_uid()
    made = radiograph(picture(3), SOPInstanceUID=uid)
    made.add_new(0x00091001, "LO", "private")
    made.add_new(0x00090010, "LO", "OURS")
    data = data_of(encoded(made))
    sequence = b"\x08\x00\x11\x11SQ\x00\x00\xff\xff\xff\xff"
    sequence += b"\xfe\xff\x00\xe0\xff\xff\xff\xff\xfe\xff\x0d\xe0\x00\x00\x00\x00"
    sequence += b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    at = data.index(b"\x09\x00\x10\x00LO")
    data = (
        data[:at] + sequence + data[at:] + b"\xfc\xff\xfc\xffOB\x00\x00\x04\x00\x00\x00" + bytes(4)
    )
    with Console(running.port) as console:
        assert console.store(data, uid) == 0x0000
    (file,) = running.instances()
    assert data_of(file.read_bytes()) == data


@on_sqlite
@pytest.mark.parametrize("named", ["{0}\\1.2.3", "{0} ", " {0}"])
def test_a_command_that_names_an_instance_oddly_costs_its_file_nothing(
    running: Running, named: str
) -> None:
    """Two UIDs, or one that is padded: refused, or kept as a whole file that can be read."""
    uid = generate_uid()
    data = data_of(encoded(radiograph(picture(3), SOPInstanceUID=uid)))
    with Console(running.port) as console:
        status = console.store(data, named.format(uid))
    kept = running.instances()
    assert len(kept) == (status == 0x0000)
    assert [dcmread(file).file_meta.MediaStorageSOPInstanceUID for file in kept] == [uid] * len(
        kept
    )


# Hostile and unlucky consoles


HOSTILE_UIDS = (
    b"../../../../etc/passwd",
    b"/etc/passwd",
    b"1.2.3/../../4",
    b"1.2.3\x00.4",
    b"1." + b"2" * 63,
    b"1." + b"2" * 400,
    "1.2.\N{ARABIC-INDIC DIGIT THREE}".encode(),
    "\N{FULLWIDTH DIGIT ONE}.2".encode(),
    b"\x1b[31m1.2",
    b"con",
    b"%s%n",
)


@on_sqlite
@pytest.mark.filterwarnings("ignore")  # pydicom warns of what is tested here, in its own threads
@pytest.mark.parametrize("place", ["both", "command", "data set"])
def test_a_hostile_uid_names_no_file(running: Running, tmp_path: Path, place: str) -> None:
    """It is refused or the association ends; nothing is kept, and the next one is served."""
    before = everything_below(tmp_path)
    good = generate_uid()
    data = data_set(good)
    for uid in HOSTILE_UIDS:
        with Console(running.port) as console:
            status = console.store(
                data if place == "command" else with_uid(data, "SOPInstanceUID", uid),
                good if place == "data set" else uid,
            )
        assert status in {0xA900, 0xC000, ENDED}, uid
        assert everything_below(tmp_path) == before, uid
    assert running.worklist.items() == []
    with Console(running.port) as console:
        assert console.store(data, good) == 0x0000


@on_sqlite
def test_a_cut_in_mid_image_leaves_nothing(running: Running, tmp_path: Path) -> None:
    """No row and no file, whether the connection is cut in a PDU, between two, or aborted."""
    before = everything_below(tmp_path)
    uid = generate_uid()
    for how in ("in a PDU", "between PDUs", "abort"):
        console = Console(running.port)
        console.command(uid)
        console.fragment(data_set(uid)[:2_000], last=False)
        if how == "in a PDU":
            console.half_a_pdu()
        if how == "abort":
            console._send(0x07, bytes(4))
        console.socket.close()
    with Console(running.port) as console:
        assert console.store(data_set(uid)[:2_000], uid) in {0x0000, 0xC000}
    wait_for(lambda: running.actions().count("association_aborted") >= 1)
    assert len(running.worklist.items()) <= 1
    running.receiver.stop()
    assert list((running.folder / "incoming").iterdir()) == []
    assert {
        name for name in everything_below(tmp_path) - before if "instances" not in name
    } == set()


@on_sqlite
def test_what_a_killed_receiver_left_half_written_is_swept(
    new_receiver: Callable[..., Running], tmp_path: Path
) -> None:
    """When the next one starts, before it listens."""
    incoming = tmp_path / "spool" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "tmp1234").write_bytes(b"half an image")
    running = new_receiver()
    assert list((running.folder / "incoming").iterdir()) == []


@on_sqlite
@pytest.mark.parametrize("where", ["connected", "associated", "in a PDU", "between PDUs"])
def test_a_stalled_console_is_dropped(new_receiver: Callable[..., Running], where: str) -> None:
    """Soon after idle_seconds, wherever it stalls, so that its place is free again."""
    running = new_receiver(max_associations=1, idle_seconds=1.0)
    began = time.monotonic()
    if where == "connected":
        with socket.create_connection(("127.0.0.1", running.port), timeout=10.0) as silent:
            assert silent.recv(100) == b"" or silent.recv(100) == b""
    else:
        with Console(running.port) as console:
            if where != "associated":
                console.command("1.2.3")
                console.fragment(bytes(1_000), last=False)
            if where == "in a PDU":
                console.half_a_pdu()
            assert console.receive()[0] in {0x07, None}
    assert time.monotonic() - began < 5.0

    def accepted() -> bool:
        with Console(running.port) as console:
            return console.kind == 0x02

    wait_for(accepted, seconds=5.0)


@pytest.mark.parametrize("same", [True, False], ids=["same bytes", "other bytes"])
def test_two_consoles_race_with_one_uid(running: Running, *, same: bool) -> None:
    """Same bytes: two successes and one row. Other bytes: one success, one 0x0110."""
    for _ in range(8):
        uid = generate_uid()
        data = [data_set(uid, 1)] * 2 if same else [data_set(uid, 1), data_set(uid, 2)]
        barrier = threading.Barrier(2)

        def store(part: bytes, uid: str = uid, barrier: threading.Barrier = barrier) -> int | None:
            with Console(running.port) as console:
                barrier.wait()
                return console.store(part, uid)

        with ThreadPoolExecutor(2) as pool:
            statuses = list(pool.map(store, data))
        assert sorted(map(str, statuses)) == sorted(map(str, [0x0000, 0x0000 if same else 0x0110]))
        winner = data[statuses.index(0x0000)]
        assert running.worklist.digest(uid) == digest_of(winner)
        kept = Spool(running.folder).path(digest_of(winner))
        assert data_of(kept.read_bytes()) == winner
        if not same:
            loser = digest_of(data[statuses.index(0x0110)])
            assert Spool(running.folder).path(loser, "quarantine").exists()
    assert len(running.worklist.items()) == 8


def test_many_consoles_send_at_once(running: Running) -> None:
    """Eight associations, five images each: every one acknowledged, listed and kept."""
    uids = [[generate_uid() for _ in range(5)] for _ in range(8)]

    def store(part: list[str]) -> list[int | None]:
        with Console(running.port) as console:
            return [console.store(data_set(uid), uid) for uid in part]

    with ThreadPoolExecutor(8) as pool:
        statuses = [status for part in pool.map(store, uids) for status in part]
    assert statuses == [0x0000] * 40
    listed = {item.sop_instance_uid for item in running.worklist.items()}
    assert listed == {uid for part in uids for uid in part}
    assert len(running.instances()) == 40


@on_sqlite
def test_peers_that_ask_for_nothing_take_no_place(new_receiver: Callable[..., Running]) -> None:
    """A load balancer's connections, opened and closed at once, and one that speaks HTTP."""
    running = new_receiver(max_associations=2)
    for _ in range(20):
        socket.create_connection(("127.0.0.1", running.port)).close()
    with socket.create_connection(("127.0.0.1", running.port)) as rude:
        rude.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        rude.settimeout(10.0)
        assert rude.recv(1) == b"\x07", "A-ABORT"

    def accepted() -> bool:
        with Console(running.port) as console:
            return console.kind == 0x02

    wait_for(accepted, seconds=5.0)


# The log


def test_the_log_holds_no_patient_data(running: Running, tmp_path: Path) -> None:
    """Neither name, patient ID nor accession number, whatever becomes of an image."""
    secret = {
        "PatientName": "SECRET^NAME",
        "PatientID": "SECRET-ID",
        "AccessionNumber": "SECRET-ACC",
        "PatientBirthDate": "20221231",
        "StudyDescription": "SECRET DESCRIPTION",
    }
    uid = generate_uid()
    good = data_set(uid, **secret)
    with Console(running.port) as console:
        assert console.store(good, uid) == 0x0000
        assert console.store(good, uid) == 0x0000
        assert console.store(data_set(uid, 2, **secret), uid) == 0x0110
        assert console.store(good, generate_uid()) == 0xA900
        assert console.store(with_uid(good, "StudyInstanceUID", None), uid) == 0xC000
        assert console.store(good[:300] + b"SECRET" * 50, uid) in {0xC000, 0xA900, 0x0110}
    file = save(radiograph(picture(4), **secret), tmp_path / "more.dcm")
    subprocess.run(
        ["storescu", "-aec", "TRIAGE", "127.0.0.1", str(running.port), str(file)], check=True
    )
    console = Console(running.port)
    console.command(uid)
    console.fragment(good[:2_000], last=False)
    console.socket.close()
    wait_for(lambda: "association_aborted" in running.actions())
    assert {"listening", "stored", "duplicate", "store_refused"} < set(running.actions())
    assert "SECRET" not in running.log.getvalue()
    assert "20221231" not in running.log.getvalue()
    for line in running.log.getvalue().splitlines():
        assert {"action", "event", "level"} < set(json.loads(line))
