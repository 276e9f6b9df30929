"""A home with readings that are worth a retraining, and the command in its settings."""

import datetime as dt
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sqlalchemy import update

from sample_dicom.draw import chest
from tests.builders import encoded, radiograph
from tests.conftest import ROOT
from tests.exams import arrival
from triage.app import prepare
from triage.config import Config
from triage.identity import Instance
from triage.registry import Registry
from triage.scoring import Score
from triage.spool import Spool, digest_of
from triage.worklist import Arrival, Worklist
from triage.worklist.readings import Said
from triage.worklist.tables import Item, Reading, ScoreRecord

LENIENT = """
[site]
least_diseased = 1
least_healthy = 1
sensitivity_margin = 1.0
specificity_margin = 1.0
auc_above = -1.0
calibration_margin = 1.0
[subgroups]
least_diseased = 1
least_healthy = 1
sensitivity_margin = 1.0
specificity_margin = 1.0
[locked]
may_lose = 1000
"""
"""A policy that every challenger keeps: what is tested is the way there."""


def settings(home: Path, **more: object) -> dict[str, str]:
    """Settings of a small and quick retraining in a home."""
    policy = home / "policy.toml"
    home.mkdir(parents=True, exist_ok=True)
    policy.write_text(LENIENT, "utf-8")
    told = {
        "home": home,
        "log_format": "json",
        "retrain_after_readings": 20,
        "retrain_epochs": 3,
        "retrain_pictures": 16,
        "retrain_nice": 0,
        "retrain_policy": policy,
        **more,
    }
    return {f"TRIAGE_{name.upper()}": str(value) for name, value in told.items()}


def config(home: Path, **more: object) -> Config:
    """The same as a configuration."""
    return Config.read(settings(home, **more), home)


def fill(given: Config, exams: int, *, first: int = 0, sick: int | None = None) -> None:
    """Let drawn radiographs come, be scored and be read, an hour and more ago.

    Every second one has an opacity and is confirmed; or, with ``sick``, the first so many have.
    """
    prepare(given)
    worklist = Worklist(given.worklist_url)
    spool = Spool(given.spool_folder)
    for number in range(first, first + exams):
        diseased = number % 2 == 1 if sick is None else number < sick
        shown = chest(number, opacity=0.9 * diseased, shape=(140, 116))
        enter_read(worklist, spool, number, shown, diseased=diseased)
    age(worklist, first)
    worklist.close()


def enter_read(
    worklist: Worklist, spool: Spool, number: int, shown: np.ndarray, *, diseased: bool
) -> None:
    """Let a picture come as an exam of a patient of its own, be scored and be read."""
    uid = f"1.2.{number}"
    content = encoded(radiograph(shown, SOPInstanceUID=uid))
    start = 144 + int.from_bytes(content[140:144], "little")  # PS3.10 7.1
    digest = digest_of(content[start:])
    spool.put(digest, [content[:start], content[start:]])
    came = arrival(uid, patient_id=f"P{number}", patient_age="003Y", patient_sex="F")
    instance = Instance(**{name: getattr(came.instance, name) for name in Instance.__slots__})
    assert worklist.receive(
        Arrival(instance, "1.2.840.10008.1.2.1", "CR1", "127.0.0.1", digest, len(content))
    )
    claim = worklist.claim("worker")
    assert claim is not None
    assert worklist.scored(claim, Score(0.9, 0.5, "v1"), ())
    worklist.readings.add(
        uid, Said("confirmed" if diseased else "rejected", f"reader {number % 3}")
    )


def age(worklist: Worklist, first: int) -> None:
    """Move exams, scores and readings back, so that no reading can be withdrawn any more."""
    began = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3)
    with worklist.engine().begin() as connection:
        for number, (table, column) in enumerate(
            [(Item, "received_at"), (ScoreRecord, "scored_at"), (Reading, "read_at")]
        ):
            for row in connection.execute(Item.__table__.select().where(Item.id > first)).all():
                at = began + dt.timedelta(seconds=row.id, minutes=10 * number)
                where = table.id == row.id if table is Item else table.item_id == row.id
                connection.execute(update(table).where(where).values({column: at}))


def retrain(
    environment: dict[str, str], *arguments: str, module: str = "training.retrain"
) -> subprocess.Popen[str]:
    """Start ``triage-retrain``."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRIAGE_")}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**inherited, **environment, "PYTHONPATH": str(ROOT)},
        cwd=environment["TRIAGE_HOME"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(folder: Path) -> np.ndarray:
    """The network's weights as they are on disk."""
    return np.fromfile(folder / "model.bin", np.uint8)


def interrupted(home: Path, kills: int, chance: random.Random) -> None:
    """Retrain, killed so often at random moments; then let it end. Looks after each kill.

    The moments are of the stages that the run tells in its log, and of the time after them.
    """
    environment = settings(home)
    given = config(home)
    log = home.parent / "log"
    known: set[str] = set()
    for _ in range(kills):
        process = retrain(environment, "run", "--force")
        assert process.stderr is not None
        heard = 0
        wanted = chance.randrange(1, 9)
        with log.open("a", encoding="utf-8") as kept:
            for line in process.stderr:
                kept.write(line)
                heard += line.startswith("{")
                if heard >= wanted:
                    break
        time.sleep(chance.uniform(0.0, 1.5))
        process.kill()
        process.communicate(timeout=60)
        models = Registry(given.models_folder)
        # Reads and verifies each: a half one would raise.
        known |= {model.version for model in models.versions()}
        models.settle()
        models.history()
    process = retrain(environment, "run", "--force")
    told, rest = process.communicate(timeout=600)
    with log.open("a", encoding="utf-8") as kept:
        kept.write(rest)
    assert process.returncode == 0, f"{process.returncode}: {told}{rest}"
    assert known <= {model.version for model in Registry(given.models_folder).versions()}
