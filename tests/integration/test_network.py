"""The exported network in the scoring process."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sample_dicom.draw import chest
from tests.degrade import drawn
from triage.markers import CORNER_MARKERS, MASKED, without_markers
from triage.network import Network
from triage.pixels import SIDE
from triage.registry import ModelVersion

BUNDLED = sorted((Path(__file__).parents[2] / "triage" / "bundled").glob("*/model.json"))


def test_a_bundled_model_gives_probabilities() -> None:
    """Any array in range gets a probability, the same one each time."""
    network = Network(ModelVersion.load(BUNDLED[-1].parent))
    array = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
    first = network.score(array)
    assert 0.0 <= first.probability <= 1.0
    assert network.score(array) == first
    assert first.model_version == network.model_version


def test_a_version_without_corner_markers_sees_none() -> None:
    """If model.json says so, the picture with a burned-in letter scores as that without it."""
    known = ModelVersion.load(BUNDLED[-1].parent)
    blind = replace(known, description={**known.description, CORNER_MARKERS: MASKED})
    array = drawn(chest(3, marker=False))
    lettered = array.copy()
    lettered[10:26, 12:15] = lettered[23:26, 12:22] = 1.0  # an L
    assert Network(known).score(lettered) != Network(known).score(without_markers(lettered))
    assert Network(blind).score(lettered) == Network(known).score(without_markers(lettered))


def test_scoring_does_not_call_home(tmp_path: Path) -> None:
    """OpenVINO's telemetry is not loaded, forks nothing and writes nothing to the home."""
    program = f"""
import subprocess, sys, os
from pathlib import Path
from triage.network import Network
from triage.registry import ModelVersion
Network(ModelVersion.load(Path({str(BUNDLED[-1].parent)!r})))
children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text()
assert not children, children
assert sys.modules.get("openvino_telemetry") is None
"""
    # Its variables for continuous integration would switch telemetry off by themselves.
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core alone")
def test_scoring_binds_itself_to_no_core() -> None:
    """Two scoring processes of one thread use two cores: none of them insists on the first."""
    network = Network(ModelVersion.load(BUNDLED[-1].parent), threads=1)
    array = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
    scorer, seen = threading.get_native_id(), set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.add(frozenset(os.sched_getaffinity(scorer)))
            time.sleep(0.0002)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            network.score(array)
    finally:
        ended.set()
        looking.join()
    assert seen == {frozenset(os.sched_getaffinity(0))}
