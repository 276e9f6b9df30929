"""What a part tells of its work: counts and times for Prometheus, and the steps of a trace.

The names are a promise (``docs/metrics.md``). No label and no attribute holds patient data, a
UID or anything else of which there is one for each exam.
"""

import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from triage import __version__
from triage.errors import ModelError, SpoolOutage, TriageError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the histogram's bins: from a row in SQL to a PACS that does not answer."""


class Spans(Protocol):
    """Where the steps of a trace go; :class:`triage.traces.Traces` is one."""

    def span(
        self, name: str, sop_instance_uid: str | None, attributes: dict[str, str | int | float]
    ) -> AbstractContextManager[object]:
        """A step while it runs; of the trace of an instance, or inside the running step."""

    def root(
        self,
        name: str,
        sop_instance_uid: str,
        began: int,
        attributes: dict[str, str | int | float],
    ) -> None:
        """The first step of an instance's trace, which began so many ns after 1970."""

    def close(self) -> None:
        """Send what is left."""


class Telemetry:
    """The metrics of one process, and its traces if they go anywhere.

    Parameters
    ----------
    part : str
        A role of ``triage serve``.
    spans : Spans, optional
        None is no traces.

    Attributes
    ----------
    registry : CollectorRegistry
        What a scrape reads; without a scrape nothing looks at it.
    """

    def __init__(self, part: str = "", spans: Spans | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self._spans = spans
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = Info("triage_build", "What runs.", registry=registry)
        build.info({"version": __version__, "part": part, "python": platform.python_version()})
        self.stores = Counter(
            "triage_stores",
            "C-STORE requests, by the DIMSE status that was answered.",
            ["status"],
            registry=registry,
        )
        self.received_bytes = Counter(
            "triage_received_bytes", "Bytes of data sets that were kept.", registry=registry
        )
        self.rejected = Counter(
            "triage_associations_rejected",
            "Associations that were rejected, by result/source/reason.",
            ["reason"],
            registry=registry,
        )
        self.settled = Counter(
            "triage_settled",
            "Claimed exams, by what became of them: flagged, unflagged, not_scored (with its "
            "reason), broken (an attempt, tried again or FAILED) or lost (the claim).",
            ["outcome", "reason"],
            registry=registry,
        )
        self.deliveries = Counter(
            "triage_deliveries",
            "Attempts at a delivery: delivered, not_delivered or parked.",
            ["destination", "outcome"],
            registry=registry,
        )
        self.readings = Counter(
            "triage_readings", "Readings that were recorded, by verdict.", ["verdict"],
            registry=registry,
        )  # fmt: skip
        self.outages = Counter(
            "triage_outages",
            "Times that a part could not work because something that it needs was not there.",
            ["of"],
            registry=registry,
        )
        self.steps = Histogram(
            "triage_step_seconds",
            "How long a step took, whether it succeeded or not.",
            ["step"],
            buckets=SECONDS,
            registry=registry,
        )
        self._model = Gauge(
            "triage_model_loaded",
            "1 for the version that this process scores with.",
            ["version"],
            registry=registry,
        )
        self.model = ""
        """The version that this process scores with; empty until one is loaded."""

    def outage(self, error: TriageError) -> str:
        """Count that something is not there that a part needs; what: model, spool or worklist."""
        kinds = {"model": ModelError, "spool": SpoolOutage}
        of = next((name for name, kind in kinds.items() if isinstance(error, kind)), "worklist")
        self.outages.labels(of).inc()
        return of

    def loaded(self, version: str) -> None:
        """Note which version this process scores with from now on."""
        if version != self.model:
            self._model.clear()
            self._model.labels(version).set(1)
            self.model = version

    @contextmanager
    def step(
        self, name: str, sop_instance_uid: str | None = None, **attributes: str | float
    ) -> Iterator[None]:
        """Time a step.

        Parameters
        ----------
        name : str
            A short word; one of ``docs/metrics.md``.
        sop_instance_uid : str, optional
            The step is then one of that instance's trace; else a part of the running step.
        **attributes
            For the trace alone; no patient data.
        """
        around = (
            nullcontext()
            if self._spans is None
            else self._spans.span(name, sop_instance_uid, attributes)
        )
        began = time.perf_counter()
        try:
            with around:
                yield
        finally:
            self.steps.labels(name).observe(time.perf_counter() - began)

    def received(self, sop_instance_uid: str, began: int, size: int) -> None:
        """Note that a new instance was kept: its trace begins.

        Parameters
        ----------
        sop_instance_uid : str
        began : int
            Nanoseconds since 1970 when its data set was there.
        size : int
            Bytes.
        """
        self.received_bytes.inc(size)
        if self._spans is not None:
            self._spans.root("receive", sop_instance_uid, began, {"triage.bytes": size})

    def close(self) -> None:
        """Send what is left of the traces."""
        if self._spans is not None:
            self._spans.close()
