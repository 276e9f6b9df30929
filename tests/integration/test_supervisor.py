"""The supervisor: when it starts parts."""

import sys
import threading
from pathlib import Path

from tests.conftest import wait_for
from triage.supervisor import Supervisor


def test_a_part_that_nobody_waits_for_starts_after_the_others(tmp_path: Path) -> None:
    """And ends with them; one that was not started yet holds up nothing."""
    early, late = tmp_path / "early", tmp_path / "late"
    touch = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.stdin.read()"
    parts = {
        name: [sys.executable, "-c", touch, str(tmp_path / name)]
        for name in ("early", "late", "never")
    }
    supervisor = Supervisor(parts, {"late": 1.5, "never": 3_600})
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop,))
    thread.start()
    wait_for(early.exists)
    assert not late.exists()
    wait_for(late.exists)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert not (tmp_path / "never").exists()
