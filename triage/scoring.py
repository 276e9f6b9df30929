"""What a score is, who gives one, and how urgent it makes an exam."""

import datetime as dt
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from triage.pixels import Array


class Priority(IntEnum):
    """How urgent an exam is, before waiting raises it. Values are stored."""

    ROUTINE = 0
    """Not flagged and not ordered urgent."""

    HIGH = 1
    """Flagged, or ordered HIGH."""

    STAT = 2
    """Ordered STAT (PS3.3 C.4.11, Requested Procedure Priority)."""

    @property
    def head_start(self) -> dt.timedelta:
        """How long a ROUTINE exam must have waited longer to stand before this one."""
        return _HEAD_STARTS[self]


_HEAD_STARTS = {
    Priority.ROUTINE: dt.timedelta(0),
    Priority.HIGH: dt.timedelta(hours=8),
    Priority.STAT: dt.timedelta(hours=24),
}


def priority(ordered: str, *, flagged: bool) -> Priority:
    """The higher of what was ordered and what the score says.

    Parameters
    ----------
    ordered : str
        Requested Procedure Priority (0040,1003): STAT, HIGH, ROUTINE, MEDIUM, LOW or empty.
    flagged : bool
    """
    by_order = {"STAT": Priority.STAT, "HIGH": Priority.HIGH}.get(ordered, Priority.ROUTINE)
    return max(by_order, Priority.HIGH if flagged else Priority.ROUTINE)


Verdict = Literal["confirmed", "rejected"]
"""Whether a reader sees the finding that a score is about."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one model version says of one instance.

    Attributes
    ----------
    probability : float
        0 to 1.
    threshold : float
        0 to 1; the version's when it scored.
    model_version : str
    """

    probability: float
    threshold: float
    model_version: str

    def __post_init__(self) -> None:
        """Refuse what is no probability, such as the NaN of a broken network."""
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"{self.probability} is not a probability")

    @property
    def flagged(self) -> bool:
        """Whether the exam is to be read before the unflagged ones."""
        return self.probability >= self.threshold


Evidence = npt.NDArray[np.float32]
"""float32, shape (rows, columns): log-odds by place, whose mean is the score's."""


class Scorer(Protocol):
    """Something that scores normalized arrays."""

    @property
    def model_version(self) -> str:
        """The name of the model version behind it."""
        ...

    def score(self, array: Array) -> Score:
        """Score one array made under the version's pixel fingerprint."""
        ...

    def explained(self, array: Array) -> tuple[Score, Evidence | None]:
        """Score one array; with the evidence by place, if the version's network gives it."""
        ...
