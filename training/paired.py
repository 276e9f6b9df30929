"""Two models on the same cases: how much they differ, and how sure that is.

All intervals are made of two one-sided limits: with confidence 0.95 the true difference is
below ``low`` in at most 5% of exams, and above ``high`` in at most 5%. A patient's cases count
together (clusters), and a case may have a weight, the inverse of its probability to be sampled.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

Labels = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]

BINS = 10
"""Of equal width, for the calibration error."""

ROUNDS = 1000
"""Bootstrap samples; only their standard deviation is used, which is then good to 2%."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Challenger minus champion.

    Attributes
    ----------
    champion, challenger, value : float
        ``value`` is ``challenger - champion``.
    low, high : float
        One-sided limits.
    """

    champion: float
    challenger: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its two-sided 95% interval."""

    value: float
    low: float
    high: float


def difference_of_shares(
    champion: Flags, challenger: Flags, patients: Names, weights: Numbers, confidence: float
) -> Difference:
    """How much more often the challenger says yes than the champion, to the same cases.

    The interval is Tango's (1998, Statistics in Medicine 17:891), which inverts the score test
    and therefore stays honest with few or no discordant pairs. Clusters and weights enter as
    an effective number of cases (Rao and Scott 1992, Biometrics 48:577): the number divided by
    the design effect, which is never taken to be less than 1.

    Parameters
    ----------
    champion, challenger : ndarray of bool, shape (cases,)
    patients : ndarray of str, shape (cases,)
    weights : ndarray of float64, shape (cases,), above 0
    confidence : float
        Of each one-sided limit, 0.5 to 1.
    """
    shares = weights / weights.sum()
    gained = float(shares @ (challenger & ~champion))
    lost = float(shares @ (champion & ~challenger))
    number = _effective(challenger.astype(float) - champion, patients, shares)
    low, high = _tango(gained * number, lost * number, number, float(norm.ppf(confidence)))
    return Difference(
        float(shares @ champion), float(shares @ challenger), gained - lost, low, high
    )


def _effective(differences: Numbers, patients: Names, shares: Numbers) -> float:
    """The number of unrelated cases of equal weight that would tell as much."""
    deviations = shares * (differences - shares @ differences)
    _, of = np.unique(patients, return_inverse=True)
    number = float(len(shares))
    unrelated = float(shares @ (differences - shares @ differences) ** 2) / number
    if unrelated == 0.0:
        # All pairs agree, and say nothing of how patients' cases go together: assume, wholly.
        return float(1.0 / np.sum(np.bincount(of, shares) ** 2))
    clustered = float(np.sum(np.bincount(of, deviations) ** 2))
    return number / max(1.0, clustered / unrelated)


def _tango(gained: float, lost: float, number: float, z: float) -> tuple[float, float]:
    """Limits of ``(gained - lost) / number`` by the score test; the counts may be fractions."""

    def statistic(delta: float) -> float:
        a = 2.0 * number
        b = -gained - lost + (2.0 * number - gained + lost) * delta
        c = -lost * delta * (1.0 - delta)
        # The likeliest share of losses if the difference is delta (Tango's q).
        q = (np.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
        variance = number * (2.0 * q + delta * (1.0 - delta))
        return float((gained - lost - number * delta) / np.sqrt(max(variance, 1e-12)))

    edge = 1.0 - 1e-9

    def limit(wanted: float) -> float:
        if statistic(-edge) <= wanted:
            return -1.0
        if statistic(edge) >= wanted:
            return 1.0
        return float(brentq(lambda delta: statistic(delta) - wanted, -edge, edge, xtol=1e-9))

    return limit(z), limit(-z)


def difference_of_aucs(
    labels: Labels,
    champion: Numbers,
    challenger: Numbers,
    patients: Names,
    weights: Numbers,
    confidence: float,
) -> Difference:
    """How much larger the area under the challenger's ROC curve is.

    DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44:837), with the sums over a patient's
    cases of Obuchowski (1997, Biometrics 53:567); for one case a patient the two are the same.
    The structural components come from sorted scores in O(n log n), as in Sun and Xu (2014,
    IEEE Signal Processing Letters 21:1389).

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1, both present
    champion, challenger : ndarray of float64, shape (cases,)
        Larger is more likely diseased.
    patients : ndarray of str, shape (cases,)
    weights : ndarray of float64, shape (cases,), above 0
    confidence : float
        Of each one-sided limit, 0.5 to 1.
    """
    diseased, healthy = labels == 1, labels == 0
    shares = np.where(diseased, weights / weights[diseased].sum(), weights / weights[healthy].sum())
    of_champion = _components(diseased, champion, shares)
    of_challenger = _components(diseased, challenger, shares)
    areas = [float(shares[diseased] @ each[diseased]) for each in (of_champion, of_challenger)]
    value = areas[1] - areas[0]
    deviations = shares * (of_challenger - of_champion - value)
    _, of = np.unique(patients, return_inverse=True)
    sick = np.bincount(of, np.where(diseased, deviations, 0.0))
    well = np.bincount(of, np.where(healthy, deviations, 0.0))
    variance = (
        _unbiased(len(np.unique(patients[diseased]))) * float(sick @ sick)
        + _unbiased(len(np.unique(patients[healthy]))) * float(well @ well)
        + _unbiased(len(sick)) * 2.0 * float(sick @ well)
    )
    half = float(norm.ppf(confidence)) * float(np.sqrt(max(variance, 0.0)))
    return Difference(areas[0], areas[1], value, max(value - half, -1.0), min(value + half, 1.0))


def _unbiased(clusters: int) -> float:
    return clusters / (clusters - 1) if clusters > 1 else np.inf


def _components(diseased: Flags, scores: Numbers, shares: Numbers) -> Numbers:
    """For each case the share of the other class that it is ordered rightly against."""
    out = np.empty(len(scores))
    for mine, sign in ((diseased, 1.0), (~diseased, -1.0)):
        others = sign * scores[~mine]
        order = np.argsort(others)
        below = np.concatenate([[0.0], np.cumsum(shares[~mine][order])])
        # Half of what ties: the mean of the places before and after them.
        places = [
            np.searchsorted(others[order], sign * scores[mine], side)
            for side in ("left", "right")
        ]  # fmt: skip
        out[mine] = (below[places[0]] + below[places[1]]) / 2.0
    return out


def calibration_error(labels: Labels, probabilities: Numbers, weights: Numbers) -> float:
    """Expected calibration error: how far frequencies are from probabilities, on average.

    Naeini, Cooper and Hauskrecht (2015, AAAI) with :data:`BINS` bins of equal width.
    """
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights * (labels - probabilities), minlength=BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def difference_of_calibration_errors(
    labels: Labels,
    champion: Numbers,
    challenger: Numbers,
    patients: Names,
    weights: Numbers,
    confidence: float,
    seed: int,
) -> Difference:
    """How much larger the challenger's calibration error is.

    Limits are normal with the standard error of a bootstrap over patients (Efron and
    Tibshirani 1993, ch. 6 and 13): the error's bias in small samples, which a percentile
    interval would double, is nearly the same for both models.
    """
    _, of = np.unique(patients, return_inverse=True)
    number = int(of.max()) + 1
    random = np.random.default_rng(seed)

    def error(probabilities: Numbers, times: Numbers) -> float:
        return calibration_error(labels, probabilities, weights * times)

    drawn = np.empty(ROUNDS)
    for index in range(ROUNDS):
        times = np.bincount(random.integers(0, number, number), minlength=number)[of].astype(float)
        drawn[index] = error(challenger, times) - error(champion, times)
    once = np.ones(len(labels))
    of_champion, of_challenger = error(champion, once), error(challenger, once)
    value = of_challenger - of_champion
    half = float(norm.ppf(confidence)) * float(drawn.std(ddof=1))
    return Difference(of_champion, of_challenger, value, value - half, value + half)


def recalibration(
    labels: Labels, probabilities: Numbers, patients: Names, weights: Numbers
) -> tuple[Estimate, Estimate] | None:
    """Intercept and slope of the outcome's logit on the model's (Cox 1958, Biometrika 45:562).

    0 and 1 for a calibrated model. Fitted by Newton's method; the 95% interval is from the
    sandwich variance over patients (Liang and Zeger 1986, Biometrika 73:13).

    Returns
    -------
    tuple of Estimate, or None
        None where no finite fit exists: the probabilities part the classes without an error.
    """
    clipped = np.clip(probabilities, 1e-6, 1.0 - 1e-6)
    design = np.column_stack([np.ones(len(labels)), np.log(clipped / (1.0 - clipped))])
    shares = weights / weights.mean()
    beta = np.array([0.0, 1.0])
    for _ in range(50):
        fitted = 1.0 / (1.0 + np.exp(-np.clip(design @ beta, -500, 500)))
        bread = (design * (shares * fitted * (1.0 - fitted))[:, None]).T @ design
        if np.linalg.cond(bread) > 1e10:
            return None
        step = np.linalg.solve(bread, design.T @ (shares * (labels - fitted)))
        beta = beta + step
        if np.abs(beta).max() > 1e3:
            return None
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    _, of = np.unique(patients, return_inverse=True)
    scores = design * (shares * (labels - fitted))[:, None]
    sums = np.stack([np.bincount(of, column) for column in scores.T], axis=1)
    inverse = np.linalg.inv(bread)
    errors = np.sqrt(np.diag(inverse @ (sums.T @ sums) @ inverse))
    both = [
        Estimate(float(b), float(b - 1.96 * e), float(b + 1.96 * e))
        for b, e in zip(beta, errors, strict=True)
    ]
    return both[0], both[1]


def roc(labels: Labels, scores: Numbers, weights: Numbers) -> tuple[Numbers, Numbers]:
    """The curve's points: false positive share and sensitivity, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum((weights * (labels == 1))[order])[ends]
    wrong = np.cumsum((weights * (labels == 0))[order])[ends]
    return (
        np.concatenate([[0.0], wrong / wrong[-1]]),
        np.concatenate([[0.0], found / found[-1]]),
    )
