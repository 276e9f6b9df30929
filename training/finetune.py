"""Training a network from pretrained weights on pictures that are varied at random."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from training.augment import blinded, grafted, varied
from training.efficientnet import WORKS_AT, freeze, imagenet, trainee
from training.versions import replace
from triage.errors import DataError
from triage.pixels import Array

BATCH = 32
PEAK, WARM_UP, DECAY = 5e-4, 0.15, 1e-2
SMOOTHING = 0.05
GRAFTED, BLINDED, UNKNOWN = 0.25, 0.08, 0.5
"""Shares of the copies with another picture's rim, and without lungs; the label of the latter."""
RECIPE = {
    "start": "ImageNet weights; stem, first three blocks and depthwise kernels stay",
    "batch": BATCH,
    "optimizer": f"AdamW, one cycle up to {PEAK}, weight decay {DECAY}",
    "loss": f"cross-entropy, classes weighted equally, labels smoothed by {SMOOTHING}",
    "pictures": f"a new copy of each picture in each epoch, {GRAFTED} with another one's rim, "
    f"{BLINDED} without lungs and label {UNKNOWN}; see training/augment.py",
}
"""For ``model.json``."""

LAST, HISTORY = "last.keras", "history.json"


class Varied(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of varied copies; a copy depends on seed, epoch and row only."""

    def __init__(
        self,
        pictures: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32],
        seed: int,
        epoch: int,
    ) -> None:
        # Pillow and NumPy work outside of Python's lock: two threads keep two cores busy.
        super().__init__(workers=2, use_multiprocessing=False, max_queue_size=8)
        self._pictures, self._targets, self._weights = pictures, targets, weights
        self._seed, self._epoch = seed, epoch
        self._shuffle()

    def __len__(self) -> int:
        return max(1, len(self._targets) // BATCH)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], ...]:
        rows = self._order[index * BATCH : (index + 1) * BATCH]
        drawn = [self._copy(int(row)) for row in rows]
        copies, targets, weights = (np.stack(column) for column in zip(*drawn, strict=True))
        return copies[..., None], targets[:, None], weights

    def _copy(self, row: int) -> tuple[Array, np.float32, np.float32]:
        """A copy of a picture, what is to be said of it, and how much that counts."""
        random = np.random.default_rng((self._seed, self._epoch, row))
        picture, target, weight = self._pictures[row], self._targets[row], self._weights[row]
        kind = random.random()
        if kind < GRAFTED:
            picture = grafted(picture, self._pictures[random.integers(len(self._targets))], random)
        elif kind < GRAFTED + BLINDED:
            picture, target, weight = blinded(picture, random), np.float32(UNKNOWN), np.float32(1)
        return varied(picture, WORKS_AT, random), target, weight

    def on_epoch_end(self) -> None:
        """Draw anew."""
        self._epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = np.random.default_rng((self._seed, self._epoch)).permutation(
            len(self._targets)
        )


def balanced(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """A weight for each case, so that both classes count the same; their mean is 1."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray((len(labels) / (2.0 * counts))[labels], np.float32)


def train(
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    folder: Path,
    seed: int,
    epochs: int,
    precision: str,
    verbose: int,
    tell: Callable[[int], None] = lambda _: None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Train from ImageNet weights for a fixed number of epochs; go on from a checkpoint.

    The learning rate rises to :data:`PEAK` and falls to 0 along a cosine (Smith and Topin,
    arXiv 1708.07120; Loshchilov and Hutter, ICLR 2017), so the last weights are the best and
    nothing needs to be held back to stop by.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (cases, 256, 256)
    labels : ndarray of int64, shape (cases,), 0 or 1
    folder : Path
        Keeps the last finished epoch.
    seed : int
    epochs : int
    precision : str
        Of the arithmetic while training; a Keras dtype policy.
    verbose : int
        As in ``keras.Model.fit``.
    tell : callable
        Is told the number of epochs that are finished, after each.

    Returns
    -------
    keras.Model
        float32 (batch, 192, 192, 1) to (batch, 1), with a policy of ``precision``.
    list of dict
        Loss and accuracy of each epoch.

    Raises
    ------
    DataError
        The checkpoint is damaged, or the ImageNet weights are missing.
    """
    return go_on(
        lambda: imagenet_trainee(precision),
        Rate(PEAK, DECAY),
        (pictures, labels.astype(np.float32), balanced(labels)),
        folder,
        seed,
        epochs,
        verbose,
        tell,
    )


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a network learns: the highest learning rate, and the weight decay."""

    peak: float
    decay: float


def imagenet_trainee(precision: str) -> keras.Model:
    """A network with ImageNet's weights."""
    network = new_trainee(precision)
    imagenet(network)
    return network


def new_trainee(precision: str) -> keras.Model:
    """A fresh network whose arithmetic is of a Keras dtype policy."""
    keras.config.set_dtype_policy(precision)
    network = trainee()
    keras.config.set_dtype_policy("float32")
    return network


def go_on(
    begin: Callable[[], keras.Model],
    rate: Rate,
    shown: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]],
    folder: Path,
    seed: int,
    epochs: int,
    verbose: int,
    tell: Callable[[int], None] = lambda _: None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Train for a fixed number of epochs, from the last one that a folder holds.

    Parameters
    ----------
    begin : callable
        Gives the network that training starts from.
    rate : Rate
    shown : tuple of ndarray
        Pictures, uint8, shape (cases, 256, 256); what is to be said of each, float32, shape
        (cases,), 0 to 1; and how much each counts, float32, shape (cases,).
    folder, seed, epochs, verbose, tell
        As in :func:`train`.
    """
    keras.utils.set_random_seed(seed)
    checkpoint = _Checkpoint(folder, seed, tell)
    network = begin()
    freeze(network)
    steps = epochs * max(1, len(shown[1]) // BATCH)
    warm_up = int(WARM_UP * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=rate.peak, warmup_steps=warm_up
    )
    network.compile(
        keras.optimizers.AdamW(schedule, weight_decay=rate.decay),
        keras.losses.BinaryCrossentropy(label_smoothing=SMOOTHING),
        weighted_metrics=["accuracy"],
    )
    if checkpoint.history:
        _take_over(network, folder / LAST)
    done = len(checkpoint.history)
    if done < epochs:
        network.fit(
            Varied(*shown, seed, done),
            initial_epoch=done,
            epochs=epochs,
            callbacks=[checkpoint],
            verbose=verbose,
        )
    return network, checkpoint.history


def _take_over(network: keras.Model, path: Path) -> None:
    """Give a network the weights and the optimizer's state of one that was saved.

    The saved one itself will not do: Keras forgets that its dropout computes in half precision.
    """
    saved = _same(network, path)
    network.set_weights(saved.get_weights())
    network.optimizer.build(network.trainable_variables)
    for mine, theirs in zip(network.optimizer.variables, saved.optimizer.variables, strict=True):
        mine.assign(theirs)


def _same(network: keras.Model, path: Path) -> keras.Model:
    """The saved network, if it is of the same architecture."""
    saved = load(path)
    if [w.shape for w in saved.weights] != [w.shape for w in network.weights]:
        raise DataError(
            f"checkpoint {path} holds the weights of another architecture: remove {path.parent} "
            "to start again"
        )
    return saved


def sound(folder: Path) -> None:
    """See that training can go on from a checkpoint, if there is one.

    Raises
    ------
    DataError
        It is damaged, or holds the weights of another architecture.
    """
    if (folder / HISTORY).exists() and _Checkpoint(folder, 0).history:
        _same(new_trainee("float32"), folder / LAST)


def reopened(folder: Path) -> tuple[keras.Model, list[dict[str, float]]]:
    """A finished network and its history.

    Raises
    ------
    DataError
        There is none, or it is damaged.
    """
    history = _Checkpoint(folder, 0).history
    return load(folder / LAST), history


class _Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the last finished epoch on disk."""

    def __init__(
        self, folder: Path, seed: int, tell: Callable[[int], None] = lambda _: None
    ) -> None:
        super().__init__()
        self._folder, self._seed, self._tell = folder, seed, tell
        self.history: list[dict[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / HISTORY).exists():
            try:
                self.history = json.loads((folder / HISTORY).read_text("utf-8"))
            except ValueError as error:
                raise DataError(
                    f"checkpoint {folder / HISTORY} is damaged ({error}): remove {folder} to "
                    "start again"
                ) from error

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """What an epoch drops out depends on seed and epoch only: a checkpoint does not keep it."""
        drawn = np.random.default_rng((self._seed, epoch, 1)).integers(2**31)
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.SpatialDropout2D):
                layer.seed_generator.state.assign(np.array([drawn, 0], np.uint32))

    def on_epoch_end(self, _epoch: int, logs: dict[str, float] | None = None) -> None:
        self.history.append({key: round(float(value), 6) for key, value in (logs or {}).items()})
        replace(self._folder / LAST, self.model.save)
        # The history is written last: it alone says which epoch is complete.
        replace(self._folder / HISTORY, self._write)
        self._tell(len(self.history))

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps(self.history, indent=1), "utf-8")


def load(path: Path) -> keras.Model:
    """A network and the state of its optimizer.

    Raises
    ------
    DataError
        The file is damaged.
    """
    try:
        return keras.saving.load_model(path)
    # A boundary: Keras, HDF5 and zip raise what they like on a damaged file.
    except Exception as error:
        raise DataError(
            f"checkpoint {path} is damaged ({type(error).__name__}): remove {path.parent} to "
            "start again"
        ) from error
