"""Orthanc's Python plugin does what the obvious worker does, inside Orthanc.

The plugin embeds Debian's Python 3.11. It finds this tree, and the packages of the virtual
environment, which are for the same Python, by PYTHONPATH; TRIAGE_BENCH_SCORED is where the
scores go.
"""

import io
import os
from pathlib import Path

import orthanc
from pydicom import dcmread

from tests.benchmarks.obvious import Obvious

obvious = Obvious(Path(os.environ["TRIAGE_BENCH_SCORED"]))


def stored(instance: "orthanc.DicomInstance", identifier: str) -> None:
    """Orthanc has kept an instance."""
    obvious(dcmread(io.BytesIO(instance.GetInstanceData())))


orthanc.RegisterOnStoredInstanceCallback(stored)
