"""From logits to probabilities that mean what they say, and to a threshold.

Both are chosen on out-of-fold logits: each is a network's on a patient it never saw. The
patients there come from the consoles that the network was trained on, so each radiograph
is also judged as other consoles might have sent it (*copies*, see
:mod:`training.stress`), and both choices look at these, too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from training.evaluate import Figure, Labels, Probabilities, resampled

BINS = 10

Logits = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling (in Smola et al., Advances in Large Margin Classifiers, 2000).

    Attributes
    ----------
    slope, intercept : float
        The calibrated logit is ``slope * logit + intercept``.
    """

    slope: float
    intercept: float

    def probabilities(self, logits: Logits) -> Probabilities:
        """Calibrated probabilities, same shape, 0 to 1."""
        return np.asarray(1.0 / (1.0 + np.exp(-(self.slope * logits + self.intercept))))


def calibrate(labels: Labels, logits: Logits) -> Calibration:
    """Fit by maximum likelihood.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1
    logits : ndarray of float64, shape (cases,) or (cases, copies)
    """
    columns = logits.reshape(len(labels), -1)
    fitted = LogisticRegression(C=1e6).fit(columns.reshape(-1, 1), labels.repeat(columns.shape[1]))
    return Calibration(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))


SLOPE_SPREAD, INTERCEPT_SPREAD = 0.3, 1.5
"""Standard deviations of what is believed of a slope and an intercept before any case is seen."""


def recalibrate(labels: Labels, logits: Logits, weights: npt.NDArray[np.float64]) -> Calibration:
    """Fit on few cases, starting from a calibration that was good elsewhere.

    Platt scaling with a normal prior: the slope near 1, held firmly, the intercept near 0, held
    loosely. So a few cases move the intercept alone, as a site's own share of diseased does,
    many move both, and none leaves the calibration as it was.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1
    logits : ndarray of float64, shape (cases,)
        Of a network whose last layer has the earlier calibration.
    weights : ndarray of float64, shape (cases,), above 0
    """
    shares = weights / weights.mean()

    def loss(place: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        slope, intercept = place
        calibrated = slope * logits + intercept
        apart = shares * (expit(calibrated) - labels)
        held = np.array([(slope - 1.0) / SLOPE_SPREAD**2, intercept / INTERCEPT_SPREAD**2])
        value = shares @ (np.logaddexp(0.0, calibrated) - labels * calibrated)
        prior = (slope - 1.0) * held[0] / 2 + intercept * held[1] / 2
        return float(value + prior), np.array([apart @ logits, apart.sum()]) + held

    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.1, 10.0), (-20, 20)]
    )
    return Calibration(float(found.x[0]), float(found.x[1]))


MAY_LOSE = 0.05
"""Share of the diseased cases that a threshold may lose against another model's flags before it
is lowered: the loss that the gate takes by default. One label alone never lowers it."""


def no_worse_threshold(
    labels: Labels,
    weights: npt.NDArray[np.float64],
    flagged: npt.NDArray[np.bool_],
    probabilities: Probabilities,
    risk: float,
) -> float:
    """A threshold at a known risk, moved where it would be worse than another model's flags.

    Probabilities that were calibrated here mean the same as where the risk was chosen, on
    thousands of patients. A few dozen cases, some of them read wrongly, cannot say better where
    to flag: the lowest score of any that is called diseased is one reading. They can say that
    findings are lost. So the threshold is

    - the risk, or
    - the highest at which no more than :data:`MAY_LOSE` of the diseased, or one case, are lost
      against the flags, if that is lower, or
    - the lowest that flags no more of the healthy than the flags do, if that is higher and loses
      no diseased against the flags.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1, both present
    weights : ndarray of float64, shape (cases,), above 0
    flagged : ndarray of bool, shape (cases,)
        By the other model.
    probabilities : ndarray of float64, shape (cases,), 0 to 1, calibrated here
    risk : float
        The other model's threshold, 0 to 1.

    Returns
    -------
    float
        Above 0 and below 1; where it is not the risk, midway, in logits, between the lowest case
        that it flags and the next one below.
    """
    ill, well = labels == 1, labels == 0
    heavy, light = weights[ill] / weights[ill].sum(), weights[well] / weights[well].sum()

    def lost(threshold: float) -> tuple[float, int]:
        """Share and number of the diseased that are lost, less those that are gained."""
        found = probabilities[ill] >= threshold
        return (
            float(heavy @ flagged[ill] - heavy @ found),
            int(flagged[ill].sum()) - int(found.sum()),
        )

    def keeps(threshold: float) -> bool:
        share, number = lost(threshold)
        return share <= MAY_LOSE + 1e-9 or number <= 1

    def spares(threshold: float) -> bool:
        spared = light @ (probabilities[well] < threshold)
        return bool(spared >= light @ ~flagged[well] - 1e-9)

    ways = [_below(probabilities, float(case)) for case in np.unique(probabilities)]
    if not keeps(risk):
        return max(way for way in ways if way < risk and keeps(way))
    if not spares(risk):
        higher = (way for way in ways if way > risk and spares(way) and lost(way)[0] <= 1e-9)
        return min(higher, default=risk)
    return risk


def _below(probabilities: Probabilities, case: float) -> float:
    """The threshold midway, in logits, between a case and the next one below."""
    lower = float(probabilities[probabilities < case].max(initial=0.0))
    pair = logit(np.clip([lower, case], 1e-6, 1.0 - 1e-6))
    return min(float(expit(pair.mean())), case)


def choose_threshold(
    labels: Labels, probabilities: Probabilities, copies: Probabilities, wanted: float
) -> float:
    """The threshold that separates copies best, among those sensitive enough on originals.

    The highest threshold that is sensitive enough stands as close to the diseased as it can
    and breaks first when another console moves the scores. So the one is taken whose mean
    of sensitivity and specificity on the copies is highest.

    Parameters
    ----------
    labels : ndarray of int64, shape (cases,), 0 or 1
    probabilities : ndarray of float64, shape (cases,), 0 to 1
    copies : ndarray of float64, shape (cases, copies), 0 to 1
    wanted : float
        Sensitivity on ``probabilities``, 0 to 1.
    """
    diseased = np.sort(probabilities[labels == 1])
    highest = diseased[int(np.floor((1.0 - wanted) * len(diseased) + 1e-9))]
    candidates = np.unique(np.append(copies[copies < highest], highest))
    ill, well = np.sort(copies[labels == 1], axis=None), np.sort(copies[labels == 0], axis=None)
    sensitive = 1.0 - np.searchsorted(ill, candidates) / len(ill)
    specific = np.searchsorted(well, candidates) / len(well)
    return float(candidates[np.argmax(sensitive + specific)])


def reliability(labels: Labels, probabilities: Probabilities) -> list[dict[str, float]]:
    """Mean probability and share of diseased in ten bins of equal width; empty ones left out."""
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    return [
        {
            "cases": int(np.sum(places == place)),
            "probability": round(float(probabilities[places == place].mean()), 4),
            "diseased": round(float(labels[places == place].mean()), 4),
        }
        for place in np.unique(places)
    ]


def calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015)."""
    rows = reliability(labels, probabilities)
    apart = sum(row["cases"] * abs(row["probability"] - row["diseased"]) for row in rows)
    return apart / len(labels)


def calibration_figure(
    labels: Labels, probabilities: Probabilities, patients: npt.NDArray[np.str_], seed: int
) -> Figure:
    """The calibration error with its interval, by bootstrap over patients."""
    return resampled({"ece": calibration_error}, labels, probabilities, patients, seed)["ece"]


def reliability_plot(
    originals: list[dict[str, float]], copies: list[dict[str, float]], side: int = 360
) -> str:
    """An SVG of the share of diseased over the mean probability, for originals and copies."""
    edge = 44

    def place(row: dict[str, float]) -> tuple[float, float]:
        return edge + side * row["probability"], edge + side * (1 - row["diseased"])

    def marks(rows: list[dict[str, float]], colour: str) -> str:
        points = [place(row) for row in rows]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points)
        return (
            f'<g fill="{colour}" stroke="{colour}"><polyline points="{line}" fill="none" '
            f'stroke-width="1.5"/>{dots}</g>'
        )

    end, middle, whole = edge + side, edge + side / 2, side + 2 * edge
    ticks = "".join(
        f'<text x="{edge + side * share:.0f}" y="{end + 16}" text-anchor="middle">{share}</text>'
        f'<text x="{edge - 6}" y="{end - side * share + 4:.0f}" text-anchor="end">{share}</text>'
        for share in (0, 0.5, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {whole}" width="{whole}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{whole}" height="{whole}" fill="#fff"/>'
        f'<rect x="{edge}" y="{edge}" width="{side}" height="{side}" fill="none" stroke="#999"/>'
        f'<line x1="{edge}" y1="{end}" x2="{end}" y2="{edge}" stroke="#999" '
        f'stroke-dasharray="4"/>{ticks}'
        f'<text x="{middle}" y="{end + 34}" text-anchor="middle">probability</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        "share with pneumonia</text>"
        f"{marks(originals, '#1b6ca8')}{marks(copies, '#d1495b')}"
        f'<text x="{edge + 10}" y="{edge + 20}" fill="#1b6ca8">out of fold</text>'
        f'<text x="{edge + 10}" y="{edge + 36}" fill="#d1495b">changed copies</text></svg>\n'
    )
