"""How urgent an exam is, and what a score may be."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triage.scoring import Priority, Score, priority

ORDERS = ["STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW", "", "URGENT", "stat?"]


@pytest.mark.parametrize(
    ("ordered", "flagged", "expected"),
    [
        ("STAT", False, Priority.STAT),
        ("STAT", True, Priority.STAT),
        ("HIGH", False, Priority.HIGH),
        ("HIGH", True, Priority.HIGH),
        ("ROUTINE", False, Priority.ROUTINE),
        ("ROUTINE", True, Priority.HIGH),
        ("MEDIUM", False, Priority.ROUTINE),
        ("LOW", False, Priority.ROUTINE),
        ("LOW", True, Priority.HIGH),
        ("", False, Priority.ROUTINE),
        ("", True, Priority.HIGH),
        ("whatever", True, Priority.HIGH),
    ],
)
def test_the_priority_is_the_higher_of_order_and_flag(
    ordered: str, flagged: bool, expected: Priority
) -> None:
    """A flag makes an exam HIGH; nothing lowers it."""
    assert priority(ordered, flagged=flagged) is expected


@given(st.sampled_from(ORDERS) | st.text(max_size=20))
def test_a_flag_never_lowers_what_was_ordered(ordered: str) -> None:
    """And STAT stays above everything that is only flagged."""
    assert priority(ordered, flagged=True) >= priority(ordered, flagged=False)
    assert priority("STAT", flagged=False) > priority("ROUTINE", flagged=True)


def test_a_higher_priority_has_a_longer_head_start() -> None:
    """A finite one, so that whoever waits long enough is read."""
    starts = [level.head_start for level in sorted(Priority)]
    assert starts[0].total_seconds() == 0
    assert all(lower < higher for lower, higher in pairwise(starts))
    assert starts[-1].days < 7


def test_the_stored_values_of_priorities_do_not_change() -> None:
    """They are in databases."""
    assert {level.name: level.value for level in Priority} == {"ROUTINE": 0, "HIGH": 1, "STAT": 2}


@pytest.mark.parametrize("probability", [math.nan, math.inf, -math.inf, -0.001, 1.001, 2.0])
def test_a_score_refuses_what_is_no_probability(probability: float) -> None:
    """Such as a broken network's."""
    with pytest.raises(ValueError, match="is not a probability"):
        Score(probability, 0.5, "m")


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_score_at_the_threshold_is_flagged(probability: float, threshold: float) -> None:
    """At and above, as the threshold was chosen."""
    assert Score(probability, threshold, "m").flagged == (probability >= threshold)
    assert Score(threshold, threshold, "m").flagged
