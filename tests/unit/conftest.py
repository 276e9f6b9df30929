"""Fixtures of the unit tests."""

import numpy as np
import pytest

from sample_dicom.draw import chest
from tests.degrade import drawn
from training.quality import fit_quality, material
from triage.pixels import Array
from triage.quality import Quality

SMALL = (140, 116)


def small_chest(seed: int) -> Array:
    """A drawn chest, every other one with an opacity."""
    return drawn(chest(seed, opacity=0.9 * (seed % 2), shape=SMALL))


@pytest.fixture(scope="session")
def fitted() -> Quality:
    """Novelty and quality fitted on 80 drawn chests."""
    arrays = [small_chest(seed).astype(np.float16) for seed in range(80)]
    return fit_quality(material(arrays, np.array([f"p{seed}" for seed in range(80)]), 0))


@pytest.fixture(scope="session")
def unseen() -> list[Array]:
    """Drawn chests that nothing was fitted on."""
    return [small_chest(seed) for seed in range(500, 508)]
