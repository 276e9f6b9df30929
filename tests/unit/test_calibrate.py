"""Calibration and threshold of a challenger, from few cases with wrong labels among them."""

import numpy as np
import pytest

from training.calibrate import no_worse_threshold, recalibrate


def drawn(cases: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that would be calibrated but for the shift."""
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, 2.0, cases)
    labels = (random.random(cases) < 1 / (1 + np.exp(-logits - shift))).astype(np.int64)
    return labels, logits


def test_many_cases_find_slope_and_intercept() -> None:
    labels, logits = drawn(20_000, 0, shift=1.0)
    found = recalibrate(labels, logits / 1.5, np.ones(len(labels)))
    assert found.slope == pytest.approx(1.5, abs=0.1)
    assert found.intercept == pytest.approx(1.0, abs=0.1)


def test_few_cases_move_the_intercept_and_hold_the_slope() -> None:
    """Ten cases that part the classes without an error would have no finite Platt scaling."""
    logits = np.array([-3.0, -2.5, -2.0, -1.5, -1.2, 0.2, 0.5, 1.0, 1.5, 2.0])
    found = recalibrate((logits > 0).astype(np.int64), logits, np.ones(10))
    assert 1.0 < found.slope < 2.0
    everybody = recalibrate(np.ones(10, np.int64), np.zeros(10), np.ones(10))
    assert everybody.slope == pytest.approx(1.0)
    assert 0.5 < everybody.intercept < 4.0


def test_a_calibrated_network_stays_as_it_is() -> None:
    labels, logits = drawn(5_000, 1)
    found = recalibrate(labels, logits, np.ones(len(labels)))
    assert found.slope == pytest.approx(1.0, abs=0.1)
    assert found.intercept == pytest.approx(0.0, abs=0.1)


def test_weights_stand_for_exams_that_were_not_read() -> None:
    """Healthy ones of which every second was left out count twice."""
    labels, logits = drawn(20_000, 2)
    kept = (labels == 1) | (np.arange(len(labels)) % 2 == 0)
    weights = np.where(labels == 1, 1.0, 2.0)[kept]
    blind = recalibrate(labels[kept], logits[kept], np.ones(kept.sum()))
    found = recalibrate(labels[kept], logits[kept], weights)
    assert blind.intercept > 0.5
    assert found.intercept == pytest.approx(0.0, abs=0.1)


def rates(labels: np.ndarray, flagged: np.ndarray) -> tuple[float, float]:
    """Sensitivity and specificity."""
    return float(flagged[labels == 1].mean()), float((~flagged[labels == 0]).mean())


def spread(low: float, high: float, number: int) -> np.ndarray:
    """Probabilities at equal distances."""
    return np.linspace(low, high, number)


ILL_AND_WELL = np.repeat([1, 0], [20, 40])
EVERYBODY = np.ones(60, bool)


def test_the_champion_s_risk_stays_where_nothing_speaks_against_it() -> None:
    """Not even one diseased far below it: that may be a slip of the reader's."""
    scores = np.concatenate([[0.01], spread(0.6, 0.9, 19), spread(0.02, 0.4, 40)])
    assert no_worse_threshold(ILL_AND_WELL, np.ones(60), EVERYBODY, scores, 0.5) == 0.5


def test_a_twentieth_of_wrong_labels_does_not_flag_everybody() -> None:
    """A better network than a champion that flags everybody spares the healthy in truth, too."""
    random = np.random.default_rng(3)
    truth = np.repeat([0, 1], 60)
    labels = np.where(random.random(120) < 0.05, 1 - truth, truth)
    better = 1 / (1 + np.exp(-(6.0 * truth - 3.0 + random.normal(0.0, 1.0, 120))))
    threshold = no_worse_threshold(labels, np.ones(120), np.ones(120, bool), better, 0.2)
    found, spared = rates(truth, better >= threshold)
    assert found == 1.0
    assert spared > 0.6
    # The sensitivity that is wanted alone would be the score of a wrong label.
    alone = np.sort(better[labels == 1])[int(0.025 * (labels == 1).sum())]
    assert rates(truth, better >= alone)[1] < spared - 0.1


def test_findings_that_are_lost_lower_it() -> None:
    """Two of twenty are no slip: only one stays below, the lowest."""
    scores = np.concatenate([[0.01, 0.2], spread(0.6, 0.9, 18), spread(0.02, 0.4, 40)])
    threshold = no_worse_threshold(ILL_AND_WELL, np.ones(60), EVERYBODY, scores, 0.5)
    assert 0.19 < threshold <= 0.2


def test_a_case_that_stands_for_many_excuses_no_other() -> None:
    """One of the blind sample weighs as much as all flagged ones: still only one may be lost."""
    weights = np.where(np.arange(60) == 19, 100.0, 1.0)
    scores = np.concatenate([spread(0.1, 0.3, 10), spread(0.6, 0.9, 10), spread(0.0, 0.05, 40)])
    threshold = no_worse_threshold(ILL_AND_WELL, weights, EVERYBODY, scores, 0.5)
    kept = scores[:20] >= threshold
    assert weights[:20] @ kept / weights[:20].sum() >= 0.95
    assert weights[:20] @ (scores[:20] >= threshold + 0.05) / weights[:20].sum() < 0.95


def test_it_rises_where_it_would_flag_more_of_the_healthy_for_nothing() -> None:
    """Up to where the champion's specificity is kept; not beyond a diseased."""
    champion = ILL_AND_WELL == 1
    scores = np.concatenate([spread(0.6, 0.9, 20), spread(0.02, 0.4, 40)])
    assert 0.4 < no_worse_threshold(ILL_AND_WELL, np.ones(60), champion, scores, 0.3) < 0.6
    mixed = np.concatenate([spread(0.35, 0.9, 20), spread(0.02, 0.4, 40)])
    assert no_worse_threshold(ILL_AND_WELL, np.ones(60), champion, mixed, 0.3) == 0.3


def test_a_network_that_tells_nothing_keeps_the_findings() -> None:
    """A finding is worth more than time."""
    labels = np.repeat([0, 1], 20)
    same = np.tile(spread(0.1, 0.9, 20), 2)
    threshold = no_worse_threshold(labels, np.ones(40), labels == 1, same, 0.5)
    assert rates(labels, same >= threshold)[0] >= 0.95
