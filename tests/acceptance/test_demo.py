"""``make demo`` without the installing: the program behind it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT, SAMPLES, Service, wait_for

DEMO = [sys.executable, str(ROOT / "deploy" / "demo.py")]


def test_the_demo_scores_the_samples_and_adds_nothing_twice(
    new_service: Callable[..., Service],
) -> None:
    """Two runs on one home: exit status 0, a table of scored rows, one row a sample."""
    installation = new_service()
    for again in (False, True):
        done = subprocess.run(
            [*DEMO, "--once"], env=installation.environment, cwd=installation.home.parent,
            capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "SCORED" in done.stdout
        assert str(installation.home) in done.stdout
        assert f"{installation.page}/" in done.stdout
        assert ("one-time password" in done.stdout) is not again
        rows = json.loads(installation.triage("worklist", "--json").stdout)
        assert len(rows) == len(list(SAMPLES.glob("*.dcm")))
        assert Counter(row["reason"] or row["state"] for row in rows) == {
            "SCORED": 9,
            "VIEW_NOT_FRONTAL": 1,
            "NOT_CHEST": 1,
            "AGE_OUTSIDE_POPULATION": 1,
        }
        # One picture was sent in both polarities.
        assert Counter(note for row in rows for note in row["notes"]) == {
            "VOI_ABSENT": 2,
            "DUPLICATE_EXPOSURE": 1,
        }
        assert rows[0]["urgency"] == "STAT"


def test_the_demo_serves_until_ctrl_c(new_service: Callable[..., Service], tmp_path: Path) -> None:
    """SIGINT to the group, as a terminal sends it, ends it and all its parts with status 0."""
    installation = new_service()
    output = tmp_path / "output"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            DEMO, env=installation.environment, cwd=installation.home.parent,
            stdout=file, start_new_session=True,
        )  # fmt: skip
    wait_for(lambda: "Serving until Ctrl-C" in output.read_text(), seconds=120)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(30) == 0
    assert not installation.answers()


def test_a_taken_port_ends_the_demo_in_one_line(
    service: Service, new_service: Callable[..., Service]
) -> None:
    """The line names the port and the settings that move it."""
    second = new_service(TRIAGE_DICOM_PORT=str(service.port))
    done = subprocess.run(
        [*DEMO, "--once"], env=second.environment, cwd=second.home.parent,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(service.port) in done.stderr
    assert service.answers()
