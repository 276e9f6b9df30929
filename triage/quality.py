"""What a technologist would want to hear at once about a picture, as coded findings.

Findings never block. They are about the normalized array, so about the picture as a
reader sees it: a window that hides the lungs is reported as clipped like a detector that
was saturated. ``training.quality`` fits the parameters; ``docs/quality.md`` has the rates.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triage.novelty import (
    FEATURES,
    Features,
    Novelty,
    features,
    load_parameters,
    turned,
)
from triage.pixels import SIDE, Array

QUALITY = "quality.npz"
"""The file of a model version that holds its :class:`Quality`."""

EDGES = ("left", "top", "right", "bottom")
"""Of the picture as it is shown."""

SAME_PICTURE_BITS = 20
"""Two pictures whose hashes differ in no more bits are of one exposure."""

# The part of the picture that is patient in every frontal chest: rows 10% to 90%, columns
# 20% to 80%, in blocks. Burned-in markers and the air beside the trunk are outside.
_FIELD = (slice(6, 58), slice(13, 51))

_HASH_SIDE = 16
_SPECTRUM_SIDE = 192


def clipped(array: Array) -> tuple[float, float]:
    """Shares, 0.0 to 1.0, of the field that are saturated black and white.

    Counted in blocks of 4 x 4 pixels, so that noise does not count. The normalization
    saturates half a percent of all pixels at either end; more was saturated before.
    """
    blocks = array.reshape(SIDE // 4, 4, SIDE // 4, 4).mean(axis=(1, 3))
    field = blocks[_FIELD]
    return float(np.mean(field <= 0.005)), float(np.mean(field >= 0.995))


def blur(array: Array) -> float:
    """How much fine detail is missing, in nepers; the worse of two directions.

    The mean power at 0.08 to 0.14 cycles a pixel against that at 0.22 to 0.45, near the
    horizontal and near the vertical separately: motion blurs along one of them.
    """
    margin = (SIDE - _SPECTRUM_SIDE) // 2
    middle = array[margin:-margin, margin:-margin].astype(np.float64)
    taper = np.hanning(_SPECTRUM_SIDE)
    power = np.abs(np.fft.rfft2((middle - middle.mean()) * np.outer(taper, taper))) ** 2
    down = np.abs(np.fft.fftfreq(_SPECTRUM_SIDE))[:, np.newaxis]
    across = np.fft.rfftfreq(_SPECTRUM_SIDE)[np.newaxis]
    frequency = np.hypot(down, across)
    coarse = (frequency >= 0.08) & (frequency < 0.14)
    fine = (frequency >= 0.22) & (frequency < 0.45)
    return max(
        float(np.log((power[coarse & along].mean() + 1e-9) / (power[fine & along].mean() + 1e-9)))
        for along in (across > down, across <= down)
    )


def picture_hash(array: Array) -> str:
    """Return 64 hexadecimal digits that hardly change with encoding, noise or contrast.

    A difference hash: whether each of 16 x 16 points is brighter than its right neighbour.
    :func:`same_picture` compares two.
    """
    rows = array.reshape(_HASH_SIDE, SIDE // _HASH_SIDE, SIDE).mean(axis=1)
    starts = [part[0] for part in np.array_split(np.arange(SIDE), _HASH_SIDE + 1)]
    points = np.add.reduceat(rows, starts, axis=1) / np.diff([*starts, SIDE])
    return np.packbits(points[:, :-1] > points[:, 1:]).tobytes().hex()


def same_picture(one: str, other: str) -> bool:
    """Whether two hashes of :func:`picture_hash` are of one exposure."""
    return (int(one, 16) ^ int(other, 16)).bit_count() <= SAME_PICTURE_BITS


@dataclass(frozen=True, slots=True)
class Quality:
    """Finds what is wrong with a frontal chest radiograph.

    Attributes
    ----------
    novelty : Novelty
    weights : ndarray of float32, shape (4, 577)
        For each of :data:`EDGES`: how much of the chest is cut off there, as a linear
        function of the features and a constant.
    cut_limits : ndarray of float32, shape (4,)
    clipped_limits : ndarray of float32, shape (2,)
        The greatest ordinary values of :func:`clipped`.
    blur_limit : float
        The greatest ordinary value of :func:`blur`.
    turned_limit : float
        So many times more novel than when turned, a picture is held for turned; above 1.
    """

    novelty: Novelty
    weights: Features
    cut_limits: npt.NDArray[np.float32]
    clipped_limits: npt.NDArray[np.float32]
    blur_limit: float
    turned_limit: float

    def findings(self, array: Array) -> tuple[str, ...]:
        """Return the codes that :meth:`examine` does."""
        return self.examine(array)[0]

    def examine(self, array: Array) -> tuple[tuple[str, ...], float]:
        """Return the findings and the novelty.

        Parameters
        ----------
        array : ndarray of float32, shape (256, 256), 0.0 to 1.0
            If it is novel, only its orientation is judged: what is no chest has no lungs
            to cut off, but a chest that is upside down is novel, too.

        Returns
        -------
        tuple of str
            Codes of ``docs/reasons.md``, section "Image quality findings".
        float
            As :meth:`triage.novelty.Novelty.measure` gives it.
        """
        described = features(array)
        novelty = float(self.novelty.distances(described)) / self.novelty.threshold
        codes = list(self.orientation(described))
        if novelty > 1.0:
            return tuple(codes), novelty
        if (self.cut(described) > self.cut_limits).any():
            codes.append("LUNGS_CUT_OFF")
        if (clipped(array) > self.clipped_limits).any():
            codes.append("EXPOSURE_CLIPPED")
        if blur(array) > self.blur_limit:
            codes.append("BLURRED")
        return tuple(codes), novelty

    def orientation(self, described: Features) -> tuple[str, ...]:
        """Return ``ROTATED``, ``MIRRORED`` and ``INVERTED``, those that apply.

        Of the sixteen ways to turn, mirror and invert the picture, the one that is most
        like the training data is held for right, if it is like them at all.

        Parameters
        ----------
        described : ndarray of float32, shape (576,)
        """
        ways = list(product(range(4), (False, True), (False, True)))
        # One by one: of all at once the numerical library makes work for several threads, which
        # wait for each other thirty times as long where the cores have other work.
        distances = [
            float(self.novelty.distances(turned(described, q, mirrored=m, inverted=i)))
            for q, m, i in ways
        ]
        best = int(np.argmin(distances))
        if (
            distances[best] > self.novelty.threshold
            or distances[0] <= self.turned_limit * distances[best]
        ):
            return ()
        return tuple(
            code
            for code, so in zip(("ROTATED", "MIRRORED", "INVERTED"), ways[best], strict=True)
            if so
        )

    def cut(self, described: Features) -> npt.NDArray[np.float64]:
        """How much of the chest seems cut off at each edge, as a share of the picture.

        Parameters
        ----------
        described : ndarray of float32, shape (..., 576)

        Returns
        -------
        ndarray of float64, shape (..., 4)
        """
        standard = ((described - self.novelty.mean) / self.novelty.scale).astype(np.float64)
        return np.asarray(standard @ self.weights[:, :-1].T + self.weights[:, -1])

    def save(self, path: Path) -> None:
        """Write the parameters, without the novelty's."""
        with path.open("wb") as file:
            np.savez(
                file,
                weights=self.weights,
                cut_limits=self.cut_limits,
                clipped_limits=self.clipped_limits,
                blur_limit=self.blur_limit,
                turned_limit=self.turned_limit,
            )

    @classmethod
    def load(cls, path: Path, novelty: Novelty) -> "Quality":
        """Read the parameters.

        Raises
        ------
        ModelError
            The file cannot be read, or is not such a file.
        """
        shapes: dict[str, tuple[int, ...]] = {
            "weights": (len(EDGES), FEATURES + 1),
            "cut_limits": (len(EDGES),),
            "clipped_limits": (2,),
            "blur_limit": (),
            "turned_limit": (),
        }
        found = load_parameters(path, shapes)
        return cls(
            novelty,
            found["weights"],
            found["cut_limits"],
            found["clipped_limits"],
            float(found["blur_limit"]),
            float(found["turned_limit"]),
        )
