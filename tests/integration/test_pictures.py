"""The worker asks the picture: what is novel is not scored, what is bad is noted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from sample_dicom.draw import chest, hand, lateral
from tests.builders import Picture, encoded, radiograph
from tests.conftest import ROOT, SAMPLES
from tests.degrade import drawn
from tests.fitted import SMALL, fitted_quality
from triage.admission import Population
from triage.assessment import Assessor
from triage.identity import Instance
from triage.novelty import NOVELTY, Novelty
from triage.pixels import Array
from triage.quality import QUALITY, Quality
from triage.registry import ModelVersion
from triage.scoring import Score
from triage.spool import Spool, digest_of
from triage.worker import Worker
from triage.worklist import Arrival, State, Worklist, WorklistItem

ANYBODY = Population("anybody", None, ("PA",))
Settle = Callable[..., WorklistItem]


class Half:
    """A scorer that gives everything one half."""

    model_version = "half-1"

    def score(self, array: Array) -> Score:
        """One half."""
        return Score(0.5, 0.5, self.model_version)


@pytest.fixture
def settle(worklist: Worklist, tmp_path: Path) -> Settle:
    """Have a worker settle one radiograph whose header says chest, PA, window as it is."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()

    def settle(
        shown: Picture | Dataset,
        quality: Quality | None,
        population: Population = ANYBODY,
    ) -> WorklistItem:
        made = shown if isinstance(shown, Dataset) else radiograph(shown, window=(2048, 4096))
        content = encoded(made)
        digest = digest_of(content)
        spool.put(digest, content)
        instance = Instance.of(made)
        worklist.receive(Arrival(instance, ExplicitVRLittleEndian, "X", "", digest, 1))
        champion = Assessor(Half(), population, quality)
        assert Worker("w", worklist, spool, lambda: champion).step()
        return worklist.item(instance.sop_instance_uid)

    return settle


def test_a_chest_is_scored_without_findings(settle: Settle) -> None:
    """Nothing is noted on a good picture of the right kind."""
    item = settle(chest(600, shape=SMALL), fitted_quality())
    assert (item.state, item.reason, item.notes) == (State.SCORED, None, ())


def test_a_hand_that_says_chest_is_not_scored(settle: Settle) -> None:
    """The header lies, the picture does not: the reason, and the novelty in the explanation."""
    item = settle(hand(1, shape=SMALL), fitted_quality())
    assert (item.state, item.reason) == (State.NOT_SCORED, "NOT_LIKE_TRAINING")
    assert item.score is None
    assert "novelty is" in item.explanation
    assert item.notes == ()


def test_a_picture_upside_down_is_not_scored_and_says_why(settle: Settle) -> None:
    """The finding goes with the refusal."""
    item = settle(np.rot90(chest(600, shape=SMALL), 2), fitted_quality())
    assert (item.state, item.reason) == (State.NOT_SCORED, "NOT_LIKE_TRAINING")
    assert item.notes == ("ROTATED",)


def test_a_clipped_exposure_is_scored_and_noted(settle: Settle) -> None:
    """Findings never block."""
    shown = chest(600, shape=SMALL)
    item = settle(np.minimum(shown / np.quantile(shown, 0.9), 1.0), fitted_quality())
    assert item.state is State.SCORED
    assert item.score == 0.5
    assert "EXPOSURE_CLIPPED" in item.notes


def test_one_exposure_under_two_uids_is_noted_on_the_second(settle: Settle) -> None:
    """Scored both, in another depth; another exposure of the same child is none."""
    shown = chest(600, shape=SMALL)
    first = settle(shown, fitted_quality())
    second = settle(np.rint(shown * 255) / 255, fitted_quality())
    third = settle(chest(601, shape=SMALL), fitted_quality())
    assert [item.state for item in (first, second, third)] == [State.SCORED] * 3
    assert [item.notes for item in (first, second, third)] == [(), ("DUPLICATE_EXPOSURE",), ()]
    assert second.explanation == f"the same exposure came as {first.sop_instance_uid}"


@pytest.fixture(scope="module")
def bundled() -> tuple[Quality, Population]:
    """What the bundled version knows of pictures, and its population."""
    (description,) = (ROOT / "triage" / "bundled").glob("*/model.json")
    model = ModelVersion.load(description.parent)
    novelty = Novelty.load(model.folder / NOVELTY)
    return Quality.load(model.folder / QUALITY, novelty), model.population


BY_HEADER = {
    "02-dx-lateral-rle": "VIEW_NOT_FRONTAL",
    "10-dx-pa-adult": "AGE_OUTSIDE_POPULATION",
    "11-cr-hand": "NOT_CHEST",
}


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@on_sqlite
@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.dcm")), ids=lambda file: file.stem)
def test_a_sample_comes_to_what_its_header_says(
    file: Path, settle: Settle, bundled: tuple[Quality, Population]
) -> None:
    """The drawn chests of children pass the bundled version's novelty, without findings."""
    item = settle(dcmread(file), *bundled)
    assert item.reason == BY_HEADER.get(file.stem)
    assert set(item.notes) <= {"VOI_ABSENT"}


@on_sqlite
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("02-dx-lateral-rle", "NOT_LIKE_TRAINING"),
        ("10-dx-pa-adult", None),
        ("11-cr-hand", "NOT_LIKE_TRAINING"),
    ],
)
def test_a_sample_whose_header_lies_comes_to_what_it_shows(
    name: str, reason: str | None, settle: Settle, bundled: tuple[Quality, Population]
) -> None:
    """Each claims to be a chest, PA, of a child of three; the adult's picture is a chest."""
    dataset = dcmread(SAMPLES / f"{name}.dcm")
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.PatientAge = "CHEST", "PA", "003Y"
    for keyword in ("ViewCodeSequence", "AnatomicRegionSequence"):
        dataset.pop(keyword, None)
    assert settle(dataset, *bundled).reason == reason


@pytest.mark.parametrize("draw", [hand, lateral])
def test_drawn_hands_and_laterals_that_claim_a_chest_are_not_scored(
    draw: Callable[..., Picture], bundled: tuple[Quality, Population]
) -> None:
    """Others than the samples', as the bundled version sees them."""
    novelty = bundled[0].novelty
    assert all(novelty.is_novel(drawn(draw(seed))) for seed in range(900, 906))


def test_a_version_without_novelty_admits_by_the_header(settle: Settle) -> None:
    """And says so on the row."""
    item = settle(hand(1, shape=SMALL), None)
    assert item.state is State.SCORED
    assert item.notes == ("NOVELTY_UNCHECKED",)
