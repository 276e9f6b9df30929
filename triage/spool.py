"""Durable instance files.

A file is named after the SHA-256 of the data set's bytes as they were received, so no
text from the wire ever names a file, equal data sets are one file, and a file can be
checked against its own name. They are in a :class:`~triage.store.Store`: a folder, or a bucket
that many nodes share. ``quarantine`` keeps data sets that came under a SOP Instance UID that
another data set already had, ``results`` what is delivered, so that every attempt sends the same
bytes.
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from pydicom import Dataset, dcmread

from triage.durable import begin_writing, make_folder
from triage.errors import PixelsError, SpoolError, SpoolOutage
from triage.store import Folder, Store

Place = Literal["instances", "quarantine", "results"]

PART = 524_288
"""Bytes of a data set that are hashed and written at once: they stay in the processor's cache, and
what is done for each fragment of a console's is not worth its system calls."""

WRITTEN_AT_ONCE = 4 * PART
"""Bytes that the disk is asked to begin with at once: more often costs more than it saves."""

_META_START = 132
_META_LENGTH = struct.Struct("<HH2sHI")
"""File Meta Information Group Length (0002,0000), the first element after the preamble."""


def digest_of(data: bytes | memoryview) -> str:
    """SHA-256 of an encoded data set without file meta information, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Spool:
    """Instance files.

    Parameters
    ----------
    folder : Path
        Of this node, made by :meth:`prepare`: where data sets arrive.
    store : Store, optional
        Where they are kept; the folder, if none is given.
    """

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self.store: Store = Folder(folder) if store is None else store

    def prepare(self) -> None:
        """Make the folders and sweep what an interrupted receiver left half written.

        Only the receiver calls this, before it listens.

        Raises
        ------
        SpoolError
            The folder cannot be written.
        """
        try:
            make_folder(self._incoming)
            for leftover in self._incoming.iterdir():
                leftover.unlink()
            with tempfile.NamedTemporaryFile(dir=self._incoming):
                pass
            self.store.prepare()
        except OSError as error:
            raise SpoolError(
                f"the spool {self._folder} cannot be written: {error.strerror}: make it "
                "writable for this user, or set TRIAGE_HOME to another folder"
            ) from error

    def reachable(self) -> None:
        """Look whether the files' place is there.

        Raises
        ------
        SpoolError
            It is not, or may not be written.
        """
        try:
            self.store.reachable()
        except OSError as error:
            raise SpoolError(f"the spool cannot be written: {error.strerror}") from error

    def arriving(self, meta: bytes = b"") -> "Arriving":
        """A file for a data set that begins to arrive, kept by :meth:`keep` or discarded.

        Parameters
        ----------
        meta : bytes
            What the file has before its data set: preamble and file meta information
            (PS3.10 7.1).
        """
        return Arriving(self._incoming, meta)

    def keep(self, arrived: "Arriving", digest: str, place: Place = "instances") -> None:
        """Keep what has arrived; when this returns, it survives losing power.

        Parameters
        ----------
        arrived : Arriving
            May be kept in another place, too; discarded by who has it.
        digest : str
            Of the data set; of a result, of the whole file.
        place : {'instances', 'quarantine', 'results'}

        Raises
        ------
        SpoolError
            It cannot be written; nothing is left behind.
        """
        try:
            self.store.keep(arrived, name_of(digest, place))
        except OSError as error:
            raise SpoolError(f"the spool cannot keep an instance: {error.strerror}") from error

    def put(
        self, digest: str, content: bytes | Sequence[bytes], place: Place = "instances"
    ) -> None:
        """Keep a file that is in memory, as :meth:`keep` does.

        Parameters
        ----------
        digest : str
            :func:`digest_of` the data set; of a result, of the whole file.
        content : bytes or sequence of bytes
            The whole file, in parts so that nobody needs to join large ones.
        place : {'instances', 'quarantine', 'results'}

        Raises
        ------
        SpoolError
            It cannot be written; nothing is left behind.
        """
        arriving = self.arriving()
        try:
            for part in [content] if isinstance(content, bytes) else content:
                arriving.write(part)
            self.keep(arriving, digest, place)
        finally:
            arriving.discard()

    def instance(self, digest: str) -> Dataset:
        """A kept instance, its pixels not yet decoded.

        Raises
        ------
        SpoolError
            Its file is missing, unreadable or damaged.
        SpoolOutage
            The store cannot be reached; the file may well be there.
        PixelsError
            Its data set came damaged, behind what the receiver has read of it.
        """
        where = self.where(digest)
        try:
            with self.store.open(name_of(digest)) as file:
                return dcmread(file)
        except FileNotFoundError as error:
            raise SpoolError(
                f"instance file {where} is not there: it was removed by `triage retention run`, as "
                "the exam's events say, or restore it from backup"
            ) from error
        except (MemoryError, SpoolOutage):
            raise
        # A boundary: pydicom raises what it likes, an OSError for a data set that ends early.
        except Exception as error:
            if not self.intact(digest):
                why = getattr(error, "strerror", None) or "it is damaged"
                raise SpoolError(
                    f"instance file {where} cannot be read ({why}): restore it from backup"
                ) from error
            raise PixelsError(
                "DATA_SET_UNDECODABLE", f"the data set cannot be decoded ({type(error).__name__})"
            ) from error

    def intact(self, digest: str) -> bool:
        """Whether an instance file is there, can be read and still has its digest.

        Raises
        ------
        SpoolOutage
            The store cannot be reached.
        """
        try:
            with self.store.open(name_of(digest)) as file:
                return data_digest(file) == digest
        except OSError:
            return False

    def size(self, digest: str, place: Place = "instances") -> int | None:
        """Bytes of a kept file; None if it is not there.

        Raises
        ------
        SpoolError
            That cannot be told now.
        """
        try:
            return self.store.size(name_of(digest, place))
        except OSError as error:
            raise SpoolError(
                f"{self.where(digest, place)} cannot be looked at: {error.strerror}"
            ) from error

    @contextmanager
    def file(self, digest: str, place: Place = "instances") -> Iterator[Path]:
        """A kept file as one of this machine's, while it is needed.

        Raises
        ------
        SpoolError
            It is missing or cannot be read.
        """
        with ExitStack() as held:
            try:
                path = held.enter_context(self.store.file(name_of(digest, place)))
            except OSError as error:
                raise SpoolError(
                    f"{self.where(digest, place)} cannot be read: {error.strerror}"
                ) from error
            yield path

    def remove(self, digest: str) -> None:
        """Remove an instance file for good, if it is there.

        Raises
        ------
        SpoolError
            It cannot be removed.
        """
        try:
            self.store.remove(name_of(digest))
        except OSError as error:
            raise SpoolError(
                f"{self.where(digest)} cannot be removed: {error.strerror}: make it writable for "
                "this user"
            ) from error

    def where(self, digest: str, place: Place = "instances") -> str:
        """Where a file is, for a person."""
        return self.store.where(name_of(digest, place))

    def path(self, digest: str, place: Place = "instances") -> Path:
        """Where a file is, if the spool is its folder."""
        return self._folder / name_of(digest, place)


def name_of(digest: str, place: Place = "instances") -> str:
    """What a store calls a data set."""
    return f"{place}/{digest[:2]}/{digest}.dcm"


def data_digest(file: IO[bytes]) -> str | None:
    """SHA-256 of the data set in an instance file; None if that is no such file."""
    start = file.read(_META_START + _META_LENGTH.size)
    if start[128:_META_START] != b"DICM" or len(start) < _META_START + _META_LENGTH.size:
        return None
    group, element, vr, _, length = _META_LENGTH.unpack(start[_META_START:])
    if (group, element, vr) != (2, 0, b"UL"):
        return None
    file.seek(length, os.SEEK_CUR)
    hashed = hashlib.sha256()
    while chunk := file.read(1 << 20):
        hashed.update(chunk)
    return hashed.hexdigest()


class Arriving:
    """A file whose data set arrives; it has no name that anybody looks for yet.

    Writing never raises: a console is told when it waits for its answer, so what the disk
    refuses comes up in :meth:`Spool.keep`.

    Parameters
    ----------
    folder : Path
    meta : bytes
        Preamble and file meta information.
    """

    def __init__(self, folder: Path, meta: bytes) -> None:
        self._start, self._hash, self.size = len(meta), hashlib.sha256(), 0
        """The data set's bytes up to now."""
        self._asked = 0
        """How many of them when the disk was last asked to begin."""
        self._part = bytearray()
        """What is gathered until it is worth a system call."""
        self._descriptor = -1
        self._path: Path | None = None
        self._kept: Path | None = None
        self._error: OSError | None = None
        try:
            make_folder(folder)  # somebody may have cleaned up too much
            self._descriptor, path = tempfile.mkstemp(dir=folder)
            self._path = Path(path)
            self._append(meta)
        except OSError as error:
            self._fail(error)

    def write(self, content: bytes | memoryview) -> None:
        """Take the next bytes of the data set."""
        self.size += len(content)
        self._part += content
        if len(self._part) >= PART:
            self._finish()

    @property
    def digest(self) -> str:
        """:func:`digest_of` what has arrived."""
        self._finish()
        return self._hash.hexdigest()

    def read(self, start: int, count: int) -> bytes:
        """Bytes of the data set, fewer at its end.

        Raises
        ------
        SpoolError
            The disk did not take them, or does not give them back.
        """
        try:
            self._finish()
            self._check()
            return os.pread(self._descriptor, count, self._start + start)
        except OSError as error:
            raise SpoolError(f"the spool cannot keep an instance: {error.strerror}") from error

    def chunks(self, count: int) -> Iterator[bytes]:
        """The data set in parts of so many bytes; raises as :meth:`read`."""
        for start in range(0, self.size, count):
            yield self.read(start, count)

    def become(self, target: Path) -> None:
        """Take a name, or another one, with the content certainly on the disk.

        Raises
        ------
        OSError
            The disk did not take it.
        """
        self._finish()
        self._check()
        if self._kept is not None:
            target.hardlink_to(self._kept)
        elif self._path is not None:
            os.fsync(self._descriptor)
            self._path.replace(target)
            self._path, self._kept = None, target

    def content(self) -> IO[bytes]:
        """The whole file for reading, with what is before the data set.

        Raises
        ------
        OSError
            The disk did not take it.
        """
        self._finish()
        self._check()
        file = os.fdopen(os.dup(self._descriptor), "rb")
        file.seek(0)
        return file

    def discard(self) -> None:
        """Close, and leave nothing behind that has no name; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError):  # the receiver sweeps when it starts
                path.unlink()
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)

    def _finish(self) -> None:
        """Take what was gathered."""
        if self._part:
            self._take(self._part)
            self._part.clear()

    def _take(self, content: bytes | bytearray | memoryview) -> None:
        self._hash.update(content)
        if self._error is None:
            try:
                self._append(content)
            except OSError as error:
                self._fail(error)
            else:
                if self.size - self._asked >= WRITTEN_AT_ONCE:
                    begin_writing(self._descriptor)
                    self._asked = self.size

    def _append(self, content: bytes | bytearray | memoryview) -> None:
        written = os.write(self._descriptor, content)
        while written < len(content):
            written += os.write(self._descriptor, memoryview(content)[written:])

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, error: OSError) -> None:
        self._error = error
        self.discard()
