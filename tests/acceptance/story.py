"""The loop as a whole, on real radiographs: ``python -m tests.acceptance.story --data DIR``.

A site whose images differ begins with the bundled champion, which judges them worse. Its
radiologists read; ``triage-retrain`` makes a challenger that the gate proves better; it scores
in shadow; a person approves it; running workers follow; the next exams are judged better; and
``rollback`` brings the old scores back exactly. Real processes, real C-STORE, real commands.

Whoever sends is a patient that the champion never saw. What is simulated is the site's way of
making images (:func:`as_at_the_site`) and the readers: they say the published label, but for
one reading in twenty, which they get wrong on purpose.
"""

import csv
import datetime as dt
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jinja2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image
from pydicom import dcmread

from sample_dicom.draw import Exam, as_dx, write
from tests.conftest import ROOT, Service, free_port, wait_for
from training.dataset import Case, read_folder
from training.evaluate import Figure, auc, resampled
from training.gate_report import COLOURS
from training.paired import Difference, difference_of_aucs, roc
from training.rehearsal import rehearsal
from triage.app import BUNDLED
from triage.network import Network
from triage.pixels import normalize, normalize_file
from triage.registry import CHAMPION, ModelVersion, Registry
from triage.scoring import Verdict
from triage.send import send
from triage.worklist import State, WorklistItem
from triage.worklist.readings import UNDO, Said

WRONG = 0.05
"""Share of readings that are wrong on purpose."""

READERS, THIRD_READER = ("dr-adams", "dr-baker"), "dr-clark"

SIDE = 448
"""Pixels of the site's images."""

LINES, DEPTH = 7.0 / 256, 0.3
"""The grid's shadow: a period as a share of the width, and its amplitude."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is told: half of each number is diseased.

    Attributes
    ----------
    readings, shadow, after : int
        Exams that are read, that come while the challenger is in shadow, that come once it is
        champion.
    pictures, epochs, nice : int
        Of the retraining.
    policy : str
        Of the gate, TOML. With 75 diseased in the exam even two lost ones rule out no loss of 0.05.
    """

    readings: int = 300
    shadow: int = 40
    after: int = 140
    pictures: int = 1_000
    epochs: int = 4
    nice: int = 19
    policy: str = "[site]\nsensitivity_margin = 0.10\n"


def as_at_the_site(picture: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """A radiograph as this site makes it.

    An old portable with a stationary grid in front of a coarse plate: the grid's lines alias
    into stripes over the whole picture, the plate resolves a seventh of what it should, the
    tube is run low, so that the picture is dark and noisy.

    Parameters
    ----------
    picture : ndarray of float64, shape (rows, columns), 0 to 1
    seed : int
        Of the noise.

    Returns
    -------
    ndarray of float64, shape (448, 448), 0 to 1
    """
    dark = 0.05 + 0.85 * np.clip(picture, 0.0, 1.0) ** 1.6
    coarse = Image.fromarray(np.rint(dark * 255).astype(np.uint8)).resize(
        (64, 64), Image.Resampling.BOX
    )
    wide = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) / 255
    noise = np.random.default_rng(seed).standard_normal((SIDE // 2, SIDE // 2))
    grain = 0.12 * noise.repeat(2, 0).repeat(2, 1)
    stripes = DEPTH * np.sin(2 * np.pi * np.arange(SIDE) / (LINES * SIDE))
    return np.clip(wide + grain + stripes, 0.0, 1.0)


def patients_of(data: Path, champion: ModelVersion) -> dict[int, list[Case]]:
    """One radiograph of each patient that a version never saw, by label, in a drawn order.

    Raises
    ------
    DataError
        The version was trained on other data, or on everybody.
    """
    whole = read_folder(data)
    seen = set(rehearsal(data, champion, len(whole.cases), 1).patients.tolist())
    first = {case.patient: case for case in whole.cases if case.patient not in seen}
    found: dict[int, list[Case]] = {0: [], 1: []}
    for case in first.values():
        found[case.label].append(case)
    for cases in found.values():
        random.Random(1).shuffle(cases)
    return found


@dataclass
class Telling:
    """What is known so far, and what the report is drawn from."""

    champion: str = ""
    challenger: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    unchanged: Figure | None = None
    before: Figure | None = None
    second: int = 0
    disputes: int = 0
    wrong_labels: list[int] = field(default_factory=lambda: [0, 0])
    """Of exams called healthy and of exams called diseased, once disputes were settled."""
    outcome: str = ""
    decision: Mapping[str, Any] = field(default_factory=dict)
    shadow: Mapping[str, Any] = field(default_factory=dict)
    latency: dict[str, list[float]] = field(default_factory=dict)
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    old: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    new: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    thresholds: tuple[float, float] = (0.5, 0.5)
    forgotten: tuple[Figure, Figure] | None = None
    after: Difference | None = None
    line: list[tuple[float, int, float]] = field(default_factory=list)
    """Seconds since the beginning, label and score of each exam."""
    moments: dict[str, float] = field(default_factory=dict)
    rolled_back: int = 0
    scores_of_one_version: int = 0


class Story:
    """A site, from its first exam to the rollback.

    Parameters
    ----------
    data : Path
        The published layout.
    folder : Path
        For home and images.
    scale : Scale
    """

    def __init__(self, data: Path, folder: Path, scale: Scale) -> None:
        self._scale, self._folder, self._data = scale, folder, data
        version = max(BUNDLED.glob("*/model.json")).parent
        self._champion = ModelVersion.load(version)
        self._cases = patients_of(data, self._champion)
        self._numbers: dict[str, Case] = {}
        self._people: dict[str, int] = {}
        self._came: list[str] = []
        policy = folder / "policy.toml"
        policy.write_text(scale.policy)
        self.service = Service(
            folder / "home",
            free_port(),
            {
                # A site that has just begun reads everything blind.
                "TRIAGE_BLIND_SAMPLE": "1",
                "TRIAGE_EXAM_SHARE": "0.5",
                "TRIAGE_RETRAIN_AFTER_READINGS": str(scale.readings),
                "TRIAGE_RETRAIN_POLICY": str(policy),
                "TRIAGE_RETRAIN_PICTURES": str(scale.pictures),
                "TRIAGE_RETRAIN_EPOCHS": str(scale.epochs),
                "TRIAGE_RETRAIN_NICE": str(scale.nice),
                "TRIAGE_SHADOW_EXAMS": str(int(scale.shadow * 0.9)),
            },
        )
        self.told = Telling(champion=self._champion.version)
        self._began = time.monotonic()

    def tell(self) -> Telling:
        """All of it; fails where a chapter does not end as it must."""
        self.service.start()
        try:
            with self._chapter("begins with the bundled champion"):
                first = self._begins()
            with self._chapter("is read"):
                self._is_read(first)
            with self._chapter("retrains"):
                self._retrains()
            with self._chapter("shadow"):
                self._shadow()
            with self._chapter("switches"):
                after = self._switches()
            with self._chapter("is better"):
                self._is_better(after)
            with self._chapter("rolls back"):
                self._rolls_back(first)
        finally:
            self.service.stop()
        return self.told

    @contextmanager
    def _chapter(self, name: str) -> Iterator[None]:
        click.echo(f"{time.monotonic() - self._began:6.0f} s  {name}", err=True)
        began = time.monotonic()
        self.told.moments[name] = began - self._began
        yield
        self.told.seconds[name] = time.monotonic() - began

    def _drawn(self, number: int) -> list[Case]:
        """The next patients, diseased and healthy in turn."""
        found = [self._cases[index % 2].pop() for index in range(number)]
        random.Random(len(self._numbers)).shuffle(found)
        return found

    def _files(self, cases: Sequence[Case], seed: int = 1) -> list[Path]:
        """Their radiographs as the site's console sends them; another seed has other UIDs."""
        made = []
        for case in cases:
            number = self._people.setdefault(case.patient, len(self._people) + 1)
            with Image.open(case.path) as image:
                grey = np.asarray(image.convert("L"), np.float64) / 255.0
            picture = as_at_the_site(grey, number)
            exam = Exam(number, age=1 + number % 5, sex="FM"[number % 2], seed=seed)
            dataset = as_dx(picture, exam, view="AP", bits=12)
            target = self._folder / f"{number:05}-{seed}.dcm"
            write(dataset, target)
            made.append(target)
            self._numbers[str(dataset.SOPInstanceUID)] = case
        return made

    def _sent(self, files: Sequence[Path], pause: float = 0.0) -> list[WorklistItem]:
        """Send and wait; the items in the order of the files."""
        if pause:
            for file in files:
                list(send([file], self.service.destination))
                time.sleep(pause)
        else:
            list(send(list(files), self.service.destination))
        uids = [str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]
        self._came += uids
        worklist = self.service.worklist()
        try:
            wait_for(lambda: not worklist.counts()[State.RECEIVED], seconds=300)
            items = [worklist.item(uid) for uid in uids]
        finally:
            worklist.close()
        for item in items:
            at = item.received_at.timestamp() - dt.datetime.now(dt.UTC).timestamp()
            if item.score is not None:
                when = time.monotonic() - self._began + at
                label = self._numbers[item.sop_instance_uid].label
                self.told.line.append((when, label, item.score))
        return items

    def _triage(self, *arguments: str) -> str:
        done = self.service.triage(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _begins(self) -> list[Path]:
        cases = self._drawn(self._scale.readings)
        files = self._files(cases)
        items = self._sent(files)
        scored = [item for item in items if item.state is State.SCORED]
        assert len(scored) == len(items), "the site's images are taken for chest radiographs"
        labels = np.array([case.label for case in cases])
        self.told.before = _area(labels, np.array([item.score for item in items]))
        network = Network(self._champion)
        self.told.unchanged = _area(labels, _judged(network, cases))
        self._cases_read = cases
        return files

    def _is_read(self, files: Sequence[Path]) -> None:
        """Each by one of two readers; what is confirmed by the other, too; disputes by a third.

        One reading in twenty is wrong, whoever reads.
        """
        chance = random.Random(2)
        uids = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]

        def says(uid: str) -> Verdict:
            right = chance.random() >= WRONG
            return "confirmed" if (self._numbers[uid].label == 1) == right else "rejected"

        first = {uid: (says(uid), chance.choice(READERS)) for uid in uids}
        self._import("first.csv", first)
        second = {
            uid: (says(uid), READERS[1 - READERS.index(reader)])
            for uid, (verdict, reader) in first.items()
            if verdict == "confirmed"
        }
        self._import("second.csv", second)
        worklist = self.service.worklist()
        try:
            for uid, (verdict, _) in second.items():
                if verdict != first[uid][0]:
                    settled = Said(says(uid), THIRD_READER, adjudicates=True)
                    worklist.readings.add(uid, settled)
                    self.told.disputes += 1
            stands = [worklist.item(uid).state is State.CONFIRMED for uid in uids]
        finally:
            worklist.close()
        self.told.second = len(second)
        for uid, confirmed in zip(uids, stands, strict=True):
            wrong = confirmed != (self._numbers[uid].label == 1)
            self.told.wrong_labels[int(confirmed)] += wrong
        # No reading counts before its reader can no longer take it back.
        time.sleep(UNDO.total_seconds() + 1)

    def _import(self, name: str, said: Mapping[str, tuple[Verdict, str]]) -> None:
        table = self._folder / name
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sop_instance_uid", "verdict", "reader", "comment"])
            rows.writerows([uid, verdict, reader, ""] for uid, (verdict, reader) in said.items())
        self._triage("readings", "import", str(table))

    def _retrains(self) -> None:
        """While exams go on coming; their latency is compared with the one before."""
        again = [self._files(self._cases_read[:60], seed=seed) for seed in (2, 3)]
        self.told.latency["alone"] = _latencies(self._sent(again[0][:30], pause=0.5))
        environment = self.service.environment
        with subprocess.Popen(
            [sys.executable, "-m", "training.retrain", "run"],
            env=environment,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as job:
            during: list[float] = []
            queue = [*again[0][30:], *again[1]]
            while job.poll() is None and queue:
                during += _latencies(self._sent([queue.pop(0)], pause=0.5))
            said, _ = job.communicate()
        self.told.latency["while retraining"] = during
        runs = json.loads(self._retrain("status", "--json"))
        assert runs[0]["state"] == "DONE", runs[0]["reason"]
        self.told.outcome, self.told.challenger = runs[0]["outcome"], runs[0]["version"]
        registry = self._registry()
        stored = registry.decisions(self.told.challenger)[-1]
        self.told.decision = stored.content
        assert stored.outcome == "PROVEN", (said, _failed(stored.content))

    def _retrain(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "training.retrain", *arguments],
            env=self.service.environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _registry(self) -> Registry:
        return Registry(self.service.home / "models")

    def _shadow(self) -> None:
        early = self.service.triage("models", "approve", self.told.challenger)
        assert early.returncode == 1, "nobody approves before the shadow has run"
        items = self._sent(self._files(self._drawn(self._scale.shadow)))
        assert {item.model_version for item in items} == {self.told.champion}

        def seen() -> Mapping[str, Any]:
            return dict(json.loads(self._triage("models", "shadow", "--json")))

        wait_for(lambda: seen()["exams"] >= len(items), seconds=300)
        self.told.shadow = seen()

    def _switches(self) -> list[Path]:
        """Approved and promoted while exams come in."""
        why = "the gate's report and the shadow were looked at"
        self._triage("models", "approve", self.told.challenger, "--why", why)
        half = self._files(self._drawn(20))
        thread_files = self._files(self._drawn(self._scale.after - 20))
        list(send(half[:10], self.service.destination))
        self._triage("models", "promote", self.told.challenger)
        self.told.moments["promoted"] = time.monotonic() - self._began
        time.sleep(5)
        items = self._sent([*half[10:], *thread_files])
        assert {item.model_version for item in items} == {self.told.challenger}
        self._scores_are_single()
        return [*half[10:], *thread_files]

    def _scores_are_single(self) -> None:
        worklist = self.service.worklist()
        try:
            scored = [worklist.item(uid) for uid in self._came]
            made = [
                sum(event.action == "SCORED" for event in worklist.journal(uid))
                for uid in self._came
            ]
        finally:
            worklist.close()
        assert set(made) == {1}
        assert {item.model_version for item in scored} <= {self.told.champion, self.told.challenger}
        self.told.scores_of_one_version = len(scored)

    def _is_better(self, files: Sequence[Path]) -> None:
        """The same exams by both: as they were scored, and by the champion before."""
        registry = self._registry()
        new = registry.version(self.told.challenger)
        champion, challenger = Network(self._champion), Network(new)
        arrays = [normalize(dcmread(file)).array for file in files]
        cases = [
            self._numbers[str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)]
            for file in files
        ]
        told = self.told
        told.labels = np.array([case.label for case in cases])
        told.old = np.array([champion.score(array).probability for array in arrays])
        told.new = np.array([challenger.score(array).probability for array in arrays])
        told.thresholds = self._champion.threshold, new.threshold
        ones = np.ones(len(cases))
        told.after = difference_of_aucs(
            told.labels, told.old, told.new, np.array([c.patient for c in cases]), ones, 0.95
        )
        told.forgotten = (
            _area(told.labels, _judged(champion, cases)),
            _area(told.labels, _judged(challenger, cases)),
        )
        assert told.after.low > 0, "the next exams are judged better"

    def _rolls_back(self, first: Sequence[Path]) -> None:
        """What was sent in the beginning is sent again, and has the very same scores."""
        self._triage("models", "rollback", "--why", "to see that it goes back")
        time.sleep(5)
        cases = self._cases_read[:20]
        again = self._sent(self._files(cases, seed=9))
        worklist = self.service.worklist()
        try:
            uids = [str(dcmread(f, stop_before_pixels=True).SOPInstanceUID) for f in first[:20]]
            before = [worklist.item(uid) for uid in uids]
        finally:
            worklist.close()
        assert self._registry().aliases()[CHAMPION] == self.told.champion
        for old, new in zip(before, again, strict=True):
            assert (new.score, new.threshold, new.model_version) == (
                old.score,
                old.threshold,
                old.model_version,
            )
        self.told.rolled_back = len(again)


def _failed(decision: Mapping[str, Any]) -> list[str]:
    return [
        f"{rule['name']}: {rule['verdict']} ({rule['reason']})"
        for rule in decision["rules"]
        if rule["verdict"] not in {"PASSED", "NOT_ASKED"}
    ]


def _latencies(items: Sequence[WorklistItem]) -> list[float]:
    """Seconds from Success to SCORED."""
    return [
        (item.scored_at - item.received_at).total_seconds()
        for item in items
        if item.scored_at is not None
    ]


def _judged(network: Network, cases: Sequence[Case]) -> npt.NDArray[np.float64]:
    """Of the radiographs as they were published."""
    return np.array([network.score(normalize_file(case.path)).probability for case in cases])


def _area(labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> Figure:
    whose = np.arange(len(labels)).astype(str)
    found = resampled({"auc": lambda y, p: auc(y, p[:, 0])}, labels, scores[:, None], whose, 1, 500)
    return found["auc"]


def drawn(told: Telling, folder: Path) -> list[Path]:
    """The report's plots."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, draw, size in (
        ("story-curves", _curves, (9.0, 4.2)),
        ("story-timeline", _timeline, (9.0, 4.2)),
    ):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas, told)
        path = folder / f"{name}.png"
        canvas.savefig(path, dpi=110)
        made.append(path)
    return made


def _curves(canvas: Canvas, told: Telling) -> None:
    left, right = canvas.subplots(1, 2)
    ones = np.ones(len(told.labels))
    for name, scores in (("champion", told.old), ("challenger", told.new)):
        x, y = roc(told.labels, scores, ones)
        area = auc(told.labels, scores)
        left.plot(x, y, color=COLOURS[name], label=f"{name}, AUC {area:.3f}")
    left.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.8)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="The next exams of the site")
    left.legend(loc="lower right", frameon=False)
    _histograms(right, told)


def _histograms(axes: Axes, told: Telling) -> None:
    edges = np.linspace(0, 1, 21)
    for name, scores in (("champion", told.old), ("challenger", told.new)):
        for label, style in ((0, "dotted"), (1, "solid")):
            counts, _ = np.histogram(scores[told.labels == label], edges)
            axes.stairs(
                counts,
                edges,
                color=COLOURS[name],
                linestyle=style,
                label=f"{name}, {'pneumonia' if label else 'normal'}",
            )
    axes.set(xlabel="score", ylabel="exams", title="Scores")
    axes.legend(frameon=False, fontsize=8)


def _timeline(canvas: Canvas, told: Telling) -> None:
    axes = canvas.subplots()
    for label, colour, name in ((0, "#777777", "normal"), (1, "#d55e00", "pneumonia")):
        rows = [(at / 60, score) for at, each, score in told.line if each == label]
        axes.scatter(*zip(*rows, strict=True), s=7, color=colour, label=name, alpha=0.6)
    for number, (name, at) in enumerate(sorted(told.moments.items(), key=lambda each: each[1])):
        axes.axvline(at / 60, color="#bbbbbb", linewidth=0.8)
        axes.text(at / 60, 1.03 + 0.07 * (number % 3), name, fontsize=7, va="bottom")
    axes.set(xlabel="minutes", ylabel="score", ylim=(-0.03, 1.25))
    axes.legend(loc="center left", frameon=False)


def written(told: Telling, scale: Scale, load: float) -> str:
    """The story as a document, Markdown."""
    alone, during = (float(np.median(told.latency[n])) for n in ("alone", "while retraining"))
    champion, challenger = (
        {
            "auc": auc(told.labels, scores),
            "sensitivity": float(np.mean(scores[told.labels == 1] >= threshold)),
            "specificity": float(np.mean(scores[told.labels == 0] < threshold)),
        }
        for scores, threshold in zip((told.old, told.new), told.thresholds, strict=True)
    )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    template = environment.from_string(Path(__file__).with_name("story.md.jinja").read_text())
    return template.render(
        told=told,
        scale=scale,
        load=load,
        alone=1000 * alone,
        during=1000 * during,
        champion=champion,
        challenger=challenger,
        of=_figure,
    )


def _figure(figure: Figure) -> str:
    return f"{figure.value:.3f} | {figure.low:.3f} to {figure.high:.3f}"


DATA = Path(os.environ.get("CXR_DATA", ROOT.parent / "shared" / "data" / "kermany"))
"""Where the radiographs are, unless told otherwise."""


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=DATA)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "docs",
    help="Folder for story.md and pictures/.",
)
def main(data: Path, out: Path) -> None:
    """Tell the story and write it down."""
    scale = Scale()
    with tempfile.TemporaryDirectory() as folder:
        told = Story(data, Path(folder), scale).tell()
    drawn(told, out / "pictures")
    (out / "story.md").write_text(written(told, scale, os.getloadavg()[0]), "utf-8")
    click.echo(f"the story is in {out / 'story.md'}")


if __name__ == "__main__":
    main()
