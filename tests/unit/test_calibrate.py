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


def test_a_threshold_loses_nothing_against_the_champion() -> None:
    """A better network than the champion's gains both, though a twentieth of labels is wrong."""
    random = np.random.default_rng(3)
    truth = np.repeat([0, 1], 60)
    labels = np.where(random.random(120) < 0.05, 1 - truth, truth)
    champion = truth + random.normal(0.0, 0.4, 120) >= 0.5
    better = 1 / (1 + np.exp(-(6.0 * truth - 3.0 + random.normal(0.0, 1.5, 120))))
    threshold = no_worse_threshold(labels, np.ones(120), champion, better, 0.975)
    old, new = rates(labels, champion), rates(labels, better >= threshold)
    assert new[0] >= old[0]
    assert new[1] >= old[1]
    assert sum(new) > sum(old)
    # The wanted sensitivity alone would be the score of a wrong label.
    alone = np.sort(better[labels == 1])[int(0.025 * (labels == 1).sum())]
    assert rates(labels, better >= alone)[1] < new[1] - 0.1


def test_the_wanted_sensitivity_is_reached_where_it_costs_nothing() -> None:
    labels = np.repeat([0, 1], 50)
    champion = np.concatenate([np.arange(50) < 10, np.arange(50) < 40])
    perfect = np.concatenate([np.linspace(0.1, 0.4, 50), np.linspace(0.6, 0.9, 50)])
    threshold = no_worse_threshold(labels, np.ones(100), champion, perfect, 0.975)
    assert 0.4 < threshold < 0.6


def test_without_a_way_to_keep_both_sensitivity_is_kept() -> None:
    """A network that tells nothing: a finding is worth more than time."""
    labels = np.repeat([0, 1], 20)
    champion = labels == 1
    same = np.tile(np.linspace(0.1, 0.9, 20), 2)
    threshold = no_worse_threshold(labels, np.ones(40), champion, same, 0.975)
    assert rates(labels, same >= threshold)[0] == 1.0
