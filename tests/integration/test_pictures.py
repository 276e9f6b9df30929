"""The worker asks the picture: what is novel is not scored, what is bad is noted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from sample_dicom.draw import chest, hand
from tests.builders import Picture, encoded, radiograph
from tests.fitted import SMALL, fitted_quality
from triage.admission import Population
from triage.identity import Instance
from triage.pixels import Array
from triage.quality import Quality
from triage.scoring import Score
from triage.spool import Spool, digest_of
from triage.worker import Champion, Worker
from triage.worklist import Arrival, State, Worklist, WorklistItem

Settle = Callable[[Picture, Quality | None], WorklistItem]


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

    def settle(shown: Picture, quality: Quality | None) -> WorklistItem:
        made = radiograph(shown, window=(2048, 4096))
        content = encoded(made)
        digest = digest_of(content)
        spool.put(digest, content)
        instance = Instance.of(made)
        worklist.receive(Arrival(instance, ExplicitVRLittleEndian, "X", "", digest, 1))
        champion = Champion(Half(), Population("anybody", None, ("PA",)), quality)
        assert Worker("w", worklist, spool, lambda: champion, warn_outside=True).step()
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


def test_a_version_without_novelty_admits_by_the_header(settle: Settle) -> None:
    """And says so on the row."""
    item = settle(hand(1, shape=SMALL), None)
    assert item.state is State.SCORED
    assert item.notes == ("NOVELTY_UNCHECKED",)
