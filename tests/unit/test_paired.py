"""Statistics of paired scores, held against their definitions and against simulated truth."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from training.paired import (
    calibration_error,
    difference_of_aucs,
    difference_of_calibration_errors,
    difference_of_shares,
    recalibration,
    roc,
)

Z = float(norm.ppf(0.95))


def names(number: int, each: int = 1) -> np.ndarray:
    """Patients with so many cases each."""
    return (np.arange(number) // each).astype(str)


def ones(number: int) -> np.ndarray:
    """Equal weights."""
    return np.ones(number)


def pairs(gained: int, lost: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    """What champion and challenger say of cases."""
    champion = np.r_[np.zeros(gained, bool), np.ones(lost + both, bool)]
    challenger = np.r_[np.ones(gained, bool), np.zeros(lost, bool), np.ones(both, bool)]
    return champion, challenger


@pytest.mark.parametrize(("gained", "lost", "both"), [(3, 9, 88), (0, 4, 46), (7, 1, 20)])
def test_the_limits_are_where_the_score_test_turns(gained: int, lost: int, both: int) -> None:
    """With the likelihood maximized by search instead of by Tango's formula."""
    number = gained + lost + both
    found = difference_of_shares(*pairs(gained, lost, both), names(number), ones(number), 0.95)
    for delta, wanted in ((found.low, Z), (found.high, -Z)):

        def unlikely(q: float, delta: float = delta) -> float:
            shares = np.array([q + delta, q, 1 - 2 * q - delta])
            return -float(np.array([gained, lost, both]) @ np.log(np.maximum(shares, 1e-300)))

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        q = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = number * (2 * q + delta - delta**2)
        score = (gained - lost - number * delta) / np.sqrt(variance)
        assert score == pytest.approx(wanted, abs=0.01)


def test_agreement_alone_is_no_certainty() -> None:
    """Ten pairs that all agree leave room for a loss; a thousand hardly any."""
    for number, at_most in ((10, -0.2), (1000, -0.0026)):
        found = difference_of_shares(*pairs(0, 0, number), names(number), ones(number), 0.95)
        assert found.value == 0.0
        assert found.low == pytest.approx(-(Z**2) / (number + Z**2), abs=1e-6)
        assert found.low < at_most
        assert found.high == pytest.approx(-found.low)


def test_copies_of_a_case_add_no_certainty() -> None:
    """Every case four times, of one patient, says what it says once."""
    champion, challenger = pairs(2, 6, 52)
    once = difference_of_shares(champion, challenger, names(60), ones(60), 0.95)
    four = difference_of_shares(
        np.repeat(champion, 4), np.repeat(challenger, 4), names(240, 4), ones(240), 0.95
    )
    assert (four.low, four.high) == pytest.approx((once.low, once.high), abs=1e-6)
    agreed = np.ones(240, bool)
    sure = difference_of_shares(agreed, agreed, names(240, 4), ones(240), 0.95)
    assert sure.low == pytest.approx(-(Z**2) / (60 + Z**2), abs=1e-6)


def test_a_weight_counts_as_so_many_cases_in_the_value() -> None:
    """But not in the certainty."""
    champion, challenger = pairs(1, 3, 6)
    weights = np.array([3.0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    found = difference_of_shares(champion, challenger, names(10), weights, 0.95)
    assert found.value == pytest.approx((3 - 3) / 12)
    more = difference_of_shares(
        np.repeat(champion, weights.astype(int)), np.repeat(challenger, weights.astype(int)),
        names(12), ones(12), 0.95,
    )  # fmt: skip
    assert more.value == pytest.approx(found.value)
    assert found.high - found.low > more.high - more.low


def exam(
    number: int, difference: float, seed: int, each: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated normal scores; the patients' cases are correlated as well."""
    random = np.random.default_rng(seed)
    labels = np.repeat(random.integers(0, 2, number // each), each)
    labels[:each], labels[each : 2 * each] = 0, 1
    noise = [np.repeat(random.standard_normal(number // each), each) for _ in range(3)]
    own = random.standard_normal((3, number))
    shared, first, second = (0.7 * n + 0.7 * o for n, o in zip(noise, own, strict=True))
    champion = 1.5 * labels + 0.8 * shared + 0.6 * first
    challenger = (1.5 + difference) * labels + 0.8 * shared + 0.6 * second
    return labels, champion, challenger, names(number, each)


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """AUC and structural components, pair by pair as in the paper."""
    x, y = scores[labels == 1][:, None], scores[labels == 0][None, :]
    psi = (x > y) + 0.5 * (x == y)
    return float(psi.mean()), psi.mean(1), psi.mean(0)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_its_variance_are_delong_s(*, ties: bool) -> None:
    """The fast components give what all pairs give, with ties, too."""
    labels, champion, challenger, patients = exam(150, 0.4, 1)
    if ties:
        champion, challenger = np.round(champion), np.round(challenger)
    one, two = delong(labels, champion), delong(labels, challenger)
    variance = sum(np.var(b - a, ddof=1) / len(a) for a, b in zip(one[1:], two[1:], strict=True))
    found = difference_of_aucs(labels, champion, challenger, patients, ones(150), 0.95)
    assert (found.champion, found.challenger) == pytest.approx((one[0], two[0]))
    assert found.value - found.low == pytest.approx(Z * np.sqrt(variance))
    assert found.high - found.value == pytest.approx(Z * np.sqrt(variance))


def test_a_patient_s_cases_are_summed_as_obuchowski_does() -> None:
    """Written out with her S10, S01 and S11."""
    labels, champion, challenger, patients = exam(120, 0.4, 2, each=3)
    labels[::7] = 1 - labels[::7]  # patients with both kinds
    one, two = delong(labels, champion), delong(labels, challenger)
    m, n = (labels == 1).sum(), (labels == 0).sum()
    value = two[0] - one[0]
    sick, well = (b - a - value for a, b in zip(one[1:], two[1:], strict=True))
    of_sick, of_well = patients[labels == 1], patients[labels == 0]
    s10 = s01 = s11 = 0.0
    for patient in set(patients):
        x, y = sick[of_sick == patient].sum(), well[of_well == patient].sum()
        s10, s01, s11 = s10 + x * x, s01 + y * y, s11 + x * y
    i10, i01, i = len(set(of_sick)), len(set(of_well)), len(set(patients))
    s10, s01, s11 = i10 / ((i10 - 1) * m) * s10, i01 / ((i01 - 1) * n) * s01, i / (i - 1) * s11
    variance = s10 / m + s01 / n + 2 * s11 / (m * n)
    found = difference_of_aucs(labels, champion, challenger, patients, ones(120), 0.95)
    assert found.value - found.low == pytest.approx(Z * np.sqrt(variance))


ALPHA = 0.05
ROUNDS = 400
CAUGHT_BY_CHANCE = float(norm.ppf(0.9999)) * np.sqrt(ALPHA * (1 - ALPHA) / ROUNDS)


@pytest.mark.parametrize("each", [1, 2])
def test_a_loss_of_a_whole_margin_is_ruled_out_in_at_most_5_in_100(each: int) -> None:
    """True difference -0.05, margin 0.05: so often would the gate be wrong (seeded)."""
    random = np.random.default_rng(each)
    wrong = 0
    for _ in range(ROUNDS):
        kinds = np.repeat(random.random(200 // each), each)
        redrawn = random.random(200) < 0.5
        kinds = np.where(redrawn, random.random(200), kinds)
        lost, gained = kinds < 0.075, (kinds >= 0.075) & (kinds < 0.1)
        found = difference_of_shares(~gained, ~lost, names(200, each), ones(200), 0.95)
        wrong += found.low > -0.05
    assert wrong / ROUNDS <= ALPHA + CAUGHT_BY_CHANCE


@pytest.mark.parametrize("each", [1, 2])
def test_an_equal_challenger_is_found_better_in_at_most_5_in_100(each: int) -> None:
    """By AUC (seeded); and a better one is usually found."""
    wrong = right = 0
    for seed in range(ROUNDS):
        for difference in (0.0, 1.0):
            labels, champion, challenger, patients = exam(120, difference, seed, each)
            found = difference_of_aucs(labels, champion, challenger, patients, ones(120), 0.95)
            wrong += difference == 0.0 and found.low > 0.0
            right += difference == 1.0 and found.low > 0.0
    assert wrong / ROUNDS <= ALPHA + CAUGHT_BY_CHANCE
    assert right / ROUNDS > 0.8


def outcomes(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are drawn with their probabilities."""
    random = np.random.default_rng(seed)
    logits = 2.0 * random.standard_normal(number)
    probabilities = 1 / (1 + np.exp(-logits))
    return (random.random(number) < probabilities).astype(np.int64), probabilities


def test_recalibration_finds_how_probabilities_were_bent() -> None:
    """Logits that were halved and moved by one have slope 2 and intercept -2."""
    labels, probabilities = outcomes(5000, 3)
    logits = np.log(probabilities / (1 - probabilities))
    for bent, intercept, slope in ((logits, 0.0, 1.0), (logits / 2 + 1, -2.0, 2.0)):
        fitted = recalibration(labels, 1 / (1 + np.exp(-bent)), names(5000), ones(5000))
        assert fitted is not None
        assert fitted[0].low < intercept < fitted[0].high
        assert fitted[1].low < slope < fitted[1].high
        assert fitted[1].high - fitted[1].low < 0.5


def test_what_parts_the_classes_has_no_recalibration() -> None:
    """No finite slope is the likeliest."""
    labels = np.repeat([0, 1], 30)
    scores = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 60)
    assert recalibration(labels, scores, names(60), ones(60)) is None


def test_the_calibration_error_is_the_mean_gap() -> None:
    """Two bins that are off by 0.2 and by 0.1."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 0, 1, 1])
    scores = np.array([0.25] * 4 + [0.85] * 6)
    gaps = abs(0 - 4 * 0.25) + abs(5 - 6 * 0.85)
    assert calibration_error(labels, scores, ones(10)) == pytest.approx(gaps / 10)
    assert calibration_error(np.array([1]), np.array([1.0]), ones(1)) == 0.0


def test_a_bent_challenger_is_found_worse_calibrated() -> None:
    """And the same one is not."""
    labels, champion = outcomes(800, 4)
    bent = np.clip(champion * 0.5, 0, 1)
    args = (names(800), ones(800), 0.95, 0)
    worse = difference_of_calibration_errors(labels, champion, bent, *args)
    assert worse.low > 0.1
    same = difference_of_calibration_errors(labels, champion, champion, *args)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_roc_curve_encloses_the_auc() -> None:
    """By trapezoids, with ties and weights."""
    labels, champion, challenger, patients = exam(100, 0.0, 5)
    scores = np.round(champion)
    weights = np.random.default_rng(0).random(100) + 0.5
    found = difference_of_aucs(labels, scores, challenger, patients, weights, 0.95)
    assert np.trapezoid(*reversed(roc(labels, scores, weights))) == pytest.approx(found.champion)
