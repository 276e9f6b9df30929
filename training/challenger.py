"""From the champion and a site's readings to a challenger.

Training starts from the champion's own weights and is short and slow, so that what it knows is
moved and not made anew. Three things hold it: base data that are rehearsed where the site has
them (Robins, Connection Science 7, 1995); targets that are partly the champion's own
probabilities (Hinton et al., arXiv 1503.02531; Li and Hoiem, ECCV 2016), which also soften a
wrong reading; and, without base data, weights that are partly the champion's in the end (WiSE-FT,
Wortsman et al., CVPR 2022).

A run can be stopped at any moment: each finished epoch is kept, and the same call goes on.
"""

import datetime as dt
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.calibrate import (
    MAY_LOSE,
    calibration_figure,
    no_worse_threshold,
    recalibrate,
    reliability,
)
from training.champion import bake
from training.dataset import CLASSES
from training.elsewhere import Files, Job, packed, put, spread
from training.evaluate import figures
from training.exported import export, restore
from training.finetune import HISTORY, RECIPE, Rate, balanced, go_on, new_trainee
from training.folds import bytes_of, whole
from training.networks import FINE_TUNED
from training.quality import fit_and_measure
from training.versions import replace, seal
from triage.errors import DataError
from triage.network import Network, openvino
from triage.novelty import NOVELTY
from triage.pixels import fingerprint
from triage.quality import QUALITY
from triage.registry import DESCRIPTION, EXPORTED, FORMAT, ModelVersion

PEAK = 1e-4
"""The highest learning rate: a fifth of the champion's own."""

BELIEVED = {"with base data": 0.1, "without base data": 0.3}
"""Shares of the champion's probability in a target."""

KEPT = 0.25
"""Share of the champion's weights in the challenger's, without base data."""

MOST = 5.0
"""No case counts for more than so many: a rare one that is misread would lead astray."""

CHECKPOINT = "checkpoint"

REFIT = 1_000
"""With so many pictures, novelty and quality are fitted anew."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled pictures of one part of a snapshot.

    Attributes
    ----------
    arrays : ndarray of float16, shape (cases, 256, 256), 0 to 1
    labels : ndarray of int64, shape (cases,), 0 or 1
    weights : ndarray of float64, shape (cases,), above 0
        The inverse of each case's probability to be read.
    patients : ndarray of str, shape (cases,)
    """

    arrays: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    patients: npt.NDArray[np.str_]

    def counts(self) -> dict[str, int]:
        """Patients, and pictures of each class, for ``model.json``."""
        named = {name: int(np.sum(self.labels == label)) for label, name in enumerate(CLASSES)}
        return {"patients": len(np.unique(self.patients)), **named}


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a challenger is made of.

    Attributes
    ----------
    snapshot : str
        The digest of the site's snapshot.
    train, validation : Pictures
        Of the site. Both have both classes, and no patient in common.
    base : Pictures or None
        Of the base data, that the champion was trained on.
    told : mapping
        What ``model.json`` is to say of the data besides: when, how many readings. No names.
    """

    snapshot: str
    train: Pictures
    validation: Pictures
    base: Pictures | None
    told: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a challenger is trained.

    Attributes
    ----------
    epochs : int
    pictures : int
        Of the site, each shown in several copies if there are fewer, in an epoch.
    seed : int
    precision : str
        Of the arithmetic while training; a Keras dtype policy.
    """

    epochs: int = 4
    pictures: int = 1_000
    seed: int = 1
    precision: str = "mixed_bfloat16"


def train(
    champion: ModelVersion,
    lesson: Lesson,
    out: Path,
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
) -> ModelVersion:
    """Train a challenger and write its version; called again, it goes on.

    Parameters
    ----------
    champion : ModelVersion
    lesson : Lesson
    out : Path
        Becomes the model version; its subfolder ``checkpoint`` holds the state.
    settings : Settings
    tell : callable
        Is told what is done now.

    Raises
    ------
    DataError
        A part lacks a class, the champion cannot be trained further, or the folder is
        another run's or damaged.
    ModelError
        The champion, or a finished version in the folder, is damaged.
    """
    if (out / DESCRIPTION).exists():
        return ModelVersion.load(out)
    _check(champion, lesson)
    # A run that was killed comes to what it would have come to, to the bit.
    tf.config.experimental.enable_op_determinism()
    checkpoint = out / CHECKPOINT
    _claim(checkpoint, champion, lesson, settings)
    old = Network(champion)
    shown = _shown(old, lesson, settings)
    tell(f"training, epoch 1 of {settings.epochs}")

    def begin() -> keras.Model:
        network = new_trainee(settings.precision)
        network.set_weights(restore(_architecture(champion), champion.folder).get_weights())
        return network

    trained, history = go_on(
        begin,
        Rate(PEAK, 0.0),
        shown,
        checkpoint,
        settings.seed,
        settings.epochs,
        0,
        lambda done: tell(f"training, epoch {min(done + 1, settings.epochs)} of {settings.epochs}"),
    )
    network = whole(_architecture(champion), trained)
    if lesson.base is None:
        _pull(network, champion)
    tell("calibrating")
    validation = lesson.validation
    calibration = recalibrate(
        validation.labels, _logits(network, validation.arrays), validation.weights
    )
    bake(network, calibration)
    export(network, out / EXPORTED, half=True)
    weights = Path(EXPORTED).with_suffix(".bin").name
    restore(_architecture(champion), out)  # training must be able to go on from these files
    pictures = _pictures(champion, lesson, settings.seed, out)
    probabilities = _probabilities(_exported(champion, out), validation.arrays)
    threshold = no_worse_threshold(
        validation.labels,
        validation.weights,
        _probabilities(old, validation.arrays) >= champion.threshold,
        probabilities,
        champion.threshold,
    )
    # Rounded down, so that the case that set it stays flagged.
    threshold = float(np.floor(threshold * 1e6) / 1e6)
    told = _told(champion, lesson, settings, history, threshold, probabilities)
    told["calibration"] |= {
        "slope": round(calibration.slope, 4),
        "intercept": round(calibration.intercept, 4),
    }
    names = [EXPORTED, weights, *([NOVELTY, QUALITY] if pictures else [])]
    seal(out, names, {**told, "pictures": pictures})
    shutil.rmtree(checkpoint)
    return ModelVersion.load(out)


def train_on_cluster(
    address: str,
    threads: int,
    champion: ModelVersion,
    lesson: Lesson,
    out: Path,
    settings: Settings,
    tell: Callable[[str], None],
) -> ModelVersion:
    """Train a challenger on a machine of a Ray cluster; called again, it goes on.

    Parameters
    ----------
    address : str
        As :func:`triage.cluster.connect` takes it.
    threads : int
        Of its arithmetic; fewer if no machine there has so many cores.
    champion, lesson, out, settings, tell
        As in :func:`train`, which may go on with it, too.

    Raises
    ------
    DataError, ModelError
        As in :func:`train`.
    ServiceError
        The cluster cannot be used, or loses worker after worker.
    """
    if not (out / DESCRIPTION).exists():
        _check(champion, lesson)
        shared = packed(champion.folder), lesson, settings
        signs = (f"{CHECKPOINT}/{HISTORY}", DESCRIPTION)
        spread(address, shared, [Job("the challenger", out, _there, signs)], threads, tell)
    return ModelVersion.load(out)


def _there(
    shared: tuple[Files, Lesson, Settings], folder: Path, tell: Callable[[str], None]
) -> None:
    """Train a challenger in a worker."""
    files, lesson, settings = shared
    with tempfile.TemporaryDirectory() as temporary:
        put(files, Path(temporary))
        train(ModelVersion.load(Path(temporary)), lesson, folder, settings, tell)


def _architecture(champion: ModelVersion) -> str:
    return str(champion.description["architecture"])


def _check(champion: ModelVersion, lesson: Lesson) -> None:
    if _architecture(champion) not in FINE_TUNED:
        raise DataError(
            f"the champion {champion.version} is a {_architecture(champion)}, which cannot be "
            f"trained further: promote one of {', '.join(sorted(FINE_TUNED))}"
        )
    if champion.pixel_fingerprint != fingerprint():
        raise DataError(
            f"the champion {champion.version} was trained on another pixel pipeline: promote one "
            "that was trained on this program's"
        )
    for name, part in (("train", lesson.train), ("validation", lesson.validation)):
        for label, kind in enumerate(CLASSES):
            if not np.any(part.labels == label):
                raise DataError(
                    f"the {name} part has no label of class {kind}: wait for readings of it"
                )


def _claim(checkpoint: Path, champion: ModelVersion, lesson: Lesson, settings: Settings) -> None:
    """Say whose checkpoint a folder is, or refuse another's."""
    whose = {"champion": champion.version, "snapshot": lesson.snapshot, **asdict(settings)}
    identity = checkpoint / "run.json"
    if not identity.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        replace(identity, lambda path: path.write_text(json.dumps(whose, indent=1), "utf-8"))
        return
    try:
        known = json.loads(identity.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"checkpoint {identity} is damaged ({type(error).__name__}): remove {checkpoint} to "
            "start again"
        ) from error
    if known != whose:
        changed = ", ".join(key for key in whose if known.get(key) != whose[key])
        raise DataError(
            f"checkpoint in {checkpoint} is of another retraining (differs in {changed}): remove "
            "it to start again"
        )


def _shown(
    champion: Network, lesson: Lesson, settings: Settings
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Pictures, targets and weights of an epoch: the site's, as often as the base's."""
    times = max(1, round(settings.pictures / len(lesson.train.labels)))
    parts = [lesson.train] * times
    believed = BELIEVED["without base data"]
    if lesson.base is not None:
        parts.append(lesson.base)
        believed = BELIEVED["with base data"]
    said = {id(part): _probabilities(champion, part.arrays) for part in parts}
    pictures = {id(part): bytes_of(part.arrays) for part in parts}
    targets = [(1.0 - believed) * part.labels + believed * said[id(part)] for part in parts]
    weights = [
        balanced(part.labels) * np.clip(part.weights / part.weights.mean(), 0.0, MOST)
        for part in parts
    ]
    return (
        np.concatenate([pictures[id(part)] for part in parts]),
        np.concatenate(targets).astype(np.float32),
        np.concatenate(weights).astype(np.float32),
    )


def _pull(network: keras.Model, champion: ModelVersion) -> None:
    """Move weights back towards the champion's."""
    before = restore(_architecture(champion), champion.folder).get_weights()
    network.set_weights(
        [
            (1.0 - KEPT) * new + KEPT * old
            for new, old in zip(network.get_weights(), before, strict=True)
        ]
    )


def _logits(network: keras.Model, arrays: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    told = keras.Model(network.inputs, network.get_layer("logit").output)
    # Batch by batch: a whole part in float32 would need gigabytes.
    batches = [
        told.predict_on_batch(arrays[start : start + 32, ..., np.newaxis].astype(np.float32))
        for start in range(0, len(arrays), 32)
    ]
    return np.concatenate(batches)[:, 0].astype(np.float64)


def _probabilities(network: Network, arrays: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
    return np.array([network.score(array.astype(np.float32)).probability for array in arrays])


def _exported(champion: ModelVersion, folder: Path) -> Network:
    """The network in a folder that is not sealed yet."""
    return Network(
        ModelVersion(
            "unsealed",
            folder,
            champion.pixel_fingerprint,
            champion.threshold,
            champion.population,
            champion.description,
        )
    )


def _pictures(
    champion: ModelVersion, lesson: Lesson, seed: int, out: Path
) -> Mapping[str, Any] | None:
    """Write novelty and quality, and what is told of them; None if the champion has none.

    A few hundred pictures do not say what a chest radiograph is. So they are fitted anew only
    together with enough base data, and are the champion's otherwise: it accepted all the
    pictures that were read, or they would have no score and no reading.
    """
    site, base = lesson.train, lesson.base
    if base is not None and len(base.labels) + len(site.labels) >= REFIT:
        arrays = np.concatenate([base.arrays, site.arrays, lesson.validation.arrays])
        patients = np.concatenate([base.patients, site.patients, lesson.validation.patients])
        held_out = np.arange(len(base.labels) + len(site.labels), len(arrays))
        quality, told = fit_and_measure(arrays, patients, held_out, seed)
        quality.novelty.save(out / NOVELTY)
        quality.save(out / QUALITY)
        return {**told, "fitted_on": "this site's pictures and base data"}
    if not {NOVELTY, QUALITY} <= set(champion.description["files"]):
        return None
    for name in (NOVELTY, QUALITY):
        shutil.copyfile(champion.folder / name, out / name)
    return {**champion.description.get("pictures", {}), "fitted_on": "as its parent's"}


def _told(
    champion: ModelVersion,
    lesson: Lesson,
    settings: Settings,
    history: list[dict[str, float]],
    threshold: float,
    probabilities: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Everything in ``model.json`` that does not depend on the files written."""
    known, validation = champion.description, lesson.validation
    measured = figures(
        validation.labels, probabilities, validation.patients, threshold, settings.seed
    )
    ece = calibration_figure(validation.labels, probabilities, validation.patients, settings.seed)
    parts = {"train": lesson.train.counts(), "validation": validation.counts()}
    if lesson.base is not None:
        parts["rehearsal"] = lesson.base.counts()
    believed = BELIEVED["without base data" if lesson.base is None else "with base data"]
    kept = [KEPT] if lesson.base is None else []
    return {
        "format": FORMAT,
        "architecture": known["architecture"],
        "parameters": known["parameters"],
        "created_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "pixel_fingerprint": champion.pixel_fingerprint,
        "output": "probability of pneumonia, calibrated on this site's validation part",
        "threshold": threshold,
        "threshold_rule": (
            "the parent's, a risk, on probabilities that were calibrated on the validation part; "
            f"lowered where it would lose more than {MAY_LOSE} of its diseased and more than one "
            "against the parent, raised where it would flag more of its healthy and loses none"
        ),
        "calibration": {
            "method": "Platt scaling with a prior at the parent's calibration, on the site's "
            "validation part; folded into the last layer",
            "reliability_validation": reliability(validation.labels, probabilities),
        },
        "metrics": {
            "measured_on": "the site's validation part, which also set calibration and threshold: "
            "the gate's exam is what counts",
            "interval": "95%, bootstrap over patients",
            "validation": {
                name: figure.as_dict() for name, figure in {**measured, "ece": ece}.items()
            },
        },
        "population": known["population"],
        "data": {
            "name": "readings of one site, on top of its parent's data",
            "attribution": "the site's readers; the parent's data: " + known["data"]["attribution"],
            "licence": "as the site allows; the parent's data: " + known["data"]["licence"],
            "snapshot": lesson.snapshot,
            "parts": parts,
            **lesson.told,
        },
        **({"pretrained": known["pretrained"]} if "pretrained" in known else {}),
        "training": {
            **asdict(settings),
            **RECIPE,
            "start": f"the weights of {champion.version}; stem, first three blocks and depthwise "
            "kernels stay",
            "optimizer": f"AdamW, one cycle up to {PEAK}, no weight decay",
            "champion_in_targets": believed,
            "champion_in_weights": kept[0] if kept else 0.0,
            # No accuracy: a target that is partly a probability is never met.
            "history": [{"loss": epoch["loss"]} for epoch in history],
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
                "openvino": openvino().__version__.split("-")[0],
            },
        },
        "parent": champion.version,
    }
