"""Whether what comes now is still like what came before, asked after every exam.

Each new value gets a conformal p-value: its rank among all values so far. While nothing
changes these are uniform and independent, whatever the values' distribution is. A bettor stakes
against that; the capital of the "simple jumper" is a martingale (Vovk, Petej, Nouretdinov,
Ahlberg, Carlsson and Gammerman, "Retrain or not retrain: conformal test martingales for
change-point detection", COPA 2021). Summed as Shiryaev and Roberts do, it raises an alarm on
average no more often than once in :data:`PATIENCE` values while nothing has changed, by
optional stopping and without any assumption on the values. Looking after each exam costs
nothing of that: there is no window, and no number of looks to correct for.
"""

import math
import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass

PATIENCE = 100_000
"""Values between two false alarms, on average, at least."""

REFERENCE = 200
"""So many values are only learnt from: before, nothing that happens is a change."""

_JUMP = 0.01
"""How much of the capital moves to another way of betting at each value; the paper's."""

_WAYS = (-1.0, 0.0, 1.0)
"""Bets that p-values are small, that nothing has changed, that they are large."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that has become certain.

    Attributes
    ----------
    began : int
        The value, from 0, with which it is thought to have begun.
    at : int
        The value with which it became certain.
    """

    began: int
    at: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of watching a series.

    Attributes
    ----------
    count : int
        Values looked at.
    levels : tuple of float
        Of the statistic after each value, as a share of the alarm's: 0 and more; 1 is the
        alarm. On a scale of logarithms, 0 is one.
    change : Change or None
        The first one.
    """

    count: int
    levels: tuple[float, ...]
    change: Change | None


def watch(values: Iterable[float], patience: int = PATIENCE, seed: int = 0) -> Watched:
    """Look at a series of values, one after the other, until a change is certain.

    Parameters
    ----------
    values : iterable of float
        Of exams in the order in which they came. Ties are broken at random, so that values
        which are only 0 or 1 will do.
    patience : int
        Values between two false alarms, on average, at least.
    seed : int
        Of the ties.
    """
    random_ = random.Random(seed)  # noqa: S311, no secret
    known: list[float] = []
    ways = [1 / len(_WAYS)] * len(_WAYS)
    # The Shiryaev-Roberts statistic: the sum of S_n / S_i over all i, and S_n on its own to
    # find the i with the largest share, which is where the change is thought to have begun.
    total, logarithm, lowest, began = 0.0, 0.0, 0.0, REFERENCE
    levels = []
    for number, value in enumerate(values):
        low, high = bisect_left(known, value), bisect_right(known, value)
        ties = high - low + 1
        p = (len(known) - high + random_.random() * ties) / (len(known) + 1)
        insort(known, value)
        if number < REFERENCE:
            levels.append(0.0)
            continue
        whole = sum(ways)
        ways = [
            ((1 - _JUMP) * way + _JUMP * whole / len(_WAYS)) * (1 + bet * (p - 0.5))
            for way, bet in zip(ways, _WAYS, strict=True)
        ]
        growth = sum(ways) / whole
        total = (total + 1) * growth
        logarithm += math.log(growth)
        if logarithm < lowest:
            lowest, began = logarithm, number + 1
        ways = [way / (whole * growth) for way in ways]
        levels.append(max(0.0, math.log(total) / math.log(patience)) if total > 0 else 0.0)
        if total >= patience:
            return Watched(number + 1, tuple(levels), Change(began, number))
    return Watched(len(levels), tuple(levels), None)
