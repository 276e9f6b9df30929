"""The SCP that a console talks to: verification, storage, and requests for commitment.

Success is answered only after the instance file and its worklist row would survive
losing power. Every refusal has a status from PS3.4 table B.2-1, a comment for the console
and a line in the log that tells an administrator which side to fix.
"""

import ssl
import struct
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import structlog
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from triage.commitment import Refused, requested
from triage.errors import DicomError, ServiceError, SpoolError, WorklistError
from triage.identity import HEADER_KEYWORDS, Instance, text, valid_uid
from triage.peers import Peer, admits, is_loopback
from triage.pixels import JPEG_PROGRESSIVE
from triage.spool import Arriving, Spool
from triage.telemetry import Telemetry
from triage.transport import (
    MAXIMUM_PDU,
    OPENING_SECONDS,
    Account,
    Limits,
    Listener,
    arrived,
    cut_short,
    peer,
    printable,
)
from triage.worklist import Arrival, Worklist

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
"""PS3.7 C.5.10; here: another data set already has this SOP Instance UID."""
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213
"""Of an N-ACTION (PS3.7 C.4.2)."""
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

STORAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

# In our order of preference: an acceptor chooses by its own order.
TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
    RLELossless,
    JPEG_PROGRESSIVE,
)

UNCOMPRESSED = TRANSFER_SYNTAXES[:4]

FIRST_BYTES = 65_536
"""Of a data set; nearly every one comes to its pixels within them."""
HEADER_BYTES = 4_000_000
"""The UIDs of a data set stand within so many bytes, and no more are looked at."""
MOST_ITEMS = 20_000
"""Sequence items in a header; each costs a hundred times its bytes to read."""
LITTLE_ITEM, BIG_ITEM = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
"""Item (FFFE,E000)."""
INFLATED_AT_ONCE = 65_536

_META_ELEMENT, _META_LENGTH = struct.Struct("<HH2sH"), struct.Struct("<HH2sHI")
"""Headers of elements in Explicit VR Little Endian (PS3.5 7.1.2); the second with its value."""
_META_VERSION = bytes.fromhex("0200 0100") + b"OB" + bytes.fromhex("0000 02000000 0001")
"""File Meta Information Version (0002,0001)."""

_PARSING = threading.Lock()
"""One header at a time: in parallel they are no faster, and a hostile one takes memory."""

_HEADER_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in HEADER_KEYWORDS]

FIRST_PIXEL_TAG = 0x7FE0_0008
"""Float Pixel Data; Pixel Data (7FE0,0010) follows."""

CALLED_NOT_RECOGNIZED = (0x01, 0x01, 0x07)
"""Rejected permanent, by the service user (PS3.8 table 9-21)."""
CALLING_NOT_RECOGNIZED = (0x01, 0x01, 0x03)
LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""Rejected transient, by the provider's presentation part."""


class _Refusal(Exception):
    """A C-STORE that is not answered with Success.

    Parameters
    ----------
    status : int
        PS3.4 table B.2-1.
    comment : str
        Error Comment (0000,0902), at most 64 characters.
    advice : str
        For the log: which side to fix.
    """

    def __init__(self, status: int, comment: str, advice: str) -> None:
        super().__init__(comment)
        self.status, self.comment, self.advice = status, comment, advice


@dataclass(frozen=True, slots=True)
class Door:
    """Where a receiver listens, and who may come in.

    Attributes
    ----------
    address : tuple of str and int, or None
        Host and port without TLS; port 0 takes any free one. None: only with TLS.
    peers : tuple of Peer
        Who may associate; empty for this machine only.
    tls_address : tuple of str and int, or None
    tls : ssl.SSLContext or None
        For ``tls_address``.
    requesters : frozenset of str
        AE titles that may ask for Storage Commitment.
    syntaxes : tuple of UID
        Transfer syntaxes that are offered for storage, in our order of preference.
    """

    address: tuple[str, int] | None
    peers: tuple[Peer, ...] = ()
    tls_address: tuple[str, int] | None = None
    tls: ssl.SSLContext | None = None
    requesters: frozenset[str] = frozenset()
    syntaxes: tuple[UID, ...] = TRANSFER_SYNTAXES


class Receiver:
    """The SCP, listening in threads of its own between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    ae_title : str
        Ours; an association that calls another is rejected.
    door : Door, or tuple of str and int
        An address alone is a door to this machine.
    max_associations : int
    idle_seconds : float
        An association that sends nothing for so long is aborted.
    spool : Spool
    worklist : Worklist
    object_bytes : int
        A larger data set is refused.
    arriving_bytes : int
        Of all data sets that are not answered yet, together.
    telemetry : Telemetry, optional
    """

    def __init__(
        self,
        ae_title: str,
        door: Door | tuple[str, int],
        max_associations: int,
        idle_seconds: float,
        spool: Spool,
        worklist: Worklist,
        object_bytes: int = 512_000_000,
        arriving_bytes: int = 1_024_000_000,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._telemetry = telemetry or Telemetry()
        self._door = door if isinstance(door, Door) else Door(door)
        self._limits = Limits(max_associations, idle_seconds, object_bytes, arriving_bytes)
        self._spool, self._worklist = spool, worklist
        self._log = structlog.get_logger("scp")
        self._account = Account()
        self._admitted: set[Any] = set()
        self._admitting = threading.Lock()
        self._listeners: list[Listener] = []
        self._stopping = False
        ae = AE(ae_title)
        ae.maximum_pdu_size = MAXIMUM_PDU
        ae.dimse_timeout = ae.network_timeout = idle_seconds
        ae.acse_timeout = min(idle_seconds, OPENING_SECONDS)
        ae.maximum_associations = sys.maxsize  # ours is counted in _objection
        ae.add_supported_context(Verification, list(UNCOMPRESSED))
        for sop_class in STORAGE_CLASSES:
            ae.add_supported_context(sop_class, list(self._door.syntaxes))
        ae.add_supported_context(
            StorageCommitmentPushModel, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        )
        self._ae = ae

    @property
    def contexts(self) -> dict[UID, tuple[UID, ...]]:
        """The presentation contexts: transfer syntaxes by SOP class, in our order."""
        return {
            UID(context.abstract_syntax): tuple(map(UID, context.transfer_syntax))
            for context in self._ae.supported_contexts
        }

    def start(self) -> int:
        """Listen; the port that is listened on, the one without TLS if there are two.

        Raises
        ------
        ServiceError
            An address cannot be listened on.
        SpoolError
            The spool cannot be written.
        """
        self._spool.prepare()
        doors = [
            (self._door.address, None, "TRIAGE_DICOM_PORT"),
            (self._door.tls_address, self._door.tls, "TRIAGE_TLS_PORT"),
        ]
        ports = []
        try:
            for address, tls, setting in doors:
                if address is not None:
                    ports.append(self._listen(address, tls, setting))
        except ServiceError:
            self.stop()
            raise
        return ports[0]

    def _listen(self, address: tuple[str, int], tls: ssl.SSLContext | None, setting: str) -> int:
        try:
            listener = Listener(
                self._ae,
                address,
                self._limits,
                self._account,
                tls,
                self._opened,
                [
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_ACCEPTED, self._accepted),
                    (evt.EVT_ABORTED, self._aborted),
                    (evt.EVT_C_ECHO, self._echo),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_N_ACTION, self._commit),
                ],
            )
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {address[0]} port {address[1]}: {error.strerror}: stop the "
                f"program that has it, or set TRIAGE_DICOM_HOST and {setting} to a free address"
            ) from error
        self._listeners.append(listener)
        port = listener.open()
        self._log.info(
            "listening",
            action="listening",
            ae_title=self._ae.ae_title,
            port=port,
            tls=tls is not None,
        )
        return port

    def stop(self) -> None:
        """Stop listening and abort what is still associated."""
        self._stopping = True
        for listener in self._listeners:
            listener.shutdown()
        self._listeners = []
        self._ae.shutdown()

    def _requested(self, event: Event) -> None:
        """Reject an association that may not be (PS3.8 9.3.4)."""
        objection = self._objection(event.assoc)
        if objection is None:
            return
        answer, advice = objection
        self._telemetry.rejected.labels("/".join(map(str, answer))).inc()
        event.assoc.acse.send_reject(*answer)
        self._log.warning(
            "rejected",
            action="association_rejected",
            reason="/".join(map(str, answer)),
            advice=advice,
            **_peer(event),
        )
        event.assoc.kill()

    def _objection(self, association: Any) -> tuple[tuple[int, int, int], str] | None:
        """Why an association may not be: the answer to the console, and advice for us."""
        request = association.requestor.primitive
        called = request.called_ae_title
        if called != self._ae.ae_title:
            return CALLED_NOT_RECOGNIZED, (
                f"the console calls AE title {printable(called)!r}, ours is "
                f"{self._ae.ae_title!r}: correct the console's destination, or TRIAGE_AE_TITLE"
            )
        calling, address = request.calling_ae_title, association.requestor.address
        if not (admits(self._door.peers, calling, address) or _only_echoes(request, address)):
            return CALLING_NOT_RECOGNIZED, (
                f"nothing in TRIAGE_PEERS admits {printable(calling)}@{address}: if this console "
                "belongs here, add that; if not, find out what calls from there"
            )
        with self._admitting:
            self._admitted = {each for each in self._admitted if each.is_alive()}
            if len(self._admitted) >= self._limits.associations:
                return LIMIT_EXCEEDED, (
                    f"{self._limits.associations} associations are open: raise "
                    "TRIAGE_MAX_ASSOCIATIONS or let the consoles send less at once"
                )
            self._admitted.add(association)
        return None

    def _accepted(self, event: Event) -> None:
        """Tell an administrator of what a console proposes in vain."""
        refused = [
            context
            for context in event.assoc.rejected_contexts
            if context.abstract_syntax in self.contexts or not event.assoc.accepted_contexts
        ]
        if refused:
            names = sorted({printable(UID(context.abstract_syntax).name) for context in refused})
            self._log.warning(
                "contexts rejected",
                action="contexts_rejected",
                sop_classes=names[:5],
                advice="none of the transfer syntaxes that the console proposes for these SOP "
                "classes is taken, or the classes are not: see docs/conformance.md, and let the "
                "console propose Explicit VR Little Endian",
                **_peer(event),
            )

    def _aborted(self, event: Event) -> None:
        association, seconds = event.assoc, self._limits.idle_seconds
        if self._stopping:
            advice = "this receiver stops; what was not acknowledged comes again"
        elif association.dul.idle_timer_expired():
            advice = (
                f"the console said nothing for {seconds:g} s, TRIAGE_IDLE_SECONDS: see whether it "
                "stalled"
            )
        elif association._sent_abort:  # noqa: SLF001
            advice = "it sent a message that fits no accepted context or service: see the console"
        else:
            advice = "the console or the network ended it; what was not acknowledged comes again"
        association.dul.socket.tell(advice)

    def _echo(self, event: Event) -> int:
        self._log.info("echoed", action="echoed", **_peer(event))
        return SUCCESS

    def _opened(self, command: Dataset, syntax: UID) -> Arriving:
        """Where a data set goes while it arrives."""
        # The first value of each: the library takes no other.
        sop_class, uid = (text(command, f"AffectedSOP{what}UID") for what in ("Class", "Instance"))
        if not (valid_uid(sop_class) and valid_uid(uid)):
            # What comes will not be kept: it cannot be the instance that such a command names.
            return self._spool.arriving()
        return self._spool.arriving(_beginning(sop_class, uid, syntax))

    def _store(self, event: Event) -> int | Dataset:
        """Answer a C-STORE (PS3.4 B.2): the boundary between errors and statuses."""
        began = time.time_ns()
        with self._telemetry.step("receive"):
            answer = self._answer(event, began)
        status = answer if isinstance(answer, int) else int(answer.Status)
        self._telemetry.stores.labels(f"0x{status:04X}").inc()
        return answer

    def _answer(self, event: Event, began: int) -> int | Dataset:
        try:
            self._keep(event, began)
        except _Refusal as refusal:
            return self._refuse(event, refusal)
        except (SpoolError, WorklistError) as error:
            advice = f"{error}; the console will send again: mend this side"
            return self._refuse(event, _Refusal(OUT_OF_RESOURCES, "cannot be kept now", advice))
        # A boundary: whatever a data set from outside does to us, the console gets an answer.
        except Exception as error:  # noqa: BLE001
            advice = f"{type(error).__name__} in this program: report it with the instance"
            return self._refuse(event, _Refusal(CANNOT_UNDERSTAND, "not understood", advice))
        return SUCCESS

    def _keep(self, event: Event, began: int) -> None:
        """Make an instance durable in spool and worklist, or refuse it."""
        request = cast("Any", event.request)
        why = cut_short(event)
        if why is not None:
            raise _Refusal(
                OUT_OF_RESOURCES, why, f"{why}: raise it, or let the console send less at once"
            )
        arriving = cast("Arriving", arrived(event))
        instance = _understand(
            arriving, UID(event.context.transfer_syntax), self._limits.object_bytes
        )
        stated = (instance.sop_class_uid, instance.sop_instance_uid)
        if stated != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            raise _Refusal(
                DATA_SET_MISMATCH,
                "SOP class or instance UID differs from the command's",
                "data set and command name different instances: correct the console",
            )
        if instance.sop_class_uid != event.context.abstract_syntax:
            raise _Refusal(
                DATA_SET_MISMATCH,
                "SOP class differs from the presentation context's",
                "it sends another SOP class than it proposed: correct the console",
            )
        digest, size, peer = arriving.digest, arriving.size, _peer(event)
        uid = instance.sop_instance_uid
        known = self._worklist.digest(uid)
        if known is None:
            self._spool.keep(arriving, digest)
            arrival = Arrival(
                instance,
                str(event.context.transfer_syntax),
                peer["calling_ae_title"],
                peer["calling_address"],
                digest,
                size,
            )
            if self._worklist.receive(arrival):
                self._telemetry.received(uid, began, size)
                self._log.info("stored", action="stored", sop_instance_uid=uid, bytes=size, **peer)
                return
            # Another association was faster with the same UID.
            known = self._worklist.digest(uid)
        if known == digest:
            # Put again, so that Success stays true even if the file was lost since.
            self._spool.keep(arriving, digest)
            self._log.info("duplicate", action="duplicate", sop_instance_uid=uid, **peer)
            return
        self._spool.keep(arriving, digest, "quarantine")
        self._worklist.quarantined(uid, digest, peer["calling_ae_title"])
        raise _Refusal(
            PROCESSING_FAILURE,
            "another data set has this SOP Instance UID",
            "the first one is kept, this one is in quarantine: the console used a UID twice",
        )

    def _commit(self, event: Event) -> tuple[int | Dataset, None]:
        """Answer an N-ACTION (PS3.4 J.3.2): the request is kept before Success."""
        request, requester = cast("Any", event.request), _peer(event)["calling_ae_title"]
        try:
            if requester not in self._door.requesters:
                raise Refused(
                    NOT_AUTHORIZED,
                    f"nothing in TRIAGE_COMMITMENT_PEERS says where {requester} takes reports: add "
                    f"{requester}@HOST:PORT",
                )
            information = request.ActionInformation
            size = 0 if information is None else information.getbuffer().nbytes
            if cut_short(event) is not None or size > HEADER_BYTES:
                raise Refused(RESOURCE_LIMITATION, "it asks for too many instances at once")
            asked = requested(
                str(request.RequestedSOPInstanceUID),
                int(request.ActionTypeID),
                event.action_information if size else Dataset(),
            )
            new = self._worklist.commitments.request(
                asked.transaction_uid, requester, asked.references
            )
        except Refused as refusal:
            return self._refuse_commitment(event, refusal), None
        except WorklistError as error:
            advice = f"{error}; the console will ask again: mend this side"
            return self._refuse_commitment(event, Refused(RESOURCE_LIMITATION, advice)), None
        # A boundary: whatever a data set from outside does to us, the console gets an answer.
        except Exception as error:  # noqa: BLE001
            advice = f"the request cannot be decoded ({type(error).__name__}): correct the console"
            return self._refuse_commitment(event, Refused(PROCESSING_FAILURE, advice)), None
        self._log.info(
            "commitment requested",
            action="commitment_requested",
            transaction_uid=asked.transaction_uid,
            instances=len(asked.references),
            again=not new,
            **_peer(event),
        )
        return SUCCESS, None

    def _refuse_commitment(self, event: Event, refusal: Refused) -> Dataset:
        self._log.warning(
            "refused",
            action="commitment_refused",
            status=f"0x{refusal.status:04X}",
            advice=refusal.advice,
            **_peer(event),
        )
        answer = Dataset()
        answer.Status = refusal.status
        return answer

    def _refuse(self, event: Event, refusal: _Refusal) -> Dataset:
        self._log.warning(
            "refused",
            action="store_refused",
            status=f"0x{refusal.status:04X}",
            advice=refusal.advice,
            **_peer(event),
        )
        answer = Dataset()
        answer.Status = refusal.status
        answer.ErrorComment = refusal.comment[:64]
        return answer


def _beginning(sop_class: str, uid: str, syntax: str) -> bytes:
    """What a file has before its data set (PS3.10 7.1); by the library it takes ten times as long.

    Parameters
    ----------
    sop_class, uid, syntax : str
        Valid UIDs.
    """
    group = b"".join(
        _META_ELEMENT.pack(2, element, vr, len(value)) + value
        for element, vr, value in (
            (0x0002, b"UI", _even(sop_class)),
            (0x0003, b"UI", _even(uid)),
            (0x0010, b"UI", _even(syntax)),
            (0x0012, b"UI", _even(PYNETDICOM_IMPLEMENTATION_UID)),
            (0x0013, b"SH", _even(PYNETDICOM_IMPLEMENTATION_VERSION, " ")),
        )
    )
    rest = _META_VERSION + group
    return bytes(128) + b"DICM" + _META_LENGTH.pack(2, 0, b"UL", 4, len(rest)) + rest


def _even(value: str, padding: str = "\0") -> bytes:
    """A value as PS3.5 6.2 and 9.1 encode it."""
    return (value + padding if len(value) % 2 else value).encode("ascii")


def _understand(arriving: Arriving, syntax: UID, most: int) -> Instance:
    """The instance that a data set describes, without decoding its pixels."""
    try:
        if syntax.is_deflated:
            return Instance.of(_header(_inflated(arriving, most), syntax)[0])
        with suppress(Exception):  # what it stumbles over may be the end of these bytes
            header, whole = _header(arriving.read(0, FIRST_BYTES), syntax)
            if whole or arriving.size <= FIRST_BYTES:
                return Instance.of(header)
        return Instance.of(_header(arriving.read(0, HEADER_BYTES), syntax)[0])
    except DicomError as error:
        raise _Refusal(CANNOT_UNDERSTAND, str(error), f"{error}: correct the console") from error
    except (_Refusal, SpoolError):
        raise
    # A boundary: pydicom raises what it likes on a data set that is none.
    except Exception as error:
        raise _Refusal(
            CANNOT_UNDERSTAND,
            "the data set cannot be decoded",
            f"the data set cannot be decoded ({type(error).__name__}): correct the console",
        ) from error


def _header(head: bytes, syntax: UID) -> tuple[Dataset, bool]:
    """What a data set says before its pixels, and whether it came to them.

    Raises
    ------
    DicomError
        It would take too much memory to read.
    """
    items = head.count(LITTLE_ITEM if syntax.is_little_endian else BIG_ITEM)
    if items > MOST_ITEMS:
        raise DicomError(f"there are {items} sequence items in the header")
    pixels = False

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal pixels
        pixels = tag >= FIRST_PIXEL_TAG
        return pixels

    with _PARSING:
        header = read_dataset(
            BytesIO(head),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=stop,
            specific_tags=_HEADER_TAGS,
        )
    return header, pixels


def _inflated(arriving: Arriving, most: int) -> bytes:
    """The beginning of a deflated data set, which as a whole must not exceed the limit.

    Raises
    ------
    EOFError
        It ends before its end (RFC 1951 3.2.3).
    """
    inflate, head, size = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(), 0
    for part in arriving.chunks(INFLATED_AT_ONCE):
        left = part
        while left and size <= most and not inflate.eof:
            inflated = inflate.decompress(left, INFLATED_AT_ONCE)
            size += len(inflated)
            head += inflated[: HEADER_BYTES - len(head)]
            left = inflate.unconsumed_tail
        if inflate.eof or size > most:
            break
    if size > most:
        why = f"inflates to more than {most // 1_000_000} MB, TRIAGE_MAX_OBJECT_MB"
        raise _Refusal(OUT_OF_RESOURCES, why, f"{why}: raise it, or correct the console")
    if not inflate.eof:
        raise EOFError
    return bytes(head)


def _only_echoes(request: Any, address: str) -> bool:
    """Whether a caller on this machine proposes verification alone, as ``triage check`` does."""
    proposed = {item.abstract_syntax for item in request.presentation_context_definition_list}
    return proposed == {Verification} and is_loopback(address)


def _peer(event: Event) -> dict[str, str]:
    return peer(event.assoc)
