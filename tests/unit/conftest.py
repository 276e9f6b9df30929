"""Fixtures of the unit tests."""

import pytest

from tests.fitted import fitted_quality, small_chest
from triage.pixels import Array
from triage.quality import Quality


@pytest.fixture(scope="session")
def fitted() -> Quality:
    """Novelty and quality fitted on drawn chests."""
    return fitted_quality()


@pytest.fixture(scope="session")
def unseen() -> list[Array]:
    """Drawn chests that nothing was fitted on."""
    return [small_chest(seed) for seed in range(500, 508)]
