"""Champions that change while radiographs flow, in running processes, by the real commands."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from tests.builders import chest_radiograph, save
from tests.conftest import Service, wait_for
from tests.versions import THRESHOLD, another
from training.versions import seal
from triage.registry import Registry
from triage.send import send
from triage.worklist import State


def command(service: Service, *arguments: str) -> str:
    """What a `triage models` command prints; it must work."""
    done = service.triage("models", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(service: Service) -> list[tuple[str, str, float]]:
    """SOP Instance UID, version and threshold of every score there is."""
    connection = sqlite3.connect(service.home / "worklist.sqlite", timeout=30)
    try:
        return connection.execute(
            "SELECT items.sop_instance_uid, scores.model_version, scores.threshold FROM scores "
            "JOIN items ON items.id = scores.item_id"
        ).fetchall()
    finally:
        connection.close()


def copies(number: int, folder: Path) -> list[Path]:
    """So many radiographs that differ in their UIDs alone."""
    made = chest_radiograph(shape=(560, 464))
    files = []
    for index in range(number):
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(made, keyword, generate_uid())
        files.append(save(made, folder / f"{index:04}.dcm"))
    return files


@pytest.fixture
def exams(tmp_path: Path) -> list[Path]:
    """Sixty radiographs."""
    (tmp_path / "exams").mkdir()
    return copies(60, tmp_path / "exams")


@pytest.fixture
def two_workers(new_service: Callable[..., Service]) -> Iterator[Service]:
    """A service with a second scoring worker."""
    service = new_service()
    service.start()
    log = service.home / "second-worker.log"
    with log.open("wb") as file:
        second = subprocess.Popen(
            [sys.executable, "-m", "triage", "serve", "--roles", "score"],
            env=service.environment,
            cwd=service.home.parent,
            stdin=subprocess.DEVNULL,
            stderr=file,
        )
    wait_for(lambda: "worker_ready" in log.read_text())
    yield service
    second.terminate()
    assert second.wait(30) == 0
    service.stop()


def test_each_exam_has_one_score_of_one_version_while_the_champion_changes(
    two_workers: Service, exams: list[Path], tmp_path: Path
) -> None:
    """Promotion and rollback in the middle of sixty exams; what comes after has the new one."""
    service = two_workers
    models = service.home / "models"
    first = str(json.loads((models / "aliases.json").read_text())["champion"])
    before = sorted(path.read_bytes() for path in (models / first).iterdir())
    made = another(tmp_path / "another")
    Registry(models).add(made.folder)
    thresholds = {first: Registry(models).champion().threshold, made.version: THRESHOLD}
    command(service, "approve", made.version, "--force", "--why", "a test")

    promoted = threading.Event()

    def flow() -> None:
        list(send(exams[:30], service.destination))
        # However long the command took: exams come after it, too.
        promoted.wait(120)
        list(send(exams[30:58], service.destination))

    thread = threading.Thread(target=flow)
    thread.start()
    wait_for(lambda: len(scores(service)) >= 6, seconds=90)
    command(service, "promote", made.version, "--why", "a test")
    promoted.set()
    wait_for(lambda: made.version in {version for _, version, _ in scores(service)}, seconds=90)
    assert "scores again" in command(service, "rollback", "--why", "a test")
    thread.join()
    list(send(exams[58:59], service.destination))
    worklist = service.worklist()
    wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=90)
    assert worklist.counts()[State.SCORED] == 59

    found = scores(service)
    assert len(found) == 59
    assert set(Counter(uid for uid, _, _ in found).values()) == {1}
    assert {version for _, version, _ in found} == set(thresholds)
    assert all(threshold == thresholds[version] for _, version, threshold in found)
    last = max(worklist.items(), key=lambda item: item.received_at)
    worklist.close()
    assert {v: t for uid, v, t in found if uid == last.sop_instance_uid} == {
        first: thresholds[first]
    }
    assert sorted(path.read_bytes() for path in (models / first).iterdir()) == before
    history = command(service, "history")
    for word in ("APPROVED", "PROMOTED", "ROLLED_BACK", "command of "):
        assert word in history


def test_a_version_that_cannot_score_here_is_not_promoted(
    two_workers: Service, tmp_path: Path
) -> None:
    """Though it was approved; the champion goes on."""
    service = two_workers
    made = another(tmp_path / "another")
    folder = tmp_path / "broken"
    shutil.copytree(made.folder, folder)
    (folder / "model.xml").write_text("<net/>")
    told = {k: v for k, v in made.description.items() if k not in {"version", "files"}}
    seal(folder, list(made.description["files"]), told)
    registry = Registry(service.home / "models")
    broken = registry.add(folder).version
    before = registry.aliases()
    command(service, "approve", broken, "--force", "--why", "a test")
    done = service.triage("models", "promote", broken)
    assert done.returncode == 1
    assert "cannot be compiled" in done.stderr
    assert registry.aliases() == before
