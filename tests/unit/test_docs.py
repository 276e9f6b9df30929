"""The documents name what the program has, and nothing of where it was written."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = [*sorted((ROOT / "triage").rglob("*.py")), *sorted((ROOT / "training").rglob("*.py"))]
CODE = re.compile(r'"([A-Z]+(?:_[A-Z0-9]+)+|DERIVED|LOCALIZER)"')


@pytest.mark.parametrize("module", ["admission.py", "pixels.py", "worker.py"])
def test_every_reason_and_note_is_documented(module: str) -> None:
    """A code that a reader can meet stands in docs/reasons.md."""
    text = (ROOT / "docs" / "reasons.md").read_text()
    source = (ROOT / "triage" / module).read_text()
    codes = set(CODE.findall(source)) - {"LINEAR_EXACT"}
    assert codes
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_link_between_documents_leads_somewhere() -> None:
    """Relative links in Markdown files point at files that exist."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for file in files:
        for target in re.findall(r"\]\((?!http)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


def test_no_machine_path_or_index_host_is_in_the_tree() -> None:
    """What was only true where this was written stays there."""
    pattern = re.compile(r"(?<![\w.])/(home|root|work|farm)/|https?://[^\s)]*/simple\b|--index-url")
    kept = [*SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    kept += [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [path.name for path in kept if pattern.search(Path(path).read_text())]
    assert found == []


def test_the_model_document_tells_the_bundled_model_s_own_figures() -> None:
    """Name, threshold and held-out figures are those in model.json."""
    text = (ROOT / "docs" / "model.md").read_text()
    file = max((ROOT / "triage" / "bundled").glob("*/model.json"))
    told = json.loads(file.read_text())
    assert told["version"] in text
    assert told["data"]["snapshot"] in text
    assert f"{told['threshold']:.4f}" in text
    for figure in told["metrics"]["held_out"].values():
        row = f"| {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} |"
        assert row in text, row
