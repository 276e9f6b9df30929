"""What a reader is shown: every stored grey, the right way round, in the console's window."""

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian

from tests.builders import picture, radiograph, reread, stored_range
from triage.errors import PixelsError
from triage.pixels import Viewing, viewing


def displayed(view: Viewing) -> np.ndarray:
    """As the viewer's default window shows it: 0.0 black, 1.0 white."""
    return np.clip((view.values - view.black) / (view.white - view.black), 0.0, 1.0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [1, -10, 0.5])
@pytest.mark.parametrize(
    ("bits", "allocated", "signed"),
    [(8, 8, False), (12, 16, False), (12, 16, True), (16, 16, True)],
)
def test_a_picture_is_the_same_however_it_was_stored(photometric, slope, bits, allocated, signed):
    shown = picture(1)
    view = viewing(
        radiograph(
            shown, bits=bits, allocated=allocated, signed=signed,
            photometric=photometric, slope=slope, intercept=7 if slope != 1 else 0,
        )
    )  # fmt: skip
    top = (1 << bits) - 1
    assert view.values.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.array_equal(view.values, np.rint(shown * top))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", [None, "LINEAR_EXACT"])
def test_the_first_window_is_the_default_and_cuts_nothing_off(photometric, function):
    shown = picture(2)
    dataset = radiograph(
        shown, window=([2000, 900], [1000, 50]), voi_function=function, photometric=photometric
    )
    view = viewing(dataset)
    assert len(np.unique(view.values)) == len(np.unique(np.rint(shown * 4095)))
    ends = sorted(view.offset + view.scale * end for end in (view.black, view.white))
    assert ends == [1500, 2500] if function else ends == [1500, 2499]
    modality = (
        np.rint(shown * 4095) if photometric == "MONOCHROME2" else 4095 - np.rint(shown * 4095)
    )
    expected = np.clip((modality - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)
    if photometric == "MONOCHROME1":
        expected = 1.0 - expected
    assert np.allclose(displayed(view), expected, atol=1e-9)


def test_a_window_is_told_in_units_of_the_modality():
    view = viewing(radiograph(picture(2), slope=2, intercept=-1000, window=(500, 401)))
    assert view.offset + view.scale * (view.black + view.white) / 2 == pytest.approx(499.5)
    assert view.scale * (view.white - view.black) == pytest.approx(400)


@pytest.mark.parametrize("options", [{"voi_lut": True}, {"modality_lut": True}])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_look_up_table_is_looked_up(options, photometric):
    shown = picture(3)
    view = viewing(radiograph(shown, photometric=photometric, **options))
    assert view.values.dtype == np.uint16
    order = np.argsort(shown, axis=None)
    brightness = view.values.ravel()[order].astype(int)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[0] < brightness[-1]


def test_a_sigmoid_keeps_its_shape():
    shown = picture(4)
    view = viewing(radiograph(shown, window=(2048, 1000), voi_function="SIGMOID"))
    curve = 1 / (1 + np.exp(-4 * (np.rint(shown * 4095) - 2048) / 1000))
    assert np.allclose(
        displayed(view), (curve - curve.min()) / (curve.max() - curve.min()), atol=2e-2
    )


def test_without_a_window_all_but_the_tails_are_inside():
    view = viewing(radiograph(picture(5)))
    outside = (view.values < view.black) | (view.values > view.white)
    assert 0 < outside.mean() <= 0.0101


def test_padding_is_black_and_takes_no_part_in_the_window():
    low, high = stored_range(12, signed=True)
    for photometric, padding in (("MONOCHROME1", low), ("MONOCHROME2", high)):
        dataset = radiograph(picture(6), signed=True, photometric=photometric, padding=padding)
        view = viewing(reread(dataset))
        assert (view.values[:, :10] == 0).all()
        assert (view.values[:, 10:] > 0).any()
        assert view.black > 0


def test_a_display_shutter_hides_and_a_collimator_does_not():
    edges = {
        f"{{}}{edge}": value
        for edge, value in {
            "LeftVerticalEdge": 5, "RightVerticalEdge": 30,
            "UpperHorizontalEdge": 5, "LowerHorizontalEdge": 40,
        }.items()
    }  # fmt: skip
    for device, hidden in (("Shutter", True), ("Collimator", False)):
        shape = {name.format(device): value for name, value in edges.items()}
        view = viewing(radiograph(picture(7), **{f"{device}Shape": "RECTANGULAR"}, **shape))
        assert (not view.values[:4].any()) is hidden


def test_a_picture_of_one_grey_is_shown_and_one_without_pixels_is_not():
    view = viewing(radiograph(np.full((20, 30), 0.5)))
    assert view.black < view.white
    with pytest.raises(PixelsError) as refused:
        viewing(radiograph(picture(8), PixelData=None))
    assert refused.value.reason == "PIXEL_DATA_ABSENT"


def test_byte_order_does_not_matter():
    shown = picture(9)
    big = viewing(reread(radiograph(shown, transfer_syntax=ExplicitVRBigEndian)))
    assert np.array_equal(big.values, viewing(radiograph(shown)).values)
