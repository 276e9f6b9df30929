"""How good a model is: figures with intervals, from cases that no choice was made on.

Intervals are percentile bootstrap over patients (Efron and Tibshirani 1993, ch. 13): a
patient's pictures are drawn together, because they are not independent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

ROUNDS = 2000
"""Bootstrap samples; the interval's ends are then stable to about 0.002."""

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value between 0 and 1 and its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded to four places, which is more than the intervals deserve."""
        return {key: round(getattr(self, key), 4) for key in ("value", "low", "high")}


def auc(labels: Labels, scores: Probabilities) -> float:
    """The area under the ROC curve: how often a diseased case scores above a healthy one.

    By ranks (Hanley and McNeil, Radiology 143, 1982): a bootstrap asks for it many times.
    """
    diseased = labels == 1
    count, others = int(diseased.sum()), int((~diseased).sum())
    above = float(rankdata(scores)[diseased].sum()) - count * (count + 1) / 2
    return above / (count * others)


def sensitivity(labels: Labels, flagged: npt.NDArray[np.bool_]) -> float:
    """Flagged among the diseased."""
    return float(np.mean(flagged[labels == 1]))


def specificity(labels: Labels, flagged: npt.NDArray[np.bool_]) -> float:
    """Not flagged among the healthy."""
    return float(np.mean(~flagged[labels == 0]))


def threshold_for(labels: Labels, probabilities: Probabilities, wanted: float) -> float:
    """The highest threshold whose sensitivity on these cases is at least ``wanted``.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1
    probabilities : ndarray of float64, shape (cases,), 0 to 1
    wanted : float
        Sensitivity, 0 to 1.
    """
    diseased = np.sort(probabilities[labels == 1])
    may_miss = int(np.floor((1.0 - wanted) * len(diseased) + 1e-9))
    return float(diseased[may_miss])


def figures(
    labels: Labels,
    probabilities: Probabilities,
    patients: npt.NDArray[np.str_],
    threshold: float,
    seed: int,
) -> Mapping[str, Figure]:
    """AUC, sensitivity, specificity, accuracy and Brier score.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1, both present
    probabilities : ndarray of float64, shape (cases,), 0 to 1
    patients : ndarray of str, shape (cases,)
    threshold : float
        Flagged at and above it.
    seed : int
        Of the bootstrap.
    """
    measures: dict[str, Callable[[Labels, Probabilities], float]] = {
        "auc": auc,
        "sensitivity": lambda y, p: sensitivity(y, p >= threshold),
        "specificity": lambda y, p: specificity(y, p >= threshold),
        "accuracy": lambda y, p: float(np.mean((p >= threshold) == (y == 1))),
        "brier": lambda y, p: float(np.mean(np.square(p - y))),
    }
    return resampled(measures, labels, probabilities, patients, seed)


def resampled(
    measures: Mapping[str, Callable[[Labels, Probabilities], float]],
    labels: Labels,
    probabilities: npt.NDArray[np.float64],
    patients: npt.NDArray[np.str_],
    seed: int,
    rounds: int = ROUNDS,
) -> Mapping[str, Figure]:
    """Measures of cases with 95% intervals by bootstrap over patients.

    Parameters
    ----------
    measures : mapping
        Of labels and probabilities; called on samples that have both classes.
    labels : ndarray of int64, shape (cases,), 0 or 1, both present
    probabilities : ndarray of float64, shape (cases, ...)
        Whatever the measures make of it.
    patients : ndarray of str, shape (cases,)
    seed : int
    rounds : int
    """
    groups = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    random = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in measures}
    while len(next(iter(drawn.values()))) < rounds:
        chosen = random.integers(0, len(groups), len(groups))
        rows = np.concatenate([groups[index] for index in chosen])
        if len(np.unique(labels[rows])) == 2:
            for name, measure in measures.items():
                drawn[name].append(measure(labels[rows], probabilities[rows]))
    return {
        name: Figure(
            measure(labels, probabilities),
            float(np.quantile(drawn[name], 0.025)),
            float(np.quantile(drawn[name], 0.975)),
        )
        for name, measure in measures.items()
    }
