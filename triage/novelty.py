"""Is this picture like those a model was trained on? Tags lie; the picture is asked, too.

A picture is described by where its edges are and which way they run (histograms of
oriented gradients, Dalal and Triggs 2005) and by a thumbnail. Training radiographs fill a
small part of the space of such descriptions. Their distribution is taken for a Gaussian
whose variance outside its principal subspace is the same in all directions, and a
picture's *novelty* is its squared distance from their mean in that distribution: the
Mahalanobis distance in the subspace plus the distance from it (Moghaddam and Pentland,
IEEE PAMI 19(7), 1997; Tipping and Bishop, JRSS B 61, 1999).

Edges are weighed by the square root of their strength, relative to the whole picture's, so
that window, gamma and an opacity change little; soft cells and training on turned and
shifted copies allow for positioning. The parameters are data: ``training.novelty`` fits
them, and they belong to a model version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from triage.errors import ModelError
from triage.pixels import Array

NOVELTY = "novelty.npz"
"""The file of a model version that holds its :class:`Novelty`."""

CELLS = 8
"""Rows and columns of the grid that edges are counted on, and of the thumbnail."""

DIRECTIONS = 8
"""Directions that an edge's slope may have, over the full circle: polarity counts."""

FEATURES = (DIRECTIONS + 1) * CELLS * CELLS

_EDGES_SIDE = 64

Features = npt.NDArray[np.float32]
"""float32, shape (..., 576): edges by direction, row and column, then the thumbnail."""


def features(array: Array) -> Features:
    """Describe a picture.

    Parameters
    ----------
    array : ndarray of float32, shape (256, 256), 0.0 to 1.0

    Returns
    -------
    ndarray of float32, shape (576,)
        512 roots of shares of the edge strength, 0 to 1, which are blind to contrast; and
        64 brightnesses with mean 0 and standard deviation 1.
    """
    picture = np.pad(_resized(array, _EDGES_SIDE), 1, mode="edge")
    across = picture[1:-1, 2:] - picture[1:-1, :-2]
    down = picture[2:, 1:-1] - picture[:-2, 1:-1]
    strength = np.hypot(across, down)
    direction = np.arctan2(down, across) * (DIRECTIONS / (2 * np.pi))
    counts = np.empty((DIRECTIONS, CELLS, CELLS), np.float32)
    for number in range(DIRECTIONS):
        # An edge between two directions counts for both, in proportion.
        apart = np.abs((direction - number + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2)
        counts[number] = _resized(strength * np.maximum(1.0 - apart, 0.0), CELLS)
    edges = np.sqrt(np.maximum(counts, 0.0) / (counts.sum() + 1e-9))
    thumbnail = _resized(array, CELLS)
    thumbnail = (thumbnail - thumbnail.mean()) / (thumbnail.std() + 1e-3)
    return np.concatenate([edges.ravel(), thumbnail.ravel()]).astype(np.float32)


def _resized(picture: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(picture, np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def turned(described: Features, quarters: int, *, mirrored: bool, inverted: bool) -> Features:
    """Features of the picture mirrored, inverted and turned, without looking at it again.

    They are the same numbers in another order; an inverted thumbnail changes its sign.

    Parameters
    ----------
    described : ndarray of float32, shape (..., 576)
    quarters : int
        Quarter turns counterclockwise, after mirroring.
    mirrored : bool
        Left to right.
    inverted : bool
        Black for white.
    """
    grid = described.reshape(*described.shape[:-1], DIRECTIONS + 1, CELLS, CELLS)
    directions = np.arange(DIRECTIONS) + 2 * quarters + (DIRECTIONS // 2) * inverted
    if mirrored:
        grid, directions = grid[..., ::-1], DIRECTIONS // 2 - directions
    order = [*(directions % DIRECTIONS), DIRECTIONS]
    grid = np.rot90(grid[..., order, :, :], quarters, axes=(-2, -1)).copy()
    if inverted:
        grid[..., DIRECTIONS, :, :] *= -1
    return grid.reshape(described.shape)


@dataclass(frozen=True, slots=True)
class Novelty:
    """How unlike the training radiographs a picture is.

    Attributes
    ----------
    mean, scale : ndarray of float32, shape (576,)
        Of the training radiographs' features; standard deviations.
    basis : ndarray of float32, shape (components, 576)
        Orthonormal principal directions of the features after mean and scale.
    variance : ndarray of float32, shape (components,)
        Along each of them.
    rest : float
        The variance along every other direction.
    threshold : float
        The squared distance that is called novelty 1.0.
    """

    mean: Features
    scale: Features
    basis: Features
    variance: npt.NDArray[np.float32]
    rest: float
    threshold: float

    def measure(self, array: Array) -> float:
        """Return the novelty, 0.0 or more; above 1.0 the picture is not like the training data.

        Parameters
        ----------
        array : ndarray of float32, shape (256, 256), 0.0 to 1.0
        """
        return float(self.distances(features(array))) / self.threshold

    def is_novel(self, array: Array) -> bool:
        """Whether the picture is not like the training data."""
        return self.measure(array) > 1.0

    def distances(self, described: Features) -> npt.NDArray[np.float64]:
        """Squared distances of described pictures from the training data's mean.

        Parameters
        ----------
        described : ndarray of float32, shape (..., 576)

        Returns
        -------
        ndarray of float64, shape (...)
        """
        centred = ((described - self.mean) / self.scale).astype(np.float64)
        inside = centred @ self.basis.T
        within = np.square(inside) @ (1.0 / self.variance.astype(np.float64))
        outside = np.square(centred).sum(axis=-1) - np.square(inside).sum(axis=-1)
        return np.asarray(within + outside / self.rest)

    def save(self, path: Path) -> None:
        """Write the parameters; the same parameters give the same bytes."""
        with path.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Novelty":
        """Read the parameters.

        Raises
        ------
        ModelError
            The file cannot be read, or is not such a file.
        """
        shapes = {
            "mean": (FEATURES,),
            "scale": (FEATURES,),
            "basis": (-1, FEATURES),
            "variance": (-1,),
            "rest": (),
            "threshold": (),
        }
        found = load_parameters(path, shapes)
        if len(found["basis"]) != len(found["variance"]):
            raise ModelError(f"{path} is damaged (basis and variance differ in length): restore it")
        for name in ("scale", "variance", "rest", "threshold"):
            if not (found[name] > 0).all():
                raise ModelError(f"{path} is damaged ({name} is not above 0): restore it")
        rest, threshold = float(found["rest"]), float(found["threshold"])
        return cls(
            found["mean"], found["scale"], found["basis"], found["variance"], rest, threshold
        )


def load_parameters(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Read the arrays of an ``.npz`` file.

    Parameters
    ----------
    path : Path
    shapes : mapping
        The name of each array and its shape; a length of -1 is any.

    Raises
    ------
    ModelError
        The file cannot be read, or an array is missing, of another shape or not finite.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], np.float32) for name in shapes}
        for name, shape in shapes.items():
            sizes = found[name].shape
            fits = len(sizes) == len(shape) and all(
                wanted in {-1, size} for wanted, size in zip(shape, sizes, strict=True)
            )
            if not fits or not np.isfinite(found[name]).all():
                raise ValueError(f"{name} has the shape {sizes} or numbers that are not finite")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}): restore it") from error
    return found
