"""From stored pixel values to the array that a network is shown, and to what readers see.

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
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from triage.errors import PixelsError
from triage.identity import numbers, value_of
from triage.shutters import Mask, declared, margins, sampled

SIDE = 256
"""Rows and columns of a normalized array."""

TAIL = 0.005
"""The share of pixels that the contrast stretch lets saturate at either end."""

RLE_GROWTH = 64
"""An RLE stream becomes at most so many times its length: two bytes become 128."""

RLE_UNCOUNTED = 1_000_000_000
"""A stream that cannot become more bytes is decoded without counting them before."""

JPEG_PROGRESSIVE = UID("1.2.840.10008.1.2.4.55")
"""JPEG Full Progression, Non-Hierarchical (Processes 10 and 12); retired."""

PIECE = 262_144
"""Pixels that are counted or looked up at a time: NumPy makes an index of eight bytes of each,
and these then stay in the processor's cache."""

SAMPLED = 20_000
"""About so many pixels tell where to look for the tails of all."""

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

# SOF0 to SOF15 without DHT, JPG and DAC, and JPEG-LS's SOF55.
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})

# Left alone, pydicom asks GDCM first, which gives the same values and ends the process on some
# damaged streams.
_PLUGINS = {
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}

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


@dataclass(frozen=True, slots=True)
class Viewing:
    """A picture as a reader is shown it: every grey that was stored, not yet windowed.

    Attributes
    ----------
    values : ndarray of uint8 or uint16, shape (rows, columns)
        Higher is brighter, whatever the Photometric Interpretation. Padding and what a
        display shutter hides are 0.
    black, white : float
        The default window in units of ``values``: at and below the one a pixel is shown
        black, at and above the other white; ``black < white``. The console's first window
        where the header has one.
    offset, scale : float
        A value is ``offset + scale * value`` in units of the modality, in which windows are
        told to people. Through a VOI LUT or a sigmoid, those of its output.
    aspect : float
        The height of a pixel over its width; 1 for nearly all.
    """

    values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    black: float
    white: float
    offset: float
    scale: float
    aspect: float = 1.0


def viewing(dataset: Dataset) -> Viewing:
    """Make the picture that a reader is shown, at full size and full depth.

    A linear window is left to the viewer, so that another one may be chosen. A VOI LUT and
    a sigmoid (PS3.3 C.11.2.1.1, C.11.2.1.3.1) are looked up here: they are what the console
    means the picture to look like, and the viewer's window works on what they give.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As for :func:`normalize`.

    Raises
    ------
    PixelsError
        As :func:`normalize`; a picture of one grey is shown, and is not ``PICTURE_BLANK``.
    """
    unused: list[str] = []
    stored = _decode(dataset)
    places = stored.values.astype(np.int32) - stored.low if stored.low else stored.values
    steps = np.arange(stored.low, stored.high + 1, dtype=np.float64)
    modality = _modality(dataset, steps, unused)
    window = _window(dataset)
    table = _voi(dataset, modality, unused) if window is None else modality
    curved = table is not modality
    least, most = float(table.min()), float(table.max())
    even = bool(np.allclose(np.diff(table, 2), 0.0, atol=1e-6 * max(most - least, 1e-9)))
    top = len(table) - 1 if even else 65_535
    scale = (most - least) / top or 1.0
    shades = np.rint((table - least) / scale)
    offset = least
    if _inverted(dataset, unused):
        shades, offset, scale = top - shades, most, -scale
    visible = declared(dataset, places.shape, unused, devices=("Shutter",))
    blank = _blank(stored, _padding(dataset, stored))
    if window is not None:
        black, white = sorted((end - offset) / scale for end in window)
    elif curved:
        black, white = 0.0, float(top)
    else:
        seen = places.ravel() if visible is None else places[visible]
        black, white = _tails(shades, np.where(blank, 0, _counted(seen, len(table))))
    shades[blank] = 0.0
    levels = shades.astype(np.uint8) if top <= 255 else shades.astype(np.uint16)
    values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] = _looked_up(levels, places)
    if visible is not None:
        values[~visible] = 0
    return Viewing(values, black, max(white, black + 1.0), offset, scale, _aspect(dataset))


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
    if values.size and (values.min() < low or values.max() > high):
        values = np.clip(values, low, high)
    return _Stored(values, low, high)


def decoded(dataset: Dataset) -> npt.NDArray[np.integer]:
    """Decode; color as RGB.

    pydicom decodes neither the retired progressive JPEG, which img2dcm and old gateways
    still write, nor lossy JPEG of 12 bits. A JPEG stream says itself how it is coded, so
    that a decoder reads it under the name of a syntax that pydicom gives it.
    """
    _require_modest_stream(dataset)
    syntax, deep = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored > 8
    if syntax in {JPEGBaseline8Bit, JPEGExtended12Bit} and not deep:
        # GDCM gives the same values, and ends the process on some damaged streams.
        return pixel_array(dataset, decoding_plugin="pillow")
    if syntax in {JPEGLossless, JPEGLosslessSV1} and dataset.BitsAllocated == 8:
        # GDCM ends the process where fewer than the 8 allocated are stored.
        described = Dataset(dataset)
        described.file_meta = dataset.file_meta
        described.BitsStored, described.HighBit = 8, 7
        return pixel_array(described)
    if not (syntax == JPEG_PROGRESSIVE or (syntax == JPEGExtended12Bit and deep)):
        return pixel_array(dataset, decoding_plugin=_PLUGINS.get(syntax, ""))
    renamed = Dataset(dataset)
    renamed.file_meta = FileMetaDataset()
    renamed.file_meta.TransferSyntaxUID = JPEGLosslessSV1 if deep else JPEGBaseline8Bit
    return pixel_array(renamed, decoding_plugin="gdcm" if deep else "pillow")


def _require_modest_stream(dataset: Dataset) -> None:
    """Refuse a stream that would become more than the header says.

    Decoders in C and C++ believe the stream: one of 100 bytes can take gigabytes, or end the
    process where there are none. One of 20 can keep pydicom for ever.
    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    samples = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    _require_boxes_with_length(stream)
    if dataset.file_meta.TransferSyntaxUID != RLELossless:
        announced, limit = stream_samples(stream), samples
    elif RLE_GROWTH * len(stream) > RLE_UNCOUNTED:
        announced, limit = rle_bytes(stream), samples * dataset.BitsAllocated // 8 + 16
    else:
        return
    if announced > limit:
        raise ValueError(f"the stream becomes {announced} values, the header announces {limit}")


def _require_boxes_with_length(stream: bytes) -> None:
    """Refuse a JP2 file with a box that pydicom would never leave (ITU-T T.800 I.4)."""
    at = 12 if stream.startswith(b"\0\0\0\x0cjP  ") else len(stream)
    while at < len(stream) and stream[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(stream[at : at + 4])
        if length < 8:
            raise ValueError(f"a box before the JPEG 2000 stream has a length of {length}")
        at += length


def stream_samples(stream: bytes) -> int:
    """How many samples a JPEG, JPEG-LS or JPEG 2000 stream announces; 0 if it does not.

    From the frame header (ITU-T T.81 B.2.2, T.87 C.2.2) or SIZ (ITU-T T.800 A.5.1).
    """
    start = stream.find(b"\xff\x4f\xff\x51")
    if start >= 0 and len(stream) >= start + 42:
        right, lower, left, upper = map(int, struct.unpack_from(">4I", stream, start + 8))
        components = int.from_bytes(stream[start + 40 : start + 42])
        return max(right - left, 0) * max(lower - upper, 0) * components
    at, most = stream.find(b"\xff\xd8") + 2, 0
    while 2 <= at <= len(stream) - 10 and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _FRAME_HEADERS:
            rows, columns, components = struct.unpack_from(">HHB", stream, at + 5)
            most = max(most, rows * columns * components)
        if marker == 0xDA:  # what follows is the picture
            break
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return most


def rle_bytes(stream: bytes) -> int:
    """How many bytes an RLE stream becomes (PS3.5 G.3)."""
    count, *offsets = struct.unpack_from("<16L", stream)
    ends = [*offsets[1:count], len(stream)]
    total = 0
    for start, end in zip(offsets[:count], ends, strict=False):
        at = start
        while at < min(end, len(stream)) - 1:
            control = stream[at]
            length = control + 1 if control < 128 else 257 - control
            total += length if control != 128 else 0
            at += 1 + (length if control < 128 else control != 128)
    return total


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


def _aspect(dataset: Dataset) -> float:
    """Of a pixel, vertical over horizontal (PS3.3 C.7.6.3.1.7, 10.7.1.3)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        with suppress(ValueError):
            down, across = numbers(dataset, keyword, count=2)
            if down > 0 and across > 0 and 0.1 < down / across < 10:
                return down / across
    return 1.0


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """The ends of the linear window that :func:`_voi` would use, in units of the modality."""
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if value_of(dataset, "VOILUTSequence") or center is None or width is None:
        return None
    function = str(value_of(dataset, "VOILUTFunction") or "LINEAR").upper()
    if function == "LINEAR_EXACT" and width > 0:
        return center - width / 2, center + width / 2
    if function == "LINEAR" and width >= 1:
        return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return None


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


def _blank(stored: _Stored, padding: tuple[int, int] | None) -> npt.NDArray[np.bool_]:
    """For each possible stored value whether it is padding."""
    blank = np.zeros(stored.high - stored.low + 1, np.bool_)
    if padding is not None:
        blank[max(padding[0] - stored.low, 0) : max(padding[1] - stored.low + 1, 0)] = True
    return blank


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
    blank = _blank(stored, padding)
    shown = _stretched(places, table, blank, visible)
    box = margins(_picture(places, shown, visible, sampled(places.shape)), places.shape)
    if places[box].size < places.size:
        inside = np.zeros(places.shape, np.bool_)
        inside[box] = True if visible is None else visible[box]
        shown, visible = _stretched(places, table, blank, inside), inside
    return np.clip(_resized(places, shown, visible), 0.0, 1.0)


def _resized(
    places: npt.NDArray[np.integer], shown: npt.NDArray[np.float32], visible: Mask | None
) -> npt.NDArray[np.float32]:
    """The picture at its final size.

    Some rows at a time are looked up and made low, so that it is never laid out in full; Pillow
    then makes it narrow. Pillow alone, which goes the other way, takes three times as long and
    gives the same within the rounding of float32.
    """
    rows, columns = places.shape
    starts, weights = _lowering(rows)
    taps = weights.shape[1]
    low = np.empty((SIDE, columns), np.float32)
    step = min(max(PIECE * SIDE // (rows * columns), 1), SIDE)
    for first in range(0, SIDE, step):
        some = range(first, min(first + step, SIDE))
        top = starts[first]
        part = slice(top, starts[some[-1]] + taps)
        strip = _picture(places, shown, visible, (part, slice(None)))
        for row in some:
            of = strip[starts[row] - top :][:taps]
            # Not a product of matrices: the numerical library shares such work among threads,
            # which wait for each other where the cores have other work.
            np.einsum("r,rc->c", weights[row], of, out=low[row])
    narrow = Image.fromarray(low).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(narrow, np.float32)


def _lowering(rows: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Of which rows each final one is the weighted mean: the first of them, and their weights.

    A triangle as wide as the reduction, as in Pillow's ``BILINEAR``.
    """
    scale = rows / SIDE
    reach = max(scale, 1.0)
    taps = min(int(2 * reach) + 2, rows)
    centres = (np.arange(SIDE) + 0.5) * scale
    starts = np.clip((centres - reach + 0.5).astype(np.intp), 0, rows - taps)
    apart = starts[:, np.newaxis] + np.arange(taps) + 0.5 - centres[:, np.newaxis]
    weights = np.maximum(1.0 - np.abs(apart) / reach, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return starts.tolist(), weights.astype(np.float32)


def _picture(
    places: npt.NDArray[np.integer],
    shown: npt.NDArray[np.float32],
    visible: Mask | None,
    part: tuple[slice, slice],
) -> npt.NDArray[np.float32]:
    """A part of the picture, looked up; what is not visible is black."""
    picture: npt.NDArray[np.float32] = np.take(shown, places[part], mode="clip")
    if visible is not None:
        picture[~visible[part]] = 0.0
    return picture


def _stretched(
    places: npt.NDArray[np.integer],
    table: npt.NDArray[np.float64],
    blank: npt.NDArray[np.bool_],
    visible: Mask | None,
) -> npt.NDArray[np.float32]:
    """What each place is shown as: the contrast stretched by what is visible, padding black."""
    seen = places.ravel() if visible is None else places[visible]
    steps = np.diff(table)
    if blank.any() or ((steps < 0).any() and (steps > 0).any()):
        counts = np.where(blank, 0, _counted(seen, len(table)))
    else:
        counts = _counted_at_ends(seen, len(table))
    black, white = _tails(table, counts)
    if not black < white:
        raise PixelsError("PICTURE_BLANK", "the picture has one grey value and shows nothing")
    shown = np.clip((table - black) / (white - black), 0.0, 1.0).astype(np.float32)
    shown[blank] = 0.0
    return shown


def _counted(places: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
    """How often each place of a table of so many entries stands in a row of places."""
    counts = np.zeros(length, np.int64)
    for start in range(0, len(places), PIECE):
        counts += np.bincount(places[start : start + PIECE], minlength=length)
    return counts


def _counted_at_ends(places: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
    """As :func:`_counted` for :func:`_tails` of a table that only rises or only falls.

    All places between the tails are counted as one of them, which takes half the time. Where
    the tails end, a sample tells; if it leads astray, all are counted.
    """
    sample = np.sort(places[:: len(places) // SAMPLED | 1])
    beyond = int(2 * TAIL * len(sample))
    if not beyond or sample[-1 - beyond] - sample[beyond] < 2:
        return _counted(places, length)
    low, high = sample[beyond], sample[-1 - beyond]
    counts = np.zeros(length, np.int64)
    for start in range(0, len(places), PIECE):
        some = places[start : start + PIECE]
        counts += np.bincount(some[(some <= low) | (some >= high)], minlength=length)
    spare = int(TAIL * len(places))
    if counts[: low + 1].sum() <= spare or counts[high:].sum() <= spare:
        return _counted(places, length)
    counts[low + 1] = len(places) - counts.sum()
    return counts


def _looked_up(table: npt.NDArray[Any], places: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """What stands in a table at each place."""
    flat = places.ravel()
    found = np.empty(flat.shape, table.dtype)
    for start in range(0, len(flat), PIECE):
        np.take(table, flat[start : start + PIECE], out=found[start : start + PIECE], mode="clip")
    return found.reshape(places.shape)


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
