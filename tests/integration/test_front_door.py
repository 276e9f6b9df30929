"""Who is let in, how much they may take, and what becomes of what is odd."""

import contextlib
import json
import random
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from sample_dicom.draw import chest
from tests.builders import (
    chest_radiograph,
    encoded,
    lut,
    picture,
    put_pixels,
    radiograph,
    recoded,
    save,
)
from tests.conftest import SAMPLES, Service, pydicom_files, wait_for
from tests.integration.test_receiver import (
    CR,
    ENDED,
    EXPLICIT,
    VERIFICATION,
    Console,
    data_of,
    data_set,
    with_uid,
)
from triage.peers import Peer
from triage.pixels import JPEG_PROGRESSIVE
from triage.scp import STORAGE_CLASSES, TRANSFER_SYNTAXES, Door, Receiver
from triage.send import send
from triage.spool import Spool, digest_of
from triage.worklist import State, Worklist

REJECTED, ACCEPTED = 0x03, 0x02

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


def told(service: Service, action: str = "") -> list[dict[str, Any]]:
    """What the log says, of one action or of all."""
    lines = service.events()
    return [line for line in lines if action in {"", line["action"]}]


def memory(service: Service, field: str = "VmHWM") -> int:
    """Bytes of the receiver: the most that it ever had, or those that it has (VmRSS)."""
    assert service.process is not None
    return memory_of(service.process.pid, field)


def memory_of(process: int, field: str = "VmHWM") -> int:
    """The same of any process."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1_024


def receiving(new_service: Callable[..., Service], **settings: str) -> Service:
    """A running receiver without the other parts."""
    service = new_service(**settings)
    service.start("--roles", "receive")
    return service


# Who is let in


def own_address() -> str:
    """An address of this machine that is not loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # of a datagram socket, this sends nothing
            address = str(probe.getsockname()[0])
        except OSError:  # no way out; perhaps a way in
            address = socket.gethostbyname(socket.gethostname())
    assert not address.startswith("127."), "this machine has no address but loopback's"
    return address


class Neighbour(Console):
    """A console that calls from a network."""

    def connect(self, port: int) -> socket.socket:
        return socket.create_connection((own_address(), port), timeout=20.0)


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
def listening(worklist: Worklist, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts receivers on all addresses, with an allow-list; gives their ports."""
    started: list[Receiver] = []

    def start(*peers: str) -> int:
        door = Door(("0.0.0.0", 0), tuple(map(Peer.parse, peers)))
        receiver = Receiver("TRIAGE", door, 8, 10.0, Spool(tmp_path / "spool"), worklist)
        started.append(receiver)
        return receiver.start()

    yield start
    for receiver in started:
        receiver.stop()


@on_sqlite
def test_only_this_machine_is_let_in_unless_peers_are_named(
    listening: Callable[..., int], log: StringIO
) -> None:
    """1/1/3 for the rest (PS3.8 9.3.4), and the log says what to add for whom."""
    port = listening()
    with Console(port) as here:
        assert here.kind == ACCEPTED
    with Neighbour(port) as there:
        assert (there.kind, there.answer[1:]) == (REJECTED, b"\x01\x01\x03")
    line = json.loads(log.getvalue().splitlines()[-1])
    assert (line["action"], line["reason"]) == ("association_rejected", "1/1/3")
    assert f"nothing in TRIAGE_PEERS admits CONSOLE@{own_address()}" in line["advice"]


@on_sqlite
def test_a_named_peer_is_let_in_from_where_it_is_named(listening: Callable[..., int]) -> None:
    """By AE title, by address, by network, and by both at once."""
    address = own_address()
    network = f"{address.rpartition('.')[0]}.0/24"
    for entry, admitted in (
        ("CONSOLE", True),
        (f"CONSOLE@{address}", True),
        (f"CONSOLE@{network}", True),
        (f"*@{network}", True),
        ("OTHER", False),
        (f"OTHER@{network}", False),
        ("CONSOLE@203.0.113.7", False),
        ("*@203.0.113.0/24", False),
    ):
        with Neighbour(listening(entry)) as there:
            assert (there.kind == ACCEPTED) is admitted, entry


@on_sqlite
def test_once_peers_are_named_this_machine_needs_naming_too(
    listening: Callable[..., int],
) -> None:
    """A proxy calls from here for all the world; only an echo is always answered."""
    port = listening("OTHER")
    with Console(port) as here:
        assert (here.kind, here.answer[1:]) == (REJECTED, b"\x01\x01\x03")
    with Console(port, contexts=[(VERIFICATION, [EXPLICIT])]) as here:
        assert here.kind == ACCEPTED
    with Console(port, contexts=[(VERIFICATION, [EXPLICIT]), (CR, [EXPLICIT])]) as here:
        assert here.kind == REJECTED
    with Neighbour(port, contexts=[(VERIFICATION, [EXPLICIT])]) as there:
        assert there.kind == REJECTED
    with Console(listening("CONSOLE@127.0.0.1")) as here:
        assert here.kind == ACCEPTED


@on_sqlite
def test_a_hostile_ae_title_writes_nothing_into_the_log(
    listening: Callable[..., int], log: StringIO
) -> None:
    """No control characters, no line breaks."""
    port = listening("OTHER")
    for title in ("\x1b[2J", "A\r\nB", "\x7f\x00\x01"):
        with Console(port, calling=title) as console:
            assert console.kind != ACCEPTED
    for title in ("\x1b[2J", "A\nB"):
        with Console(port, called=title) as console:
            assert console.kind != ACCEPTED
    for line in log.getvalue().splitlines():
        for value in json.loads(line).values():
            assert str(value).isprintable(), line


@on_sqlite
def test_what_is_proposed_in_vain_is_told(listening: Callable[..., int], log: StringIO) -> None:
    """A storage class of ours in a syntax that is not: the log names both sides' words."""
    port = listening()
    contexts = [(CR, ["1.2.840.10008.1.2.4.100"]), (VERIFICATION, [EXPLICIT])]
    with Console(port, contexts=contexts) as console:
        assert console.kind == ACCEPTED
    wait_for(lambda: "contexts_rejected" in log.getvalue())
    line = json.loads(log.getvalue().splitlines()[-1])
    assert line["sop_classes"] == ["Computed Radiography Image Storage"]
    assert "Explicit VR Little Endian" in line["advice"]


# How much they may take


def test_a_data_set_beyond_the_limit_is_refused_in_bounded_memory(
    new_service: Callable[..., Service],
) -> None:
    """0xA700 for 400 MB where 8 may come; the association goes on, and memory stays."""
    service = receiving(new_service, TRIAGE_MAX_OBJECT_MB="8")
    before = memory(service)
    uid = generate_uid()
    part = bytes(100_000)
    with Console(service.port) as console:
        console.command(uid)
        for _ in range(4_000):
            console.fragment(part, last=False)
        console.fragment(b"", last=True)
        assert console.status() == 0xA700
        assert console.store(data_set(uid), uid) == 0x0000
    assert memory(service) - before < 40_000_000
    (line,) = told(service, "store_refused")
    assert "larger than 8 MB, TRIAGE_MAX_OBJECT_MB" in line["advice"]
    service.stop()


def test_a_data_set_within_the_limit_is_taken_whole(
    new_service: Callable[..., Service],
) -> None:
    """Up to the last byte: 8 MB less little is kept, 8 MB and little more is refused."""
    service = receiving(new_service, TRIAGE_MAX_OBJECT_MB="8")
    for pixels, status in ((2_000_000, 0x0000), (4_000_000, 0xA700)):
        uid = generate_uid()
        made = radiograph(picture(1), SOPInstanceUID=uid)
        put_pixels(made, bytes(2 * pixels))
        data = data_of(encoded(made))
        with Console(service.port) as console:
            assert console.store(data, uid) == status
        if status == 0x0000:
            kept = Spool(service.home / "spool").path(digest_of(data))
            assert data_of(kept.read_bytes()) == data
    service.stop()


def test_many_at_once_stay_within_the_limit_together(
    new_service: Callable[..., Service],
) -> None:
    """Twelve consoles, 40 MB each, room for 64 MB: what is refused comes again and is kept."""
    service = receiving(new_service, TRIAGE_MAX_OBJECT_MB="64", TRIAGE_MAX_ARRIVING_MB="64")
    before = memory(service)
    made = radiograph(picture(1))
    put_pixels(made, bytes(40_000_000))
    uids = [str(generate_uid()) for _ in range(12)]
    refused: list[int] = []

    def store(uid: str) -> None:
        data = with_uid(data_of(encoded(made)), "SOPInstanceUID", uid.encode())
        with Console(service.port) as console:
            while (status := console.store(data, uid)) != 0x0000:
                assert status == 0xA700
                refused.append(status)
                time.sleep(random.uniform(0.1, 1.0))

    with ThreadPoolExecutor(len(uids)) as pool:
        list(pool.map(store, uids))
    assert refused, "or this shows nothing"
    # Beside the 64 MB: what a growing buffer reserves ahead, and a header that is looked at.
    assert memory(service) - before < 64_000_000 + 50_000_000
    assert "TRIAGE_MAX_ARRIVING_MB" in told(service, "store_refused")[0]["advice"]
    worklist = service.worklist()
    assert {item.sop_instance_uid for item in worklist.items()} == set(uids)
    worklist.close()
    wait_for(lambda: memory(service, "VmRSS") - before < 40_000_000)
    service.stop()


def test_a_deflated_bomb_is_refused(new_service: Callable[..., Service]) -> None:
    """1 GB that comes as 1 MB; what inflates to little is kept."""
    service = receiving(new_service, TRIAGE_MAX_OBJECT_MB="16")
    before = memory(service)
    uid = generate_uid()
    made = radiograph(picture(1), SOPInstanceUID=uid)
    plain = data_of(encoded(made))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflate.compress(plain)
    bomb += b"".join(deflate.compress(bytes(10_000_000)) for _ in range(100)) + deflate.flush()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    small = deflate.compress(plain) + deflate.flush()
    with Console(service.port, contexts=[(CR, [str(DeflatedExplicitVRLittleEndian)])]) as console:
        assert console.store(bomb, uid) == 0xA700
        assert console.store(bomb[:1_000], uid) == 0xC000
        assert console.store(small, uid) == 0x0000
    assert memory(service) - before < 40_000_000
    service.stop()


def test_a_bomb_of_sequence_items_is_answered_in_bounded_memory(
    new_service: Callable[..., Service],
) -> None:
    """Four million items of nothing in 32 MB, and four million elements in one."""
    service = receiving(new_service)
    uid = generate_uid()
    data = data_set(uid)
    at = data.index(b"\x08\x00\x16\x00UI")
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 4_000_000
    elements = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"".join(
        struct.pack("<HH2sH", 9, number % 65_536, b"LO", 0) for number in range(4_000_000)
    )
    before = memory(service)
    with Console(service.port) as console:
        for content in (items, elements):
            bomb = b"\x08\x00\x06\x00SQ\x00\x00\xff\xff\xff\xff" + content
            bomb += b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
            assert console.store(data[:at] + bomb + data[at:], uid) == 0xC000
        assert console.store(data, uid) == 0x0000
    assert memory(service) - before < 200_000_000
    service.stop()


def descriptors(service: Service) -> int:
    """How many files the receiver has open."""
    assert service.process is not None
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def threads(service: Service) -> int:
    """How many threads the receiver has."""
    assert service.process is not None
    return len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))


def test_five_hundred_probes_leave_nothing(new_service: Callable[..., Service]) -> None:
    """Connections opened and closed, gently, with a reset, or after a byte; and as many echoes."""
    service = receiving(new_service)
    time.sleep(0.5)
    before = descriptors(service), threads(service)
    for number in range(500):
        probe = socket.create_connection(("127.0.0.1", service.port))
        if number % 3 == 1:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 3 == 2:
            probe.sendall(b"\x01")
        probe.close()
    for _ in range(50):
        assert service.answers()
    # The service may still open a few of its own, to its database for one; a leak is hundreds.
    wait_for(lambda: descriptors(service) <= before[0] + 10, seconds=60.0)
    wait_for(lambda: threads(service) <= before[1] + 10, seconds=60.0)
    service.stop()


def test_a_flood_of_silent_connections_is_bounded(new_service: Callable[..., Service]) -> None:
    """Beyond the limit they are closed at once; when they are gone, all is as before."""
    service = receiving(new_service, TRIAGE_MAX_ASSOCIATIONS="4")
    flood = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(700)]
    wait_for(lambda: told(service, "connections_full"))
    assert threads(service) < 600
    assert len(told(service, "connections_full")) <= 2, "not a line for each"
    for connection in flood:
        connection.close()
    wait_for(service.answers)
    service.stop()


@pytest.mark.parametrize("pause", [0.3, 0.9])
def test_a_trickle_is_a_stall(new_service: Callable[..., Service], pause: float) -> None:
    """A byte now and then does not keep a PDU open for longer than idle_seconds."""
    service = receiving(new_service, TRIAGE_IDLE_SECONDS="2")
    console = Console(service.port)
    console.command("1.2.3")
    console.half_a_pdu()
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - began < 10.0:
            console.socket.sendall(b"\0")
            time.sleep(pause)
    assert 1.5 < time.monotonic() - began < 9.0
    console.socket.close()
    wait_for(lambda: told(service, "association_aborted"))
    assert "stalled" in told(service, "association_aborted")[0]["advice"]
    service.stop()


def test_an_idle_association_is_told_of(new_service: Callable[..., Service]) -> None:
    """And aborted after idle_seconds."""
    service = receiving(new_service, TRIAGE_IDLE_SECONDS="1.5")
    console = Console(service.port)
    began = time.monotonic()
    assert console.receive()[0] == 0x07
    assert 1.0 < time.monotonic() - began < 9.0
    wait_for(lambda: told(service, "association_aborted"))
    console.socket.close()
    assert "said nothing for 1.5 s" in told(service, "association_aborted")[0]["advice"]
    service.stop()


# Hostile PDUs


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """A PDU (PS3.8 9.3.1), which may lie about its length."""
    return struct.pack(">BxI", kind, len(content) if length is None else length) + content


def pdv(content: bytes, header: int, context: int = 1) -> bytes:
    """A presentation data value item (PS3.8 9.3.5.1)."""
    return struct.pack(">IBB", len(content) + 2, context, header) + content


def command(*elements: tuple[int, bytes]) -> bytes:
    """A command set in Implicit VR Little Endian."""
    return b"".join(
        struct.pack("<HHI", 0, number, len(value)) + value for number, value in elements
    )


def u16(value: int) -> bytes:
    """A US value."""
    return struct.pack("<H", value)


ECHO = command(
    (0x0002, VERIFICATION.encode() + b"\0"), (0x0100, u16(0x0030)), (0x0110, u16(7)),
    (0x0800, u16(0x0101)),
)  # fmt: skip

HOSTILE = {
    "a PDU of 4 GB": pdu(0x04, b"", 0xFFFF_FFFF),
    "a PDU of 2 MB": pdu(0x04, bytes(2_000_000)),
    "an unknown PDU": pdu(0x09, bytes(4)),
    "a second request": pdu(0x01, bytes(68)),
    "an acceptance": pdu(0x02, bytes(68)),
    "an empty P-DATA": pdu(0x04, b""),
    "an item of no length": pdu(0x04, struct.pack(">IB", 0, 1)),
    "an item without a header": pdu(0x04, struct.pack(">IB", 1, 1)),
    "an item that is longer than its PDU": pdu(0x04, struct.pack(">IBB", 10_000, 1, 3)),
    "a command that is noise": pdu(0x04, pdv(b"\xff" * 500, 3)),
    "an empty command": pdu(0x04, pdv(b"", 3)),
    "an unknown command": pdu(0x04, pdv(command((0x0100, u16(0x7777)), (0x0800, u16(1))), 3)),
    "a command without end": pdu(0x04, pdv(bytes(60_000), 1)) * 3,
    "a data set without a command": pdu(0x04, pdv(bytes(5_000), 2)),
    "a response to nothing": pdu(
        0x04, pdv(command((0x0100, u16(0x8001)), (0x0800, u16(0x0101)), (0x0900, u16(0))), 3)
    ),
    "an unknown context": pdu(0x04, pdv(ECHO, 3, context=99)),
    "an echo under a storage context": pdu(0x04, pdv(ECHO, 3)) * 2,
    "ten thousand requests at once": pdu(0x04, pdv(ECHO, 3, context=5)) * 10_000,
    "a store without UIDs": pdu(
        0x04, pdv(command((0x0100, u16(1)), (0x0110, u16(7)), (0x0800, u16(1))), 3)
    )
    + pdu(0x04, pdv(b"", 2)),
}  # fmt: skip


@pytest.fixture(scope="module")
def hard_pressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One receiver for all that follows: it must outlive it."""
    from tests.conftest import free_port

    service = Service(tmp_path_factory.mktemp("front-door") / "home", free_port())
    service.start("--roles", "receive")
    yield service
    service.stop()
    assert "Traceback" not in service.log.read_text()
    assert told(service, "connection_broke") == []


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pdu_ends_its_association_alone(hard_pressed: Service, what: str) -> None:
    """Soon, and an image on another association is kept meanwhile."""
    uid = generate_uid()
    contexts = [(CR, [EXPLICIT]), (CR, [EXPLICIT]), (VERIFICATION, [EXPLICIT])]
    hostile = Console(hard_pressed.port, contexts=contexts)
    assert hostile.kind == ACCEPTED
    hostile.socket.settimeout(10.0)
    try:
        hostile.socket.sendall(HOSTILE[what])
        hostile.socket.shutdown(socket.SHUT_WR)
        while hostile.receive()[0] not in {None, 0x07}:
            pass
    except OSError:
        pass  # the connection was reset
    hostile.socket.close()
    with Console(hard_pressed.port) as console:
        assert console.store(data_set(uid), uid) == 0x0000
    assert memory(hard_pressed) < 220_000_000


def test_a_context_without_abstract_syntax_ends_its_association_alone(
    hard_pressed: Service,
) -> None:
    """The library raises when it negotiates one; found by the fuzzer among 12,000 requests."""
    before = len(told(hard_pressed, "association_aborted"))
    with Console(hard_pressed.port, calling="HOSTILE") as good:
        named = struct.pack(">xH", len(CR)) + CR.encode()
        assert b"\x30" + named in good.request
        bad = good.request.replace(b"\x30" + named, b"\x40" + named)  # as one more transfer syntax
    with socket.create_connection(("127.0.0.1", hard_pressed.port), timeout=10.0) as connection:
        connection.sendall(bad)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    wait_for(lambda: len(told(hard_pressed, "association_aborted")) > before, seconds=10.0)
    (line,) = told(hard_pressed, "association_aborted")[before:]
    assert "PS3.8 9.3.2" in line["advice"]
    assert told(hard_pressed, "thread_died") == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a PDU of 4 GB", "announced a PDU of 4294967295 bytes"),
        ("an unknown PDU", "no PDU"),
        ("a second request", "PS3.8"),
        ("a command that is noise", "PS3.7"),
        ("a data set without a command", "PS3.7"),
        ("a command without end", "PS3.7"),
        ("an unknown context", "fits no accepted context"),
    ],
)
def test_the_log_says_what_was_wrong(hard_pressed: Service, what: str, words: str) -> None:
    """And does not blame the network."""
    before = len(told(hard_pressed, "association_aborted"))
    hostile = Console(
        hard_pressed.port,
        contexts=[(CR, [EXPLICIT]), (CR, [EXPLICIT]), (VERIFICATION, [EXPLICIT])],
        calling="HOSTILE",
    )
    with contextlib.suppress(OSError):
        hostile.socket.sendall(HOSTILE[what])
    wait_for(lambda: len(told(hard_pressed, "association_aborted")) > before, seconds=10.0)
    hostile.socket.close()
    (line,) = told(hard_pressed, "association_aborted")[before:]
    assert words in line["advice"]
    assert line["calling_ae_title"] == "HOSTILE"


def test_another_version_of_the_protocol_is_told_of(hard_pressed: Service) -> None:
    """It is rejected by the library (PS3.8 9.3.4), and the log says so, too."""
    with Console(hard_pressed.port) as model:
        request = bytearray(model.request)
    request[6:8] = b"\x00\x02"
    with socket.create_connection(("127.0.0.1", hard_pressed.port), timeout=10.0) as caller:
        caller.sendall(request)
        assert caller.recv(1) == b"\x03"
    wait_for(
        lambda: any(
            "another version" in line["advice"]
            for line in told(hard_pressed, "association_aborted")
        )
    )


def test_noise_in_place_of_a_request_ends_nothing(hard_pressed: Service) -> None:
    """Three hundred mutated association requests and command sets, drawn from a seed."""
    draw = random.Random(11)
    with Console(hard_pressed.port) as model:
        request = model.request
    for _ in range(150):
        for start in (b"", request):
            noise = bytearray(request if not start else pdu(0x04, pdv(ECHO, 3)))
            for _ in range(draw.randint(1, 12)):
                noise[draw.randrange(1, len(noise))] = draw.randrange(256)
            connection = socket.create_connection(("127.0.0.1", hard_pressed.port), timeout=5.0)
            connection.sendall(start + bytes(noise))
            connection.shutdown(socket.SHUT_WR)
            connection.close()
    wait_for(hard_pressed.answers)
    wait_for(lambda: threads(hard_pressed) < 10, seconds=40.0)
    assert memory(hard_pressed) < 220_000_000


def test_command_and_data_set_may_share_a_pdu(hard_pressed: Service) -> None:
    """As PS3.8 9.3.5 allows: all in one PDU, and the data set in several items of one."""
    uid = generate_uid()
    data = data_set(uid)
    store = command(
        (0x0002, CR.encode() + b"\0" * (len(CR) % 2)), (0x0100, u16(1)), (0x0110, u16(7)),
        (0x0700, u16(0)), (0x0800, u16(1)), (0x1000, uid.encode() + b"\0" * (len(uid) % 2)),
    )  # fmt: skip
    with Console(hard_pressed.port) as console:
        whole = pdv(store, 3) + pdv(data[:999], 0) + pdv(data[999:], 2)
        console.socket.sendall(pdu(0x04, whole))
        assert console.status() == 0x0000
    worklist = hard_pressed.worklist()
    assert worklist.item(uid).digest == digest_of(data)
    worklist.close()


# What is odd


def odd_data_sets() -> dict[str, tuple[Dataset, bytes | None]]:
    """Data sets that a console could send, and the bytes if they are not the data set's own."""

    def made(**attributes: object) -> Dataset:
        return chest_radiograph(SOPInstanceUID=generate_uid(), **attributes)

    odd: dict[str, tuple[Dataset, bytes | None]] = {}
    several = made(NumberOfFrames=3)
    put_pixels(several, several.PixelData * 3)
    odd["multi-frame"] = several, None
    odd["zero rows"] = made(Rows=0), None
    odd["65,535 x 65,535 with little data"] = made(Rows=65_535, Columns=65_535), None
    palette = made(PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(palette, f"{colour}PaletteColorLookupTableData", bytes(512))
    odd["palette"] = palette, None
    broken = made(VOILUTSequence=[lut(0, np.zeros(4, np.uint16))])
    broken.VOILUTSequence[0].LUTDescriptor = [65_000, 0, 16]
    odd["a broken VOI LUT"] = broken, None
    odd["no pixels"] = made(PixelData=None), None
    odd["no charset for its letters"] = made(), None
    odd["an unknown charset"] = made(), None
    odd["a wrong group length"] = made(), None
    odd["odd lengths"] = made(), None
    for name, old, new in (
        ("no charset for its letters", b"Test^Child", b"T\xe4st^\xff\x80ild"),
        ("an unknown charset", b"Test^Child", b"\x1b$)Cst^Chi"),
    ):
        dataset = odd[name][0]
        if name == "an unknown charset":
            dataset.SpecificCharacterSet = "ISO_IR 100"
        data = data_of(encoded(dataset)).replace(old, new).replace(b"ISO_IR 100", b"NO SUCHSET")
        odd[name] = dataset, data
    dataset = odd["a wrong group length"][0]
    wrong = b"\x08\x00\x00\x00UL\x04\x00\x05\x00\x00\x00"
    odd["a wrong group length"] = dataset, wrong + data_of(encoded(dataset))
    dataset = odd["odd lengths"][0]
    data = data_of(encoded(dataset))
    odd["odd lengths"] = dataset, data.replace(b"LO\x04\x00T-1 ", b"LO\x03\x00T-1")
    return odd


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that receives and scores, which must outlive what it gets."""
    from tests.conftest import free_port

    service = Service(tmp_path_factory.mktemp("odd") / "home", free_port())
    service.start("--roles", "receive,score")
    yield service
    service.stop()
    assert "Traceback" not in service.log.read_text()
    assert told(service, "part_died") == []


def settled(service: Service) -> list[Any]:
    """The worklist's items, once none waits for its score."""
    worklist = service.worklist()
    try:
        wait_for(lambda: worklist.counts()[State.RECEIVED] == 0, seconds=120.0)
        return worklist.items()
    finally:
        worklist.close()


@pytest.mark.filterwarnings("ignore")
def test_what_is_odd_is_kept_and_settled(scoring: Service) -> None:
    """Success for each, byte for byte, and a score or a reason."""
    kept = {}
    for name, (dataset, own) in odd_data_sets().items():
        data = data_of(encoded(dataset)) if own is None else own
        with Console(scoring.port) as console:
            assert console.store(data, dataset.SOPInstanceUID) == 0x0000, name
        kept[str(dataset.SOPInstanceUID)] = name, data
    found = {}
    for item in settled(scoring):
        if item.sop_instance_uid in kept:
            name, data = kept[item.sop_instance_uid]
            assert item.digest == digest_of(data), name
            file = Spool(scoring.home / "spool").path(item.digest)
            assert data_of(file.read_bytes()) == data, name
            found[name] = item.reason or item.state.value
    assert found == {
        "multi-frame": "MULTI_FRAME",
        "zero rows": "PIXEL_DATA_UNDECODABLE",
        "65,535 x 65,535 with little data": "PICTURE_TOO_LARGE",
        "palette": "PHOTOMETRIC_UNSUPPORTED",
        "a broken VOI LUT": "SCORED",
        "no pixels": "PIXEL_DATA_ABSENT",
        "no charset for its letters": "SCORED",
        "an unknown charset": "SCORED",
        "a wrong group length": "SCORED",
        "odd lengths": "SCORED",
    }


def test_a_radiograph_is_scored_alike_in_every_syntax(scoring: Service, tmp_path: Path) -> None:
    """Sent in each that is offered, kept byte for byte, and scored as the uncompressed one is."""
    sent: dict[str, tuple[UID, bytes]] = {}
    for number, syntax in enumerate(TRANSFER_SYNTAXES):
        plain = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
        # GDCM, which reads lossy JPEG of 12 bits, writes a line of its own into the log.
        bits = 8 if syntax in {JPEGBaseline8Bit, JPEGExtended12Bit, JPEG_PROGRESSIVE} else 12
        dataset = radiograph(
            chest(1, shape=(140, 116)), bits=bits, allocated=8 if bits == 8 else 16,
            transfer_syntax=plain, window=(1 << bits - 1, 1 << bits), PatientID=f"S-{number}",
        )  # fmt: skip
        if syntax.is_encapsulated:
            dataset = recoded(dataset, syntax)
        file = save(dataset, tmp_path / f"{number:02}.dcm")
        sent[str(dataset.SOPInstanceUID)] = syntax, data_of(file.read_bytes())
    answers = list(send([tmp_path], scoring.destination))
    assert [one.explanation for one in answers if not one.accepted] == []
    assert len(answers) == len(sent) == len(TRANSFER_SYNTAXES)
    scores = {}
    for item in settled(scoring):
        if item.sop_instance_uid in sent:
            syntax, data = sent[item.sop_instance_uid]
            kept = dcmread(Spool(scoring.home / "spool").path(item.digest))
            assert kept.file_meta.TransferSyntaxUID == syntax
            assert item.digest == digest_of(data), syntax.name
            assert item.state is State.SCORED, (syntax.name, item.reason, item.explanation)
            scores[syntax] = item.score
    assert set(scores) == set(TRANSFER_SYNTAXES)
    wanted = scores[ExplicitVRLittleEndian]
    assert {s.name: v for s, v in scores.items() if abs(v - wanted) > 0.05} == {}


def test_a_private_sop_class_is_not_taken(hard_pressed: Service) -> None:
    """Its presentation context is rejected, and so is any other class that is not ours."""
    for sop_class in ("1.2.826.0.1.3680043.9.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.3"):
        with Console(hard_pressed.port, contexts=[(sop_class, [EXPLICIT])]) as console:
            assert console.kind == ACCEPTED
            assert console.store(data_set("1.2.3"), "1.2.3", sop_class) is ENDED
    lines = told(hard_pressed, "contexts_rejected")
    assert any("CT Image Storage" in line["sop_classes"] for line in lines)


def test_another_class_than_the_context_s_is_refused(hard_pressed: Service) -> None:
    """0xA900, although data set and command agree."""
    uid = generate_uid()
    smuggled = data_set(uid, sop_class=SecondaryCaptureImageStorage)
    with Console(hard_pressed.port) as console:
        assert console.store(smuggled, uid, str(SecondaryCaptureImageStorage)) == 0xA900
        assert console.store(data_set(uid), uid) == 0x0000


def parts_of(file: Path) -> tuple[str, bytes]:
    """A file's transfer syntax, if it says, and its data set's bytes."""
    with file.open("rb") as opened:
        read_preamble(opened, force=True)
        meta = _read_file_meta_info(opened)
        return str(meta.get("TransferSyntaxUID", EXPLICIT)), opened.read()


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_pydicom_s_test_set_is_answered(scoring: Service) -> None:
    """As it is, and as a CR image under a UID of its own; each Success is there byte for byte."""
    files = pydicom_files()
    assert len(files) > 200
    answered = {sent.path: sent for sent in send(files, scoring.destination)}
    assert set(answered) == set(files)
    assert sum(sent.accepted for sent in answered.values()) > 20
    assert all(sent.accepted or sent.explanation for sent in answered.values())

    statuses: dict[int | None, int] = {}
    sent_data: dict[str, bytes] = {}
    for file in files:
        try:
            syntax, data = parts_of(file)
        except (InvalidDicomError, AttributeError, ValueError):
            syntax, data = EXPLICIT, file.read_bytes()
        uid = str(generate_uid())
        for keyword, value in (("SOPClassUID", CR), ("SOPInstanceUID", uid)):
            try:
                data = with_uid(data, keyword, value.encode())
            except (ValueError, struct.error):
                break  # it has none, or is encoded in another way: then it is sent as it is
        with Console(scoring.port, contexts=[(CR, [syntax])]) as console:
            status = console.store(data, uid)
        statuses[status] = statuses.get(status, 0) + 1
        if status == 0x0000:
            sent_data[uid] = data
    assert set(statuses) <= {0x0000, 0xA900, 0xC000, ENDED}, statuses
    assert statuses[0x0000] > 30, statuses

    items = {item.sop_instance_uid: item for item in settled(scoring)}
    for uid, data in sent_data.items():
        item = items[uid]
        assert item.digest == digest_of(data)
        kept = Spool(scoring.home / "spool").path(item.digest)
        assert data_of(kept.read_bytes()) == data
    for item in items.values():
        assert item.state in {State.SCORED, State.NOT_SCORED}, (item.reason, item.explanation)
    for role in ("receive", "score"):
        assert memory_of(scoring.part(role)) < 700_000_000, role


@on_sqlite
def test_every_class_is_taken_in_every_syntax(listening: Callable[..., int]) -> None:
    """Whichever a console proposes alone."""
    port = listening()
    for sop_class in STORAGE_CLASSES:
        for syntax in TRANSFER_SYNTAXES:
            with Console(port, contexts=[(str(sop_class), [str(syntax)])]) as console:
                assert console.kind == ACCEPTED
                assert b"!\x00" in console.answer
                result = console.answer[console.answer.index(b"!\x00") + 6]
                assert result == 0, (sop_class.name, syntax.name)


@on_sqlite
def test_what_is_for_processing_or_secondary_is_kept(
    listening: Callable[..., int], worklist: Worklist
) -> None:
    """All storage classes that are offered are stored."""
    port = listening()
    for sop_class in STORAGE_CLASSES:
        uid = generate_uid()
        data = data_set(uid, sop_class=sop_class)
        with Console(port, contexts=[(str(sop_class), [EXPLICIT])]) as console:
            assert console.store(data, uid, str(sop_class)) == 0x0000
    assert {item.sop_class_uid for item in worklist.items()} == set(map(str, STORAGE_CLASSES))
    assert {SecondaryCaptureImageStorage, DigitalXRayImageStorageForPresentation} < set(
        STORAGE_CLASSES
    )


def test_the_samples_are_still_taken(hard_pressed: Service) -> None:
    """After all that."""
    files = sorted(SAMPLES.glob("*.dcm"))
    assert [sent for sent in send(files, hard_pressed.destination) if not sent.accepted] == []
