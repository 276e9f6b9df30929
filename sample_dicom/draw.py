"""Draw synthetic radiographs from a seed and write them as DICOM objects.

    python sample_dicom/draw.py [--out DIR] [--seed N]

Nobody was imaged. A picture is made as an X-ray makes one: each tissue adds its path
length times its attenuation to a film (bone much, soft tissue some, air less than none),
and a characteristic curve turns the sum into grey values. Lengths are in half image
widths from the picture's middle, x to the right and y down; the patient's left is at the
right of a frontal picture (PS3.3 C.7.6.1.1.1).

The same seed gives the same bytes: UIDs are hashes under 2.25 (PS3.5 B.2) and dates are
constants. :func:`chest`, :func:`lateral` and :func:`hand` draw; :func:`as_dx` and
:func:`as_cr` make valid objects of any picture; :func:`samples` is the committed set.
"""

import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    JPEGBaseline8Bit,
    RLELossless,
)

Picture = npt.NDArray[np.float64]
"""float64, shape (rows, columns), 0.0 (black) to 1.0 (white, bone), as displayed."""

View = Literal["PA", "AP", "LL"]
"""View Position (PS3.3 C.8.1.1.1)."""
BodyPart = Literal["CHEST", "HAND"]
Photometric = Literal["MONOCHROME1", "MONOCHROME2"]
Encoding = Literal["EXPLICIT", "RLE", "JPEG"]
"""Explicit VR Little Endian, RLE Lossless, or JPEG Baseline (of 8 bits; it loses)."""

SEED = 20_260
"""The seed of the committed set."""

SHAPE = (560, 464)
"""Rows and columns of a chest unless told otherwise."""

_Shape = tuple[int, int]
_Point = tuple[float, float]
_COMMENT = "SYNTHETIC: drawn by a program. No patient was imaged. Not for diagnosis."
_DATE = "20260105"
# PS3.16 CID 4010 and CID 4031.
_VIEW_CODES = {
    "PA": ("272479007", "postero-anterior"),
    "AP": ("399348003", "antero-posterior"),
    "LL": ("399173006", "left lateral"),
}
_REGION_CODES = {"CHEST": ("816094009", "Chest"), "HAND": ("85562004", "Hand")}
# Where the rows and the columns of the picture run to (PS3.3 C.7.6.1.1.1).
_ORIENTATION = {
    ("CHEST", "PA"): ["L", "F"],
    ("CHEST", "AP"): ["L", "F"],
    ("CHEST", "LL"): ["P", "F"],
    ("HAND", "PA"): ["L", "H"],
}


# --- Drawing -----------------------------------------------------------------------------


def chest(
    seed: int,
    *,
    opacity: float = 0.0,
    projection: Literal["PA", "AP"] = "PA",
    age: int = 3,
    marker: bool = True,
    collimated: bool = False,
    shape: _Shape = SHAPE,
) -> Picture:
    """Draw a frontal chest radiograph.

    Parameters
    ----------
    seed : int
        Decides the anatomy and the noise.
    opacity : float
        How dense the consolidation is, 0.0 (none) to 1.0 (as the heart). It does not
        change the anatomy: one seed with and without opacity is one child, well and ill.
    projection : {"PA", "AP"}
        AP magnifies the heart and leaves the shoulder blades over the lungs.
    age : int
        Years, completed. From about five to twenty the chest becomes an adult's.
    marker : bool
        Burn in the side marker "L".
    collimated : bool
        Leave an unexposed border, as a shutter does.
    shape : tuple of int
        Rows and columns.

    Returns
    -------
    ndarray of float64, shape ``shape``, 0.0 to 1.0
    """
    random = np.random.default_rng([seed, 0])
    film = _Film(shape)
    grown = float(np.clip((age - 4) / 16, 0.0, 1.0))
    film.place(
        across=random.uniform(-0.03, 0.03),
        down=random.uniform(0.02, 0.10),
        size=random.uniform(1.12, 1.24),
        tall=random.uniform(0.97, 1.05) + 0.10 * grown,
    )
    film.add(0.95, _trunk(film))
    air = _lungs(film, random, grown, projection, opacity, np.random.default_rng([seed, 1]))
    film.add(-0.74, air)
    _airway(film)
    _vessels(film, random, air)
    _bowel_gas(film, random)
    _spine(film, random)
    _ribs(film, random, grown)
    _shoulder_girdle(film, random, projection)
    return _develop(film, random, side="L" if marker else None, collimated=collimated)


def lateral(seed: int, *, marker: bool = True, shape: _Shape = SHAPE) -> Picture:
    """Draw a left lateral chest radiograph: the spine at the right, the arms raised.

    Returns
    -------
    ndarray of float64, shape ``shape``, 0.0 to 1.0
    """
    random = np.random.default_rng([seed, 0])
    film = _Film(shape)
    film.place(random.uniform(-0.04, 0.04), random.uniform(-0.03, 0.03), random.uniform(1.05, 1.15))
    x, y = film.x, film.y

    # Soft tissue: the trunk, thickest across the shoulders, the chin and the raised arms.
    front = -np.interp(
        y, [-1.3, -1.0, -0.8, -0.5, 0.1, 0.7, 1.3], [0.30, 0.30, 0.42, 0.56, 0.66, 0.66, 0.62]
    )
    back = np.interp(
        y, [-1.3, -1.0, -0.8, -0.4, 0.2, 0.8, 1.3], [0.40, 0.48, 0.62, 0.74, 0.70, 0.58, 0.58]
    )
    middle, half = (front + back) / 2, (back - front) / 2
    trunk = _blur(_chord(np.abs((x - middle) / half) ** 1.4), 3.0)
    film.add(1.0, trunk)
    film.add(0.30, _disc(film, (0.05, -0.88), (0.42, 0.34), 0.0, 0.35))
    film.tube(0.26, [(0.0, -0.70), (-0.42, -1.35)], 0.22)

    # Both lungs on one another, between the breastbone and the back, above two domes.
    wall = _step((x - (front + 0.09)) / 0.02) * _step((back - 0.12 - x) / 0.025)
    wall *= _step((y + 0.74 - 0.5 * (x - 0.12) ** 2) / 0.06)
    wall *= np.sqrt(_chord(np.clip(np.abs((x - middle) / half), 0.0, 1.0)))
    heart = _disc(film, (-0.22, 0.24), (0.43, 0.29), 0.85, 0.12)
    vessels = _disc(film, (-0.10, -0.22), (0.20, 0.17), 0.3, 0.40)
    for height in (0.38, 0.46):
        dome = height + np.where(x < -0.10, 0.45, 0.75) * (x + 0.10) ** 2
        air = wall * _step((dome - y) / 0.010)
        film.add(-0.36, air * (1.0 - 0.75 * heart) * (1.0 - 0.35 * vessels))
    film.tube(-0.16, [(0.06, -1.10), (0.12, -0.32)], 0.052)

    # Spine: a column that bows backwards; ribs: bands that fall towards the front.
    for level in np.arange(-1.20, 1.20, 0.145):
        bow = float(np.interp(level, [-1.2, -0.5, 0.3, 1.2], [0.26, 0.47, 0.46, 0.30]))
        film.block(0.26, (bow, level), (0.085, 0.058), 0.014)
        film.tube(0.12, [(bow + 0.10, level + 0.02), (bow + 0.19, level + 0.09)], 0.025)
    for number in range(11):
        start = -0.70 + 0.125 * number + random.uniform(-0.01, 0.01)
        reach = float(np.interp(number, [0, 3, 7, 10], [0.60, 0.88, 0.80, 0.35]))
        for shift in (0.0, 0.05):
            t = np.linspace(0.0, 1.0, 16)
            across = 0.56 + 0.10 * np.sin(np.pi * t) - reach * t
            down = start + shift + (0.02 * t + 0.50 * t**2) * reach
            film.tube(0.11, list(zip(across, down, strict=True)), 0.032, hollow=0.72)
    breastbone = [(-0.36, -0.56), (-0.48, -0.30), (-0.56, 0.0), (-0.59, 0.15)]
    film.tube(0.22, breastbone, 0.035)
    film.bone(0.26, (0.0, -0.70), (-0.42, -1.35), 0.07)
    return _develop(film, random, side="L" if marker else None)


def hand(seed: int, *, marker: bool = True, shape: _Shape = (480, 384)) -> Picture:
    """Draw a radiograph of a small child's left hand, fingers up.

    Returns
    -------
    ndarray of float64, shape ``shape``, 0.0 to 1.0
    """
    random = np.random.default_rng([seed, 0])
    film = _Film(shape)
    film.place(-0.03, 0.06, random.uniform(0.92, 1.04))

    # Each ray: where the metacarpal starts, which way it goes (degrees from straight up,
    # clockwise), and the lengths of the metacarpal and the phalanges.
    rays = (
        ((-0.22, 0.42), -15.0, (0.40, 0.26, 0.16, 0.13), 0.050),
        ((-0.11, 0.38), -6.0, (0.44, 0.33, 0.22, 0.15), 0.052),
        ((0.01, 0.36), 1.0, (0.47, 0.36, 0.24, 0.16), 0.055),
        ((0.13, 0.38), 8.0, (0.49, 0.33, 0.20, 0.15), 0.055),
        ((0.23, 0.48), 42.0, (0.34, 0.25, 0.18), 0.060),
    )
    flesh: list[tuple[list[_Point], float]] = []
    for start, degrees, lengths, radius in rays:
        bend = random.uniform(-3.0, 3.0)
        here, line = start, [start]
        for number, length in enumerate(lengths):
            angle = np.deg2rad(degrees + bend * number)
            way = np.array([np.sin(angle), -np.cos(angle)])
            end = np.asarray(here) + length * way
            thin = 1.2 * radius * 0.9**number
            _long_bone(film, here, (end[0], end[1]), thin, cap_first=number > 0 or degrees > 30)
            after = end + 0.070 * way
            here = (float(after[0]), float(after[1]))
            line.append((float(end[0]), float(end[1])))
        flesh.append(([*line[1:-1], (line[-1][0], line[-1][1] - 0.03)], 2.1 * radius))
    carpals = ((0.02, 0.50, 0.070), (-0.09, 0.52, 0.057), (-0.12, 0.63, 0.045))
    for across, down, size in carpals:  # as many as are bone at this age
        film.add(0.30, _chord(_radius(film, (across, down), (size, 0.92 * size))))
    film.bone(0.60, (0.12, 0.80), (0.13, 1.45), 0.115)
    film.add(0.30, _chord(_radius(film, (0.12, 0.72), (0.10, 0.035))))
    film.bone(0.55, (-0.13, 0.80), (-0.14, 1.45), 0.085)

    thickness = np.zeros(shape)
    for points, radius in flesh:
        thickness = np.maximum(thickness, _cylinder(film.distance(points), radius) / radius * 0.75)
    palm = _chord(_radius(film, (0.0, 0.22), (0.38, 0.42)) ** 1.5)
    wrist = _step((film.y - 0.25) / 0.08) * _chord(np.abs(film.x) / 0.32)
    thenar = 0.8 * _chord(_radius(film, (0.25, 0.32), (0.22, 0.34), 0.5))
    soft = _blur(np.maximum.reduce([thickness, 0.85 * palm, 0.9 * wrist, thenar]), 2.0)
    film.add(0.48, soft)
    return _develop(film, random, side="L" if marker else None, curve=(0.42, 0.22))


class _Film:
    """What the rays have lost on their way, and where each pixel is.

    Attributes
    ----------
    attenuation, x, y : ndarray of float64, shape (rows, columns)
    """

    def __init__(self, shape: _Shape) -> None:
        rows, columns = shape
        self.attenuation: Picture = np.zeros(shape)
        y, x = np.mgrid[:rows, :columns].astype(np.float64)
        self.x: Picture = (x - (columns - 1) / 2) / (columns / 2)
        self.y: Picture = (y - (rows - 1) / 2) / (columns / 2)

    def place(self, across: float, down: float, size: float, tall: float = 1.0) -> None:
        """Move what is drawn from now on, and make it larger."""
        self.x = (self.x - across) / size
        self.y = (self.y - down) / (size * tall)

    def blank(self) -> "_Film":
        """Return an unexposed film with the same coordinates."""
        film = _Film(self.x.shape)
        film.x, film.y = self.x, self.y
        return film

    def add(self, attenuation: float, path: Picture) -> None:
        """Let the rays pass through ``path`` of something."""
        self.attenuation += attenuation * path

    def tube(
        self, attenuation: float, points: Sequence[_Point], radius: float, *, hollow: float = 0.0
    ) -> None:
        """Add a tube along a line; its marrow is ``hollow`` of its radius."""
        box = self._box(points, radius)
        distance = self.distance(points, box)
        path = _cylinder(distance, radius) - 0.8 * _cylinder(distance, hollow * radius)
        self.attenuation[box] += attenuation / radius * path

    def bone(self, attenuation: float, start: _Point, end: _Point, radius: float) -> None:
        """Add a long bone: a narrow shaft with a bright cortex and wide, spongy ends."""
        box = self._box([start, end], radius)
        distance, along = self._segment(start, end, box)
        ends = np.abs(2.0 * along - 1.0) ** 3
        outer = radius * (0.68 + 0.32 * ends)
        marrow = (0.7 - 0.42 * ends) * _cylinder(distance, 0.70 * outer)
        path = _cylinder(distance, outer) - marrow
        self.attenuation[box] += attenuation / radius * path

    def block(self, attenuation: float, centre: _Point, half: _Point, soft: float) -> None:
        """Add a box with soft edges and denser plates above and below, as a vertebra."""
        box = self._box([centre], max(half) + 5 * soft)
        width, height = np.abs(self.x[box] - centre[0]), np.abs(self.y[box] - centre[1])
        waist = half[0] * (0.90 + 0.10 * np.clip(height / half[1], 0.0, 1.0))
        plate = 0.35 * np.exp(-(((height - 0.85 * half[1]) / (0.2 * half[1])) ** 2))
        path = _step((waist - width) / soft) * (_step((half[1] - height) / soft) + plate)
        self.attenuation[box] += attenuation * path

    def distance(self, points: Sequence[_Point], box: tuple[slice, slice] | None = None) -> Picture:
        """How far each pixel in the box is from a line through the points."""
        where = box or (slice(None), slice(None))
        pieces = [self._segment(*ends, where)[0] for ends in pairwise(points)]
        nearest: Picture = np.minimum.reduce(pieces)
        return nearest

    def _segment(
        self, start: _Point, end: _Point, box: tuple[slice, slice]
    ) -> tuple[Picture, Picture]:
        """The distance from a straight piece, and where along it the nearest point is."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        px, py = self.x[box] - start[0], self.y[box] - start[1]
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        return np.hypot(px - along * dx, py - along * dy), along

    def _box(self, points: Sequence[_Point], margin: float) -> tuple[slice, slice]:
        """The rows and columns that a thing around the points can touch."""
        xs, ys = zip(*points, strict=True)
        columns = np.searchsorted(self.x[0], [min(xs) - margin, max(xs) + margin])
        rows = np.searchsorted(self.y[:, 0], [min(ys) - margin, max(ys) + margin])
        return slice(*rows.tolist()), slice(*columns.tolist())


def _trunk(film: _Film) -> Picture:
    """Neck, shoulders, trunk and arms held away from it, thickest in the middle."""
    x, y = np.abs(film.x), film.y
    half = np.interp(
        y,
        [-1.30, -1.08, -0.98, -0.90, -0.80, -0.62, -0.40, 0.0, 0.5, 0.9, 1.3],
        [0.27, 0.27, 0.34, 0.55, 0.76, 0.84, 0.80, 0.78, 0.77, 0.78, 0.80],
    )
    trunk = _chord((x / half) ** 1.5)
    right_arm = [(-0.72, -0.70), (-1.0, -0.42), (-1.4, 0.2)]
    left_arm = [(-across, down) for across, down in right_arm]
    arms = [0.75 / 0.17 * _cylinder(film.distance(arm), 0.17) for arm in (right_arm, left_arm)]
    return _blur(np.maximum.reduce([trunk, *arms]), 3.0)


def _lungs(
    film: _Film,
    random: np.random.Generator,
    grown: float,
    projection: str,
    opacity: float,
    illness: np.random.Generator,
) -> Picture:
    """How much air the rays pass: lungs less mediastinum, heart and consolidation."""
    x, y = film.x, film.y
    ragged = 0.012 * _cloud(random, x.shape, 18.0)
    wall = _wall(y)
    depth = np.sqrt(_chord(np.clip(np.abs(x) / np.maximum(wall, 1e-6), 0.0, 1.0) ** 1.6))
    depth *= wall > 0
    base = 0.40 + random.uniform(-0.05, 0.06) + 0.08 * grown
    right = base + 1.15 * np.abs(x + 0.26) ** 2.0
    left = base + 0.06 + 1.15 * np.abs(x - 0.30) ** 2.0
    dome = np.where(x < 0, right, left)
    air = depth * _step((dome + ragged - y) / 0.010)
    air *= 0.62 + 0.38 * _step((dome - 0.12 - y) / 0.10)  # the lung behind the dome is thin

    # The mediastinum; the thymus of a small child makes it wide above the heart.
    thymus = (1.0 - grown) * random.uniform(0.01, 0.05) * np.exp(-(((y + 0.42) / 0.16) ** 2))
    knob = 0.03 * np.exp(-(((y + 0.36) / 0.07) ** 2)) + 0.03 * np.exp(-(((y + 0.14) / 0.10) ** 2))
    to_left = 0.115 + thymus + knob + 0.05 * _step((y + 0.10) / 0.08)
    to_right = 0.105 + thymus + 0.03 * _step((y + 0.10) / 0.10)
    air *= 1 - 0.80 * _step((to_left - x) / 0.018) * _step((to_right + x) / 0.018)

    swell = (1.07 if projection == "AP" else 1.0) * (1.0 - 0.16 * grown)
    swell *= random.uniform(0.92, 1.05)
    ventricle = _disc(film, (0.13, 0.22), (0.37 * swell, 0.27 * swell), 0.66, 0.075)
    atrium = _disc(film, (-0.06, 0.20), (0.17 * swell, 0.30 * swell), 0.0, 0.09)
    heart = ventricle + atrium - ventricle * atrium
    air *= 1.0 - 0.80 * heart

    # Hila, then consolidation: fluid where there was air, so it cannot leave the lung.
    for side in (-1.0, 1.0):
        air *= 1 - 0.35 * _disc(film, (side * 0.19, -0.10), (0.09, 0.17), side * 0.3, 0.45)
    return air * (1.0 - opacity * _consolidation(film, illness))


def _wall(y: Picture) -> Picture:
    """The half width of the lung fields inside the chest wall; 0.0 above the apex."""
    t = np.clip((0.62 - y) / 1.42, 0.0, 1.0)
    half: Picture = 0.685 * (1.0 - t**3.0) ** (1 / 2.2) - 0.03 * np.clip(0.1 - y, 0.0, 1.0)
    return np.clip(half, 0.0, None)


def _consolidation(film: _Film, random: np.random.Generator) -> Picture:
    """A fuzzy patch in a lung field, often with a second one; 0.0 to 1.0."""
    patch = np.zeros(film.x.shape)
    side = random.choice([-1.0, 1.0])
    for strength in (0.90, random.choice([0.0, 0.6])):
        centre = (side * random.uniform(0.36, 0.46), random.uniform(-0.30, 0.22))
        radii = (random.uniform(0.20, 0.30), random.uniform(0.18, 0.28))
        distance = _radius(film, centre, radii, random.uniform(-0.6, 0.6))
        rough = 0.26 * _cloud(random, film.x.shape, 22.0) + 0.12 * _cloud(random, film.x.shape, 6.0)
        patch = np.maximum(patch, strength * _step((0.80 + rough - distance) / 0.42))
        side = random.choice([side, -side])
    return patch


def _airway(film: _Film) -> None:
    """The trachea and the main bronchi, dark on the mediastinum."""
    film.tube(-0.17, [(0.0, -1.12), (-0.01, -0.70), (-0.02, -0.34)], 0.052)
    film.tube(-0.10, [(-0.02, -0.36), (-0.15, -0.18)], 0.036)
    film.tube(-0.10, [(-0.02, -0.36), (0.15, -0.20)], 0.033)


def _vessels(film: _Film, random: np.random.Generator, air: Picture) -> None:
    """Branches from each hilum, thinner and fainter to the outside; seen only on air."""
    tree = film.blank()
    for side in (-1.0, 1.0):
        start = (side * 0.17, -0.12)
        for angle in np.deg2rad([-75, -50, -25, 5, 28, 50, 70]) + random.uniform(-0.15, 0.15, 7):
            _branch(tree, random, start, float(angle), side, 0.026)
    film.add(0.11, np.minimum(tree.attenuation, 1.3) * np.clip(air, 0.0, 1.0))


def _branch(
    tree: _Film,
    random: np.random.Generator,
    start: _Point,
    angle: float,
    side: float,
    radius: float,
) -> None:
    """Draw a vessel and what it divides into."""
    length = 5.5 * radius * random.uniform(0.8, 1.3)
    end = (start[0] + side * length * np.cos(angle), start[1] + length * np.sin(angle))
    tree.tube(min(1.0, radius / 0.016), [start, end], radius)
    if radius > 0.009:
        for turn in (-1.0, 1.0):
            fork = angle + turn * random.uniform(0.12, 0.45)
            _branch(tree, random, end, fork, side, radius * random.uniform(0.66, 0.82))


def _bowel_gas(film: _Film, random: np.random.Generator) -> None:
    """The stomach's bubble under the left dome, and gas below."""
    bubbles = [_radius(film, (0.34, 0.72), (0.19, 0.09), -0.25)]
    for _ in range(9):
        centre = (random.uniform(-0.55, 0.55), random.uniform(0.92, 1.25))
        radii = (random.uniform(0.06, 0.15), random.uniform(0.05, 0.08))
        bubbles.append(_radius(film, centre, radii, random.uniform(-0.8, 0.8)))
    rough = 0.16 * _cloud(random, film.x.shape, 14.0)
    film.add(-0.15, _step((1.0 + rough - np.minimum.reduce(bubbles)) / 0.25))


def _spine(film: _Film, random: np.random.Generator) -> None:
    """Vertebrae with discs between them and two pedicles on each."""
    lean = random.uniform(-0.02, 0.02)
    for number in range(19):
        down = -1.22 + 0.138 * number
        wide = 0.075 + 0.0016 * number
        across = lean * np.sin(1.5 * down)
        film.block(0.10, (across, down), (wide, 0.058), 0.014)
        for side in (-1.0, 1.0):
            ring = _radius(film, (across + side * 0.62 * wide, down - 0.01), (0.019, 0.026))
            film.add(0.06, np.exp(-(((ring - 0.8) / 0.35) ** 2)))
            process = [
                (across + side * wide, down - 0.02),
                (across + side * (wide + 0.055), down - 0.035),
            ]
            film.tube(0.07, process, 0.020)
        film.tube(0.08, [(across, down + 0.01), (across, down + 0.06)], 0.014)


def _ribs(film: _Film, random: np.random.Generator, grown: float) -> None:
    """Rings around the chest, tilted forwards: seen from the front each is an ellipse.

    Its upper half is the rib behind; its lower half is the rib in front, which is wider
    and fainter and ends in cartilage, that does not show.
    """
    x, y = film.x, film.y
    for number in range(12):
        middle = -0.70 + 0.128 * number + random.uniform(-0.006, 0.006)
        half = float(np.interp(number, [0, 1, 2, 4, 7, 11], [0.30, 0.44, 0.54, 0.64, 0.705, 0.72]))
        tilt = (0.10 + 0.013 * number) * (1.0 + 0.6 * grown) + random.uniform(-0.008, 0.008)
        radius = np.hypot(x / half, (y - middle) / tilt)
        slope = np.hypot(x / half**2, (y - middle) / tilt**2) / np.maximum(radius, 1e-6)
        distance = np.abs(radius - 1.0) / np.maximum(slope, 1e-6)
        behind = y < middle
        reach = _step((np.abs(x) - 0.085) / 0.02)
        front = _step((np.abs(x) - (0.30 + 0.022 * number)) / 0.03) * (number < 10)
        shade = np.where(behind, reach, 0.72 * front) * np.where(y > 0.95, 0.4, 1.0)
        if number >= 10:  # the last two ribs float: they end in the flank
            shade *= _step((0.52 - 0.14 * (number - 10) - np.abs(x)) / 0.03)
        wide = np.where(behind, 0.033, 0.042)
        path = _cylinder(distance, wide) - 0.75 * _cylinder(distance, 0.72 * wide)
        steep = 1.0 + 0.5 * np.clip(np.abs(x) / half, 0, 1) ** 8  # seen along its length
        film.add(0.26, shade * steep * path / wide)


def _shoulder_girdle(film: _Film, random: np.random.Generator, projection: str) -> None:
    """Collar bones, shoulder blades and upper arms."""
    lift = random.uniform(-0.05, 0.03)
    overlap = 0.10 if projection == "AP" else 0.0
    for side in (-1.0, 1.0):
        t = np.linspace(0.0, 1.0, 12)
        across = side * (0.09 + 0.56 * t)
        down = -0.58 + lift * t - 0.20 * t - 0.05 * np.sin(2 * np.pi * t)
        film.tube(0.24, list(zip(across, down, strict=True)), 0.031, hollow=0.68)
        inner = side * (0.60 - overlap)
        blade = [(side * 0.70, -0.66), (inner, -0.62), (inner + side * 0.05, -0.10)]
        for start, end in zip(blade, [*blade[1:], blade[0]], strict=True):
            film.tube(0.06, [start, end], 0.022)
        film.tube(0.12, [(inner, -0.56), (side * 0.74, -0.82)], 0.028, hollow=0.7)
        film.bone(0.36, (side * 0.80, -0.72), (side * 1.30, -0.02), 0.085)
        film.add(0.16, _chord(_radius(film, (side * 0.765, -0.755), (0.085, 0.075))))


def _long_bone(film: _Film, start: _Point, end: _Point, radius: float, *, cap_first: bool) -> None:
    """A growing bone: the shaft and, beyond a dark growth plate, its epiphysis."""
    film.bone(0.42, start, end, radius)
    tip, other = np.asarray([start, end] if cap_first else [end, start])
    way = (tip - other) / np.linalg.norm(tip - other)
    centre = tip + 0.030 * way
    angle = float(np.arctan2(way[0], -way[1]))
    path = _chord(_radius(film, (centre[0], centre[1]), (0.85 * radius, 0.022), angle))
    film.add(0.20, path)


def _develop(
    film: _Film,
    random: np.random.Generator,
    *,
    side: str | None,
    collimated: bool = False,
    curve: tuple[float, float] = (0.66, 0.36),
) -> Picture:
    """Scatter, quantum noise, the characteristic curve, the border and the marker.

    ``curve`` is the attenuation shown as middle grey, and the one that halves contrast.
    """
    shape = film.x.shape
    signal = _blur(film.attenuation, 0.8)
    signal = 0.86 * signal + 0.14 * _blur(signal, 0.05 * shape[1])
    signal += 0.008 * _cloud(random, shape, 3.0) + 0.012 * _cloud(random, shape, 30.0)
    # Fewer quanta arrive behind more tissue; the detector smears each a little.
    grain = _blur(random.standard_normal(shape), 0.6)
    signal += 0.013 * np.exp(0.6 * np.clip(signal, 0.0, 1.5)) * grain
    middle, spread = curve
    black, white = (0.5 + 0.5 * np.tanh((end - middle) / (2 * spread)) for end in (0.0, 1.7))
    picture = 0.5 + 0.5 * np.tanh((signal - middle) / (2 * spread))
    picture = 0.03 + 0.93 * (picture - black) / (white - black)
    rows, columns = shape
    if collimated:
        picture[_border(shape, random)] = 0.015
    if side is not None:
        top, left, tall = round(0.14 * rows), round(0.90 * columns), round(0.055 * rows)
        thick = max(2, tall // 6)
        picture[top : top + tall, left : left + thick] = 1.0
        picture[top + tall - thick : top + tall, left : left + round(0.6 * tall)] = 1.0
    shown: Picture = np.clip(picture, 0.0, 1.0)
    return shown


def _border(shape: _Shape, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Where a rectangular collimator lets nothing through."""
    rows, columns = shape
    outside = np.ones(shape, np.bool_)
    top, bottom = (random.uniform(0.03, 0.07, 2) * rows).astype(int)
    left, right = (random.uniform(0.03, 0.06, 2) * columns).astype(int)
    outside[top : rows - bottom, left : columns - right] = False
    return outside


def _chord(radius: Picture) -> Picture:
    """The path through a ball of radius 1.0 (1.0 in its middle) at a distance."""
    path: Picture = np.sqrt(np.clip(1.0 - radius**2, 0.0, None))
    return path


def _cylinder(distance: Picture, radius: Picture | float) -> Picture:
    """Half the path across a cylinder at a distance from its axis."""
    return np.sqrt(np.clip(np.square(radius) - distance**2, 0.0, None))


def _step(value: Picture) -> Picture:
    """From 0.0 to 1.0, softly, where the value passes 0.0."""
    share: Picture = 0.5 + 0.5 * np.tanh(value)
    return share


def _radius(film: _Film, centre: _Point, radii: _Point, angle: float = 0.0) -> Picture:
    """The distance from a centre in radii of an ellipse turned clockwise by radians."""
    x, y = film.x - centre[0], film.y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance: Picture = np.hypot(along / radii[0], across / radii[1])
    return distance


def _disc(film: _Film, centre: _Point, radii: _Point, angle: float, soft: float) -> Picture:
    """A filled ellipse: 1.0 inside, 0.0 outside, over ``soft`` radii between."""
    return _step((1.0 - _radius(film, centre, radii, angle)) / soft)


def _blur(picture: Picture, sigma: float) -> Picture:
    """Convolve with a Gaussian of ``sigma`` pixels; beyond the edge, the edge goes on."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in ("rows", "columns"):
        padded = np.pad(picture, [(0, 0), (reach, reach)], mode="edge")
        picture = np.array([np.convolve(line, kernel, "valid") for line in padded]).T
    return picture


def _cloud(random: np.random.Generator, shape: _Shape, sigma: float) -> Picture:
    """Smooth noise of mean 0.0 and standard deviation 1.0, ``sigma`` pixels coarse."""
    step = max(1, int(sigma / 2))
    coarse = _blur(random.standard_normal([side // step + 9 for side in shape]), sigma / step)
    rows, columns = (np.arange(side) / step + 4 for side in shape)
    along = np.array([np.interp(columns, np.arange(coarse.shape[1]), row) for row in coarse])
    fine = np.array([np.interp(rows, np.arange(len(along)), line) for line in along.T]).T
    even: Picture = (fine - fine.mean()) / fine.std()
    return even


# --- DICOM objects -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exam:
    """A synthetic patient with one study.

    Attributes
    ----------
    number : int
        Names the patient (``SYN-0001``) and the accession (``SYN-A-0001``).
    age : int
        Years, completed.
    sex : {"F", "M", "O"}
    priority : str
        Requested Procedure Priority (PS3.3 C.4.11): STAT, HIGH, ROUTINE, MEDIUM, LOW, or
        empty to leave the element out.
    seed : int
        Another seed gives the same names and other UIDs.
    """

    number: int
    age: int = 3
    sex: Literal["F", "M", "O"] = "O"
    priority: str = ""
    seed: int = SEED

    def uid(self, *parts: object) -> UID:
        """Return the UID of the part of the exam that is so named (PS3.5 B.2)."""
        name = "/".join(["cxr-triage/sample_dicom", *map(str, (self.seed, self.number, *parts))])
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, name).int}")


def as_dx(
    picture: Picture,
    exam: Exam,
    *,
    view: View = "PA",
    body_part: BodyPart = "CHEST",
    instance: int = 1,
    bits: int = 12,
    photometric: Photometric = "MONOCHROME2",
    window: tuple[float, float] = (0.5, 1.0),
    encoding: Encoding = "EXPLICIT",
) -> Dataset:
    """Make a Digital X-Ray Image, For Presentation (PS3.3 A.26).

    Parameters
    ----------
    picture : ndarray of float64, shape (rows, columns), 0.0 (black) to 1.0 (white)
        As displayed; stored inverted for MONOCHROME1.
    exam : Exam
        Objects of one exam are of one study, those of one view also of one series.
    view : {"PA", "AP", "LL"}
    body_part : {"CHEST", "HAND"}
        A hand is PA.
    instance : int
        Instance Number in the series. It makes the SOP Instance UID: two objects of one exam,
        class, body part and view need two numbers.
    bits : int
        Bits Stored, 6 to 16 (PS3.3 C.8.11.3); 8 for JPEG.
    photometric : {"MONOCHROME1", "MONOCHROME2"}
    window : tuple of two float
        Center and width on the picture's scale; (0.5, 1.0) shows it as it is. A DX for
        presentation has a VOI (PS3.3 C.8.11.3), so it cannot be left out.
    encoding : {"EXPLICIT", "RLE", "JPEG"}

    Returns
    -------
    pydicom.Dataset
        With file meta information, ready to be written or sent.
    """
    dataset = _composite(exam, DigitalXRayImageStorageForPresentation, view, body_part, instance)
    # DX Series and DX Anatomy Imaged (PS3.3 C.8.11.1, C.8.11.2).
    dataset.Modality = "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U" if body_part == "CHEST" else "L"
    dataset.AnatomicRegionSequence = [_code(*_REGION_CODES[body_part])]
    # DX Image (PS3.3 C.8.11.3).
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.PixelIntensityRelationship = "LOG"
    # More is stored where fewer quanta arrived, or the other way round.
    dataset.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    dataset.PresentationLUTShape = "IDENTITY" if photometric == "MONOCHROME2" else "INVERSE"
    dataset.LossyImageCompression = "00"
    dataset.AcquisitionContextSequence = []
    # DX Detector and DX Positioning (PS3.3 C.8.11.4, C.8.11.5).
    dataset.DetectorType = "SCINTILLATOR"
    dataset.PositionerType = "NONE"
    dataset.ViewCodeSequence = [_code(*_VIEW_CODES[view])]
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    _set_window(dataset, window, bits, photometric)
    _set_pixels(dataset, picture, bits, photometric, encoding)
    return dataset


def as_cr(
    picture: Picture,
    exam: Exam,
    *,
    view: View = "PA",
    body_part: BodyPart = "CHEST",
    instance: int = 1,
    bits: int = 10,
    photometric: Photometric = "MONOCHROME2",
    window: tuple[float, float] | None = (0.5, 1.0),
    encoding: Encoding = "EXPLICIT",
) -> Dataset:
    """Make a Computed Radiography Image (PS3.3 A.2).

    The parameters are those of :func:`as_dx`, save that ``window`` may be None: a CR need
    not have a VOI.
    """
    dataset = _composite(exam, ComputedRadiographyImageStorage, view, body_part, instance)
    # CR Series and CR Image (PS3.3 C.8.1.1, C.8.1.2).
    dataset.Modality = "CR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PlateID = "SYN-PLATE"
    if body_part == "HAND":
        dataset.Laterality = "L"
    if window is not None:
        _set_window(dataset, window, bits, photometric)
    _set_pixels(dataset, picture, bits, photometric, encoding)
    return dataset


def _composite(
    exam: Exam, sop_class: UID, view: View, body_part: BodyPart, instance: int
) -> Dataset:
    """Everything but the pixels that CR and DX share."""
    series = (sop_class, body_part, view)
    dataset = Dataset()
    # SOP Common (PS3.3 C.12.1).
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = exam.uid(*series, instance)
    # Patient and Patient Study (PS3.3 C.7.1.1, C.7.2.2).
    dataset.PatientName = f"Synthetic^{_spelled(exam.number)}"
    dataset.PatientID = f"SYN-{exam.number:04}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = exam.sex
    dataset.PatientAge = f"{exam.age:03}Y"
    dataset.PatientComments = _COMMENT
    # General Study and General Series (PS3.3 C.7.2.1, C.7.3.1).
    dataset.StudyInstanceUID = exam.uid("study")
    dataset.StudyID = f"{exam.number}"
    dataset.StudyDescription = f"Synthetic {body_part.lower()}"
    dataset.AccessionNumber = f"SYN-A-{exam.number:04}"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesInstanceUID = exam.uid(*series)
    dataset.SeriesNumber = 2 if view == "LL" else 1
    dataset.SeriesDescription = f"{body_part.title()} {view}"
    dataset.BodyPartExamined = body_part
    dataset.ViewPosition = view
    if exam.priority:
        # Not of an image's modules: a Standard Extended SOP Class (PS3.2 7.3), as modalities
        # write that copy it from the worklist.
        dataset.RequestedProcedurePriority = exam.priority
    # General Equipment (PS3.3 C.7.5.1).
    dataset.Manufacturer = "cxr-triage"
    dataset.ManufacturerModelName = "sample_dicom"
    dataset.InstitutionName = "Synthetic"
    # General Image and General Acquisition (PS3.3 C.7.6.1, C.7.10.1).
    dataset.InstanceNumber = instance
    dataset.PatientOrientation = _ORIENTATION[body_part, view]
    dataset.BurnedInAnnotation = "NO"  # the side marker identifies nobody
    dataset.ImageComments = _COMMENT
    began = f"09{exam.number % 60:02}"
    seconds = {"Study": 0, "Series": 0, "Acquisition": instance, "Content": instance}
    for part, second in seconds.items():
        setattr(dataset, f"{part}Date", _DATE)
        setattr(dataset, f"{part}Time", f"{began}{second % 60:02}")
    # CR Image and DX Detector.
    dataset.KVP = 60
    dataset.ImagerPixelSpacing = [0.5, 0.5]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # Named here, so that the bytes do not depend on the version of pydicom.
    meta.ImplementationClassUID = Exam(0).uid("implementation")
    meta.ImplementationVersionName = "CXR_SYNTHETIC_1"
    dataset.file_meta = meta
    return dataset


def _spelled(number: int) -> str:
    """A number's digits as words, because names have no digits: ``TwoZero``."""
    words = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return "".join(words[int(digit)] for digit in str(number))


def _code(value: str, meaning: str) -> Dataset:
    """An item of a code sequence in SNOMED CT (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _set_window(
    dataset: Dataset, window: tuple[float, float], bits: int, photometric: Photometric
) -> None:
    """A linear window, turned from the picture's scale to stored values (PS3.3 C.11.2.1.2)."""
    center, width = (round(end * 2**bits) for end in window)
    dataset.WindowCenter = center if photometric == "MONOCHROME2" else 2**bits - center
    dataset.WindowWidth = width
    dataset.WindowCenterWidthExplanation = "Standard"


def _set_pixels(
    dataset: Dataset, picture: Picture, bits: int, photometric: Photometric, encoding: Encoding
) -> None:
    """Image Pixel (PS3.3 C.7.6.3) and, for JPEG, what was lost (C.7.6.1.1.5)."""
    if encoding == "JPEG" and bits != 8:
        raise ValueError(f"JPEG Baseline is of 8 bits, not {bits}")
    values = np.rint(picture * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    if photometric == "MONOCHROME1":
        values = 2**bits - 1 - values
    dataset.set_pixel_data(values, photometric, bits, generate_instance_uid=False)
    if encoding == "RLE":
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    if encoding == "JPEG":
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "JPEG", quality=90)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = round(values.nbytes / stream.tell(), 2)
        dataset.LossyImageCompressionMethod = "ISO_10918_1"


# --- The committed set -------------------------------------------------------------------


def samples(seed: int = SEED) -> Iterator[tuple[str, Dataset]]:
    """Yield the file name and the object of each sample; ``README.md`` lists them."""

    def exam(number: int, age: int, sex: Literal["F", "M"], priority: str = "") -> Exam:
        return Exam(number, age, sex, priority, seed)

    one = exam(1, 3, "F")
    yield "01-dx-pa-12bit.dcm", as_dx(chest(seed + 1), one)
    yield "02-dx-lateral-rle.dcm", as_dx(lateral(seed + 1), one, view="LL", encoding="RLE")

    # One picture in both polarities: two instances of one series.
    two = exam(2, 2, "M")
    ill = chest(seed + 2, opacity=0.8, projection="AP", age=2)
    yield "03-dx-ap-opacity.dcm", as_dx(ill, two, view="AP", window=(0.52, 0.9))
    yield (
        "04-dx-ap-opacity-monochrome1.dcm",
        as_dx(ill, two, view="AP", window=(0.52, 0.9), instance=2, photometric="MONOCHROME1"),
    )

    yield (
        "05-dx-ap-opacity-stat.dcm",
        as_dx(
            chest(seed + 3, opacity=1.0, projection="AP", age=1),
            exam(3, 1, "F", "STAT"),
            view="AP",
            encoding="RLE",
        ),
    )
    yield (
        "06-cr-pa-jpeg-8bit.dcm",
        as_cr(chest(seed + 4, age=4), exam(4, 4, "M"), bits=8, encoding="JPEG"),
    )
    yield (
        "07-cr-ap-opacity-no-voi.dcm",
        as_cr(
            chest(seed + 5, opacity=0.7, projection="AP", age=2),
            exam(5, 2, "F"),
            view="AP",
            window=None,
            encoding="RLE",
        ),
    )
    yield (
        "08-cr-pa-opacity-rle.dcm",
        as_cr(chest(seed + 6, opacity=0.9, age=5), exam(6, 5, "M"), encoding="RLE"),
    )
    yield (
        "09-dx-pa-collimated.dcm",
        as_dx(chest(seed + 7, age=5, collimated=True), exam(7, 5, "F"), encoding="RLE"),
    )
    yield "10-dx-pa-adult.dcm", as_dx(chest(seed + 8, age=54), exam(8, 54, "M"), encoding="RLE")
    yield (
        "11-cr-hand.dcm",
        as_cr(hand(seed + 9), exam(9, 4, "F"), body_part="HAND", encoding="RLE"),
    )
    yield (
        "12-cr-ap-monochrome1-no-voi.dcm",
        as_cr(
            chest(seed + 10, projection="AP", age=1, marker=False),
            exam(10, 1, "M"),
            view="AP",
            photometric="MONOCHROME1",
            window=None,
            encoding="RLE",
        ),
    )


def write(dataset: Dataset, path: Path) -> None:
    """Write a DICOM file (PS3.10 7)."""
    dcmwrite(path, dataset, enforce_file_format=True)


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    show_default="the folder of this program",
    help="Where the files go.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=SEED,
    show_default=True,
    help="Another seed draws other children.",
)
def main(out: Path, seed: int) -> None:
    """Draw the sample radiographs."""
    out.mkdir(parents=True, exist_ok=True)
    for name, dataset in samples(seed):
        write(dataset, out / name)
        click.echo(name)


if __name__ == "__main__":
    main()
