"""The pixel pipeline again, one pixel at a time, to judge ``triage.pixels`` by.

Written from PS3.3 C.11 for clarity, in plain Python, and sharing no code with what it
judges. It knows monochrome, uncompressed data sets as :mod:`tests.builders` makes them.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset


def normalized(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Return the array that the data set's picture should become."""
    stored = stored_values(dataset)
    sign = -1.0 if dataset.PhotometricInterpretation == "MONOCHROME1" else 1.0
    shown = [sign * voi(dataset, modality(dataset, value)) for value in stored]

    padding = dataset.get("PixelPaddingValue")
    limit = dataset.get("PixelPaddingRangeLimit", padding)
    padded = [
        padding is not None and min(padding, limit) <= value <= max(padding, limit)
        for value in stored
    ]
    first = stretch(shown, padded, dataset)
    hidden = [a or b for a, b in zip(padded, outside(first).ravel(), strict=True)]
    full = stretch(shown, hidden, dataset)
    small = Image.fromarray(full).resize((256, 256), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32)


def stretch(shown: list[float], hidden: list[bool], dataset: Dataset) -> npt.NDArray[np.float32]:
    """From the half-percent tails of what is seen to 0 and 1; what is hidden is 0."""
    ordered = sorted(grey for grey, absent in zip(shown, hidden, strict=True) if not absent)
    spare = int(0.005 * len(ordered))
    black, white = ordered[spare], ordered[-1 - spare]
    if black == white:
        black, white = ordered[0], ordered[-1]
    stretched = [
        0.0 if absent else min(max((grey - black) / (white - black), 0.0), 1.0)
        for grey, absent in zip(shown, hidden, strict=True)
    ]
    return np.array(stretched, np.float32).reshape(dataset.Rows, dataset.Columns)


def outside(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The outer lines of one grey, of pictures of fewer than 100 lines; 30% of a side at most."""
    rows, columns = list(range(picture.shape[0])), list(range(picture.shape[1]))
    most = {id(rows): int(0.3 * len(rows)), id(columns): int(0.3 * len(columns))}
    cut = {(id(lines), end): 0 for lines in (rows, columns) for end in (0, -1)}
    moved = True
    while moved:
        moved = False
        for lines in (rows, columns):
            for end in (0, -1):
                where = (lines[end], columns) if lines is rows else (rows, lines[end])
                line = picture[where]
                flat = line.max() - line.min() <= 0.0203
                if flat and cut[id(lines), end] < most[id(lines)]:
                    cut[id(lines), end] += 1
                    del lines[end]
                    moved = True
    mask = np.ones(picture.shape, np.bool_)
    mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    return mask


def stored_values(dataset: Dataset) -> list[int]:
    """Stored values by row: Bits Stored bits of each cell, the highest a sign or not."""
    size = dataset.BitsAllocated // 8
    order = "little" if dataset.file_meta.TransferSyntaxUID.is_little_endian else "big"
    values = []
    for at in range(0, dataset.Rows * dataset.Columns * size, size):
        cell = int.from_bytes(dataset.PixelData[at : at + size], order)
        value = cell % 2**dataset.BitsStored
        if dataset.PixelRepresentation == 1 and value >= 2 ** (dataset.BitsStored - 1):
            value -= 2**dataset.BitsStored
        values.append(value)
    return values


def modality(dataset: Dataset, value: float) -> float:
    """PS3.3 C.11.1: the Modality LUT, else the rescale."""
    if "ModalityLUTSequence" in dataset:
        return looked_up(dataset, dataset.ModalityLUTSequence[0], value)
    return value * dataset.get("RescaleSlope", 1) + dataset.get("RescaleIntercept", 0)


def voi(dataset: Dataset, x: float) -> float:
    """PS3.3 C.11.2: the VOI LUT, else the window, else nothing; windows give 0 to 1."""
    if "VOILUTSequence" in dataset:
        return looked_up(dataset, dataset.VOILUTSequence[0], x)
    if "WindowCenter" not in dataset:
        return x
    c, w = dataset.WindowCenter, dataset.WindowWidth
    match dataset.get("VOILUTFunction", "LINEAR"):
        case "LINEAR":  # C.11.2.1.2.1
            if x <= c - 0.5 - (w - 1) / 2:
                return 0.0
            if x > c - 0.5 + (w - 1) / 2:
                return 1.0
            return (x - (c - 0.5)) / (w - 1) + 0.5
        case "SIGMOID":  # C.11.2.1.3.1
            return 1.0 / (1.0 + math.exp(-4.0 * (x - c) / w))
        case "LINEAR_EXACT":  # C.11.2.1.3.2
            if x <= c - w / 2:
                return 0.0
            if x > c + w / 2:
                return 1.0
            return (x - c) / w + 0.5
        case other:
            raise ValueError(other)


def looked_up(dataset: Dataset, item: Dataset, value: float) -> float:
    """C.11.1.1.1: below the first input the first entry, above the last one the last."""
    count, first, _ = item.LUTDescriptor
    order = "little" if dataset.file_meta.TransferSyntaxUID.is_little_endian else "big"
    position = min(max(round(value) - first, 0), (count or 65_536) - 1)
    return float(int.from_bytes(item.LUTData[2 * position : 2 * position + 2], order))
