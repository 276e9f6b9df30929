"""The storage SCU behind ``triage send``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, _config
from pynetdicom.sop_class import Verification

from triage.errors import DicomError
from triage.identity import valid_uid

CALLING_AE_TITLE = "TRIAGE-SEND"


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one file.

    Attributes
    ----------
    path : Path
    accepted : bool
    explanation : str
        Empty if the receiver answered Success.
    """

    path: Path
    accepted: bool
    explanation: str = ""


class _NotTaken(DicomError):
    """The receiver is there, and does not take this kind of file."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A storage SCP.

    Attributes
    ----------
    host : str
    port : int
    ae_title : str
    """

    host: str
    port: int
    ae_title: str

    def __str__(self) -> str:
        """As an administrator writes it."""
        return f"{self.ae_title} at {self.host} port {self.port}"


def echo(
    destination: Destination, timeout: float = 10.0, calling_ae_title: str = CALLING_AE_TITLE
) -> None:
    """C-ECHO a receiver.

    Raises
    ------
    DicomError
        It does not answer Success.
    """
    ae = AE(calling_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = timeout
    ae.add_requested_context(Verification)
    association = _associate(ae, destination)
    try:
        status = association.send_c_echo()
        if status.get("Status") != 0x0000:
            raise DicomError(f"{destination} did not answer C-ECHO with Success")
    finally:
        association.release()


def send(paths: Sequence[Path], destination: Destination) -> Iterator[Sent]:
    """Send files, and the files in folders, each over an association that suits it.

    Yields
    ------
    Sent
        One per file, in order. The data set goes out byte for byte as it is in the file.

    Raises
    ------
    DicomError
        No association can be had.
    """
    # The library's switch for sending a file's own bytes instead of encoding them anew.
    _config.STORE_SEND_CHUNKED_DATASET = True
    association = None
    context: tuple[str, str] | None = None
    try:
        for path in _files(paths):
            try:
                wanted = _context(path)
            except DicomError as error:
                yield Sent(path, accepted=False, explanation=str(error))
                continue
            if association is None or wanted != context or not association.is_established:
                if association is not None and association.is_established:
                    association.release()
                ae = AE(CALLING_AE_TITLE)
                ae.add_requested_context(*wanted)
                ae.maximum_pdu_size = 131_072
                try:
                    association, context = _associate(ae, destination), wanted
                except _NotTaken as error:
                    yield Sent(path, accepted=False, explanation=str(error))
                    continue
            yield _store(association, path)
    finally:
        if association is not None and association.is_established:
            association.release()


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*.dcm") if p.is_file())
        else:
            yield path


def _context(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    try:
        header = dcmread(path, stop_before_pixels=True)
        sop_class, syntax = str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
    except OSError as error:
        raise DicomError(f"cannot be read: {error.strerror}") from error
    except (InvalidDicomError, AttributeError) as error:
        raise DicomError("is not a DICOM file (PS3.10)") from error
    # A boundary: pydicom raises what it likes on a broken file.
    except Exception as error:
        raise DicomError(f"is damaged ({type(error).__name__})") from error
    if not (valid_uid(sop_class) and valid_uid(syntax)):
        raise DicomError("is damaged (its SOP class or transfer syntax is no UID)")
    return sop_class, syntax


def _associate(ae: AE, destination: Destination):  # type: ignore[no-untyped-def]
    try:
        association = ae.associate(
            destination.host, destination.port, ae_title=destination.ae_title
        )
    except OSError as error:
        raise DicomError(f"{destination} cannot be reached: {error.strerror}") from error
    if association.is_established:
        return association
    if association.is_rejected:
        answer = association.acceptor.primitive
        raise DicomError(f"{destination} rejected the association: {answer.reason_str}")
    if association.rejected_contexts:
        raise _NotTaken("the receiver does not take its SOP class in its transfer syntax")
    raise DicomError(
        f"no answer from {destination}: is `triage serve` running there, and are host and port "
        "right?"
    )


def _store(association, path: Path) -> Sent:  # type: ignore[no-untyped-def]
    try:
        answer = association.send_c_store(path)
    except (ValueError, RuntimeError, OSError) as error:
        return Sent(path, accepted=False, explanation=" ".join(str(error).split()))
    status = answer.get("Status")
    if status is None:
        # The library may not have noticed yet, and would wait long for the next answer.
        association.abort()
        return Sent(path, accepted=False, explanation="the receiver ended the association")
    if status == 0x0000:
        return Sent(path, accepted=True)
    comment = answer.get("ErrorComment", "no comment")
    return Sent(path, accepted=False, explanation=f"refused with 0x{status:04X}: {comment}")
