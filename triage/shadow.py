"""A challenger in shadow: it scores what the champion has scored, and nobody is shown it.

It runs in a process of its own, after the champion's score is in the worklist: whatever it
does, no live score waits for it. It gives way to every other process, may take so much memory
and no more, and is the first that the system ends when memory is short.
"""

import datetime as dt
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from triage.assessment import Assessor
from triage.errors import SpoolError, SpoolOutage
from triage.scoring import Score
from triage.spool import Spool
from triage.worklist.shadows import Shadows, Task

SETTLE_SECONDS = 50
"""So long one picture may take; then the process ends, and starts again after it."""

MOST_MEMORY = 3_000_000_000
"""Bytes of data."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Who scores in shadow, and beside whom.

    Attributes
    ----------
    challenger : Assessor
    champion : str
    since : datetime
        When the shadow began.
    """

    challenger: Assessor
    champion: str
    since: dt.datetime


class Shadow:
    """Asks the challenger in shadow about each picture that the champion has scored.

    Parameters
    ----------
    shadows : Shadows
    spool : Spool
    current : callable
        Gives the pair, or None where nobody is in shadow.
    """

    def __init__(self, shadows: Shadows, spool: Spool, current: Callable[[], Pair | None]) -> None:
        self._shadows, self._spool, self._current = shadows, spool, current
        self._log = structlog.get_logger("shadow")

    def step(self) -> bool:
        """Ask about some pictures; False if none waits.

        Raises
        ------
        WorklistError, ModelError, SpoolOutage
            Nobody can be asked now, through no fault of a picture.
        """
        pair = self._current()
        if pair is None:
            return False
        version = pair.challenger.scorer.model_version
        tasks = self._shadows.waiting(version, pair.champion, pair.since)
        for task in tasks:
            if self._shadows.begin(task, version):
                # The system's timer: native code that hangs asks Python nothing.
                signal.setitimer(signal.ITIMER_REAL, SETTLE_SECONDS)
                try:
                    said, milliseconds = self._asked(task, pair.challenger)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                self._shadows.settle(task, version, said, milliseconds)
        return bool(tasks)

    def _asked(self, task: Task, challenger: Assessor) -> tuple[Score | str, float]:
        try:
            found = challenger.assess(lambda: self._spool.instance(task.digest))
        except SpoolOutage:
            raise
        except SpoolError as error:
            return str(error), 0.0
        # A boundary: what one picture does to a challenger must not end its shadow.
        except Exception as error:  # noqa: BLE001
            self._log.error(
                "failed", action="shadow_failed", score=task.score_id, error=type(error).__name__
            )
            return f"{type(error).__name__} while scoring", 0.0
        return found.score or found.explanation, found.milliseconds


def stand_back() -> None:
    """Let this process be the last to compute and the first to be ended."""
    with suppress(OSError):
        os.nice(15)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
