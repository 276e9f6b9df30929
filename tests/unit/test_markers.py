"""Burned-in letters: found where they are drawn, and little else is taken for one."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sample_dicom.draw import chest
from tests.conftest import ROOT
from tests.degrade import drawn
from triage.markers import BAND, without_markers
from triage.pixels import SIDE, Array, normalize_file

DATA = Path(os.environ.get("CXR_DATA", ROOT.parent / "shared" / "data" / "kermany"))
FULL = sorted((DATA / "fullres").glob("*/*.jpeg"))


@pytest.fixture(scope="module")
def unmarked() -> list[Array]:
    """Drawn chests without a marker."""
    return [drawn(chest(seed, marker=False)) for seed in range(6)]


def marked(array: Array, letter: str, place: tuple[int, int], label: str = "none") -> Array:
    """Burn a letter in: white, or on a label, white on black or black on white."""
    image = Image.fromarray(np.rint(array * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    left, top = place
    if label != "none":
        draw.rectangle(
            [left - 4, top - 2, left + 14, top + 18], fill=255 if label == "white" else 0
        )
    draw.text(place, letter, font=ImageFont.load_default(16), fill=0 if label == "white" else 255)
    return np.asarray(image, np.float32) / 255


@pytest.mark.parametrize(("label", "least"), [("none", 5), ("black", 6), ("white", 3)])
@pytest.mark.parametrize("letter", ["L", "R"])
@pytest.mark.parametrize("place", [(8, 6), (230, 6)])
def test_a_letter_goes_and_the_ground_comes(
    letter: str, place: tuple[int, int], label: str, least: int, unmarked: list[Array]
) -> None:
    """In an upper corner, on five of six chests; a white label on half of them."""
    left, top = place
    here = (slice(top - 2, top + 20), slice(left - 4, left + 16))
    gone = []
    for array in unmarked:
        burned = marked(array, letter, place, label)
        bare = marked(array, "", place, label) if label == "black" else array
        before = np.abs(burned[here] - bare[here]).mean()
        gone.append(np.abs(without_markers(burned)[here] - bare[here]).mean() < 0.35 * before)
    assert sum(gone) >= least


def test_only_the_frame_is_looked_at(unmarked: list[Array]) -> None:
    """A letter over a lung is left alone, and nothing inside ever changes."""
    band = int(BAND * SIDE) + 1
    for array in unmarked:
        burned = marked(array, "R", (90, 100))
        masked = without_markers(burned)
        assert np.array_equal(masked[band:-band, band:-band], burned[band:-band, band:-band])


def test_a_picture_without_letters_hardly_changes(unmarked: list[Array]) -> None:
    """Bits of ribs and shoulders, at most one pixel in fifty; blank pictures not at all."""
    for array in unmarked:
        assert np.mean(without_markers(array) != array) < 0.02
    for grey in (0.0, 0.5, 1.0):
        blank = np.full((SIDE, SIDE), grey, np.float32)
        assert np.array_equal(without_markers(blank), blank)


@pytest.mark.skipif(not FULL, reason="the Kermany radiographs are not at hand")
def test_real_radiographs_change_in_their_letters_and_little_else() -> None:
    """Most have an R: at least six of ten change, none by more than one pixel in a hundred."""
    shares = []
    for path in FULL:
        array = normalize_file(path)
        shares.append(np.mean(without_markers(array) != array))
    assert max(shares) < 0.01
    assert np.mean(np.array(shares) > 0) > 0.6
    assert np.median(shares) < 0.004
