"""The loop that gives each received item a score, or the reason why it has none."""

import signal
import threading
from collections.abc import Callable
from contextlib import closing

import structlog

from triage.assessment import Assessor
from triage.errors import ModelError, SpoolError, SpoolOutage, WorklistError
from triage.spool import Spool
from triage.telemetry import Telemetry
from triage.worklist import Claim, Worklist
from triage.worklist.bells import Bell

POLL_SECONDS = 0.05
"""How often an idle worker looks that nobody wakes: one indexed query of 0.1 ms."""

OUTAGE_SECONDS = 2.0

SETTLE_SECONDS = 50
"""So long one item may take, less than its lease: a decoder that hangs is a worker that died."""


class Worker:
    """One scoring process.

    Parameters
    ----------
    name : str
        Unique among live workers; a successor of the same name inherits its claims.
    worklist : Worklist
    spool : Spool
    current : callable
        Gives the current champion; asked before each item, so that a new champion scores
        the next radiograph.
    telemetry : Telemetry, optional
    beat : callable, optional
        Called whenever the loop comes round.
    """

    def __init__(
        self,
        name: str,
        worklist: Worklist,
        spool: Spool,
        current: Callable[[], Assessor],
        telemetry: Telemetry | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._telemetry, self._beat = telemetry or Telemetry(), beat
        self._name, self._worklist, self._spool = name, worklist, spool
        self._current = current
        self._log = structlog.get_logger("worker").bind(worker=name)

    def run(self, stop: threading.Event) -> None:
        """Score until told to stop.

        Raises
        ------
        ModelError
            There is no usable champion.
        """
        version = self._current().scorer.model_version
        self._telemetry.loaded(version)
        self._log.info("ready", action="worker_ready", model_version=version)
        with closing(self._worklist.bell(POLL_SECONDS)) as bell:
            self._work(bell, stop)

    def _work(self, bell: Bell, stop: threading.Event) -> None:
        inherited = False
        while not stop.is_set():
            self._beat()
            try:
                if not inherited:
                    returned = self._worklist.abandon(self._name)
                    inherited = True
                    if returned:
                        self._log.warning("returned", action="claims_returned", count=returned)
                if not self.step():
                    bell.wait(stop)
            except (WorklistError, ModelError, SpoolOutage) as error:
                of = self._telemetry.outage(error)
                self._log.error("outage", action=f"{of}_unavailable", error=str(error))
                inherited = False  # the claim that it broke off is our own
                stop.wait(OUTAGE_SECONDS)

    def step(self) -> bool:
        """Claim and settle one item; False if none waits.

        An item that takes longer than ``SETTLE_SECONDS`` ends the process by SIGALRM.

        Raises
        ------
        WorklistError, ModelError, SpoolOutage
            Nothing can be settled now, through no fault of the item.
        """
        champion = self._current()
        self._telemetry.loaded(champion.scorer.model_version)
        claim = self._worklist.claim(self._name)
        if claim is None:
            return False
        # The system's timer, whose signal ends the process: native code asks Python nothing.
        signal.setitimer(signal.ITIMER_REAL, SETTLE_SECONDS)
        try:
            with self._telemetry.step("score", claim.sop_instance_uid, attempt=claim.attempt):
                self._settle(claim, champion)
        except WorklistError:
            raise
        except SpoolOutage:
            self._worklist.give_back(claim)
            raise
        except SpoolError as error:
            self._fail(claim, "SPOOL_UNREADABLE", str(error))
        # A boundary: one radiograph that breaks scoring must not end the service.
        except Exception as error:  # noqa: BLE001
            self._fail(claim, "SCORING_ERROR", f"{type(error).__name__} while scoring")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return True

    def _settle(self, claim: Claim, champion: Assessor) -> None:
        step = self._telemetry.step
        found = champion.assess(lambda: self._spool.instance(claim.digest), step)
        seen = (found.notes, found.picture_hash, found.novelty)
        if found.score is not None:
            with step("record"):
                recorded = self._worklist.scored(claim, found.score, *seen)
            self._count("flagged" if found.score.flagged else "unflagged", recorded=recorded)
            if recorded:
                self._log.info(
                    "scored",
                    action="scored",
                    sop_instance_uid=claim.sop_instance_uid,
                    probability=round(found.score.probability, 4),
                    flagged=found.score.flagged,
                    model_version=found.score.model_version,
                    novelty=None if found.novelty is None else round(found.novelty, 3),
                )
            return
        reason = str(found.reason)
        with step("record"):
            recorded = self._worklist.not_scored(claim, reason, found.explanation, *seen)
        self._count("not_scored", reason, recorded=recorded)
        if recorded:
            self._log.info(
                "not scored",
                action="not_scored",
                sop_instance_uid=claim.sop_instance_uid,
                reason=reason,
            )

    def _count(self, outcome: str, reason: str = "", *, recorded: bool) -> None:
        self._telemetry.settled.labels(outcome if recorded else "lost", reason).inc()

    def _fail(self, claim: Claim, reason: str, explanation: str) -> None:
        self._log.error(
            "failed",
            action="scoring_failed",
            sop_instance_uid=claim.sop_instance_uid,
            reason=reason,
            attempt=claim.attempt,
            explanation=explanation,
        )
        recorded = self._worklist.failed(claim, reason, explanation)
        self._count("broken", reason, recorded=recorded)
