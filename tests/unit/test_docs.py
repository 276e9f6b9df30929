"""The documents name what the program has, and nothing of where it was written."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from triage.card import card
from triage.registry import ModelVersion

SOURCES = [*sorted((ROOT / "triage").rglob("*.py")), *sorted((ROOT / "training").rglob("*.py"))]
CODE = re.compile(r'"([A-Z]+(?:_[A-Z0-9]+)+|DERIVED|LOCALIZER)"')


@pytest.mark.parametrize("module", ["admission.py", "assessment.py", "pixels.py", "worker.py"])
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
    """Name, threshold and figures are those in model.json."""
    text = (ROOT / "docs" / "model.md").read_text()
    file = max((ROOT / "triage" / "bundled").glob("*/model.json"))
    told = json.loads(file.read_text())
    assert told["version"] in text
    assert told["data"]["snapshot"] in text
    assert f"{told['threshold']:.4f}" in text
    for part in ("out_of_fold", "held_out", "copies"):
        for figure in told["metrics"][part].values():
            row = f"| {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} |"
            assert row in text, (part, row)


def test_the_model_card_and_the_table_are_the_bundled_version_s() -> None:
    """As the commands write them; with what was found, and the failures described."""
    version = ModelVersion.load(max((ROOT / "triage" / "bundled").glob("*/model.json")).parent)
    assert (ROOT / "docs" / "model-card.md").read_text().startswith(card(version))
    table = (ROOT / "docs" / "robustness.md").read_text()
    assert table.startswith(f"# Robustness of {version.version}\n")
    for name, area in version.description["robustness"]["auc_by"].items():
        assert f"| {name} |  | {area['value']:.3f} (" in table, name
    assert all(row["seen"] for row in version.description["failures"]["worst"])


def test_the_bundled_weights_are_in_half_precision() -> None:
    """Two bytes each, and all files of the version well under 12 MB."""
    version = ModelVersion.load(max((ROOT / "triage" / "bundled").glob("*/model.json")).parent)
    sizes = {name: (version.folder / name).stat().st_size for name in version.description["files"]}
    assert sizes["model.bin"] < 2.01 * version.description["parameters"]
    assert sum(sizes.values()) < 12e6
