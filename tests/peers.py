"""Destinations of results, as tests need them: real servers that can be told to misbehave.

Each keeps what it took by the identifier that it knows it by, and is asked in the same
words, so that one suite runs over all of them.
"""

import contextlib
import http.server
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import hl7
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from tests.conftest import SAMPLES, free_port, wait_for
from triage.explanation import HeatMap
from triage.results import Finding
from triage.scoring import Score
from triage.send import Destination
from triage.sinks import Material, Result, Sink
from triage.sinks.oru import InterfaceEngine
from triage.sinks.pacs import Pacs
from triage.sinks.webhook import Webhook
from triage.worklist.deliveries import ReadingSent, ResultKind, Subject

PATIENT = "SECRET^PATIENT"
"""Peers say it in their error texts; it must not come back in ours."""

SECRET = "a secret of more than 24 bytes"


SCORED_AT = datetime(2026, 1, 5, 10, 15, 30, tzinfo=UTC)
SCORE = Score(0.8125, 0.5, "model-1")
READING = ReadingSent("confirmed", "Dr. Ä. Reader", datetime(2026, 1, 5, 11, 0, tzinfo=UTC))


def material(
    source: Dataset | None = None,
    kind: ResultKind = ResultKind.FINDING,
    readings: tuple[ReadingSent, ...] = (),
) -> Material:
    """What a result of a sample radiograph is built from."""
    header = dcmread(SAMPLES / "03-dx-ap-opacity.dcm") if source is None else source
    subject = Subject(
        sop_instance_uid=header.SOPInstanceUID,
        series_instance_uid=header.SeriesInstanceUID,
        study_instance_uid=header.StudyInstanceUID,
        accession_number=header.AccessionNumber,
        patient_id=header.PatientID,
        digest="0" * 64,
        received_at=SCORED_AT,
        scored_at=SCORED_AT,
        notes=("AGE_UNKNOWN",),
        score=SCORE,
        readings=readings,
    )
    finding = Finding(SCORE, SCORED_AT, "2.25.1", "small", "children aged one to five")
    nothing = HeatMap(np.zeros((16, 16), np.float32), "Fall of the probability", 0.02)
    shown = np.zeros((256, 256), np.float32), nothing
    return Material(kind, subject, lambda: header, lambda: finding, lambda: shown)


def kept(result: Result, folder: Path) -> Path:
    """The file of a result, as the spool would keep it."""
    file = folder / "result"
    file.write_bytes(result.content)
    return file


def send(sink: Sink, folder: Path, what: Material | None = None) -> Result:
    """Build and send a result."""
    result = sink.build(what or material())
    sink.send(result.uid, kept(result, folder))
    return result


class _Server:
    """What the peers have in common."""

    def __init__(self) -> None:
        self.port = free_port()
        self.taken: dict[str, list[bytes]] = defaultdict(list)
        self.answers: list[str] = []
        self.hold = 0.0
        """Seconds that it thinks before it answers."""
        self.asked = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def next_answer(self) -> str:
        self.asked += 1
        time.sleep(self.hold)
        answer = self.answers.pop(0) if self.answers else "take"
        if answer == "hang":
            time.sleep(4)
        return answer


class PacsPeer(_Server):
    """A storage SCP of pynetdicom, which keeps data sets, or what is made of them."""

    def __init__(self, made: Callable[[bytes], bytes] = bytes) -> None:
        super().__init__()
        self._made = made
        self.success, self.associations = 0x0000, 0
        self._server: Any = None

    def start(self) -> None:
        ae = AE("PACS")
        ae.require_called_aet = True
        for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage, Verification):
            ae.add_supported_context(sop_class)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._established)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

    def sink(self, timeout: float = 2.0) -> Sink:
        return Pacs(Destination("127.0.0.1", self.port, "PACS"), "TRIAGE", timeout)

    def setting(self, name: str) -> dict[str, Any]:
        return {
            "kind": "dicom", "name": name, "host": "127.0.0.1", "port": self.port,
            "ae_title": "PACS", "timeout_seconds": 2,
        }  # fmt: skip

    def _established(self, event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> int | Dataset:
        answer = self.next_answer()
        if answer == "take":
            uid = str(event.request.AffectedSOPInstanceUID)
            self.taken[uid].append(self._made(event.encoded_dataset(include_meta=False)))
            return self.success
        status = Dataset()
        status.Status = {"busy": 0xA700}.get(answer, 0xC001)
        status.ErrorComment = PATIENT
        return status


class Storescp(_Server):
    """DCMTK's ``storescp``; it takes everything."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__()
        self.folder, self.options = folder, options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = ["storescp", *self.options, "-aet", "PACS", "-od", str(self.folder)]
        self._process = subprocess.Popen([*command, str(self.port)])
        wait_for(lambda: _listens(self.port))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def sink(self, timeout: float = 2.0) -> Sink:
        return Pacs(Destination("127.0.0.1", self.port, "PACS"), "TRIAGE", timeout)

    def setting(self, name: str) -> dict[str, Any]:
        return {
            "kind": "dicom", "name": name, "host": "127.0.0.1", "port": self.port,
            "ae_title": "PACS", "timeout_seconds": 2,
        }  # fmt: skip

    def datasets(self) -> list[Dataset]:
        """What it keeps, in no order."""
        return [dcmread(file) for file in self.folder.iterdir()]


class MllpPeer(_Server):
    """A receiver of HL7 messages over MLLP."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.wrong_id = False
        self._server: socketserver.ThreadingTCPServer | None = None

    def start(self) -> None:
        peer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                received = b""
                while True:
                    part = self.request.recv(4096)
                    if not part:
                        return
                    received += part
                    while b"\x1c\r" in received:
                        message, _, received = received.partition(b"\x1c\r")
                        assert message.startswith(b"\x0b")
                        answer = peer.answer(message[1:])
                        # In two parts, as networks do.
                        self.request.sendall(answer[:7])
                        time.sleep(0.01)
                        self.request.sendall(answer[7:])

        self._server = _serve(Handler, self.port, socketserver.ThreadingTCPServer)

    def stop(self) -> None:
        if self._server is not None:
            _end(self._server)
            self._server = None

    def answer(self, message: bytes) -> bytes:
        parsed = hl7.parse(message.decode())
        uid = str(parsed.segment("MSH")[10])
        how = self.next_answer()
        if how == "take":
            self.taken[uid].append(message)
            self.messages.append(message.decode())
        # A system that can take nothing now ends the connection; HL7 has no word for it.
        if how in {"busy", "hang"}:
            raise ConnectionResetError
        code = {"take": "AA", "refuse": "AE"}[how]
        told = "X" if self.wrong_id else uid
        error = "" if how == "take" else f"ERR|||204^Unknown key^HL70357|E||||{PATIENT}\r"
        text = (
            f"MSH|^~\\&|RIS|HOSPITAL|cxr-triage||20260105101500||ACK^R01|1|P|2.5\r"
            f"MSA|{code}|{told}|{PATIENT if error else ''}\r{error}"
        )
        return b"\x0b" + text.encode() + b"\x1c\r"

    def sink(self, timeout: float = 2.0) -> Sink:
        return InterfaceEngine(("127.0.0.1", self.port), timeout, "HOSPITAL", "RIS", "RADIOLOGY")

    def setting(self, name: str) -> dict[str, Any]:
        return {
            "kind": "hl7", "name": name, "host": "127.0.0.1", "port": self.port,
            "timeout_seconds": 2,
        }  # fmt: skip


class HttpPeer(_Server):
    """A receiver of webhooks."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__()
        self.certificate = certificate
        self.headers: list[Mapping[str, str]] = []
        self.redirect_to = ""
        self._server: socketserver.ThreadingTCPServer | None = None

    def start(self) -> None:
        peer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                how = peer.next_answer()
                if how == "take" and not peer.redirect_to:
                    peer.taken[self.headers["webhook-id"]].append(body)
                    peer.headers.append(dict(self.headers.items()))
                status = 307 if peer.redirect_to else {"take": 204, "busy": 503}.get(how, 422)
                self.send_response(status, PATIENT if how == "refuse" else None)
                if peer.redirect_to:
                    self.send_header("location", peer.redirect_to)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = _serve(Handler, self.port, http.server.ThreadingHTTPServer, start=False)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            _end(self._server)
            self._server = None

    @property
    def url(self) -> str:
        """Where it takes webhooks."""
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/results?site=1"

    def sink(self, timeout: float = 2.0) -> Sink:
        return Webhook(self.url, SECRET.encode(), timeout, None)

    def setting(self, name: str) -> dict[str, Any]:
        return {
            "kind": "webhook", "name": name, "url": self.url, "secret_variable": "HOOK_SECRET",
            "timeout_seconds": 2,
        }  # fmt: skip


PEERS: dict[str, Callable[[], Any]] = {"pacs": PacsPeer, "hl7": MllpPeer, "webhook": HttpPeer}


def _serve(
    handler: type[socketserver.BaseRequestHandler],
    port: int,
    kind: type[socketserver.ThreadingTCPServer],
    *,
    start: bool = True,
) -> socketserver.ThreadingTCPServer:
    class Server(kind):  # type: ignore[valid-type,misc]
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

        def __init__(self) -> None:
            self.open: list[socket.socket] = []
            super().__init__(("127.0.0.1", port), handler)

        def process_request(self, request: Any, client_address: Any) -> None:
            self.open.append(request)
            super().process_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server()
    if start:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    return server


def _end(server: Any) -> None:
    """Stop, and cut the connections that are still open, as a crash does."""
    server.shutdown()
    server.server_close()
    for connection in server.open:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
