"""The loop as a whole, in a short form; ``make story`` tells it in full."""

from pathlib import Path

import pytest

from tests.acceptance.story import DATA, Scale, Story, drawn, written

SHORT = Scale(
    readings=150,
    shadow=10,
    after=60,
    pictures=400,
    epochs=3,
    # With other tests beside it, the least priority there is would be none.
    nice=0,
    policy="""
[site]
least_diseased = 20
least_healthy = 20
sensitivity_margin = 0.2
specificity_margin = 0.3
calibration_margin = 0.3

[subgroups]
least_diseased = 1
least_healthy = 1
sensitivity_margin = 0.9
specificity_margin = 0.9
""",
)
"""So few exams prove little: the margins are wide, and so is what they let pass."""


@pytest.mark.skipif(not (DATA / "train").is_dir(), reason="the radiographs are not at hand")
def test_a_site_learns_and_can_go_back(tmp_path: Path) -> None:
    """Each chapter asserts its own end; see :class:`tests.acceptance.story.Story`."""
    told = Story(DATA, tmp_path, SHORT).tell()
    assert told.outcome == "PROVEN"
    assert told.before is not None
    assert told.unchanged is not None
    assert told.before.value < told.unchanged.value
    assert told.rolled_back == 20
    for picture in drawn(told, tmp_path / "pictures"):
        assert picture.stat().st_size > 10_000
    text = written(told, SHORT, 0.0)
    assert told.challenger in text
    assert "## " not in text
