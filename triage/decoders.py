"""Proof, by decoding a tiny picture, that a transfer syntax can be read on this machine.

The receiver offers only what is proven. Decoders are native code that can end or hang its
process, so that they are tried in one of their own (``python -m triage.decoders``).
"""

import base64
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
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

from triage.pixels import JPEG_PROGRESSIVE, decoded

PROOFS = Path(__file__).with_name("decoder_proofs.json")
"""One picture in every compressed syntax; ``tests/make_decoder_proofs.py`` drew it."""

ROWS, COLUMNS = 32, 40

LOSSY_SHARE = 0.02
"""Of the full range: how far any pixel may be off after a lossy syntax."""

SECONDS = 30.0
"""A process that has proven nothing more for so long is given up."""

LIBRARIES: Mapping[UID, str] = {
    ExplicitVRLittleEndian: "pydicom",
    ImplicitVRLittleEndian: "pydicom",
    DeflatedExplicitVRLittleEndian: "pydicom",
    ExplicitVRBigEndian: "pydicom",
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "python-gdcm",
    JPEGLosslessSV1: "python-gdcm",
    JPEGLossless: "python-gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg-openjpeg",
    JPEG2000: "pylibjpeg-openjpeg",
    HTJ2KLossless: "pylibjpeg-openjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg-openjpeg",
    HTJ2K: "pylibjpeg-openjpeg",
    RLELossless: "pydicom",
    JPEG_PROGRESSIVE: "pillow",
}
"""The library behind each syntax that can be proven."""

_LOSSY = {
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEG_PROGRESSIVE,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
}


def expected(bits: int) -> npt.NDArray[np.uint16]:
    """The picture of a proof: a ramp over the full range, shape (ROWS, COLUMNS)."""
    ramp = np.linspace(0, (1 << bits) - 1, ROWS * COLUMNS)
    return np.rint(ramp).astype(np.uint16).reshape(ROWS, COLUMNS)


def prove(syntax: UID) -> None:
    """Decode the proof of a transfer syntax.

    Raises
    ------
    Exception
        Whatever the decoder raises; ValueError if it gives another picture.
    """
    dataset = _proof(syntax)
    wanted = expected(dataset.BitsStored).astype(np.int64)
    off = np.abs(decoded(dataset).astype(np.int64) - wanted).max()
    if off > (LOSSY_SHARE * wanted.max() if syntax in _LOSSY else 0):
        raise ValueError(f"the decoded picture is off by {off} of {wanted.max()}")


def _proof(syntax: UID) -> Dataset:
    """A data set whose Pixel Data are the proof's, as a reader of its file gets it."""
    bits, pixels = 12, expected(12).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    data = pixels.tobytes()
    if syntax.is_encapsulated:
        proof = json.loads(PROOFS.read_text())[syntax]
        bits, data = proof["bits"], encapsulate([base64.b64decode(proof["stream"])])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, UID("1.2.3")
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.add_new("PixelData", "OB" if syntax.is_encapsulated else "OW", data)
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    file.seek(0)
    return dcmread(file)


class Proving:
    """The proof of every syntax, going on in another process from now on."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "decoders")
        self._outcome: Future[dict[UID, str]] = self._pool.submit(_all, _in_child)

    def outcome(self) -> dict[UID, str]:
        """What became of each syntax; an empty text if it is proven, else why it is not."""
        try:
            return self._outcome.result()
        finally:
            self._pool.shutdown()


def _all(run: Callable[[list[UID]], Iterator[tuple[UID, str]]]) -> dict[UID, str]:
    """Try every syntax; one whose decoder ends its process keeps no other from being tried."""
    outcome: dict[UID, str] = {}
    while left := [syntax for syntax in LIBRARIES if syntax not in outcome]:
        told = dict(run(left))
        if not (outcome or told):  # not even the first, which needs no decoder
            return dict.fromkeys(left, "the process that tries decoders does not run")
        outcome.update(told)
        if len(told) < len(left):
            culprit = next(syntax for syntax in left if syntax not in told)
            outcome[culprit] = "its decoder ended the process, or did not end"
    return outcome


def _in_child(syntaxes: list[UID]) -> Iterator[tuple[UID, str]]:
    """Each syntax with its outcome, as far as the process lives to tell."""
    command = [sys.executable, "-m", "triage.decoders", *syntaxes]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=SECONDS, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired as error:
        told = error.stdout or b""
    for line in told.decode().splitlines():
        syntax, _, why = line.partition(" ")
        yield UID(syntax), why


def _main(syntaxes: list[str]) -> None:
    """Prove each syntax and print a line on it: the UID, and why not if it is not."""
    warnings.simplefilter("ignore")
    # Native libraries print what they like; what we print is a protocol.
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for syntax in syntaxes:
        try:
            prove(UID(syntax))
            why = ""
        # A boundary: decoders raise what they like, and so does the lack of them.
        except Exception as error:  # noqa: BLE001
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(syntax, why, file=ours, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
