"""Fit a :class:`triage.novelty.Novelty` on training radiographs.

Each radiograph counts twice: as it is, and once turned, moved, stretched and shown with
another gamma, because the next console's technologist positions and windows otherwise.
The threshold is the novelty that one in five hundred of them exceeds when the parameters
were fitted without any picture of its patient. No other pictures take part.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.model_selection import GroupKFold

from triage.errors import DataError
from triage.novelty import Features, Novelty, features
from triage.pixels import SIDE, Array

REFUSED = 0.002
"""The share of frontal chest radiographs that may be called novel."""

COMPONENTS = 120
"""Principal directions with a variance of their own; they hold nine tenths of all variance."""

FOLDS = 5

Arrays = Sequence[npt.NDArray[np.float16]] | npt.NDArray[np.float16]
"""Normalized pictures, each float16, shape (256, 256), 0 to 1."""

Rows = npt.NDArray[np.intp]


def varied(array: Array, random: np.random.Generator) -> Array:
    """Turn by up to 12 degrees, move by 6% of the side, stretch by 12%, change gamma."""
    angle = np.deg2rad(random.uniform(-12.0, 12.0))
    stretch = random.uniform(0.88, 1.12, 2)
    move = random.uniform(-0.06, 0.06, 2)
    gamma = np.exp(random.uniform(np.log(0.7), np.log(1.4)))
    return placed(array**gamma, angle, stretch, move)


def placed(
    array: Array, angle: float, stretch: npt.NDArray[np.float64], move: npt.NDArray[np.float64]
) -> Array:
    """Turn counterclockwise and stretch about the middle, then move; black comes in.

    Parameters
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0
    angle : float
        Radians.
    stretch, move : ndarray of float64, shape (2,)
        Factors, and shares of the side: across, down.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    back = np.array([[cosine, -sine], [sine, cosine]]) / stretch[:, np.newaxis]
    middle = np.full(2, SIDE / 2)
    start = middle - back @ (middle + SIDE * move)
    matrix = (*back[0], start[0], *back[1], start[1])
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    bilinear = Image.Resampling.BILINEAR
    return np.asarray(image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, bilinear))


def describe(arrays: Arrays, seed: int) -> tuple[Features, Features]:
    """Features of the pictures as they are and of a varied copy of each.

    Returns
    -------
    tuple of two ndarray of float32, shape (pictures, 576)
    """
    random = np.random.default_rng(seed)
    plain = np.stack([features(array.astype(np.float32)) for array in arrays])
    copies = np.stack([features(varied(array.astype(np.float32), random)) for array in arrays])
    return plain, copies


def folds(patients: npt.NDArray[np.str_]) -> list[tuple[Rows, Rows]]:
    """Rows to fit on and rows to measure, so that no patient is on both sides.

    Raises
    ------
    DataError
        There are fewer than five patients.
    """
    count = len(np.unique(patients))
    if count < FOLDS:
        raise DataError(f"novelty is fitted on at least {FOLDS} patients, here are {count}")
    split = GroupKFold(FOLDS, shuffle=True, random_state=0).split(patients, groups=patients)
    return [(rest, held) for rest, held in split]


def fit(plain: Features, copies: Features, patients: npt.NDArray[np.str_]) -> Novelty:
    """Fit the distribution on all pictures and the threshold on held-out patients.

    Parameters
    ----------
    plain, copies : ndarray of float32, shape (pictures, 576)
        As :func:`describe` gives them.
    patients : ndarray of str, shape (pictures,)
    """
    held_out = [
        _distribution(np.concatenate([plain[rest], copies[rest]]), 1.0).distances(
            np.concatenate([plain[held], copies[held]])
        )
        for rest, held in folds(patients)
    ]
    threshold = float(np.quantile(np.concatenate(held_out), 1.0 - REFUSED))
    return _distribution(np.concatenate([plain, copies]), threshold)


def _distribution(described: Features, threshold: float) -> Novelty:
    """The Gaussian of these pictures (Tipping and Bishop 1999, equations 7 and 8)."""
    mean = described.mean(axis=0)
    scale = np.maximum(described.std(axis=0), 1e-3)
    standard = ((described - mean) / scale).astype(np.float64)
    # A few pictures give a few directions; half of these keeps the rest's variance honest.
    components = min(COMPONENTS, len(described) // 2)
    variance, directions = np.linalg.eigh(standard.T @ standard / len(standard))
    rest = float(variance[:-components].mean())
    principal = directions[:, : -components - 1 : -1].T
    return Novelty(
        mean.astype(np.float32),
        scale.astype(np.float32),
        principal.astype(np.float32),
        np.maximum(variance[: -components - 1 : -1], rest).astype(np.float32),
        rest,
        threshold,
    )
