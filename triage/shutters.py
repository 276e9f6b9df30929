"""Which part of a picture shows the patient, and which is shutter, collimator or margin.

Two witnesses: the header (Display Shutter, PS3.3 C.7.6.11; X-Ray Collimator, PS3.3 C.8.7.3)
and the picture itself, whose margins are of one grey where a frame was burned in. What is
outside is no part of the radiograph: it must not take part in its contrast, and a network
must not learn from it which console made the picture.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom import Dataset

from triage.identity import numbers

Mask = npt.NDArray[np.bool_]
"""bool, shape (rows, columns), true where the picture shows the patient."""

LINES = 512
"""A margin is looked for on at most so many rows and columns, evenly spaced."""

TOLERANCE = 0.0203
"""A line is of one grey if all but ``OUTLIERS`` of it spans no more of the contrast.

Not a round number: no difference of whole grey values should lie on it, where rounding
would decide.
"""

OUTLIERS = 0.01
LEAST_VISIBLE = 0.1
"""An opening is no smaller share of the picture; some consoles write it in millimetres."""

WIDEST = 0.3
"""No margin is wider than this share of the picture; more is not a margin."""


def declared(
    dataset: Dataset,
    shape: tuple[int, int],
    notes: list[str],
    devices: Sequence[str] = ("Shutter", "Collimator"),
) -> Mask | None:
    """What the header leaves visible; None if it hides nothing.

    Shutter and collimator, and several shapes of one, are cut with each other. What is
    malformed or leaves next to nothing is ignored and noted as ``SHUTTER_INVALID``.

    Parameters
    ----------
    dataset : pydicom.Dataset
    shape : tuple of two int
        Rows and columns.
    notes : list of str
        Appended to.
    devices : sequence of str
        Whose shapes count. Only a display shutter hides what is outside from a reader.
    """
    visible: Mask | None = None
    for device in devices:
        kinds = dataset.get(f"{device}Shape")
        for kind in [kinds] if isinstance(kinds, str) else kinds or []:
            try:
                opening = _OPENINGS[str(kind).strip().upper()](dataset, device, shape)
            except (KeyError, ValueError):
                opening = None
            if opening is None or opening.mean() < LEAST_VISIBLE:
                notes.append("SHUTTER_INVALID")
                continue
            visible = opening if visible is None else visible & opening
    if visible is not None and visible.mean() < LEAST_VISIBLE:
        notes.append("SHUTTER_INVALID")
        return None
    return visible


def sampled(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a picture on which :func:`margins` looks for them."""
    rows, columns = shape
    return slice(None, None, -(-rows // LINES)), slice(None, None, -(-columns // LINES))


def margins(sample: npt.NDArray[np.floating], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns inside the margins of one grey that a picture has.

    Parameters
    ----------
    sample : ndarray of float
        The picture's grey levels at the :func:`sampled` rows and columns, scaled so that its
        contrast is about 0 to 1.
    shape : tuple of int
        The picture's rows and columns.

    Returns
    -------
    tuple of two slice
        The whole picture where it has no margins.
    """
    rows, columns = shape
    row_step, column_step = (int(lines.step) for lines in sampled(shape))
    box = [0, sample.shape[0], 0, sample.shape[1]]
    limits = [int(WIDEST * size) for size in sample.shape]
    moved = True
    while moved:  # a margin on one side can hide that one beside it is of one grey
        inner = sample[box[0] : box[1], box[2] : box[3]]
        top = _flat_lines(inner, limits[0] - box[0])
        bottom = _flat_lines(inner[::-1], limits[0] - (sample.shape[0] - box[1]))
        left = _flat_lines(inner.T, limits[1] - box[2])
        right = _flat_lines(inner.T[::-1], limits[1] - (sample.shape[1] - box[3]))
        moved = bool(top or bottom or left or right)
        if top + bottom >= inner.shape[0] or left + right >= inner.shape[1]:
            return slice(0, rows), slice(0, columns)
        box = [box[0] + top, box[1] - bottom, box[2] + left, box[3] - right]
    return (
        _stretched(box[0], box[1], row_step, sample.shape[0], rows),
        _stretched(box[2], box[3], column_step, sample.shape[1], columns),
    )


def _flat_lines(lines: npt.NDArray[np.floating], most: int) -> int:
    """How many lines from the first on are of one grey."""
    count = 0
    while count < min(most, len(lines)):
        line = np.sort(lines[count])
        spare = int(OUTLIERS * len(line))
        if line[len(line) - 1 - spare] - line[spare] > TOLERANCE:
            break
        count += 1
    return count


def _stretched(first: int, last: int, step: int, lines: int, size: int) -> slice:
    """A range of sampled lines as a range of the picture's, without half-margin lines."""
    start = 0 if first == 0 else first * step
    end = size if last == lines else (last - 1) * step + 1
    return slice(start, end)


def _rectangle(dataset: Dataset, device: str, shape: tuple[int, int]) -> Mask:
    """PS3.3 C.7.6.11: edges are rows and columns counted from 1; the edge itself is visible."""
    left, right, upper, lower = (
        _one(dataset, device + edge)
        for edge in (
            "LeftVerticalEdge",
            "RightVerticalEdge",
            "UpperHorizontalEdge",
            "LowerHorizontalEdge",
        )
    )
    mask = np.zeros(shape, np.bool_)
    rows = slice(max(int(upper) - 1, 0), max(int(lower), 0))
    mask[rows, max(int(left) - 1, 0) : max(int(right), 0)] = True
    return mask


def _circle(dataset: Dataset, device: str, shape: tuple[int, int]) -> Mask:
    row, column = numbers(dataset, f"CenterOfCircular{device}", count=2)
    radius = _one(dataset, f"RadiusOfCircular{device}")
    down = np.arange(1, shape[0] + 1)[:, np.newaxis] - row
    across = np.arange(1, shape[1] + 1)[np.newaxis, :] - column
    return np.asarray(down**2 + across**2 <= radius**2)


def _polygon(dataset: Dataset, device: str, shape: tuple[int, int]) -> Mask:
    values = numbers(dataset, f"VerticesOfThePolygonal{device}")
    if len(values) < 6 or len(values) % 2:
        raise ValueError("a polygon has three or more vertices, each a row and a column")
    points = [(column - 1, row - 1) for row, column in zip(values[::2], values[1::2], strict=True)]
    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return np.array(canvas, np.bool_)


def _one(dataset: Dataset, keyword: str) -> float:
    return numbers(dataset, keyword, count=1)[0]


_OPENINGS: dict[str, Callable[[Dataset, str, tuple[int, int]], Mask]] = {
    "RECTANGULAR": _rectangle,
    "CIRCULAR": _circle,
    "POLYGONAL": _polygon,
}
