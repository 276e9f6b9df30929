"""A retraining that is killed at random moments, again and again."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.tally import FULL, Tally, amount
from tests.retraining import config, fill, interrupted, retrain, settings, weights
from triage import app
from triage.registry import CHALLENGER, Registry
from triage.worklist.retrainings import RetrainingState


@pytest.mark.skipif(not FULL, reason="test_retrain kills one in the short form")
def test_a_killed_retraining_comes_to_what_an_undisturbed_one_does(
    tmp_path: Path, tally: Tally
) -> None:
    """Nothing half, one challenger a run, no second job; and the same weights, to the bit.

    A kill that comes when the run has just ended lets the next call begin another.
    """
    kills = amount(3, 10, "FAULTS_RETRAININGS")
    calm = tmp_path / "calm" / "home"
    fill(config(calm), 48)
    # The site's key and exam are drawn here, so that both homes have the same.
    process = retrain(settings(calm), "run", "--dry-run")
    assert "would be trained" in process.communicate(timeout=120)[0]
    disturbed = tmp_path / "disturbed" / "home"
    shutil.copytree(calm, disturbed)
    interrupted(disturbed, kills, random.Random(1))
    tally.fault("kill -9 of a retraining", kills)
    process = retrain(settings(calm), "run")
    told, log = process.communicate(timeout=600)
    assert process.returncode == 0, told + log
    trained = []
    for home in (calm, disturbed):
        given = config(home)
        worklist = app.worklist(given)
        records = worklist.retrainings.records()
        worklist.close()
        assert {record.state for record in records} == {RetrainingState.DONE}
        models = Registry(given.models_folder)
        models.history()
        made = [models.version(str(record.version)) for record in records]
        assert len({model.version for model in made}) == len(records)
        assert len(models.versions()) == 1 + len(records)
        assert models.aliases()[CHALLENGER] == made[0].version
        assert [len(models.decisions(model.version)) for model in made] == [1] * len(records)
        trained += [weights(model.folder) for model in made]
    assert all(np.array_equal(trained[0], other) for other in trained[1:])
