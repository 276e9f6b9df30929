"""The study of the notebook behind this project: its models side by side, in one report.

A study lives in its output folder, one subfolder a model. It can be stopped at any moment:
the same command goes on where it was, and what is trained is not trained again.
"""

import datetime as dt
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from training.dataset import CLASSES, Part, Snapshot
from training.fit import (
    BATCH,
    LAST,
    NO_COPIES,
    PATIENCE,
    About,
    Precision,
    Run,
    best_epoch,
    new_run,
    open_checkpoint,
    probabilities,
    shuffled,
    train,
)
from training.report import Outcome, render
from training.versions import replace
from triage.errors import DataError
from triage.pixels import fingerprint

IDENTITY = "study.json"
RESULT = "result.json"
REPORT = "report.html"

QUICK = {"NORMAL": 32, "PNEUMONIA": 64}
"""Radiographs of each class in a quick study."""

EPOCHS, QUICK_EPOCHS = 100, 2

Arrays = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Model:
    """One of the study.

    Attributes
    ----------
    name : str
    architecture : str
    about : str
        What sets it apart, in a sentence.
    upsampled : bool
        Whether the smaller class is shown as often as the larger, by varied copies.
    """

    name: str
    architecture: str
    about: str
    upsampled: bool = False


MODELS = (
    Model("base_model", "base_model", "Dense layers on the pixels, no convolution."),
    Model("base_cnn", "base_cnn", "Four convolutions before the dense layers of base_model."),
    Model("reg_cnn", "reg_cnn", "base_cnn with L2 on the dense layers."),
    Model("reduced_nodes", "reduced_nodes", "reg_cnn with half the kernels and units."),
    Model("dropout", "dropout", "reduced_nodes with dropout after the dense layers."),
    Model("final_model", "final_model", "reduced_nodes with fewer units."),
    Model(
        "upsampled_normals",
        "final_model",
        "A next step: final_model, shown as many normals as pneumonias. The copies are turned, "
        "moved, stretched and shown with another gamma, each time anew.",
        upsampled=True,
    ),
    Model(
        "larger_l2",
        "larger_l2",
        "A next step: final_model with twice the L2, half the kernels and half the units.",
    ),
)
"""The six models of the notebook and the two next steps that it proposes."""


@dataclass(frozen=True, slots=True)
class Study:
    """What identifies a study; a folder of another one is refused.

    Attributes
    ----------
    seed : int
        Of split, weights and order.
    precision : {'float32', 'mixed_bfloat16'}
        Of the arithmetic while training. All figures are float32.
    epochs : int
        The most that a model is trained; the same for each, so that they can be compared.
    snapshot : str
        Hash of the training set.
    pixel_fingerprint : str
    """

    seed: int
    precision: Precision
    epochs: int
    snapshot: str
    pixel_fingerprint: str


def new_study(snapshot: Snapshot, seed: int, precision: Precision, epochs: int) -> Study:
    """A study on this program's pixel pipeline."""
    return Study(seed, precision, epochs, snapshot.digest, fingerprint())


def sample(snapshot: Snapshot) -> Snapshot:
    """A few cases of each class, spread over the snapshot, for a quick study."""
    chosen = []
    for label, name in enumerate(CLASSES):
        cases = [case for case in snapshot.cases if case.label == label]
        places = np.linspace(0, len(cases) - 1, min(QUICK[name], len(cases)))
        chosen += [cases[int(place)] for place in places]
    return Snapshot(tuple(sorted(chosen, key=lambda case: case.name)))


def run(
    snapshot: Snapshot,
    about: About,
    study: Study,
    out: Path,
    say: Callable[[str], None],
    read: Callable[[], Arrays],
    verbose: int,
) -> Path:
    """Train every model that is not trained yet, and write the report.

    Parameters
    ----------
    snapshot : Snapshot
    about : About
    study : Study
    out : Path
        Folder of the study; made if it is not there.
    say : callable
        Is told a line about each model.
    read : callable
        Gives the snapshot's arrays; called when everything else was found good.
    verbose : int
        As in ``keras.Model.fit``.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    DataError
        Data are unusable or too few; ``out`` is in use by something else or cannot be
        written; a checkpoint or a result is damaged; a model diverged.
    """
    parts = snapshot.split(study.seed)
    _open(out, study)
    outcomes = {model.name: _finished(out / model.name, model, snapshot) for model in MODELS}
    for model in MODELS:
        if outcomes[model.name] is None:
            open_checkpoint(out / model.name, _run(snapshot, study, model))
    arrays = read()
    done = []
    for number, model in enumerate(MODELS, 1):
        heading = f"{number} of {len(MODELS)}: {model.name}"
        outcome = outcomes[model.name]
        if outcome is None:
            say(heading)
            outcome = _train(snapshot, study, model, parts, arrays, out / model.name, verbose)
        else:
            say(f"{heading} is trained")
        done.append(outcome)
    rows = parts["train"]
    first = rows[shuffled(len(rows), study.seed, 0)]
    html = render(snapshot, arrays, parts, first, done, _facts(study, about))
    replace(out / REPORT, lambda path: path.write_text(html, "utf-8"))
    return out / REPORT


def _run(snapshot: Snapshot, study: Study, model: Model) -> Run:
    return new_run(snapshot, model.architecture, study.seed, study.precision)


def _open(out: Path, study: Study) -> None:
    """Make the folder this study's own, or see that it is."""
    identity = out / IDENTITY
    advice = "choose another --out"
    try:
        if not identity.exists():
            if out.exists() and any(out.iterdir()):
                raise DataError(f"--out {out} holds something else than a study: {advice}")
            out.mkdir(parents=True, exist_ok=True)
            replace(identity, lambda path: path.write_text(json.dumps(asdict(study), indent=1)))
        known = json.loads(identity.read_text("utf-8"))
        changed = [key for key, value in asdict(study).items() if known.get(key) != value]
    except OSError as error:
        raise DataError(f"--out {out} cannot be used ({error.strerror}): {advice}") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{identity} is damaged: {advice}") from error
    if changed:
        raise DataError(
            f"--out {out} is used by another study (differs in {', '.join(changed)}): {advice}"
        )


def _finished(folder: Path, model: Model, snapshot: Snapshot) -> Outcome | None:
    """The model's result, if it is trained."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text("utf-8"))
        said = np.array(told["probabilities"], np.float64)
        if said.shape != (len(snapshot.cases),) or not np.all((said >= 0) & (said <= 1)):
            raise ValueError("not one probability for each case")
        history: list[dict[str, float]] = told["history"]
        return Outcome(
            model.name,
            model.about,
            int(told["parameters"]),
            float(told["penalty"]),
            history,
            best_epoch(history) + 1,
            said,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"result {path} is damaged: remove {folder} to train {model.name} again"
        ) from error


def _train(
    snapshot: Snapshot,
    study: Study,
    model: Model,
    parts: dict[Part, Rows],
    arrays: Arrays,
    folder: Path,
    verbose: int,
) -> Outcome:
    labels = snapshot.labels
    run = _run(snapshot, study, model)
    copies = NO_COPIES
    if model.upsampled:
        copies = copies_of_smaller_class(parts["train"], labels, study.seed)
    history = open_checkpoint(folder, run)
    network, history = train(
        run, folder, history, arrays, labels, parts, copies, study.epochs, verbose
    )
    said = probabilities(network, arrays, np.arange(len(labels)))
    if not np.all(np.isfinite(said)):
        raise DataError(
            f"{model.name} diverged, its loss is not a number: choose another --seed and --out"
        )
    outcome = Outcome(
        model.name,
        model.about,
        int(network.count_params()),
        float(sum(map(float, network.losses))),
        history,
        best_epoch(history) + 1,
        said,
    )
    told = {
        "parameters": outcome.parameters,
        "penalty": outcome.penalty,
        "history": history,
        "probabilities": said.tolist(),
    }
    replace(folder / RESULT, lambda path: path.write_text(json.dumps(told), "utf-8"))
    (folder / LAST).unlink(missing_ok=True)
    keras.backend.clear_session()
    return outcome


def copies_of_smaller_class(rows: Rows, labels: Rows, seed: int) -> Rows:
    """Rows of the smaller class, as many as it lacks to the larger one.

    Each case is copied about as often as the next: all of them once more before any of
    them twice more.
    """
    groups = sorted((rows[labels[rows] == label] for label in range(len(CLASSES))), key=len)
    smaller, larger = groups
    shuffle = np.random.default_rng(seed).permutation(smaller)
    return np.resize(shuffle, len(larger) - len(smaller))


def _facts(study: Study, about: About) -> dict[str, str]:
    return {
        "data": about.name,
        "attribution": about.attribution,
        "licence": about.licence,
        "population": about.population,
        "written": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "snapshot": study.snapshot,
        "split": f"by patient, seed {study.seed}",
        "training": (
            f"SGD with a learning rate of 0.01, binary cross-entropy, batches of {BATCH}, at most "
            f"{study.epochs} epochs, {study.precision}"
        ),
        "early stopping": (
            f"after {PATIENCE} epochs without a lower validation loss; the weights of the best "
            "epoch are judged"
        ),
        "versions": f"Python {platform.python_version()}, Keras {keras.__version__}",
    }
