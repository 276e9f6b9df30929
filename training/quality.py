"""Fit a :class:`triage.quality.Quality` on training radiographs and their degraded copies.

Every limit is set by the false alarms on the radiographs as they are, on held-out patients
where a model is fitted; the degraded copies teach one thing only, what a chest looks like
whose edge is cut off (by ridge regression, Hoerl and Kennard 1970).
"""

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.novelty import REFUSED, Arrays, Rows, describe, fit, folds, placed
from triage.novelty import Features, Novelty, features, turned
from triage.pixels import SIDE, Array
from triage.quality import EDGES, Quality, blur, clipped

FALSE_ALARMS = 0.008
"""The share of radiographs as they are that each finding may be raised on."""

RESAMPLING = 1.0
"""Nepers of :func:`triage.quality.blur` that moving a picture by half a pixel may cost."""

PENALTY = 1000.0
"""Of the ridge regression; 100 to 10,000 differ little."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a fit needs to know of the pictures; one row is one picture.

    Attributes
    ----------
    patients : ndarray of str, shape (pictures,)
    plain, copies : ndarray of float32, shape (pictures, 576)
        Of the pictures, and of varied copies; see :mod:`training.novelty`.
    smaller : ndarray of float32, shape (pictures, 576)
        Of copies that are turned, moved and shrunk, with nothing cut off.
    cut : ndarray of float32, shape (pictures, 576)
        Of copies with one edge cut off.
    losses : ndarray of float32, shape (pictures, 4)
        How much of ``cut`` was cut off at each edge, as a share of the side.
    clipped : ndarray of float32, shape (pictures, 2)
    blur : ndarray of float32, shape (pictures,)
    """

    patients: npt.NDArray[np.str_]
    plain: Features
    copies: Features
    smaller: Features
    cut: Features
    losses: npt.NDArray[np.float32]
    clipped: npt.NDArray[np.float32]
    blur: npt.NDArray[np.float32]

    def of(self, rows: Rows) -> "Material":
        """Some of the pictures."""
        return Material(*(getattr(self, field.name)[rows] for field in fields(self)))


def material(arrays: Arrays, patients: npt.NDArray[np.str_], seed: int) -> Material:
    """Look at pictures once, so that several fits can be made of them."""
    random = np.random.default_rng([seed, 1])
    plain, copies = describe(arrays, seed)
    count = len(patients)
    smaller, cut = np.empty_like(plain), np.empty_like(plain)
    losses = np.zeros((count, len(EDGES)), np.float32)
    losses[np.arange(count), random.integers(len(EDGES), size=count)] = random.uniform(
        0.10, 0.35, count
    )
    shares, blurs = np.empty((count, 2), np.float32), np.empty(count, np.float32)
    for row, array in enumerate(arrays):
        picture = array.astype(np.float32)
        smaller[row] = features(_smaller(picture, random))
        cut[row] = features(cut_off(picture, losses[row]))
        shares[row], blurs[row] = clipped(picture), blur(picture)
    return Material(patients, plain, copies, smaller, cut, losses, shares, blurs)


def _smaller(array: Array, random: np.random.Generator) -> Array:
    angle = np.deg2rad(random.uniform(-10.0, 10.0))
    return placed(array, angle, random.uniform(0.8, 1.0, 2), random.uniform(-0.05, 0.05, 2))


def cut_off(array: Array, losses: npt.NDArray[np.float32]) -> Array:
    """Leave away shares of the side at the left, top, right and bottom, and enlarge the rest."""
    left, top, right, bottom = (float(loss) * SIDE for loss in losses)
    box = (left, top, SIDE - right, SIDE - bottom)
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


def fit_quality(given: Material) -> Quality:
    """Fit novelty and quality.

    Every limit is passed by at most :data:`FALSE_ALARMS` of the pictures as they are; a
    finding that has several limits shares that out among them. The limit of blur has room
    besides, because consoles resample pictures and nobody wants to hear of that.
    """
    novelty = fit(given.plain, given.copies, given.patients)
    seeming = np.empty((len(given.patients), len(EDGES)))
    apart = np.empty(len(given.patients))
    for rest, held in folds(given.patients):
        others = given.of(rest)
        without = fit(others.plain, others.copies, others.patients)
        weights = _weights(others, novelty)
        seeming[held] = _judge(novelty, weights).cut(given.plain[held])
        plain = given.plain[held]
        mirrored = turned(plain, 0, mirrored=True, inverted=False)
        apart[held] = without.distances(plain) / without.distances(mirrored)
    return Quality(
        novelty,
        _weights(given, novelty),
        np.quantile(seeming, 1.0 - FALSE_ALARMS / len(EDGES), axis=0).astype(np.float32),
        np.quantile(given.clipped, 1.0 - FALSE_ALARMS / 2, axis=0).astype(np.float32),
        float(np.quantile(given.blur, 1.0 - FALSE_ALARMS)) + RESAMPLING,
        max(1.01, float(np.quantile(apart, 1.0 - FALSE_ALARMS))),
    )


def fit_and_measure(
    arrays: Arrays, patients: npt.NDArray[np.str_], held_out: Rows, seed: int
) -> tuple[Quality, dict[str, Any]]:
    """Fit on all pictures but the held-out ones, and count what is said of these.

    Returns
    -------
    Quality
    dict
        For ``model.json``.
    """
    fitted_on = np.setdiff1d(np.arange(len(patients)), held_out)
    given = material([arrays[row] for row in fitted_on], patients[fitted_on], seed)
    quality = fit_quality(given)
    said: Counter[str] = Counter()
    for row in held_out:
        array = arrays[row].astype(np.float32)
        said.update(quality.findings(array))
        said["NOT_LIKE_TRAINING"] += quality.novelty.is_novel(array)
    return quality, {
        "wanted_share_novel": REFUSED,
        "wanted_share_of_a_finding": FALSE_ALARMS,
        "held_out": len(held_out),
        "said_of_held_out": dict(sorted(said.items())),
    }


def _weights(given: Material, novelty: Novelty) -> Features:
    """The ridge regression of losses on standardized features, shape (4, 577)."""
    described = np.concatenate([given.plain, given.smaller, given.cut])
    standard = ((described - novelty.mean) / novelty.scale).astype(np.float64)
    whole = np.zeros((2 * len(given.plain), len(EDGES)))
    losses = np.concatenate([whole, given.losses])
    middle, mean = standard.mean(axis=0), losses.mean(axis=0)
    centred = standard - middle
    gram = centred.T @ centred + PENALTY * np.eye(standard.shape[1])
    slope = np.linalg.solve(gram, centred.T @ (losses - mean)).T
    return np.column_stack([slope, mean - slope @ middle]).astype(np.float32)


def _judge(novelty: Novelty, weights: Features) -> Quality:
    """Weights without limits yet."""
    return Quality(novelty, weights, np.zeros(4, np.float32), np.zeros(2, np.float32), 0.0, 1.0)
