"""What lies under an association: connections, TLS and the limits on both (PS3.8 9.1).

pynetdicom's server shakes hands in its accept loop, believes any PDU length, gathers a
message of any size in memory and gives each connection two threads that poll. Here a
connection says something first, shakes hands in a thread of its own, and then takes no more
memory and time than the limits allow.
"""

import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from triage.errors import ServiceError

MAXIMUM_PDU = 131_072
"""Bytes of a P-DATA-TF that we ask for; 16 KB, the default, costs 10 MB images 40% of their
rate."""

LONGEST_PDU = 1_048_576
"""Bytes that any PDU may announce: some peers exceed what we ask for, none by so much."""

LONGEST_COMMAND = 65_536
"""Bytes of a command set (PS3.7 6.3); real ones have some hundred."""

MOST_QUEUED = 16
"""Requests that a peer may send ahead; without a negotiated window (PS3.7 D.3.3.3) it is 1."""

OPENING_SECONDS = 10.0
"""From a connection to its first byte, and from there through TLS to an association."""

MOST_OPENING = 512
"""Threads for connections that have not come to an association yet."""

_ABORT = bytes.fromhex("07 00 00000004 00 00 02 01")
"""A-ABORT by the provider: unrecognized PDU (PS3.8 table 9-26)."""

_ASSOCIATE_RQ, _TLS_HANDSHAKE = 0x01, 0x16


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may take of us.

    Attributes
    ----------
    associations : int
        At once.
    idle_seconds : float
        Without a byte, anywhere in an association.
    object_bytes : int
        Of one data set.
    held_bytes : int
        Of all data sets that are not answered yet, together.
    """

    associations: int
    idle_seconds: float
    object_bytes: int
    held_bytes: int


def tls_context(certificate: Path, key: Path, authority: Path | None) -> ssl.SSLContext:
    """TLS of a server by the BCP 195 RFC 8996, 9325 profile (PS3.15 B.12).

    Parameters
    ----------
    certificate, key : Path
        Ours, in PEM; the certificate with its intermediate ones.
    authority : Path or None
        Who signs the certificates of consoles, in PEM. With it a console must show one;
        without it any console may encrypt.

    Raises
    ------
    ServiceError
        A file cannot be read or does not fit the other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Of TLS 1.2 what RFC 9325 4.2 recommends: forward secrecy and authenticated encryption.
    context.set_ciphers("ECDHE+AESGCM")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ServiceError(
            f"TRIAGE_TLS_CERTIFICATE {certificate} and TRIAGE_TLS_KEY {key} cannot be used "
            f"({_reason(error)}): give a PEM certificate and its PEM key without a password"
        ) from error
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise ServiceError(
                f"TRIAGE_TLS_CA {authority} cannot be used ({_reason(error)}): give the PEM "
                "certificates of who signs the consoles' certificates"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or type(error).__name__).replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def printable(text: str) -> str:
    """Text from the wire in characters that are safe in a log and in the database."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def peer(association: Any) -> dict[str, str]:
    """Who calls; the AE title is empty before the association was requested."""
    requestor = association.requestor
    return {
        "calling_ae_title": printable(requestor.ae_title or "").strip()[:16],
        "calling_address": str(requestor.address)[:64],
    }


def cut_short(event: evt.Event) -> str | None:
    """Why a request's data set was not taken in whole; None if it was."""
    messages = cast("_Messages", event.assoc.dimse)
    return messages.cut.pop(cast("Any", event.request).MessageID, None)


class Listener(ThreadedAssociationServer):  # type: ignore[misc]
    """A port that consoles connect to; listens from :meth:`open` to ``shutdown``.

    Parameters
    ----------
    ae : pynetdicom.AE
        With its supported contexts.
    address : tuple of str and int
    limits : Limits
    account : Account
        Shared by all listeners.
    tls : ssl.SSLContext or None
    handlers : list
        pynetdicom's event handlers.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ae: Any,
        address: tuple[str, int],
        limits: Limits,
        account: "Account",
        tls: ssl.SSLContext | None,
        handlers: list[Any],
    ) -> None:
        self.limits, self.account, self.tls = limits, account, tls
        self._most_threads = 2 * limits.associations + MOST_OPENING
        self._full = False
        self.log = structlog.get_logger("scp")
        # Not the library's ssl_context: with that it shakes hands in the accept loop.
        super().__init__(
            ae,
            address,
            ae.ae_title,
            ae.supported_contexts,
            evt_handlers=handlers,
            request_handler=_Handler,
        )

    def open(self) -> int:
        """Listen in a thread of its own; the port."""
        self.ae._servers.append(self)  # noqa: SLF001  # where shutdown looks for it
        threading.Thread(target=self.serve_forever, name="listener", daemon=True).start()
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether there is room for another connection; called in the accept loop."""
        full = threading.active_count() > self._most_threads
        if full and not self._full:
            self.log.warning(
                "full",
                action="connections_full",
                advice="more connections without associations are open than fit: see which "
                "machine opens them",
                calling_address=str(client_address[0]),
            )
        self._full = full
        return not full

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Tell what broke in a connection's thread, in one line."""
        self.log.exception(
            "broke", action="connection_broke", calling_address=str(client_address[0])
        )


class _Handler(RequestHandler):  # type: ignore[misc]
    """From a new connection to an association, in a thread of its own."""

    server: Listener
    request: Any

    def handle(self) -> None:
        if not self._opened():
            self.server.shutdown_request(self.request)
            return
        connection = self.request
        connection.settimeout(self.server.limits.idle_seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle()

    def _opened(self) -> bool:
        """Whether the connection has a peer that speaks as this port expects."""
        seconds = min(OPENING_SECONDS, self.server.limits.idle_seconds)
        deadline = time.monotonic() + seconds
        self.request.settimeout(seconds)
        try:
            first = self.request.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            self._tell("it connected and said nothing: see what opens connections there")
            return False
        except OSError:
            return False
        if not first:  # opened and closed, as load balancers do
            return False
        if self.server.tls is not None:
            return self._shaken_hands(self.server.tls, deadline)
        if first[0] == _ASSOCIATE_RQ:
            return True
        self._tell(
            "it speaks TLS to the port without: switch TLS off there, or send to TRIAGE_TLS_PORT"
            if first[0] == _TLS_HANDSHAKE
            else "it speaks another protocol than DICOM: correct the port there"
        )
        with suppress(OSError):
            self.request.sendall(_ABORT)
        return False

    def _shaken_hands(self, context: ssl.SSLContext, deadline: float) -> bool:
        """Whether TLS is established; the socket is then the encrypted one."""
        try:
            self.request = context.wrap_socket(
                self.request, server_side=True, do_handshake_on_connect=False
            )
            self.request.setblocking(False)
            shaken = False
            while not shaken:
                try:
                    self.request.do_handshake()
                    shaken = True
                except ssl.SSLWantReadError:
                    _wait(self.request, select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    _wait(self.request, select.POLLOUT, deadline)
        except TimeoutError:
            self._tell("it did not finish the TLS handshake in time: see its log and the network")
        except OSError as error:
            self._tell(_tls_advice(error))
        else:
            return True
        return False

    def _tell(self, advice: str) -> None:
        self.server.log.warning(
            "refused",
            action="connection_refused",
            advice=advice,
            calling_address=str(self.client_address[0]),
        )

    def _create_association(self) -> Association:
        association = super()._create_association()
        # In place of the library's own socket, which has announced the connection already.
        association.dul.socket = _Connection(association, self.request)
        association.dul.event_queue.get_nowait()
        association.dul.state_machine = _StateMachine(association.dul)
        for name in ("_idle_timer", "artim_timer"):
            setattr(association.dul, name, _Timer(getattr(association.dul, name).timeout))
        association.dimse = _Messages(association, self.server)
        return association


def _wait(connection: socket.socket, readiness: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(connection, readiness)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        raise TimeoutError


def _tls_advice(error: OSError) -> str:
    """Which side a failed handshake is to be fixed on (RFC 8446 6.2)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the console's certificate is not accepted ({error.verify_message}): renew it there, "
            "or add who signed it to TRIAGE_TLS_CA here"
        )
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "the console shows no certificate, and TRIAGE_TLS_CA requires one: install one there"
    if "ALERT" in reason and any(
        word in reason for word in ("UNKNOWN_CA", "CERTIFICATE", "DECRYPT_ERROR")
    ):
        return (
            f"the console does not accept our certificate ({reason.replace('_', ' ').lower()}): "
            "import who signed it there, or renew TRIAGE_TLS_CERTIFICATE here"
        )
    if reason in {"UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "VERSION_TOO_LOW"}:
        return (
            "the console offers no TLS 1.2 or 1.3 with a cipher suite of RFC 9325 "
            f"({reason.replace('_', ' ').lower()}): update its TLS"
        )
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return (
            "the console does not speak TLS to the TLS port: switch TLS on there, or send to "
            "TRIAGE_DICOM_PORT"
        )
    told = reason.replace("_", " ").lower() or type(error).__name__
    return f"the TLS handshake broke off ({told}): see whether the console accepts our certificate"


class _Connection(AssociationSocket):  # type: ignore[misc]
    """A socket that neither believes every length nor waits for ever."""

    def __init__(self, association: Association, connection: socket.socket) -> None:
        super().__init__(association, client_socket=connection)
        self.told = False
        """Whether the log has said why the association ends."""

    def tell(self, advice: str) -> None:
        """Say why the association ends, once."""
        if not self.told:
            self.told = True
            structlog.get_logger("scp").warning(
                "aborted", action="association_aborted", advice=advice, **peer(self.assoc)
            )

    @property
    def ready(self) -> bool:
        """Whether there is something to read; without select's limit of 1,024 descriptors."""
        if self.socket is None or not self._is_connected:
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes, fewer if the connection ends.

        Raises
        ------
        OSError
            More than a PDU may have are announced, or they do not come in time.
        """
        if nr_bytes > LONGEST_PDU:
            self.tell(f"it announced a PDU of {nr_bytes} bytes: see what calls from there")
            raise ConnectionAbortedError
        content = bytearray(nr_bytes)
        view, received = memoryview(content), 0
        seconds = self.assoc.network_timeout
        deadline = time.monotonic() + seconds
        try:
            while received < nr_bytes:
                count = self.socket.recv_into(view[received:])
                if not count:
                    break
                received += count
                if time.monotonic() > deadline:
                    raise TimeoutError
        except TimeoutError:
            self.tell(
                f"it stalled in the middle of a message for {seconds:g} s: see the console and the "
                "network; what was not acknowledged comes again"
            )
            raise
        finally:
            view.release()
        del content[received:]
        return content

    def _shutdown_socket(self) -> None:
        connection = self.socket
        if connection is not None:
            with suppress(OSError):  # it may be gone, and is to be closed all the same
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class _Timer(Timer):  # type: ignore[misc]
    """Measures time by a clock that nobody sets.

    The library's would end every association when the clock is set ahead, and keep a stalled
    one for as long as it was set back.
    """

    _start_time: float | None
    _end_time: float | None

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        now = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout - (now - self._start_time))


class _StateMachine(StateMachine):  # type: ignore[misc]
    """Ends the association, and not only its thread, if a PDU breaks an action (PS3.8 9.2)."""

    def do_action(self, event: str) -> None:
        association = self.dul.assoc
        if event == "Evt19":
            self.dul.socket.tell(
                "it sent what is no PDU (PS3.8 9.3) or no message (PS3.7 6.3): see what calls "
                "from there"
            )
        try:
            super().do_action(event)
            if (event, self.current_state) == ("Evt6", "Sta13"):
                self.dul.socket.tell("it speaks another version of the protocol (PS3.8 9.3.2)")
        # A boundary: a PDU from outside can make the library raise what it likes.
        except Exception as error:  # noqa: BLE001
            self.dul.socket.tell(
                f"its PDU is not what PS3.8 allows here ({type(error).__name__}): see what calls "
                "from there"
            )
            self.dul.socket.close()
            self.dul.kill_dul()
        if self.dul._kill_thread and association.requestor.primitive is None:  # noqa: SLF001
            # The association's thread would wait for a request until its time is over.
            self.dul.to_user_queue.put(None)


class Account:
    """The bytes of all data sets that have arrived, in part or whole, and are in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = 0

    @property
    def held(self) -> int:
        """So many, now."""
        return self._held

    def add(self, count: int) -> None:
        """Count more, or fewer."""
        with self._lock:
            self._held += count


class _DataSet(BytesIO):
    """A data set's bytes, on the account for as long as anybody has them."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account, self._count = account, 0

    def write(self, content: Any) -> int:
        count = super().write(content)
        self._count += count
        self._account.add(count)
        return count

    def __del__(self) -> None:
        self._account.add(-self._count)


class _Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """Puts fragments together (PS3.8 E.1) as long as they are within the limits."""

    message: Any

    def __init__(self, association: Association, listener: Listener) -> None:
        super().__init__(association)
        self._limits, self._account = listener.limits, listener.account
        self.cut: dict[int, str] = {}
        """By Message ID, why a request's data set was dropped while it came."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take fragments; what cannot be one ends the association."""
        try:
            if self.msg_queue.qsize() > MOST_QUEUED:
                raise ValueError("requests ahead of their answers")
            # One by one: what follows the end of a message begins the next.
            for context, fragment in primitive.presentation_data_value_list:
                if self.message is None:
                    self.message = DIMSEMessage()
                    self.message.data_set = _DataSet(self._account)
                one = P_DATA()
                one.presentation_data_value_list = [[context, self._within_limits(fragment)]]
                super().receive_primitive(one)
        # A boundary: a command set from outside can make the library raise what it likes.
        except Exception as error:  # noqa: BLE001
            self.message = None
            self.dul.socket.tell(
                f"its message is not what PS3.7 allows ({type(error).__name__}): see what calls "
                "from there"
            )
            self.dul.event_queue.put("Evt19")

    def _within_limits(self, fragment: bytes) -> bytes:
        """The fragment, or only its header if the data set is dropped."""
        message = self.message
        if fragment[0] & 1:
            if message.encoded_command_set.tell() + len(fragment) > LONGEST_COMMAND:
                raise ValueError("a command set without end")
            return fragment
        number = message.command_set.MessageID
        if number not in self.cut:
            count = len(fragment) - 1
            if message.data_set.tell() + count > self._limits.object_bytes:
                megabytes = self._limits.object_bytes // 1_000_000
                self.cut[number] = f"larger than {megabytes} MB, TRIAGE_MAX_OBJECT_MB"
            elif self._account.held + count > self._limits.held_bytes:
                megabytes = self._limits.held_bytes // 1_000_000
                self.cut[number] = f"over {megabytes} MB arrive, TRIAGE_MAX_ARRIVING_MB"
            else:
                return fragment
            message.data_set = BytesIO()
        return fragment[:1]
