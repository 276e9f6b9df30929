"""Model versions for tests that promote, and need none that is better."""

import shutil
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from training.versions import seal
from triage.registry import DESCRIPTION, ModelVersion

THRESHOLD = 0.123456
"""Of :func:`another`."""


def another(folder: Path, **changes: Any) -> ModelVersion:
    """The bundled network with another threshold: a version of its own."""
    bundled = max((ROOT / "triage" / "bundled").glob(f"*/{DESCRIPTION}")).parent
    known = ModelVersion.load(bundled)
    folder.mkdir()
    for name in known.description["files"]:
        shutil.copyfile(bundled / name, folder / name)
    own = {"version", "files", "device_uid"}
    told = {key: value for key, value in known.description.items() if key not in own}
    told |= {"threshold": THRESHOLD, "parent": known.version, **changes}
    seal(folder, list(known.description["files"]), told)
    return ModelVersion.load(folder)
