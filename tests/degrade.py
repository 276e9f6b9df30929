"""Pictures that are wrong, or not quite right: made, drawn or degraded."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from tests.conftest import pydicom_files
from training.novelty import placed
from training.quality import cut_off
from triage.errors import PixelsError
from triage.pixels import SIDE, Array, normalize, normalize_file

Degrade = Callable[[Array], Array]


def moved(
    degrees: float = 0.0, size: float = 1.0, across: float = 0.0, down: float = 0.0
) -> Degrade:
    """Turn, resize and move a picture."""
    return lambda array: placed(
        array, np.deg2rad(degrees), np.array([size, size]), np.array([across, down])
    )


def noisy(deviation: float) -> Degrade:
    """Add white noise, and stretch again as the normalization does."""
    noise = np.random.default_rng(1).normal(0.0, deviation, (SIDE, SIDE))
    return lambda array: saturated(0.005, 0.005)(array + noise)


def smeared(sides: tuple[int, int]) -> Degrade:
    """Average over a rectangle of rows and columns: motion, if one of them is 1."""

    def degrade(array: Array) -> Array:
        for axis, side in enumerate(sides):
            kernel = np.ones(side) / side
            padding = [(0, 0), (0, 0)]
            padding[axis] = (side // 2, side - 1 - side // 2)
            padded = np.pad(array, padding, mode="edge")
            array = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
        return array.astype(np.float32)

    return degrade


def gaussian(sigma: float) -> Degrade:
    """Blur; sigma in pixels of the array."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()

    def degrade(array: Array) -> Array:
        for axis in (0, 1):
            padding = [(0, 0), (0, 0)]
            padding[axis] = (reach, reach)
            padded = np.pad(array, padding, mode="edge")
            array = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
        return array.astype(np.float32)

    return degrade


def saturated(black: float = 0.0, white: float = 0.0) -> Degrade:
    """Clip these shares of all pixels, as a detector or a window does, and stretch again."""

    def degrade(array: Array) -> Array:
        low, high = np.quantile(array, [black, 1.0 - white])
        return np.clip((array - low) / (high - low), 0.0, 1.0).astype(np.float32)

    return degrade


def jpeg(quality: int) -> Degrade:
    """Through a lossy JPEG."""

    def degrade(array: Array) -> Array:
        stream = io.BytesIO()
        Image.fromarray(np.rint(array * 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream), np.float32) / 255

    return degrade


def edge(number: int, share: float) -> Degrade:
    """Cut off a share of the picture at an edge."""
    losses = np.zeros(4, np.float32)
    losses[number] = share
    return lambda array: cut_off(array, losses)


def corner(left: float, top: float) -> Degrade:
    """A quarter of the picture."""
    return lambda array: cut_off(array, np.array([left, top, 0.5 - left, 0.5 - top], np.float32))


MILD: dict[str, Degrade] = {
    "gamma 0.7": lambda array: array**0.7,
    "gamma 1.4": lambda array: array**1.4,
    "noise of 0.05": noisy(0.05),
    "JPEG of quality 50": jpeg(50),
    "blur of 2 pixels": gaussian(2.0),
    "turned 5 degrees": moved(5),
    "turned 10 degrees": moved(10),
    "turned -10 degrees": moved(-10),
    "moved 5% right and down": moved(across=0.05, down=0.05),
    "moved 5% left and up": moved(across=-0.05, down=-0.05),
    "black border of 4%": moved(size=0.92),
    "black border of 8%": moved(size=0.84),
}
WRONG: dict[str, Degrade] = {
    "turned 90 degrees": np.rot90,
    "turned 180 degrees": lambda array: np.rot90(array, 2),
    "turned 270 degrees": lambda array: np.rot90(array, 3),
    "upside down (flipped)": lambda array: array[::-1],
    "inverted": lambda array: 1 - array,
    "mirrored": lambda array: array[:, ::-1],
    "quarter: upper left": corner(0.0, 0.0),
    "quarter: lower right": corner(0.5, 0.5),
    "quarter: middle": corner(0.25, 0.25),
}
DEGRADED: dict[str, dict[str, Degrade]] = {
    "ROTATED": {name: WRONG[name] for name in list(WRONG)[:4]},
    "MIRRORED": {"mirrored": WRONG["mirrored"]},
    "INVERTED": {"inverted": WRONG["inverted"]},
    "LUNGS_CUT_OFF": {
        f"{share:.0%} cut off at the {name}": edge(number, share)
        for number, name in enumerate(("left", "top", "right", "bottom"))
        for share in (0.10, 0.15, 0.20, 0.30)
    },
    "EXPOSURE_CLIPPED": {
        **{f"{share:.0%} saturated white": saturated(white=share) for share in (0.02, 0.05, 0.10)},
        **{f"{share:.0%} saturated black": saturated(black=share) for share in (0.10, 0.20, 0.30)},
    },
    "BLURRED": {
        **{f"Gaussian blur of {sigma} pixels": gaussian(sigma) for sigma in (0.7, 1.0, 1.5, 2.0)},
        **{f"motion of {way} pixels down": smeared((way, 1)) for way in (3, 5, 9)},
        **{f"motion of {way} pixels across": smeared((1, way)) for way in (3, 5, 9)},
    },
}


def no_radiographs() -> dict[str, list[Array]]:
    """Made pictures that are no radiographs."""
    random = np.random.default_rng(3)
    down, across = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    turns = np.linspace(0.0, 2 * np.pi, 12, endpoint=False)
    return {
        "white noise": [random.random((SIDE, SIDE), np.float32) for _ in range(20)],
        "clouds of every size": [_cloud(random, side) for side in (3, 4, 6, 8, 12, 16, 24, 48)],
        "page of text": [_page(random, number % 2 == 1) for number in range(20)],
        "blank, ramps, discs": [
            np.zeros((SIDE, SIDE), np.float32),
            np.ones((SIDE, SIDE), np.float32),
            *[(0.5 + 0.35 * (np.cos(t) * across + np.sin(t) * down)) for t in turns],
            *[(np.hypot(across, down) < radius) * 1.0 for radius in (0.2, 0.5, 0.8)],
        ],
    }


def _cloud(random: np.random.Generator, side: int) -> Array:
    coarse = Image.fromarray(random.standard_normal((side, side), np.float32))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (smooth - smooth.min()) / np.ptp(smooth)


def _page(random: np.random.Generator, dark: bool) -> Array:
    page = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(page)
    for line in range(8, SIDE - 6, 12):
        letters = random.integers(97, 123, random.integers(5, 38))
        draw.text((8, line), "".join(map(chr, letters)).replace("q", " "), fill=0)
    shown = np.asarray(page, np.float32) / 255
    return 1 - shown if dark else shown


def drawn(picture: npt.NDArray[np.float64]) -> Array:
    """A drawn picture as the pipeline shows it, from a 16-bit file."""
    stream = io.BytesIO()
    Image.fromarray(np.rint(picture * 65_535).astype(np.uint16)).save(stream, "PNG")
    return normalize_file(stream)  # type: ignore[arg-type]


def pydicom_pictures() -> Iterator[tuple[str, Array]]:
    """Every single frame of pydicom's test set that the pipeline decodes."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in pydicom_files():
            try:
                yield path.name, normalize(dcmread(path)).array
            except (PixelsError, InvalidDicomError, AttributeError):
                continue
