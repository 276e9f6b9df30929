"""From stored pixel values to the array that a network is shown.

The way (PS3.3 C.11.1 and C.11.2, PS3.4 N.2): stored values, modality LUT or rescale, VOI
LUT or window, polarity, what is hidden, contrast stretch, resize. The steps that act on one
grey value at a time are composed into a table over the possible stored values (at most
65,536 of them) and the picture is read through it: a 10 MB radiograph costs a histogram
and a look-up, once more if it has margins, and one resize.

The result does not depend on how a picture was encoded. It does depend on the constants
in :data:`RECIPE`; their hash is the *fingerprint*, which a model version carries and
without which no array may be scored.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1

from triage.errors import PixelsError
from triage.identity import value_of
from triage.shutters import Mask, declared, margins

SIDE = 256
"""Rows and columns of a normalized array."""

TAIL = 0.005
"""The share of pixels that the contrast stretch lets saturate at either end."""

JPEG_PROGRESSIVE = UID("1.2.840.10008.1.2.4.55")
"""JPEG Full Progression, Non-Hierarchical (Processes 10 and 12); retired."""

MAX_PIXELS = 120_000_000
"""The largest picture that is decoded; a 43 x 43 cm detector at 0.1 mm has 18.5 million."""

RECIPE: Mapping[str, object] = MappingProxyType(
    {
        "revision": 2,
        "side": SIDE,
        "voi": "first VOI LUT item, else first window, else the stored range",
        "polarity": "photometric interpretation",
        "hidden": "padding, shutters, collimators and margins: not stretched, shown black",
        "stretch": {"after": "polarity", "tail": TAIL},
        "resize": "bilinear with support scaled to the reduction, aspect ratio not kept",
        "colour": "ITU-R 601 luma",
    }
)
"""What decides a normalized array. Change the code's effect and you change ``revision``."""

Array = npt.NDArray[np.float32]
"""float32, shape (256, 256), 0.0 (black) to 1.0 (white)."""


@cache
def fingerprint() -> str:
    """The name of this pixel pipeline: ``sha256:`` and 64 hexadecimal digits.

    Two programs with one fingerprint make the same array of the same picture, so a model
    trained by the one may score the arrays of the other.
    """
    text = json.dumps(dict(RECIPE), sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Normalized:
    """A picture as a network is shown it.

    Attributes
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 (black) to 1.0 (white)
    notes : tuple of str
        What was odd about the header, as codes from ``docs/reasons.md``; empty for most.
    """

    array: Array
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stored:
    """Decoded grey values, all of them in [low, high]."""

    values: npt.NDArray[np.integer]
    low: int
    high: int


def normalize(dataset: Dataset) -> Normalized:
    """Make the array of a radiograph.

    Parameters
    ----------
    dataset : pydicom.Dataset
        One frame with Pixel Data and file meta information (for the transfer syntax).

    Raises
    ------
    PixelsError
        With the reason ``PIXEL_DATA_ABSENT``, ``PIXEL_DATA_UNDECODABLE``,
        ``PICTURE_TOO_LARGE``, ``PHOTOMETRIC_UNSUPPORTED`` or ``PICTURE_BLANK``.
    """
    notes: list[str] = []
    stored = _decode(dataset)
    table = _display_table(dataset, stored, notes)
    if _inverted(dataset, notes):
        table = -table
    visible = declared(dataset, stored.values.shape, notes)
    array = _finish(stored, table, _padding(dataset, stored), visible)
    return Normalized(array, tuple(dict.fromkeys(notes)))


def normalize_file(path: Path) -> Array:
    """Make the array of a picture file (JPEG, PNG), as training sets have them.

    The file's grey values are taken as MONOCHROME2 stored values without a VOI, so the
    file and a DICOM object that wraps it give the same array.

    Raises
    ------
    PixelsError
        ``PIXEL_DATA_UNDECODABLE`` or ``PICTURE_BLANK``; the message names the file.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I;16")
            values = np.asarray(image if deep else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PixelsError(
            "PIXEL_DATA_UNDECODABLE", f"{path} is not a picture that can be read: {error}"
        ) from error
    stored = _Stored(values, 0, 65_535 if deep else 255)
    try:
        return _finish(stored, np.arange(stored.high + 1, dtype=np.float64), None, None)
    except PixelsError as error:
        raise PixelsError(error.reason, f"{path}: {error}") from error


def _decode(dataset: Dataset) -> _Stored:
    """Stored values of the single frame, colour turned into luma."""
    if "PixelData" not in dataset:
        raise PixelsError("PIXEL_DATA_ABSENT", "the data set has no Pixel Data (7FE0,0010)")
    rows, columns = _number(dataset, "Rows") or 0, _number(dataset, "Columns") or 0
    if rows * columns > MAX_PIXELS:
        raise PixelsError(
            "PICTURE_TOO_LARGE",
            f"{rows:.0f} x {columns:.0f} pixels; at most {MAX_PIXELS} pixels are decoded",
        )
    try:
        values = decoded(dataset)
    # A boundary: decoders written in C and C++ raise what they like on broken input.
    except Exception as error:
        raise PixelsError(
            "PIXEL_DATA_UNDECODABLE",
            f"Pixel Data cannot be decoded: {type(error).__name__}: {_one_line(error)}",
        ) from error
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        picture = Image.fromarray(values, "RGB")
        return _Stored(np.asarray(picture.convert("L")), 0, 255)
    if values.ndim != 2 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise PixelsError(
            "PHOTOMETRIC_UNSUPPORTED",
            f"Photometric Interpretation {photometric!r} with shape {values.shape} is not one "
            "grey or 8-bit RGB picture",
        )
    bits = int(dataset.BitsStored)
    if not 1 <= bits <= 16:
        raise PixelsError("PIXEL_DATA_UNDECODABLE", f"Bits Stored {bits} is not 1 to 16")
    signed = dataset.get("PixelRepresentation") == 1
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return _Stored(np.clip(values, low, high), low, high)


def decoded(dataset: Dataset) -> npt.NDArray[np.integer]:
    """Decode; color as RGB.

    pydicom decodes neither the retired progressive JPEG, which img2dcm and old gateways
    still write, nor lossy JPEG of 12 bits. A JPEG stream says itself how it is coded, so
    that a decoder reads it under the name of a syntax that pydicom gives it.
    """
    syntax, deep = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored > 8
    if syntax in {JPEGBaseline8Bit, JPEGExtended12Bit} and not deep:
        # GDCM gives the same values, and ends the process on some damaged streams.
        return pixel_array(dataset, decoding_plugin="pillow")
    if not (syntax == JPEG_PROGRESSIVE or (syntax == JPEGExtended12Bit and deep)):
        return pixel_array(dataset)
    renamed = Dataset(dataset)
    renamed.file_meta = FileMetaDataset()
    renamed.file_meta.TransferSyntaxUID = JPEGLosslessSV1 if deep else JPEGBaseline8Bit
    return pixel_array(renamed, decoding_plugin="gdcm" if deep else "pillow")


def _display_table(dataset: Dataset, stored: _Stored, notes: list[str]) -> npt.NDArray[np.float64]:
    """What each possible stored value is displayed as, before polarity."""
    values = np.arange(stored.low, stored.high + 1, dtype=np.float64)
    return _voi(dataset, _modality(dataset, values, notes), notes)


def _modality(
    dataset: Dataset, values: npt.NDArray[np.float64], notes: list[str]
) -> npt.NDArray[np.float64]:
    """Modality LUT or rescale (PS3.3 C.11.1)."""
    lut = _first_lut(dataset, "ModalityLUTSequence", values, notes)
    if lut is not None:
        return lut.apply(values)
    slope = _number(dataset, "RescaleSlope")
    intercept = _number(dataset, "RescaleIntercept")
    if slope == 0:
        notes.append("RESCALE_INVALID")
        slope = None
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _voi(
    dataset: Dataset, values: npt.NDArray[np.float64], notes: list[str]
) -> npt.NDArray[np.float64]:
    """The first VOI LUT, else the first window (PS3.3 C.11.2), else the values."""
    lut = _first_lut(dataset, "VOILUTSequence", values, notes)
    if lut is not None:
        return lut.apply(values)
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None:
        notes.append("VOI_ABSENT")
        return values
    function = str(value_of(dataset, "VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID" and width > 0:
        exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)), np.float64)
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width == 1:
        return np.where(values > center - 0.5, 1.0, 0.0)
    notes.append("VOI_INVALID")
    return values


@dataclass(frozen=True, slots=True)
class _Lut:
    first: int
    entries: npt.NDArray[np.float64]

    def apply(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        mapped: npt.NDArray[np.float64] = np.take(self.entries, index.astype(np.intp))
        return mapped


def _first_lut(
    dataset: Dataset, keyword: str, values: npt.NDArray[np.float64], notes: list[str]
) -> _Lut | None:
    """The first item's look-up table, or nothing (noted) if it is broken."""
    items = value_of(dataset, keyword)
    if not items:
        return None
    try:
        count, first, bits = (int(value) for value in items[0].LUTDescriptor)
        count = count % 65_536 or 65_536  # pydicom may have read it as signed
        data = items[0].LUTData
        if isinstance(data, bytes):
            little = dataset.file_meta.TransferSyntaxUID.is_little_endian
            data = np.frombuffer(data, "<u2" if little else ">u2")
        if bits == 8 and len(np.atleast_1d(data)) < count:  # packed two by two
            data = np.asarray(data, "<u2").view(np.uint8)
        entries = np.atleast_1d(np.asarray(data, np.float64))
        # Its sign is that of the values it maps, whatever VR it was read with.
        if values.min() < 0 and first >= 32_768:
            first -= 65_536
        elif values.min() >= 0 and first < 0:
            first += 65_536
        if not 8 <= bits <= 16 or len(entries) < count:
            raise ValueError(f"{count} entries of {bits} bits announced, {len(entries)} found")
    # A boundary: converting a malformed item raises what pydicom likes.
    except Exception:  # noqa: BLE001
        notes.append(
            "MODALITY_LUT_INVALID" if keyword == "ModalityLUTSequence" else "VOI_LUT_INVALID"
        )
        return None
    return _Lut(first, entries[:count])


def _inverted(dataset: Dataset, notes: list[str]) -> bool:
    """Whether low values are bright (PS3.3 C.7.6.3.1.2).

    Photometric Interpretation decides. Presentation LUT Shape ought to agree with it
    (PS3.3 C.8.11.3.1.2); where it does not, that is noted.
    """
    inverted = bool(dataset.get("PhotometricInterpretation") == "MONOCHROME1")
    shape = value_of(dataset, "PresentationLUTShape")
    if shape and (shape == "INVERSE") != inverted:
        notes.append("POLARITY_CONFLICT")
    return inverted


def _padding(dataset: Dataset, stored: _Stored) -> tuple[int, int] | None:
    """The inclusive range of stored values that are padding (PS3.3 C.7.5.1.1.2)."""
    first = _number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _number(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(int(value), stored) for value in (first, first if last is None else last)]
    return min(ends), max(ends)


def _as_stored(value: int, stored: _Stored) -> int:
    """A padding value as its pixels come out of the decoder."""
    if stored.low < 0 <= stored.high < value:
        return value - 65_536
    if stored.low == 0 and value < 0:
        return value + 65_536
    return value


def _finish(
    stored: _Stored,
    table: npt.NDArray[np.float64],
    padding: tuple[int, int] | None,
    visible: Mask | None,
) -> Array:
    """Hide what shows no patient, stretch the contrast, look the picture up, resize it."""
    # Where each pixel's value stands in the table; signed 16 bits would overflow.
    places = stored.values.astype(np.int32) - stored.low if stored.low else stored.values
    blank = np.zeros(len(table), np.bool_)
    if padding is not None:
        blank[max(padding[0] - stored.low, 0) : max(padding[1] - stored.low + 1, 0)] = True
    picture = _shown(places, table, blank, visible)
    box = margins(picture)
    if picture[box].size < picture.size:
        inside = np.zeros(picture.shape, np.bool_)
        inside[box] = True if visible is None else visible[box]
        picture = _shown(places, table, blank, inside)
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(small, np.float32), 0.0, 1.0)


def _shown(
    places: npt.NDArray[np.integer],
    table: npt.NDArray[np.float64],
    blank: npt.NDArray[np.bool_],
    visible: Mask | None,
) -> npt.NDArray[np.float32]:
    """The picture with its contrast stretched by what is visible, the rest black."""
    seen = places.ravel() if visible is None else places[visible]
    counts = np.where(blank, 0, np.bincount(seen, minlength=len(table)))
    black, white = _tails(table, counts)
    if not black < white:
        raise PixelsError("PICTURE_BLANK", "the picture has one grey value and shows nothing")
    shown = np.clip((table - black) / (white - black), 0.0, 1.0).astype(np.float32)
    shown[blank] = 0.0
    picture: npt.NDArray[np.float32] = shown[places]
    if visible is not None:
        picture[~visible] = 0.0
    return picture


def _tails(table: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The display values between which all but ``TAIL`` of the pixels at each end lie.

    Symmetric: negating the table swaps and negates the two, so MONOCHROME1 and
    MONOCHROME2 of one picture give one array.
    """
    used = np.flatnonzero(counts)
    if not len(used):
        return 0.0, 0.0
    order = used[np.argsort(table[used], kind="stable")]
    cumulated = np.cumsum(counts[order])
    total = int(cumulated[-1])
    spare = int(TAIL * total)
    lowest = order[int(np.searchsorted(cumulated, spare, side="right"))]
    above = np.cumsum(counts[order[::-1]])
    highest = order[::-1][int(np.searchsorted(above, spare, side="right"))]
    black, white = float(table[lowest]), float(table[highest])
    if not black < white:  # more than the tails is one value: use the whole range
        black, white = float(table[order[0]]), float(table[order[-1]])
    return black, white


def _number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a numeric element, or nothing if it is empty or not a usable number."""
    value = value_of(dataset, keyword)
    try:
        number = float(value[0] if isinstance(value, MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        return None
    # Beyond these, arithmetic overflows into NaN, and no header means them.
    return number if number == 0 or 1e-30 < abs(number) < 1e30 else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
