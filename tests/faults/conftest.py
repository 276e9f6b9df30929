"""What every test of the fault suite counts with."""

from collections.abc import Iterator

import pytest

from tests.faults.tally import PROPERTY, Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The counts of a test, which its report carries."""
    counts = Tally()
    yield counts
    request.node.user_properties.append((PROPERTY, (dict(counts.faults), dict(counts.totals))))
