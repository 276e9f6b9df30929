"""The storage SCU that gives results to a PACS: a structured report and a picture."""

import socket
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, _config

from triage.errors import DeliveryError
from triage.results import secondary_capture, structured_report, updated_report
from triage.send import Destination
from triage.sinks import Material, Result
from triage.worklist.deliveries import ResultKind

SUCCESS = 0x0000
DUPLICATE = 0x0111
"""Duplicate SOP Instance (PS3.7 C.5.6): it took ours before, and its answer was lost."""


class Pacs:
    """A PACS behind C-STORE (PS3.4 annex B).

    Parameters
    ----------
    destination : Destination
    calling_ae_title : str
        Ours.
    timeout : float
        Seconds without an answer after which there is none.
    organization : str
        To which readers answer (PS3.3 C.17.2, Verifying Organization); empty if unknown.
    """

    def __init__(
        self,
        destination: Destination,
        calling_ae_title: str,
        timeout: float,
        organization: str = "",
    ) -> None:
        self._destination, self._timeout = destination, timeout
        ae = AE(calling_ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
        ae.connection_timeout = timeout
        for sop_class in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
            # A context for each: a PACS may take only the default syntax (PS3.5 10.1).
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
                ae.add_requested_context(sop_class, syntax)
        self._ae, self._organization = ae, organization
        self._association: Any = None

    @property
    def contexts(self) -> list[Any]:
        """The presentation contexts that are proposed."""
        return list(self._ae.requested_contexts)

    def build(self, material: Material) -> Result:
        """A SOP instance as a DICOM file (PS3.10)."""
        made = self._dataset(material)
        file = BytesIO()
        dcmwrite(file, made, enforce_file_format=True)
        return Result(str(made.SOPInstanceUID), file.getvalue())

    def send(self, uid: str, file: Path) -> None:  # noqa: ARG002
        """C-STORE, over the open association if there is one."""
        association = self._associated()
        sop_class = dcmread(file, stop_before_pixels=True).file_meta.MediaStorageSOPClassUID
        accepted = {
            context.transfer_syntax[0]
            for context in association.accepted_contexts
            if context.abstract_syntax == sop_class
        }
        if not accepted:
            raise DeliveryError(f"{self._destination} takes no {sop_class.name}", refused=True)
        # The library's switch for sending a file's own bytes instead of encoding them anew.
        _config.STORE_SEND_CHUNKED_DATASET = True
        try:
            answer = association.send_c_store(
                file if ExplicitVRLittleEndian in accepted else dcmread(file)
            )
        except (ValueError, RuntimeError, OSError) as error:
            self.rest()
            raise DeliveryError(
                f"the association with {self._destination} broke ({type(error).__name__})"
            ) from error
        self._judge(answer.get("Status"))

    def rest(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _associated(self) -> Any:
        if self._association is None or not self._association.is_established:
            peer = self._destination
            try:
                # Whether anybody is there at all: the library leaves the socket of a refused
                # connection open, and cannot say why it was refused.
                socket.create_connection((peer.host, peer.port), self._timeout).close()
            except OSError as error:
                raise DeliveryError(f"no answer from {peer} ({type(error).__name__})") from error
            self._association = self._ae.associate(peer.host, peer.port, ae_title=peer.ae_title)
        if self._association.is_established:
            return self._association
        if self._association.is_rejected:
            reason = self._association.acceptor.primitive.reason_str
            raise DeliveryError(
                f"{self._destination} rejected the association ({reason}): does it know our AE "
                f"title {self._ae.ae_title} and this machine's address?"
            )
        if self._association.rejected_contexts:
            raise DeliveryError(
                f"{self._destination} takes neither {Comprehensive3DSRStorage.name} nor "
                f"{SecondaryCaptureImageStorage.name}",
                refused=True,
            )
        raise DeliveryError(f"{self._destination} does not answer as a DICOM node")

    def _judge(self, status: int | None) -> None:
        """Success and warnings have taken it (PS3.4 table B.2-1), anything else has not."""
        if status is None:
            self.rest()
            raise DeliveryError(f"{self._destination} did not answer")
        if status in {SUCCESS, DUPLICATE} or 0xB000 <= status <= 0xBFFF:
            return
        full = 0xA700 <= status <= 0xA7FF
        raise DeliveryError(
            f"{self._destination} answered 0x{status:04X}"
            + (": it is out of resources (PS3.4 B.2.3)" if full else ": see its log"),
            refused=not full,
        )

    def _dataset(self, material: Material) -> Dataset:
        source, finding = material.source(), material.finding()
        if material.kind is ResultKind.HEAT_MAP:
            array, heat_map = material.heat_map()
            return secondary_capture(source, array, heat_map, finding)
        report = structured_report(source, finding)
        # Each report replaces the one before, back to the first; all of them come out the
        # same whenever they are built.
        for reading in material.subject.readings:
            report = updated_report(
                source,
                finding,
                reading.verdict,
                reading.reader,
                reading.read_at,
                report,
                organization=self._organization,
            )
        return report
