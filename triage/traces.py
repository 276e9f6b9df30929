"""Traces of one radiograph over all processes, sent as OTLP over HTTP.

Where a trace belongs follows from the SOP Instance UID alone: the first 16 bytes of its SHA-256
are the trace's id, the next 8 that of the first span. So a part joins the trace without being
told of it, after any time and any crash, and an operator who has the UID finds the trace; who
has the trace does not learn the UID, nor anything else of the patient.

OpenTelemetry's SDK is imported here alone, and only where traces are wanted.
"""

import hashlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from triage import __version__
from triage.errors import ConfigError

SEND_SECONDS = 5.0
"""An answer of the collector that takes longer is none."""

FLUSH_MILLISECONDS = 5_000


def trace_id(sop_instance_uid: str) -> str:
    """The trace of an instance, as 32 hexadecimal digits."""
    return hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]


def _ids(sop_instance_uid: str) -> tuple[int, int]:
    digest = hashlib.sha256(sop_instance_uid.encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


class Traces:
    """The spans of one process.

    Parameters
    ----------
    url : str
        Where a collector takes OTLP over HTTP, ``.../v1/traces``.
    part : str
    share : float
        Of the radiographs that are traced; 0 to 1. All parts choose the same ones.

    Raises
    ------
    ConfigError
        OpenTelemetry is not installed.
    """

    def __init__(self, url: str, part: str, share: float) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
        except ImportError as error:
            raise ConfigError(
                "TRIAGE_TRACES_URL is set, but OpenTelemetry is not installed: install "
                "cxr-triage[otel], or unset it"
            ) from error
        self._made = _made_ids()
        self._provider = TracerProvider(
            sampler=TraceIdRatioBased(share),
            # Not Resource.create: it adds what variables of the environment say.
            resource=Resource(
                {
                    "service.name": "cxr-triage",
                    "service.version": __version__,
                    "service.instance.id": f"{socket.gethostname()}/{part}",
                }
            ),
            id_generator=self._made,
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(_telling(exporter)))
        self._tracer = self._provider.get_tracer("triage", __version__)

    @contextmanager
    def span(
        self, name: str, sop_instance_uid: str | None, attributes: dict[str, str | int | float]
    ) -> Iterator[None]:
        """A step while it runs; one that fails says of what type its error is, no more."""
        from opentelemetry import trace
        from opentelemetry.trace import StatusCode

        context = None
        if sop_instance_uid is not None:
            context = _remote(*_ids(sop_instance_uid))
        elif not trace.get_current_span().get_span_context().is_valid:
            yield
            return
        with self._tracer.start_as_current_span(
            name,
            context,
            attributes=attributes,
            # A message could quote what a console sent.
            record_exception=False,
            set_status_on_exception=False,
        ) as running:
            try:
                yield
            except BaseException as error:
                running.set_status(StatusCode.ERROR, type(error).__name__)
                raise

    def root(
        self,
        name: str,
        sop_instance_uid: str,
        began: int,
        attributes: dict[str, str | int | float],
    ) -> None:
        """The span that all others of an instance hang from."""
        from opentelemetry.context import Context

        with self._made.given(*_ids(sop_instance_uid)):
            span = self._tracer.start_span(name, Context(), attributes=attributes, start_time=began)
        span.end()

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


def _remote(trace: int, span: int) -> Any:
    """The context of a span that another process has."""
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    flags = TraceFlags(TraceFlags.SAMPLED)
    return set_span_in_context(
        NonRecordingSpan(SpanContext(trace, span, is_remote=True, trace_flags=flags))
    )


def _made_ids() -> Any:
    """Random ids, but for the one span whose ids are given."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def __init__(self) -> None:
            self._given = threading.local()

        @contextmanager
        def given(self, trace: int, span: int) -> Iterator[None]:
            self._given.trace, self._given.span = trace, span
            try:
                yield
            finally:
                self._given.trace = self._given.span = None

        def generate_trace_id(self) -> int:
            return getattr(self._given, "trace", None) or super().generate_trace_id()

        def generate_span_id(self) -> int:
            return getattr(self._given, "span", None) or super().generate_span_id()

    return Ids()


def _telling(exporter: Any) -> Any:
    """An exporter that tells once when its collector is gone, and once when it is back."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    log = structlog.get_logger("traces")

    class Telling(SpanExporter):
        def __init__(self) -> None:
            self._gone = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            taken: SpanExportResult = exporter.export(spans)
            gone = taken is not SpanExportResult.SUCCESS
            if gone and not self._gone:
                log.warning(
                    "traces not taken",
                    action="traces_unavailable",
                    advice="see whether the collector at TRIAGE_TRACES_URL runs; radiographs do "
                    "not wait for it, and what it misses is lost",
                )
            elif self._gone and not gone:
                log.info("traces taken again", action="traces_available")
            self._gone = gone
            return taken

        def shutdown(self) -> None:
            exporter.shutdown()

    return Telling()
