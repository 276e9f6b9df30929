"""Letters that were burned in near the edges of a picture, such as a side marker.

They say which console or technologist made the picture, and a network may learn from them
what it should learn from lungs (Zech et al., PLoS Medicine 15(11), 2018). A model version
may have them masked; :func:`without_markers` also shows how much a score hangs on them.
"""

from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from triage.pixels import SIDE, Array

CORNER_MARKERS, MASKED = "corner_markers", "masked"
"""Key and value in ``model.json`` of a version whose network sees no markers."""

BAND = 0.15
"""Markers are looked for in a frame of so much of the side."""

CONTRAST = 0.25
"""How much brighter or darker than its surroundings a marker is, at least."""

FLATNESS_BRIGHT, FLATNESS_DARK = 0.25, 0.05
"""How much the ground of a marker varies, at most: it lies on air or on flat tissue.

Dark pieces on grey ground are left alone, because costophrenic angles are some.
"""

SMALLEST, LARGEST = 3, 36
"""A marker's height and width, in pixels of 256."""

_AROUND = 16
_MARGIN = 1

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


def without_markers(array: Array) -> Array:
    """Replace what looks like burned-in letters by what is around it.

    Parameters
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0

    Returns
    -------
    ndarray of float32, shape (256, 256), 0.0 to 1.0
        The same array where nothing was found.
    """
    around = _surroundings(array)
    found = markers(array, around)
    return np.where(found, around, array) if found.any() else array


def markers(array: Array, around: Array) -> Mask:
    """Find what looks like burned-in letters, with a margin of one pixel.

    A piece is a connected set of pixels that differ from the median around them. It is held
    for a letter if it is small, no line, wholly inside the frame and on flat ground.

    Parameters
    ----------
    array, around : ndarray of float32, shape (256, 256), 0.0 to 1.0
        The picture, and the median around each of its pixels.

    Returns
    -------
    ndarray of bool, shape (256, 256)
    """
    band = int(BAND * SIDE)
    frame = np.ones((SIDE, SIDE), np.bool_)
    frame[band + 1 : -band - 1, band + 1 : -band - 1] = False
    found = np.zeros((SIDE, SIDE), np.bool_)
    for differs, flatness in (
        (array - around > CONTRAST, FLATNESS_BRIGHT),
        (around - array > CONTRAST, FLATNESS_DARK),
    ):
        for rows, columns in _pieces(differs & frame):
            if not _has_a_letter_s_place(rows, columns, band):
                continue
            piece = np.zeros((SIDE, SIDE), np.bool_)
            piece[rows, columns] = True
            piece = _grown(piece, _MARGIN)
            ground = array[_grown(piece, 2) & ~piece & ~differs]
            if len(ground) and np.ptp(np.quantile(ground, (0.1, 0.9))) <= flatness:
                found |= piece
    return found


def _has_a_letter_s_place(rows: Places, columns: Places, band: int) -> bool:
    """Whether a piece is small, no line, and neither leaves the picture nor the frame."""
    sides = np.ptp(rows) + 1, np.ptp(columns) + 1
    outside = min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == SIDE - 1
    inner = (rows >= band) & (rows < SIDE - band) & (columns >= band) & (columns < SIDE - band)
    small = min(sides) >= SMALLEST and max(sides) <= LARGEST
    return bool(small and not outside and not inner.any())


def _surroundings(array: Array) -> Array:
    """The median of 30 x 30 pixels, in 256 grey values, from half the resolution."""
    grey = np.rint(array * 255.0).astype(np.uint8)
    wide = Image.fromarray(np.pad(grey, _AROUND, mode="symmetric"))
    median = wide.reduce(2).filter(ImageFilter.MedianFilter(_AROUND - 1))
    full = np.asarray(median.resize(wide.size, Image.Resampling.BILINEAR), np.float32)
    return full[_AROUND:-_AROUND, _AROUND:-_AROUND] / 255.0


def _grown(mask: Mask, margin: int) -> Mask:
    """With a margin around it."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * margin + 1)), np.bool_)


def _pieces(mask: Mask) -> list[tuple[Places, Places]]:
    """Rows and columns of each set of true pixels that touch, by a side or a corner."""
    left = set(zip(*(part.tolist() for part in np.nonzero(mask)), strict=True))
    pieces = []
    while left:
        edge = [left.pop()]
        piece = list(edge)
        while edge:
            row, column = edge.pop()
            for down, across in product((-1, 0, 1), repeat=2):
                near = (row + down, column + across)
                if near in left:
                    left.remove(near)
                    edge.append(near)
                    piece.append(near)
        rows, columns = np.array(piece).T
        pieces.append((rows, columns))
    return pieces
