"""Training a network from pretrained weights on pictures that are varied at random."""

import json
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from training.augment import varied
from training.efficientnet import WORKS_AT, freeze, imagenet, trainee
from training.versions import replace
from triage.errors import DataError

BATCH = 32
PEAK, WARM_UP, DECAY = 5e-4, 0.15, 1e-2
SMOOTHING = 0.05
RECIPE = {
    "start": "ImageNet weights; stem, first three blocks and depthwise kernels stay",
    "batch": BATCH,
    "optimizer": f"AdamW, one cycle up to {PEAK}, weight decay {DECAY}",
    "loss": f"cross-entropy, classes weighted equally, labels smoothed by {SMOOTHING}",
    "pictures": "a new copy of each picture in each epoch, see training/augment.py",
}
"""For ``model.json``."""

LAST, HISTORY = "last.keras", "history.json"


class Varied(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of varied copies; a copy depends on seed, epoch and row only."""

    def __init__(
        self, pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], seed: int, epoch: int
    ) -> None:
        # Pillow and NumPy work outside of Python's lock: two threads keep two cores busy.
        super().__init__(workers=2, use_multiprocessing=False, max_queue_size=8)
        self._pictures, self._labels, self._seed, self._epoch = pictures, labels, seed, epoch
        counts = np.bincount(labels, minlength=2)
        self._weights = (len(labels) / (2.0 * counts)).astype(np.float32)
        self._shuffle()

    def __len__(self) -> int:
        return max(1, len(self._labels) // BATCH)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], ...]:
        rows = self._order[index * BATCH : (index + 1) * BATCH]
        copies = np.stack(
            [
                varied(
                    self._pictures[row],
                    WORKS_AT,
                    np.random.default_rng((self._seed, self._epoch, int(row))),
                )
                for row in rows
            ]
        )
        labels = self._labels[rows]
        return copies[..., None], labels.astype(np.float32)[:, None], self._weights[labels]

    def on_epoch_end(self) -> None:
        """Draw anew."""
        self._epoch += 1
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = np.random.default_rng((self._seed, self._epoch)).permutation(
            len(self._labels)
        )


def train(
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    folder: Path,
    seed: int,
    epochs: int,
    precision: str,
    verbose: int,
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
    keras.utils.set_random_seed(seed)
    checkpoint = _Checkpoint(folder)
    if checkpoint.history:
        network = load(folder / LAST)
    else:
        keras.config.set_dtype_policy(precision)
        network = trainee()
        keras.config.set_dtype_policy("float32")
        imagenet(network)
        freeze(network)
        steps = epochs * max(1, len(labels) // BATCH)
        warm_up = int(WARM_UP * steps)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=PEAK, warmup_steps=warm_up
        )
        network.compile(
            keras.optimizers.AdamW(rate, weight_decay=DECAY),
            keras.losses.BinaryCrossentropy(label_smoothing=SMOOTHING),
            weighted_metrics=["accuracy"],
        )
    done = len(checkpoint.history)
    if done < epochs:
        network.fit(
            Varied(pictures, labels, seed, done),
            initial_epoch=done,
            epochs=epochs,
            callbacks=[checkpoint],
            verbose=verbose,
        )
    return network, checkpoint.history


def reopened(folder: Path) -> tuple[keras.Model, list[dict[str, float]]]:
    """A finished network and its history.

    Raises
    ------
    DataError
        There is none, or it is damaged.
    """
    history = _Checkpoint(folder).history
    return load(folder / LAST), history


class _Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the last finished epoch on disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
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

    def on_epoch_end(self, _epoch: int, logs: dict[str, float] | None = None) -> None:
        self.history.append({key: round(float(value), 6) for key, value in (logs or {}).items()})
        replace(self._folder / LAST, self.model.save)
        # The history is written last: it alone says which epoch is complete.
        replace(self._folder / HISTORY, self._write)

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
