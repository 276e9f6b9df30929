"""Where in a radiograph a score comes from: a heat map, and how it is painted.

A network that ends in a mean over places says by itself what each place adds to its logit:
that is its class-activation map (Zhou et al., Learning Deep Features for Discriminative
Localization, CVPR 2016), which comes out of the same forward pass as the probability. The
heat is how far a place's log-odds are above the threshold's and above the picture's mean:
what speaks for the finding, and more so than the rest.

For other networks there is occlusion sensitivity (Zeiler and Fergus, Visualizing and
Understanding Convolutional Networks, ECCV 2014, section 4.2): one part of the array after
another is covered, and the heat is how far the probability falls. It asks the scorer only
for scores. The cover is the smooth mean of what surrounds it, with soft edges. A black or
grey square would be a sharp object that no training picture had, and the map would show how
the network takes to squares.

The map says what the score depends on. It does not outline disease, and it is no evidence
that the score is right.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from triage.pixels import SIDE, Array
from triage.scoring import Scorer

STEPS = 9
"""Covers in a row and in a column of the array."""

PASSES = STEPS * STEPS + 1
"""What one map costs: forward passes of the scorer, one of them on the uncovered array."""

MAP_SIDE = 16
"""Rows and columns of an occlusion map."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Heat by place.

    Attributes
    ----------
    heat : ndarray of float32, shape (rows, columns), 0.0 or more
    meaning : str
        What a heat is, for the legend.
    faint : float
        A map is painted against its own greatest heat, but never against less than this, so
        that a score that depends on no place in particular does not look as if it did.
    """

    heat: npt.NDArray[np.float32]
    meaning: str
    faint: float


_HALF, _SOFT = 32.0, 16.0  # of a cover, in pixels: half its side, and its edge's softness
_CELL = 8  # surroundings are averaged in cells of 8 x 8 pixels,
_REACH = 5.0  # with Gaussian weights of this standard deviation, in cells

Picture = npt.NDArray[np.uint8]
"""uint8, shape (rows, columns, 3): red, green, blue."""

# Nine points of a dark violet, red, orange and pale yellow ramp whose lightness (CIE L*)
# rises evenly, so that equal steps of heat look equal, in grey and to the colour-blind too.
_RAMP = np.array(
    [
        (20, 11, 53),
        (58, 9, 99),
        (96, 19, 110),
        (133, 33, 107),
        (169, 46, 94),
        (203, 65, 73),
        (230, 93, 47),
        (247, 131, 17),
        (252, 164, 42),
    ],
    np.float64,
)


def explain(scorer: Scorer, array: Array) -> HeatMap:
    """The class-activation map, of a scorer that has one; else the occlusion map.

    Parameters
    ----------
    scorer : Scorer
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0
    """
    score, evidence = scorer.explained(array)
    if evidence is None:
        return occlusion_map(scorer, array)
    # A threshold of exactly 0 or 1 has no log-odds.
    threshold = min(max(score.threshold, 1e-6), 1.0 - 1e-6)
    least = max(np.log(threshold / (1.0 - threshold)), float(evidence.mean()))
    heat = np.maximum(evidence - np.float32(least), 0.0)
    return HeatMap(heat, "Log-odds above the picture's mean", 1.0)


def occlusion_map(scorer: Scorer, array: Array) -> HeatMap:
    """How far the probability falls where an array is covered.

    Deterministic if the scorer is. Costs :data:`PASSES` forward passes.

    Parameters
    ----------
    scorer : Scorer
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0

    Returns
    -------
    HeatMap
        float32, shape (16, 16), 0.0 to 1.0. The mean fall of the probability over the covers
        that touch a cell, weighted by how much of the cell they cover: 0.2 where the score
        would be about 0.2 lower without what is there. Covering may also raise the
        probability; that counts as 0. The sign
        is the same whether the score is flagged or not: high is what speaks for the
        finding.
    """
    uncovered = scorer.score(array).probability
    cells = array.reshape(SIDE // _CELL, _CELL, SIDE // _CELL, _CELL).mean(axis=(1, 3))
    falls = np.zeros((SIDE, SIDE))
    covers = np.zeros((SIDE, SIDE))
    for down in _profiles():
        for across in _profiles():
            cover = np.outer(down, across)
            covered = (array + cover * (_surroundings(cells, cover) - array)).astype(np.float32)
            falls += cover * (uncovered - scorer.score(covered).probability)
            covers += cover
    cell = SIDE // MAP_SIDE
    fine = np.clip(falls / covers, 0.0, 1.0).reshape(MAP_SIDE, cell, MAP_SIDE, cell)
    heat = np.asarray(fine.mean(axis=(1, 3)), np.float32)
    return HeatMap(heat, "Fall of the probability where covered", 0.02)


def full_heat(heat_map: HeatMap) -> float:
    """The heat that is painted in the hottest colour."""
    return max(float(heat_map.heat.max()), heat_map.faint)


def paint(array: Array, heat_map: HeatMap, size: tuple[int, int]) -> Picture:
    """Lay a map over the array that it explains.

    Where there is little heat the radiograph is left as it is. A thin line goes round what
    is hotter than half of :func:`full_heat`.

    Parameters
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0
    heat_map : HeatMap
    size : tuple of two int
        Columns and rows of the painting.

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 3)
    """
    grey = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    heat, opacity = _laid(heat_map, size)
    plain = np.repeat(np.clip(grey, 0.0, 1.0)[..., None] * 255.0, 3, axis=2)
    painted = plain + opacity[..., None] * (colours(heat) - plain)
    painted[_outline(heat >= 0.5)] = _RAMP[-1]
    return np.asarray(np.rint(painted), np.uint8)


def overlay(heat_map: HeatMap, size: tuple[int, int]) -> Picture:
    """What :func:`paint` lays over a picture, to be laid over it elsewhere.

    Parameters
    ----------
    heat_map : ndarray of float32, shape (16, 16), 0.0 to 1.0
    size : tuple of two int
        Columns and rows.

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 4)
        Red, green, blue and opacity (0 lets the picture through, 255 hides it).
    """
    heat, opacity = _laid(heat_map, size)
    painted = np.concatenate([colours(heat), 255.0 * opacity[..., None]], axis=2)
    painted[_outline(heat >= 0.5)] = (*_RAMP[-1], 255.0)
    return np.asarray(np.rint(painted), np.uint8)


def _laid(
    heat_map: HeatMap, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Heat against the greatest, about 0 to 1, and the opacity of its colour, 0 to 0.55."""
    heat = np.asarray(
        Image.fromarray(heat_map.heat / np.float32(full_heat(heat_map))).resize(
            size, Image.Resampling.BICUBIC
        )
    )
    ramp = np.clip((heat - 0.15) / 0.5, 0.0, 1.0)
    return heat, np.asarray(0.55 * ramp * ramp * (3.0 - 2.0 * ramp))


def colours(heat: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The colours of heats.

    Parameters
    ----------
    heat : ndarray of float, any shape
        Clipped to 0.0 to 1.0.

    Returns
    -------
    ndarray of float64, that shape and (3,), 0.0 to 255.0
    """
    points = np.linspace(0.0, 1.0, len(_RAMP))
    return np.stack([np.interp(heat, points, _RAMP[:, band]) for band in range(3)], axis=-1)


@functools.cache
def _profiles() -> tuple[npt.NDArray[np.float64], ...]:
    """The covers along one axis: 1 inside, 0 outside, smooth between."""
    pixels = np.arange(SIDE) + 0.5
    centers = (np.arange(STEPS) + 0.5) * SIDE / STEPS
    inside = (
        np.clip((_HALF + _SOFT / 2 - abs(pixels - center)) / _SOFT, 0.0, 1.0) for center in centers
    )
    return tuple(edge * edge * (3.0 - 2.0 * edge) for edge in inside)


def _surroundings(cells: npt.NDArray[np.float32], cover: npt.NDArray[np.float64]) -> Array:
    """What is around a cover, carried on smoothly under it (a normalized convolution)."""
    around = 1.0 - cover[_CELL // 2 :: _CELL, _CELL // 2 :: _CELL]
    weights = _weights()
    mean = (weights @ (cells * around) @ weights) / (weights @ around @ weights)
    coarse = Image.fromarray(mean.astype(np.float32))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@functools.cache
def _weights() -> npt.NDArray[np.float64]:
    """Gaussian weights from cell to cell along one axis; symmetric."""
    place = np.arange(SIDE // _CELL)
    return np.asarray(np.exp(-0.5 * ((place - place[:, None]) / _REACH) ** 2))


def _outline(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The two pixels wide border of an area, drawn outside of it."""
    grown = inside.copy()
    for _ in range(2):
        padded = np.pad(grown, 1)
        grown = grown | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.asarray(grown & ~inside)
