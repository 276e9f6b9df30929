"""What hides a part of a picture, by the header and by the picture itself."""

import numpy as np
import pytest
from pydicom import Dataset

from triage.shutters import declared, margins, sampled

SHAPE = (60, 80)


def header(**attributes: object) -> Dataset:
    """A data set with these attributes."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def rectangle(device: str, upper: int, lower: int, left: int, right: int) -> dict[str, object]:
    """A rectangular opening; edges count from 1."""
    return {
        f"{device}Shape": "RECTANGULAR",
        f"{device}UpperHorizontalEdge": upper,
        f"{device}LowerHorizontalEdge": lower,
        f"{device}LeftVerticalEdge": left,
        f"{device}RightVerticalEdge": right,
    }


@pytest.mark.parametrize("device", ["Shutter", "Collimator"])
def test_a_rectangle_leaves_its_inside(device: str) -> None:
    """Rows 11 to 50 and columns 21 to 60, counted from 1, both edges visible."""
    notes: list[str] = []
    visible = declared(header(**rectangle(device, 11, 50, 21, 60)), SHAPE, notes)
    expected = np.zeros(SHAPE, np.bool_)
    expected[10:50, 20:60] = True
    assert visible is not None
    assert np.array_equal(visible, expected)
    assert notes == []


def test_a_circle_leaves_its_inside() -> None:
    """Center (row, column) and radius in rows."""
    dataset = header(
        ShutterShape="CIRCULAR", CenterOfCircularShutter=[30, 40], RadiusOfCircularShutter=20
    )
    visible = declared(dataset, SHAPE, [])
    assert visible is not None
    assert visible[29, 39]
    assert visible[29, 59]
    assert not visible[29, 60]
    assert abs(visible.sum() - np.pi * 400) < 40


def test_a_polygon_leaves_its_inside() -> None:
    """Vertices are pairs of row and column."""
    dataset = header(
        ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=[11, 11, 11, 71, 51, 71, 51, 11]
    )
    visible = declared(dataset, SHAPE, [])
    assert visible is not None
    expected = np.zeros(SHAPE, np.bool_)
    expected[10:51, 10:71] = True
    assert np.array_equal(visible, expected)


def test_openings_are_cut_with_each_other() -> None:
    """Shutter and collimator hide what either hides."""
    dataset = header(**rectangle("Shutter", 1, 30, 1, 80), **rectangle("Collimator", 21, 60, 1, 80))
    visible = declared(dataset, SHAPE, [])
    assert visible is not None
    assert np.flatnonzero(visible.any(axis=1)).tolist() == list(range(20, 30))


@pytest.mark.parametrize(
    "attributes",
    [
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "TRIANGULAR"},
        rectangle("Shutter", 50, 11, 21, 60),
        rectangle("Shutter", 500, 600, 1, 80),
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [1, 1]},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 5, 5]},
        rectangle("Collimator", 28, 40, -6, 6),  # in millimetres, as RG1 of pydicom-data has it
    ],
)
def test_a_broken_shutter_is_ignored_and_noted(attributes: dict[str, object]) -> None:
    """A shutter that cannot be understood, or that leaves a strip, hides nothing."""
    notes: list[str] = []
    assert declared(header(**attributes), SHAPE, notes) is None
    assert notes == ["SHUTTER_INVALID"]


def test_no_shutter_hides_nothing() -> None:
    """And is not noted."""
    notes: list[str] = []
    assert declared(header(), SHAPE, notes) is None
    assert notes == []


def _margins(levels: np.ndarray) -> tuple[slice, slice]:
    """Of a picture that is there as a whole."""
    return margins(levels[sampled(levels.shape)], levels.shape)


def textured(rows: int, columns: int) -> np.ndarray:
    """A picture without a flat line."""
    return np.random.default_rng(1).random((rows, columns))


@pytest.mark.parametrize("grey", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [(60, 80), (1200, 900)])
def test_margins_of_any_grey_are_found(grey: float, size: tuple[int, int]) -> None:
    """On each side by itself, to the precision of a sampled line."""
    picture = textured(*size)
    top, left = size[0] // 10, size[1] // 5
    picture[:top] = grey
    picture[:, :left] = grey
    rows, columns = _margins(picture)
    assert abs(rows.start - top) <= size[0] / 500 + 1
    assert abs(columns.start - left) <= size[1] / 500 + 1
    assert (rows.stop, columns.stop) == size


def test_a_picture_without_margins_is_whole() -> None:
    """Nothing is cut off."""
    assert _margins(textured(60, 80)) == (slice(0, 60), slice(0, 80))


def test_a_marker_in_a_margin_ends_it() -> None:
    """Only lines that are flat from end to end are margins."""
    picture = textured(100, 100)
    picture[:20] = 0.0
    picture[8:12, 40:60] = 1.0
    rows, _ = _margins(picture)
    assert rows.start == 8


def test_a_picture_of_one_grey_is_left_alone() -> None:
    """It is refused elsewhere."""
    rows, columns = _margins(np.zeros((60, 80)))
    assert rows.stop - rows.start > 0
    assert columns.stop - columns.start > 0
