"""What a model version makes of a stored data set: a score, or the reason why it has none.

The live worker, a challenger in shadow and the back file all ask here, so that none of them
says of a radiograph what another would not.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pydicom import Dataset

from triage.admission import Population, admit
from triage.errors import PixelsError
from triage.pixels import normalize
from triage.quality import Quality, picture_hash
from triage.scoring import Score, Scorer


@dataclass(frozen=True, slots=True)
class Assessment:
    """A score, or the reason why there is none.

    Attributes
    ----------
    score : Score or None
    reason : str or None
        A code of ``docs/reasons.md``; None with a score.
    explanation : str
        The reason for a person, without patient data; empty with a score.
    notes : tuple of str
        Codes of what a reader should know.
    picture_hash : str or None
        Of :func:`triage.quality.picture_hash`; None if the picture was not looked at.
    novelty : float or None
        0 or more; None if it was not measured.
    milliseconds : float
        Of the network alone; 0 without a score.
    """

    score: Score | None = None
    reason: str | None = None
    explanation: str = ""
    notes: tuple[str, ...] = ()
    picture_hash: str | None = None
    novelty: float | None = None
    milliseconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Assessor:
    """A model version with all that it scores with.

    Attributes
    ----------
    scorer : Scorer
    population : Population
    quality : Quality or None
        Knows pictures that are not like the training data, and what is wrong with the
        others; None if the version was made without.
    warn_outside : bool
        Score patients outside the population with a note.
    """

    scorer: Scorer
    population: Population
    quality: Quality | None = None
    warn_outside: bool = False

    def assess(
        self,
        read: Callable[[], Dataset],
        step: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> Assessment:
        """Score a data set, or say why not.

        Parameters
        ----------
        read : callable
            Gives the data set; a `PixelsError` of it is a reason like any other.
        step : callable, optional
            Given the name of a step, what is to be around it; a part's telemetry.

        Raises
        ------
        Exception
            Whatever else reading and scoring raise: that is not about the radiograph.
        """
        try:
            with step("load"):
                dataset = read()
            admission = admit(dataset, self.population, warn_outside=self.warn_outside)
            if admission.reason is not None:
                return Assessment(reason=admission.reason, explanation=admission.explanation)
            with step("normalize"):
                normalized = normalize(dataset)
        except PixelsError as error:
            return Assessment(reason=error.reason, explanation=str(error))
        array, notes = normalized.array, (*admission.notes, *normalized.notes)
        novelty: float | None = None
        with step("quality"):
            exposure = picture_hash(array)
            if self.quality is None:
                notes = (*notes, "NOVELTY_UNCHECKED")
            else:
                findings, novelty = self.quality.examine(array)
                notes = (*notes, *findings)
        if novelty is not None and novelty > 1.0:
            explanation = f"the picture's novelty is {novelty:.2f}, of training data at most 1"
            return Assessment(None, "NOT_LIKE_TRAINING", explanation, notes, exposure, novelty)
        began = time.perf_counter()
        with step("infer"):
            score = self.scorer.score(array)
        milliseconds = (time.perf_counter() - began) * 1000
        return Assessment(score, None, "", notes, exposure, novelty, milliseconds)
