"""``triage-retrain`` as people and the schedule start it: real processes, drawn chests."""

import datetime as dt
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from sample_dicom.draw import chest
from tests.conftest import ROOT, wait_for
from tests.retraining import config, fill, interrupted, retrain, settings
from training.rehearsal import Rehearsal, store
from triage import app
from triage.config import Config
from triage.errors import ConfigError, DataError, ModelError, UnknownItem
from triage.pixels import SIDE
from triage.registry import CHALLENGER, SHADOW, Registry, file_hash
from triage.worklist import Worklist
from triage.worklist.retrainings import LEASE, MOST_ATTEMPTS, RetrainingState
from triage.worklist.schema import migrate, open_engine
from triage.worklist.tables import Lease, Retraining, RetrainJob

ON_RAY = os.environ.get("ON_RAY") == "full"

KILLS = 2
"""`make faults` does ten."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 48 readings that no test changes."""
    home = tmp_path_factory.mktemp("filled") / "home"
    fill(config(home), 48)
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(filled, tmp_path / "home"))


def outlook(given: Config, *, force: bool = False) -> str:
    """Why nothing would be done."""
    from training.retraining import outlook as found

    worklist = app.worklist(given)
    try:
        return found(given, worklist, None, forced=force).obstacle
    finally:
        worklist.close()


@pytest.fixture(scope="module")
def killed(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose retraining was killed at random moments, went on each time, and ended."""
    home = tmp_path_factory.mktemp("killed") / "home"
    shutil.copytree(filled, home)
    interrupted(home, KILLS, random.Random(6))
    return home


def test_a_killed_retraining_goes_on_and_leaves_nothing_half(killed: Path) -> None:
    """One run, one challenger, one decision; the work folder is gone."""
    given = config(killed)
    worklist = app.worklist(given)
    records = worklist.retrainings.records()
    worklist.close()
    assert [record.state for record in records] == [RetrainingState.DONE]
    models = Registry(given.models_folder)
    assert len(models.versions()) == 2
    assert len(models.decisions(str(records[0].version))) == 1
    assert models.aliases()[CHALLENGER] == models.aliases()[SHADOW] == records[0].version
    models.history()
    assert not (given.retrainings_folder / str(records[0].id)).exists()


def test_a_challenger_tells_where_it_comes_from(killed: Path) -> None:
    """Its parent, its snapshot, how many readings and readers; no reader's name travels."""
    given = config(killed)
    models = Registry(given.models_folder)
    champion, challenger = models.champion(), models.version(models.aliases()[CHALLENGER])
    told = challenger.description
    assert told["parent"] == champion.version
    data = told["data"]
    manifest = given.snapshots_folder / data["snapshot"].removeprefix("sha256:") / "snapshot.json"
    content = json.loads(manifest.read_text("utf-8"))
    assert content["digest"] == data["snapshot"]
    assert (data["readings"], data["readers"]) == (48, 3)
    assert "reader 1" not in json.dumps(told)
    assert "reader 1" in manifest.read_text("utf-8")
    assert data["parts"]["train"] == content["counts"]["train"]
    assert 0.0 < challenger.threshold < 1.0
    assert set(told["files"]) == set(champion.description["files"])
    assert told["training"]["champion_in_weights"] > 0


def test_the_line_leads_from_a_device_uid_to_the_readings(killed: Path) -> None:
    """Over the challenger to its champion; and from an exam that the champion scored."""
    given = config(killed)
    models = Registry(given.models_folder)
    challenger = models.version(models.aliases()[CHALLENGER])
    uid = challenger.description["device_uid"]
    young, old, oldest = app.lineage_of(given, uid)
    assert (young.version, young.device_uid) == (challenger.version, uid)
    assert young == app.lineage_of(given, challenger.version)[0]
    assert young.described == file_hash(challenger.folder / "model.json")
    assert young.snapshot == challenger.description["data"]["snapshot"]
    assert len(young.readings) == len(set(young.readings)) == 48
    assert young.readers == ("reader 0", "reader 1", "reader 2")
    assert sum(young.parts.values()) == 48
    assert old.version == models.champion().version
    assert not old.readings
    assert "Chest X-Ray" in old.note
    # The bundled version's own parent had the same network, and was never here.
    assert oldest.version == models.champion().description["parent"]
    assert oldest.note == "not in this registry"
    # This exam was entered with a score of a version that is in no registry.
    with pytest.raises(ModelError):
        app.lineage_of(given, "1.2.1")
    manifest = given.snapshots_folder / young.snapshot.removeprefix("sha256:") / "snapshot.json"
    away = manifest.rename(manifest.with_suffix(".away"))
    assert "stays where it was taken" in app.lineage_of(given, uid)[0].note
    manifest.write_text('{"digest": "sha256:other", "cases": []}')
    with pytest.raises(ModelError, match="is not the snapshot"):
        app.lineage_of(given, uid)
    away.rename(manifest)
    with pytest.raises(UnknownItem):
        app.lineage_of(given, "1.2.3.4.5.6")


def test_status_says_what_came_of_a_retraining(killed: Path) -> None:
    done = retrain(settings(killed), "status")
    text, _ = done.communicate(timeout=60)
    assert done.returncode == 0
    assert "DONE" in text
    assert "PROVEN" in text
    assert "0 new readings; 20 are worth a retraining" in text


def test_no_patient_is_in_the_log_of_a_retraining(killed: Path) -> None:
    """Nor in what the database keeps of it: neither Patient ID nor a reader's name."""
    log = (killed.parent / "log").read_text("utf-8")
    worklist = app.worklist(config(killed))
    kept = json.dumps([record.as_json() for record in worklist.retrainings.records()])
    worklist.close()
    assert "retraining_ended" in log
    for text in (log, kept):
        assert '"P1' not in text
        assert "reader 1" not in text


def test_each_cause_to_do_nothing_has_its_own_line(home: Path, tmp_path: Path) -> None:
    assert "too few new readings: 48, 49 are wanted" in outlook(
        config(home, retrain_after_readings=49)
    )
    strict = tmp_path / "strict.toml"
    strict.write_text("", "utf-8")
    small = config(home, retrain_policy=strict)
    assert "the site exam is too small to prove anything" in outlook(small)
    assert outlook(small, force=True) == ""
    assert outlook(config(home)) == ""
    models = Registry(config(home).models_folder)
    models.name(SHADOW, models.champion().version)
    assert "waits in shadow" in outlook(config(home))
    one_class = config(tmp_path / "healthy")
    fill(one_class, 24, sick=0)
    assert outlook(one_class) == (
        "the train part has no label of class PNEUMONIA: wait for readings of it"
    )
    assert outlook(one_class, force=True) != ""


def test_a_run_that_does_nothing_says_why_and_is_kept(home: Path) -> None:
    """Exit status 0, a line, and a row that `status` shows."""
    environment = settings(home, retrain_after_readings=100)
    done = retrain(environment, "run")
    text, _ = done.communicate(timeout=120)
    assert done.returncode == 0
    assert text.startswith("nothing done: too few new readings: 48")
    worklist = app.worklist(config(home))
    [record] = worklist.retrainings.records()
    assert (record.state, record.trigger) == (RetrainingState.NOTHING, "command")
    assert record.reason.startswith("too few new readings")
    assert worklist.retrainings.running() is None
    worklist.close()


def test_the_same_labels_are_not_trained_on_twice(home: Path) -> None:
    """Whatever the number of new readings: the last snapshot's digest is kept."""
    from training.retraining import outlook as found

    given = config(home)
    worklist = app.worklist(given)
    run = worklist.retrainings.start("node/retrain-1", "command")
    assert run is not None
    snapshot = found(given, worklist, None, forced=True).snapshot
    assert snapshot is not None
    retrainings = worklist.retrainings
    assert retrainings.renew("node/retrain-1", run.id, snapshot=snapshot.digest)
    assert retrainings.end("node/retrain-1", run.id, RetrainingState.DONE, "")
    with worklist.engine().begin() as connection:
        connection.execute(update(Retraining).values(cutoff=dt.datetime(2000, 1, 1, tzinfo=dt.UTC)))
    worklist.close()
    assert "nothing new: retraining 1 was on the same labels" in outlook(given)


def test_what_breaks_is_told_and_kept(home: Path) -> None:
    """A bad policy ends the run as FAILED, with the reason that the command gives, too."""
    from training.retraining import ran

    wrong = home / "wrong.toml"
    wrong.write_text("[site]\nleast = 3\n", "utf-8")
    with pytest.raises(DataError, match=r"site\.least"):
        ran(config(home, retrain_policy=wrong), "command")
    worklist = app.worklist(config(home))
    [record] = worklist.retrainings.records()
    assert record.state is RetrainingState.FAILED
    assert "site.least" in record.reason
    assert worklist.retrainings.running() is None
    worklist.close()


# Who runs


@pytest.fixture
def migrated(database_url: str) -> Iterator[Worklist]:
    """An empty worklist in either database."""
    engine = open_engine(database_url, create=True)
    migrate(engine)
    engine.dispose()
    worklist = Worklist(database_url)
    yield worklist
    worklist.close()


def test_one_runs_at_a_time_and_the_dead_one_s_run_goes_on(migrated: Worklist) -> None:
    """Its successor on the node at once; another node when the lease has ended."""
    retrainings = migrated.retrainings
    first = retrainings.start("a/retrain-1", "schedule")
    assert first is not None
    assert retrainings.start("b/retrain-1", "schedule") is None
    assert retrainings.left() is None
    successor = retrainings.start("a/retrain-1", "schedule")
    assert successor is not None
    assert (successor.id, successor.attempts, successor.cutoff) == (first.id, 2, first.cutoff)
    assert retrainings.renew("a/retrain-1", first.id, stage="training")
    with migrated.engine().begin() as connection:
        connection.execute(update(Lease).values(until=dt.datetime.now(dt.UTC)))
    left = retrainings.left()
    assert left is not None
    other = retrainings.start("b/retrain-1", "schedule", anew=False)
    assert other is not None
    assert (other.id, other.holder, other.attempts) == (first.id, "b/retrain-1", 2)
    assert not retrainings.renew("a/retrain-1", first.id, stage="recording")
    assert not retrainings.end("a/retrain-1", first.id, RetrainingState.DONE, "")
    assert retrainings.end("b/retrain-1", first.id, RetrainingState.DONE, "")
    assert retrainings.start("a/retrain-1", "schedule", anew=False) is None
    again = retrainings.start("a/retrain-1", "command")
    assert again is not None
    assert again.id != first.id


def test_a_run_that_kills_its_process_is_given_up(migrated: Worklist) -> None:
    """After so many deaths at one place; the next is a new one."""
    retrainings = migrated.retrainings
    for attempt in range(1, MOST_ATTEMPTS + 1):
        run = retrainings.start("a/retrain-1", "schedule")
        assert run is not None
        assert (run.id, run.attempts) == (1, attempt)
    assert retrainings.start("a/retrain-1", "schedule", anew=False) is None
    [record] = retrainings.records()
    assert record.state is RetrainingState.FAILED
    assert "died 5 times" in record.reason
    assert retrainings.left() is None


def test_a_lease_from_a_clock_that_was_ahead_does_not_last(migrated: Worklist) -> None:
    retrainings = migrated.retrainings
    assert retrainings.lead("a/schedule-1")
    far = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    with migrated.engine().begin() as connection:
        connection.execute(update(Lease).values(until=far))
    assert retrainings.leader() is None
    assert retrainings.lead("b/schedule-1")
    assert retrainings.leader() == "b/schedule-1"


def test_of_two_schedulers_one_starts_a_due_job_once(
    database_url: str, home: Path, tmp_path: Path
) -> None:
    """Two processes of two nodes on one database; when one is killed, the other goes on."""
    more = {
        "database_url": database_url,
        "retrain_schedule": "0 2 1 1 *",
        "retrain_after_readings": 1_000,
    }
    if database_url.startswith("sqlite"):
        shutil.copyfile(home / "worklist.sqlite", tmp_path / "worklist.sqlite")
    app.prepare(config(home, **more))
    shutil.copytree(home, tmp_path / "other")
    make_due(database_url, config(home, **more))
    nodes = {
        place: retrain(settings(place, **more), "schedule", "--keep")
        for place in (home, tmp_path / "other")
    }
    worklist = Worklist(database_url)

    def started_once(number: int) -> Path:
        """So many runs have ended, and there is no other; the home that keeps the schedule."""
        wait_for(
            lambda: (
                [each.state for each in worklist.retrainings.records()]
                == [RetrainingState.NOTHING] * number
            ),
            120.0,
        )
        # Another start would come within a tick of either node.
        time.sleep(2.0)
        records = worklist.retrainings.records()
        assert [record.trigger for record in records] == ["schedule"] * number
        due = worklist.retrainings.scheduled()["retrain"]
        assert due is not None
        assert due > dt.datetime.now(dt.UTC)
        leader = worklist.retrainings.leader() or ""
        [keeps] = (each for each in nodes if leader.endswith(f"-{(each / 'run').stat().st_ino:x}"))
        return keeps

    ended = []
    try:
        keeps = started_once(1)
        dead = nodes.pop(keeps)
        dead.kill()
        ended.append(dead.communicate(timeout=60))
        make_due(database_url, config(home, **more))
        with worklist.engine().begin() as connection:  # as a minute later
            connection.execute(update(Lease).values(until=dt.datetime.now(dt.UTC)))
        assert started_once(2) != keeps
    finally:
        for node in nodes.values():
            node.send_signal(signal.SIGTERM)
        ended += [node.communicate(timeout=60) for node in nodes.values()]
        worklist.close()
    assert [node.returncode for node in nodes.values()] == [0]
    kept = [json.loads(line) for _, log in ended for line in log.splitlines()]
    assert sum(entry["action"] == "schedule_kept" for entry in kept) == 2


def make_due(url: str, given: Config, minutes: int = 1) -> None:
    """Put the schedule's job into the database, missed so many minutes ago."""
    from training.retrain import _scheduler

    worklist = Worklist(url)
    _scheduler(given, worklist).shutdown()
    ago = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes)
    with worklist.engine().begin() as connection:
        state = pickle.loads(connection.scalar(select(RetrainJob.job_state)) or b"")
        changed = {
            "job_state": pickle.dumps({**state, "next_run_time": ago}),
            "next_run_time": ago.timestamp(),
        }
        connection.execute(update(RetrainJob).values(changed))
    worklist.close()


def test_a_start_that_was_missed_for_too_long_waits_for_the_next(home: Path) -> None:
    """Nobody wants Saturday's retraining in Monday's clinic."""
    more = {"retrain_schedule": "0 2 1 1 *", "retrain_grace_minutes": 60}
    make_due(config(home).worklist_url, config(home, **more), 61)
    node = retrain(settings(home, **more), "schedule", "--keep")
    worklist = app.worklist(config(home))
    try:
        now = dt.datetime.now(dt.UTC)
        wait_for(lambda: (worklist.retrainings.scheduled().get("retrain") or now) > now, 60.0)
    finally:
        node.send_signal(signal.SIGTERM)
        _, log = node.communicate(timeout=60)
    assert worklist.retrainings.records() == []
    assert "schedule_missed" in {json.loads(line)["action"] for line in log.splitlines()}
    worklist.close()


def test_enough_new_readings_start_a_retraining_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first look; the same readings start no other, though it came to nothing."""
    from training.retrain import fire_if_worth_it

    strict = home / "strict.toml"
    strict.write_text("", "utf-8")
    given = settings(home, retrain_schedule="after-readings", retrain_policy=strict)
    node = retrain(given, "schedule", "--keep")
    worklist = app.worklist(config(home))
    try:
        wait_for(lambda: worklist.retrainings.last(RetrainingState.NOTHING), 120.0)
    finally:
        node.send_signal(signal.SIGTERM)
        node.communicate(timeout=60)
    [record] = worklist.retrainings.records()
    assert record.trigger == "schedule"
    assert "the site exam is too small" in record.reason
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    fire_if_worth_it()
    assert worklist.retrainings.records() == [record]
    worklist.close()


def test_starts_are_moved_at_random_by_no_more_than_was_said(home: Path) -> None:
    """Many sites that share a machine would else start at the same second."""
    from training.retrain import _scheduler

    worklist = app.worklist(config(home))
    exact = dt.datetime(dt.datetime.now(dt.UTC).year + 1, 1, 1, 2, tzinfo=dt.UTC)
    moved = set()
    for minutes in range(60, 66):
        # Another grace is another schedule, so that the time is drawn anew.
        more = {"retrain_jitter_seconds": 600, "retrain_grace_minutes": minutes}
        _scheduler(config(home, retrain_schedule="0 2 1 1 *", **more), worklist).shutdown()
        due = worklist.retrainings.scheduled()["retrain"]
        assert due is not None
        assert abs(due - exact) <= dt.timedelta(seconds=600)
        moved.add(due)
    assert len(moved) > 1
    worklist.close()


def test_a_retraining_gives_way_to_everything_else() -> None:
    """19 is the idle policy of the thread that trains; threads are limited before TensorFlow."""
    told = (
        "import os; from training.retrain import _limit; from training.retraining import _give_way;"
        "_limit(1); _give_way(19);"
        "print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE,"
        " os.environ['TF_NUM_INTRAOP_THREADS'], os.environ['OMP_NUM_THREADS'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["19", "True", "1", "1"]


def test_a_stored_subsample_is_rehearsed(home: Path) -> None:
    """And told of: what of it, and that the champion's weights were left out."""
    champion = Registry(config(home).models_folder).champion()
    shown = [chest(n, opacity=0.9 * (n % 2), shape=(SIDE, SIDE)) for n in range(12)]
    drawn = Rehearsal(
        "",
        champion.description["data"]["snapshot"],
        np.arange(12) % 2,
        np.array([f"base-{number}" for number in range(12)]),
        lambda: np.stack(shown).astype(np.float16),
    )
    file = home / "subsample.npz"
    store(drawn, champion, file)
    environment = settings(home, retrain_base_data=file, retrain_epochs=1)
    process = retrain(environment, "run")
    told, log = process.communicate(timeout=600)
    assert process.returncode == 0, told + log
    models = Registry(config(home).models_folder)
    said = models.version(models.aliases()[CHALLENGER]).description
    assert said["data"]["base"] == drawn.of
    assert said["data"]["parts"]["rehearsal"] == {"patients": 12, "NORMAL": 6, "PNEUMONIA": 6}
    assert said["training"]["champion_in_weights"] == 0
    file.write_bytes(file.read_bytes()[:-100])
    process = retrain(environment, "run", "--force")
    told, log = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "is no stored subsample, or damaged" in log


def test_a_changed_schedule_replaces_the_job_and_none_removes_it(home: Path) -> None:
    from training.retrain import JOB, _scheduler

    url = config(home).worklist_url

    def due(**more: object) -> dt.datetime | None:
        worklist = Worklist(url)
        scheduler = _scheduler(config(home, **more), worklist)
        scheduler.shutdown()
        found = worklist.retrainings.scheduled().get(JOB)
        worklist.close()
        return found

    new_year = due(retrain_schedule="0 2 1 1 *")
    assert new_year is not None
    assert (new_year.month, new_year.day, new_year.hour) == (1, 1, 2)
    berlin = due(retrain_schedule="0 2 1 1 *", retrain_time_zone="Europe/Berlin")
    assert berlin is not None
    assert berlin.hour == 1
    assert due() is None


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("retrain_schedule", "every night", "write five cron fields"),
        ("retrain_schedule", "61 2 * * *", "write five cron fields"),
        ("retrain_time_zone", "Moon/Base", "IANA name"),
        ("retrain_promotion", "sometimes", "'person' or 'automatic'"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, setting: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config(tmp_path, **{setting: value})
    assert setting.upper() in str(caught.value)


def test_the_lease_outlives_several_heartbeats() -> None:
    from training.retraining import HEARTBEAT

    assert HEARTBEAT * 3 < LEASE


def test_the_role_keeps_the_schedule_and_ends_with_the_service(home: Path) -> None:
    """`triage serve --roles retrain` starts the program of the package that it does not import."""
    environment = settings(home, retrain_schedule="0 2 1 1 *")
    line = [sys.executable, "-m", "triage", "serve", "--roles", "retrain"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRIAGE_")}
    service = subprocess.Popen(
        line, env={**inherited, **environment}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    worklist = app.worklist(config(home))
    try:
        wait_for(worklist.retrainings.leader, 60.0)
    finally:
        service.terminate()
        service.communicate(timeout=30)
    assert service.returncode == 0
    wait_for(lambda: worklist.retrainings.leader() is None)
    worklist.close()


@pytest.mark.skipif(not ON_RAY, reason="trains once more: make ray")
def test_a_cluster_trains_the_same_challenger_though_its_worker_is_killed(
    killed: Path, tmp_path: Path
) -> None:
    """One epoch comes back, another worker goes on with it; the gate decides here."""
    # Where it was retrained already: each home draws an exam of its own.
    home = Path(shutil.copytree(killed, tmp_path / "home"))
    process = retrain(settings(home), "run", "--force", "--ray", "local")
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        told.append(line)
        if "epoch 2 of 3" in line:
            os.kill(a_trainer(process.pid), signal.SIGKILL)
            break
    _, rest = process.communicate(timeout=900)
    assert process.returncode == 0, rest
    assert "its worker was lost, another goes on" in rest
    assert "epoch 2 of 3" not in rest  # the first is not done again
    found = []
    for place in (killed, home):
        models = Registry(config(place).models_folder)
        version = models.version(models.aliases()[CHALLENGER])
        assert len(models.decisions(version.version)) == 1
        found.append(version)
    here, there = found
    assert there.description["data"]["snapshot"] == here.description["data"]["snapshot"]
    assert there.description["data"]["parts"] == here.description["data"]["parts"]
    assert there.threshold == pytest.approx(here.threshold, abs=0.02)
    if len(os.sched_getaffinity(0)) >= config(home).retrain_threads:  # as many there as here
        assert file_hash(there.folder / "model.bin") == file_hash(here.folder / "model.bin")


def a_trainer(parent: int) -> int:
    """The process of the cluster's worker that trains, below one."""
    told = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in told.stdout.splitlines()]
    below = {parent}
    for _ in range(8):
        below |= {int(row[0]) for row in rows if int(row[1]) in below}
    return next(int(row[0]) for row in rows if int(row[0]) in below and "ray::Worker" in row[2])
