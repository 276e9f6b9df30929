"""Durable instance files.

A file is named after the SHA-256 of the data set's bytes as they were received, so no
text from the wire ever names a file, equal data sets are one file, and a file can be
checked against its own name. ``quarantine`` keeps data sets that came under a SOP
Instance UID that another data set already had, ``results`` what is delivered, so that
every attempt sends the same bytes.
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydicom import Dataset, dcmread

from triage.durable import keep_folder, make_folder, sync
from triage.errors import PixelsError, SpoolError

Place = Literal["instances", "quarantine", "results"]

_META_START = 132
_META_LENGTH = struct.Struct("<HH2sHI")
"""File Meta Information Group Length (0002,0000), the first element after the preamble."""


def digest_of(data: bytes | memoryview) -> str:
    """SHA-256 of an encoded data set without file meta information, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Spool:
    """A folder of instance files.

    Parameters
    ----------
    folder : Path
        Made by :meth:`prepare`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._certain: set[Path] = set()
        """Folders whose names this process has synced, whoever made them."""

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
        except OSError as error:
            raise SpoolError(
                f"the spool {self._folder} cannot be written: {error.strerror}: make it "
                "writable for this user, or set TRIAGE_HOME to another folder"
            ) from error

    def reachable(self) -> None:
        """Look whether the folder is there.

        Raises
        ------
        SpoolError
            It is not, or may not be written.
        """
        if not (self._folder.is_dir() and os.access(self._folder, os.W_OK)):
            raise SpoolError(f"the spool {self._folder} is not there, or may not be written")

    def put(
        self, digest: str, content: bytes | Sequence[bytes], place: Place = "instances"
    ) -> Path:
        """Keep a data set; when this returns, it survives losing power.

        Parameters
        ----------
        digest : str
            :func:`digest_of` the data set; of a result, of the whole file.
        content : bytes or sequence of bytes
            The whole file: preamble, file meta information (PS3.10 7.1) and the data set
            exactly as it was received. In parts, so that nobody needs to join large ones.
        place : {'instances', 'quarantine', 'results'}

        Raises
        ------
        SpoolError
            It cannot be written; nothing is left behind.
        """
        target = self.path(digest, place)
        temporary = None
        try:
            self._keep_folders(target.parent)
            if target.exists():  # written by another thread, which may not have synced yet
                sync(target.parent)
                return target
            make_folder(self._incoming)  # somebody may have cleaned up too much
            descriptor, temporary = tempfile.mkstemp(dir=self._incoming)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
            sync(target.parent)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise SpoolError(f"the spool cannot keep an instance: {error.strerror}") from error
        return target

    def _keep_folders(self, folder: Path) -> None:
        """Have a folder below the spool's that survives losing power, with all above it."""
        if folder in self._certain and folder.is_dir():
            return
        for level in (self._folder, folder.parent, folder):
            keep_folder(level)
        self._certain.add(folder)

    def instance(self, digest: str) -> Dataset:
        """A kept instance, its pixels not yet decoded.

        Raises
        ------
        SpoolError
            Its file is missing, unreadable or damaged.
        PixelsError
            Its data set came damaged, behind what the receiver has read of it.
        """
        path = self.path(digest)
        try:
            return dcmread(path)
        except FileNotFoundError as error:
            raise SpoolError(
                f"instance file {path} is not there: it was removed by `triage retention run`, as "
                "the exam's events say, or restore it from backup"
            ) from error
        except MemoryError:
            raise
        # A boundary: pydicom raises what it likes, an OSError for a data set that ends early.
        except Exception as error:
            if not self.intact(digest):
                why = getattr(error, "strerror", None) or "it is damaged"
                raise SpoolError(
                    f"instance file {path} cannot be read ({why}): restore it from backup"
                ) from error
            raise PixelsError(
                "DATA_SET_UNDECODABLE", f"the data set cannot be decoded ({type(error).__name__})"
            ) from error

    def intact(self, digest: str) -> bool:
        """Whether an instance file is there, can be read and still has its digest."""
        try:
            with self.path(digest).open("rb") as file:
                start = file.read(_META_START + _META_LENGTH.size)
                if start[128:_META_START] != b"DICM":
                    return False
                group, element, vr, _, length = _META_LENGTH.unpack(start[_META_START:])
                if (group, element, vr) != (2, 0, b"UL"):
                    return False
                file.seek(length, os.SEEK_CUR)
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except (OSError, struct.error):
            return False

    def remove(self, digest: str) -> None:
        """Remove an instance file for good, if it is there.

        Raises
        ------
        SpoolError
            It cannot be removed.
        """
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(
                f"{self.path(digest)} cannot be removed: {error.strerror}: make it writable for "
                "this user"
            ) from error

    def path(self, digest: str, place: Place = "instances") -> Path:
        """Where a data set is, if it is there."""
        return self._folder / place / digest[:2] / f"{digest}.dcm"
