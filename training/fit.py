"""One training run: (snapshot, architecture, seed) becomes a model version.

A run lives in its output folder and can be stopped at any moment: each finished epoch is
checkpointed, and the same command goes on from the last one.
"""

import datetime as dt
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from training.dataset import Part, Snapshot
from training.evaluate import figures, threshold_for
from training.exported import WEIGHTS, export
from training.networks import FINE_TUNED, build
from training.novelty import varied
from training.quality import fit_and_measure
from training.versions import replace, seal
from triage.errors import DataError
from triage.network import openvino
from triage.novelty import NOVELTY
from triage.pixels import fingerprint
from triage.quality import QUALITY, Quality
from triage.registry import DESCRIPTION, EXPORTED, FORMAT

BATCH = 32
PATIENCE = 10
WANTED_SENSITIVITY = 0.975
BEST, LAST = "best.weights.h5", "last.keras"
NO_COPIES = np.array([], np.int64)

Precision = Literal["float32", "mixed_bfloat16"]


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies a run; a checkpoint of another run is refused.

    Attributes
    ----------
    architecture : str
    seed : int
    precision : {'float32', 'mixed_bfloat16'}
        Of the arithmetic while training. Weights, export and all figures are float32.
    snapshot : str
        Hash of the training set.
    pixel_fingerprint : str
    """

    architecture: str
    seed: int
    precision: Precision
    snapshot: str
    pixel_fingerprint: str


@dataclass(frozen=True, slots=True)
class About:
    """What a model card must say about the data, and no program can find out.

    Attributes
    ----------
    name, attribution, licence, population : str
    age_years : list of two int, or None
    views : list of str
    """

    name: str
    attribution: str
    licence: str
    population: str
    age_years: list[int] | None
    views: list[str]


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Shuffled batches whose order depends only on the seed and the epoch.

    ``copies`` are shown besides ``rows``, each time varied in another way.
    """

    def __init__(
        self,
        arrays: npt.NDArray[np.float16],
        labels: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        copies: npt.NDArray[np.int64],
        seed: int,
        epoch: int,
    ) -> None:
        super().__init__()
        self._arrays, self._labels, self._seed, self._epoch = arrays, labels, seed, epoch
        self._plain, self._rows = len(rows), np.concatenate([rows, copies])
        self._shuffle()

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / BATCH)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        places = self._order[index * BATCH : (index + 1) * BATCH]
        rows = self._rows[places]
        arrays = self._arrays[rows].astype(np.float32)
        for array, place in zip(arrays, places, strict=True):
            if place >= self._plain:
                random = np.random.default_rng((self._seed, self._epoch, place))
                array[..., 0] = varied(array[..., 0], random)
        return arrays, self._labels[rows].astype(np.float32)

    def on_epoch_end(self) -> None:
        self._epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = shuffled(len(self._rows), self._seed, self._epoch)


def shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch shows its pictures; the first epoch is 0."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class _Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the last and the best epoch on disk and stops when patience is spent."""

    def __init__(self, folder: Path, history: list[dict[str, float]]) -> None:
        super().__init__()
        self._folder = folder
        self.history = history

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.history.append({key: round(float(value), 6) for key, value in (logs or {}).items()})
        if best_epoch(self.history) == epoch:
            replace(self._folder / BEST, self.model.save_weights)
        replace(self._folder / LAST, self.model.save)
        # The history is written last: it alone says which epoch is complete.
        replace(self._folder / "history.json", self._write_history)
        if finished(self.history):
            self.model.stop_training = True

    def _write_history(self, path: Path) -> None:
        path.write_text(json.dumps(self.history, indent=1), "utf-8")


def best_epoch(history: list[dict[str, float]]) -> int:
    """The first epoch with the lowest validation loss."""
    return int(np.argmin([row["val_loss"] for row in history]))


def finished(history: list[dict[str, float]]) -> bool:
    """Whether the validation loss has not improved for :data:`PATIENCE` epochs."""
    return bool(history) and len(history) - 1 - best_epoch(history) >= PATIENCE


def fit(
    snapshot: Snapshot,
    about: About,
    run: Run,
    out: Path,
    epochs: int,
    progress: Callable[[int], None],
    verbose: int,
) -> Mapping[str, Any]:
    """Train, choose a threshold, measure on held-out patients, export.

    Parameters
    ----------
    snapshot : Snapshot
    about : About
    run : Run
    out : Path
        Becomes the model version; its subfolder ``checkpoint`` holds the run's state.
    epochs : int
        The most that are trained; early stopping may end sooner. Not part of the run's
        identity: a run may be resumed with another bound.
    progress : callable
        Is told how many pictures are read.
    verbose : int
        As in ``keras.Model.fit``.

    Returns
    -------
    mapping
        The description that was written to ``model.json``.

    Raises
    ------
    DataError
        Data are unusable, or the checkpoint is damaged or of another run.
    """
    if (out / DESCRIPTION).exists():
        raise DataError(f"{out} already holds a finished model version: choose another --out")
    # An unknown name and a damaged checkpoint are told before minutes of reading.
    build(run.architecture)
    folder = out / "checkpoint"
    history = open_checkpoint(folder, run)
    parts = snapshot.split(run.seed)
    arrays = snapshot.arrays(progress)
    network, history = train(
        run, folder, history, arrays, snapshot.labels, parts, NO_COPIES, epochs, verbose
    )
    description = _describe(snapshot, about, run, history, parts, arrays, network)
    pictures = arrays[..., 0]
    quality, told = fit_and_measure(pictures, snapshot.patients, parts["held_out"], run.seed)
    return _write(out, network, quality, {**description, "pictures": told})


def train(
    run: Run,
    folder: Path,
    history: list[dict[str, float]],
    arrays: npt.NDArray[np.float16],
    labels: npt.NDArray[np.int64],
    parts: Mapping[Part, npt.NDArray[np.int64]],
    copies: npt.NDArray[np.int64],
    epochs: int,
    verbose: int,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Train until early stopping or ``epochs``, going on from the run's checkpoint.

    Parameters
    ----------
    run : Run
    folder : Path
        Of the checkpoint.
    history : list of dict
        The finished epochs, as :func:`open_checkpoint` gives them.
    arrays : ndarray of float16, shape (cases, 256, 256, 1), 0 to 1
    labels : ndarray of int64, shape (cases,), 0 or 1
    parts : mapping
        Rows that train and rows that validate.
    copies : ndarray of int64
        Rows that train once more, varied in each epoch in another way; see
        :func:`training.novelty.varied`.
    epochs : int
        The most that are trained.
    verbose : int
        As in ``keras.Model.fit``.

    Returns
    -------
    keras.Model
        float32, with the weights of the epoch with the lowest validation loss.
    list of dict
        Loss and accuracy of every epoch.

    Raises
    ------
    DataError
        The checkpoint is damaged.
    """
    keras.utils.set_random_seed(run.seed)
    keras.config.set_dtype_policy(run.precision)
    if history:
        model = _load_last(folder, run.architecture)
    else:
        model = build(run.architecture)
        model.compile(keras.optimizers.SGD(), "binary_crossentropy", metrics=["accuracy"])
    checkpoint = _Checkpoint(folder, history)
    if not finished(history) and len(history) < epochs:
        validation = parts["validation"]
        model.fit(
            _Batches(arrays, labels, parts["train"], copies, run.seed, len(history)),
            validation_data=(arrays[validation].astype(np.float32), labels[validation]),
            validation_batch_size=BATCH,
            initial_epoch=len(history),
            epochs=epochs,
            callbacks=[checkpoint],
            verbose=verbose,
        )
    keras.config.set_dtype_policy("float32")
    return _load_best(folder, run.architecture), checkpoint.history


def open_checkpoint(folder: Path, run: Run) -> list[dict[str, float]]:
    """The finished epochs of this run; an empty list for a new one.

    Raises
    ------
    DataError
        The checkpoint is damaged or of another run.
    """
    identity = folder / "run.json"
    if not identity.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace(identity, lambda path: path.write_text(json.dumps(asdict(run), indent=1)))
        return []
    advice = f"choose another --out, or remove {folder} to start again"
    try:
        known = json.loads(identity.read_text("utf-8"))
        history: list[dict[str, float]] = []
        if (folder / "history.json").exists():
            history = json.loads((folder / "history.json").read_text("utf-8"))
            best_epoch(history)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"checkpoint in {folder} is damaged ({error}): {advice}") from error
    changed = [key for key, value in asdict(run).items() if known.get(key) != value]
    if changed:
        raise DataError(
            f"checkpoint in {folder} is of another run (differs in {', '.join(changed)}): {advice}"
        )
    if history:
        _load_last(folder, run.architecture)
        _load_best(folder, run.architecture)
    return history


def _load_last(folder: Path, architecture: str) -> keras.Model:
    """The network and optimizer as the last finished epoch left them."""
    path = folder / LAST
    with _damaged(path):
        network = keras.saving.load_model(path)
    if [w.shape for w in network.weights] != [w.shape for w in build(architecture).weights]:
        raise DataError(
            f"checkpoint {path} holds the weights of another architecture than {architecture}: "
            f"remove {folder} to start again"
        )
    return network


def _load_best(folder: Path, architecture: str) -> keras.Model:
    """The network of the best finished epoch."""
    path = folder / BEST
    network = build(architecture)
    with _damaged(path):
        network.load_weights(path)
    return network


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    # A boundary: Keras, HDF5 and zip raise what they like on a damaged file.
    except Exception as error:
        raise DataError(
            f"checkpoint {path} is damaged ({type(error).__name__}): remove {path.parent} to "
            "start again"
        ) from error


def probabilities(
    network: keras.Model, arrays: npt.NDArray[np.float16], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """What a network says of some of the arrays.

    Returns
    -------
    ndarray of float64, shape (rows,), 0 to 1
    """
    # Batch by batch: a whole part in float32 would need gigabytes.
    batches = [
        network.predict_on_batch(arrays[rows[start : start + BATCH]].astype(np.float32))
        for start in range(0, len(rows), BATCH)
    ]
    return np.concatenate(batches)[:, 0].astype(np.float64)


def _describe(
    snapshot: Snapshot,
    about: About,
    run: Run,
    history: list[dict[str, float]],
    parts: Mapping[Part, npt.NDArray[np.int64]],
    arrays: npt.NDArray[np.float16],
    network: keras.Model,
) -> dict[str, Any]:
    """Everything in ``model.json`` that does not depend on the files written."""
    labels = snapshot.labels
    validation, held_out = parts["validation"], parts["held_out"]
    threshold = threshold_for(
        labels[validation], probabilities(network, arrays, validation), WANTED_SENSITIVITY
    )
    # Rounded down, so that the case that set it stays flagged.
    threshold = np.floor(threshold * 1e6) / 1e6
    measured = figures(
        labels[held_out],
        probabilities(network, arrays, held_out),
        snapshot.patients[held_out],
        threshold,
        run.seed,
    )
    return {
        "format": FORMAT,
        "architecture": run.architecture,
        "parameters": int(network.count_params()),
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "pixel_fingerprint": run.pixel_fingerprint,
        "output": "probability of pneumonia as trained, not calibrated",
        "threshold": float(threshold),
        "threshold_rule": f"highest with sensitivity >= {WANTED_SENSITIVITY} on validation",
        "metrics": {
            "measured_on": "held-out patients; no choice was made on them",
            "interval": "95%, bootstrap over patients",
            "held_out": {name: figure.as_dict() for name, figure in measured.items()},
        },
        "population": {
            "description": about.population,
            "age_years": about.age_years,
            "views": about.views,
        },
        "data": {
            "name": about.name,
            "attribution": about.attribution,
            "licence": about.licence,
            "snapshot": snapshot.digest,
            "parts": {part: snapshot.count(rows) for part, rows in parts.items()},
        },
        "training": {
            "seed": run.seed,
            "precision": run.precision,
            "batch": BATCH,
            "optimizer": "SGD, learning rate 0.01",
            "early_stopping": f"validation loss, patience {PATIENCE}",
            "epochs": len(history),
            "best_epoch": best_epoch(history) + 1,
            "history": history,
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
                "openvino": openvino().__version__.split("-")[0],
            },
        },
        "parent": None,
    }


def _write(
    out: Path, network: keras.Model, quality: Quality, description: dict[str, Any]
) -> Mapping[str, Any]:
    """Write the version's files; ``model.json`` last, as the sign that it is whole."""
    network.save_weights(out / WEIGHTS)
    export(network, out / EXPORTED)
    quality.novelty.save(out / NOVELTY)
    quality.save(out / QUALITY)
    weights = Path(EXPORTED).with_suffix(".bin").name
    complete = seal(out, (WEIGHTS, EXPORTED, weights, NOVELTY, QUALITY), description)
    shutil.rmtree(out / "checkpoint")
    return complete


def new_run(snapshot: Snapshot, architecture: str, seed: int, precision: Precision) -> Run:
    """A run on this program's pixel pipeline.

    Raises
    ------
    DataError
        The architecture starts from pretrained weights, which this way of training lacks.
    """
    if architecture in FINE_TUNED:
        raise DataError(
            f"{architecture} is fine-tuned: run crossvalidate, then fit with --crossvalidated"
        )
    return Run(architecture, seed, precision, snapshot.digest, fingerprint())
