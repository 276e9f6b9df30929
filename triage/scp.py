"""The storage and verification SCP: what a console talks to.

Success is answered only after the instance file and its worklist row would survive
losing power. Every refusal has a status from PS3.4 table B.2-1, a comment for the console
and a line in the log that tells an administrator which side to fix.
"""

import socket
from io import BytesIO
from typing import Any, cast

import structlog
from pydicom import Dataset, dcmread
from pydicom.uid import (
    JPEG2000,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
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
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification

from triage.errors import DicomError, ServiceError, SpoolError, WorklistError
from triage.identity import Instance
from triage.pixels import JPEG_PROGRESSIVE
from triage.spool import Spool, digest_of
from triage.worklist import Arrival, Worklist

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
"""PS3.7 C.5.10; here: another data set already has this SOP Instance UID."""
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
    RLELossless,
    JPEG_PROGRESSIVE,
)

MAXIMUM_PDU = 131_072
"""Bytes; the default of 16 KB costs 10 MB images about 40% of their rate."""

BACKLOG = 128
"""Connections that may wait to be accepted."""


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


class Receiver:
    """The SCP, listening in threads of its own between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    ae_title : str
        Ours; an association that calls another is rejected.
    address : tuple of str and int
        Host and port; port 0 takes any free one.
    max_associations : int
    idle_seconds : float
        An association that sends nothing for so long is aborted.
    spool : Spool
    worklist : Worklist
    """

    def __init__(
        self,
        ae_title: str,
        address: tuple[str, int],
        max_associations: int,
        idle_seconds: float,
        spool: Spool,
        worklist: Worklist,
    ) -> None:
        self._address, self._idle_seconds = address, idle_seconds
        self._spool, self._worklist = spool, worklist
        self._log = structlog.get_logger("scp")
        self._server: Any = None
        ae = AE(ae_title)
        ae.require_called_aet = True
        ae.maximum_pdu_size = MAXIMUM_PDU
        ae.maximum_associations = max_associations
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = idle_seconds
        ae.add_supported_context(Verification)
        for sop_class in STORAGE_CLASSES:
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        self._ae = ae

    def start(self) -> int:
        """Listen; the port that is listened on.

        Raises
        ------
        ServiceError
            The address cannot be listened on.
        SpoolError
            The spool cannot be written.
        """
        self._spool.prepare()
        host, port = self._address
        try:
            self._server = self._ae.start_server(
                self._address,
                block=False,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._opened),
                    (evt.EVT_CONN_CLOSE, self._closed),
                    (evt.EVT_REJECTED, self._rejected),
                    (evt.EVT_ABORTED, self._aborted),
                    (evt.EVT_C_ECHO, self._echo),
                    (evt.EVT_C_STORE, self._store),
                ],
            )
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {host} port {port}: {error.strerror}: stop the program that "
                "has it, or set TRIAGE_DICOM_HOST and TRIAGE_DICOM_PORT to a free address"
            ) from error
        # The library's backlog of 5 makes each console of a burst wait a second and more.
        self._server.socket.listen(BACKLOG)
        listening = int(self._server.server_address[1])
        self._log.info("listening", action="listening", ae_title=self._ae.ae_title, port=listening)
        return listening

    def stop(self) -> None:
        """Stop listening and abort what is still associated."""
        if self._server is not None:
            self._server.shutdown()
            self._ae.shutdown()
            self._server = None

    def _opened(self, event: Event) -> None:
        """Bound how long a peer may stall in the middle of a PDU."""
        connection = cast("socket.socket", event.assoc.dul.socket.socket)
        connection.settimeout(self._idle_seconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _closed(self, event: Event) -> None:
        """Give the place of a peer free that left before it asked for an association.

        Left alone, pynetdicom waits on for the request, and a load balancer that looks
        whether the port is open fills the limit of associations.
        """
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(None)

    def _rejected(self, event: Event) -> None:
        requestor = event.assoc.requestor
        called = requestor.primitive.called_ae_title
        advice = (
            f"the console calls AE title {called!r}, ours is {self._ae.ae_title!r}: correct the "
            "console's destination, or TRIAGE_AE_TITLE"
            if called != self._ae.ae_title
            else f"{self._ae.maximum_associations} associations are open: raise "
            "TRIAGE_MAX_ASSOCIATIONS or let the consoles send less at once"
        )
        self._log.warning("rejected", action="association_rejected", advice=advice, **_peer(event))

    def _aborted(self, event: Event) -> None:
        self._log.warning(
            "aborted",
            action="association_aborted",
            advice="the console or the network ended it; what was not acknowledged comes again",
            **_peer(event),
        )

    def _echo(self, event: Event) -> int:
        self._log.info("echoed", action="echoed", **_peer(event))
        return SUCCESS

    def _store(self, event: Event) -> int | Dataset:
        """Answer a C-STORE (PS3.4 B.2): the boundary between errors and statuses."""
        try:
            self._keep(event)
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

    def _keep(self, event: Event) -> None:
        """Make an instance durable in spool and worklist, or refuse it."""
        request = cast("Any", event.request)
        content = event.encoded_dataset()
        size = len(content) - request.DataSet.getbuffer().nbytes
        data = memoryview(content)[size:]
        instance = _understand(content)
        if instance.sop_instance_uid != str(
            request.AffectedSOPInstanceUID
        ) or instance.sop_class_uid != str(request.AffectedSOPClassUID):
            raise _Refusal(
                DATA_SET_MISMATCH,
                "SOP class or instance UID differs from the command's",
                "data set and command name different instances: correct the console",
            )
        digest = digest_of(data)
        peer = _peer(event)
        uid = instance.sop_instance_uid
        known = self._worklist.digest(uid)
        if known is None:
            self._spool.put(digest, content)
            arrival = Arrival(
                instance,
                str(event.context.transfer_syntax),
                peer["calling_ae_title"],
                peer["calling_address"],
                digest,
                len(data),
            )
            if self._worklist.receive(arrival):
                self._log.info(
                    "stored", action="stored", sop_instance_uid=uid, bytes=len(data), **peer
                )
                return
            # Another association was faster with the same UID.
            known = self._worklist.digest(uid)
        if known == digest:
            # Put again, so that Success stays true even if the file was lost since.
            self._spool.put(digest, content)
            self._log.info("duplicate", action="duplicate", sop_instance_uid=uid, **peer)
            return
        self._spool.put(digest, content, "quarantine")
        self._worklist.quarantined(uid, digest, peer["calling_ae_title"])
        raise _Refusal(
            PROCESSING_FAILURE,
            "another data set has this SOP Instance UID",
            "the first one is kept, this one is in quarantine: the console used a UID twice",
        )

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


def _understand(content: bytes) -> Instance:
    """The instance that a file describes, without decoding its pixels."""
    try:
        header = dcmread(BytesIO(content), stop_before_pixels=True)
        return Instance.of(header)
    except DicomError as error:
        raise _Refusal(CANNOT_UNDERSTAND, str(error), f"{error}: correct the console") from error
    # A boundary: pydicom raises what it likes on a data set that is none.
    except Exception as error:
        raise _Refusal(
            CANNOT_UNDERSTAND,
            "the data set cannot be decoded",
            f"the data set cannot be decoded ({type(error).__name__}): correct the console",
        ) from error


def _peer(event: Event) -> dict[str, str]:
    """Who calls, in characters that are safe in a log and in the database."""
    requestor = event.assoc.requestor
    title = "".join(c if c.isascii() and c.isprintable() else "?" for c in requestor.ae_title)
    return {"calling_ae_title": title.strip()[:16], "calling_address": str(requestor.address)[:64]}
