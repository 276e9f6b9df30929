"""One retraining: readings, snapshot, challenger, gate, registry. Killed anywhere, it goes on.

Every step can be done again: the cutoff is kept with the run, so the same readings give the same
snapshot; the folder that is worked in is named after all that the result depends on; a finished
version is entered once and decided on once. What is whole is moved to where it belongs, and
nothing else is.
"""

import datetime as dt
import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from training.dataset import CLASSES, Snapshot
from training.gate import Contender, Exam, Policy, decide, figures
from training.rehearsal import Rehearsal, rehearsal
from training.snapshots import SiteSnapshot, arrays, take
from triage import app
from triage.config import Config
from triage.errors import DataError, ModelError, ServiceError, TriageError, WorklistError
from triage.network import Network
from triage.registry import CHALLENGER, PROVEN, SHADOW, ModelVersion, Registry
from triage.worklist import Worklist
from triage.worklist.retrainings import LEASE, RetrainingRecord, RetrainingState

if TYPE_CHECKING:
    from training.challenger import Lesson, Settings

WHO = "triage-retrain"
"""In the registry's history."""

HEARTBEAT = LEASE / 6
SEED = 1

LOST = 75
"""Exit status of a process whose run another one has taken over."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a retraining would start from, and why it would not start.

    Attributes
    ----------
    new_readings : int
        Since the last challenger's cutoff.
    snapshot : SiteSnapshot or None
        None if it was not worth taking.
    obstacle : str
        Empty if there is none.
    """

    new_readings: int
    snapshot: SiteSnapshot | None
    obstacle: str


def ran(config: Config, trigger: str, *, forced: bool = False, anew: bool = True) -> str | None:
    """Retrain, or go on with the retraining whose process died.

    Parameters
    ----------
    config : Config
    trigger : str
        ``command`` or ``schedule``.
    forced : bool
        Train though there are few new readings or the exam is too small to prove anything.
    anew : bool
        Whether one is begun if there is none to go on with.

    Returns
    -------
    str or None
        What came of it, in one line; None if there was none to go on with.

    Raises
    ------
    TriageError
        It broke; the run says so, too.
    """
    log = structlog.get_logger("retrain")
    with app.part_name(config, "retrain") as holder:
        worklist = app.worklist(config)
        try:
            run = worklist.retrainings.start(holder, trigger, forced=forced, anew=anew)
            if run is None:
                other = worklist.retrainings.running()
                if other is None:
                    return None
                told = (
                    f"nothing done: retraining {other.id} runs already, on {other.holder} since "
                    f"{other.started_at:%Y-%m-%d %H:%M} UTC ({other.stage})"
                )
                log.info("nothing done", action="retraining_runs_already", retraining=other.id)
                return told
            log.info(
                "retraining",
                action="retraining_started",
                retraining=run.id,
                attempt=run.attempts,
                trigger=run.trigger,
            )
            with _alive(worklist, holder, run):
                # Of this thread and those that it starts; the one that renews the lease goes on
                # as it was, or a busy machine would look like a dead process.
                _give_way(config.retrain_nice)
                return _Job(config, worklist, holder, run).ended()
        finally:
            worklist.close()


def outlook(
    config: Config, worklist: Worklist, cutoff: dt.datetime | None, *, forced: bool
) -> Outlook:
    """What a retraining would start from. Takes the snapshot only if nothing speaks against it."""
    # What a person wrote is found wrong before anything is trained.
    policy_of(config)
    _lines(config.retrain_locked)
    for data, fits in (
        (config.retrain_base_data, Path.exists),
        (config.retrain_reference, Path.is_dir),
    ):
        if data is not None and not fits(data):
            raise DataError(
                f"{data} is not there or no folder: name one with train/NORMAL, train/PNEUMONIA"
            )
    last = worklist.retrainings.last(RetrainingState.DONE)
    number = worklist.retrainings.new_readings(None if last is None else last.cutoff)
    if number < config.retrain_after_readings and not forced:
        return Outlook(
            number,
            None,
            f"too few new readings: {number}, {config.retrain_after_readings} are wanted "
            "(TRIAGE_RETRAIN_AFTER_READINGS)",
        )
    shadow = app.registry(config).aliases().get(SHADOW)
    if shadow is not None and not forced:
        return Outlook(
            number,
            None,
            f"the proven challenger {shadow} waits in shadow: approve it, or take another with "
            "--force",
        )
    snapshot = take(worklist, app.pictures(config), cutoff, config.exam_share)
    return Outlook(number, snapshot, _obstacle(config, snapshot, last, forced=forced))


def _obstacle(
    config: Config, snapshot: SiteSnapshot, last: RetrainingRecord | None, *, forced: bool
) -> str:
    """Why a snapshot cannot, or need not, be trained on; empty if it can."""
    counts = snapshot.counts()
    for part in ("train", "validation"):
        for name in CLASSES:
            if not counts[part][name]:
                return f"the {part} part has no label of class {name}: wait for readings of it"
    if forced:
        return ""
    if last is not None and last.snapshot == snapshot.digest:
        return f"nothing new: retraining {last.id} was on the same labels"
    wanted = policy_of(config).site
    for kind, label, least in (
        ("diseased", 1, wanted.least_diseased),
        ("healthy", 0, wanted.least_healthy),
    ):
        there = len(np.unique(snapshot.patients("exam")[snapshot.labels("exam") == label]))
        if there < least:
            return (
                f"the site exam is too small to prove anything: {there} {kind} patients, {least} "
                "are needed; it grows with the readings (--force trains all the same)"
            )
    return ""


def policy_of(config: Config) -> Policy:
    """The site's policy for the gate."""
    return Policy() if config.retrain_policy is None else Policy.read(config.retrain_policy)


class _Job:
    """A run that this process holds."""

    def __init__(
        self, config: Config, worklist: Worklist, holder: str, run: RetrainingRecord
    ) -> None:
        self._config, self._worklist, self._holder, self._run = config, worklist, holder, run
        self._registry = app.registry(config)
        self._log = structlog.get_logger("retrain").bind(retraining=run.id)

    def ended(self) -> str:
        """Do it, and record how it ended; in one line."""
        try:
            state, told = self._do()
        except TriageError as error:
            self._end(RetrainingState.FAILED, str(error))
            raise
        except (OSError, MemoryError) as error:
            told = f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'out of memory'}"
            self._end(RetrainingState.FAILED, told)
            raise ServiceError(f"retraining {self._run.id} broke: {told}") from error
        except Exception as error:
            self._end(RetrainingState.FAILED, f"internal error: {type(error).__name__}")
            raise
        self._end(state, told)
        return told if state is RetrainingState.DONE else f"nothing done: {told}"

    def _do(self) -> tuple[RetrainingState, str]:
        run = self._run
        self._is_at("looking at readings")
        found = outlook(self._config, self._worklist, run.cutoff, forced=run.forced)
        if found.obstacle or found.snapshot is None:
            return RetrainingState.NOTHING, found.obstacle
        champion = self._registry.champion()
        snapshot = found.snapshot
        snapshot.write(self._config.snapshots_folder / snapshot.digest.removeprefix("sha256:"))
        self._is_at("reading pictures", snapshot=snapshot.digest, champion=champion.version)
        rehearsed = self._rehearsed(champion)
        model = self._trained(champion, snapshot, rehearsed)
        self._is_at("asking the gate", version=model.version)
        model = self._registry.add(model.folder)
        if not self._known(model):
            self._registry.name(CHALLENGER, model.version, who=WHO, why=f"retraining {run.id}")
        outcome, told = self._decided(champion, model, snapshot, rehearsed)
        self._is_at("recording", outcome=outcome)
        return RetrainingState.DONE, told

    def _trained(
        self, champion: ModelVersion, snapshot: SiteSnapshot, rehearsed: Rehearsal | None
    ) -> ModelVersion:
        """The challenger, from the folder of this run; other folders are of no more use."""
        config = self._config
        # TensorFlow takes seconds to import.
        from training import challenger

        settings = challenger.Settings(config.retrain_epochs, config.retrain_pictures, SEED)
        place = (
            config.retrainings_folder
            / str(self._run.id)
            / _name(champion, snapshot, rehearsed, settings)
        )
        with suppress(FileNotFoundError):
            for other in config.retrainings_folder.iterdir():
                if other != place.parent:
                    shutil.rmtree(other, ignore_errors=True)
        lesson = _lesson(config, snapshot, rehearsed)
        if not config.retrain_ray:
            return challenger.train(champion, lesson, place, settings, self._is_at)
        return challenger.train_on_cluster(
            config.retrain_ray,
            config.retrain_threads,
            champion,
            lesson,
            place,
            settings,
            self._is_at,
        )

    def _rehearsed(self, champion: ModelVersion) -> Rehearsal | None:
        data = self._config.retrain_base_data
        if data is None:
            return None
        root = _root(self._registry, champion)
        return rehearsal(data, root, self._config.retrain_pictures, SEED)

    def _known(self, model: ModelVersion) -> bool:
        return model.version in self._registry.aliases().values()

    def _decided(
        self,
        champion: ModelVersion,
        model: ModelVersion,
        snapshot: SiteSnapshot,
        rehearsed: Rehearsal | None,
    ) -> tuple[str, str]:
        """Let the gate decide, once, and do what follows; its outcome, and all in one line."""
        before = [
            d for d in self._registry.decisions(model.version) if d.champion == champion.version
        ]
        stored = before[-1] if before else None
        if stored is None:
            site, reference = self._exams(champion, model, snapshot)
            from training.gate_report import report

            policy = policy_of(self._config)
            seen = snapshot.trained_on
            if rehearsed is not None:
                seen |= frozenset(rehearsed.patients.tolist())
            decision = decide(
                figures(
                    Contender(champion.version, champion.threshold, None),
                    Contender(model.version, model.threshold, seen),
                    site,
                    reference,
                    snapshot.locked | _lines(self._config.retrain_locked),
                    policy,
                ),
                policy,
            )
            now = dt.datetime.now(dt.UTC)
            self._is_at("recording")
            stored = self._registry.decided(
                decision.as_json(now).encode("utf-8"),
                report(decision, site, reference, now).encode("utf-8"),
                WHO,
            )
        told = f"{model.version}: {stored.outcome}; {stored.path.with_suffix('.html')}"
        if stored.outcome != PROVEN:
            return stored.outcome, told
        if self._registry.aliases().get(SHADOW) != model.version:
            self._registry.shadow(model.version, who=WHO, why=f"retraining {self._run.id}")
        if self._config.retrain_promotion == "automatic":
            return stored.outcome, f"{told}; {promoted(self._config, model.version)}"
        return stored.outcome, f"{told}; it scores in shadow until a person approves it"

    def _exams(
        self,
        champion: ModelVersion,
        model: ModelVersion,
        snapshot: SiteSnapshot,
    ) -> tuple[Exam, Exam | None]:
        networks = Network(champion), Network(model)
        pictures = arrays(snapshot, "exam", app.pictures(self._config))
        old, new = (
            np.array([network.score(array.astype(np.float32)).probability for array in pictures])
            for network in networks
        )
        site = snapshot.exam(old, new)
        reference = self._reference(champion)
        if reference is None:
            return site, None
        from training.exam import score

        return site, score(reference, *networks)

    def _reference(self, champion: ModelVersion) -> Snapshot | None:
        """The base data that were held out: a folder of their own, or what training left."""
        from training.dataset import read_folder

        if self._config.retrain_reference is not None:
            return read_folder(self._config.retrain_reference)
        data = self._config.retrain_base_data
        if data is None or data.is_file():
            return None
        whole = read_folder(data)
        seen = rehearsal(data, _root(self._registry, champion), len(whole.cases), SEED)
        patients = set(seen.patients.tolist())
        held_out = tuple(case for case in whole.cases if case.patient not in patients)
        return Snapshot(held_out) if held_out else None

    def _is_at(self, stage: str, **found: str) -> None:
        """Say how far it is; ends the process if another has taken the run over."""
        self._log.info(stage, action="retraining_is_at", **found)
        if not self._worklist.retrainings.renew(self._holder, self._run.id, stage=stage, **found):
            _lost(self._run.id)

    def _end(self, state: RetrainingState, reason: str) -> None:
        if not self._worklist.retrainings.end(self._holder, self._run.id, state, reason):
            _lost(self._run.id)
        shutil.rmtree(self._config.retrainings_folder / str(self._run.id), ignore_errors=True)
        level = self._log.error if state is RetrainingState.FAILED else self._log.info
        level(
            reason,
            action="retraining_ended",
            state=state.value,
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_000,
        )


def promoted(config: Config, version: str) -> str:
    """Approve and promote a proven version without a person; what came of it, in one line."""
    why = "TRIAGE_RETRAIN_PROMOTION is automatic"
    log = structlog.get_logger("retrain")
    try:
        app.approve(config, version, WHO, why, force=False)
        app.promote(config, version, WHO, why)
    except ModelError as error:
        log.info("not promoted yet", action="retraining_not_promoted", version=version)
        return f"not promoted yet: {error}"
    log.warning("promoted, no person asked", action="retraining_promoted", version=version)
    return f"promoted, and no person was asked: {why}"


def _name(
    champion: ModelVersion,
    snapshot: SiteSnapshot,
    rehearsed: Rehearsal | None,
    settings: "Settings",
) -> str:
    """Of a folder: all that the challenger depends on."""
    content = [
        champion.version,
        snapshot.digest,
        None if rehearsed is None else rehearsed.digest,
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def _lesson(config: Config, snapshot: SiteSnapshot, rehearsed: Rehearsal | None) -> "Lesson":
    from training import challenger

    def part(name: Any) -> challenger.Pictures:
        return challenger.Pictures(
            arrays(snapshot, name, app.pictures(config)),
            snapshot.labels(name),
            snapshot.weights(name),
            snapshot.patients(name),
        )

    shown = None
    if rehearsed is not None:
        shown = challenger.Pictures(
            rehearsed.arrays(),
            rehearsed.labels,
            np.ones(len(rehearsed.labels)),
            rehearsed.patients,
        )
    used = [case.label for case in snapshot.cases]
    told = {
        "cutoff": snapshot.cutoff.isoformat(timespec="seconds"),
        # Numbers, no names: a version may travel, the manifest stays.
        "readings": sum(len(label.readings) for label in used),
        "readers": len({reader for label in used for reader in label.readers}),
        "exam": snapshot.counts()["exam"],
        "left_out": dict(snapshot.left_out),
        "base": None if rehearsed is None else rehearsed.of,
    }
    return challenger.Lesson(snapshot.digest, part("train"), part("validation"), shown, told)


def _root(registry: Registry, model: ModelVersion) -> ModelVersion:
    """The version that was trained on base data, which a retrained one descends from."""
    while "readings" in model.description["data"]:
        model = registry.version(str(model.description["parent"]))
    return model


def _lines(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from error
    return frozenset(line.strip() for line in lines if line.strip())


@contextmanager
def _alive(worklist: Worklist, holder: str, run: RetrainingRecord) -> Iterator[None]:
    """Renew the lease while something lasts; give it back if it is broken off."""
    over = threading.Event()
    log = structlog.get_logger("retrain")

    def renew() -> None:
        while not over.wait(HEARTBEAT.total_seconds()):
            try:
                if not worklist.retrainings.renew(holder, run.id) and not over.is_set():
                    _lost(run.id)
            except WorklistError as error:
                # If it lasts, the lease ends, and the next renewal says so.
                log.warning(str(error), action="retraining_not_renewed", retraining=run.id)

    thread = threading.Thread(target=renew, name="retraining-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        # Of a run that has ended there is nothing to give back.
        with suppress(WorklistError):
            worklist.retrainings.give_up(holder)


def _lost(number: int) -> None:
    """End at once: another process has taken the run over, and may be at the same files."""
    structlog.get_logger("retrain").error(
        "another process has taken this retraining over",
        action="retraining_lost",
        retraining=number,
    )
    os._exit(LOST)


def _give_way(niceness: int) -> None:
    """Let everything else go first; 19 also computes, reads and writes in idle times (Linux)."""
    with suppress(OSError):
        os.nice(max(0, niceness - os.nice(0)))
    if niceness == 19:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
