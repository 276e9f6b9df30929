"""The same radiographs as other consoles would send them.

Each picture is changed, wrapped as a 12-bit DX image and read through the program's own
pixel pipeline: what that corrects (polarity, window, flat margins) is corrected here, too.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluate import Figure, Labels, Probabilities, auc, resampled
from triage.errors import PixelsError
from triage.pixels import SIDE, Array, normalize

Strength = Literal["mild", "strong"]
STRENGTHS: tuple[Strength, ...] = ("mild", "strong")

Change = Callable[[Array, np.random.Generator], Array]
"""From a picture to a changed one, float32, 0.0 to 1.0."""

_TOP = 4095
"""Of 12 bits."""


def as_sent(picture: Array, *, inverted: bool = False) -> Array:
    """What the program makes of a picture that a console sends.

    Parameters
    ----------
    picture : ndarray of float32, shape (rows, columns)
        Clipped to 0.0 to 1.0.
    inverted : bool
        Whether the console stores it as MONOCHROME1 (PS3.3 C.7.6.3.1.2).

    Returns
    -------
    ndarray of float32, shape (256, 256), 0.0 to 1.0
        Zeros if the pipeline finds no picture in it.
    """
    values = np.rint(np.clip(picture, 0.0, 1.0) * _TOP).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (_TOP - values if inverted else values).tobytes()
    try:
        return normalize(dataset).array
    except PixelsError:
        return np.zeros((SIDE, SIDE), np.float32)


def _gamma(exponent: float) -> Change:
    return lambda picture, _: picture**exponent


def _window(low: float, high: float) -> Change:
    return lambda picture, _: np.clip((picture - low) / (high - low), 0.0, 1.0)


def _inverted(picture: Array, _: np.random.Generator) -> Array:
    return as_sent(picture, inverted=True)


def _noise(deviation: float) -> Change:
    return lambda picture, random: (
        picture + np.float32(deviation) * random.standard_normal(picture.shape, np.float32)
    )


def _filtered(kind: ImageFilter.Filter) -> Change:
    return lambda picture, _: _floats(_image(picture).filter(kind))


def _resolution(side: int) -> Change:
    def change(picture: Array, _: np.random.Generator) -> Array:
        small = _image(picture).resize((side, side), Image.Resampling.BICUBIC)
        return _floats(small.resize(picture.shape[::-1], Image.Resampling.BICUBIC))

    return change


def _jpeg(quality: int) -> Change:
    def change(picture: Array, _: np.random.Generator) -> Array:
        stored = io.BytesIO()
        _image(picture).save(stored, "JPEG", quality=quality)
        return _floats(Image.open(stored, formats=["JPEG"]))

    return change


def _moved(
    degrees: float = 0.0, shift: float = 0.0, crop: float = 0.0, wide: float = 1.0
) -> Change:
    """Turned either way, moved in any direction, cropped on all sides, made wider."""

    def change(picture: Array, random: np.random.Generator) -> Array:
        side = picture.shape[0]
        angle = np.deg2rad(degrees * random.choice([-1, 1]))
        way = random.uniform(0, 2 * np.pi)
        cosine, sine = np.cos(angle), np.sin(angle)
        stretch = np.sqrt([1 / wide, wide]) if random.random() < 0.5 else np.sqrt([wide, 1 / wide])
        # Enlarged until nothing is narrower than the picture.
        scale = stretch / stretch.max() * (1.0 - 2.0 * crop)
        matrix = np.array([[cosine, -sine], [sine, cosine]]) * scale
        middle = side / 2 + side * shift * np.array([np.cos(way), np.sin(way)])
        start = middle - matrix @ np.full(2, side / 2)
        return _floats(
            _image(picture).transform(
                (side, side),
                Image.Transform.AFFINE,
                (*matrix[0], start[0], *matrix[1], start[1]),
                Image.Resampling.BICUBIC,
            )
        )

    return change


def _bordered(width: float) -> Change:
    """The picture stands in a frame of one grey, black or white."""

    def change(picture: Array, random: np.random.Generator) -> Array:
        edge = int(width * picture.shape[0])
        grey = random.choice([0.0, 1.0, random.uniform()])
        return np.pad(picture, edge, constant_values=np.float32(grey))

    return change


def _marked(markers: int) -> Change:
    """Side markers of lead, and a label, in the upper corners."""

    def change(picture: Array, random: np.random.Generator) -> Array:
        image = _image(picture)
        side = image.width
        draw = ImageDraw.Draw(image)
        for marker in range(markers):
            left = side * (random.uniform(0.03, 0.10) if marker % 2 else random.uniform(0.82, 0.9))
            top = side * (random.uniform(0.03, 0.2) if marker < 2 else random.uniform(0.75, 0.9))
            if random.random() < 0.3:
                draw.rectangle((left - 3, top - 3, left + 24, top + 22), fill=255)
                draw.text((left, top), str(random.choice(["R", "L"])), fill=0, font_size=20)
            else:
                draw.text((left, top), str(random.choice(["R", "L"])), fill=255, font_size=20)
        return _floats(image)

    return change


def _unmarked(share: float) -> Change:
    """The corners, where markers stand, are wiped."""

    def change(picture: Array, _: np.random.Generator) -> Array:
        edge = int(share * picture.shape[0])
        changed = picture.copy()
        for rows in (slice(None, edge), slice(-edge, None)):
            for columns in (slice(None, edge), slice(-edge, None)):
                changed[rows, columns] = np.median(picture[rows, columns])
        return changed

    return change


CHANGES: Mapping[str, Mapping[Strength, Change]] = MappingProxyType(
    {
        name: MappingProxyType(dict(zip(STRENGTHS, changes, strict=True)))
        for name, changes in {
            "gamma, darker": (_gamma(1.25), _gamma(1.7)),
            "gamma, brighter": (_gamma(0.8), _gamma(0.6)),
            "window, narrower": (_window(0.05, 0.95), _window(0.15, 0.85)),
            "window, lower": (_window(-0.05, 0.90), _window(-0.10, 0.75)),
            "window, higher": (_window(0.10, 1.05), _window(0.25, 1.10)),
            "polarity (MONOCHROME1)": (_inverted, _inverted),
            "noise": (_noise(0.02), _noise(0.06)),
            "blur": (
                _filtered(ImageFilter.GaussianBlur(0.8)),
                _filtered(ImageFilter.GaussianBlur(1.8)),
            ),
            "edge enhancement": (
                _filtered(ImageFilter.UnsharpMask(2, 80, 0)),
                _filtered(ImageFilter.UnsharpMask(3, 200, 0)),
            ),
            "resolution": (_resolution(160), _resolution(96)),
            "JPEG quality": (_jpeg(50), _jpeg(15)),
            "rotation": (_moved(degrees=5), _moved(degrees=10)),
            "shift": (_moved(shift=0.04), _moved(shift=0.08)),
            "crop": (_moved(crop=0.04), _moved(crop=0.08)),
            "aspect ratio": (_moved(wide=1.1), _moved(wide=1.25)),
            "borders": (_bordered(0.05), _bordered(0.12)),
            "markers added": (_marked(1), _marked(4)),
            "markers removed": (_unmarked(0.10), _unmarked(0.18)),
        }.items()
    }
)
"""By name and strength. Lengths are shares of the side; blur is in pixels of 256."""


def changed(array: Array, name: str, strength: Strength, random: np.random.Generator) -> Array:
    """One picture, changed and read again."""
    return as_sent(CHANGES[name][strength](array, random))


def any_change(array: Array, random: np.random.Generator) -> Array:
    """A copy of a picture with two changes drawn at random, as an unknown console has."""
    for name in random.choice(list(CHANGES), 2, replace=False):
        array = changed(array, name, STRENGTHS[int(random.integers(2))], random)
    return array


def _image(picture: Array) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8))


def _floats(image: Image.Image) -> Array:
    return np.asarray(image, np.float32) / np.float32(255)


COVER = np.float32(0.5)
"""Always the same grey: a picture's own mean would tell how white its lungs are."""


LUNGS = np.s_[int(0.10 * SIDE) : int(0.90 * SIDE), int(0.08 * SIDE) : int(0.92 * SIDE)]
"""Rows and columns with the lungs, and more: arms, shoulders, belly and borders are outside."""


def without_lungs(array: Array) -> Array:
    """The picture with its lungs covered."""
    covered = array.copy()
    covered[LUNGS] = COVER
    return covered


def only_borders(array: Array) -> Array:
    """The outer eight hundredths of the picture; the rest is covered."""
    edge = int(0.08 * SIDE)
    covered = array.copy()
    covered[edge:-edge, edge:-edge] = COVER
    return covered


COVERED: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"lungs covered": without_lungs, "only borders": only_borders}
)
"""What a network should not be able to judge by."""


def exchanged(inside: Array, outside: Array) -> Array:
    """The middle of one picture, where the lungs are, in what surrounds another's."""
    changed = outside.copy()
    changed[LUNGS] = inside[LUNGS]
    return changed


ROUNDS = 500
"""Of the bootstrap; the differences are paired, so their intervals are narrow."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name, strength : str
    auc : Figure
    fall : Figure
        Of the AUC, against the unchanged pictures; negative where it rises.
    flags_changed : float
        Share of the pictures whose flag is another than unchanged.
    sensitivity, specificity : float
        At the version's threshold.
    """

    name: str
    strength: str
    auc: Figure
    fall: Figure
    flags_changed: float
    sensitivity: float
    specificity: float


Judge = Callable[[npt.NDArray[np.int64], Sequence[Array]], Probabilities]
"""From rows of the snapshot and their pictures to probabilities by who never saw them."""


def some(
    rows: npt.NDArray[np.int64], patients: npt.NDArray[np.str_], count: int, seed: int
) -> npt.NDArray[np.int64]:
    """About so many rows: all of patients drawn at random."""
    whose = patients[rows]
    order = np.random.default_rng(seed).permutation(np.unique(whose))
    place = {patient: number for number, patient in enumerate(order)}
    drawn = sorted(rows, key=lambda row: (place[patients[row]], row))
    return np.sort(np.array(drawn[:count], np.int64))


def table(
    rows: npt.NDArray[np.int64],
    pictures: Sequence[Array],
    labels: Labels,
    patients: npt.NDArray[np.str_],
    judge: Judge,
    threshold: float,
    seed: int,
    tell: Callable[[str], None],
) -> list[Row]:
    """Judge pictures unchanged, under each change, without their lungs, or with another's.

    Parameters
    ----------
    rows : ndarray of int64, shape (pictures,)
        Of the snapshot.
    pictures : sequence of ndarray of float32, shape (256, 256), 0.0 to 1.0
    labels, patients : ndarray, shape (pictures,)
    judge : callable
    threshold : float
        0 to 1.
    seed : int
    tell : callable
        Is told the name of what is done.
    """
    plain = judge(rows, pictures)

    def row(name: str, strength: str, probabilities: Probabilities) -> Row:
        found = resampled(
            {
                "auc": lambda y, p: auc(y, p[:, 1]),
                "fall": lambda y, p: auc(y, p[:, 0]) - auc(y, p[:, 1]),
            },
            labels,
            np.column_stack([plain, probabilities]),
            patients,
            seed,
            ROUNDS,
        )
        flagged = probabilities >= threshold
        return Row(
            name,
            strength,
            found["auc"],
            found["fall"],
            float(np.mean(flagged != (plain >= threshold))),
            float(np.mean(flagged[labels == 1])),
            float(np.mean(~flagged[labels == 0])),
        )

    out = [row("unchanged", "", plain)]
    for name, strengths in CHANGES.items():
        tell(name)
        for strength in strengths:
            seeds = (np.random.default_rng((seed, int(number))) for number in rows)
            copies = [
                changed(picture, name, strength, random)
                for picture, random in zip(pictures, seeds, strict=True)
            ]
            out.append(row(name, strength, judge(rows, copies)))
    for name, cover in COVERED.items():
        tell(name)
        out.append(row(name, "", judge(rows, [cover(picture) for picture in pictures])))
    tell("exchanged")
    others = [pictures[number] for number in _others(patients, seed)]
    for name, pairs in (
        ("another's surroundings", zip(pictures, others, strict=True)),
        ("another's lungs", zip(others, pictures, strict=True)),
    ):
        copies = [exchanged(inside, outside) for inside, outside in pairs]
        out.append(row(name, "", judge(rows, copies)))
    return out


def _others(patients: npt.NDArray[np.str_], seed: int) -> list[int]:
    """For each picture one of another patient, drawn at random."""
    random = np.random.default_rng(seed)
    return [int(random.choice(np.flatnonzero(patients != patient))) for patient in patients]


def readable(
    arrays: npt.NDArray[np.float16], labels: Labels, patients: npt.NDArray[np.str_]
) -> Mapping[str, float]:
    """What a plain reader finds where no lung is: the data's shortcuts, by cover.

    A logistic regression on the uncovered pixels of 32 x 32 thumbnails, trained and tested
    on different patients.

    Returns
    -------
    mapping of str to float
        AUC by the name of the cover.
    """
    out = {}
    for name, cover in COVERED.items():
        thumbnails = []
        for array in arrays:
            thumbnail = Image.fromarray(cover(array.astype(np.float32))).resize((32, 32))
            thumbnails.append(np.asarray(thumbnail).ravel())
        reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        said = cross_val_predict(
            reader,
            np.stack(thumbnails),
            labels,
            groups=patients,
            cv=GroupKFold(4),
            method="decision_function",
        )
        out[name] = auc(labels, said)
    return out


@dataclass(frozen=True, slots=True)
class Findings:
    """What a version does with pictures as from other consoles, and without lungs.

    Attributes
    ----------
    pictures : int
        That were looked at.
    rows : sequence of Row
        The first is the unchanged pictures'.
    shortcuts : mapping of str to float
        What the data offer where no lung is, see :func:`readable`.
    """

    pictures: int
    rows: Sequence[Row]
    shortcuts: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """For ``model.json``: the worst of each strength, and what is found without lungs."""
        changes = [row for row in self.rows if row.strength]
        fall = {
            strength: max(
                (row for row in changes if row.strength == strength), key=lambda row: row.fall.value
            )
            for strength in STRENGTHS
        }
        flags = max(changes, key=lambda row: row.flags_changed)
        specific = min(changes, key=lambda row: row.specificity)
        sensitive = min(changes, key=lambda row: row.sensitivity)
        return {
            "pictures": self.pictures,
            "changes": len(CHANGES),
            "unchanged_auc": self.rows[0].auc.as_dict(),
            "largest_fall_of_auc": {
                strength: {"change": row.name, **row.fall.as_dict()}
                for strength, row in fall.items()
            },
            "most_flags_changed": _worst(flags, flags.flags_changed),
            "least_sensitivity": _worst(sensitive, sensitive.sensitivity),
            "least_specificity": _worst(specific, specific.specificity),
            "auc_by": {row.name: row.auc.as_dict() for row in self.rows[1:] if not row.strength},
            "auc_of_a_plain_reader": {
                name: round(area, 4) for name, area in self.shortcuts.items()
            },
        }


def _worst(row: Row, value: float) -> dict[str, Any]:
    return {"change": row.name, "strength": row.strength, "value": round(value, 4)}


def report(version: str, found: Findings) -> str:
    """The table as Markdown."""
    lines = [
        f"# Robustness of {version}",
        "",
        "Made by `python -m training stress`; do not edit. The same radiographs as other",
        f"consoles would send them: {found.pictures:,} pictures, each judged by a network that",
        "never saw its patient, after the program's own pixel pipeline. 95% intervals by",
        "bootstrap over patients; *fall* is the paired difference of AUC to the unchanged",
        "pictures.",
        "",
        "| change | strength | AUC | fall | flags changed | sensitivity | specificity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found.rows:
        area, fall = (
            f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
            for figure in (row.auc, row.fall)
        )
        lines.append(
            f"| {row.name} | {row.strength} | {area} | {fall} | {row.flags_changed:.1%} | "
            f"{row.sensitivity:.3f} | {row.specificity:.3f} |"
        )
    lines += [
        "",
        "*Lungs covered* greys out the middle of the picture (rows 10% to 90%, columns 8% to 92%),",
        "*only borders* all but the outer 8%. A network that judges lungs is near chance (0.5) on",
        "both. In the last two rows the middle of each picture stands in what surrounds the",
        "one of another patient, drawn at random from either class. Judged by the lungs that are",
        "seen, the AUC should stay (*another's surroundings*); judged by what surrounds them, it",
        "should be 0.5 (*another's lungs*).",
        "",
        "What the data would let a network learn where no lung is, were it trained to: a logistic",
        "regression on the uncovered pixels, at 32 x 32, reaches on patients that it did not see",
        "",
        *(f"- {name}: AUC {auc:.3f}" for name, auc in found.shortcuts.items()),
        "",
        "The strengths are in `training/stress.py`.",
    ]
    return "\n".join(lines) + "\n"
