"""Image quality findings: each is raised on its fault and not on a good chest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sample_dicom.draw import hand
from tests.degrade import DEGRADED, MILD, WRONG, drawn, edge, gaussian, moved, saturated, smeared
from tests.fitted import SMALL
from triage.errors import ModelError
from triage.novelty import features
from triage.pixels import SIDE, Array
from triage.quality import (
    EDGES,
    SAME_PICTURE_BITS,
    Quality,
    blur,
    clipped,
    picture_hash,
    same_picture,
)


@pytest.fixture(scope="module")
def lenient(fitted: Quality) -> Quality:
    """Limits with some room: 80 drawn chests are too few for limits of one in a hundred."""
    return replace(
        fitted,
        cut_limits=fitted.cut_limits + 0.01,
        clipped_limits=fitted.clipped_limits + 0.02,
    )


def test_a_good_chest_has_no_finding(lenient: Quality, unseen: list[Array]) -> None:
    """Unseen chests, well or ill."""
    assert [lenient.findings(array) for array in unseen] == [()] * len(unseen)


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("turned 90 degrees", ("ROTATED",)),
        ("turned 180 degrees", ("ROTATED",)),
        ("turned 270 degrees", ("ROTATED",)),
        ("upside down (flipped)", ("ROTATED", "MIRRORED")),
        ("inverted", ("INVERTED",)),
    ],
)
def test_orientation_is_named_though_the_picture_is_novel(
    fault: str, codes: tuple[str, ...], lenient: Quality, unseen: list[Array]
) -> None:
    """And nothing else is: its edges and lungs are not where they are looked for."""
    for array in unseen:
        assert lenient.findings(WRONG[fault](array)) == codes


def test_a_mirrored_chest_is_found(lenient: Quality, unseen: list[Array]) -> None:
    """The heart is on the other side; mirrored twice, it is not."""
    for array in unseen:
        assert "MIRRORED" in lenient.findings(array[:, ::-1])
        assert "MIRRORED" not in lenient.findings(array[:, ::-1][:, ::-1])


def test_what_is_no_chest_has_no_findings(lenient: Quality) -> None:
    """However it is turned, a hand is not like a chest."""
    assert lenient.findings(drawn(hand(1, shape=SMALL))) == ()


@pytest.mark.parametrize("name", DEGRADED["EXPOSURE_CLIPPED"])
def test_clipped_exposure_is_found(name: str, fitted: Quality, unseen: list[Array]) -> None:
    """White from 2% on, black from 20% on: less of it is the air beside the trunk."""
    degrade = DEGRADED["EXPOSURE_CLIPPED"][name]
    raised = ["EXPOSURE_CLIPPED" in fitted.findings(degrade(array)) for array in unseen]
    assert all(raised) or (name == "10% saturated black" and any(raised))


@pytest.mark.parametrize(
    "degrade", [gaussian(1.0), gaussian(2.0), smeared((5, 1)), smeared((1, 5))]
)
def test_blur_and_motion_are_found(degrade: object, lenient: Quality, unseen: list[Array]) -> None:
    """In any direction."""
    assert callable(degrade)
    for array in unseen:
        assert "BLURRED" in lenient.findings(degrade(array))


@pytest.mark.parametrize("number", range(len(EDGES)))
def test_a_cut_off_edge_is_found_and_named(
    number: int, lenient: Quality, unseen: list[Array]
) -> None:
    """A tenth of the picture is missing; the estimate is largest for that edge."""
    for array in unseen:
        shown = edge(number, 0.10)(array)
        assert "LUNGS_CUT_OFF" in lenient.findings(shown)
        assert int(np.argmax(lenient.cut(features(shown)))) == number


def test_clipped_counts_the_field_only() -> None:
    """Saturated margins are no finding; half of the middle is counted."""
    array = np.full((SIDE, SIDE), 0.5, np.float32)
    array[:20], array[:, :48], array[:, -48:] = 1.0, 0.0, 0.0
    assert clipped(array) == (0.0, 0.0)
    array[:, SIDE // 2 : -48] = 1.0
    black, white = clipped(array)
    assert black == 0.0
    assert white == pytest.approx(0.5, abs=0.03)


def test_blur_grows_with_blurring_and_not_with_contrast(unseen: list[Array]) -> None:
    """More blur, more of it; half the contrast changes nothing."""
    array = unseen[0]
    values = [blur(gaussian(sigma)(array)) for sigma in (0.5, 1.0, 2.0)]
    assert blur(array) < values[0] < values[1] < values[2]
    assert blur(array * 0.5) == pytest.approx(blur(array), abs=1e-3)


@pytest.mark.parametrize(
    "degrade",
    [
        *[MILD[name] for name in ("gamma 0.7", "gamma 1.4", "JPEG of quality 50")],
        saturated(0.05, 0.05),
        moved(across=1 / SIDE),
    ],
)
def test_a_copy_is_the_same_picture(degrade: object, unseen: list[Array]) -> None:
    """Another window, encoding or a pixel's shift."""
    assert callable(degrade)
    for array in unseen:
        assert same_picture(picture_hash(array), picture_hash(degrade(array)))


def test_another_exposure_is_another_picture(unseen: list[Array]) -> None:
    """The same child, turned a little and nearer; and a hash is 64 hexadecimal digits."""
    again = moved(degrees=4, size=1.08, across=0.04)
    for array in unseen:
        one, other = picture_hash(array), picture_hash(again(array))
        assert len(one) == len(other) == 64
        assert not same_picture(one, other)


def test_the_limit_of_a_same_picture_is_in_bits() -> None:
    """As many differing bits are the same, one more is not."""
    same, other = (1 << SAME_PICTURE_BITS) - 1, (1 << SAME_PICTURE_BITS + 1) - 1
    assert same_picture("0" * 64, f"{same:064x}")
    assert not same_picture("0" * 64, f"{other:064x}")


def test_what_is_read_back_finds_the_same(
    fitted: Quality, unseen: list[Array], tmp_path: Path
) -> None:
    """Saved, loaded, and small."""
    path = tmp_path / "quality.npz"
    fitted.save(path)
    assert path.stat().st_size < 100_000
    again = Quality.load(path, fitted.novelty)
    for degrade in (*MILD.values(), *WRONG.values()):
        assert again.findings(degrade(unseen[0])) == fitted.findings(degrade(unseen[0]))


def test_a_damaged_file_is_refused(fitted: Quality, tmp_path: Path) -> None:
    """Weights for other features: ModelError that names the file."""
    path = tmp_path / "quality.npz"
    replace(fitted, weights=fitted.weights[:, :-1]).save(path)
    with pytest.raises(ModelError, match=r"quality\.npz is damaged"):
        Quality.load(path, fitted.novelty)
