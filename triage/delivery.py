"""The loops that take results to their destinations, one thread for each.

A destination that is slow or gone holds up no other. What it has not taken is tried again
after a pause that the delivery's row remembers, so that a restart changes nothing, until it
is parked for an operator to look at.
"""

import datetime as dt
import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

import structlog

from triage.errors import DeliveryError, SpoolError, SpoolOutage, TriageError, WorklistError
from triage.explanation import HeatMap, explain
from triage.pixels import Array, normalize
from triage.registry import ModelVersion
from triage.results import Finding
from triage.scoring import Scorer
from triage.sinks import Material, Sink
from triage.spool import Spool
from triage.telemetry import Telemetry
from triage.worklist.bells import Bell
from triage.worklist.deliveries import Deliveries, DeliveryClaim, Subject

POLL_SECONDS = 0.5
"""How often an idle thread looks for work: one indexed query."""

OUTAGE_SECONDS = 2.0
STOP_SECONDS = 10.0

LONGEST_PAUSE = dt.timedelta(minutes=15)
LONGEST_REST = dt.timedelta(minutes=1)
"""Between attempts at any delivery to a destination that cannot be reached."""

REFUSALS = 5
"""A destination that says no to a result has been asked often enough then."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and after which pauses a delivery is tried.

    Attributes
    ----------
    attempts : int
        At most.
    first_pause : timedelta
        After the first failure; it doubles with each further one.
    """

    attempts: int
    first_pause: dt.timedelta

    def pause(self, failures: int, longest: dt.timedelta = LONGEST_PAUSE) -> dt.timedelta:
        """The pause after so many failures in a row, without jitter."""
        return min(self.first_pause * (1 << min(failures - 1, 30)), longest)

    def gives_up(self, attempt: int, *, refused: bool) -> bool:
        """Whether an attempt that failed was the last."""
        return attempt >= (min(REFUSALS, self.attempts) if refused else self.attempts)


class Materials:
    """Gathers what results are built from.

    Parameters
    ----------
    spool : Spool
    model : callable
        Gives a model version by its name.
    scorer : callable
        Compiles a model version; called once for each in a row of results.
    """

    def __init__(
        self,
        spool: Spool,
        model: Callable[[str], ModelVersion],
        scorer: Callable[[ModelVersion], Scorer],
    ) -> None:
        self._spool, self._model, self._compile = spool, model, scorer
        self._lock = threading.Lock()
        self._scorer: Scorer | None = None

    def of(self, claim: DeliveryClaim) -> Material:
        """The material of one result."""
        subject = claim.subject
        return Material(
            claim.kind,
            subject,
            source=lambda: self._spool.instance(subject.digest),
            finding=lambda: self._finding(subject),
            heat_map=lambda: self._heat_map(subject),
        )

    def _finding(self, subject: Subject) -> Finding:
        model = self._model(subject.score.model_version)
        return Finding(
            subject.score,
            subject.scored_at,
            device_uid=str(model.description["device_uid"]),
            architecture=str(model.description["architecture"]),
            population=model.population.description,
        )

    def _heat_map(self, subject: Subject) -> tuple[Array, HeatMap]:
        array = normalize(self._spool.instance(subject.digest)).array
        with self._lock:  # a compiled network scores one array at a time
            version = subject.score.model_version
            if self._scorer is None or self._scorer.model_version != version:
                self._scorer = self._compile(self._model(version))
            return array, explain(self._scorer, array)


class Deliverer:
    """One delivering process.

    Parameters
    ----------
    name : str
        Unique among live deliverers; a successor of the same name inherits its claims.
    deliveries : Deliveries
    sinks : mapping of str to Sink
        By the destination's name.
    materials : Materials
    spool : Spool
        Keeps what is sent.
    patience : Patience
    telemetry : Telemetry, optional
    """

    def __init__(
        self,
        name: str,
        deliveries: Deliveries,
        sinks: Mapping[str, Sink],
        materials: Materials,
        spool: Spool,
        patience: Patience,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._telemetry = telemetry or Telemetry()
        self._name, self._deliveries, self._sinks = name, deliveries, sinks
        self._materials, self._spool, self._patience = materials, spool, patience
        self._log = structlog.get_logger("deliver").bind(worker=name)

    def run(self, stop: threading.Event) -> None:
        """Deliver until told to stop."""
        # Daemons: a peer that keeps us waiting cannot keep the process. Whatever was being
        # sent then is sent again, and the destination knows it by its UID.
        threads = [
            threading.Thread(
                target=self._serve, args=[name, stop], name=f"deliver-{name}", daemon=True
            )
            for name in self._sinks
        ]
        self._inherit(stop)
        for thread in threads:
            thread.start()
        self._log.info("ready", action="deliverer_ready", destinations=sorted(self._sinks))
        stop.wait()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _inherit(self, stop: threading.Event) -> None:
        """Return what a dead process of this name had claimed."""
        while not stop.is_set():
            try:
                returned = self._deliveries.abandon(self._name)
            except WorklistError as error:
                self._outage(error, stop)
                continue
            if returned:
                self._log.warning("returned", action="claims_returned", count=returned)
            return

    def _outage(self, error: WorklistError, stop: threading.Event) -> None:
        self._log.error("outage", action="worklist_unavailable", error=str(error))
        self._telemetry.outages.labels("worklist").inc()
        stop.wait(OUTAGE_SECONDS)

    def _serve(self, destination: str, stop: threading.Event) -> None:
        sink = self._sinks[destination]
        with closing(self._deliveries.bell(POLL_SECONDS)) as bell:
            self._work(destination, sink, bell, stop)
        sink.rest()

    def _work(self, destination: str, sink: Sink, bell: Bell, stop: threading.Event) -> None:
        failures = 0
        while not stop.is_set():
            try:
                claim = self._deliveries.claim(self._name, destination, self._patience.attempts)
                if claim is None:
                    sink.rest()
                    bell.wait(stop)
                elif self._attempt(sink, claim):
                    failures = 0
                else:
                    # Other deliveries would fail like this one, and lose an attempt each.
                    failures += 1
                    rest = self._patience.pause(failures, LONGEST_REST)
                    stop.wait(_jittered(rest).total_seconds())
            except WorklistError as error:
                self._outage(error, stop)

    def _attempt(self, sink: Sink, claim: DeliveryClaim) -> bool:
        """Build, keep and send one result; False if its destination cannot be reached."""
        with self._telemetry.step(
            "deliver",
            claim.subject.sop_instance_uid,
            destination=claim.destination,
            kind=claim.kind.value,
            attempt=claim.attempt,
        ):
            return self._take(sink, claim)

    def _take(self, sink: Sink, claim: DeliveryClaim) -> bool:
        try:
            uid, digest = self._kept(sink, claim)
        except WorklistError:
            raise
        except SpoolOutage as error:
            self._failed(claim, DeliveryError(str(error)))
            return False
        except TriageError as error:
            self._failed(claim, DeliveryError(str(error), refused=True))
            return True
        # A boundary: one radiograph that no result can be built from must not end the rest.
        except Exception as error:  # noqa: BLE001
            told = f"{type(error).__name__} while building the result: report it"
            self._failed(claim, DeliveryError(told, refused=True))
            return True
        try:
            with (
                self._spool.file(digest, "results") as file,
                self._telemetry.step("send"),
            ):
                sink.send(uid, file)
        except DeliveryError as error:
            self._failed(claim, error)
            return error.refused
        except SpoolError as error:
            self._failed(claim, DeliveryError(str(error)))
            return False
        # A boundary: what a peer does to us is its delivery's failure, not the service's.
        except Exception as error:  # noqa: BLE001
            self._failed(claim, DeliveryError(f"{type(error).__name__} while sending: report it"))
            return False
        if self._deliveries.delivered(claim):
            self._tell("delivered", claim, result_uid=uid)
        return True

    def _kept(self, sink: Sink, claim: DeliveryClaim) -> tuple[str, str]:
        """The result's UID and digest, built only if no earlier attempt has."""
        if (
            claim.result_uid is not None
            and claim.result_digest is not None
            and self._spool.size(claim.result_digest, "results") is not None
        ):
            return claim.result_uid, claim.result_digest
        with self._telemetry.step("build"):
            result = sink.build(self._materials.of(claim))
        digest = hashlib.sha256(result.content).hexdigest()
        self._spool.put(digest, result.content, "results")
        self._deliveries.built(claim, result.uid, digest)
        return result.uid, digest

    def _failed(self, claim: DeliveryClaim, error: DeliveryError) -> None:
        parked = self._patience.gives_up(claim.attempt, refused=error.refused)
        pause = _jittered(self._patience.pause(claim.attempt))
        due = None if parked else dt.datetime.now(dt.UTC) + pause
        if self._deliveries.not_delivered(claim, str(error)[:500], due):
            self._tell(
                "parked" if parked else "not_delivered",
                claim,
                error=str(error)[:500],
                next_attempt_in=None if parked else round(pause.total_seconds(), 1),
            )

    def _tell(self, action: str, claim: DeliveryClaim, **facts: object) -> None:
        self._telemetry.deliveries.labels(claim.destination, action).inc()
        (self._log.info if action == "delivered" else self._log.warning)(
            action.replace("_", " "),
            action=action,
            delivery=claim.delivery_id,
            destination=claim.destination,
            kind=claim.kind.value,
            attempt=claim.attempt,
            sop_instance_uid=claim.subject.sop_instance_uid,
            **facts,
        )


def _jittered(pause: dt.timedelta) -> dt.timedelta:
    """Half to all of a pause, so that deliveries that failed together come back apart."""
    return pause * random.uniform(0.5, 1.0)  # noqa: S311
