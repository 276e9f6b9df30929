"""The change test: quiet while nothing changes, and soon sure when something does."""

import random
from statistics import mean, median

import pytest

from triage.drift import REFERENCE, watch


def score(chance: random.Random, diseased: float) -> float:
    """A probability as the champion gives it: most are near 0 or 1."""
    return chance.betavariate(8, 1) if chance.random() < diseased else chance.betavariate(1, 8)


@pytest.mark.parametrize(
    "value", [lambda c: score(c, 0.35), lambda c: float(c.random() < 0.04)], ids=["scores", "rare"]
)
def test_false_alarms_are_as_rare_as_promised(value: object) -> None:
    """The mean run to an alarm on unchanged values is at least the patience, but for chance.

    Also of values that are 0 or 1: ties are broken at random.
    """
    runs = []
    for seed in range(40):
        chance = random.Random(1_000 + seed)
        values = (value(chance) for _ in range(12_000))  # type: ignore[operator]
        found = watch(values, 500, seed).change
        runs.append(12_000 if found is None else found.at - REFERENCE)
    # The mean's standard error is about 80.
    assert mean(runs) > 500 - 2 * 80


@pytest.mark.parametrize(
    ("before", "after", "within"),
    [
        (lambda c: score(c, 0.35), lambda c: score(c, 0.70), 200),
        (lambda c: score(c, 0.35), lambda c: score(c, 0.05), 400),
        (lambda c: c.gauss(0.5, 0.1), lambda c: c.gauss(0.6, 0.1), 300),
        (lambda c: float(c.random() < 0.02), lambda c: float(c.random() < 0.4), 300),
    ],
)
def test_a_change_is_found_and_dated(before: object, after: object, within: int) -> None:
    """Half of the time within so many exams; it is dated near where it began."""
    delays, dates = [], []
    for seed in range(15):
        chance = random.Random(1_000 + seed)
        values = [before(chance) for _ in range(800)]  # type: ignore[operator]
        values += [after(chance) for _ in range(1_500)]  # type: ignore[operator]
        watched = watch(values, seed=seed)
        assert watched.change is not None
        assert watched.change.at >= 800
        assert watched.count == watched.change.at + 1 == len(watched.levels)
        assert watched.levels[-1] >= 1 > max(watched.levels[:-1])
        delays.append(watched.change.at - 800)
        dates.append(abs(watched.change.began - 800))
    assert median(delays) < within
    assert median(dates) < 120


def test_the_beginning_is_only_learnt_from() -> None:
    """A change among the first values is none, and no level is told of them."""
    watched = watch([0.0] * (REFERENCE // 2) + [1.0] * (REFERENCE // 2))
    assert watched.change is None
    assert set(watched.levels) == {0.0}
    assert watch([]).count == 0
