"""The study as a user starts it: real processes on small drawn data."""

import contextlib
import html.parser
import io
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_dicom.draw import chest
from training.__main__ import main
from training.dataset import CLASSES, read_folder
from training.networks import build
from training.study import MODELS, copies_of_smaller_class, sample
from triage.errors import DataError

COUNTS = {
    "base_model": 6_562_669,
    "base_cnn": 1_811_403,
    "reg_cnn": 1_811_403,
    "reduced_nodes": 453_212,
    "dropout": 453_212,
    "final_model": 304_082,
}
"""The notebook's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each of seven normal patients, two of each of eight with pneumonia."""
    root = tmp_path_factory.mktemp("data")
    for label, class_name in enumerate(CLASSES):
        (root / "train" / class_name).mkdir(parents=True)
        for patient in range(7 + label):
            for number in range(1 + label):
                seed = 100 * label + 10 * patient + number
                picture = chest(seed, opacity=0.9 * label, shape=(140, 116))
                name = f"person{patient}_virus_{number}" if label else f"IM-{patient:04}-0001"
                grey = np.rint(picture * 255).astype(np.uint8)
                Image.fromarray(grey).save(root / "train" / class_name / f"{name}.jpeg")
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """Of a quick study."""
    return ["study", "--data", str(data), "--out", str(out), "--quick", *more]


def study(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m training study --quick``."""
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments(data, out, *more)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@dataclass(frozen=True)
class Interrupted:
    """A study that was killed once, and then ran to its end."""

    out: Path
    trained_before: bytes
    epochs_before: int
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def interrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Killed in the second model, after its first epoch."""
    out = tmp_path_factory.mktemp("interrupted") / "study"
    second = out / "base_cnn" / "history.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *arguments(folder, out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not second.exists():
        assert process.poll() is None, "it ended before the second model's first epoch"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    trained = (out / "base_model" / "result.json").read_bytes()
    epochs = len(json.loads(second.read_text()))
    return Interrupted(out, trained, epochs, study(folder, out))


class Page(html.parser.HTMLParser):
    """What a report refers to, shows and captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.alternatives: list[str | None] = []
        self.used: Counter[str] = Counter()
        self.ids: list[str] = []
        self.lang: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        given = dict(attrs)
        self.tags[tag] += 1
        self.addresses += [given[key] or "" for key in ("src", "href", "srcset") if key in given]
        if tag == "img":
            self.alternatives.append(given.get("alt"))
        if given.get("role") == "img":
            self.alternatives.append(given.get("aria-label"))
        if tag == "use":
            self.used[given["href"] or ""] += 1
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "html":
            self.lang = given.get("lang")


@pytest.fixture(scope="module")
def page(interrupted: Interrupted) -> Page:
    """The report of the study that was killed once."""
    assert interrupted.done.returncode == 0, interrupted.done.stderr
    return Page((interrupted.out / "report.html").read_text("utf-8"))


def results(out: Path) -> dict[str, dict[str, object]]:
    """What each model came to."""
    return {
        model.name: json.loads((out / model.name / "result.json").read_text()) for model in MODELS
    }


def assert_refused(words: str, data: Path, out: Path, *more: str) -> None:
    """An error of ours in one line, and nothing was trained.

    In this process, because each of its own would import TensorFlow anew.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(DataError) as told:
        main.main(arguments(data, out, *more), standalone_mode=False)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert "Epoch" not in said.getvalue()


@pytest.mark.parametrize("name", COUNTS)
def test_an_architecture_has_the_notebook_s_parameter_count(name: str) -> None:
    """Exactly."""
    assert build(name).count_params() == COUNTS[name]


def test_a_killed_study_goes_on_where_it_was(interrupted: Interrupted) -> None:
    """What is trained is not trained again, and an epoch that was finished stays."""
    assert interrupted.done.returncode == 0, interrupted.done.stderr
    assert interrupted.epochs_before == 1
    assert (interrupted.out / "base_model" / "result.json").read_bytes() == (
        interrupted.trained_before
    )
    assert "1 of 8: base_model is trained" in interrupted.done.stdout
    assert "2 of 8: base_cnn is trained" not in interrupted.done.stdout
    assert interrupted.done.stdout.count("Epoch 1/2") == len(MODELS) - 2
    assert interrupted.done.stdout.count("Epoch 2/2") == len(MODELS) - 1


def test_every_model_of_the_study_is_trained(interrupted: Interrupted, folder: Path) -> None:
    """Six of the notebook and two next steps, each judged on every case."""
    found = results(interrupted.out)
    assert len(found) == 8
    assert {name: found[name]["parameters"] for name in COUNTS} == COUNTS
    cases = len(read_folder(folder).cases)
    for result in found.values():
        assert len(result["history"]) == 2  # type: ignore[arg-type]
        assert len(result["probabilities"]) == cases  # type: ignore[arg-type]


def test_l2_is_part_of_the_loss_of_regularized_models(interrupted: Interrupted) -> None:
    """And of those only."""
    penalized = {name for name, result in results(interrupted.out).items() if result["penalty"]}
    assert penalized == {model.name for model in MODELS} - {"base_model", "base_cnn"}


def test_a_report_needs_no_network(page: Page) -> None:
    """It refers to itself and to data within it."""
    assert page.addresses
    assert {address[:5] for address in page.addresses if address[0] != "#"} == {"data:"}
    inner = {address[1:] for address in page.addresses if address[0] == "#"}
    assert inner <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0


def test_a_report_can_be_read_aloud(page: Page) -> None:
    """A language, a text for every picture, a caption for every table."""
    assert page.lang == "en"
    assert page.alternatives
    assert all(page.alternatives)
    assert page.tags["table"] == page.tags["caption"] == 2 + 1 + 4 * len(MODELS)


def test_a_report_shows_what_the_study_found(
    page: Page, interrupted: Interrupted, folder: Path
) -> None:
    """Curves of each model, the first radiographs, every misclassified held-out radiograph."""
    snapshot = read_folder(folder)
    held_out = snapshot.split(1)["held_out"]
    wrong: Counter[str] = Counter()
    for result in results(interrupted.out).values():
        said = np.array(result["probabilities"])
        for row in held_out[(said[held_out] > 0.5) != (snapshot.labels[held_out] == 1)]:
            wrong[f"#radiograph-{row}"] += 1
    assert wrong
    assert page.used == wrong
    assert page.tags["symbol"] == len(wrong)
    first = min(20, len(snapshot.split(1)["train"]))
    assert page.tags["img"] == 1 + first + len(MODELS)


def test_a_finished_study_only_writes_its_report_again(
    interrupted: Interrupted, folder: Path
) -> None:
    """Nothing is trained."""
    (interrupted.out / "report.html").unlink()
    done = study(folder, interrupted.out)
    assert done.returncode == 0, done.stderr
    assert "Epoch" not in done.stdout
    assert (interrupted.out / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("study.json", "study.json is damaged"),
        ("final_model/result.json", "remove"),
        ("seed", "is used by another study (differs in seed)"),
        ("epochs", "is used by another study (differs in epochs)"),
    ],
)
def test_a_study_that_does_not_fit_is_refused(
    file: str, words: str, interrupted: Interrupted, folder: Path, tmp_path: Path
) -> None:
    """Damaged, or another one: one line that says what to do, before pictures are read."""
    out = tmp_path / "study"
    shutil.copytree(interrupted.out, out, ignore=shutil.ignore_patterns("*.h5"))
    options = {"seed": ["--seed", "2"], "epochs": ["--epochs", "3"]}.get(file, [])
    if not options:
        (out / file).write_text("{ damaged")
    assert_refused(words, folder, out, *options)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("file", "words"),
    [("last.keras", "last.keras is damaged"), ("best.weights.h5", "best.weights.h5 is damaged")],
)
def test_a_damaged_checkpoint_is_refused(
    file: str, words: str, interrupted: Interrupted, folder: Path, tmp_path: Path
) -> None:
    """Even of the last model, before the first is trained."""
    out = tmp_path / "study"
    shutil.copytree(interrupted.out, out, ignore=shutil.ignore_patterns("*.h5"))
    shutil.rmtree(out / "base_model")
    last = out / MODELS[-1].name
    shutil.copy(interrupted.out / last.name / "best.weights.h5", last)
    build(MODELS[-1].architecture).save(last / "last.keras")
    (last / "result.json").unlink()
    (last / file).write_text("damaged")
    assert_refused(words, folder, out)


def test_an_error_is_one_line_and_an_exit_status(folder: Path, interrupted: Interrupted) -> None:
    """No traceback."""
    done = study(folder, interrupted.out, "--seed", "2")
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("training: ")]
    assert len(told) == 1
    assert "differs in seed" in told[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing class", "PNEUMONIA is missing"),
        ("empty class", "has no picture"),
        ("unreadable", "person0_virus_0.jpeg"),
        ("too few", "class PNEUMONIA has 1 patients"),
        ("other files", "holds something else than a study"),
    ],
)
def test_what_is_bad_is_told_before_anything_is_trained(
    damage: str, words: str, folder: Path, tmp_path: Path
) -> None:
    """One line that says what is wrong and where."""
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    pneumonia, out = data / "train" / "PNEUMONIA", tmp_path / "study"
    match damage:
        case "missing class":
            shutil.rmtree(pneumonia)
        case "empty class":
            for file in pneumonia.iterdir():
                file.unlink()
        case "unreadable":
            (pneumonia / "person0_virus_0.jpeg").write_text("no picture")
        case "too few":
            for file in pneumonia.glob("person[1-9]*"):
                file.unlink()
        case "other files":
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")
    assert_refused(words, data, out)


def test_copies_make_the_classes_equal() -> None:
    """None of the larger class is copied, and no case twice before each was copied once."""
    labels = np.array([0] * 5 + [1] * 17)
    rows = np.arange(1, 22)
    copies = copies_of_smaller_class(rows, labels, 0)
    shown = np.concatenate([rows, copies])
    assert np.sum(labels[shown] == 0) == np.sum(labels[shown] == 1) == 17
    assert set(Counter(copies.tolist()).values()) <= {3, 4}


def test_a_quick_study_takes_a_few_of_each_class(folder: Path) -> None:
    """All of few cases, and no more than stated of many."""
    snapshot = read_folder(folder)
    assert sample(snapshot) == snapshot
    many = type(snapshot)(snapshot.cases * 20)
    assert Counter(case.label for case in sample(many).cases) == {0: 32, 1: 64}
