"""The arrays of kept objects: normalized once, then kept for training."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triage.durable import make_folder, write_whole
from triage.errors import DataError, PixelsError, SpoolError
from triage.pixels import SIDE, fingerprint, normalize
from triage.spool import Spool

HalfArray = npt.NDArray[np.float16]


class Pictures:
    """The arrays of kept objects, normalized once and then kept on disk.

    Parameters
    ----------
    spool : Spool
    folder : Path
        Of the arrays; each is named after its object's digest and the pixel fingerprint.
    """

    def __init__(self, spool: Spool, folder: Path) -> None:
        self._spool, self._folder = spool, folder
        self.fingerprint = fingerprint()

    def array(self, digest: str) -> HalfArray:
        """float16, shape (256, 256), 0 to 1: half precision keeps 11 bits of grey.

        Raises
        ------
        DataError
            The object is missing or damaged and no array was kept, or it has no picture.
        """
        path = self.path(digest)
        kept = _load(path)
        if kept is not None:
            return kept
        if not self._spool.intact(digest):
            raise DataError(
                f"object {digest[:12]} is missing from the spool or damaged: restore "
                f"{self._spool.where(digest)} from a backup"
            )
        try:
            array = normalize(self._spool.instance(digest)).array.astype(np.float16)
        except (PixelsError, SpoolError) as error:
            raise DataError(f"object {digest[:12]} has no picture: {error}") from error
        try:
            make_folder(path.parent)
            write_whole(path, lambda file: np.savez(file, array=array))
        except OSError as error:
            raise DataError(f"the array {path} cannot be kept: {error.strerror}") from error
        return array

    def stack(self, digests: Sequence[str]) -> HalfArray:
        """The arrays of several objects, float16, shape (objects, 256, 256), 0 to 1.

        They lie in a file without a name, whose pages the system takes from memory when others
        need it, so that what is held at once does not grow with the labels.

        Raises
        ------
        DataError
            As :meth:`array`; or there is no room.
        """
        if not digests:
            return np.empty((0, SIDE, SIDE), np.float16)
        shape = (len(digests), SIDE, SIDE)
        try:
            make_folder(self._folder)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Else a full disk ends the process by SIGBUS, at whatever row it is met.
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * 2)
                out = np.memmap(file, np.float16, "r+", shape=shape)
        except OSError as error:
            raise DataError(
                f"{len(digests)} arrays cannot be laid out in {self._folder}: {error.strerror}"
            ) from error
        for row, digest in enumerate(digests):
            out[row] = self.array(digest)
        return out

    def path(self, digest: str) -> Path:
        """Where an array is, if it is kept."""
        version = self.fingerprint.removeprefix("sha256:")[:16]
        return self._folder / version / digest[:2] / f"{digest}.npz"

    def has(self, digest: str) -> bool:
        """Whether an array is kept, of whatever pixel pipeline."""
        return any(self._folder.glob(f"*/{digest[:2]}/{digest}.npz"))

    def forget(self, digest: str) -> None:
        """Remove an array, of whatever pixel pipeline."""
        for path in self._folder.glob(f"*/{digest[:2]}/{digest}.npz"):
            path.unlink(missing_ok=True)


def _load(path: Path) -> HalfArray | None:
    """A kept array; None if there is none, or the file is damaged (zip has a CRC-32)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            array: HalfArray = stored["array"]
    except FileNotFoundError:
        return None
    # A boundary: NumPy and zip raise what they like on a damaged file.
    except Exception:  # noqa: BLE001
        return None
    return array if array.shape == (SIDE, SIDE) and array.dtype == np.float16 else None
