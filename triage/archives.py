"""Archives that are read for the back file: folders, DICOMweb, and PACS by C-GET and C-MOVE.

Each lists images with a place that a worker reads them from. A PACS that is asked by C-GET or
C-MOVE sends them here, study by study, and they go to the workers from memory.
"""

import datetime as dt
import hashlib
import io
import os
import queue
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydicom import Dataset, dcmread

from triage.admission import SCORED_CLASSES
from triage.crew import Image, Place
from triage.decoders import LIBRARIES
from triage.errors import ArchiveError, ConfigError, LostImageError, PixelsError, TriageError
from triage.identity import valid_uid
from triage.peers import valid_ae_title

SECONDS = 30.0
"""So long an archive may take to answer anything."""

MODALITIES = ("CR", "DX")
"""What is asked for: a PACS holds much else."""

TOKEN = "TRIAGE_DICOMWEB_TOKEN"  # noqa: S105
"""The variable of a DICOMweb server's bearer token, if it wants one; workers need it, too."""

_DICOM_AT = re.compile(r"(?P<aet>[^@]+)@(?P<host>[^:]+):(?P<port>\d{1,5})")
_PAGE = 200


class Archive(Protocol):
    """Images that lie elsewhere."""

    def images(self, since: dt.datetime | None, until: dt.datetime | None) -> Iterator[Image]:
        """What there is, of studies from ``since`` on and before ``until``.

        Raises
        ------
        ArchiveError
            It cannot be reached or does not answer.
        """
        ...


def archive(text: str, calling_ae_title: str, move_port: int) -> Archive:
    """The archive that ``triage rescore --from`` names.

    Parameters
    ----------
    text : str
        ``folder:PATH``, ``dicomweb:URL``, ``cget:AET@HOST:PORT`` or ``cmove:AET@HOST:PORT``.
    calling_ae_title : str
        How we call a PACS, and where it is to move to.
    move_port : int
        Where we listen for what a PACS moves; 0 for any.

    Raises
    ------
    ConfigError
        It is none of these.
    """
    kind, _, place = text.partition(":")
    if kind == "folder" and place:
        return Folder(Path(place))
    if kind == "dicomweb" and place.startswith(("http://", "https://")):
        if urlsplit(place).username:
            raise ConfigError("--from dicomweb:URL is kept with each score: no password in it")
        return Web(place.rstrip("/"))
    found = _DICOM_AT.fullmatch(place)
    if kind in {"cget", "cmove"} and found is not None:
        try:
            aet = valid_ae_title(found["aet"])
        except ValueError as error:
            raise ConfigError(f"--from {text}: {error}") from error
        pacs = (found["host"], int(found["port"]), aet)
        if kind == "cget":
            return Pacs(pacs, calling_ae_title, None)
        return Pacs(pacs, calling_ae_title, move_port)
    raise ConfigError(
        f"--from {text!r} is no archive: write folder:PATH, dicomweb:URL, cget:AET@HOST:PORT or "
        "cmove:AET@HOST:PORT"
    )


def place_of(source: str, where: str) -> Place | None:
    """The place of an image that was scored before; None where it would have to be sent again.

    Parameters
    ----------
    source : str
        As :func:`archive` takes it.
    where : str
        As the image's.
    """
    kind, _, place = source.partition(":")
    if kind == "folder":
        return InFile(Path(where))
    if kind == "dicomweb":
        return OnWeb(place.rstrip("/"), *where.split("/"))
    return None


def parse(content: Any) -> Dataset:
    """A data set of a file, or of what can be read like one.

    Raises
    ------
    PixelsError
        It is damaged, or no DICOM.
    """
    try:
        return dcmread(content)
    except MemoryError:
        raise
    # A boundary: pydicom raises what it likes.
    except Exception as error:
        raise PixelsError(
            "DATA_SET_UNDECODABLE", f"the data set cannot be decoded ({type(error).__name__})"
        ) from error


@dataclass(frozen=True, slots=True)
class InFile:
    """A file, by a path that workers have, too."""

    path: Path

    def read(self) -> Dataset:
        """The data set."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise LostImageError(f"{self.path.name} cannot be read: {error.strerror}") from error
        return parse(io.BytesIO(content))


@dataclass(frozen=True, slots=True)
class InMemory:
    """What a PACS has sent."""

    content: bytes

    def read(self) -> Dataset:
        """The data set."""
        return parse(io.BytesIO(self.content))


@dataclass(frozen=True, slots=True)
class OnWeb:
    """An instance of a DICOMweb server (PS3.18 10.4, WADO-RS)."""

    url: str
    study: str
    series: str
    instance: str

    def read(self) -> Dataset:
        """The data set, as it is stored there."""
        with _asking(self.url):
            found: Dataset = _client(self.url).retrieve_instance(
                self.study, self.series, self.instance, media_types=(("application/dicom", "*"),)
            )
            return found


@dataclass(frozen=True, slots=True)
class Folder:
    """The files below a folder. Each is opened for its UID; what is no DICOM is passed over."""

    folder: Path

    def images(self, since: dt.datetime | None, until: dt.datetime | None) -> Iterator[Image]:
        """Every DICOM file, by its path."""
        if not self.folder.is_dir():
            raise ArchiveError(f"there is no folder {self.folder}")
        for path in _files(self.folder):
            name, day = _identity(path)
            if name and _within(day, since, until):
                yield Image(name, str(path), InFile(path.absolute()))


@dataclass(frozen=True, slots=True)
class Web:
    """A DICOMweb server: QIDO-RS lists, and each worker fetches its own by WADO-RS."""

    url: str

    def images(self, since: dt.datetime | None, until: dt.datetime | None) -> Iterator[Image]:
        """Every instance of CR and DX series."""
        client = _client(self.url)
        for study in self._all(client.search_for_studies, _query(since, until)):
            uid = str(study.StudyInstanceUID)
            for modality in MODALITIES:
                wanted = {"Modality": modality}
                for series in self._all(client.search_for_series, wanted, uid):
                    inner = str(series.SeriesInstanceUID)
                    for each in self._all(client.search_for_instances, {}, uid, inner):
                        instance = str(each.SOPInstanceUID)
                        where = f"{uid}/{inner}/{instance}"
                        yield Image(instance, where, OnWeb(self.url, uid, inner, instance))

    def _all(self, search: Any, wanted: dict[str, str], *within: str) -> Iterator[Dataset]:
        """All pages of an answer; a server may give fewer than it was asked for."""
        seen: set[str] = set()
        while True:
            with _asking(self.url):
                page = search(*within, limit=_PAGE, offset=len(seen), search_filters=wanted)
            new = 0
            for each in page:
                found = Dataset.from_json(each)
                key = str(found.get("SOPInstanceUID") or found.get("SeriesInstanceUID") or "")
                key = f"{found.get('StudyInstanceUID')}/{key}"
                if key not in seen:
                    seen.add(key)
                    new += 1
                    yield found
            if not new:
                return


@dataclass(frozen=True, slots=True)
class Pacs:
    """A PACS by C-FIND, and C-GET or C-MOVE (PS3.4 C.4), study by study.

    Attributes
    ----------
    pacs : tuple of str, int, str
        Host, port and AE title.
    calling_ae_title : str
    move_port : int or None
        Where we listen for C-MOVE's stores; None for C-GET.
    """

    pacs: tuple[str, int, str]
    calling_ae_title: str
    move_port: int | None

    def images(self, since: dt.datetime | None, until: dt.datetime | None) -> Iterator[Image]:
        """Every CR and DX instance that it sends."""
        from pynetdicom import AE, build_role, evt
        from pynetdicom.sop_class import (
            StudyRootQueryRetrieveInformationModelFind as Find,
        )
        from pynetdicom.sop_class import (
            StudyRootQueryRetrieveInformationModelGet as Get,
        )
        from pynetdicom.sop_class import (
            StudyRootQueryRetrieveInformationModelMove as Move,
        )

        came: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

        def store(event: Any) -> int:
            came.put((str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()))
            return 0x0000

        stored = [(evt.EVT_C_STORE, store)]
        syntaxes = [str(syntax) for syntax in LIBRARIES]
        ae = AE(self.calling_ae_title)
        ae.acse_timeout = ae.connection_timeout = ae.dimse_timeout = ae.network_timeout = SECONDS
        ae.add_requested_context(Find)
        with self._association(ae) as association:
            series = self._series(association, Find, since, until)
        ae.requested_contexts = []
        ae.add_requested_context(Get if self.move_port is None else Move)
        roles, server = [], None
        for sop_class in sorted(SCORED_CLASSES):
            if self.move_port is None:
                for syntax in syntaxes:  # each by itself: an acceptor picks one of a context
                    ae.add_requested_context(sop_class, syntax)
                roles.append(build_role(sop_class, scp_role=True))
            else:
                ae.add_supported_context(sop_class, syntaxes)
        if self.move_port is not None:
            server = self._listen(ae, stored)
        try:
            for uid, study in series:
                # One for each: the workers may take longer than a PACS keeps an idle one.
                with self._association(ae, ext_neg=roles, evt_handlers=stored) as association:
                    wanted = Dataset()
                    wanted.QueryRetrieveLevel = "SERIES"
                    wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study, uid
                    if self.move_port is None:
                        answers = association.send_c_get(wanted, Get)
                    else:
                        answers = association.send_c_move(wanted, self.calling_ae_title, Move)
                    self._sent(answers)
                while not came.empty():
                    instance, content = came.get()
                    yield Image(instance, f"{study}/{uid}/{instance}", InMemory(content))
        finally:
            if server is not None:
                server.shutdown()

    @contextmanager
    def _association(self, ae: Any, **more: Any) -> Iterator[Any]:
        host, port, aet = self.pacs
        association = ae.associate(host, port, ae_title=aet, **more)
        if not association.is_established:
            raise ArchiveError(
                f"{aet} at {host} port {port} gives no association: is it running there, and does "
                f"it know {self.calling_ae_title}?"
            )
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _listen(self, ae: Any, handlers: Any) -> Any:
        try:
            return ae.start_server(("", self.move_port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise ArchiveError(
                f"port {self.move_port} for what the PACS moves here cannot be had: "
                f"{error.strerror}: set --move-port to a free one that the PACS knows"
            ) from error

    def _series(
        self, association: Any, model: Any, since: dt.datetime | None, until: dt.datetime | None
    ) -> list[tuple[str, str]]:
        """Series and study of all CR and DX."""
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "STUDY"
        wanted.StudyInstanceUID = ""
        wanted.StudyDate = _query(since, until).get("StudyDate", "")
        studies = [str(found.StudyInstanceUID) for found in self._find(association, wanted, model)]
        series: list[tuple[str, str]] = []
        for study in studies:
            wanted = Dataset()
            wanted.QueryRetrieveLevel = "SERIES"
            wanted.StudyInstanceUID, wanted.SeriesInstanceUID, wanted.Modality = study, "", ""
            for found in self._find(association, wanted, model):
                if found.get("Modality") in MODALITIES:
                    series.append((str(found.SeriesInstanceUID), study))  # noqa: PERF401
        return series

    def _find(self, association: Any, wanted: Dataset, model: Any) -> list[Dataset]:
        found = []
        for status, identifier in association.send_c_find(wanted, model):
            code = status.get("Status")
            if code in {0xFF00, 0xFF01} and identifier is not None:
                found.append(identifier)
            elif code != 0x0000:
                raise ArchiveError(f"{self.pacs[2]} does not answer C-FIND: {_status(code)}")
        return found

    def _sent(self, answers: Iterable[tuple[Dataset, Dataset | None]]) -> None:
        way = "C-GET" if self.move_port is None else "C-MOVE"
        for status, _ in answers:
            code, failed = status.get("Status"), status.get("NumberOfFailedSuboperations") or 0
            # A warning is some that failed: else they would be missing silently.
            if code not in {0xFF00, 0x0000} or failed:
                told = f"{failed} failed" if failed else _status(code)
                unknown = ": it does not know where that is" if code == 0xA801 else ""
                raise ArchiveError(
                    f"{self.pacs[2]} does not send a series to {self.calling_ae_title} by {way} "
                    f"({told}){unknown}"
                )


def _status(code: int | None) -> str:
    return "it ended the association" if code is None else f"status 0x{code:04X}"


def _client(url: str) -> Any:
    from dicomweb_client import DICOMwebClient
    from dicomweb_client.session_utils import create_session

    session = create_session()
    token = os.environ.get(TOKEN, "")
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    client = DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
    return client


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Errors of the library as ours: of one image, or of the archive."""
    import requests

    try:
        yield
    except requests.HTTPError as error:
        code = 0 if error.response is None else error.response.status_code
        if code in {404, 406, 410, 415}:
            raise LostImageError(f"the archive does not give it (HTTP {code})") from error
        hint = f": is {TOKEN} set and right?" if code in {401, 403} else ""
        raise ArchiveError(f"{url} answers HTTP {code}{hint}") from error
    except requests.RequestException as error:
        raise ArchiveError(f"{url} cannot be reached ({type(error).__name__})") from error
    except TriageError:
        raise
    # A boundary: what the library raises on an answer that it cannot read.
    except Exception as error:
        raise LostImageError(
            f"the archive's answer cannot be read ({type(error).__name__})"
        ) from error


def _query(since: dt.datetime | None, until: dt.datetime | None) -> dict[str, str]:
    """Study Date by range matching (PS3.4 C.2.2.2.5); the day of ``until`` is not in it."""
    if since is None and until is None:
        return {}
    first = "" if since is None else f"{since:%Y%m%d}"
    last = "" if until is None else f"{until - dt.timedelta(microseconds=1):%Y%m%d}"
    return {"StudyDate": f"{first}-{last}"}


def _within(day: str, since: dt.datetime | None, until: dt.datetime | None) -> bool:
    """Whether a Study Date is meant; without one it is, unless days were asked for."""
    if since is None and until is None:
        return True
    first, _, last = _query(since, until)["StudyDate"].partition("-")
    return bool(day) and (not first or day >= first) and (not last or day <= last)


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, in order, without holding all names at once."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _identity(path: Path) -> tuple[str, str]:
    """SOP Instance UID, or else the file's SHA-256, and Study Date; empty if it is no DICOM."""
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return "", ""
        header = dcmread(path, specific_tags=["SOPInstanceUID", "StudyDate"])
        uid, day = str(header.get("SOPInstanceUID", "")), str(header.get("StudyDate", ""))
        if valid_uid(uid):
            return uid, day
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    # A boundary: a damaged header is an image, too, and will be told to be damaged.
    except Exception:  # noqa: BLE001
        day = ""
    return hashlib.sha256(path.read_bytes()).hexdigest(), day
