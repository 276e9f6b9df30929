"""What lies under an association: connections, TLS and the limits on both (PS3.8 9.1).

pynetdicom's server shakes hands in its accept loop, believes any PDU length, gathers a
message of any size in memory and gives each connection two threads that poll. Here a
connection says something first, shakes hands in a thread of its own, and then takes no more
memory and time than the limits allow; the fragments of a data set go from the socket to
where they are kept, and the thread that reads a request also answers it.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, cast

import structlog
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import MODE_ACCEPTOR, Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.dul import DULServiceProvider
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

AHEAD = 4 * MAXIMUM_PDU
"""Bytes that are read at once, of as many PDUs as have come."""

_TAIL = 65_536
"""Fewer bytes at once are the end of what a console has to say for now, and not its flood."""

LONGEST_COMMAND = 65_536
"""Bytes of a command set (PS3.7 6.3); real ones have some hundred."""

OPENING_SECONDS = 10.0
"""From a connection to its first byte, and from there through TLS to an association."""

MOST_OPENING = 512
"""Threads for connections that have not come to an association yet."""

_ABORT = bytes.fromhex("07 00 00000004 00 00 02 01")
"""A-ABORT by the provider: unrecognized PDU (PS3.8 table 9-26)."""

_ASSOCIATE_RQ, _P_DATA_TF, _TLS_HANDSHAKE = 0x01, 0x04, 0x16

_COMMAND, _LAST = 0x01, 0x02
"""Bits of a message control header (PS3.8 E.2)."""

_BRISK, _CALM = 1, 50
"""Milliseconds to wait for a peer: while we may have something to send, and while we have not."""


class Sink(Protocol):
    """Where the data set of a C-STORE goes while it arrives."""

    def write(self, content: memoryview) -> None:
        """Take the next bytes; they are valid during the call only."""

    def discard(self) -> None:
        """Leave nothing behind, if nobody has kept it."""


Opened = Callable[[Dataset, UID], Sink]
"""A sink, by the command set (PS3.7 9.3.1) and the transfer syntax."""


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
    """Why the data set of the request that is served was not taken in whole; None if it was."""
    return cast("_Messages", event.assoc.dimse).cut


def arrived(event: evt.Event) -> Sink:
    """Where the data set of the C-STORE that is served has gone."""
    return cast("Sink", cast("_Messages", event.assoc.dimse).sink)


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
    opened : callable
        Makes a :class:`Sink` for each C-STORE.
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
        opened: Opened,
        handlers: list[Any],
    ) -> None:
        self.limits, self.account, self.tls, self.opened = limits, account, tls, opened
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
        """As the library does, of our own parts."""
        association = _Association(self.server, self.request)
        acceptor = association.acceptor
        acceptor.maximum_length = self.ae.maximum_pdu_size
        acceptor.ae_title = self.server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = self.ae.implementation_class_uid
        acceptor.implementation_version_name = self.ae.implementation_version_name
        acceptor.supported_contexts = self.server.contexts
        association.requestor.address_info = self.remote
        for event, handler in self.server._handlers.items():  # noqa: SLF001
            if event.is_intervention:
                association.bind(event, *handler)
            else:
                for function, arguments in handler:
                    association.bind(event, function, arguments)
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
        self.patience = _BRISK
        """Milliseconds that :attr:`ready` waits for the peer."""
        self._buffer = bytearray(AHEAD)
        self._begin = self._end = 0
        """Where in the buffer is what was read ahead."""

    def tell(self, advice: str) -> None:
        """Say why the association ends, once."""
        if not self.told:
            self.told = True
            structlog.get_logger("scp").warning(
                "aborted", action="association_aborted", advice=advice, **peer(self.assoc)
            )

    @property
    def ready(self) -> bool:
        """Whether there is something to read, soon; without select's limit of 1,024 descriptors."""
        if self.socket is None or not self._is_connected:
            return False
        if self._begin < self._end:
            return True
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(self.patience))
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
        self.believe(nr_bytes)
        content = bytearray(self.peek(nr_bytes))
        self.skip(len(content))
        return content

    def believe(self, length: int) -> None:
        """Refuse what no PDU's length is.

        Raises
        ------
        OSError
            It is more than a PDU may have.
        """
        if length > LONGEST_PDU:
            self.tell(f"it announced a PDU of {length} bytes: see what calls from there")
            raise ConnectionAbortedError

    def peek(self, nr_bytes: int) -> memoryview:
        """The next bytes, fewer if the connection ends; valid until the next call.

        Raises
        ------
        OSError
            They do not come in time.
        """
        if self._end - self._begin < nr_bytes:
            self._fill(nr_bytes)
        return memoryview(self._buffer)[self._begin : min(self._end, self._begin + nr_bytes)]

    def skip(self, nr_bytes: int) -> None:
        """Be done with the next bytes."""
        self._begin += nr_bytes

    def _fill(self, count: int) -> None:
        """Read until the buffer has so many bytes, and what else has come, or the end has."""
        self._make_room(count)
        seconds = self.assoc.network_timeout
        deadline = time.monotonic() + seconds
        received = 0
        try:
            with memoryview(self._buffer) as view:
                while self._end - self._begin < count:
                    received = self.socket.recv_into(view[self._end :])
                    if not received:
                        break
                    self._end += received
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except TimeoutError:
            self.tell(
                f"it stalled in the middle of a message for {seconds:g} s: see the console and the "
                "network; what was not acknowledged comes again"
            )
            raise
        if received < _TAIL and hasattr(socket, "TCP_QUICKACK"):
            # A console that gathers small packets (RFC 896) waits with the next for this receipt.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _make_room(self, count: int) -> None:
        """Have place for so many bytes from the beginning of what was read ahead on."""
        if self._begin == self._end:
            self._begin = self._end = 0
        if len(self._buffer) - self._begin >= count:
            return
        rest = bytes(memoryview(self._buffer)[self._begin : self._end])
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        self._buffer[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _shutdown_socket(self) -> None:
        connection = self.socket
        if connection is not None:
            with suppress(OSError):  # it may be gone, and is to be closed all the same
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class _Association(Association):  # type: ignore[misc]
    """An association whose requests are served by the thread that reads them.

    The library's own thread for that has nothing to do until the association ends.
    """

    def __init__(self, listener: Listener, connection: socket.socket) -> None:
        super().__init__(listener.ae, MODE_ACCEPTOR)
        self._server = listener
        self.name = "association"
        self.dul = _UpperLayer(self)
        self.dul.socket = _Connection(self, connection)
        self.dimse = _Messages(self, listener)
        # Again, for the new timers.
        self.acse_timeout = listener.ae.acse_timeout
        self.network_timeout = listener.ae.network_timeout

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        # A boundary: the library negotiates whatever a request can be decoded as.
        except Exception as error:  # noqa: BLE001
            self.broken("its request is not what PS3.8 9.3.2 describes", error)

    def broken(self, advice: str, error: Exception) -> None:
        """End with what broke the library."""
        self.dul.socket.tell(f"{advice} ({type(error).__name__}): see what calls from there")
        self.dul.socket.close()
        self.dul.kill_dul()

    def _abort_blocking(self, block: bool = True) -> None:
        """Without waiting for the thread that this may run in."""
        super()._abort_blocking(block and threading.current_thread() is not self.dul)


class _UpperLayer(DULServiceProvider):  # type: ignore[misc]
    """The DICOM upper layer (PS3.8 7), which waits for the peer and not for a clock.

    The library's looks for something to do a thousand times a second, in two threads, and
    copies each fragment six times before anybody can keep it.
    """

    def __init__(self, association: _Association) -> None:
        super().__init__(association)
        # What was answered is durable: no peer may keep a process that was told to end.
        self.daemon = True
        self.state_machine = _StateMachine(self)
        self._idle_timer, self.artim_timer = _Timer(60), _Timer(30)
        self._run_loop_delay = 0.0

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        finally:
            self.assoc.dimse.abandon()
            self.assoc._reactor_checkpoint.set()  # noqa: SLF001

    def _is_transport_event(self) -> bool:
        association = self.assoc
        transfers = self.state_machine.current_state == "Sta6"
        ends = association._kill or association.is_aborted  # noqa: SLF001
        if transfers and not (association.is_established or ends):
            # The other thread has yet to say so, and a request before would find no answer.
            time.sleep(_BRISK / 1_000)
            return False
        calm = transfers and not (
            ends or self.to_user_queue.queue or self.idle_timer_expired() or self._kill_thread
        )
        # The association's own thread runs only when there is something for it.
        checkpoint = association._reactor_checkpoint  # noqa: SLF001
        if calm:
            checkpoint.clear()
        else:
            checkpoint.set()
        self.socket.patience = _CALM if calm else _BRISK
        return bool(super()._is_transport_event())

    def _read_pdu_data(self) -> None:
        """Read a PDU; a P-DATA-TF (PS3.8 9.3.5) without the library's detours."""
        if self.state_machine.current_state != "Sta6":
            super()._read_pdu_data()
            return
        messages = self.assoc.dimse
        while True:
            try:
                header = self.socket.peek(6)
                if len(header) < 6 or header[0] != _P_DATA_TF:
                    super()._read_pdu_data()
                    return
                length = int.from_bytes(header[2:], "big")
                self.socket.believe(length)
                content = self.socket.peek(6 + length)[6:]
            except OSError:
                self.event_queue.put("Evt17")
                return
            if len(content) < length:
                self.event_queue.put("Evt17")
                return
            self.socket.skip(6 + length)
            messages.take(content)
            # Nothing is to be sent in the middle of a message.
            if messages.message is None or self._kill_thread:
                return
            self._idle_timer.restart()


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
            association.broken("its PDU is not what PS3.8 allows here", error)
        if self.dul._kill_thread and association.requestor.primitive is None:  # noqa: SLF001
            # The association's thread would wait for a request until its time is over.
            self.dul.to_user_queue.put(None)


class Account:
    """The bytes of all data sets that have arrived, in part or whole, and are not answered."""

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


class _Discarded:
    """Takes a data set that nobody wants."""

    def write(self, content: memoryview) -> None:
        pass

    def discard(self) -> None:
        pass


class _Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """Puts fragments together (PS3.8 E.1) as long as they are within the limits."""

    message: Any

    def __init__(self, association: _Association, listener: Listener) -> None:
        super().__init__(association)
        self._limits, self._account, self._opened = (
            listener.limits,
            listener.account,
            listener.opened,
        )
        self._command = bytearray()
        self._held = 0
        self.sink: Sink | None = None
        """Of the C-STORE that arrives or is served."""
        self.cut: str | None = None
        """Why the data set of the message that arrives or is served was dropped on its way."""

    def take(self, content: memoryview) -> None:
        """Take a P-DATA-TF's items and serve what they complete.

        What cannot be one ends the association.
        """
        try:
            place = 0
            while place < len(content):
                length = int.from_bytes(content[place : place + 4], "big")
                place += 4
                if not 2 <= length <= len(content) - place:
                    raise ValueError("an item that is longer than its PDU")
                item = content[place : place + length]
                self._fragment(item[0], item[1], item[2:])
                place += length
        # A boundary: a command set from outside can make the library raise what it likes.
        except Exception as error:  # noqa: BLE001
            self.abandon()
            self.dul.socket.tell(
                f"its message is not what PS3.7 allows ({type(error).__name__}): see what calls "
                "from there"
            )
            self.dul.event_queue.put("Evt19")

    def abandon(self) -> None:
        """Forget the message that arrives or was served."""
        self.message = None
        self._drop()
        self.cut = self.sink = None
        self._command.clear()

    def _fragment(self, context: int, control: int, content: memoryview) -> None:
        if not control & _COMMAND:
            self._data(content)
        elif self.message is not None or len(self._command) + len(content) > LONGEST_COMMAND:
            raise ValueError("a command set without end, or where a data set goes on")
        else:
            self._command += content
        if control & _LAST and (not control & _COMMAND or self._understood(context)):
            self._serve()

    def _understood(self, context: int) -> bool:
        """Read the command set, now that it is whole; whether it has no data set."""
        message, command = DIMSEMessage(), P_DATA()
        command.presentation_data_value_list = [
            [context, bytes([_COMMAND | _LAST]) + bytes(self._command)]
        ]
        self._command.clear()
        whole = bool(message.decode_msg(command))
        self.message = message
        if not whole and isinstance(message, C_STORE_RQ):
            accepted = self.assoc._accepted_cx.get(context)  # noqa: SLF001
            self.sink = (
                self._opened(message.command_set, UID(accepted.transfer_syntax[0]))
                if accepted is not None
                else _Discarded()
            )
        return whole

    def _data(self, content: memoryview) -> None:
        """Take a fragment of a data set, or drop it with all that came before."""
        if self.message is None:
            raise ValueError("a data set without a command")
        if self.cut is not None:
            return
        if self._held + len(content) > self._limits.object_bytes:
            megabytes = self._limits.object_bytes // 1_000_000
            self.cut = f"larger than {megabytes} MB, TRIAGE_MAX_OBJECT_MB"
        elif self._account.held + len(content) > self._limits.held_bytes:
            megabytes = self._limits.held_bytes // 1_000_000
            self.cut = f"over {megabytes} MB arrive, TRIAGE_MAX_ARRIVING_MB"
        if self.cut is not None:
            self._drop()
            return
        self._held += len(content)
        self._account.add(len(content))
        if self.sink is not None:
            self.sink.write(content)
        else:
            self.message.data_set.write(content)

    def _drop(self) -> None:
        if self.sink is not None:
            self.sink.discard()
        if self.message is not None:
            self.message.data_set = BytesIO()
        self._account.add(-self._held)
        self._held = 0

    def _serve(self) -> None:
        primitive, context = self.message.message_to_primitive(), self.message.context_id
        try:
            # Nothing that is offered here can be cancelled.
            if not isinstance(primitive, C_CANCEL):
                self.assoc._serve_request(primitive, context)  # noqa: SLF001
        finally:
            self.abandon()
