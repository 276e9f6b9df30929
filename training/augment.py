"""Training pictures as other consoles might have sent them.

In the published data normal radiographs were exported at a higher resolution and quality
than the others, and with other borders and markers. A network learns whatever tells the
classes apart, so every such trait is drawn at random here, for both classes alike: place,
zoom, aspect ratio, borders, markers, tone, local contrast, resolution, sharpness, noise,
compression. What is left to learn from is the chest.

A copy depends only on the picture and the generator.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from triage.pixels import Array

Bytes = npt.NDArray[np.uint8]
"""uint8, shape (rows, columns): 0 black, 255 white."""

_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def varied(picture: Bytes, side: int, random: np.random.Generator) -> Array:
    """Draw a copy of a picture.

    Parameters
    ----------
    picture : ndarray of uint8, shape (rows, columns)
    side : int
        Of the copy, in pixels.
    random : numpy.random.Generator

    Returns
    -------
    ndarray of float32, shape (side, side), 0.0 to 1.0
    """
    image = _placed(Image.fromarray(picture), side, random)
    if random.random() < 0.5:
        _overlaid(image, random)
    image = _toned(image, random)
    image = _resolved(image, random)
    if random.random() < 0.4:
        image = _compressed(image, random)
    array = np.asarray(image, np.float32) / np.float32(255)
    if random.random() < 0.5:
        array = _noisy(array, random)
    if random.random() < 0.4:
        array = _cut_out(array, random)
    return np.asarray(np.clip(array, 0.0, 1.0), np.float32)


def _placed(image: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """Turned, zoomed, stretched, moved, sometimes mirrored; resampled to ``side``."""
    angle = np.deg2rad(random.uniform(-12.0, 12.0))
    # More often closer than farther: borders and markers go out of sight.
    zoom = np.exp(random.uniform(np.log(0.72), np.log(1.12)))
    stretch = np.exp(random.uniform(-0.16, 0.16))
    across, down = zoom * stretch, zoom / stretch
    if random.random() < 0.3:
        across = -across
    columns, rows = image.size
    room = max(0.05, (1.0 - zoom) / 2)
    middle = np.array([columns, rows]) * (0.5 + random.uniform(-room, room, 2))
    cosine, sine = np.cos(angle), np.sin(angle)
    shear = random.uniform(-0.06, 0.06)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    matrix = matrix * np.array([across * columns, down * rows]) / side
    start = middle - matrix @ np.full(2, side / 2)
    outside = int(random.integers(256)) if random.random() < 0.4 else 0
    return image.transform(
        (side, side),
        Image.Transform.AFFINE,
        (*matrix[0], start[0], *matrix[1], start[1]),
        Image.Resampling.BILINEAR,
        fillcolor=outside,
    )


def _overlaid(image: Image.Image, random: np.random.Generator) -> None:
    """Collimator borders, side markers, and corners that something was wiped out of."""
    side = image.width
    draw = ImageDraw.Draw(image)
    for _ in range(random.integers(3)):
        corner = _corner(side, random)
        draw.rectangle(corner, fill=int(random.integers(256)))
    if random.random() < 0.5:
        grey = int(random.integers(256)) if random.random() < 0.4 else 0
        for edge in range(4):
            if random.random() < 0.4:
                width = int(side * random.uniform(0.01, 0.12))
                box = [(0, 0, width, side), (side - width, 0, side, side)]
                box += [(0, 0, side, width), (0, side - width, side, side)]
                draw.rectangle(box[edge], fill=grey)
    for _ in range(random.integers(3)):
        left, top, *_ = _corner(side, random)
        text = "".join(random.choice(list("LRAP0123456789"), random.integers(1, 4)))
        size = side * random.uniform(0.05, 0.14)
        white = int(random.integers(160, 256)) if random.random() < 0.8 else 0
        draw.text((left, top), text, fill=white, font_size=size)


def _corner(side: int, random: np.random.Generator) -> tuple[float, float, float, float]:
    """A box somewhere along the rim."""
    width, height = side * random.uniform(0.04, 0.22, 2)
    left = random.uniform(0, 0.15) * side
    top = random.uniform(0, 1) * side
    if random.random() < 0.5:
        left = side - left - width
    if random.random() < 0.5:
        left, top, width, height = top, left, height, width
    return left, top, left + width, top + height


def _toned(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Another window, gamma, curve, or local contrast."""
    if random.random() < 0.25:
        wide = np.asarray(image.filter(ImageFilter.BoxBlur(random.uniform(8, 30))), np.float32)
        fine = np.asarray(image, np.float32)
        mixed = fine + random.uniform(-0.5, 1.2) * (fine - wide)
        if random.random() < 0.5:
            mixed += random.uniform(0.0, 0.6) * (128 - wide)
        image = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    if random.random() < 0.2:
        image = Image.blend(image, ImageOps.equalize(image), random.uniform(0.2, 1.0))
    grey = np.linspace(0.0, 1.0, 256)
    low, high = random.uniform(-0.10, 0.15), random.uniform(0.80, 1.15)
    grey = np.clip((grey - low) / (high - low), 0.0, 1.0)
    grey **= np.exp(random.uniform(-0.6, 0.6))
    if random.random() < 0.3:
        slope = random.uniform(2.0, 8.0)
        curve = 1.0 / (1.0 + np.exp(-slope * (grey - random.uniform(0.4, 0.6))))
        grey = (curve - curve[0]) / (curve[-1] - curve[0])
    floor, ceiling = random.uniform(0.0, 0.12), random.uniform(0.85, 1.0)
    table = np.rint(255 * (floor + (ceiling - floor) * grey))
    return image.point(table.astype(int).tolist())


def _resolved(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Coarser, blurred or sharpened, in any combination."""
    side = image.width
    if random.random() < 0.5:
        small = int(side * np.exp(random.uniform(np.log(0.35), 0.0)))
        down, up = random.integers(1, 4), random.integers(0, 4)
        image = image.resize((small, small), _FILTERS[down])
        if random.random() < 0.3:
            image = _compressed(image, random)
        image = image.resize((side, side), _FILTERS[up])
    kind = random.random()
    if kind < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.8)))
    elif kind < 0.6:
        radius, percent = random.uniform(0.5, 3.0), int(random.uniform(30, 250))
        image = image.filter(ImageFilter.UnsharpMask(radius, percent, 0))
    return image


def _compressed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(random.integers(12, 96)))
    return Image.open(stored, formats=["JPEG"])


def _noisy(array: Array, random: np.random.Generator) -> Array:
    """Quantum noise, fine or grainy, the same everywhere or more where it is bright."""
    side = array.shape[0]
    grain = int(random.integers(1, 4))
    cells = -(-side // grain)
    noise = random.standard_normal((cells, cells), np.float32)
    if grain > 1:
        noise = noise.repeat(grain, 0).repeat(grain, 1)[:side, :side]
    strength = np.float32(np.exp(random.uniform(np.log(0.005), np.log(0.08))))
    if random.random() < 0.5:
        noise = noise * np.sqrt(array) * np.float32(1.5)
    return array + strength * noise


def _cut_out(array: Array, random: np.random.Generator) -> Array:
    """Some boxes without content (DeVries and Taylor, arXiv 1708.04552)."""
    side = array.shape[0]
    array = array.copy()
    for _ in range(random.integers(1, 4)):
        height, width = (side * random.uniform(0.08, 0.3, 2)).astype(int)
        top, left = random.integers(0, side - height), random.integers(0, side - width)
        box = array[top : top + height, left : left + width]
        box[...] = box.mean() if random.random() < 0.5 else random.random()
    return array
