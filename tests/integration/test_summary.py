"""What a site tells its fleet."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.exams import FLAGGED, UNFLAGGED, enter
from triage import app
from triage.config import Config
from triage.errors import ConfigError, FleetError
from triage.summary import LEAST
from triage.worklist.readings import Said


@pytest.fixture
def told(tmp_path: Path) -> Config:
    """A site with 30 exams of which some were read."""
    config = Config.model_validate({"home": tmp_path / "home", "organization": "North"})
    app.prepare(config)
    worklist = app.worklist(config)
    for number in range(30):
        score = FLAGGED if number < 12 else UNFLAGGED
        enter(
            worklist,
            f"1.2.{number}",
            score,
            patient_id=f"SECRET-{number}",
            patient_name="Secret^Name",
            accession_number=f"SECRET-A-{number}",
        )
        if number < 15:
            worklist.readings.add(f"1.2.{number}", Said("confirmed", "dr-secret"))
    worklist.close()
    return config


def test_nothing_of_a_patient_is_in_the_report(told: Config) -> None:
    """Counts, and none that is small."""
    report = app.summarize(told)
    text = json.dumps(report)
    for secret in ("SECRET", "Secret", "dr-secret", "1.2.", "CR1", "127.0.0.1"):
        assert secret not in text
    assert report["site"] == "North"
    assert report["exams"] == {
        "received": 30,
        "scored": 30,
        "flagged": 12,
        "not_scored": None,
        "failed": None,
    }
    readings = report["readings"]
    assert isinstance(readings, dict)
    assert readings["flagged_confirmed"] == 12
    assert readings["unflagged_confirmed"] is None
    assert LEAST == 10


def test_it_is_sent_only_where_the_site_agrees(told: Config) -> None:
    """To one address, as JSON; what does not take it is told."""
    with pytest.raises(ConfigError, match="TRIAGE_FLEET_REPORT_URL"):
        app.report(told)
    got: list[bytes] = []
    status = [204]

    class Fleet(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status[0])
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Fleet) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/report"
        agreed = told.model_copy(update={"fleet_report_url": url})
        app.report(agreed)
        assert json.loads(got[0]) == app.summarize(told)
        for refusal in (500, 302):
            status[0] = refusal
            with pytest.raises(FleetError, match=str(refusal)):
                app.report(agreed)
        server.shutdown()
    assert len(got) == 3
    with pytest.raises(FleetError, match="no answer"):
        app.report(agreed)
