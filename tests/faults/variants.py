"""Copies of the program in which something is changed, for what must not stay unseen."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT


@dataclass(frozen=True)
class Variant:
    """A text in a module, and what stands there instead."""

    module: str
    old: str
    new: str


def variant(folder: Path, *changes: Variant) -> Path:
    """A folder for PYTHONPATH with the changed program in it."""
    folder.mkdir(parents=True)
    shutil.copytree(
        ROOT / "triage", folder / "triage", ignore=shutil.ignore_patterns("__pycache__")
    )
    for change in changes:
        file = folder / "triage" / change.module
        text = file.read_text()
        assert change.old in text, f"{change.module} has changed: find the place anew"
        file.write_text(text.replace(change.old, change.new))
    return folder
