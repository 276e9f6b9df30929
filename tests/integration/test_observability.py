"""Metrics, health and traces of a running service, as Prometheus and a collector meet them."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread

from tests.conftest import SAMPLES, Service, free_port, wait_for
from tests.peers import PacsPeer
from tests.web import Visitor, account, served, site_of
from triage.app import METRICS_PORTS
from triage.errors import SpoolError
from triage.health import Health, Port
from triage.telemetry import Telemetry
from triage.traces import Traces, trace_id
from triage.worklist import State, Worklist
from triage.worklist.accounts import Role
from triage.worklist.schema import migrate, open_engine

OPACITY = SAMPLES / "03-dx-ap-opacity.dcm"


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.bodies.append(body)
                content = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[str, Span]]:
        """The part that made it, and the span."""
        found = []
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {each.key: each.value.string_value for each in group.resource.attributes}
                part = named["service.instance.id"].rpartition("/")[2]
                found += [(part, span) for each in group.scope_spans for span in each.spans]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def scrape(port: int) -> dict[str, float]:
    """What Prometheus reads, by name and labels."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def page(port: int, path: str) -> tuple[int, str]:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=30)
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


def test_one_radiograph_is_one_trace_and_is_counted_by_each_part(
    new_service: Callable[..., Service], collector: Collector, tmp_path: Path
) -> None:
    """From the console's C-STORE to the reading, over five processes; no patient in any of it."""
    base = free_port()
    with PacsPeer() as pacs:
        service = new_service(
            TRIAGE_METRICS_PORT=str(base),
            TRIAGE_TRACES_URL=collector.url,
            TRIAGE_DESTINATIONS=json.dumps([pacs.setting("pacs")]),
        )
        service.start()
        ports = {role: base + number for role, number in METRICS_PORTS.items()}
        wait_for(lambda: page(ports["receive"], "/readyz") == (200, "ok\n"))
        wait_for(lambda: page(ports["score"], "/readyz") == (200, "ok\n"), 60)
        assert page(ports["deliver"], "/healthz") == (200, "ok\n")
        assert service.triage("send", str(OPACITY)).returncode == 0
        dataset = dcmread(OPACITY)
        uid = str(dataset.SOPInstanceUID)
        worklist = service.worklist()
        wait_for(lambda: worklist.item(uid).state == State.SCORED, 60)
        wait_for(lambda: len(pacs.taken) == 2, 60)
        assert service.triage("send", str(OPACITY)).returncode == 0  # a duplicate
        read = service.triage("read", uid, "--verdict", "confirmed", "--reader", "anna")
        assert read.returncode == 0, read.stderr

        receive, score = scrape(ports["receive"]), scrape(ports["score"])
        assert receive['triage_stores_total{"status": "0x0000"}'] == 2
        assert receive["triage_received_bytes_total{}"] > 100_000
        assert receive['triage_disk_free_bytes{"place": "home"}'] > 0
        assert receive["triage_ready{}"] == 1
        assert score['triage_settled_total{"outcome": "flagged", "reason": ""}'] == 1
        for step in ("score", "load", "normalize", "quality", "infer", "record"):
            assert score[f'triage_step_seconds_count{{"step": "{step}"}}'] == 1, step
        version = worklist.item(uid).model_version
        assert score[f'triage_model_loaded{{"version": "{version}"}}'] == 1
        delivered = 'triage_deliveries_total{"destination": "pacs", "outcome": "delivered"}'
        wait_for(lambda: scrape(ports["deliver"]).get(delivered, 0) >= 2)
        worklist.close()
        service.stop()

    spans = [(part, span) for part, span in collector.spans()]
    assert {span.trace_id.hex() for _, span in spans} == {trace_id(uid)}
    told = {(part, span.name) for part, span in spans}
    assert told >= {
        ("receive", "receive"), ("score", "score"), ("score", "infer"), ("deliver", "deliver"),
        ("deliver", "send"), ("command", "read"),
    }  # fmt: skip
    (root,) = [span for _, span in spans if not span.parent_span_id]
    assert root.name == "receive"
    known = {span.span_id for _, span in spans}
    assert all(span.parent_span_id in known for _, span in spans if span is not root)
    assert len(known) == len(spans)
    sent = b"".join(collector.bodies)
    for secret in (uid, str(dataset.PatientID), str(dataset.PatientName), "anna"):
        assert secret.encode() not in sent, secret
    assert str(dataset.PatientID).encode() in OPACITY.read_bytes()


def test_without_settings_there_is_no_port_and_nothing_is_sent(tmp_path: Path) -> None:
    """Not a thread and not a module of it; OpenTelemetry's own variables change nothing."""
    code = (
        "import sys, threading; from pathlib import Path; from triage.app import observed; "
        "from triage.config import Config\n"
        "with observed(Config.read({}, Path('.')), 'score') as (telemetry, health):\n"
        "    with telemetry.step('score', '1.2.3'): pass\n"
        "    print(threading.active_count())\n"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry')))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIAGE_")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.stdout.split() == ["1", "[]"]


def test_a_taken_port_is_told_and_stops_nothing(
    new_service: Callable[..., Service], collector: Collector
) -> None:
    """Radiographs do not wait for who watches them: neither for a port nor for a collector."""
    base = free_port()
    blocker = Port(("127.0.0.1", base + METRICS_PORTS["receive"]), Health({}), CollectorRegistry())
    collector.close()
    service = new_service(TRIAGE_METRICS_PORT=str(base), TRIAGE_TRACES_URL=collector.url)
    service.start("--roles", "receive,score")
    assert service.triage("send", str(OPACITY)).returncode == 0
    worklist = service.worklist()
    uid = str(dcmread(OPACITY, stop_before_pixels=True).SOPInstanceUID)
    wait_for(lambda: worklist.item(uid).state == State.SCORED, 60)
    worklist.close()
    service.stop()
    blocker.close()
    told = {event["action"] for event in service.events()}
    assert {"metrics_unavailable", "traces_unavailable"} <= told


def test_not_ready_says_what_is_missing_and_no_more() -> None:
    """The reason is for the log; who asks learns a word. It is looked at again soon."""
    there = [False]

    def spool() -> None:
        if not there[0]:
            raise SpoolError("the spool /srv/secret is not there")

    health = Health({"spool": spool, "database": lambda: None})
    telemetry = Telemetry("score")
    port = Port(("127.0.0.1", 0), health, telemetry.registry)
    try:
        assert page(port.port, "/readyz") == (503, "no spool\n")
        assert scrape(port.port)["triage_ready{}"] == 0
        assert page(port.port, "/healthz") == (200, "ok\n")
        there[0] = True
        wait_for(lambda: page(port.port, "/readyz") == (200, "ok\n"))
        health.beat()
        assert page(port.port, "/healthz")[0] == 200
        health._beat = time.monotonic() - 1_000
        assert page(port.port, "/healthz") == (503, "its loop does not move\n")
        assert page(port.port, "/")[0] == 404
        refused = httpx.post(f"http://127.0.0.1:{port.port}/metrics", trust_env=False)
        assert refused.status_code == 405
    finally:
        port.close()


def test_the_page_answers_probes_without_a_session(tmp_path: Path) -> None:
    """And shows nothing of the site with it."""
    url = f"sqlite:///{tmp_path / 'worklist.sqlite'}"
    engine = open_engine(url, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(url)
    account(worklist, "anna", Role.READER)
    with served(site_of(worklist, tmp_path)) as address, Visitor(address) as visitor:
        assert (visitor.get("/healthz").status_code, visitor.get("/healthz").text) == (200, "ok\n")
        assert visitor.get("/readyz").text == "ok\n"
        assert visitor.get("/metrics").status_code == 303  # to the sign-in
    worklist.close()


def test_an_error_leaves_its_type_in_the_trace_and_not_its_message(collector: Collector) -> None:
    """A message could quote what a console sent. The time counts all the same."""
    traces = Traces(collector.url, "score", 1.0)
    telemetry = Telemetry("score", traces)
    with pytest.raises(ValueError, match="Meier"), telemetry.step("score", "1.2.3"):
        raise ValueError("Meier^Anna")
    with telemetry.step("load"):  # of nothing that runs: in no trace
        pass
    telemetry.close()
    ((_, span),) = collector.spans()
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "ValueError")
    assert b"Meier" not in b"".join(collector.bodies)
    assert span.trace_id.hex() == hashlib.sha256(b"1.2.3").hexdigest()[:32]
    count = telemetry.registry.get_sample_value("triage_step_seconds_count", {"step": "score"})
    assert count == 1


def test_all_parts_choose_the_same_share_of_radiographs(collector: Collector) -> None:
    """A trace is whole or is not there."""
    chosen = []
    for part in ("receive", "score"):
        traces = Traces(collector.url, part, 0.3)
        telemetry = Telemetry(part, traces)
        for number in range(200):
            if part == "receive":
                telemetry.received(f"2.25.{number}", time.time_ns(), 1)
            else:
                with telemetry.step("score", f"2.25.{number}"):
                    pass
        telemetry.close()
        chosen.append({span.trace_id for own, span in collector.spans() if own == part})
    assert chosen[0] == chosen[1]
    assert 30 <= len(chosen[0]) <= 90


def test_the_queues_are_told_from_the_database(worklist: Worklist) -> None:
    """By name; and that the database is gone, once it is."""
    from triage.gauges import Queues

    registry = CollectorRegistry()
    registry.register(Queues(worklist.gauges))
    assert registry.get_sample_value("triage_database_up") == 1
    assert registry.get_sample_value("triage_oldest_unscored_seconds") == 0
    from tests.exams import arrival

    worklist.receive(arrival("2.25.1"))
    assert registry.get_sample_value("triage_unscored_items") == 1
    age = registry.get_sample_value("triage_oldest_unscored_seconds")
    assert age is not None
    assert 0 <= age < 60
    quiet = registry.get_sample_value("triage_quiet_seconds")
    assert quiet is not None
    assert 0 <= quiet < 60
    pattern = re.compile(r"^triage_[a-z_]+$")
    assert all(pattern.match(family.name) for family in registry.collect())


def test_a_gone_database_is_told_and_breaks_no_scrape(tmp_path: Path) -> None:
    """Every other gauge is absent then: an old value would be a lie."""
    from triage.gauges import Queues

    file = tmp_path / "worklist.sqlite"
    engine = open_engine(f"sqlite:///{file}", create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(f"sqlite:///{file}")
    worklist.close()
    file.write_bytes(b"no database" * 1000)
    registry = CollectorRegistry()
    registry.register(Queues(worklist.gauges))
    told = {family.name: family.samples[0].value for family in registry.collect()}
    assert told == {"triage_database_up": 0}
    worklist.close()
