"""Novelty and quality fitted on drawn chests, for tests that need no real ones."""

from functools import cache

import numpy as np

from sample_dicom.draw import chest
from tests.degrade import drawn
from training.quality import fit_quality, material
from triage.pixels import Array
from triage.quality import Quality

SMALL = (140, 116)


def small_chest(seed: int) -> Array:
    """A drawn chest, every other one with an opacity."""
    return drawn(chest(seed, opacity=0.9 * (seed % 2), shape=SMALL))


@cache
def fitted_quality() -> Quality:
    """Fitted on 80 drawn chests, once in a test run."""
    arrays = [small_chest(seed).astype(np.float16) for seed in range(80)]
    return fit_quality(material(arrays, np.array([f"p{seed}" for seed in range(80)]), 0))
