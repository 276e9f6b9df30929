"""Snapshots of a site's labels: by patient and time, free of who withdrew, whole on disk."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from tests.site import Site
from training.snapshots import SiteSnapshot, arrays, read, take
from triage.worklist import Worklist


@pytest.fixture
def site(worklist: Worklist, tmp_path: Path) -> Site:
    """An empty site."""
    return Site(worklist, tmp_path)


def now() -> dt.datetime:
    """A cutoff that has everything so far."""
    return dt.datetime.now(dt.UTC)


def snapshot(site: Site, share: float = 0.5) -> SiteSnapshot:
    """All labels, half of the patients in the exam."""
    return take(site.worklist, site.pictures, now(), share)


def test_every_labelled_exam_is_in_one_part_with_its_picture(site: Site) -> None:
    """The parts' columns and arrays are in one order, and the manifest gives all back."""
    for number in range(30):
        site.read(site.exam(number), "confirmed" if number % 2 else "rejected")
    taken = snapshot(site)
    names = [set(taken.names(part).tolist()) for part in ("train", "validation", "exam")]
    assert sum(map(len, names)) == len(set.union(*names)) == 30
    assert all(names)
    for part in ("train", "validation", "exam"):
        pictures = arrays(taken, part, site.pictures)
        assert pictures.shape == (len(taken.part(part)), 256, 256)
        for row, label in enumerate(taken.part(part)):
            assert np.array_equal(pictures[row], site.pictures.array(label.digest))
    taken.write(site.folder / "snapshot")
    again = read(site.folder / "snapshot")
    assert again == taken
    assert again.digest == taken.digest
